"""What a file says of how its network reads volumes and their labels; the file may come from anywhere."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, did_you_mean, option, reason

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["parse_reading", "plain_reading"]

READING = (
    *("step", "plane", "intensity", "fill"),
    *("label_values", "other_labels", "ignore_label", "instances"),
)
"""Options that say how volumes and their labels are read."""

PLANES = ("z", "y", "x")
OTHERS = ("error", "background")
INSTANCES = ("sparse", "dense")
MOST_STEP = 2**16
MOST_CLASSES = 2**16


def plain_reading(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of reading that have a value, as JSON holds them.

    Raises:
        ConfigError: an entry is none of ``READING``, or cannot be right.

    Example:
        >>> plain_reading({"step": 2, "fill": None, "intensity": (0, 255)})
        {'step': 2, 'intensity': [0, 255]}
    """
    for name in reading:
        if name not in READING:
            raise ConfigError(f"{option('reading')}: unknown entry {name!r}; {did_you_mean(name, READING)}")
    given = {name: value for name, value in reading.items() if value is not None}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(given, default=lambda value: value.item()))
        parse_reading(plain)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{option('reading')}: cannot be right ({reason(error)}); correct the entry"
        ) from error
    return plain


def parse_reading(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of reading that a file states and that have a value.

    Raises:
        ValueError: one of them cannot be right.

    Example:
        >>> parse_reading({"step": 2, "intensity": [0, 255], "anything": None})
        {'step': 2, 'plane': 'z', 'intensity': (0.0, 255.0)}
    """
    intensity, fill, values = (stated.get(name) for name in ("intensity", "fill", "label_values"))
    found = {
        "step": stated.get("step", 1),
        "plane": stated.get("plane", "z"),  # not in exports of before
        "intensity": None if intensity is None else tuple(map(_number, intensity)),
        "fill": None if fill is None else _number(fill),
        "label_values": None if values is None else tuple(values),
        # Not in exports.
        **{name: stated.get(name) for name in ("other_labels", "ignore_label", "instances")},
    }
    step, values = found["step"], found["label_values"] or ()
    sound = {
        "step": type(step) is int and 1 <= step <= MOST_STEP,
        "plane": found["plane"] in PLANES,
        "intensity": intensity is None or (len(intensity) == 2 and intensity[0] < intensity[1]),
        "label_values": len(set(values)) == len(values) <= MOST_CLASSES
        and all(type(value) is int for value in values),
        "other_labels": found["other_labels"] in (None, *OTHERS),
        "ignore_label": found["ignore_label"] is None or type(found["ignore_label"]) is int,
        "instances": found["instances"] in (None, *INSTANCES),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise ValueError(f"{name} {found[name]!r:.40}")
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)
