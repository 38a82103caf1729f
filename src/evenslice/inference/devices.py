"""Where and how networks run: on which device, in which precision, what it refuses, and how many windows it takes at once."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from evenslice._core import (
    ConfigError,
    EvensliceError,
    ModelError,
    check_known,
    option,
    reason,
    worker_number,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AMPERE = 8  # the compute capability from which GPUs of NVIDIA have bfloat16
BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device; with "auto" a CUDA GPU if available, else the CPU.

    In the worker processes of a cluster, "auto" and "cuda" are a GPU of their own as long as there are enough.

    Raises:
        ConfigError: PyTorch does not know or have the device.
    """
    number = worker_number() if name in ("auto", "cuda") else None
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


NO_ENGINE = "unable to find an engine"
"""What PyTorch says where every algorithm of cuDNN fails: for want of memory as a rule, seldom as none suits the device."""

OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", NO_ENGINE),
    *("out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("Failed to allocate memory for requested buffer", "is smaller than requested bytes"),  # of onnxruntime
)
DEVICE_ERRORS = ("CUDA error", "HIP error", "cuDNN error")

SMALLER = f"choose a smaller {option('tile')}"
ELSEWHERE = f"end what else uses it, or choose {option('device', 'cpu')}"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device, or of the machine, has run out.

    Example:
        >>> out_of_memory(torch.OutOfMemoryError()), out_of_memory(RuntimeError("expected 3 channels"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY)


def device_error(
    error: BaseException,
    device: torch.device | None = None,
    *,
    what: str | None = None,
    advice: str = f"{SMALLER} or {option('batch')}, {ELSEWHERE}",
) -> EvensliceError | None:
    """Return one line for what a device refuses; None for an error about what it was to compute.

    Args:
        error: what PyTorch, or a function, raised.
        device: where it computed; None if only memory that runs out is looked for.
        what: what does not fit if memory runs out, as a sentence: "the network does not fit"; by default what the error says.
        advice: what to do in that case.

    Example:
        >>> print(device_error(torch.OutOfMemoryError(), what="the network does not fit", advice=SMALLER))
        the memory of the device has run out: the network does not fit; choose a smaller tile
        >>> device_error(RuntimeError("expected 3 channels"), torch.device("cpu"))
    """
    if out_of_memory(error):
        either = ", or cuDNN cannot compute this there" if NO_ENGINE in str(error) else ""
        what = what or reason(error).rstrip(".")
        return ModelError(f"the memory of the device has run out{either}: {what}; {advice}")
    failed = isinstance(error, RuntimeError) and any(part in str(error) for part in DEVICE_ERRORS)
    if device is None or not (failed or isinstance(error, torch.AcceleratorError)):
        return None
    return ConfigError(
        f"{option('device', str(device))}: fails ({reason(error)}); choose {option('device', 'cpu')}, or install a PyTorch "
        "for this device"
    )


@contextmanager
def reporting_device_errors(device: torch.device, what: str, advice: str = ELSEWHERE) -> Iterator[None]:
    """Turn what a device refuses in the block into one line, see ``device_error``.

    Raises:
        ModelError: its memory has run out.
        ConfigError: it refuses to compute.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if refusal := device_error(error, device, what=what, advice=advice):
            raise refusal from error
        raise


Result = TypeVar("Result")

USED = 0.5
"""Part of the free memory of a GPU that a batch may take: other programs, and other batches, want some."""


class BatchSizes:
    """How many windows at once a network can take on its device, for each kind of work.

    A kind of work is whatever tells it from others that take other memory: what is computed, in which precision, on
    windows of which size.
    """

    def __init__(self) -> None:
        self._most: dict[Hashable, int] = {}
        self._fitting: dict[Hashable, int] = {}

    def run(self, compute: Callable[[slice], Result], count: int, kind: Hashable) -> list[Result]:
        """Compute on a batch of windows; where memory runs out, on halves of it, and from then on on no more at once.

        Args:
            compute: computes on some windows of the batch.
            count: number of windows in the batch.
            kind: of work.

        Returns:
            The results of the parts of the batch, in order; usually there is one.

        Raises:
            ModelError: memory runs out for a single window.

        Example: memory for two windows.
            >>> def compute(part):
            ...     if part.stop - part.start > 2:
            ...         raise torch.OutOfMemoryError
            ...     return list(range(5)[part])
            >>> BatchSizes().run(compute, 5, "example")
            [[0, 1], [2, 3], [4]]
        """
        results: list[Result] = []
        size, start = min(self._most.get(kind, count), count), 0
        while start < count:
            part = slice(start, min(start + size, count))
            try:
                results.append(compute(part))
            except (RuntimeError, MemoryError) as error:  # the latter of a function, by NumPy
                refusal = device_error(error, what="a single window does not fit into it", advice=SMALLER)
                if refusal is None:
                    raise
            else:
                start = part.stop
                continue
            # Only here is the exception gone, and with it the tensors that it held.
            if part.stop - part.start == 1:
                raise refusal
            size = self._most[kind] = (part.stop - part.start) // 2
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()  # reserved in pieces, so that whole ones can be reserved
        return results

    def fitting(
        self, compute: Callable[[int], object], device: torch.device, *, most: int, kind: Hashable
    ) -> int:
        """Return the largest power of two of windows, at most ``most``, that take up half of the free memory of a GPU.

        Args:
            compute: computes on this number of windows; called once for each kind of work, with two.
            device: the GPU.
            most: the largest number.
            kind: of work.
        """
        if kind not in self._fitting:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            compute(2)
            each = max(1, (torch.cuda.max_memory_allocated(device) - before) // 2)
            # What PyTorch has reserved and does not use is as good as free.
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + unused
            fit = int(max(1, min(free * USED // each, most)))
            self._fitting[kind] = 2 ** (fit.bit_length() - 1)
        return min(self._fitting[kind], most)
