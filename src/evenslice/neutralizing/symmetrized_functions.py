"""Functions from windows to outputs, made mirror-symmetric by a second call."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from evenslice._core import ModelError
from evenslice.networks import function_name
from evenslice.neutralizing.detection_average import average_detections, finds_objects

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["SymmetrizedFunction"]

STATED = ("slices", "tile", "sides", "mean", "std", "origin")
"""Attributes by which a function states what windows it takes, and where it comes from."""

WORDS = (str, bytes, type(None))
"""What is no answer, and is returned as it was for the window as given."""

RIGHT = "it has to return arrays or tensors, or a mapping, tuple or list of them"


class SymmetrizedFunction:
    """The mean of a function's outputs for windows and for their mirrors.

    Args:
        function: maps an array (batch, slices, y, x) to an array or tensor, or to a mapping, tuple or list of them;
            there, single numbers are averaged, too, while text and None stay as they are for the windows as given. A list
            with the boxes, labels and scores in each window is averaged object by object, see `average_detections`. What
            it states by the attributes ``slices``, ``tile``, ``sides``, ``mean``, ``std``, ``origin`` and ``name`` holds
            here, too.

    Attributes:
        function: the function.
        name: its name.

    Raises:
        ModelError: it is not callable; or, on a call, it returns integers, such as classes, another object, no number at
            all, or other parts for the windows than for their mirrors.

    Example:
        >>> fair = SymmetrizedFunction(lambda windows: windows[:, 0])
        >>> fair(np.array([[[[1.0]], [[5.0]], [[3.0]]]]))
        array([[[2.]]])
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise ModelError(
                f"{type(function).__name__} is not a network; give a torch.nn.Module, or a function from arrays of windows to "
                "outputs"
            )
        self.function = function
        self.name = str(getattr(function, "name", function_name(function)))

    def __getattr__(self, name: str) -> Any:
        if name in STATED:
            return getattr(self.function, name)
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"SymmetrizedFunction({self.function!r})"

    def __call__(self, windows: NDArray[np.float32]) -> Any:
        """Return the mean over windows (batch, slices, y, x) and their mirrors."""
        # The function may change its input, and may return the same memory again.
        mirrors = windows[:, ::-1].copy()
        as_given = tree_map(_copied, self.function(windows))
        mirrored = tree_map(_copied, self.function(mirrors))
        if tree_structure(as_given) != tree_structure(mirrored):
            raise ModelError(
                f"{self.name} returns other parts for a window than for its mirror, which cannot be averaged; return as many, "
                "of the same names, for any window"
            )
        if finds_objects(as_given):
            both = (map(_as_tensors, found) for found in (as_given, mirrored))
            return [average_detections(*pair) for pair in zip(*both, strict=True)]
        mean = tree_map(self._mean, as_given, mirrored)
        if all(isinstance(leaf, (*WORDS, int)) for leaf in tree_leaves(mean)):
            raise ModelError(f"{self.name} returns {type(as_given).__name__} without a score; {RIGHT}")
        return mean

    def _mean(self, first: Any, second: Any) -> Any:
        if isinstance(first, Mapping):  # of a kind that PyTorch does not know
            return {key: tree_map(self._mean, value, second[key]) for key, value in first.items()}
        if isinstance(first, WORDS) or (isinstance(first, int) and first == second):  # what is no answer
            return first
        # A tensor may be on any device and in any precision, of which NumPy knows but some.
        if isinstance(first, torch.Tensor):
            first, second = first.detach(), second.detach()
            real = first.is_floating_point() or first.is_complex()
        elif isinstance(first, Number) or hasattr(first, "__array__"):
            real = np.asarray(first).dtype.kind in "fc"
        else:
            raise ModelError(
                f"{self.name} returns {type(first).__name__}, which cannot be averaged over a window and its mirror; {RIGHT}"
            )
        if not real:
            raise ModelError(
                f"{self.name} returns integers, which cannot be averaged over a window and its mirror; "
                "it has to return scores or probabilities"
            )
        return first / 2 + second / 2  # of which no term overflows in half precision


def _as_tensors(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a detector found with tensors in place of arrays, without their graph."""
    return {
        name: torch.as_tensor(value).detach() if hasattr(value, "__array__") else value
        for name, value in found.items()
    }


def _copied(answer: Any) -> Any:
    """Return a copy of an array or tensor, and of those in a mapping of a kind that PyTorch does not know."""
    if isinstance(answer, Mapping):
        return {key: tree_map(_copied, value) for key, value in answer.items()}
    if isinstance(answer, torch.Tensor):
        return answer.detach().clone()
    return answer.copy() if isinstance(answer, np.ndarray) else answer
