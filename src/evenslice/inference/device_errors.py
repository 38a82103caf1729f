"""What a device refuses, in one line: more memory than it has, or any work, as a GPU that this PyTorch was not built for."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from evenslice._core import ConfigError, ModelError, option, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "SMALLER",
    "is_device_error",
    "memory_error",
    "memory_error_of",
    "out_of_memory",
    "reporting_device_errors",
    "shortage",
]

NO_ENGINE = "unable to find an engine"
"""What PyTorch says where every algorithm of cuDNN fails: for want of memory as a rule, seldom as none suits the device."""

CPU_ALLOCATOR = "DefaultCPUAllocator"
OUT_OF_MEMORY = (
    *(CPU_ALLOCATOR, NO_ENGINE),
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


def is_device_error(error: BaseException) -> bool:
    """Return whether an error is about the device, and not about what it was to compute; memory that runs out is, too.

    Example:
        >>> is_device_error(RuntimeError("CUDA error: no kernel image is available for execution on the device"))
        True
        >>> is_device_error(RuntimeError("expected 3 channels"))
        False
    """
    if isinstance(error, torch.AcceleratorError) or out_of_memory(error):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in DEVICE_ERRORS)


def shortage(error: BaseException) -> str:
    """Return how to put an error that ``out_of_memory`` counts as one, of which cuDNN leaves open what it lacks.

    Example:
        >>> shortage(RuntimeError("GET was unable to find an engine to execute this computation"))
        'the memory of the device has run out, or cuDNN cannot compute this there'
    """
    run_out = "the memory of the device has run out"
    return f"{run_out}, or cuDNN cannot compute this there" if NO_ENGINE in str(error) else run_out


def memory_error(error: BaseException, what: str, advice: str) -> ModelError:
    """Return the error that tells a user what did not fit into the memory of the device, and what to do about it.

    Example:
        >>> print(memory_error(torch.OutOfMemoryError(), "a single window does not fit into it", SMALLER))
        the memory of the device has run out: a single window does not fit into it; choose a smaller tile
    """
    if NO_ENGINE in str(error):
        advice = f"{advice}, or {option('device', 'cpu')}"
    return ModelError(f"{shortage(error)}: {what}; {advice}")


def memory_error_of(error: BaseException) -> ModelError:
    """Return the same for an error of a library, which may come from anywhere.

    Example:
        >>> print(memory_error_of(torch.OutOfMemoryError("tried to allocate 20 GiB.")))
        the memory of the device has run out: tried to allocate 20 GiB; choose a smaller tile or batch, end what else ...
    """
    on_cpu = isinstance(error, MemoryError) or CPU_ALLOCATOR in str(error)
    elsewhere = "or end what else uses it" if on_cpu else ELSEWHERE
    what, advice = reason(error).rstrip("."), f"{SMALLER} or {option('batch')}, {elsewhere}"
    return ModelError(f"{shortage(error)}: {what}; {advice}")


@contextmanager
def reporting_device_errors(device: torch.device, what: str, advice: str = ELSEWHERE) -> Iterator[None]:
    """Turn what a device refuses in the block into one line.

    Args:
        device: where the block computes.
        what: what did not fit if memory runs out, as a sentence: "the network does not fit".
        advice: what to do in that case.

    Raises:
        ModelError: its memory has run out.
        ConfigError: it refuses to compute.

    Example:
        >>> with reporting_device_errors(torch.device("cuda", 0), "the network does not fit"):
        ...     raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        Traceback (most recent call last):
        ...
        evenslice.ConfigError: device='cuda:0': fails (CUDA error: no kernel image is available for execution on the device); ...
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise memory_error(error, what, advice) from error
        if is_device_error(error):
            raise ConfigError(
                f"{option('device', str(device))}: fails ({reason(error)}); choose {option('device', 'cpu')}, or install a "
                "PyTorch for this device"
            ) from error
        raise
