"""What the result of a segmentation depends on, to tell whether a later run may go on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice._core import json_text, read_bounded, staged_file
from evenslice.inference.black_boxes import BlackBox

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.inference.prediction import Network
    from evenslice.inference.ready_network import ReadyNetwork

__all__ = ["describe_network", "plan_hash", "same_plan", "write_plan"]

OF_ANY_MODULE = frozenset(vars(nn.Module()))
"""What PyTorch keeps in a module, such as its parameters and hooks."""

DEEPEST = 8
"""Levels of a setting that are looked at."""

PLAN_BYTES = 2**20
"""Largest size of a plan in bytes."""

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Differences of outputs between devices, relative to the largest value."""

SAME_FUNCTION = 1e-5
"""The same for a function, which may be known by its outputs alone."""


def describe_network(network: Network) -> list[str]:
    """Return what tells a network from others: its class, specification, tensors and precision.

    Of a function that is its type and its name and, of an ONNX file, the digest and how it scales slices.
    """
    if isinstance(network, BlackBox):
        function = network.function
        return [
            type(function).__qualname__,
            network.name,
            str(getattr(function, "origin", None)),
            str(network.scaling),
        ]
    module = network.module
    return [
        f"{type(module).__module__}.{type(module).__qualname__}",
        _hash_specification(module),
        _hash_tensors(network),
        str(network.dtype),
    ]


def _hash_specification(module: nn.Module) -> str:
    """Hash the classes of all modules and their settings, such as the width of a stride or a threshold."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        settings = {key: _known(value) for key, value in vars(part).items() if _is_setting(key, value)}
        digest.update(f"{name} {type(part).__qualname__} {sorted(settings.items())}\n".encode())
    return digest.hexdigest()


def _is_setting(name: str, value: Any) -> bool:
    """Return whether an attribute is one that a result depends on; a private whole number may count the calls."""
    if name.startswith("_"):
        return name not in OF_ANY_MODULE and isinstance(
            value, float | complex | np.ndarray | np.generic | torch.Tensor
        )
    return name not in OF_ANY_MODULE


def _known(value: Any, depth: int = 0) -> str:
    """Return what a setting says in any process; of an object of an unknown kind, no more than its kind."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        return _hash_tensor(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if depth < DEEPEST:  # it may hold itself
        if isinstance(value, tuple | list):
            return f"[{', '.join(_known(item, depth + 1) for item in value)}]"
        if isinstance(value, Mapping):
            return str(sorted((_known(key), _known(item, depth + 1)) for key, item in value.items()))
    return type(value).__qualname__


def _hash_tensors(network: ReadyNetwork) -> str:
    digest = hashlib.sha256()
    for name, value in chain(network.named_parameters(), network.named_buffers()):
        digest.update(f"{name} {_hash_tensor(value)}\n".encode())
    return digest.hexdigest()


def _hash_tensor(value: torch.Tensor) -> str:
    values = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(values).hexdigest()}"


def plan_hash(plan: dict[str, Any]) -> str:
    """Return the name of a plan.

    Example:
        >>> plan_hash({"format": 2})
        'd7cc2ebf7f17aa9b'
    """
    return hashlib.sha256(json_text(plan).encode()).hexdigest()[:16]


def write_plan(path: Path, plan: dict[str, Any], output: NDArray[np.float64]) -> None:
    """Write a plan, and the output of its network for one fixed window."""
    with staged_file(path) as beside:
        beside.write_text(json_text({**plan, "output": output.tolist()}), encoding="utf-8")


def same_plan(path: Path, plan: dict[str, Any], output: NDArray[np.float64], network: Network) -> bool:
    """Return whether a plan was written for the same work and a network that does the same."""
    try:
        written = json.loads(read_bounded(path, PLAN_BYTES))
        seen = np.asarray([np.nan if value is None else value for value in written.pop("output")], np.float64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    if written != json.loads(json_text(plan)) or seen.shape != output.shape:
        return False
    # Of a function, or of an ONNX file with external weights, the plan does not say everything.
    tolerance = SAME_FUNCTION if isinstance(network, BlackBox) else TOLERANCES[network.dtype]
    scale = np.nanmax(np.abs(output), initial=0)
    return bool(np.allclose(seen, output, rtol=0, atol=tolerance * scale, equal_nan=True))
