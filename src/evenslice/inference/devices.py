"""The device that networks run on: which one, in which precision, and how arrays get there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import ConfigError, check_known, option, reason, worker_number

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["choose_device", "choose_dtype", "to_device"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AMPERE = 8  # the compute capability from which GPUs of NVIDIA have bfloat16
BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device; with "auto" a CUDA GPU if available, else the CPU.

    In the worker processes of a cluster, "auto" and "cuda" are a GPU of their own as long as there are enough.

    Raises:
        ConfigError: PyTorch does not know or have the device.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"{option('device', name)}: give 'auto' or the name of a device of PyTorch, such as 'cuda:1'"
        )
    number = worker_number() if name in ("auto", "cuda") else None
    if number is not None and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        first = "dask_cuda" in sys.modules  # which lets each of its workers see a GPU of its own first
        return torch.device("cuda", 0 if first else number % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(
            f"{option('device', name)}: is not available here ({reason(error).partition('. ')[0]})"
        ) from error
    if device.type == "meta":
        raise ConfigError(f"{option('device', name)}: computes no values; choose auto, cpu or cuda")
    return device


def choose_dtype(name: str, device: torch.device, *, training: bool = False) -> torch.dtype:
    """Return the named precision; with "auto" float32 or, for steps of training, bfloat16 if the hardware supports it.

    Raises:
        ConfigError: it is unknown, or float16 on a CPU, which gains nothing from its small range.

    Example:
        >>> choose_dtype("float32", torch.device("cpu"))
        torch.float32
    """
    if name == "float16" and device.type == "cpu":
        raise ConfigError(f"{option('dtype', name)}: is for GPUs; on a CPU choose bfloat16, float32 or auto")
    check_known("dtype", name, ["auto", *DTYPES])
    if name in DTYPES:
        return DTYPES[name]
    return torch.bfloat16 if training and _has_bfloat16(device) else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # PyTorch's own answer is that for the current device.
        return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= AMPERE
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BFLOAT16_CAPABILITIES)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device, images (batch, channels, y, x) in channels-last layout.

    A GPU copies it from pinned memory when it comes to that, and this process goes on meanwhile.

    Example:
        >>> to_device(np.zeros((2, 3, 4, 5)), torch.device("cpu")).stride()
        (60, 1, 15, 3)
    """
    layout = torch.channels_last if array.ndim == 4 else torch.contiguous_format
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device, memory_format=layout)
    # The GPU, and not this process, changes the layout.
    return tensor.pin_memory().to(device, non_blocking=True).contiguous(memory_format=layout)
