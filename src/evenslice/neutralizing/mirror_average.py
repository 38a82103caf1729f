"""The average over a window and its mirror, as hooks on a network.

With f = g(h(x)), x a window and x' the window reversed, the network computes g((h(x) + h(x')) / 2), which is the same
for x and x' whatever h and g are. A hook before the network appends the mirrors to the batch; a hook after each
module that ends h, a cut, averages both halves. So parameters keep their names, batch norms in h see window and mirror
together, and the network may be copied, pickled, wrapped and trained like any other. As a state dict holds no hooks, each
cut has a buffer: by its key, PyTorch refuses to load one that averages into one that does not, and the reverse. What a
detector finds is averaged object by object; its losses are means over a batch, and thus over windows and mirrors.

Only calls of the network itself append mirrors. A cut that is called by itself has nothing to average, and says so:
halves of its batch would be different images.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from evenslice._core import ModelError
from evenslice.networks import AVERAGED, detections, layer_label, mark_average
from evenslice.neutralizing.detection_average import average_detections
from evenslice.neutralizing.image_argument import change_image
from evenslice.neutralizing.record import uncompiled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

__all__ = [
    "average_mirrored",
    "averages_due",
    "averages_mirrored",
    "copy_average",
    "mean_of_halves",
    "without_mirror",
]

_ACTIVE = "evenslice_mirror_active"
"""Attribute of every module with a hook: whether its hook does anything."""

LABELS = ("labels", "class_labels", "mask_labels")
"""Arguments from which networks of transformers compute a loss."""

_calls = threading.local()
"""The networks, by id, whose calls are under way in each thread; `torch.compile` can trace this, unlike a context variable.

An interrupt, unlike an error, goes round the hook that ends a call, so what it leaves here goes with the network's next call.
"""


def average_mirrored(model: nn.Module, cuts: Sequence[str], undo: ExitStack) -> None:
    """Average what modules of a network return over the window and its mirror, in place.

    Args:
        model: takes (batch, slices, y, x), as its first input or as a list of images.
        cuts: dotted names of the modules; all that the rest of the network sees of the image must come from them. An
            empty name is the network.
        undo: takes what undoes this.

    Example:
        >>> from contextlib import ExitStack
        >>> network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())
        >>> average_mirrored(network, ["1"], ExitStack())
        >>> window = torch.rand(1, 3, 4, 4)
        >>> torch.equal(network(window), network(window.flip(1)))
        True
    """
    # In front of other hooks: a mixer of slices must not come between the window and its mirror.
    append = partial(_append_mirrors, at_output="" in cuts)
    undo.callback(model.register_forward_pre_hook(append, with_kwargs=True, prepend=True).remove)
    modules = [uncompiled(model.get_submodule(name)) for name in cuts]
    for module in modules:
        undo.callback(module.register_forward_hook(_average).remove)
        if mark_average(model, module):
            undo.callback(delattr, module, AVERAGED)
    undo.callback(model.register_forward_hook(_end_call, always_call=True).remove)
    transform = getattr(model, "transform", None)  # of a detector of torchvision
    if isinstance(transform, nn.Module) and "" not in cuts:
        undo.callback(transform.register_forward_hook(_count_windows).remove)
        modules.append(transform)
    for module in {id(module): module for module in (model, *modules)}.values():
        setattr(module, _ACTIVE, True)
        undo.callback(delattr, module, _ACTIVE)


def averages_mirrored(model: nn.Module) -> bool:
    """Say whether `average_mirrored` has changed a network, or one inside it.

    Example:
        >>> averages_mirrored(nn.Conv2d(3, 1, 1))
        False
    """
    return any(_ACTIVE in vars(module) for module in model.modules())


def averages_due(model: nn.Module) -> tuple[str, ...]:
    """Return the modules after which a network averaged whose state dict it got, but does not average yet.

    Example:
        >>> averages_due(nn.Conv2d(3, 1, 1))
        ()
    """
    return tuple(
        name
        for name, module in model.named_modules()
        if AVERAGED in dict(module.named_buffers(recurse=False)) and _ACTIVE not in vars(module)
    )


def copy_average(old: nn.Module, new: nn.Module) -> None:
    """Let a module that takes the place of another average what it returns if that one did.

    Example:
        >>> from contextlib import ExitStack
        >>> network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())
        >>> average_mirrored(network, ["1"], ExitStack())
        >>> copy_average(network[1], other := nn.GELU())
        >>> network[1] = other
        >>> window = torch.rand(1, 3, 4, 4)
        >>> torch.equal(network(window), network(window.flip(1)))
        True
    """
    if _ACTIVE in vars(old):
        new.register_forward_hook(_average)
        setattr(new, _ACTIVE, getattr(old, _ACTIVE))


@contextmanager
def without_mirror(model: nn.Module) -> Iterator[None]:
    """In the block, a network computes g(h(x)): one pass, without the mirror.

    Example:
        >>> from contextlib import ExitStack
        >>> network = nn.Conv2d(3, 1, 1)
        >>> average_mirrored(network, [""], ExitStack())
        >>> window = torch.rand(1, 3, 4, 4)
        >>> with without_mirror(network):
        ...     torch.equal(network(window), network(window.flip(1)))
        False
    """
    hooked = [module for module in model.modules() if _ACTIVE in vars(module)]
    for module in hooked:
        setattr(module, _ACTIVE, False)
    try:
        yield
    finally:
        for module in hooked:
            setattr(module, _ACTIVE, True)


def mean_of_halves(tensor: Tensor) -> Tensor:
    """Return the mean of the first and the second half of a batch; a tensor that is no such batch, such as a parameter, as it is.

    Raises:
        ModelError: it holds integers, such as classes, which have no mean.

    Example:
        >>> mean_of_halves(torch.tensor([[1.0], [3.0]]))
        tensor([[2.]])
    """
    # len() would fix the size of a batch when a network is exported.
    if not tensor.ndim or tensor.shape[0] % 2 or isinstance(tensor, nn.Parameter):
        return tensor
    if not tensor.is_floating_point():
        raise ModelError(
            f"integers (a tensor of {tensor.dtype}) cannot be averaged over a window and its mirror; "
            "cut the network before it turns scores into classes"
        )
    halves = tensor.reshape(2, tensor.shape[0] // 2, *tensor.shape[1:])
    return halves[0] / 2 + halves[1] / 2  # of which no term overflows in half precision


def _append_mirrors(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, at_output: bool
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Append the mirrored windows to the first input that is an image, and copies to what else there is of each image.

    Labels, as networks of transformers take them to compute a loss, meet the scores behind a cut: one for each window.
    """
    _calls.networks = (*_calls_around(model), id(model))
    if not getattr(model, _ACTIVE):
        return None
    labels = {name: kwargs[name] for name in LABELS if kwargs.get(name) is not None}
    if labels and at_output:
        raise ModelError(
            f"{layer_label('', model)} would compute the loss of each window and each mirror, not that of their mean, which is "
            f"what it returns; leave {', '.join(labels)} out and compute the loss from its scores, or symmetrize it at 'encoder'"
        )
    rest = {name: value for name, value in kwargs.items() if name not in labels}
    args, rest = change_image(model, args, rest, _with_mirrors, _twice, whose="its mirror")
    return args, rest | labels


