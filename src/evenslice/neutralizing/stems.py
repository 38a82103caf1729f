"""Stems: the layers of a network that read the image before any parameter has touched it.

No list of architectures is needed. One forward pass with an image that requires its gradient finds the stems: the
autograd graph of a stem's input leads back to the image and to no parameter. A batch norm that reads the image is passed
through: in evaluation mode it is a fixed scaling by channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from evenslice._core import EvensliceError, ModelError
from evenslice.networks import (
    MIXER_HELPS,
    as_tensors,
    call,
    describe,
    first_tensor,
    input_size,
    label,
    random_image,
    undisturbed,
)
from evenslice.neutralizing.plain_layers import plain_layer

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["Stem", "Stems", "Trace", "find_stems", "first_accepted", "input_channels", "plain_stems", "trace"]

SIZES = (64, 224, 256, 384, 512)
"""In-plane sizes tried in turn, in pixels, for a network that does not state its own."""

Draw = Callable[[int, tuple[int, int]], Tensor]  # (channels, size) to an image
_T = TypeVar("_T")


@dataclass(frozen=True)
class Stem:
    """A layer that reads the image before any parameter has touched it.

    Attributes:
        name: its dotted name in the network; empty where the layer is the network.
        module: the layer, or a plain one that does the same where it computes its weight or works in groups. Where a
            network was traced on the meta device, it is the layer as it is.
        norm: the batch norm that reads the layer's output and is the only one to do so, if there is one.
        reader: the layer that is in the network.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: nn.Module | None
    reader: nn.Module

    @property
    def label(self) -> str:
        """How a message names the layer: ``encoder.conv1 (Conv2d)``."""
        return label(self.name, self.reader)

    @property
    def taker(self) -> nn.Module:
        """The module that takes a constant: the stem if it has a bias, else the batch norm behind it, else the stem."""
        biased = getattr(self.module, "bias", None) is not None  # on the meta device it may be any layer
        return self.module if biased or self.norm is None else self.norm


@dataclass(frozen=True)
class Stems:
    """The stems of a network, in the order in which they read, and the images they were found with.

    Attributes:
        items: the stems, at least one.
        channels: number of channels C that the network reads.
        size: in-plane size (y, x) in pixels of the images.
        norms: dotted names of the batch norms in front of the stems, which read the image itself.
    """

    items: tuple[Stem, ...]
    channels: int
    size: tuple[int, int]
    norms: tuple[str, ...] = ()


class Trace(NamedTuple):
    """What one forward pass shows of a network.

    Attributes:
        stems: its stems.
        output: what it returned.
        wrote: for each stem, what its `Stem.taker` wrote, call by call.
    """

    stems: Stems
    output: Any
    wrote: tuple[tuple[Tensor, ...], ...]


def find_stems(
    model: nn.Module, *, channels: Iterable[int] = (), size: tuple[int, int] | None = None
) -> Stems:
    """Find the stems of a network by one forward pass.

    Args:
        model: a network that takes (batch, channels, y, x). It is left as it was. It may lie on the meta device.
        channels: numbers of input channels to try in turn; by default 3, then as many as its first layer takes.
        size: in-plane size (y, x) of the image in pixels; by default the first that it accepts of the one it states
            itself and of 64, 224, 256, 384 and 512.

    Raises:
        ModelError: the network refuses every image; nothing with parameters reads the image; or what reads it is
            neither a convolution nor a linear layer, nor does the same as one.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> found = find_stems(network)
        >>> found.channels, [stem.label for stem in found.items]
        (3, ['0 (Conv2d)'])
        >>> found.items[0].norm is network[1]
        True
    """

    def draw(count: int, pixels: tuple[int, int]) -> Tensor:
        image = random_image(model, (1, count, *pixels))
        return image.to("meta") if all(p.is_meta for p in model.parameters()) else image

    with undisturbed(model):
        return trace(model, draw, channels=channels, size=size).stems


