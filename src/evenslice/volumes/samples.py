"""Real volumes that Python packages bring, for demonstrations and examples: no internet, no files of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import needs_extra
from evenslice.volumes.opening import open_volume

if TYPE_CHECKING:
    from evenslice.volumes.volume import Volume

__all__ = ["mni152", "template_path"]


def mni152() -> Volume:
    """Open the MNI152 T1 template that comes with nilearn: real MRI, 189 x 233 x 197 voxels of 1 mm.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    return open_volume(template_path("t1"))


def template_path(name: str) -> Path:
    """Return the path of a map of the template: "t1", or the share of "gm" or "wm" in each voxel, 0..255."""
    with needs_extra("demo", "the demonstration volume"):
        import nilearn
    folder = Path(str(nilearn.__file__)).parent / "datasets" / "data"
    return folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
