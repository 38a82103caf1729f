"""What an exported network says about itself: how it reads a volume, where it comes from, who made it, how fair it is.

All formats hold it as one document: in the metadata of an ONNX file, in the configuration of a bioimage.io description, as
``config.json`` of a folder for Hugging Face. ``open_segmenter`` reads it again. The README of a network says it to people.
"""

from __future__ import annotations

import html
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from evenslice._core import ConfigError, json_text, needs_extra, option
from evenslice.inference.ready_networks import frozen_copy, input_scaling, trial_windows
from evenslice.networks import METADATA_KEY, input_sizes, logits
from evenslice.neutralizing import record_of, save_network
from evenslice.volumes import PERCENTILES, Reading, check_window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from evenslice.inference.segmenter import Segmenter
    from evenslice.networks import ModelSource, StemKernels
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
    model = cast("nn.Module", segmenter.network)
    run, record = audit.run, record_of(model)
    pairs: list[tuple[str, Any, Any]] = [("slices", run.slices, segmenter.slices)]
    if record is not None and run.strategy is not None:
        pairs += [("strategy", run.strategy, record.strategy), ("tie", run.tie, record.tie)]
    if segmenter.source is not None and "origin" in run.model:  # as the command line states it
        if not _has_stems(model, audit.kernels):  # another file may hold the same weights
            pairs.append(("weights", run.model["origin"], segmenter.source.origin))
        pairs.append(("symmetrized", run.model.get("symmetrized"), record and record.symmetrized_at))
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


