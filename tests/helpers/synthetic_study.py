"""Studies made up for the tests of their page: arms of known bias and Dice, plausible logs, disks to look at."""

import csv
import json
from hashlib import sha256
from itertools import product

import numpy as np

from evenslice._core.files import json_text
from evenslice.results import StudyPlan, StudySummary

ARMS = {
    "pretrained": (-0.19, 0.0),
    "random": (0.015, -0.081),
    "uniform": (-0.001, 0.002),
    "mirror": (0.004, 0.003),
    "center": (-0.006, -0.007),
    "uniform tied to mirror": (0.0, 0.001),
}
"""Directional bias of each arm, and what it adds to Dice."""

LABELS = ("dataset", "architecture", "arm", "fold", "seed")
STEPS = range(0, 301, 10)


def make_study(
    folder,
    *,
    comparisons=(("Lucchi++", "EfficientNet-Lite0 U-Net"),),
    arms=ARMS,
    seeds=(0, 1, 2),
    folds=(0,),
    slices=3,
    baseline="pretrained",
    primary=None,
    failed=(),
    size=96,
):
    """Write the folder of a study, with all files that runs leave for its page; ISBI 2012 has boundary labels."""
    records = []
    for (dataset, architecture), (index, arm) in product(comparisons, enumerate(arms)):
        for fold, seed in product(folds, seeds):
            labels = dict(zip(LABELS, (dataset, architecture, arm, fold, seed), strict=True))
            random = np.random.default_rng([seed, index, len(dataset), *([fold] if fold else [])])
            record = _record(labels, *arms[arm], slices, random)
            _write_run(folder / "runs" / f"run-{seed}-{record['key']}", record, size)
            records.append(record)
    folder.mkdir(parents=True, exist_ok=True)
    planned = len(records) + len(failed)
    plan = StudyPlan(baseline, 0.01, primary=primary)
    summary = StudySummary.of_runs(records, failed, planned, plan).to_dict()
    (folder / "summary.json").write_text(json_text(summary), encoding="utf-8")
    (folder / "config.yaml").write_text("seeds: [0, 1, 2]\nslices: 3\ntraining:\n  steps: 300\n")
    columns = [*LABELS, "dice", "iou", "directional_bias", "key", "status", "error"]
    broken = [{"key": "0" * 12, "status": "failed", **item} for item in failed]
    _write_csv(folder / "results.csv", columns, [*records, *broken])
    return folder


def _record(labels, bias, gain, slices, random):
    found = bias + 0.02 * bias * random.standard_normal() + 0.002 * random.standard_normal() * (bias != 0)
    dice = 0.8 + gain + 0.01 * np.sin(labels["seed"]) + 0.002 * random.standard_normal()
    dice += 0.02 * np.sin(labels["fold"])
    shares = make_shares(found, slices)
    boundaries = labels["dataset"] == "ISBI 2012"
    figures = {
        "dice": dice,
        "iou": dice / (2 - dice),
        "hd95": 12 - 5 * dice + random.random(),
        "surface_dice": dice - 0.1,
        "adapted_rand_error": 1 - dice if boundaries else None,
        "variation_of_information": 3 - dice if boundaries else None,
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
    lost = {"intact": 0, "before": 0.03 * (1 - found), "after": 0.03 * (1 + found), "both": 0.06}
    return {
        **labels,
        "key": sha256(json.dumps(labels).encode()).hexdigest()[:12],
        "status": "done",
        "error": None,
        **figures,
        "answer_of": "classes",
        "definitions": 2,
        "verdict": "biased" if abs(found) > 0.05 else "symmetric",
        "shares": shares.tolist(),
        "windows": 96,
        "steps": 300,
        "seconds": 320.5 + 10 * labels["seed"],
        **{f"stress_{name}": dice - loss for name, loss in {**lost, "reversed": abs(found) / 10}.items()},
    }


def make_shares(bias, slices):
    """Return shares that lean by a bias, with a middle slice that is favoured a little."""
    offsets = np.arange(slices) - slices // 2
    shares = np.where(offsets == 0, 1.3, 1 + bias * np.sign(offsets))
    return shares / shares.sum()


def _write_run(folder, record, size):
    (folder / "log").mkdir(parents=True)
    (folder / "run.json").write_text(json_text(record), encoding="utf-8")
    result = {
        "created": "2026-01-02T03:04:05.678+00:00",
        "machine": {"platform": "Linux", "device": "cpu", "dtype": "bfloat16", "threads": 1},
        "versions": {"python": "3.13.1", "torch": "2.9.0"},
        "dice": {"mean": record["dice"]},
        "stress": _stress(record["dice"], record["directional_bias"], len(record["shares"]) // 2),
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    shares = {f"share_{k - len(record['shares']) // 2}": share for k, share in enumerate(record["shares"])}
    rows = [
        {"step": step}
        | ({"loss": 0.3 + 1.2 * np.exp(-step / 70)} if step else {})
        | ({"validation_dice": record["dice"] * (1 - np.exp(-step / 60))} if step and step % 50 == 0 else {})
        | (shares if step % 50 == 0 else {})
        for step in STEPS
    ]
    _write_csv(folder / "log" / "metrics.csv", ["step", "loss", "validation_dice", *shares], rows)
    np.savez_compressed(folder / "example.npz", **_example(size, record["dice"]))


def _stress(dice, bias, pairs):
    """Make losses that lean to the side of the bias."""
    losses = []
    for (kind, size), k in product(
        {"missing": 0.03, "blank": 0.12, "noisy": 0.01, "shifted": 0.06}.items(), range(1, pairs + 1)
    ):
        before, after = size / k * (1 - bias), size / k * (1 + bias)
        asymmetry = {"estimate": before - after, "low": before - after - 0.01, "high": before - after + 0.01}
        sides = {"before": dice - before, "after": dice - after, "both": dice - before - after}
        losses.append({"kind": kind, "offset": k, **sides, "asymmetry": asymmetry})
    reverse = dice - abs(bias) / 10
    return {"reference": "labels", "slices": 40, "intact": dice, "reversed": reverse, "losses": losses}


def _example(size, dice):
    """Make a grainy disk, and a prediction whose error grows with the loss of Dice."""
    rows, columns = np.ogrid[:size, : round(size * 0.8)]
    distance = np.hypot(rows - size / 2, columns - size * 0.4) / size
    image = 100 + 60 * (distance < 0.25) + 14 * np.random.default_rng(7).standard_normal(distance.shape)
    parts = {"image": image, "labels": distance < 0.25, "predicted": distance < 0.25 + 0.2 * (0.9 - dice)}
    return {name: part.astype(np.uint8) for name, part in parts.items()}


def _write_csv(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
