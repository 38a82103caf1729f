"""Observing: one pass of a network as it is, for what reads the image and for what a gray image gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, ModelError
from evenslice.networks import call, on_meta, random_image
from evenslice.neutralizing.folding import ChannelScaling, find_scaling
from evenslice.neutralizing.mixer import MIXER
from evenslice.neutralizing.probing import run_to_stems
from evenslice.neutralizing.stems import Stems, Trace, first_accepted, plain_stems, trace
from evenslice.neutralizing.verification import Outputs, listening

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evenslice.neutralizing.record import Record

__all__ = ["Given", "Numbers", "Seen", "observe"]

Numbers = float | Sequence[float] | None


@dataclass(frozen=True)
class Given:
    """What is known of a network's input beforehand.

    Attributes:
        mean: what the user says that the channels were centred by, one value for each or one for all.
        std: what they were divided by afterwards, likewise.
        size: in-plane size (y, x) in pixels that the user asks for.
        record: that of an earlier change.
    """

    mean: Numbers = None
    std: Numbers = None
    size: tuple[int, int] | None = None
    record: Record | None = None

    def scaling(self, model: nn.Module, channels: int) -> ChannelScaling:
        """Return how the channels of a network are scaled; see `evenslice.neutralizing.folding.find_scaling`."""
        known = (self.record.mean, self.record.std) if self.record else None
        return find_scaling(model, channels, self.mean, self.std, known)

    def gray_image(self, model: nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
        """Return a random gray image (1, channels, y, x), scaled as the channels are."""
        gray = random_image(model, (1, 1, *size)).repeat(1, channels, 1, 1)
        try:
            return self.scaling(model, channels).apply(gray)
        except ConfigError:  # the user's numbers do not suit a number of channels that is only tried
            return gray


@dataclass(frozen=True)
class Seen:
    """A network as it was before any change.

    Attributes:
        stems: its stems, of which there are none where nobody asked for them.
        scaling: how its channels are scaled.
        gray: what it gave for `Given.gray_image`.
        wrote: for each stem, what its `Stem.taker` wrote for that image, call by call.
    """

    stems: Stems
    scaling: ChannelScaling
    gray: Outputs
    wrote: tuple[tuple[Tensor, ...], ...] = ()


def observe(model: nn.Module, given: Given, *, whole: bool, stems: bool) -> Seen:
    """Run a network once on a gray image; call it inside of `evenslice.networks.dry_runs.undisturbed`.

    Args:
        model: the network.
        given: what is known of its input.
        whole: run all of it. Otherwise its stems are found by a pass of shapes alone, and only they, and what is in front
            of them, are run; what is behind them may lie on the meta device.
        stems: look for its stems, which raises where one of them cannot be rewritten.

    Raises:
        ModelError: see `evenslice.neutralizing.stems.find_stems`.
        ConfigError: see `evenslice.neutralizing.folding.find_scaling`.

    Example:
        >>> from evenslice.networks import undisturbed
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> with undisturbed(network):
        ...     seen = observe(network, Given(size=(8, 8)), whole=True, stems=True)
        >>> seen.stems.items[0].name, [tuple(output.shape) for output in seen.gray.values()]
        ('0', [(1, 8, 6, 6)])
    """
    if whole:
        with listening(model) as choose:
            found, output, wrote = _run(model, given, stems=stems)
            return Seen(found, given.scaling(model, found.channels), choose(output, 1), wrote)
    found = _run_dry(model, given, stems=stems)
    scaling = given.scaling(model, found.channels)
    image = given.gray_image(model, found.channels, found.size)
    if not found.items:
        return Seen(found, scaling, {MIXER: image})
    passages = run_to_stems(model, found, image, run=True)
    found = plain_stems(found, [passage.arrived for passage in passages])
    gray = {stem.name: passage.wrote for stem, passage in zip(found.items, passages, strict=True)}
    return Seen(found, scaling, gray, tuple((passage.wrote,) for passage in passages))


def _run(model: nn.Module, given: Given, *, stems: bool, dry: bool = False) -> Trace:
    def draw(channels: int, size: tuple[int, int]) -> Tensor:
        image = given.gray_image(model, channels, size)
        return image.to("meta") if dry else image

    def run(channels: int, size: tuple[int, int]) -> Trace:
        return Trace(Stems((), channels, size), call(model, draw(channels, size)), ())

    channels = (given.record.slices,) if given.record else ()
    if stems:
        return trace(model, draw, channels=channels, size=given.size)
    return first_accepted(model, run, channels=channels, size=given.size)


def _run_dry(model: nn.Module, given: Given, *, stems: bool) -> Stems:
    """Find the stems by a pass of shapes alone if all of the network lets itself be run like this, else as usual."""
    try:
        return _run(model, given, stems=stems, dry=True).stems
    except ModelError:
        if on_meta(model):
            raise
    return _run(model, given, stems=stems).stems
