"""How a network reads volumes, as the file or folder that holds it says; the file may come from anywhere.

    stated_reading("onnx", "mitochondria/network.onnx")    Reading(step=2, plane="z", intensity=(0.0, 255.0), ...)

What evenslice did not write is left out, and what is damaged is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evenslice._core import UNREADABLE, ModelError, read_bounded, reason
from evenslice.inference.exporting.description import LIBRARY
from evenslice.inference.onnx_networks import MOST_METADATA, ONNX, open_session
from evenslice.networks import METADATA_KEY, NO_FILES, read_metadata
from evenslice.volumes import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["stated_crop", "stated_reading"]

_T = TypeVar("_T")
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def stated_reading(spec: str | None, weights: str | None) -> Reading | None:
    """Return how a network reads volumes, as ``evenslice export`` or ``save_network`` wrote it with the network.

    Args:
        spec: "onnx"; a folder for Hugging Face or a file of ``save_network``, without weights; or any other
            specification.
        weights: the ONNX file; such a folder or file; or any other weights.

    Returns:
        What is stated, and defaults for the rest; None for a network that evenslice has neither exported nor saved.

    Raises:
        ModelError: what is stated is damaged; or see ``load_onnx``.

    Example:
        >>> print(stated_reading("timm:resnet18", "imagenet"))
        None
    """
    return _parsed(spec, weights, Reading.from_plain)


def stated_crop(spec: str | None, weights: str | None) -> tuple[int, int] | None:
    """Return the size (y, x) of the windows that a classifier was trained on, as ``evenslice export`` wrote it with the network.

    Args:
        spec: as for ``stated_reading``.
        weights: likewise.

    Returns:
        The size; None if it is not stated, or for an ONNX file, whose graph takes one size alone.

    Raises:
        ModelError: see ``stated_reading``.

    Example:
        >>> print(stated_crop("timm:resnet18", "imagenet"))
        None
    """
    return None if spec == ONNX else _parsed(spec, weights, _crop)


def _crop(stated: Mapping[str, Any]) -> tuple[int, int] | None:
    crop = stated.get("crop")
    if crop is None:
        return None
    if not (type(crop) is list and len(crop) == 2 and all(type(side) is int and side > 0 for side in crop)):
        raise ValueError(f"crop {crop!r:.40}")
    return crop[0], crop[1]


def _parsed(
    spec: str | None, weights: str | None, parse: Callable[[Mapping[str, Any]], _T | None]
) -> _T | None:
    """Return what is made of the description of a network; None if there is none."""
    if spec is None or weights in NO_FILES:
        return None
    place = Path(spec if weights is None else weights)
    try:
        stated = _metadata(place) if spec == ONNX else _saved(place) or _configuration(place)
        return None if stated is None else parse(stated)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise ModelError(
                f"{place}: cannot be read ({error.strerror}); check the path, or that you may read it"
            ) from error
        raise ModelError(
            f"{place}: its description of how it reads volumes is damaged ({reason(error)}); export the network again, or save "
            "it again"
        ) from error


def _metadata(file: Path) -> Any:
    text = open_session(file, optimized=False).get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is not None and len(text) > MOST_METADATA:
        raise ValueError(f"{len(text):,} characters")
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
