"""Whether PyTorch records gradients: as it does by default, whatever mode the caller is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["with_gradients"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def with_gradients(function: _Function) -> _Function:
    """Let a function run as by default, also when called within ``torch.no_grad`` or ``torch.inference_mode``.

    In inference mode ``torch.enable_grad`` has no effect, so nothing can be attributed nor traced to the image; and the
    tensors that are made there can never be trained.

    Example:
        >>> @with_gradients
        ... def weight():
        ...     return torch.nn.Parameter(torch.ones(2))
        >>> with torch.inference_mode():
        ...     weight().sum().requires_grad, weight().is_inference()
        (False, False)
    """
    return torch.inference_mode(mode=False)(function)
