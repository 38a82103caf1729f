"""What tells networks and functions from others, so that a segmentation is resumed by the one that began it.

Networks are known by their classes, settings and weights; functions by their names, and by their code, defaults and enclosed
variables where Python has them. A change elsewhere, as in a function that they call, is not noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice.inference.ready_networks import BlackBox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.inference.prediction import Network

__all__ = ["describe_network"]

OF_ANY_MODULE = frozenset(vars(nn.Module()))
"""What PyTorch keeps in a module, such as its parameters and hooks."""

DEEPEST = 12
"""Levels of a setting that are looked at."""


def describe_network(network: Network) -> list[str]:
    """Return what tells a network from others.

    Example:
        >>> def bright(windows):
        ...     return windows[:, :1] - 0.5
        >>> def dark(windows):
        ...     return 0.5 - windows[:, :1]
        >>> dark.__qualname__ = bright.__qualname__
        >>> describe_network(BlackBox(bright)) == describe_network(BlackBox(dark))
        False
    """
    if isinstance(network, BlackBox):
        origin = getattr(network.function, "origin", None)  # such as the digest of an ONNX file
        return [network.name, str(origin), str(network.scaling), _digest(network.function)]
    return [_digest(network.module), _digest(network.scaling), str(network.dtype)]


def _digest(value: Any) -> str:
    return hashlib.sha256(_known(value).encode()).hexdigest()


def _known(value: Any, depth: int = 0) -> str:
    """Return what a setting, or a function, says in any process; of an object of an unknown kind, little but its kind."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        return _tensor(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    # An object may hold itself.
    parts = [] if depth == DEEPEST else [_known(part, depth + 1) for part in _parts(value)]
    return f"{type(value).__qualname__}{sorted(parts) if isinstance(value, set | frozenset | Mapping) else parts}"


def _parts(value: Any) -> Sequence[Any]:
    """Return what tells a value from others of its kind."""
    parts: Sequence[Any] = ()
    if isinstance(value, tuple | list | set | frozenset):
        parts = list(value)
    elif isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, nn.Module):
        modules = [(name, type(part).__qualname__, _settings(part)) for name, part in value.named_modules()]
        parts = [type(value).__module__, modules, *value.named_parameters(), *value.named_buffers()]
    elif isinstance(value, CodeType):
        parts = value.co_code, value.co_consts, value.co_names
    elif isinstance(value, FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        parts = value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, enclosed
    elif isinstance(value, MethodType):
        parts = value.__func__, _settings(value.__self__)
    elif isinstance(value, partial):
        parts = value.func, value.args, value.keywords
    elif isinstance(value, type | BuiltinFunctionType):
        parts = [value.__qualname__]
    elif callable(value):
        parts = [_settings(value)]
    return parts


def _settings(value: object) -> dict[str, Any]:
    """Return the attributes that a result depends on; a private whole number may count the calls."""
    return {
        name: item
        for name, item in getattr(value, "__dict__", {}).items()
        if name not in OF_ANY_MODULE
        and (
            not name.startswith("_")
            or isinstance(item, float | complex | np.ndarray | np.generic | torch.Tensor)
        )
    }


def _tensor(value: torch.Tensor) -> str:
    values = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(values).hexdigest()}"
