"""Stems: the layers of a network that read the image before any parameter has touched it.

No list of architectures is needed: one forward pass finds them (see `evenslice.neutralizing.image_readers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from evenslice._core import ConfigError, EvensliceError, ModelError, option, reason
from evenslice.networks import exact_evaluation, input_size, layer_label, random_image, run_network
from evenslice.neutralizing.image_readers import find_readers
from evenslice.neutralizing.mixer import MIXER_HINT
from evenslice.neutralizing.plain_layers import plain_layer

__all__ = ["Stem", "Stems", "Trace", "find_stems", "first_accepted", "input_channels", "plain_stems", "trace"]

SIZES = (64, 224, 256, 384, 512)
"""In-plane sizes tried in turn, in pixels, for a network that does not state its own."""

Draw = Callable[[int, tuple[int, int]], Tensor]  # (channels, size) to an image
_T = TypeVar("_T")


@dataclass(frozen=True)
class Stem:
    """A layer that reads the image before any parameter has touched it.

    Attributes:
        name: its dotted name in the network; empty if the layer is the network.
        module: the layer, or an equivalent plain one if it computes its weight or works in groups. In a network
            traced on the meta device, the layer as it is.
        norm: the batch norm that alone reads the layer's output, if there is one.
        reader: the layer that is in the network.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: nn.Module | None
    reader: nn.Module

    @property
    def label(self) -> str:
        """How a message names the layer: ``encoder.conv1 (Conv2d)``."""
        return layer_label(self.name, self.reader)

    @property
    def bias_owner(self) -> nn.Module:
        """The module that a constant is folded into: the stem if it has a bias, else the batch norm after it, else the stem."""
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
        stem_outputs: for each stem, what its `Stem.bias_owner` returned, call by call.
    """

    stems: Stems
    output: Any
    stem_outputs: tuple[tuple[Tensor, ...], ...]


def find_stems(
    model: nn.Module, *, channels: Iterable[int] = (), size: tuple[int, int] | None = None
) -> Stems:
    """Find the stems of a network by one forward pass.

    Args:
        model: a network that takes (batch, channels, y, x). It is left as it was. It may be on the meta device.
        channels: numbers of input channels to try in turn; by default 3, then as many as its first layer takes.
        size: in-plane size (y, x) of the image in pixels; by default the first that it accepts of its stated size and
            of 64, 224, 256, 384 and 512.

    Raises:
        ModelError: the network refuses every image; nothing with parameters reads the image; or what reads it is
            not equivalent to a convolution or a linear layer.

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

    with exact_evaluation(model):
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
        run_network(model, random_image(model, (1, count, *size)))
        return count

    with exact_evaluation(model), torch.no_grad():
        return first_accepted(model, run)


def trace(
    model: nn.Module,
    draw: Draw,
    *,
    channels: Iterable[int] = (),
    size: tuple[int, int] | None = None,
) -> Trace:
    """Run a network once and find its stems; call it inside `evenslice.networks.exact_evaluation`.

    Args:
        model: the network.
        draw: returns an image (1, channels, y, x), on the meta device for a pass of shapes alone.
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
    """Try numbers of channels and sizes in turn; return the result of the first run that the network accepts.

    Args:
        model: the network.
        run: runs it on images of so many channels and such a size, and may raise anything.
        channels: see `find_stems`.
        size: see `find_stems`.

    Raises:
        ModelError: the network refuses every image, or the run raised an error of evenslice.
        ConfigError: the size is not a pair of positive whole numbers.
    """
    if size is not None:
        _check_size(size)
    stated = input_size(model)
    usual = [(pixels, pixels) for pixels in SIZES]
    sizes = [size] if size else [stated, *usual] if stated else usual
    counts = tuple(dict.fromkeys(channels)) or tuple(dict.fromkeys((3, *_first_width(model))))
    refusals: list[Exception] = []
    for tried in sizes:
        for count in counts:
            try:
                return run(count, tried)
            except EvensliceError:
                raise
            except Exception as error:  # noqa: BLE001  # a network may refuse an image by any exception
                refusals.append(error)
    raise ModelError(
        f"the network refuses images of {' or '.join(map(str, counts))} channels at {_pixels(sizes)} pixels"
        f" ({type(refusals[0]).__name__}: {reason(refusals[0])}); in Python, give the right size (y, x) as size"
    )


def _check_size(size: Any) -> None:
    if not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(pixels, Integral) and int(pixels) > 0 for pixels in size)
    ):
        raise ConfigError(
            f"{option('size')}: is {size!r:.60}; must be two numbers of pixels (y, x), such as (64, 64)"
        )


def _first_width(model: nn.Module) -> Iterator[int]:
    """Yield the input width of the first layer in the order of registration, which mostly is the first to run."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
            return


def _trace(model: nn.Module, image: Tensor) -> Trace:
    """Run the network once and return its stems in the order in which they read the image."""
    found = find_readers(model, image)
    if not found.readers:
        raise ModelError(
            f"no layer of this {type(model).__name__} reads the image first; evenslice looks for "
            "convolutions and linear"
            f" layers that the forward pass calls; {MIXER_HINT}"
        )
    items = tuple(Stem(reader.name, reader.module, reader.norm, reader.module) for reader in found.readers)
    stems = Stems(items, image.shape[1], (image.shape[2], image.shape[3]), found.norms)
    if not image.is_meta:
        stems = plain_stems(stems, [reader.input for reader in found.readers])
    outputs = tuple(
        tuple(reader.norm_outputs if stem.bias_owner is stem.norm else reader.outputs)
        for stem, reader in zip(stems.items, found.readers, strict=True)
    )
    return Trace(stems, found.output, outputs)


def plain_stems(stems: Stems, arrivals: Sequence[Tensor]) -> Stems:
    """Return stems with a plain layer each, given one input of each; see `evenslice.neutralizing.plain_layers`.

    Raises:
        ModelError: one of them has no plain equivalent.
    """
    layers = (
        plain_layer(stem.name, stem.reader, arrived)
        for stem, arrived in zip(stems.items, arrivals, strict=True)
    )
    return replace(
        stems,
        items=tuple(replace(stem, module=layer) for stem, layer in zip(stems.items, layers, strict=True)),
    )


def _pixels(sizes: list[tuple[int, int]]) -> str:
    return ", ".join(f"{y}x{x}" for y, x in sizes)
