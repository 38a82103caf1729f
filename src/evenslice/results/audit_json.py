"""The statistics of an audit as plain values, with the keys of ``audit.json``, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from evenslice.results.asymmetry import Asymmetry
from evenslice.results.plain_values import from_plain

__all__ = ["statistics_from_plain", "statistics_to_plain"]

BY_PAIR = ("pairs", "data_pairs", "wasserstein")


def statistics_to_plain(found: Asymmetry) -> dict[str, Any]:
    """Return statistics as plain values; what belongs to slices or pairs states their offset."""
    plain = asdict(found)
    half = len(found.shares) // 2
    plain["shares"] = [
        {"offset": k - half, "mean": share["estimate"], "low": share["low"], "high": share["high"]}
        for k, share in enumerate(plain["shares"])
    ]
    for name in BY_PAIR:
        plain[name] = _numbered(plain[name])
    for part in (plain["second_opinion"], *plain["classes"]):
        if part is not None:
            part["pairs"] = _numbered(part["pairs"])
    for part in (plain["decided_by"], *plain["classes"]):
        if part is not None:
            part["class"] = part.pop("class_number")
    return plain


def statistics_from_plain(document: dict[str, Any]) -> Asymmetry:
    """Read the statistics from the document of an audit; what an older one does not have is unknown."""
    shares = [{**share, "estimate": share["mean"]} for share in document["shares"]]
    decided, classes = document.get("decided_by"), document.get("classes", [])
    found: Asymmetry = from_plain(
        Asymmetry,
        {
            **document,
            "shares": shares,
            "decided_by": None if decided is None else _with_class_number(decided),
            "classes": [_with_class_number(item) for item in classes],
        },
    )
    return found


def _numbered(pairs: Any) -> list[dict[str, Any]]:
    return [{"offset": k, **value} for k, value in enumerate(pairs, start=1)]


def _with_class_number(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "class_number": part["class"]}