def input_channels(model: nn.Module) -> int:
    """Return how many channels a network reads, by trying; it is left as it was.

    Raises:
        ModelError: the network refuses every image that `find_stems` would try.

    Example:
        >>> input_channels(nn.Conv2d(4, 8, 3))
        4
    """

    def run(count: int, size: tuple[int, int]) -> int:
        call(model, random_image(model, (1, count, *size)))
        return count

    with undisturbed(model), torch.no_grad():
        return first_accepted(model, run)


def trace(
    model: nn.Module,
    draw: Draw,
    *,
    channels: Iterable[int] = (),
    size: tuple[int, int] | None = None,
) -> Trace:
    """Run a network once and see which layers read the image; call it inside of `undisturbed`.

    Args:
        model: the network.
        draw: gives an image (1, channels, y, x), on the meta device for a pass that computes nothing.
        channels: see `find_stems`.
        size: see `find_stems`.

    Raises:
        ModelError: see `find_stems`.
    """
    return first_accepted(
        model, lambda count, pixels: _trace(model, draw(count, pixels)), channels=channels, size=size
    )


def first_accepted(
    model: nn.Module,
    run: Callable[[int, tuple[int, int]], _T],
    *,
    channels: Iterable[int] = (),
    size: tuple[int, int] | None = None,
) -> _T:
    """Return what the first run gives that a network does not refuse, of all numbers of channels and sizes to try.

    Args:
        model: the network.
        run: runs it with images of so many channels and such a size, and may raise anything.
        channels: see `find_stems`.
        size: see `find_stems`.

    Raises:
        ModelError: the network refuses every image, or the run raised one itself.
    """
    stated = input_size(model)
    usual = [(pixels, pixels) for pixels in SIZES]
    sizes = [size] if size else [stated, *usual] if stated else usual
    counts = tuple(dict.fromkeys(channels)) or tuple(dict.fromkeys((3, *_first_width(model))))
    refusal: Exception | None = None
    for tried in sizes:
        for count in counts:
            try:
                return run(count, tried)
            except EvensliceError:
                raise
            except Exception as error:  # noqa: BLE001  # a network may refuse an image by any exception
                refusal = refusal or error
    raise ModelError(
        f"the network refuses images of {' or '.join(map(str, counts))} channels at {_pixels(sizes)} pixels"
        f" ({describe(refusal)}); state a size that it takes"
    )


