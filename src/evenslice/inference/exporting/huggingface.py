"""Folders as Hugging Face keeps models, and the README of a network in every format that has one.

A folder holds ``model.safetensors``, ``config.json`` and the README as a model card: what the network expects, how to run it,
and what audits found.
"""

from __future__ import annotations

import html
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, json_text, needs_extra, option
from evenslice.inference.exporting.description import LIBRARY
from evenslice.neutralizing import save_network
from evenslice.volumes import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from evenslice.inference.exporting.description import Description
    from evenslice.networks import ModelSource
    from evenslice.volumes import LabelValues

__all__ = ["HUGGINGFACE_FILES", "README", "match_license", "readme_text", "write_huggingface"]

README = "README.md"
"""Name of the file, in every format that has one."""

COMPARE = (
    "Compare its answers with labels of your own: `evenslice evaluate --stress` also shows what a lost or damaged "
    "neighbouring slice costs."
)

BIASED = {
    "saliency": "in its saliency maps",
    "attention": "in its saliency maps",  # of version 0.2
    "reliance": "in what it relies on",
    "answer": "in its answers",
}


def readme_text(description: Description, usage: Sequence[str]) -> str:
    """Return the README in Markdown.

    Args:
        description: of the network.
        usage: lines of Python that run it.
    """
    return "\n".join(
        [
            f"# {_plain(description.name)}",
            "",
            *([_plain(description.card.description), ""] if description.card.description else []),
            *_input_lines(description),
            "",
            "## How to run it",
            "",
            "```python",
            *usage,
            "```",
            "",
            "## Validation",
            "",
            *_audit_lines(description.audits),
            "",
            *([COMPARE, ""] if description.task == "segmentation" else []),
            "## Citation",
            "",
            *(f"- {_plain(text)}" for text in description.citations),
            *_author_lines(description),
            "",
        ]
    )


def _input_lines(description: Description) -> Iterator[str]:
    offsets = ", ".join(f"{offset:+d}" if offset else "0" for offset in description.offsets)
    predicts = (
        "predicts slice z of a volume from" if description.task == "segmentation" else "classifies windows of"
    )
    channels = "its input channel"
    if description.slices > 1:
        channels = f"which are its input channels, at the offsets {offsets} in this order"
    yield f"A 2D+ network: it {predicts} {description.window}, {channels}."
    if description.crop is not None:
        y, x = description.crop
        yield (
            f"It was trained on windows of {y} x {x} pixels (y, x), and classifies the voxel at ({y // 2}, {x // 2}) of "
            "their middle slice: give it windows of this size."
        )
    if description.reading.plane != "z":
        yield f"Slices follow one another along the axis {description.reading.plane} of the volume, not along z."
    yield ""
    if description.reading.intensity is None:
        yield "1. The 0.5th percentile of the whole volume becomes 0, the 99.5th becomes 1; clip to 0..1."
    else:
        low, high = description.reading.intensity
        yield f"1. The voxel value {low:g} becomes 0, {high:g} becomes 1; clip to 0..1."
    if description.reading.fill is not None:
        yield f"   NaN and infinity become {description.reading.fill:g} first."
    mean, std = (_numbers(values) for values in (description.mean, description.std))
    yield f"2. Every slice: subtract {mean}, divide by {std}."
    yield "3. The class is the channel with the highest logit; a single logit above 0 is class 1."
    if labels := " ".join(_label_sentences(description.reading.labels)):
        yield f"4. {labels}"
    yield ""
    yield _strategy(description.record)


