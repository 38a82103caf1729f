"""Folders as Hugging Face keeps models, and the README of a network in every format that has one.

A folder holds ``model.safetensors``, ``config.json`` and the README as a model card: what the network expects, how to run it,
and what audits found.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, json_text, needs_extra, option
from evenslice.networks import METADATA_KEY
from evenslice.neutralizing import save_network
from evenslice.volumes import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from evenslice.inference.description import Description
    from evenslice.networks import ModelSource

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
    yield f"A 2D+ network: it {does} of {description.window} of a volume, which are its input channels,"
    yield f"at the offsets {', '.join(f'{offset:+d}' if offset else '0' for offset in description.offsets)} along "
    yield f"the axis {reading.plane}."
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
