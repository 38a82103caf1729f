"""A study of classifiers: compared by their balanced accuracy, from the command to the report."""

import csv
import json
import re

import numpy as np
import pytest
from commands import run_command
from tiny_training import PAIR, study_options

NETWORKS = """
import torch
from torch import nn


def tiny():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight *= torch.tensor([1.0, 4.0, 0.2]).view(1, 3, 1, 1)
    return network
"""

PARTS = {
    name: [{**PAIR, "slices": slices}]
    for name, slices in {"train": [0, 12], "validation": [13, 17], "test": [18, 24]}.items()
}
OPTIONS = study_options(
    "",
    seeds=[0, 1],
    arms=[
        {"name": "pretrained", "strategy": "pretrained"},
        {"name": "symmetrized", "network_of": "pretrained", "symmetrize": "output"},
        {"name": "uniform"},
    ],
    architectures=[{"name": "tiny", "spec": "tiny_classifiers:tiny", "weights": "none"}],
    datasets=[{"name": "blobs", **PARTS}],
    primary={"arm": "uniform", "margin": 0.02},
)
OPTIONS["training"] |= {"task": "classification", "steps": 60, "batch": 8, "crop": [8, 8]}
OPTIONS["training"] |= {"learning_rate": 0.1, "validate_every": 30, "monitor_every": 30}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study that the command made, and what the command printed."""
    folder = tmp_path_factory.mktemp("classifying")
    (folder / "tiny_classifiers.py").write_text(NETWORKS)
    labels = np.broadcast_to(np.arange(32) // 16, (24, 32, 32)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 120, labels.shape)
    np.save(folder / "image.npy", (noise + 80 * labels).astype(np.uint8))
    np.save(folder / "labels.npy", labels)
    (folder / "study.yaml").write_text(json.dumps(OPTIONS))
    done = run_command("study", "study.yaml", "--out", "out", cwd=folder, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout, done.stderr


def test_runs_are_listed_with_the_scores_of_their_task(study):
    out, _, _ = study
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["status"]) for row in rows] == [
        (arm, seed, "done") for arm in ("pretrained", "symmetrized", "uniform") for seed in "01"
    ]
    assert [*rows[0]][5:8] == ["balanced_accuracy", "accuracy", "directional_bias"]
    assert not {"dice", "iou", "hd95", "stress_intact"} & rows[0].keys()
    for row in rows:
        (folder,) = (out / "runs").glob(f"*-{row['key']}")
        result = json.loads((folder / "result.json").read_text())
        assert float(row["accuracy"]) == pytest.approx(result["accuracy"])
        assert float(row["balanced_accuracy"]) == pytest.approx(result["balanced_accuracy"]["mean"])
        assert float(row["macro_f1"]) == pytest.approx(result["macro_f1"]["mean"])
        assert not (folder / "example.npz").exists()


def test_arms_are_compared_by_balanced_accuracy(study):
    out, _, _ = study
    summary = json.loads((out / "summary.json").read_text())
    assert summary["score"] == "balanced_accuracy"
    (comparison,), (pooled,) = summary["comparisons"], summary["pooled"]
    means = [arm["figures"]["balanced_accuracy"]["estimate"] for arm in comparison["arms"]]
    assert min(means) > 0.7
    for uniform in (comparison["arms"][2], pooled["arms"][2]):
        found = uniform["differences"]["balanced_accuracy"]["estimate"]
        assert found == pytest.approx(means[2] - means[0])
        assert uniform["differences"]["dice"]["estimate"] is None
    assert pooled["arms"][2]["primary"]
    largest = [arm["figures"]["largest_bias"]["estimate"] for arm in comparison["arms"]]
    assert 1000 * largest[1] < 1e-3 < largest[0]  # that of the symmetrized arm, and of the pretrained one


def test_the_report_and_the_terminal_name_the_score(study):
    out, shown, told = study
    page = re.sub(r"\s+", " ", (out / "report.html").read_text())
    assert "Cost in balanced accuracy and remaining bias" in page
    assert "Macro F1" in page
    without_configuration = re.sub(r"<pre.*?</pre>", "", page)  # which names all losses
    assert not re.search(r"\b(Dice|IoU|dice)\b", without_configuration)
    lines = (out / "tables" / "arms.csv").read_text().splitlines()
    assert any("balanced_accuracy_not_inferior" in line for line in lines)
    assert "Balanced accuracy" in shown
    assert "Dice" not in shown
    assert re.search(
        r"1/6 blobs, tiny, pretrained, seed 0: balanced accuracy \d\.\d{3} D_m [+-]\d\.\d{4}, trained in \d+ s",
        told,
    )