def _end_call(model: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
    _calls.networks = _calls_around(model)


def _calls_under_way() -> tuple[int, ...]:
    return getattr(_calls, "networks", ())


def _calls_around(model: nn.Module) -> tuple[int, ...]:
    """Return the calls that are under way without that of a network, which may not have begun, and without those in it."""
    networks = _calls_under_way()
    return networks[: networks.index(id(model))] if id(model) in networks else networks


def _with_mirrors(image: Any) -> Any:
    """Return a batch or a list of windows, followed by their mirrors."""
    if isinstance(image, Tensor):
        return torch.cat([image, image.flip(1)])
    return [*image, *(each.flip(0) for each in image)]


def _twice(value: Any, image: Any) -> Any:
    """Return what there is for each window, tensors or a detector's targets, twice; anything else as it is."""
    batch = image.shape[0] if isinstance(image, Tensor) else len(image)
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
        return torch.cat([value, value])
    if isinstance(value, list | tuple) and len(value) == batch and all(isinstance(v, Mapping) for v in value):
        return [*value, *value]
    return value


def _average(module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    if not getattr(module, _ACTIVE):
        return None
    if not _calls_under_way() and torch._C._current_graph_task_id() == -1:  # noqa: SLF001  # in a backward pass, checkpoints repeat calls
        raise ModelError(
            f"{layer_label('', module)} averages a window and its mirror, which only a call of the whole network provides; "
            "call that, not a part of it or its forward, or neutralize or symmetrize the part that is called"
        )
    found = detections(output)
    if found is not None:
        windows = len(found) // 2
        return [average_detections(*pair) for pair in zip(found[:windows], found[windows:], strict=True)]
    return tree_map_only(Tensor, mean_of_halves, output)


def _count_windows(transform: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    """Leave the mirrors out of the sizes and targets that a detector's transform returns beside the images.

    What is after the cut takes the number of images from these.
    """
    images, targets = output if isinstance(output, tuple) and len(output) == 2 else (None, None)
    if getattr(transform, _ACTIVE) and images is not None and hasattr(images, "image_sizes"):
        for listed in (images.image_sizes, targets or []):
            del listed[len(listed) // 2 :]