def _label_sentences(labels: LabelValues) -> Iterator[str]:
    """Say what the values of labels mean, as far as it is not the default."""
    if labels.label_values is not None:
        yield f"In labels, the classes have the values {', '.join(map(str, labels.label_values))}."
    if labels.other_labels == "background":
        yield "All other values in labels are background, class 0."
    if labels.instances is not None:
        lie = (
            "lie on a background, 0"
            if labels.instances == "sparse"
            else "fill the volume, but for 0 between them"
        )
        yield f"Labels number objects, which {lie}; class 1 is their boundaries within slices."
    if labels.ignore_label is not None:
        yield f"Voxels with the label {labels.ignore_label} do not count."


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _strategy(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Its first layer is as its maker built it."
    tied = f", tied: {record['tie']}" if record["tie"] else ""
    text = (
        f"Its first layer reads slices in place of colours (strategy `{_plain(record['strategy'])}`{tied})."
    )
    if record["symmetrized"]:
        places = ", ".join(f"`{_plain(name)}`" if name else "the output" for name in record["symmetrized"])
        text += f" It averages over each window and its mirror after {places}, so both give the same answer."
    return text


def _audit_lines(audits: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not audits:
        yield "No audit of slice bias came with this network; `evenslice audit` makes one."
        return
    yield "Does it treat the slices before and after alike? What `evenslice audit` found, with 95 % intervals:"
    yield ""
    yield "| audit | verdict | saliency B | reliance B | answer change C | mirror mismatch E | windows |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for found in audits:
        older = ", definitions of version 0.2" if found["definitions"] == 1 else ""
        cells = [
            f"{_plain(found['name'])} ({_plain(found['method'] or 'no saliency')}{older})",
            _plain(_verdict(found)),
            _pairs(found["pairs"]),
            _pairs(found["reliance"]),
            _interval(found["answer_change"]),
            _interval(found["mirror_mismatch"]),
            str(found["windows"]),
        ]
        yield f"| {' | '.join(cells)} |"


def _verdict(found: dict[str, Any]) -> str:
    """Return the verdict, and of a biased network where it is."""
    if found["verdict"] != "biased":
        return str(found["verdict"])
    return f"biased {' and '.join(BIASED.get(item['question'], '') for item in found['decided_by'])}".strip()


def _pairs(pairs: Sequence[dict[str, Any]]) -> str:
    return "<br>".join(f"±{pair['offset']}: {_interval(pair)}" for pair in pairs) or "none"


def _interval(value: dict[str, Any]) -> str:
    estimate, low, high = (value[name] for name in ("estimate", "low", "high"))
    if estimate is None or estimate != estimate:  # noqa: PLR0124  # NaN
        return "unknown"
    known = all(bound is not None and bound == bound for bound in (low, high))  # noqa: PLR0124
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]" if known else f"{estimate:.3f}"


def _author_lines(description: Description) -> Iterator[str]:
    card = description.card
    if card.authors:
        yield from ("", f"Authors: {', '.join(map(_plain, card.authors))}.")
    if card.license:
        yield from ("", f"License: {_plain(card.license)}.")


def _plain(text: str) -> str:
    r"""Return text of others as one line that Markdown shows as it is.

    Example:
        >>> _plain("a | <b>")
        'a \\| &lt;b&gt;'
    """
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


HUGGINGFACE_FILES = ("model.safetensors", "config.json", README)
TAGS = ("evenslice", "2.5d", "volumes")


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
    configuration = {"library_name": LIBRARY, **_settings(description)}
    (folder / "config.json").write_text(json_text(configuration), encoding="utf-8")
    (folder / README).write_text(
        f"---\n{header}\n---\n\n{readme_text(description, _usage(description))}",
        encoding="utf-8",
    )


def _settings(description: Description) -> dict[str, Any]:
    """Return the document with what people look for first."""
    values = description.to_dict()
    record, source = values["record"] or {}, values["source"] or {}
    first = {
        "spec": source.get("spec"),
        "classes": source.get("classes"),
        "strategy": record.get("strategy"),
        "symmetrized": record.get("symmetrized"),
    }
    return first | values


def _header(description: Description) -> str:
    """Return the metadata of the model card as YAML."""
    with needs_extra("export", "writing a model card"):
        from huggingface_hub import ModelCardData

    card = description.card
    data = ModelCardData(
        license=hub_license(card.license) if card.license else None,
        library_name=LIBRARY,
        tags=[*TAGS, f"image-{description.task}"],
        pipeline_tag=f"image-{description.task}",
        model_name=card.name,
        authors=list(card.authors) or None,
    )
    return data.to_yaml()


def _usage(description: Description) -> list[str]:
    spec = (description.source or {}).get("spec", "SPEC")
    load = [
        "import evenslice",
        "",
        f'network = evenslice.load_network({spec!r}, "path/to/this/folder").model',
    ]
    if description.task == "classification":
        size = "y, x" if description.crop is None else ", ".join(map(str, description.crop))
        return [
            *load,
            f"logits = network(windows)  # (batch, {description.slices}, {size}), scaled as above: (batch, classes)",
        ]
    default = Reading().to_plain()
    given = {name: value for name, value in description.reading.to_plain().items() if value != default[name]}
    values = ", ".join(f"{name}={value!r}" for name, value in given.items())
    reading = f", reading=evenslice.Reading({values})" if given else ""
    return [*load, f'evenslice.segment(network, "volume.tif", "labels.tif"{reading})']


def match_license(text: str) -> str:
    """Return the SPDX identifier that a text is, spelled as SPDX does.

    Raises:
        ConfigError: it is none that bioimageio.spec knows.
        MissingExtraError: bioimageio.spec is not installed.
    """
    with needs_extra("export", "checking a license"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts of the library
        from bioimageio.spec.model.v0_5 import DeprecatedLicenseId, LicenseId
        from pydantic import TypeAdapter
    names = [
        name for kind in (DeprecatedLicenseId, LicenseId) for name in TypeAdapter(kind).json_schema()["enum"]
    ]
    found = {name.lower(): str(name) for name in names}.get(text.strip().lower())
    if found is None:
        raise _no_license(text)
    return found


def hub_license(text: str) -> str:
    """Return a license as Hugging Face writes it: in lower case.

    It has identifiers of its own as well, such as ``openrail``, so any word is taken.

    Raises:
        ConfigError: it is no identifier, but the name of a license or several words.
    """
    name = text.strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
        raise _no_license(text)
    return name


def _no_license(text: str) -> ConfigError:
    return ConfigError(
        f"{option('license', text)}: give an SPDX identifier, such as CC-BY-4.0, from https://spdx.org/licenses"
    )
