"""Where and how a network runs; without PyTorch, which the command line imports late."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, check_known, option, reason, whole_number

if TYPE_CHECKING:
    import torch


ENGINES = ("auto", "torch", "openvino")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how a network runs.

    Attributes:
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.
        dtype: "float32" ("auto" is the same), or "bfloat16" or "float16" on a GPU, which report how many labels they
            change.
        engine: "torch"; "openvino", which runs a network on a CPU faster, and in the same float32, in ``segment`` and
            ``evaluate``; or "auto", OpenVINO where the work is worth the seconds of a conversion and the network is
            convolutional. A network that it cannot convert, or answers otherwise, runs in PyTorch, and a line says so.
        batch: windows per forward pass; by default the fastest number. Fewer once memory runs out.
        workers: number of processes to start on this machine; by default everything runs in this one. Results do not depend
            on it.
        scheduler: address of a Dask scheduler whose workers to use instead; they must reach files by the same paths.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.

    Raises:
        ConfigError: a number is out of range, or the engine is unknown.

    Example:
        >>> Compute(device="cpu", dtype="bfloat16", workers=2).place()
        (device(type='cpu'), torch.bfloat16)
    """

    device: str = "auto"
    dtype: str = "auto"
    engine: str = "auto"
    batch: int | None = None
    workers: int | None = None
    scheduler: str | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_known("engine", self.engine, ENGINES)
        if self.batch is not None:
            object.__setattr__(self, "batch", whole_number("batch", self.batch, 1))

    def place(self, *, training: bool = False) -> tuple[torch.device, torch.dtype]:
        """Return the device and the precision, for steps of training if asked for.

        Raises:
            ConfigError: PyTorch does not know or have the device, or the precision is unknown or not for it.
        """
        device = choose_device(self.device)
        return device, choose_dtype(self.dtype, device, training=training)

    def refuse(self, *names: str) -> None:
        """Raise ConfigError if one of these is given, where it would have no effect."""
        for name in names:
            if getattr(self, name) not in (None, "auto"):
                raise ConfigError(f"{option(name, getattr(self, name))}: has no effect here; leave it out")


DTYPES = ("float32", "bfloat16", "float16")
AMPERE = 8  # the compute capability from which GPUs of NVIDIA have bfloat16
BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device; with "auto" a CUDA GPU if available, else the CPU.

    In the worker processes of a cluster, "auto" and "cuda" are a GPU of their own as long as there are enough.

    Raises:
        ConfigError: PyTorch does not know or have the device.
    """
    import torch

    number = _worker_number() if name in ("auto", "cuda") else None
    if number is not None and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        first = "dask_cuda" in sys.modules  # which lets each of its workers see a GPU of its own first
        return torch.device("cuda", 0 if first else number % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        raise ConfigError(
            f"{option('device', name)}: is not available here ({reason(error).partition('. ')[0]})"
        ) from error


def choose_dtype(name: str, device: torch.device, *, training: bool = False) -> torch.dtype:
    """Return the named precision; with "auto" float32 or, for steps of training, bfloat16 if the hardware supports it.

    Raises:
        ConfigError: it is unknown, or float16 on a CPU, which gains nothing from its small range.

    Example:
        >>> import torch
        >>> choose_dtype("float32", torch.device("cpu"))
        torch.float32
    """
    import torch

    if name == "float16" and device.type == "cpu":
        raise ConfigError(f"{option('dtype', name)}: is for GPUs; on a CPU choose bfloat16, float32 or auto")
    check_known("dtype", name, ["auto", *DTYPES])
    if name in DTYPES:
        found: torch.dtype = getattr(torch, name)
        return found
    return torch.bfloat16 if training and _has_bfloat16(device) else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        # PyTorch's own answer is that for the current device.
        return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= AMPERE
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BFLOAT16_CAPABILITIES)


def _worker_number() -> int | None:
    """Return the number of this worker, so that each can take a GPU of its own; None in a process that is none.

    That of a Dask cluster is the number at the end of the worker's name. One whose name ends otherwise counts as 0, and so
    does one without a name, which Dask calls by its address.
    """
    if "EVENSLICE_WORKER" in os.environ:  # of a process that `evenslice._core.workers` started
        return int(os.environ["EVENSLICE_WORKER"])
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        name = str(get_worker().name)
    except ValueError:
        return None
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits and "://" not in name else 0