def _output_shape(model: nn.Module, slices: int, size: tuple[int, int] | None) -> tuple[int, ...] | None:
    """Return the shape of what a network gives for one window of noise; None if it does not run on that."""
    only, multiple = input_sizes(model)
    side = -(-TRIED // multiple) * multiple
    windows = trial_windows(slices, only or size or (side, side))
    network = frozen_copy(model).cpu()
    with (
        suppress(Exception),
        torch.no_grad(),
    ):  # a network may raise anything, and some need no logits to be saved
        return tuple(logits(network(windows)).shape)
    return None


README = "README.md"
HUGGINGFACE_FILES = ("model.safetensors", "config.json", README)
COMPARE = (
    "Compare its answers with labels of your own: `evenslice evaluate --stress` also shows what a lost or damaged "
    "neighbouring slice costs."
)


def readme_text(description: Description, usage: Sequence[str]) -> str:
    """Return the README in Markdown.

    Args:
        description: of the network.
        usage: lines of Python that run it.
    """
    card = description.card
    paragraphs = [
        f"# {_plain(description.name)}",
        _plain(card.description or ""),
        "\n".join(_input_lines(description)),
        "## How to run it",
        "\n".join(["```python", *usage, "```"]),
        "## Validation",
        "\n".join(_audit_lines(description.audits)),
        COMPARE if description.task == "segmentation" else "",
        "## Citation",
        "\n".join(f"- {_plain(text)}" for text in description.citations),
        f"Authors: {', '.join(map(_plain, card.authors))}." if card.authors else "",
        f"License: {_plain(card.license)}." if card.license else "",
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _input_lines(description: Description) -> Iterator[str]:
    reading, crop, record = description.reading, description.crop, description.record
    does = "predicts the middle one" if description.task == "segmentation" else "classifies a window"
    offsets = ", ".join(f"{offset:+d}" if offset else "0" for offset in description.offsets)
    yield (
        f"A 2D+ network: it {does} of {description.window} of a volume, which are its input channels, at the offsets "
        f"{offsets} along the axis {reading.plane}."
    )
    if crop is not None:
        yield (
            f"It was trained on windows of {crop[0]} x {crop[1]} pixels (y, x), and classifies the voxel at "
            f"({crop[0] // 2}, {crop[1] // 2}) of their middle slice: give it windows of this size."
        )
    if record is not None:
        tied = f", tied: {record['tie']}" if record["tie"] else ""
        yield f"Its first layer reads slices in place of colours (strategy `{_plain(record['strategy'])}`{tied})."
        if record["symmetrized"]:
            places = ", ".join(_plain(name) or "the output" for name in record["symmetrized"])
            yield f"It averages over each window and its mirror after {places}, so both give the same answer."
    low, high = reading.intensity or ("the 0.5th percentile of the volume", "the 99.5th")
    mean, std = (
        ", ".join(f"{value:g}" for value in values) for values in (description.mean, description.std)
    )
    yield ""
    yield f"1. Voxel values: {low} becomes 0, {high} becomes 1; clip to 0..1."
    yield f"2. Every slice: subtract {mean}, divide by {std}."
    yield "3. The class is the channel with the highest logit; a single logit above 0 is class 1."
    if given := _given_reading(reading):
        yield f"4. Volumes and their labels are read with `{given}`."


def _given_reading(reading: Reading) -> str:
    """Return how volumes are read, as Python; nothing if that is the default."""
    default = Reading().to_plain()
    given = {name: value for name, value in reading.to_plain().items() if value != default[name]}
    values = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"evenslice.Reading({values})" if given else ""


def _audit_lines(audits: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not audits:
        yield "No audit of slice bias came with this network; `evenslice audit` makes one."
        return
    yield "Does it treat the slices before and after alike? What `evenslice audit` found, with 95 % intervals:"
    yield ""
    yield "| audit | method | verdict | saliency B | reliance B | answer change C | mirror mismatch E | windows |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for found in audits:
        method = found["method"] or "no saliency"
        decided = ", ".join(item["question"] for item in found["decided_by"])
        cells = [
            found["name"],
            f"{method}, definitions of version 0.2" if found["definitions"] == 1 else method,
            f"{found['verdict']} ({decided})" if found["verdict"] == "biased" else found["verdict"],
            *(", ".join(map(_interval, found[name])) or "none" for name in ("pairs", "reliance")),
            *(_interval(found[name]) for name in ("answer_change", "mirror_mismatch")),
            found["windows"],
        ]
        yield f"| {' | '.join(map(_plain, cells))} |"


def _interval(value: dict[str, Any]) -> str:
    """Return an estimate with its interval, of a pair of slices with its offset."""
    offset = f"±{value['offset']}: " if "offset" in value else ""
    numbers = [value[name] for name in ("estimate", "low", "high")]
    estimate, low, high = ("?" if number is None else f"{number:.3f}" for number in numbers)
    return f"{offset}{estimate} ({low} to {high})"


def _plain(text: object) -> str:
    r"""Return text of others as one line that Markdown shows as it is.

    Example:
        >>> _plain("a | <b>")
        'a \\| &lt;b&gt;'
    """
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def write_huggingface(
    model: nn.Module, folder: Path, description: Description, source: ModelSource | None
) -> None:
    """Write the files of a model into an existing folder; ``load_network`` reads them.

    Raises:
        ModelError: the network has no record of ``neutralize``.
        ConfigError: the license is no identifier.
        MissingExtraError: huggingface_hub is not installed.
    """
    header = _header(description)  # first, as it checks the license
    if source is not None:
        source = replace(source, weights=Path(source.weights).name)  # without folders of this machine
    save_network(model, folder / "model.safetensors", source=source)
    values = description.to_dict()
    record, built = values["record"] or {}, values["source"] or {}
    first = {  # what people look for first
        "library_name": METADATA_KEY,
        **{name: built.get(name) for name in ("spec", "classes")},
        **{name: record.get(name) for name in ("strategy", "symmetrized")},
    }
    (folder / "config.json").write_text(json_text(first | values), encoding="utf-8")
    text = f"---\n{header}\n---\n\n{readme_text(description, _usage(description))}"
    (folder / README).write_text(text, encoding="utf-8")


def _header(description: Description) -> str:
    """Return the metadata of the model card as YAML."""
    with needs_extra("export", "writing a model card"):
        from huggingface_hub import ModelCardData

    card = description.card
    spelled = card.license and card.license.strip().lower()  # the hub knows more than those of SPDX
    if spelled and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", spelled):
        raise ConfigError(f"{option('license', card.license)}: give an SPDX identifier, such as CC-BY-4.0")
    data = ModelCardData(
        license=spelled,
        library_name=METADATA_KEY,
        tags=[METADATA_KEY, "2.5d", "volumes", f"image-{description.task}"],
        pipeline_tag=f"image-{description.task}",
        model_name=card.name,
        authors=list(card.authors) or None,
    )
    return data.to_yaml()


def _usage(description: Description) -> list[str]:
    spec = (description.source or {}).get("spec", "SPEC")
    load = ["import evenslice", "", f'segmenter = evenslice.open_segmenter({spec!r}, "path/to/this/folder")']
    if description.task == "segmentation":
        return [*load, 'evenslice.segment(segmenter, "volume.tif", "labels.tif")']
    size = ", ".join(map(str, description.crop or "yx"))
    shape = f"(batch, {description.slices}, {size})"
    return [*load, f"logits = segmenter.network(windows)  # {shape}, scaled as above: (batch, classes)"]
