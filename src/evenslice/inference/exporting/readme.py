"""The README of an exported network: what it expects, how to run it, and what audits found."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.inference.exporting.description import Description
    from evenslice.volumes import LabelValues

__all__ = ["README", "readme_text"]

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
