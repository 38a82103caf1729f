"""The MNI152 template that comes with nilearn: a real MRI volume for demonstrations and examples, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, did_you_mean, needs_extra, option
from evenslice.volumes.opening import open_volume

if TYPE_CHECKING:
    from evenslice.volumes.volume import Volume

MAPS = ("t1", "gm", "wm")


def mni152() -> Volume:
    """Open the MNI152 T1 template: 189 x 233 x 197 voxels of 1 mm.

    Raises:
        MissingExtraError: nilearn is not installed.

    Example:
        >>> volume = mni152()
        >>> volume.shape, volume.spacing
        ((189, 233, 197), (1.0, 1.0, 1.0))
    """
    return open_volume(mni152_path("t1"))


def mni152_path(name: str) -> Path:
    """Return the path of a map of the template: "t1", or "gm" or "wm" for the fraction of gray or white matter, 0..255.

    Raises:
        ConfigError: there is no map of this name.
        MissingExtraError: nilearn is not installed.

    Example:
        >>> open_volume(mni152_path("gm")).shape
        (189, 233, 197)
    """
    if name not in MAPS:
        raise ConfigError(f"{option('name', name)}: {did_you_mean(name, MAPS)}")
    with needs_extra("demo", "the demonstration volume"):
        import nilearn
    folder = Path(str(nilearn.__file__)).parent / "datasets" / "data"
    return folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
