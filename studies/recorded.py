"""What is noted of single trainings and of the machine, for docs/results.md."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paging import table

from evenslice._core.machine import package_versions

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["describe_machine", "describe_training", "segmenter_table", "training_table"]

PACKAGES = ("evenslice", "torch", "lightning", "monai", "timm", "segmentation-models-pytorch", "torchvision")


def describe_training(run: Path) -> dict[str, Any]:
    """Say what one training gave, without paths that belong to one machine alone.

    Args:
        run: the folder that ``evenslice train`` wrote.
    """
    found = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return {
        "command": found["command"],
        "model": {name: found["config"]["model"][name] for name in ("spec", "slices", "strategy")},
        "data": found["name"],
        "steps": found["steps"],
        "seconds": found["seconds"],
        "dice": found["dice"]["mean"],
        "iou": found["iou"]["mean"],
        "directional_bias": found["bias"] and found["bias"]["directional_bias"],
        "versions": found["versions"],
    }


def training_table(trainings: Iterable[dict[str, Any]]) -> str:
    """Return what single trainings gave, a row for each."""
    header = ("command", "slices", "start", "steps", "minutes", "Dice", "IoU", "directional bias")
    return table(header, (_training_row(training) for training in trainings))


def _training_row(training: dict[str, Any]) -> list[str]:
    return [
        f"`{training['command']}`",
        str(training["model"]["slices"]),
        training["model"]["strategy"],
        str(training["steps"]),
        f"{training['seconds'] / 60:.1f}",
        f"{training['dice']:.3f}",
        f"{training['iou']:.3f}",
        _signed(training["directional_bias"]),
    ]


SEGMENTERS = {
    "evenslice": ("evenslice", "U-Net on EfficientNet-Lite0, pretrained, 3 slices"),
    "biapy": ("BiaPy", "2-D attention U-Net"),
    "monai": ("MONAI", "3-D U-Net"),
    "nnunet": ("nnU-Net", "2d configuration"),
}


def segmenter_table(found: Iterable[dict[str, Any]]) -> str:
    """Return what several tools made of the same data, from the lines that ``benchmarks/segmenters.py`` printed."""
    header = ("tool", "network", "trained for", "minutes of training", "minutes of prediction", "IoU", "Dice")
    return table(header, (_segmenter_row(line) for line in found))


def _segmenter_row(line: dict[str, Any]) -> list[str]:
    name, network = SEGMENTERS[line["tool"]]
    unit = "epochs" if "epochs" in line else "steps"
    return [
        f"{name} {line['version']}",
        f"{network}, {line['start']}" if "start" in line else network,
        f"{line[unit]} {unit}",
        *(f"{line[part] / 60:.1f}" for part in ("training", "prediction")),
        *(f"{line[score]:.3f}" for score in ("iou", "dice")),
    ]


def describe_machine() -> dict[str, Any]:
    """Say what machine this is, without names that belong to it alone."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(PACKAGES),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+z.3f}".replace("-", "\N{MINUS SIGN}")
