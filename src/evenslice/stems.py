"""Stems: the layers of a network that read the image before any parameter has touched it.

No list of architectures is needed. One forward pass with an image that requires its gradient finds the stems: the
autograd graph of a stem's input leads back to the image and to no parameter. Pushing images whose channels are distinct
constants through the parameter-free part in front of the stems then tells which channel each input feature of a stem
came from, whatever was done to the image on the way: unfolding, space to depth, resizing, a fixed scaling.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from evenslice.errors import EvensliceError, ModelError
from evenslice.models import input_size

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["Layout", "Stem", "Stems", "find_stems", "interior", "probe", "undisturbed"]

SIZES = (64, 224, 256, 384, 512)
"""In-plane sizes tried in turn, in pixels, for a network that does not state its own."""


@dataclass(frozen=True)
class Stem:
    """A layer that reads the image before any parameter has touched it.

    Attributes:
        name: its dotted name in the network; empty where the layer is the network.
        module: the layer.
        norm: the batch norm that reads the layer's output and is the only one to do so, if there is one.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: nn.Module | None

    @property
    def label(self) -> str:
        """How a message names the layer: ``encoder.conv1 (Conv2d)``."""
        return _label(self.name, self.module)


@dataclass(frozen=True)
class Stems:
    """The stems of a network, in the order in which they read, and the images they were found with.

    Attributes:
        items: the stems, at least one.
        channels: number of channels C that the network reads.
        size: in-plane size (y, x) in pixels of the images.
    """

    items: tuple[Stem, ...]
    channels: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Where the input features of a stem come from: feature ``index[p, c]`` is ``scale[p, c] * image[c] + shift[p, c]``.

    P features of a stem come from each of C channels: 1 in most networks, 16 where space to depth unfolds 4 x 4 pixels.

    Attributes:
        index: (P, C) feature numbers, int64.
        scale: (P, C) float64.
        shift: (P, C) float64.
        where: (1, ...) float32, of the shape of the stem's input for one image: 1 where a feature follows the channels as
            above, 0 where it does not, as in a border that was padded on the way to the stem.
    """

    index: Tensor
    scale: Tensor
    shift: Tensor
    where: Tensor


def find_stems(
    model: nn.Module, *, channels: Iterable[int] = (), size: tuple[int, int] | None = None
) -> Stems:
    """Find the stems of a network by one forward pass.

    Args:
        model: a network that takes (batch, channels, y, x). It is left as it was.
        channels: numbers of input channels to try in turn; by default 3, then as many as its first layer takes.
        size: in-plane size (y, x) of the image in pixels; by default the first that it accepts of the one it states
            itself and of 64, 224, 256, 384 and 512.

    Raises:
        ModelError: the network refuses every image; nothing with parameters reads the image; or what reads it is
            not a `torch.nn.Conv2d` (without groups) or `torch.nn.Linear` with a plain weight.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> found = find_stems(network)
        >>> found.channels, [stem.label for stem in found.items]
        (3, ['0 (Conv2d)'])
        >>> found.items[0].norm is network[1]
        True
    """
    stated = input_size(model)
    usual = [(pixels, pixels) for pixels in SIZES]
    sizes = [size] if size else [stated, *usual] if stated else usual
    counts = tuple(channels) or tuple(dict.fromkeys((3, *_first_width(model))))
    refusal: Exception | None = None
    for tried in sizes:
        for count in counts:
            try:
                with undisturbed(model):
                    items = _trace(model, _image(model, (1, count, *tried)))
            except EvensliceError:
                raise
            except Exception as error:  # noqa: BLE001  # a network may refuse an image by any exception
                refusal = refusal or error
                continue
            return Stems(items, count, tried)
    raise ModelError(
        f"the network refuses images of {' or '.join(map(str, counts))} channels at {_pixels(sizes)} pixels"
        f" ({_one_line(refusal)}); state a size that it takes"
    )


def probe(model: nn.Module, stems: Stems, channels: int) -> tuple[Layout, ...]:
    """Learn which channel each input feature of the stems comes from, for images of some number of channels.

    Only the parameter-free part in front of the stems is asked, so the number of channels need not be the one that
    the stems are made for.

    Args:
        model: the network; it is left as it was.
        stems: what `find_stems` found in it.
        channels: number of channels of the images.

    Returns:
        One layout a stem.

    Raises:
        ModelError: the way to a stem does not take so many channels, or mixes, drops or centres them.

    Example:
        >>> network = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3))
        >>> layout, = probe(network, find_stems(network), 3)
        >>> layout.index                            # (positions, channels)
        tensor([[ 0,  4,  8],
                [ 1,  5,  9],
                [ 2,  6, 10],
                [ 3,  7, 11]])
    """
    images = _image(model, (channels + 1, channels, *stems.size)).zero_()
    for channel in range(channels):
        images[channel + 1, channel] = 1
    with undisturbed(model), torch.no_grad():
        arrivals = _arrivals(model, stems, images)
    return tuple(
        _layout(stem, arrivals[stem.name], channels, tolerance=_mixing(images.dtype)) for stem in stems.items
    )


def interior(stem: Stem, layout: Layout) -> Tensor:
    """Mark the outputs of a stem whose taps all lie inside the image.

    Args:
        stem: the layer.
        layout: its layout for the channels that the layer is made for now.

    Returns:
        A boolean mask that broadcasts against the output of the stem for one image.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
        >>> found = find_stems(network, size=(4, 4))
        >>> interior(found.items[0], probe(network, found, 3)[0])[0, 0].int()
        tensor([[0, 0, 0, 0],
                [0, 1, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    layer = copy.deepcopy(stem.module).float()
    axis = _feature_axis(layer)
    with torch.no_grad():
        layer.weight.fill_(1)
        if layer.bias is not None:
            layer.bias.zero_()
        taps: Tensor = layer(layout.where).narrow(axis, 0, 1)
    inside: Tensor = taps == taps.max()
    return inside


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a network in the block without leaving a trace, and in its plain precision.

    In the block the network is in evaluation mode and neither autocast nor TF32 coarsens what it computes. Afterwards
    each module's mode, and the state of torch's random numbers on every device the network is on, are as before.

    Example:
        >>> network = nn.Dropout()
        >>> with undisturbed(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters()}
    with ExitStack() as stack:
        cuda = [device for device in devices if device.type == "cuda"]
        stack.enter_context(torch.random.fork_rng(cuda, device_type="cuda"))
        for kind in {device.type for device in devices}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        for owner, name, exact in _precision_settings():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, exact)
        stack.callback(_restore_modes, modes)
        model.eval()
        yield


def _precision_settings() -> list[tuple[Any, str, Any]]:
    """Return torch's settings of float32 precision, each as an object, an attribute and the value that is exact.

    Newer versions of torch have settings of their own for each backend, and refuse to read the older ones after any of
    the newer was set.
    """
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    newer = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    return [(backend, "fp32_precision", "ieee") for backend in newer]


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _first_width(model: nn.Module) -> Iterator[int]:
    """Yield the input width of the network's first layer, which is mostly the first in the order of registration."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
            return


def _image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return a random image of a network's own device and dtype."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(like)


def _trace(model: nn.Module, image: Tensor) -> tuple[Stem, ...]:
    """Run the network once and return its stems in the order in which they read the image."""
    tracer = _Tracer(image.requires_grad_())
    with ExitStack() as stack, torch.enable_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.requires_grad_()
                stack.callback(parameter.requires_grad_, False)
        for name, module in model.named_modules():
            if _has_parameters(module) or _has_statistics(module):
                for handle in tracer.watch(name, module):
                    stack.callback(handle.remove)
        output = model(image.clone())  # a clone, since a network may change its input in place
    stems = tracer.stems(output)
    if not stems:
        raise ModelError(
            f"no layer of this {type(model).__name__} reads the image first;"
            " evenslice looks for torch.nn.Conv2d and torch.nn.Linear layers that the forward pass calls"
        )
    return stems


class _Tracer:
    """Watches the layers of a network during one forward pass for those that read the image.

    Args:
        image: the leaf of the autograd graph that the pass starts from.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.readers: dict[str, tuple[nn.Module, Tensor]] = {}  # with what arrived at each
        self.written: dict[
            str, tuple[Tensor, Any]
        ] = {}  # the output of each reader, the graph node that made it
        self.norms: dict[str, nn.Module] = {}  # by reader, the batch norm that reads its very output

    def watch(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hook a module, and yield the handles of the hooks."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arrived = _first_tensor((*args, *kwargs.values()))
            if arrived is not None:
                self._arrived(name, module, arrived)

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if name in self.readers and isinstance(output, Tensor):
                self.written[name] = (output, output.grad_fn)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def _arrived(self, name: str, module: nn.Module, arrived: Tensor) -> None:
        if _has_statistics(module):
            self.norms.update(
                {reader: module for reader, (output, _) in self.written.items() if output is arrived}
            )
        if _has_parameters(module) and _leads_only_to(self.image, arrived):
            self.readers[name] = (module, arrived.detach())

    def stems(self, output: Any) -> tuple[Stem, ...]:
        """Return the stems, given what the network returned."""
        consumers = _consumers(output, {node for _, node in self.written.values()})
        stems = []
        for name, (module, arrived) in self.readers.items():
            layer = _accepted(name, module, arrived)
            if layer is not None:
                only_reader = name in self.written and consumers[self.written[name][1]] == 1
                stems.append(Stem(name, layer, self.norms.get(name) if only_reader else None))
        return tuple(stems)


def _accepted(name: str, module: nn.Module, arrived: Tensor) -> nn.Conv2d | nn.Linear | None:
    """Return what reads the image if it is a stem, and refuse what would have to be one and cannot.

    A container may own parameters that never meet the image, such as a position embedding, so it is passed over: should
    they meet it after all, the check of the neutralized network finds out.
    """
    if not isinstance(module, nn.Conv2d | nn.Linear):
        if any(module.children()):
            return None
        raise ModelError(
            f"the layer {_label(name, module)} reads the image itself; evenslice can rewrite Conv2d and Linear only"
        )
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        raise ModelError(
            f"the layer {_label(name, module)} reads the image in {module.groups} groups, so each slice would keep filters"
            " of its own; evenslice can rewrite layers with groups=1 only"
        )
    if "weight" not in dict(module.named_parameters(recurse=False)):
        raise ModelError(
            f"the weight of the layer {_label(name, module)} is computed from other tensors (tied, or normalised);"
            " bake it in first, with evenslice.untie or torch.nn.utils.parametrize.remove_parametrizations"
        )
    if not _is_linear_in_weight(module, arrived):
        raise ModelError(
            f"the layer {_label(name, module)} reads the image with weights that it standardises itself, so that new kernels"
            " would not come through as they are; evenslice can rewrite layers that use their weight as it is"
        )
    return module


def _is_linear_in_weight(layer: nn.Conv2d | nn.Linear, arrived: Tensor) -> bool:
    """Say whether twice the weight gives twice the response, as it does unless the layer standardises its weight."""
    trial = copy.deepcopy(layer)
    with torch.no_grad():
        if trial.bias is not None:
            trial.bias.zero_()
        once = trial(arrived)
        trial.weight.mul_(2)
        excess = (trial(arrived) - 2 * once).abs().max()
    return bool(excess <= 0.1 * once.abs().max())


def _has_parameters(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None or is_parametrized(module)


def _has_statistics(module: nn.Module) -> bool:
    """Say whether a module normalises by running statistics, as every kind of batch norm does, frozen ones too."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def _leads_only_to(image: Tensor, tensor: Tensor) -> bool:
    """Say whether a tensor was computed from the image and from no parameter.

    The nodes of a layer's parameters are the last of its inputs, and the walk takes the last first, so that it ends
    after a few steps anywhere behind a stem.
    """
    stack, seen, found = [tensor.grad_fn], set(), False
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not image:
            return False
        found = found or leaf is image
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def _consumers(output: Any, nodes: set[Any]) -> dict[Any, int]:
    """Count the operations that read what each of some graph nodes wrote."""
    counts = dict.fromkeys(nodes, 0)
    stack = [tensor.grad_fn for tensor in _tensors(output)]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            if parent in counts:
                counts[parent] += 1
            stack.append(parent)
    return counts


class _Reached(Exception):  # noqa: N818  # not an error: it ends a forward pass when every stem has been reached
    pass


def _arrivals(model: nn.Module, stems: Stems, images: Tensor) -> dict[str, Tensor]:
    """Return what arrives at each stem, and stop there."""
    arrivals: dict[str, Tensor] = {}

    def before(
        stem: Stem, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arrived = _first_tensor((*args, *kwargs.values()))
        if arrived is not None:
            arrivals.setdefault(stem.name, arrived)
        if len(arrivals) == len(stems.items):
            raise _Reached
        # The others are yet to come: go on with an input of the width that the layer is made for.
        return (_of_width(arrivals[stem.name], stem.module),), {}

    with ExitStack() as stack:
        for stem in stems.items:
            handle = stem.module.register_forward_pre_hook(
                lambda _, args, kwargs, stem=stem: before(stem, args, kwargs), with_kwargs=True
            )
            stack.callback(handle.remove)
        try:
            model(images)
        except _Reached:
            return arrivals
        except Exception as error:  # noqa: BLE001  # a network may refuse an image by any exception
            refusal = _one_line(error)
        else:
            refusal = "nothing arrives"
    missed = next(stem for stem in stems.items if stem.name not in arrivals)
    raise ModelError(
        f"the way from the image to the layer {missed.label} does not take {images.shape[1]} channels"
        f" ({refusal}); it seems to be made for {stems.channels}"
    )


def _of_width(tensor: Tensor, layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Return zeros of a tensor's shape, but as wide along the feature axis as a layer takes."""
    shape = list(tensor.shape)
    shape[_feature_axis(layer)] = layer.weight.shape[1]
    return tensor.new_zeros(shape)


def _layout(stem: Stem, arrived: Tensor, channels: int, tolerance: float) -> Layout:
    """Read the layout off what arrived for the images 0, e_1 .. e_C."""
    where = f"the layer {stem.label}, given images of {channels} channels"
    axis = _feature_axis(stem.module)
    moved = arrived.detach().to("cpu", torch.float64).movedim(axis, -1)
    if moved.shape[0] % (channels + 1):
        raise ModelError(f"{where}, gets {moved.shape[0]} inputs for {channels + 1} images; it mixes images")
    by_image = moved.reshape(channels + 1, -1, moved.shape[-1])  # (images, positions, features)
    typical = by_image.median(dim=1).values  # borders that were padded on the way are few
    shift, gain = typical[0], typical[1:] - typical[0]
    strength, source = gain.abs().max(dim=0)
    if (strength < tolerance).any() or (gain.abs().sum(dim=0) > strength * (1 + channels * tolerance)).any():
        raise ModelError(
            f"{where}, gets features that no channel or several channels enter; evenslice needs each to come from one"
        )
    counts = source.bincount(minlength=channels)
    if counts.min() != counts.max():
        raise ModelError(
            f"{where}, gets {'/'.join(map(str, counts.tolist()))} features from them, where each should give as many;"
            " the way to it seems to be made for another number of channels"
        )
    index = source.argsort(stable=True).reshape(channels, -1).T
    follows = torch.isclose(by_image, typical[:, None], rtol=tolerance, atol=tolerance).all(dim=0)
    one_image = moved.reshape(channels + 1, -1, *moved.shape[1:])[0]
    return Layout(
        index=index,
        scale=_snapped(gain.gather(0, source[None])[0], 1.0)[index],
        shift=_snapped(shift, 0.0)[index],
        where=follows.reshape(one_image.shape).movedim(-1, axis).to(arrived.device, torch.float32),
    )


def _snapped(values: Tensor, to: float) -> Tensor:
    """Undo the rounding of values that are meant to be a round number: resizing an image of ones gives 0.9999999."""
    return torch.where((values - to).abs() < 1e-6, to, values)


def _mixing(dtype: torch.dtype) -> float:
    """Return the part of a feature below which the trace of another channel is taken for rounding."""
    return 50 * torch.finfo(dtype).eps


def _feature_axis(layer: nn.Conv2d | nn.Linear) -> int:
    return -3 if isinstance(layer, nn.Conv2d) else -1


def _first_tensor(values: Iterable[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in a nest of mappings, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _label(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else type(module).__name__


def _pixels(sizes: list[tuple[int, int]]) -> str:
    return ", ".join(f"{y}x{x}" for y, x in sizes)


def _one_line(error: Exception | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