def _first_width(model: nn.Module) -> Iterator[int]:
    """Yield the input width of the network's first layer, which is mostly the first in the order of registration."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
            return


def _trace(model: nn.Module, image: Tensor) -> Trace:
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
        stack.callback(tracer.thaw)
        output = call(model, image.clone())  # a clone, since a network may change its input in place
    readers = tracer.readers(output)
    if not readers:
        raise ModelError(
            f"no layer of this {type(model).__name__} reads the image first; evenslice looks for convolutions and linear"
            f" layers that the forward pass calls; {MIXER_HELPS}"
        )
    stems = tuple(
        Stem(reader.name, _any_layer(reader.module), norm, reader.module) for reader, norm in readers
    )
    found = Stems(stems, image.shape[1], (image.shape[2], image.shape[3]), tuple(tracer.passed))
    if not image.is_meta:
        found = plain_stems(found, [reader.arrived for reader, _ in readers])
    return Trace(
        found,
        output,
        tuple(
            tuple(reader.normed if stem.taker is stem.norm else reader.wrote)
            for stem, (reader, _) in zip(found.items, readers, strict=True)
        ),
    )


def plain_stems(stems: Stems, arrivals: Sequence[Tensor]) -> Stems:
    """Return stems with a plain layer each, given an input of each; see `evenslice.neutralizing.plain_layers`.

    Raises:
        ModelError: for one of them there is none.
    """
    layers = (
        plain_layer(stem.name, stem.reader, arrived)
        for stem, arrived in zip(stems.items, arrivals, strict=True)
    )
    return replace(
        stems,
        items=tuple(replace(stem, module=layer) for stem, layer in zip(stems.items, layers, strict=True)),
    )


def _any_layer(module: nn.Module) -> Any:
    return module


@dataclass
class _Reader:
    """A module that reads the image, with what arrived at it first, and what it and a batch norm behind it wrote."""

    name: str
    module: nn.Module
    arrived: Tensor
    output: Tensor | None = None
    node: Any = None  # of the autograd graph, which made the output
    norm: nn.Module | None = None
    wrote: list[Tensor] = field(default_factory=list)
    normed: list[Tensor] = field(default_factory=list)


class _Tracer:
    """Watches the layers of a network during one forward pass for those that read the image.

    Args:
        image: the leaf of the autograd graph that the pass starts from.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.passed: list[str] = []  # batch norms that read the image
        self.frozen: list[nn.Parameter] = []  # their parameters
        self.seen: dict[str, _Reader] = {}

    def watch(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hook a module, and yield the handles of the hooks."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arrived = first_tensor((*args, *kwargs.values()))
            if arrived is None:
                return
            self._note_norm(module, arrived)
            if not _leads_only_to(self.image, arrived):
                return
            if _is_fixed_norm(module, arrived):
                self.passed.append(name)
                self._freeze(module)
            elif _has_parameters(module) and _is_layer(module):
                self.seen.setdefault(name, _Reader(name, module, arrived.detach()))

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._note_output(name, module, output)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def _freeze(self, module: nn.Module) -> None:
        """Let what a module writes lead to none of its parameters."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                self.frozen.append(parameter)

    def thaw(self) -> None:
        """Undo what was done to parameters."""
        for parameter in self.frozen:
            parameter.requires_grad_()

    def _note_norm(self, module: nn.Module, arrived: Tensor) -> None:
        if _has_statistics(module):
            for reader in self.seen.values():
                if reader.output is arrived:
                    reader.norm = module

    def _note_output(self, name: str, module: nn.Module, output: Tensor) -> None:
        # Copies, since what follows may change an output in place.
        if name in self.seen:
            reader = self.seen[name]
            reader.output, reader.node = output, output.grad_fn
            reader.wrote.append(output.detach().clone())
        for reader in self.seen.values():
            if reader.norm is module:
                reader.normed.append(output.detach().clone())

    def readers(self, output: Any) -> list[tuple[_Reader, nn.Module | None]]:
        """Return what reads the image, each with the batch norm that alone reads its output, given the network's."""
        consumers = _consumers(output, {reader.node for reader in self.seen.values()})
        return [
            (reader, reader.norm if consumers[reader.node] == 1 else None) for reader in self.seen.values()
        ]


def _is_layer(module: nn.Module) -> bool:
    """Say whether a module is a layer, not a container.

    A container may own parameters that never meet the image, such as a position embedding, so it is passed over: should
    they meet it after all, the check of the neutralized network finds out.
    """
    parts = (name for name, _ in module.named_children() if name != "parametrizations")
    return isinstance(module, nn.Conv2d | nn.Linear) or not any(parts)


def _has_parameters(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None or is_parametrized(module)


def _has_statistics(module: nn.Module) -> bool:
    """Say whether a module normalises by running statistics, as every kind of batch norm does, frozen ones too."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def _is_fixed_norm(module: nn.Module, arrived: Tensor) -> bool:
    """Say whether a module that reads the image only scales its channels, each by fixed numbers."""
    return (
        _has_statistics(module)
        and arrived.ndim == 4
        and module.get_buffer("running_mean").numel() == arrived.shape[1]
        and all(isinstance(child, nn.Identity) for child in module.children())
    )


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


def _consumers(output: Any, nodes: set[Any]) -> Counter[Any]:
    """Count the operations that read what each of some graph nodes wrote."""
    counts: Counter[Any] = Counter()
    stack = [tensor.grad_fn for tensor in as_tensors(output)]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            if parent in nodes:
                counts[parent] += 1
            stack.append(parent)
    return counts


def _pixels(sizes: list[tuple[int, int]]) -> str:
    return ", ".join(f"{y}x{x}" for y, x in sizes)
