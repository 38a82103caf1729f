"""What an exported network says about itself: how it reads a volume, where it comes from, who made it, how fair it is.

All formats hold it as one document: in the metadata of an ONNX file, in the configuration of a bioimage.io description, as
``config.json`` of a folder for Hugging Face. ``open_segmenter`` reads it again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from evenslice._core import ConfigError, option
from evenslice.inference.ready_networks import frozen_copy, input_scaling, trial_windows
from evenslice.networks import input_multiple, input_size, logits
from evenslice.neutralizing import record_of, symmetrized_at
from evenslice.volumes import PERCENTILES, Reading, check_window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.inference.segmenter import Segmenter
    from evenslice.results import AuditResult

FORMAT = 1
TRIED = 64  # pixels in y and x, at least

FINDING = (
    *("name", "definitions", "verdict", "decided_by", "method", "windows", "population"),
    *("pairs", "reliance", "answer_change", "mirror_mismatch", "created"),
)
"""The keys of ``audit.json`` that the card has, too."""

PAPER = (
    "Mitigating Pretraining-Induced Attention Asymmetry in 2D+ Electron Microscopy Image Segmentation, "
    "https://arxiv.org/abs/2505.14105"
)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a file cannot know about a network, for those who get it from you.

    Attributes:
        name: the name of the network; by default one that says how many slices it takes.
        description: what it is for, in a sentence or two.
        authors: names of those who made it; a single one may be given as such.
        license: SPDX identifier, such as "CC-BY-4.0". The pretrained weights may restrict the choice.
        cite: what to cite besides the evenslice paper, each a text with a DOI or an address; a single one may be given as such.

    Example:
        >>> ModelCard(name="Mitochondria", authors="A. Author", license="CC-BY-4.0").authors
        ('A. Author',)
    """

    name: str | None = None
    description: str | None = None
    authors: Sequence[str] = ()
    license: str | None = None
    cite: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("authors", "cite"):
            given = getattr(self, name)  # a string's parts are its letters
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an exported network says about itself.

    Attributes:
        task: "segmentation" if the network gives a map of classes, else "classification".
        slices: N, the slices of a window.
        mean: what the network subtracts from slices in 0..1; one value, or one for each slice.
        std: what it divides them by afterwards, likewise.
        reading: how it reads volumes and their labels.
        crop: the size (y, x) of the windows that a classifier was trained on; None if unknown, or where any size will do.
        record: what was done to its stem, as plain values; None if nobody neutralized it.
        source: what it was built from, likewise; None if unknown.
        card: see ``ModelCard``.
        audits: what audits found, each as plain values.
    """

    task: str
    slices: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reading: Reading
    crop: tuple[int, int] | None
    record: dict[str, Any] | None
    source: dict[str, Any] | None
    card: ModelCard
    audits: tuple[dict[str, Any], ...]

    @property
    def window(self) -> str:
        """How many slices a window has, such as "3 slices"."""
        return "1 slice" if self.slices == 1 else f"{self.slices} slices"

    @property
    def name(self) -> str:
        """The name of the network."""
        return self.card.name or f"evenslice network for windows of {self.window}"

    @property
    def citations(self) -> tuple[str, ...]:
        """What to cite."""
        return (*self.card.cite, PAPER)

    @property
    def offsets(self) -> list[int]:
        """The position of each slice of a window, relative to its middle, in slices of the volume."""
        return [self.reading.step * (place - self.slices // 2) for place in range(self.slices)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = asdict(self)
        del values["reading"]
        return {
            "format": FORMAT,
            "version": version("evenslice"),
            **values,
            **self.reading.to_plain(),
            "percentiles": None if self.reading.intensity else list(PERCENTILES),
        }


def describe(segmenter: Segmenter, card: ModelCard, audits: Sequence[AuditResult]) -> Description:
    """Describe a network.

    Raises:
        ConfigError: an option is out of range, or contradicts the record of the network or the number of its classes; or an
            audit is of another network.
    """
    model, slices, reading = cast("nn.Module", segmenter.network), segmenter.slices, segmenter.reading
    record = record_of(model)
    if record is not None and slices != record.slices:
        raise ConfigError(
            f"{option('slices', slices)}: the network takes {record.slices}; leave {option('slices')} out"
        )
    check_window(slices, reading.step, "reflect")
    for audit in audits:
        _refuse_other(audit, segmenter)
    mean, std = input_scaling(model, slices)
    shape = _output_shape(model, slices, segmenter.crop)
    task = "classification" if shape and len(shape) < 3 else "segmentation"
    # What a classifier returns may depend on the size of its windows.
    known = shape and (len(shape) == 4 or (len(shape) == 2 and segmenter.crop is not None))
    reading.labels.check(max(shape[1], 2) if shape and known else None)
    if task == "segmentation":
        reading.labels.check_written()
    source = segmenter.source
    found = [audit.to_dict() for audit in audits]
    return Description(
        task=task,
        slices=slices,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        reading=reading,
        crop=segmenter.crop,
        record=None if record is None else record.to_dict(),
        source=None if source is None else source.to_dict() | {"weights": None},  # a path on this machine
        card=card,
        audits=tuple({key: item[key] for key in FINDING} for item in found),
    )


def _refuse_other(audit: AuditResult, segmenter: Segmenter) -> None:
    """Raise ConfigError for the audit of a network with other slices, made in another way, or with other weights."""
    run, record = audit.run, record_of(cast("nn.Module", segmenter.network))
    pairs: list[tuple[str, Any, Any]] = [("slices", run.slices, segmenter.slices)]
    if record is not None and run.strategy is not None:
        pairs += [("strategy", run.strategy, record.strategy), ("tie", run.tie, record.tie)]
    if segmenter.source is not None and "origin" in run.model:  # as the command line states it
        pairs += [
            ("weights", run.model["origin"], segmenter.source.origin),
            ("symmetrized", run.model.get("symmetrized"), symmetrized_at(record)),
        ]
    for what, audited, exported in pairs:
        if audited != exported:
            raise ConfigError(
                f"the audit {audit.name!r} is of another network than the one that is exported ({what}: {audited} instead of "
                f"{exported}); audit that one"
            )


def _output_shape(model: nn.Module, slices: int, size: tuple[int, int] | None) -> tuple[int, ...] | None:
    """Return the shape of what a network gives for one window of noise; None if it does not run on that."""
    multiple = input_multiple(model)
    side = -(-TRIED // multiple) * multiple
    windows = trial_windows(slices, input_size(model) or size or (side, side))
    network = frozen_copy(model).cpu()
    with (
        suppress(Exception),
        torch.no_grad(),
    ):  # a network may raise anything, and some need no logits to be saved
        return tuple(logits(network(windows)).shape)
    return None
