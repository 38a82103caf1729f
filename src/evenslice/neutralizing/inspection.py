"""One pass of a network as it is: which layers read the image, and what a gray image gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, ModelError
from evenslice.networks import is_on_meta, random_image, run_network
from evenslice.neutralizing.folding import ChannelScaling, find_scaling
from evenslice.neutralizing.mixer import MIXER
from evenslice.neutralizing.probing import run_to_stems
from evenslice.neutralizing.stems import Stems, Trace, first_accepted, plain_stems, trace
from evenslice.neutralizing.verification import ComparedOutputs, recording_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evenslice.neutralizing.probing import StemCall
    from evenslice.neutralizing.record import Record

__all__ = ["ChannelValues", "Inspection", "KnownInput", "inspect_network", "locate_stems"]

ChannelValues = float | Sequence[float] | None


@dataclass(frozen=True)
class KnownInput:
    """What is known in advance of a network's input and output.

    Attributes:
        mean: by which the user says that the channels were centred, one value for each or one for all.
        std: by which they were divided afterwards, likewise.
        size: in-plane size (y, x) in pixels that the user requests.
        record: of an earlier change.
        outputs: maps what the network returns to one tensor; None for the rules of `evenslice.networks.logits`.
    """

    mean: ChannelValues = None
    std: ChannelValues = None
    size: tuple[int, int] | None = None
    record: Record | None = None
    outputs: Callable[[Any], Any] | None = None

    def scaling(self, model: nn.Module, channels: int) -> ChannelScaling:
        """Return how the channels of a network are scaled; see `evenslice.neutralizing.folding.find_scaling`."""
        known = (self.record.mean, self.record.std) if self.record else None
        return find_scaling(model, channels, self.mean, self.std, known)

    def gray_image(self, model: nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
        """Return a random gray image (1, channels, y, x), scaled as the channels are."""
        gray = random_image(model, (1, 1, *size)).repeat(1, channels, 1, 1)
        try:
            return self.scaling(model, channels).apply(gray)
        except ConfigError:  # the user's values do not suit a number of channels that is only tried
            return gray


@dataclass(frozen=True)
class Inspection:
    """A network as it was before any change.

    Attributes:
        stems: its stems; none if nobody asked for them.
        scaling: how its channels are scaled.
        gray: its outputs for `KnownInput.gray_image`.
        stem_outputs: for each stem, what its `Stem.bias_owner` returned for that image, call by call.
    """

    stems: Stems
    scaling: ChannelScaling
    gray: ComparedOutputs
    stem_outputs: tuple[tuple[Tensor, ...], ...] = ()


def inspect_network(model: nn.Module, known: KnownInput, *, whole: bool, stems: bool) -> Inspection:
    """Run a network once on a gray image; call it inside `evenslice.networks.exact_evaluation`.

    Args:
        model: the network.
        known: what is known of its input.
        whole: run all of it. Otherwise a pass of shapes alone finds its stems, and only they and what is in front of
            them are run; what is after them may be on the meta device.
        stems: look for its stems, which raises if one of them cannot be rewritten.

    Raises:
        ModelError: see `evenslice.neutralizing.stems.find_stems`.
        ConfigError: see `evenslice.neutralizing.folding.find_scaling`.

    Example:
        >>> from evenslice.networks import exact_evaluation
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> with exact_evaluation(network):
        ...     found = inspect_network(network, KnownInput(size=(8, 8)), whole=True, stems=True)
        >>> found.stems.items[0].name, [tuple(output.shape) for output in found.gray.values()]
        ('0', [(1, 8, 6, 6)])
    """
    if whole:
        with recording_outputs(model, known.outputs) as choose:
            found, output, stem_outputs = _run(model, known, stems=stems)
            return Inspection(found, known.scaling(model, found.channels), choose(output, 1), stem_outputs)
    if stems:
        found, calls = locate_stems(model, known)
        gray = {stem.name: call.output for stem, call in zip(found.items, calls, strict=True)}
    else:
        found, calls = _run_dry(model, known, stems=False), ()
        gray = {MIXER: known.gray_image(model, found.channels, found.size)}
    scaling = known.scaling(model, found.channels)
    return Inspection(found, scaling, gray, tuple((call.output,) for call in calls))


def locate_stems(model: nn.Module, known: KnownInput) -> tuple[Stems, tuple[StemCall, ...]]:
    """Find the stems of a network by a pass of shapes alone, then run it up to them.

    Args:
        model: the network; what is after its stems may be on the meta device.
        known: what is known of its input.

    Returns:
        The stems, and the call of each for `KnownInput.gray_image`.

    Raises:
        ModelError: see `evenslice.neutralizing.stems.find_stems`.
    """
    found = _run_dry(model, known, stems=True)
    image = known.gray_image(model, found.channels, found.size)
    calls = run_to_stems(model, found, image, run=True)
    return plain_stems(found, [call.input for call in calls]), calls


def _run(model: nn.Module, known: KnownInput, *, stems: bool, dry: bool = False) -> Trace:
    def draw(channels: int, size: tuple[int, int]) -> Tensor:
        image = known.gray_image(model, channels, size)
        return image.to("meta") if dry else image

    def run(channels: int, size: tuple[int, int]) -> Trace:
        return Trace(Stems((), channels, size), run_network(model, draw(channels, size)), ())

    channels = (known.record.slices,) if known.record else ()
    if stems:
        return trace(model, draw, channels=channels, size=known.size)
    return first_accepted(model, run, channels=channels, size=known.size)


def _run_dry(model: nn.Module, known: KnownInput, *, stems: bool) -> Stems:
    """Find the stems by a pass of shapes alone, or as usual if the network cannot be run without values."""
    try:
        return _run(model, known, stems=stems, dry=True).stems
    except ModelError:
        if is_on_meta(model):
            raise
    return _run(model, known, stems=stems).stems
