"""The main job on real weights and a real volume, offline: both come with Python packages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evenslice.compare import audit_strategies
from evenslice.errors import needs_extra
from evenslice.volumes import open_volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.results import Audit
    from evenslice.volumes import Volume

__all__ = ["SPEC", "mni152", "run_demo"]

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
MOST_WINDOWS = 160
CASES = (("pretrained", 3), ("uniform", 3), ("mirror", 3), ("center", 3), ("pretrained", 5))


def mni152() -> Volume:
    """Open the MNI152 T1 template that comes with nilearn: real MRI, 189 x 233 x 197 voxels of 1 mm.

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    with needs_extra("demo", "the demonstration volume"):
        import nilearn
    folder = Path(str(nilearn.__file__)).parent / "datasets" / "data"
    return open_volume(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")


def run_demo(*, seed: int = 0, command: str | None = None) -> Iterator[Audit]:
    """Audit a U-Net on EfficientNet-Lite0 as everyone builds it, after three strategies, and with five slices.

    Yields:
        The audits, one at a time, each as soon as it is done.
    """
    volume = mni152()
    for strategy, slices in CASES:
        name = strategy if slices == 3 else f"{strategy}, {slices} slices"
        (audit,) = audit_strategies(
            SPEC,
            "imagenet",
            volume,
            strategies=[strategy],
            network={"slices": slices, "seed": seed},
            command=command,
            seed=seed,
            max_windows=MOST_WINDOWS,
        )
        yield audit.renamed(name)
