"""Studies made up for the tests of their page: arms of known bias and Dice, plausible logs, blobs to look at."""

from __future__ import annotations

import csv
import json
from hashlib import sha256
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evenslice._core.files import json_text
from evenslice.results import METRICS, StudyPlan, StudySummary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


Floats: TypeAlias = NDArray[np.float64]

ARMS: Mapping[str, tuple[float, float]] = {
    "pretrained": (-0.19, 0.0),
    "random": (0.015, -0.081),
    "uniform": (-0.001, 0.002),
    "mirror": (0.004, 0.003),
    "center": (-0.006, -0.007),
    "uniform tied to mirror": (0.0, 0.001),
}
"""Directional bias of each arm, and what it adds to Dice."""

LABELS = ("dataset", "architecture", "arm", "fold", "seed")


def make_study(  # one for each choice
    folder: Path,
    *,
    comparisons: Sequence[tuple[str, str]] = (("Lucchi++", "EfficientNet-Lite0 U-Net"),),
    arms: Mapping[str, tuple[float, float]] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    folds: Sequence[int] = (0,),
    slices: int = 3,
    baseline: str = "pretrained",
    primary: tuple[str, str, float] | None = None,
    failed: Sequence[Mapping[str, Any]] = (),
    size: int = 96,
) -> Path:
    """Write the folder of a study, with all files that runs leave for its page; ISBI 2012 has boundary labels."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for dataset, architecture in comparisons:
        for index, (arm, (bias, gain)) in enumerate(arms.items()):
            for fold, seed in product(folds, seeds):
                labels = dict(zip(LABELS, (dataset, architecture, arm, fold, seed), strict=True))
                key = sha256(json.dumps(labels).encode()).hexdigest()[:12]
                random = np.random.default_rng([seed, index, len(dataset), *([fold] if fold else [])])
                record = _record(labels, key, bias, gain, slices, random)
                _write_run(folder / "runs" / f"run-{seed}-{key}", record, bias, slices, size, random)
                records.append(record)
    planned = len(records) + len(failed)
    plan = StudyPlan(baseline, 0.01, primary=primary)
    summary = StudySummary.of_runs(records, failed, planned, plan).to_dict()
    (folder / "summary.json").write_text(json_text(summary), encoding="utf-8")
    (folder / "config.yaml").write_text("seeds: [0, 1, 2]\nslices: 3\ntraining:\n  steps: 300\n")
    _write_table(folder / "results.csv", records, failed)
    return folder


def _record(
    labels: dict[str, Any],
    key: str,
    bias: float,
    gain: float,
    slices: int,
    random: np.random.Generator,
) -> dict[str, Any]:
    seed, boundaries = labels["seed"], labels["dataset"] == "ISBI 2012"
    found = bias + 0.02 * bias * random.standard_normal() + 0.002 * random.standard_normal() * (bias != 0)
    dice = 0.8 + gain + 0.01 * np.sin(seed) + 0.002 * random.standard_normal() + 0.02 * np.sin(labels["fold"])
    shares = make_shares(found, slices)
    figures = {
        "dice": dice,
        "iou": dice / (2 - dice),
        "hd95": 12 - 5 * dice + random.random(),
        "surface_dice": dice - 0.1,
        "adapted_rand_error": 1 - dice if boundaries else None,
        "variation_of_information": 3 - dice if boundaries else None,
        "balanced_accuracy": None,
        "accuracy": None,
        "macro_f1": None,
        "directional_bias": found,
        "absolute_bias": abs(found),
        "largest_bias": abs(found),
        "reliance": abs(found) / 3,
        "asymmetry": float(np.abs(shares - shares[::-1]).sum() / 2),
        "imbalance": float(np.abs(shares - 1 / slices).sum() / 2),
        "mirror_error": 3 * abs(found) + 2e-7,
        "mirror_disagreement": abs(found) / 5,
        "answer_change": abs(found) / 2,
        "mirror_mismatch": min(3 * abs(found), 1.0),
    }
    assert set(figures) == set(METRICS)
    return {
        **labels,
        "key": key,
        "status": "done",
        "error": None,
        **figures,
        "answer_of": "classes",
        "definitions": 2,
        "verdict": "biased" if abs(found) > 0.05 else "symmetric",
        "shares": shares.tolist(),
        "windows": 96,
        "steps": 300,
        "seconds": 320.5 + 10 * seed,
        **_missing(dice, found),
    }


def _missing(dice: float, bias: float) -> dict[str, float]:
    lost = {"intact": 0.0, "before": 0.03 * (1 - bias), "after": 0.03 * (1 + bias), "both": 0.06}
    return {f"stress_{name}": dice - loss for name, loss in {**lost, "reversed": abs(bias) / 10}.items()}


def make_shares(bias: float, slices: int) -> Floats:
    """Return shares that lean by a bias, with a middle slice that is favoured a little."""
    offsets = np.arange(slices) - slices // 2
    shares = np.where(offsets == 0, 1.3, 1 + bias * np.sign(offsets))
    return np.asarray(shares / shares.sum())


def _write_run(
    folder: Path,
    record: Mapping[str, Any],
    bias: float,
    slices: int,
    size: int,
    random: np.random.Generator,
) -> None:
    (folder / "log").mkdir(parents=True)
    (folder / "run.json").write_text(json_text(record), encoding="utf-8")
    result = {
        "created": "2026-01-02T03:04:05.678+00:00",
        "machine": {"platform": "Linux", "device": "cpu", "dtype": "bfloat16", "threads": 1},
        "versions": {"python": "3.13.1", "torch": "2.9.0"},
        "dice": {"mean": record["dice"]},
        "stress": _stress(record["dice"], bias, slices // 2, np.random.default_rng(5)),
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    _write_log(folder / "log" / "metrics.csv", record["dice"], bias, slices, random)
    np.savez_compressed(folder / "example.npz", **_example(size, record))


def _stress(dice: float, bias: float, pairs: int, random: np.random.Generator) -> dict[str, Any]:
    """Make losses that lean to the side of the bias."""
    losses = []
    for kind, size in (("missing", 0.03), ("blank", 0.12), ("noisy", 0.01), ("shifted", 0.06)):
        for k in range(1, pairs + 1):
            before, after = (size / k * (1 + side * bias) * random.uniform(0.9, 1.1) for side in (-1, 1))
            asymmetry = {
                "estimate": before - after,
                "low": before - after - 0.01,
                "high": before - after + 0.01,
            }
            sides = {"before": dice - before, "after": dice - after, "both": dice - before - after}
            losses.append({"kind": kind, "offset": k, **sides, "asymmetry": asymmetry})
    reverse = dice - abs(bias) / 10
    return {"reference": "labels", "slices": 40, "intact": dice, "reversed": reverse, "losses": losses}


def _write_log(path: Path, dice: float, bias: float, slices: int, random: np.random.Generator) -> None:
    half = slices // 2
    columns = ["step", "loss", "learning_rate", "seconds", "validation_dice"]
    columns += [*(f"share_{k}" for k in range(-half, half + 1)), "directional_bias", "asymmetry", "imbalance"]
    with path.open("w", newline="", encoding="utf-8") as file:
        log = csv.DictWriter(file, columns, lineterminator="\n")
        log.writeheader()
        for step in range(0, 301, 10):
            row: dict[str, Any] = {"step": step}
            if step:
                loss = 0.3 + 1.2 * np.exp(-step / 70) + 0.03 * random.standard_normal()
                row |= {"loss": loss, "learning_rate": 1e-3, "seconds": step / 2}
            if step and step % 50 == 0:
                row["validation_dice"] = dice * (1 - np.exp(-step / 60)) + 0.01 * random.standard_normal()
            if step % 50 == 0:
                shares = make_shares(bias * (0.7 + 0.3 * np.exp(-step / 100)), slices)
                row |= {f"share_{k}": shares[k + half] for k in range(-half, half + 1)}
                row |= {"directional_bias": bias, "asymmetry": 0.0, "imbalance": 0.1}
            log.writerow(row)


def _example(size: int, record: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """Make grainy blobs with a dark rim, and a prediction whose errors grow with the loss of Dice."""
    random = np.random.default_rng(7)
    shape = (size, round(size * 0.8))
    blobs = ndimage.gaussian_filter(random.standard_normal(shape), size / 16)
    blobs /= blobs.std()
    grain = random.standard_normal(shape)
    image = 150 - 50 * np.clip(blobs, 0, 1.5) + 14 * grain - 60 * np.exp(-((blobs - 0.8) ** 2) / 0.01)
    own = np.random.default_rng(int(1000 * record["dice"]))
    error = ndimage.gaussian_filter(own.standard_normal(shape), size / 24)
    predicted = blobs + error / error.std() * 2 * (0.9 - record["dice"]) > 0.8
    return {
        "image": np.clip(image, 0, 255).astype(np.uint8),
        "labels": (blobs > 0.8).astype(np.uint8),
        "predicted": predicted.astype(np.uint8),
    }


def _write_table(
    path: Path, records: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]]
) -> None:
    columns = [*LABELS, "dice", "iou", "directional_bias", "key", "status", "error"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(records)
        table.writerows({"key": "0" * 12, "status": "failed", **record} for record in failed)
