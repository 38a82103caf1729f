"""Sample data of the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice.volumes import mni152

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["open_mni152"]


def open_mni152() -> list[tuple[NDArray[Any], dict[str, Any], str]]:
    """Return the MNI152 T1 template as data of an image layer (z, y, x).

    Raises:
        MissingExtraError: nilearn, which ships it, is not installed.
    """
    volume = mni152()
    # The file does not say its unit; the template's voxels are of 1 mm.
    options = {"name": "MNI152 T1", "scale": volume.spacing, "units": (volume.unit or "mm",) * 3}
    return [(volume[...], options, "image")]
