"""The demonstration: pretrained weights and a real volume, both of which come with Python packages, so it works offline.

It audits a U-Net as commonly built and after each of three strategies. Then it trains the same network to tell gray
from white matter, from a pretrained, a fair and a random start.
"""

from __future__ import annotations

import shutil
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import EvensliceError, OutputError, needs_extra, option
from evenslice.auditing import Sampling, audit
from evenslice.cli.comparison import audit_strategies
from evenslice.cli.options import Network
from evenslice.report import need_report_extra
from evenslice.results import load_study
from evenslice.volumes import mni152, mni152_path, open_volume, write_volume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.auditing import Audit
    from evenslice.results import StudyResults
    from evenslice.studying import StudyConfig

__all__ = ["SPEC", "check_training", "need_demo_extras", "run_demo", "train_demo"]

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
MOST_WINDOWS = 160
CASES = (("pretrained", 3), ("uniform", 3), ("mirror", 3), ("twin", 3), ("pretrained", 5))

ARMS = ("pretrained", "twin", "random")
# So few that what was learned from photographs counts; after twice as many, a random start is as good.
STEPS = 60
TRAINED, TESTED = (30, 105), (108, 132)  # slices; no window reads both
LABELS = "labels.nii.gz"


def need_demo_extras() -> None:
    """Check that all of the demonstration can run: its training comes after minutes of audits.

    Raises:
        MissingExtraError: a package is missing.
    """
    need_report_extra("the demonstration")
    with needs_extra("train", "the training part of the demonstration"):
        import_module("evenslice.studying")


def run_demo(*, seed: int = 0, command: str | None = None) -> Iterator[Audit]:
    """Audit a U-Net on EfficientNet-Lite0 as commonly built, after three strategies, and with five slices.

    Yields:
        Each audit as soon as it is done.
    """
    measure = partial(audit, volume=mni152())
    sampling = Sampling(max_windows=MOST_WINDOWS, seed=seed)
    for strategy, slices in CASES:
        name = strategy if slices == 3 else f"{strategy}, {slices} slices"
        network = Network(spec=SPEC, weights="imagenet", slices=slices)
        (found,) = audit_strategies(
            network, measure, strategies=[strategy], sampling=sampling, command=command
        )
        yield found.renamed(name)


def train_demo(folder: Path, *, seed: int = 0, force: bool = False) -> StudyResults:
    """Train the U-Net briefly to tell gray from white matter, from a pretrained, a fair and a random start.

    Args:
        folder: for the labels and the output of ``study``.
        seed: random seed.
        force: replace what an earlier demonstration left there.

    Returns:
        The results, with the curves of the training.
    """
    from evenslice.studying import study

    if not _has_labels(folder):
        _write_labels(folder / LABELS, force=force)
    elif force:
        _remove_study(folder)
    study(_study_config(folder, seed), folder)
    return load_study(folder)


def check_training(folder: Path, *, force: bool) -> None:
    """Check, before minutes of audits, that the folder of the training may be written.

    Raises:
        OutputError: it is a file, holds files that no demonstration wrote, or another one is at work in it.
    """
    from evenslice.studying import working_in_study

    known = _has_labels(folder)
    if (folder / LABELS).exists() and not force and not known:
        raise OutputError(
            f"{folder / LABELS}: exists; choose another {option('out')}, or replace it with {option('force')}"
        )
    if folder.exists() and not (force and known):  # which would first be emptied
        with working_in_study(folder):
            pass


def _has_labels(folder: Path) -> bool:
    """Return whether a folder holds the labels that a demonstration left there; another file of that name is the user's."""
    try:
        return np.array_equal(open_volume(folder / LABELS)[...], _probable_classes())
    except EvensliceError:
        return False


def _remove_study(folder: Path) -> None:
    """Remove the study of an earlier demonstration, its files first: with runs alone, the folder is still a study's."""
    from evenslice.studying import STUDY_FILES

    for name in STUDY_FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "runs", ignore_errors=True)


def _probable_classes() -> NDArray[np.uint8]:
    """Return the most probable class of each voxel: background (0), gray matter (1) or white matter (2)."""
    gray, white = (open_volume(mni152_path(name))[...].astype(np.int16) for name in ("gm", "wm"))
    classes: NDArray[np.uint8] = np.stack([255 - gray - white, gray, white]).argmax(0).astype(np.uint8)
    return classes


def _write_labels(path: Path, *, force: bool) -> None:
    write_volume(open_volume(_probable_classes()), path, like=mni152(), labels=True, force=force)


def _study_config(folder: Path, seed: int) -> StudyConfig:
    from evenslice.studying import StudyConfig

    image, labels = str(mni152_path("t1")), str((folder / LABELS).absolute())
    train, test = ({"image": image, "labels": labels, "slices": part} for part in (TRAINED, TESTED))
    return StudyConfig.model_validate(
        {
            "seeds": [seed],
            "training": {
                "steps": STEPS,
                "crop": [96, 96],
                "learning_rate": 1e-3,  # few steps have to be large
                "validate_every": 20,
                "monitor_every": 20,
            },
            "arms": [{"name": name, "strategy": name} for name in ARMS],
            "architectures": [{"name": "EfficientNet-Lite0 U-Net", "spec": SPEC}],
            "datasets": [
                {
                    "name": "MNI152",
                    "classes": 3,
                    "train": [train],
                    "test": [test],
                    "validation_fraction": 0.1,
                }
            ],
            "audit": {"precision": 0.02, "max_windows": 60},
        }
    )
