"""The statistics of an audit as plain values, with the keys of ``audit.json``, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from evenslice.results.asymmetry import Asymmetry
from evenslice.results.plain_values import from_plain

__all__ = ["DEFINITIONS", "statistics_from_plain", "statistics_to_plain"]

DEFINITIONS = 2
"""The definitions of the figures: 1 are those of versions 0.1 and 0.2, which are not pooled or compared with these."""


def statistics_to_plain(found: Asymmetry) -> dict[str, Any]:
    """Return statistics as plain values; what belongs to slices or pairs states their offset."""
    plain = asdict(found)
    half = len(found.shares) // 2
    plain["shares"] = [
        {"offset": k - half, "mean": share["estimate"], "low": share["low"], "high": share["high"]}
        for k, share in enumerate(plain["shares"])
    ]
    uses = (part["mirror_mismatch"] for part in (plain, *plain["classes"]))
    for part in (plain, *plain["classes"], *plain["by_volume"], *uses):
        for name in ("pairs", "reliance", "data_pairs", "wasserstein"):
            if name in part:
                part[name] = [{"offset": k, **value} for k, value in enumerate(part[name], start=1)]
    answers = (part["answer_change"] for part in (plain, *plain["classes"]))
    for part in (*plain["decided_by"], *plain["classes"], *answers):
        part["class"] = part.pop("class_number")
    return plain


def statistics_from_plain(document: dict[str, Any]) -> Asymmetry:
    """Read the statistics from the document of an audit; what an older one does not have is unknown."""
    decided = document.get("decided_by") or []
    plain = {
        **document,
        "shares": [{**share, "estimate": share["mean"]} for share in document["shares"]],
        "decided_by": [_named(item) for item in ([decided] if isinstance(decided, dict) else decided)],
        "classes": [_named(item) for item in document.get("classes", [])],
    }
    for name in ("answer_change", "mirror_mismatch"):
        if document.get(name) is not None:
            plain[name] = _named(document[name])
    found: Asymmetry = from_plain(Asymmetry, plain)
    return found


def _named(part: dict[str, Any]) -> dict[str, Any]:
    part = {**part, "class_number": part["class"]} if "class" in part else dict(part)
    if isinstance(part.get("answer_change"), dict):
        part["answer_change"] = _named(part["answer_change"])
    return part
