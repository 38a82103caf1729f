"""Which format a volume at an address has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from evenslice._core import VolumeError
from evenslice.volumes.read.n5 import ATTRIBUTES
from evenslice.volumes.read.pieces import Pieces, read_json_object
from evenslice.volumes.read.precomputed import INFO

if TYPE_CHECKING:
    from evenslice.volumes.read.places import Place

__all__ = ["remote_kind"]

_NAMED = re.compile(r"\.(zarr|n5|precomputed)(?:/|$)", re.IGNORECASE)


def remote_kind(place: Place) -> str:
    """Return "zarr", "n5" or "precomputed": by the names in the address, else by the metadata that is there.

    Raises:
        VolumeError: the server cannot be reached.
    """
    named = _NAMED.findall(str(place.location))
    if named:
        return str(named[-1]).lower()
    pieces = Pieces(place)
    for name, mark, kind in (
        (INFO, "scales", "precomputed"),
        (ATTRIBUTES, "dimensions", "n5"),
        (f"s0/{ATTRIBUTES}", "dimensions", "n5"),
    ):
        if mark in (_metadata(pieces, name) or {}):
            return kind
    return "zarr"


def _metadata(pieces: Pieces, name: str) -> dict[str, object] | None:
    """Return a JSON object at an address; None for anything else, such as a page that says that nothing is there."""
    try:
        return read_json_object(pieces, name)
    except VolumeError as error:
        if isinstance(error.__cause__, ValueError) or error.__cause__ is None:
            return None
        raise
