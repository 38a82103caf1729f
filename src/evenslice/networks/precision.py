"""Full precision of float32, which PyTorch may round in convolutions and matrix products."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["full_precision"]

FULL = ("none", "ieee")


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 in full in the block, whatever PyTorch is set to.

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
    backends: Any = torch.backends
    convolutions = (backends.cudnn.conv, backends.cudnn.rnn)
    operations = (*convolutions, backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [operation.fp32_precision for operation in operations]
    # The older switches go along, for PyTorch complains where it reads one that says otherwise.
    _set_older(convolutions=False, products="highest")
    _set_newer(operations, [name if name in FULL else "ieee" for name in before])
    try:
        yield
    finally:
        products = {"bf16": "medium", "tf32": "high"}.get(
            before[3], "high" if before[2] == "tf32" else "highest"
        )
        _set_older(convolutions=before[0] == before[1] == "tf32", products=products)
        _set_newer(operations, before)


def _set_older(*, convolutions: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _set_newer(operations: tuple[Any, ...], names: list[str]) -> None:
    for operation, name in zip(operations, names, strict=True):
        if operation.fp32_precision != name:
            operation.fp32_precision = name
