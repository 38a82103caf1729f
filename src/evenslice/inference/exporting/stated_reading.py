"""How a network reads volumes, as the file or folder that it was exported to says; the file may come from anywhere.

    stated_reading("onnx", "mitochondria/network.onnx")    {"step": 2, "plane": "z", "intensity": (0.0, 255.0)}

What ``evenslice export`` did not write is left out, and what is damaged is an error.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import UNREADABLE, ModelError, read_bounded, reason
from evenslice.inference.exporting.description import LIBRARY, PLANES
from evenslice.inference.onnx_networks import MOST_METADATA, ONNX, open_session
from evenslice.networks import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["stated_reading"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MOST_STEP = 2**16
MOST_CLASSES = 2**16

NO_FILES = ("imagenet", "none")


def stated_reading(spec: str | None, weights: str | None) -> dict[str, Any]:
    """Return how a network reads volumes, as ``evenslice export`` wrote it beside the network.

    Args:
        spec: "onnx"; a folder for Hugging Face, without weights; or any other specification.
        weights: the ONNX file; a folder for Hugging Face; or any other weights.

    Returns:
        Those of ``step``, ``plane``, ``intensity``, ``fill`` and ``label_values`` that are stated; nothing for a
        network that evenslice has not exported.

    Raises:
        ModelError: what is stated is damaged; or see ``load_onnx``.

    Example:
        >>> stated_reading("timm:resnet18", "imagenet")
        {}
    """
    if spec is None or weights in NO_FILES:
        return {}
    place = Path(spec if weights is None else weights)
    try:
        stated = _metadata(place) if spec == ONNX else _configuration(place)
        return {} if stated is None else _parsed(stated)
    except UNREADABLE as error:
        raise ModelError(
            f"{place}: its description of how it reads volumes is damaged ({reason(error)}); export the network again"
        ) from error


def _metadata(file: Path) -> Any:
    text = open_session(file, optimized=False).get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is not None and len(text) > MOST_METADATA:
        raise ValueError(f"{len(text):,} characters")
    return None if text is None else json.loads(text)


def _configuration(folder: Path) -> Any:
    """Return the description in a folder that evenslice exported, given it or its file of weights; None for any other."""
    folder = folder.parent if folder.name == WEIGHTS else folder
    if not (folder / CONFIG).is_file():
        return None
    stated = json.loads(read_bounded(folder / CONFIG, MOST_METADATA))
    return stated if isinstance(stated, dict) and stated.get("library_name") == LIBRARY else None


def _parsed(stated: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "step": stated["step"],
        "plane": stated.get("plane", "z"),  # not in files of before
        "intensity": None if stated["intensity"] is None else tuple(map(_number, stated["intensity"])),
        "fill": None if stated["fill"] is None else _number(stated["fill"]),
        "label_values": None if stated["label_values"] is None else tuple(stated["label_values"]),
    }
    if type(found["step"]) is not int or not 1 <= found["step"] <= MOST_STEP:
        raise ValueError(f"step {found['step']!r:.40}")
    if found["plane"] not in PLANES:
        raise ValueError(f"plane {found['plane']!r:.40}")
    if found["intensity"] is not None and len(found["intensity"]) != 2:
        raise ValueError(f"intensity {found['intensity']!r:.40}")
    values = found["label_values"] or ()
    if len(values) > MOST_CLASSES or any(type(value) is not int for value in values):
        raise ValueError(f"label_values {values!r:.40}")
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)
