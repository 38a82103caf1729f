"""The main job on real weights and a real volume, offline: both come with Python packages.

First the audits: a U-Net as everyone builds it, and after each of three strategies. Then the training: the same network
learns to tell gray from white matter, from a pretrained, a fair and a random start.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import needs_extra
from evenslice.cli.comparison import audit_strategies
from evenslice.results import load_study
from evenslice.volumes import mni152, open_volume, template_path, write_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from evenslice.auditing import Audit
    from evenslice.results import StudyResults
    from evenslice.studying import StudyConfig

__all__ = ["SPEC", "run_demo", "train_demo"]

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
MOST_WINDOWS = 160
CASES = (("pretrained", 3), ("uniform", 3), ("mirror", 3), ("center", 3), ("pretrained", 5))

ARMS = ("pretrained", "uniform", "random")
STEPS = 120
TRAINED, TESTED = (30, 105), (108, 132)  # slices; no window sees both
LABELS = "labels.nii.gz"


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


def train_demo(
    folder: Path,
    *,
    seed: int = 0,
    force: bool = False,
    on_finished: Callable[[dict[str, object], int, int], None] | None = None,
) -> StudyResults:
    """Train the U-Net for a short while to tell gray from white matter: pretrained, uniform and random.

    Args:
        folder: for what ``study`` writes, and the labels.
        seed: of everything that is drawn.
        force: do again what an earlier demonstration left there.
        on_finished: called after each run, see ``study``.

    Returns:
        What was found, and how the networks came to it.
    """
    with needs_extra("train", "the training part of the demonstration"):
        from evenslice.studying import study

    if force and (folder / LABELS).exists():
        shutil.rmtree(folder / "runs", ignore_errors=True)
    _write_labels(folder / LABELS)
    study(_study_config(folder, seed), folder, on_finished=on_finished)
    return load_study(folder)


def _write_labels(path: Path) -> None:
    """Write the likeliest of background (0), gray matter (1) and white matter (2)."""
    gray, white = (open_volume(template_path(name))[...].astype(np.int16) for name in ("gm", "wm"))
    labels = np.stack([255 - gray - white, gray, white]).argmax(0).astype(np.uint8)
    write_volume(open_volume(labels), path, like=mni152(), labels=True, force=True)


def _study_config(folder: Path, seed: int) -> StudyConfig:
    from evenslice.studying import StudyConfig

    image, labels = str(template_path("t1")), str((folder / LABELS).absolute())
    train, test = ({"image": image, "labels": labels, "slices": part} for part in (TRAINED, TESTED))
    return StudyConfig.model_validate(
        {
            "seeds": [seed],
            "training": {
                "steps": STEPS,
                "crop": [128, 128],
                "learning_rate": 1e-3,  # so few steps have to be large ones
                "validate_every": 40,
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
            "audit": {"precision": 0.02, "max_windows": 40},
        }
    )
