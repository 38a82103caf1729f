"""Studies with folds and with arms that take the network of another: what they write, and what is repeated."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from tiny_training import PAIR, start, study_options

import evenslice
from evenslice import load_network
from evenslice.report.audit_tables import SHARES
from evenslice.report.study_tables import statistics_groups
from evenslice.results import StudyResults

ARMS = [
    {"name": "fair", "network_of": "pretrained", "symmetrize": "output"},
    {"name": "pretrained", "strategy": "pretrained"},
]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "without_pages")]


def options(inputs, **changes):
    """A study of two folds, and of a second data set without any."""
    values = study_options(inputs)
    folded = {"name": "folded", "pairs": [{**PAIR, "slices": [0, 24]}], "blocks": 2, "folds": 2}
    return {
        **values,
        "arms": ARMS,
        "datasets": [{**folded, "root": str(inputs)}, *values["datasets"]],
        **changes,
    }


@pytest.fixture
def plain(tiny_inputs):
    """The options of a study without folds."""
    values = options(tiny_inputs)
    return {**values, "datasets": values["datasets"][1:]}


PRIMARY = {"arm": "fair", "margin": 0.02}


@pytest.fixture(scope="module")
def done(tiny_inputs, tmp_path_factory):
    out, seen = tmp_path_factory.mktemp("derived") / "done", []
    summary = evenslice.study(
        options(tiny_inputs, primary=PRIMARY), out, on_finished=lambda outcome, *_: seen.append(outcome)
    )
    return out, summary, seen


def test_a_derived_run_has_the_network_of_its_base_made_symmetric(done):
    out, summary, seen = done
    assert summary["failed"] == []
    assert (summary["planned"], summary["finished"]) == (6, 6)
    by_arm = {outcome.arm: outcome for outcome in seen if outcome.dataset == "folded" and outcome.fold == 1}
    fair, base = by_arm["fair"], by_arm["pretrained"]
    assert (fair.steps, fair.seconds, base.steps) == (0, 0, 8)
    assert fair.largest_bias < 1e-5 < base.largest_bias
    assert fair.mirror_mismatch < 1e-5
    assert fair.data == base.data
    folders = [next(out.glob(f"runs/*-{outcome.key}")) for outcome in (fair, base)]
    left, trained = ({path.name for path in folder.iterdir()} for folder in folders)
    assert left == trained - {"log"}
    assert yaml.safe_load((folders[0] / "config.yaml").read_text())["model"]["symmetrize"] == "output"
    window = torch.rand(1, 3, 16, 16)
    fair_network, network = (
        load_network("tiny_networks:tiny", str(folder / "network.safetensors")).model for folder in folders
    )
    torch.testing.assert_close(fair_network(window), (network(window) + network(window.flip(1))) / 2)


def test_results_know_their_folds(done):
    out, summary, _ = done
    with (out / "results.csv").open(newline="") as file:
        rows = [(row["dataset"], row["arm"], row["fold"]) for row in csv.DictReader(file)]
    assert rows == [
        *(("folded", arm, fold) for arm in ("fair", "pretrained") for fold in "01"),
        *(("blobs", arm, "0") for arm in ("fair", "pretrained")),
    ]
    units = [(item["dataset"], item["unit"]) for item in summary["comparisons"]]
    assert units == [("folded", "fold"), ("blobs", "seed")]


def test_the_summary_pools_data_sets_and_knows_the_primary_comparison(done):
    _, summary, seen = done
    (pooled,) = summary["pooled"]
    assert (pooled["architecture"], pooled["datasets"]) == ("tiny", ["folded", "blobs"])
    fair, base = pooled["arms"]
    assert fair["primary"] is True
    assert fair["non_inferiority"]["margin"] == 0.02
    assert fair["non_inferiority"]["holds"] is None  # one replicate of blobs
    assert not base.get("differences")
    by_set = [
        np.mean([outcome.dice for outcome in seen if (outcome.dataset, outcome.arm) == (name, "fair")])
        for name in ("folded", "blobs")
    ]
    assert fair["figures"]["dice"]["estimate"] == pytest.approx(np.mean(by_set))
    assert base["figures"]["loss_both"]["estimate"] is not None


def test_nothing_is_repeated_but_what_is_damaged(done, tiny_inputs):
    out, summary, seen = done
    tried, again = [], options(tiny_inputs, primary=PRIMARY)
    assert evenslice.study(again, out, on_finished=lambda outcome, *_: tried.append(outcome)) == summary
    assert not tried
    fair = next(outcome for outcome in seen if outcome.arm == "fair")
    (next(out.glob(f"runs/*-{fair.key}")) / "network.safetensors").write_bytes(b"damaged")
    evenslice.study(again, out, on_finished=lambda outcome, *_: tried.append(outcome))
    assert tried == [fair]


def test_a_network_that_was_removed_is_trained_anew_if_other_runs_need_it(plain, tmp_path):
    alone, out, tried = {**plain, "arms": ARMS[1:]}, tmp_path / "out", []
    first = evenslice.study(alone, out)
    (folder,) = (out / "runs").iterdir()
    for path in folder.iterdir():
        if path.name not in {
            "run.json",
            "log",
            "example.npz",
        }:  # as in an archive of results without networks
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert evenslice.study(alone, out) == first  # nobody needs it
    arms = [*ARMS, {"name": "fair early", "network_of": "pretrained", "symmetrize": "0"}]
    summary = evenslice.study(
        {**plain, "arms": arms}, out, on_finished=lambda outcome, *_: tried.append(outcome)
    )
    assert [run["error"] for run in summary["failed"]] == []
    assert [outcome.arm for outcome in tried] == ["pretrained", "fair", "fair early"]
    assert tried[0].dice == first["comparisons"][0]["arms"][0]["figures"]["dice"]["estimate"]


def test_a_derived_run_of_a_failed_run_fails_and_says_why(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("STOP_AT", "1")
    failed = evenslice.study(plain, tmp_path / "failed")["failed"]
    errors = {run["arm"]: run["error"] for run in failed}
    assert "stopped here" in errors["pretrained"]
    why = "its network is that of pretrained, whose run blobs-tiny-pretrained-0-0-"
    assert errors["fair"].startswith(why)
    assert errors["fair"].endswith("failed (RuntimeError: stopped here)")


def test_an_arm_of_one_slice_stands_beside_those_of_three(plain, tmp_path):
    """Its only share is that of the middle slice; it has no pairs, no neighbours to lose, and a difference in Dice."""
    arms = [ARMS[1], {"name": "one slice", "slices": 1}]
    summary = evenslice.study({**plain, "arms": arms}, tmp_path / "out")
    assert summary["failed"] == []
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        three, one = csv.DictReader(file)
    assert [one[f"share_{k}"] for k in (-1, 0, 1)] == ["", "1.0", ""]
    assert "" not in {three[f"share_{k}"] for k in (-1, 0, 1)}
    assert (one["largest_bias"], one["stress_both"]) == ("", "")
    found = StudyResults.load(tmp_path / "out")
    assert found.comparisons[0].arms[1].differences["dice"].estimate == pytest.approx(
        float(one["dice"]) - float(three["dice"])
    )
    groups = {group.title: group for group in statistics_groups(found, found.comparisons[0])}
    shares = {row.label: row.cells[1] for row in groups[SHARES[0]].rows}
    assert [*shares.values()] == ["\N{EN DASH}", "1.000", "\N{EN DASH}"]


def test_workers_begin_a_derived_run_when_its_base_is_done(tiny_inputs, tmp_path):
    values = options(tiny_inputs)
    values["datasets"] = values["datasets"][:1]
    process = start(tiny_inputs, "study", values, tmp_path / "out", "--workers", "2", SLOW="0.05")
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["finished"] == 4
    assert "folded, tiny, fair, fold 1, seed 0: Dice" in error
