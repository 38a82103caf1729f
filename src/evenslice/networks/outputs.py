"""Scores: what a network returns, reduced to one tensor, by a rule or by a function of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evenslice._core import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reduced", "logits", "predicted_classes"]

# Names under which libraries return what evenslice looks for, the likeliest first: torchvision; transformers, of
# classifiers and segmenters, of depth estimators, of encoders without a head.
NAMES = ("out", "logits", "predicted_depth", "last_hidden_state")


def logits(output: Any) -> Tensor:
    """Reduce what a network returns to the one tensor of its scores.

    The rule, first match wins:

    - a tensor is returned as it is;
    - a list of mappings with ``"scores"``, one for each image, as torchvision's detectors return it, gives the sum of
      the scores of each image, (batch, 1), and 0 where nothing was detected;
    - ``masks_queries_logits`` with ``class_queries_logits``, as of Mask2Former, give semantic scores as its processor
      computes them: the sum over queries of P(class) times P(mask), (batch, classes, y, x), without the class "nothing";
    - an object or a mapping gives its tensor ``out``, ``logits``, ``predicted_depth`` or ``last_hidden_state``, in this
      order; a mapping without these its first tensor;
    - a tuple or list gives its first tensor, which leaves auxiliary heads and deep supervision aside.

    Where another reduction is wanted, `Reduced` takes a function.

    Args:
        output: the return value of a network's forward pass.

    Returns:
        The scores, of whatever shape the network gives them: (batch, classes, y, x) from a segmenter.

    Raises:
        ModelError: there is no tensor where the rule looks for one.

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
    """Return which class scores predict: that with the highest one along ``dim``, which goes; int64.

    A single score l stands for two classes, of which class 1 is predicted where l > 0. Integers are class numbers
    already, and returned as they are. (``max`` finds the class several times faster than ``argmax``.)

    Example:
        >>> predicted_classes(torch.tensor([[[-1.0, 2.0]]]), dim=0).tolist()
        [[0, 1]]
    """
    if not output.is_floating_point():
        return output
    output = output.detach()
    return (output > 0).squeeze(dim).long() if output.shape[dim] == 1 else output.max(dim).indices


def _candidates(output: Any) -> Iterator[Any]:
    """Yield the places where scores may be, the likeliest first."""
    yield output
    if _are_detections(output):
        yield torch.stack([found["scores"].sum().reshape(1) for found in output])
    yield _semantic(_entry(output, "masks_queries_logits"), _entry(output, "class_queries_logits"))
    yield from (_entry(output, name) for name in NAMES)
    if isinstance(output, Mapping):
        yield from output.values()
    elif isinstance(output, tuple | list):
        yield from output


def _entry(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _are_detections(output: Any) -> bool:
    return (
        isinstance(output, Sequence)
        and len(output) > 0
        and all(isinstance(found, Mapping) and isinstance(found.get("scores"), Tensor) for found in output)
    )


def _semantic(masks: Any, classes: Any) -> Tensor | None:
    """Combine what queries say of pixels (batch, queries, y, x) and of classes (batch, queries, classes + 1)."""
    if not (isinstance(masks, Tensor) and isinstance(classes, Tensor)):
        return None
    return torch.einsum("bqc,bqyx->bcyx", classes.softmax(-1)[..., :-1], masks.sigmoid())


class Reduced(nn.Module):
    """A network whose output goes through a function of the user's, where the rule of `logits` is not what is wanted.

    It stands for the network everywhere: its modules, parameters and state dict have the names that they have in the
    network, and what `neutralize` does to it and records of it, it does to the network.

    Args:
        model: the network; it is not copied.
        function: takes what the network returns and gives a tensor, whose first axis is that of the images. It has to be
            importable by name, not a lambda, where work is shared among processes.

    Raises:
        ModelError: in the forward pass, if the function gives anything but a tensor.

    Example:
        >>> class Depth(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.stem = nn.Conv2d(3, 1, 3)
        ...     def forward(self, image):
        ...         return {"out": torch.zeros(1), "depth": self.stem(image)}
        >>> network = Reduced(Depth(), lambda output: output["depth"])
        >>> network(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 1, 6, 6])
        >>> list(network.state_dict())
        ['stem.weight', 'stem.bias']
    """

    def __init__(self, model: nn.Module, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.function = function
        self.register_load_state_dict_pre_hook(_name_as_held)  # type: ignore[no-untyped-call]  # torch's own gap

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the network, and give what the function makes of its output."""
        scores: Any = self.function(self.model(*args, **kwargs))
        if not isinstance(scores, Tensor):
            name = getattr(self.function, "__qualname__", type(self.function).__name__)
            raise ModelError(
                f"the function {name} for the outputs of {type(self.model).__name__} returned"
                f" {type(scores).__name__}; it has to return a tensor of scores"
            )
        return scores

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules of the network, under the names that they have in it."""
        yield from self.model.named_modules(memo, prefix, remove_duplicate)

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module of the network by its name in it."""
        return self.model.get_submodule(target)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict of the network."""
        return self.model.state_dict(*args, **kwargs)

    def set_submodule(self, target: str, module: nn.Module, strict: bool = False) -> None:
        """Put a module in the place of one of the network's."""
        self.model.set_submodule(target, module, strict)


def _name_as_held(
    _module: nn.Module, state: dict[str, Any], prefix: str, *_: Any
) -> None:  # a hook before loading a state dict
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}model.{key.removeprefix(prefix)}"] = state.pop(key)
