"""What an exported network says about itself: how it reads a volume, where it comes from, who made it, how fair it is.

All formats hold it as one document, under ``evenslice``: in the metadata of an ONNX file, in the configuration of a
bioimage.io description, as ``config.json`` of a folder for Hugging Face. It is read again to open a network in the same way:

    stated_reading("onnx", "mitochondria/network.onnx")    Reading(step=2, plane="z", intensity=(0.0, 255.0), ...)

The file may come from anywhere: what evenslice did not write is left out, and what is damaged is an error.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import UNREADABLE, ConfigError, ModelError, option, read_bounded, reason
from evenslice.inference.exporting.whole_network import output_shape
from evenslice.inference.onnx_networks import MOST_METADATA, ONNX, open_session
from evenslice.inference.ready_networks import input_scaling
from evenslice.networks import METADATA_KEY, NO_FILES, read_metadata
from evenslice.neutralizing import record_of, symmetrized_at
from evenslice.volumes import PERCENTILES, Reading, check_window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from evenslice.networks import ModelSource, StemKernels
    from evenslice.results import AuditResult

__all__ = ["LIBRARY", "Description", "ModelCard", "describe", "stated_reading"]

FORMAT = 1
LIBRARY = "evenslice"
"""What tells a folder for Hugging Face from those of other libraries."""

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
        license: SPDX identifier, such as "CC-BY-4.0", in any case. The pretrained weights may restrict the choice.
        cite: what to cite besides the evenslice paper, each a text with a DOI or an address; a single one may be given as such.

    Example:
        >>> ModelCard(name="Mitochondria", authors=("A. Author",), license="CC-BY-4.0").license
        'CC-BY-4.0'
    """

    name: str | None = None
    description: str | None = None
    authors: tuple[str, ...] = ()
    license: str | None = None
    cite: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given: Any
        for name in ("name", "description", "license"):
            given = getattr(self, name)
            if not (given is None or isinstance(given, str)):
                raise ConfigError(f"{option(name, given)}: give text")
        for name in ("authors", "cite"):
            given = getattr(self, name) or ()
            texts = [given] if isinstance(given, str) else given  # a string's parts are its letters
            if not (isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)):
                raise ConfigError(f"{option(name, given)}: give text, or a list of it")
            object.__setattr__(self, name, tuple(texts))


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
    def name(self) -> str:
        """The name of the network."""
        return self.card.name or f"evenslice network for windows of {self.window}"

    @property
    def window(self) -> str:
        """How many slices a window has, such as "3 slices"."""
        return "1 slice" if self.slices == 1 else f"{self.slices} slices"

    @property
    def citations(self) -> tuple[str, ...]:
        """What to cite."""
        return (*self.card.cite, PAPER)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The position of each slice of a window, relative to its middle, in slices of the volume."""
        half = self.slices // 2
        return tuple(self.reading.step * offset for offset in range(-half, self.slices - half))

    def to_dict(self, **more: Any) -> dict[str, Any]:
        """Return plain values for JSON, with further entries."""
        values = asdict(self)
        del values["reading"]
        return {
            "format": FORMAT,
            "version": version("evenslice"),
            **values,
            **self.reading.to_plain(),
            "percentiles": None if self.reading.intensity else list(PERCENTILES),
            **more,
        }


def describe(
    model: nn.Module,
    *,
    slices: int | None,
    reading: Reading,
    crop: tuple[int, int] | None,
    source: ModelSource | None,
    card: ModelCard,
    audits: Sequence[AuditResult],
) -> Description:
    """Describe a network; see ``export`` for the arguments.

    Raises:
        ConfigError: an option is out of range, or contradicts the record of the network or the number of its classes; or an
            audit is of another network.
    """
    record = record_of(model)
    if record is not None and slices not in (None, record.slices):
        raise ConfigError(
            f"{option('slices', slices)}: the network takes {record.slices}; leave {option('slices')} out"
        )
    check_window(3 if slices is None else slices, reading.step, "reflect")
    count = record.slices if record is not None else slices or 3
    for audit in audits:
        _refuse_other(audit, model, count, source)
    mean, std = input_scaling(model, count)
    shape = output_shape(model, count, crop)
    task = "classification" if shape and len(shape) < 3 else "segmentation"
    # What a classifier returns may depend on the size of its windows.
    known = shape and (len(shape) == 4 or (len(shape) == 2 and crop is not None))
    reading.labels.check(max(shape[1], 2) if shape and known else None)
    if task == "segmentation":
        reading.labels.check_written()
    return Description(
        task=task,
        slices=count,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        reading=reading,
        crop=crop,
        record=None if record is None else record.to_dict(),
        source=None if source is None else source.to_dict() | {"weights": None},  # a path on this machine
        card=card,
        audits=tuple(map(_finding, audits)),
    )


def _refuse_other(audit: AuditResult, model: nn.Module, slices: int, source: ModelSource | None) -> None:
    """Raise ConfigError for the audit of a network with other slices, made in another way, or with other weights."""
    run, record = audit.run, record_of(model)
    pairs: list[tuple[str, Any, Any]] = [("slices", run.slices, slices)]
    if record is not None and run.strategy is not None:
        pairs += [("strategy", run.strategy, record.strategy), ("tie", run.tie, record.tie)]
    if source is not None and "origin" in run.model:  # as the command line states it
        if not _has_stems(model, audit.kernels):  # another file may hold the same weights
            pairs.append(("weights", run.model["origin"], source.origin))
        pairs.append(("symmetrized", run.model.get("symmetrized"), symmetrized_at(record)))
    for what, audited, exported in pairs:
        if audited != exported:
            raise ConfigError(
                f"the audit {audit.name!r} is of another network than the one that is exported ({what}: {audited} instead of "
                f"{exported}); audit that one"
            )


def _has_stems(model: nn.Module, kernels: Sequence[StemKernels]) -> bool:
    """Return whether a network has the stems whose kernels an audit saw, if it saw any."""
    modules = dict(model.named_modules())
    weights = [getattr(modules.get(stem.name), "weight", None) for stem in kernels]
    return bool(kernels) and all(
        isinstance(weight, torch.Tensor)
        and np.array_equal(weight.detach().float().cpu().numpy().reshape(-1), stem.after.reshape(-1))
        for weight, stem in zip(weights, kernels, strict=True)
    )


def _finding(audit: AuditResult) -> dict[str, Any]:
    """Return what the card shows of an audit."""
    found = audit.to_dict()
    return {key: found[key] for key in FINDING}


CONFIG, WEIGHTS = "config.json", "model.safetensors"


def stated_reading(spec: str, weights: str | None) -> tuple[Reading | None, tuple[int, int] | None]:
    """Return how a network reads volumes, as ``evenslice export`` or ``save_network`` wrote it with the network.

    Args:
        spec: "onnx"; a folder for Hugging Face or a file of ``save_network``, without weights; or any other
            specification.
        weights: the ONNX file; such a folder or file; or any other weights.

    Returns:
        What is stated, and defaults for the rest, None for a network that evenslice has neither exported nor saved; and the
        size (y, x) of the windows that a classifier was trained on, None if it is not stated, or for an ONNX file, whose
        graph takes one size alone.

    Raises:
        ModelError: what is stated is damaged; or see ``load_onnx``.

    Example:
        >>> stated_reading("timm:resnet18", "imagenet")
        (None, None)
    """
    if weights in NO_FILES:
        return None, None
    place = Path(spec if weights is None else weights)
    try:
        stated = _metadata(place) if spec == ONNX else _saved(place) or _configuration(place)
        if stated is None:
            return None, None
        return Reading.from_plain(stated), None if spec == ONNX else _crop(stated)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise ModelError(
                f"{place}: cannot be read ({error.strerror}); check the path, or that you may read it"
            ) from error
        raise ModelError(
            f"{place}: its description of how it reads volumes is damaged ({reason(error)}); export the network again, or save "
            "it again"
        ) from error


def _crop(stated: Mapping[str, Any]) -> tuple[int, int] | None:
    crop = stated.get("crop")
    if crop is None:
        return None
    if not (type(crop) is list and len(crop) == 2 and all(type(side) is int and side > 0 for side in crop)):
        raise ValueError(f"crop {crop!r:.40}")
    return crop[0], crop[1]


def _metadata(file: Path) -> Any:
    text = open_session(file, optimized=False).get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    return None if text is None else json.loads(text)


def _saved(place: Path) -> Any:
    """Return what the file of a network states, given it or its folder; None for any other."""
    text = read_metadata(place / WEIGHTS if place.is_dir() else place).get(METADATA_KEY)
    return None if text is None else json.loads(text).get("reading")


def _configuration(folder: Path) -> Any:
    """Return the description in a folder that evenslice exported, given it or its file of weights; None for any other."""
    folder = folder.parent if folder.name == WEIGHTS else folder
    if not (folder / CONFIG).is_file():
        return None
    stated = json.loads(read_bounded(folder / CONFIG, MOST_METADATA))
    return stated if isinstance(stated, dict) and stated.get("library_name") == LIBRARY else None
