"""Averages over a window and its mirror, as hooks on a network, and the cuts behind which they can be taken.

With f = g(h(x)), x a window and x' the window reversed, the network computes g((h(x) + h(x')) / 2), which is the same
for x and x' whatever h and g are. A hook before the network appends the mirrors to the batch; a hook after each
module that ends h, a cut, averages both halves. So parameters keep their names, batch norms in h see window and mirror
together, and the network may be copied, pickled, wrapped and trained like any other. As a state dict holds no hooks, each
cut has a buffer: by its key, PyTorch refuses to load one that averages into one that does not, and the reverse.

Only calls of the network itself append mirrors. A cut that is called by itself has nothing to average, and says so:
halves of its batch would be different images.

A cut is a module whose output is all that the rest of the network sees of the image. Whether a module is one is not guessed:
the symmetrized network is run, and refused if a connection bypasses it.

What a detector finds in a window and in its mirror is averaged object by object, as there may be more in one than in the
other: what was found in both is averaged, what was found in one alone counts half. A detector's losses are means over a batch,
and thus over windows and mirrors.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from evenslice._core import ModelError, did_you_mean
from evenslice.networks import AVERAGED, detections
from evenslice.neutralizing.record import uncompiled
from evenslice.neutralizing.running import layer_label, random_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack

_ACTIVE = "evenslice_mirror_active"
"""Attribute of every module with a hook: whether its hook does anything."""

LABELS = ("labels", "class_labels", "mask_labels")
"""Arguments from which networks of transformers compute a loss."""

_calls = threading.local()
"""The networks, by id, whose calls are under way in each thread; `torch.compile` can trace this, unlike a context variable.

An interrupt, unlike an error, goes round the hook that ends a call, so what it leaves here goes with the network's next call.
"""

OUTPUT = "output"
"""The cut after the whole network."""

ENCODERS = ("encoder", "backbone", "features")
"""Names that libraries give to the part that turns the image into features, most likely first."""

SAME_OBJECT = 0.5
"""Intersection over union from which two boxes of one class, each the other's nearest, are one object."""

NEEDED = {"boxes", "labels", "scores"}


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
        if AVERAGED not in dict(module.named_buffers(recurse=False)):  # else a state dict has brought it
            device = random_image(model, ()).device
            module.register_buffer(AVERAGED, torch.zeros((), dtype=torch.uint8, device=device))
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


def mean_of_halves(output: Any) -> Any:
    """Return the mean of the first and the second half of all batches that a network returns; see `mean_of`.

    What is no such batch, such as a parameter, stays as it is.

    Raises:
        ModelError: a batch holds integers, such as classes, which have no mean; or see `average_detections`.

    Example:
        >>> mean_of_halves(torch.tensor([[1.0], [3.0]]))
        tensor([[2.]])
    """
    if (found := detections(output)) is not None:
        windows = len(found) // 2
        return [average_detections(*pair) for pair in zip(found[:windows], found[windows:], strict=True)]
    return tree_map_only(Tensor, _mean_of_batch, output)


