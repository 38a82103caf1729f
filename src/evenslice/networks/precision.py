"""Full precision of float32, which PyTorch may round in convolutions and matrix products; and float64."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["as_float64", "full_precision"]

FULL = ("none", "ieee")


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 in full in the block, whatever PyTorch is set to; in other threads, too.

    By default convolutions on a GPU round to TensorFloat32, 10 bits, and ``torch.set_float32_matmul_precision`` lets
    products round, on a CPU to bfloat16. The symmetry of networks is judged by differences smaller than that.

    Example:
        >>> torch.set_float32_matmul_precision("medium")
        >>> with full_precision():
        ...     torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        ('highest', False)
        >>> torch.get_float32_matmul_precision()
        'medium'
        >>> torch.set_float32_matmul_precision("highest")
    """
    _SETTINGS.hold()
    try:
        yield
    finally:
        _SETTINGS.release()


def as_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, where it is; on the CPU if its device, Apple's, has no float64.

    Example:
        >>> as_float64(torch.ones(1))
        tensor([1.], dtype=torch.float64)
    """
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class _Settings:
    """PyTorch's settings, which hold for all threads: full as long as any thread needs it, then as before."""

    def __init__(self) -> None:
        self._lock, self._held, self._before = threading.Lock(), 0, [""]

    def hold(self) -> None:
        with self._lock:
            if not self._held:
                self._before = [operation.fp32_precision for operation in _operations()]
                # The older switches go along, for PyTorch complains where it reads one that says otherwise.
                _set_older(convolutions=False, products="highest")
                _set_newer([name if name in FULL else "ieee" for name in self._before])
            self._held += 1

    def release(self) -> None:
        with self._lock:
            self._held -= 1
            if self._held:
                return
            before = self._before
            products = {"bf16": "medium", "tf32": "high"}.get(
                before[3], "high" if before[2] == "tf32" else "highest"
            )
            _set_older(convolutions=before[0] == before[1] == "tf32", products=products)
            _set_newer(before)


_SETTINGS = _Settings()


def _operations() -> tuple[Any, ...]:
    backends: Any = torch.backends
    convolutions = (backends.cudnn.conv, backends.cudnn.rnn)
    return (*convolutions, backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv)


def _set_older(*, convolutions: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _set_newer(names: list[str]) -> None:
    for operation, name in zip(_operations(), names, strict=True):
        if operation.fp32_precision != name:
            operation.fp32_precision = name
