"""What a network returns, reduced to one tensor of scores: by a rule, or by a function that the user names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evenslice._core import ModelError, option, reporting_errors

if TYPE_CHECKING:
    from collections.abc import Callable

# Names under which libraries return scores, most likely first: torchvision; transformers' classifiers and segmenters,
# its depth estimators, its encoders without a head.
NAMES = ("out", "logits", "predicted_depth", "last_hidden_state")

ACTIVATIONS = {"sigmoid": ("SigmoidBackward0", "HardsigmoidBackward0"), "softmax": ("SoftmaxBackward0",)}
WITHIN_RANGE = (
    *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "CloneBackward0"),
    *("SqueezeBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "PermuteBackward0", "TransposeBackward0"),
    *("SelectBackward0", "SliceBackward0", "ToCopyBackward0", "UpsampleBilinear2DBackward0"),
    *("AddBackward0", "DivBackward0"),  # the mean over window and mirror
    *("MulBackward0", "ClampBackward1", "ClampMinBackward0", "ClampMaxBackward0", "HardtanhBackward0"),
)
"""What autograd calls operations that leave probabilities within 0..1, or may do so."""


def logits(output: Any) -> Tensor:
    """Reduce what a network returns to the one tensor of its scores.

    The rules, the first that applies:

    - a tensor is returned as it is;
    - `detections` with ``"scores"`` give the sum of the scores of each image, (batch, 1), 0 where nothing was detected;
    - ``masks_queries_logits`` with ``class_queries_logits``, as from Mask2Former, give semantic scores as its processor
      computes them: the sum over queries of P(class) times P(mask), (batch, classes, y, x), without the class
      "nothing";
    - an object or a mapping gives its tensor ``out``, ``logits``, ``predicted_depth`` or ``last_hidden_state``, in this
      order; a mapping without these its first tensor;
    - a tuple or list gives its first tensor, which ignores auxiliary heads and deep supervision.

    `reduce_output` applies a function instead.

    Args:
        output: the return value of a network's forward pass.

    Returns:
        The scores, in whatever shape the network gives them: (batch, classes, y, x) from a segmenter.

    Raises:
        ModelError: no rule finds a tensor.

    Example:
        >>> import torch
        >>> scores = torch.zeros(1, 2, 8, 8)
        >>> logits({"aux": torch.ones(1), "out": scores}) is scores
        True
        >>> logits([{"boxes": torch.zeros(2, 4), "scores": torch.tensor([0.75, 0.5])}])
        tensor([[1.2500]])
    """
    for candidate in _candidates(output):
        if isinstance(candidate, Tensor):
            return candidate
    raise ModelError(
        f"the network returned {type(output).__name__}, in which no logits were found;"
        " return a tensor, a tuple or list that holds one, or a mapping with 'out' or 'logits'"
    )


def predicted_classes(output: Tensor, dim: int) -> Tensor:
    """Return the class with the highest score along ``dim``, which is dropped; int64.

    A single score l stands for two classes: class 1 where l > 0, else class 0. Integers are class numbers already and
    are returned as they are. (``max`` finds the class several times faster than ``argmax``.)

    Example:
        >>> predicted_classes(torch.tensor([[[-1.0, 2.0]]]), dim=0).tolist()
        [[0, 1]]
    """
    if not output.is_floating_point():
        return output
    output = output.detach()
    return (output > 0).squeeze(dim).long() if output.shape[dim] == 1 else output.max(dim).indices


def final_activation(output: Tensor) -> str | None:
    """Return "sigmoid" or "softmax" if it is the last operation that made an output, as far as autograd has recorded it.

    Other numbers than those from 0 to 1, as after scaling, are no probabilities: then None.

    Example:
        >>> score = torch.nn.functional.conv2d(torch.rand(1, 3, 4, 4), torch.rand(2, 3, 1, 1, requires_grad=True))
        >>> final_activation(score), final_activation(score.sigmoid()[:, 1:]), final_activation(score.softmax(1))
        (None, 'sigmoid', 'softmax')
        >>> final_activation(10 * score.sigmoid())
    """
    if output.grad_fn is None or bool((output - 0.5).abs().max() > 0.51):  # beyond 0 and 1, rounding aside
        return None
    return next((name for name, steps in ACTIVATIONS.items() if _comes_from(output.grad_fn, steps)), None)


def _comes_from(step: Any, last: tuple[str, ...]) -> bool:
    """Return whether all that a step of the graph works on comes from steps of these names."""
    if step is None or step.name() in last:
        return step is not None
    before = [inner for inner, _ in step.next_functions if inner is not None]
    return step.name() in WITHIN_RANGE and bool(before) and all(_comes_from(inner, last) for inner in before)


def detections(output: Any) -> Sequence[Mapping[str, Any]] | None:
    """Return a detector's output, a list with one mapping for each image; None for any other output.

    Example:
        >>> detections([{"boxes": torch.zeros(2, 4), "scores": torch.ones(2)}])[0]["scores"]
        tensor([1., 1.])
        >>> detections(torch.zeros(1, 2, 8, 8)) is None
        True
    """
    found = isinstance(output, list | tuple) and output and all(isinstance(item, Mapping) for item in output)
    return output if found else None


def reduce_output(returned: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a user's function to what a network returned.

    Args:
        returned: whatever the network returned for windows.
        function: maps it to one tensor or array, batch first.

    Raises:
        ModelError: the function raises, or returns something else.

    Example:
        >>> import operator
        >>> reduce_output({"depth": torch.ones(1)}, operator.itemgetter("depth"))
        tensor([1.])
    """
    name = option("outputs", function_name(function))
    with reporting_errors(
        ModelError, f"{name} fails on what the network returned, {type(returned).__name__}"
    ):
        output = function(returned)
    if not hasattr(output, "__array__"):
        raise ModelError(f"{name} returns {type(output).__name__}; it must return a tensor, batch first")
    return output


def function_name(function: Callable[..., Any]) -> str:
    """Return ``package.module:function``, or the name of the type if the function has no name of its own.

    Example:
        >>> import operator
        >>> function_name(abs), function_name(operator.itemgetter("depth"))
        ('builtins:abs', 'itemgetter')
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    module = getattr(function, "__module__", None)
    return f"{module}:{name}" if module and hasattr(function, "__qualname__") else str(name)


def _candidates(output: Any) -> Iterator[Any]:
    """Yield what may be the scores, most likely first."""
    yield output
    scores: list[Any] = [found.get("scores") for found in detections(output) or ()]
    if scores and all(isinstance(score, Tensor) for score in scores):
        yield torch.stack([score.sum().reshape(1) for score in scores])
    yield _semantic(_entry(output, "masks_queries_logits"), _entry(output, "class_queries_logits"))
    yield from (_entry(output, name) for name in NAMES)
    if isinstance(output, Mapping):
        yield from output.values()
    elif isinstance(output, tuple | list):
        yield from output


def _entry(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _semantic(masks: Any, classes: Any) -> Tensor | None:
    """Combine the queries' masks (batch, queries, y, x) and classes (batch, queries, classes + 1)."""
    if not (isinstance(masks, Tensor) and isinstance(classes, Tensor)):
        return None
    return torch.einsum("bqc,bqyx->bcyx", classes.softmax(-1)[..., :-1], masks.sigmoid())