def _mean_of_batch(tensor: Tensor) -> Tensor:
    # len() would fix the size of a batch when a network is exported.
    if not tensor.ndim or tensor.shape[0] % 2 or isinstance(tensor, nn.Parameter):
        return tensor
    halves = tensor.reshape(2, tensor.shape[0] // 2, *tensor.shape[1:])
    mean: Tensor = _mean(halves[0], halves[1])
    return mean


def mean_of(one: Any, other: Any) -> Any:
    """Return the mean of what is returned for windows and for their mirrors.

    Args:
        one: tensors, arrays and numbers in any nest; text, None, and whole numbers that are equal stay as they are. A list with
            the boxes, labels and scores in each window is averaged by `average_detections`.
        other: the same for the mirrors.

    Raises:
        ModelError: it holds integers, such as classes, or something else that has no mean.

    Example:
        >>> mean_of({"out": 1.0, "name": "net"}, {"out": 3.0, "name": "net"})
        {'out': 2.0, 'name': 'net'}
    """
    found = detections(one)
    if found is not None and all(item.keys() >= NEEDED for item in found):
        return [average_detections(*pair) for pair in zip(found, other, strict=True)]
    return tree_map(_mean, one, other)


def _mean(one: Any, other: Any) -> Any:
    if one is None or isinstance(one, str | bytes) or (isinstance(one, int) and one == other):  # no answer
        return one
    if isinstance(one, Tensor):  # in any precision, of which NumPy knows but some
        kind = "f" if one.is_floating_point() or one.is_complex() else "i"
    else:
        kind = np.asarray(one).dtype.kind
    if kind == "O":
        raise ModelError(
            f"{type(one).__name__} cannot be averaged over a window and its mirror; return arrays or tensors, or a mapping, "
            "tuple or list of them"
        )
    if kind not in "fc":
        raise ModelError(
            f"integers (in a {type(one).__name__}) cannot be averaged over a window and its mirror; return scores or "
            "probabilities, or cut the network before it turns them into classes"
        )
    return one / 2 + other / 2  # of which no term overflows in half precision


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


def _calls_around(model: nn.Module) -> tuple[int, ...]:
    """Return the calls that are under way without that of a network, which may not have begun, and without those in it."""
    networks: tuple[int, ...] = getattr(_calls, "networks", ())
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
    if not getattr(_calls, "networks", ()) and torch._C._current_graph_task_id() == -1:  # noqa: SLF001  # in a backward pass, checkpoints repeat calls
        raise ModelError(
            f"{layer_label('', module)} averages a window and its mirror, which only a call of the whole network provides; "
            "call that, not a part of it or its forward, or neutralize or symmetrize the part that is called"
        )
    return mean_of_halves(output)


def _count_windows(transform: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    """Leave the mirrors out of the sizes and targets that a detector's transform returns beside the images.

    What is after the cut takes the number of images from these.
    """
    images, targets = output if isinstance(output, tuple) and len(output) == 2 else (None, None)
    if getattr(transform, _ACTIVE) and images is not None and hasattr(images, "image_sizes"):
        for listed in (images.image_sizes, targets or []):
            del listed[len(listed) // 2 :]


def change_image(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    change: Callable[[Any], Any],
    others: Callable[[Any, Any], Any] | None = None,
    *,
    whose: str,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call of a network with the image changed.

    The image is the first argument, in the order in which the network names its inputs, that is a tensor (batch,
    channels, y, x) or a list of tensors (channels, y, x).

    Args:
        model: the network.
        args: the arguments given by position.
        kwargs: those given by name, in any order.
        change: what becomes of the image.
        others: what becomes of each other argument, beside the image; None leaves them as they are.
        whose: what needs the image, for the error.

    Raises:
        ModelError: none of the arguments is an image.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> args, _ = change_image(nn.ReLU(), (torch.zeros(1, 3, 4, 4),), {}, lambda image: image + 1, whose="its sum")
        >>> args[0].mean()
        tensor(1.)
    """
    if len(kwargs) > 1:  # the first as the network names its inputs, not as the call does
        order = list(inspect.signature(model.forward).parameters)
        kwargs = dict(
            sorted(kwargs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
        )
    values = [*args, *kwargs.values()]
    place = next((place for place, value in enumerate(values) if _is_image(value)), None)
    if place is None:
        raise ModelError(f"no image among the inputs of {layer_label('', model)}; {whose} needs one")
    image = values[place]
    changed = values if others is None else [others(value, image) for value in values]
    changed[place] = change(image)
    return tuple(changed[: len(args)]), dict(zip(kwargs, changed[len(args) :], strict=True))


def _is_image(value: Any) -> bool:
    return (isinstance(value, Tensor) and value.ndim == 4) or (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(item, Tensor) and item.ndim == 3 for item in value)
    )


def find_cut(model: nn.Module, at: str) -> str:
    """Return the dotted name of the module that a user asks to cut after; empty for the network.

    Args:
        model: the network.
        at: "output", "encoder", or the dotted name of a module.

    Raises:
        ModelError: there is no such module.

    Example:
        >>> network = nn.Sequential()
        >>> network.backbone, network.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        >>> find_cut(network, "output"), find_cut(network, "encoder"), find_cut(network, "head")
        ('', 'backbone', 'head')
    """
    if at == OUTPUT:
        return ""
    names = [name for name, _ in model.named_modules() if name]
    if at in names:
        return at
    found = [
        (name.count("."), ENCODERS.index(last), name)
        for name in names
        if at == "encoder" and (last := name.rpartition(".")[2]) in ENCODERS
    ]
    if not found:
        raise ModelError(f"the network has no module {at!r}; {did_you_mean(at, [OUTPUT, *names])}")
    _, _, name = min(found)
    return str(name)


def average_detections(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the mean of what a detector finds in a window and in its mirror, sorted by descending score.

    Of an object that was found in both, everything is averaged: box, score, mask, keypoints. One that was found in one
    window alone keeps its box and half of its score. So the sum of the scores is the mean of the two sums, and the order
    of the two windows does not matter.

    Args:
        one: tensors or arrays with an entry for each object: ``boxes`` (objects, 4) as x1, y1, x2, y2, ``labels``, ``scores``
            and others.
        other: the same for the other window.

    Raises:
        ModelError: one of these three is missing, or something is no tensor of that length, is there in one window alone, or
            holds whole numbers, which have no mean, and is not the labels.

    Example: one object in both windows, another one in the second alone.
        >>> one = {"boxes": [[0, 0, 8, 8]], "labels": [1], "scores": [0.8]}
        >>> other = {"boxes": [[0, 0, 8, 6], [20, 0, 28, 8]], "labels": [1, 1], "scores": [0.4, 1.0]}
        >>> one, other = ({name: torch.tensor(values) for name, values in found.items()} for found in (one, other))
        >>> mean = average_detections(one | {"boxes": one["boxes"].float()}, other | {"boxes": other["boxes"].float()})
        >>> mean["boxes"].tolist(), mean["scores"].tolist()
        ([[0.0, 0.0, 8.0, 7.0], [20.0, 0.0, 28.0, 8.0]], [0.6000000238418579, 0.5])
    """
    one, other = (
        {
            name: torch.as_tensor(value) if hasattr(value, "__array__") else value
            for name, value in found.items()
        }
        for found in (one, other)
    )
    if one.keys() != other.keys() or not (_are_objects(one) and _are_objects(other)):
        raise ModelError(
            f"what is returned for each window ({', '.join(map(str, one))}) cannot be averaged; return boxes, labels and "
            "scores, and nothing else but floating-point values of each object, or symmetrize a network at 'encoder'"
        )
    first, second = _same_objects(one, other)
    in_one, in_other = (
        torch.isin(torch.arange(len(found["scores"]), device=both.device), both, invert=True)
        for found, both in ((one, first), (other, second))
    )
    mean = {}
    for name, values in one.items():
        both = values[first]  # of one class
        if name != "labels":
            both = both / 2 + other[name][second] / 2
        rest = torch.cat([values[in_one], other[name][in_other]])
        mean[name] = torch.cat([both, rest / 2 if name == "scores" else rest])
    keys = torch.cat(
        [-mean["scores"].detach()[:, None], mean["labels"][:, None], mean["boxes"].detach()], dim=1
    )
    order = torch.arange(len(keys), device=keys.device)
    # The last sort decides first, so no order of windows shows in equal scores.
    for key in keys.flip(1).unbind(dim=1):
        order = order[key[order].argsort(stable=True)]
    return {name: values[order] for name, values in mean.items()}


def _are_objects(found: Mapping[str, Any]) -> bool:
    """Say whether there are boxes, labels and scores, and a value of each object under every name."""
    return found.keys() >= NEEDED and all(
        isinstance(value, Tensor)
        and value.ndim > 0
        and len(value) == len(found["scores"])
        and (name == "labels" or value.is_floating_point())
        for name, value in found.items()
    )


def _same_objects(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the indices in both of the objects that were found in both."""
    from torchvision.ops import box_iou

    overlap = box_iou(one["boxes"].detach(), other["boxes"].detach())
    overlap = overlap * (one["labels"][:, None] == other["labels"])
    if not overlap.numel():
        nothing = torch.zeros(0, dtype=torch.long, device=overlap.device)
        return nothing, nothing
    most, nearest = overlap.max(dim=1)
    mutual = overlap.max(dim=0).indices[nearest] == torch.arange(len(nearest), device=overlap.device)
    first = ((most >= SAME_OBJECT) & mutual).nonzero().flatten()
    return first, nearest[first]
