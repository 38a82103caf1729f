"""Studies of tiny networks: what they write, and that nothing disturbs them."""

import csv
import importlib
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command, wait_until
from tiny_training import PAIR

import evenslice
from evenslice import ConfigError, ModelError, StudyConfig, VolumeError, load_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_pages")]


def options(*, training=None, data=None, architecture=None, **changes):
    """Return the options of a study of two arms; some of those of its training, its data and its architecture changed."""
    quick = {"steps": 6, "validate_every": 2, "batch": 2, "crop": [32, 32], "monitor_every": 3}
    slices = {"train": [PAIR | {"slices": [0, 16]}], "test": [PAIR | {"slices": [17, 24]}]}
    return {
        "seeds": [0],
        "training": {**quick, "dtype": "float32", "accelerator": "cpu", **(training or {})},
        "audit": {"max_windows": 8},
        "arms": [{"name": "pretrained", "strategy": "pretrained"}, {"name": "tied", "tie": "mirror"}],
        "architectures": [
            {"name": "small", "spec": "tiny_networks:unequal", "weights": "none", **(architecture or {})}
        ],
        "datasets": [{"name": "blobs", "validation_fraction": 0.1, **slices, **(data or {})}],
        **changes,
    }


def rows(out):
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_files(out):
    return sorted(out.glob("runs/*/run.json"))


def results(out):
    return [json.loads(path.with_name("result.json").read_text()) for path in run_files(out)]


def figures(out):
    """What runs found, without what differs from one time to another."""
    found = [json.loads(path.read_text()) for path in run_files(out)]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


@pytest.fixture(scope="module")
def done(inputs):
    """An undisturbed study of two arms and two seeds, with its page."""
    out, seen = inputs / "done", []
    summary = evenslice.study(options(seeds=[0, 1]), out, on_finished=lambda *progress: seen.append(progress))
    return out, summary, seen


@pytest.fixture
def copied(done, tmp_path):
    """A copy of its folder."""
    return Path(shutil.copytree(done[0], tmp_path / "study"))


def test_a_study_writes_what_it_found(done):
    out, summary, seen = done
    assert (summary["planned"], summary["finished"], summary["failed"]) == (4, 4, [])
    assert [(count, total) for _, count, total in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(outcome.seed, outcome.arm) for outcome, _, _ in seen] == [
        (seed, arm) for seed in (0, 1) for arm in ("pretrained", "tied")
    ]
    assert json.loads((out / "summary.json").read_text()) == summary
    shown = summary._repr_html_()  # in a notebook
    assert (
        shown.index("4 of 4 runs done") < shown.index("blobs, small") < shown.index("Dice minus pretrained")
    )
    columns = "dataset,architecture,arm,fold,seed,dice,iou,directional_bias,asymmetry,imbalance,share_-1,share_0,share_1,seconds"
    assert (out / "results.csv").read_text().startswith(columns)
    table = rows(out)
    assert [(row["arm"], row["seed"]) for row in table] == [
        (arm, seed) for arm in ("pretrained", "tied") for seed in "01"
    ]
    for row in table:
        assert row["status"] == "done"
        assert 0 <= float(row["dice"]) <= 1
        assert sum(float(row[f"share_{k}"]) for k in (-1, 0, 1)) == pytest.approx(1)
        (run,) = out.glob(f"runs/*{row['key']}")
        stress = json.loads((run / "result.json").read_text())["stress"]
        missing = stress["losses"][0]
        assert (missing["kind"], missing["offset"]) == ("missing", 1)
        found = [float(row[f"stress_{name}"]) for name in ("before", "after", "both", "intact", "reversed")]
        sides = (missing[side] for side in ("before", "after", "both"))
        assert found == [*sides, stress["intact"], stress["reversed"]]
    assert load_config(out / "config.yaml", StudyConfig).arms == StudyConfig.model_validate(options()).arms


def test_the_arms_are_what_they_should_be(done):
    out, summary, _ = done
    pretrained, tied = summary["comparisons"][0]["arms"]
    estimates, others = (
        {name: figure["estimate"] for name, figure in arm["figures"].items()} for arm in (pretrained, tied)
    )
    assert estimates["directional_bias"] < -0.3
    assert others["absolute_bias"] < 1e-5
    assert others["largest_bias"] < 1e-5
    assert pretrained["figures"]["largest_bias"]["low"] > 0.05
    assert tied["bias_removed"]["estimate"] == pytest.approx(1, abs=1e-4)
    assert others["reliance"] < 1e-4 < estimates["reliance"]
    assert (summary["definitions"], tied["seeds"]) == (2, [0, 1])
    assert tied["differences"]["dice"]["estimate"] == pytest.approx(others["dice"] - estimates["dice"])
    for row in rows(out):
        if row["arm"] == "tied":  # symmetric: it answers a reversed window alike, but for rounding
            assert float(row["stress_reversed"]) == pytest.approx(float(row["stress_intact"]), abs=1e-3)


def test_a_run_leaves_what_a_report_needs(done):
    for path in run_files(done[0]):
        assert {item.name for item in path.parent.iterdir()} == {
            *("audit.json", "audit.npz", "config.yaml", "data.json", "example.npz", "log"),
            *("network.safetensors", "result.json", "run.json"),
        }
        with np.load(path.parent / "example.npz") as example:
            assert example["image"].shape == example["labels"].shape == example["predicted"].shape == (48, 48)
            assert example["labels"].sum() > 0


@pytest.mark.usefixtures("drawn")
def test_a_study_ends_with_its_page_and_the_command_prints_tables(copied, command, tmp_path, monkeypatch):
    monkeypatch.setattr("evenslice.studying.study_runner.execute", None)  # nothing is left to do
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "again.yaml").write_text((copied / "config.yaml").read_text())
    printed = command("study", "again.yaml", "--out", copied)
    assert printed.returncode == 0
    for text in ("blobs, small", "tied", "results.csv", "report.html"):
        assert text in printed.stdout
    page = (copied / "report.html").read_text(encoding="utf-8")
    for text in (
        "4 of 4",
        "blobs, small",
        *(f'<section id="{name}">' for name in ("forest", "learning", "examples")),
    ):
        assert text in page
    assert (copied / "figures" / "forest.svg").exists()
    assert json.loads(command("study", "again.yaml", "--out", copied, "--json").stdout)["finished"] == 4


@pytest.mark.usefixtures("drawn")
def test_a_study_without_stress_has_no_such_columns(inputs):
    out, said = inputs / "unstressed", []
    unstressed = options(training={"stress": False})
    evenslice.study(unstressed, out, on_start=said.extend)
    assert not any(name.startswith("stress") for name in rows(out)[0])
    assert [result["stress"] for result in results(out)] == [None, None]
    assert '<section id="stress">' not in (out / "report.html").read_text(encoding="utf-8")
    evenslice.study(options(), out, on_start=said.extend)  # losses are asked for now
    runs = "blobs, small, pretrained, fold 0, seed 0; blobs, small, tied, fold 0, seed 0"
    assert said == [f"training.stress: these finished runs were tested without it, and stay so: {runs}"]
    audited = evenslice.study(options(audit={"max_windows": 9}), out)
    assert audited["finished"] == 2  # nor do they fail where audited again
    assert [result["stress"] for result in results(out)] == [None, None]


def test_a_run_that_version_0_2_audited_is_kept_and_named(copied):
    old = next(path for path in run_files(copied) if "pretrained-0-0" in path.parent.name)
    record = json.loads(old.read_text())
    del record["definitions"]
    old.write_text(json.dumps(record))
    said = []
    summary = evenslice.study(options(seeds=[0, 1]), copied, on_start=said.extend)
    (line,) = said
    assert line.startswith("audit: these finished runs were audited by version 0.2, and have no figures")
    assert line.endswith(": blobs, small, pretrained, fold 0, seed 0")
    assert (summary["finished"], summary["definitions"]) == (4, 2)
    assert sorted(row["definitions"] for row in rows(copied)) == ["1", "2", "2", "2"]
    pretrained = summary["comparisons"][0]["arms"][0]
    assert pretrained["seeds"] == [0, 1]
    low = {name: figure["low"] for name, figure in pretrained["figures"].items()}
    assert low["dice"] is not None
    assert low["largest_bias"] is None  # of one run
    assert low["answer_change"] is not None  # of two classes, it has the same meaning


# Studies that go on


def test_a_finished_study_repeats_nothing(done, monkeypatch):
    out, summary, _ = done
    monkeypatch.setattr("evenslice.studying.study_runner.execute", None)
    assert evenslice.study(options(seeds=[0, 1]), out) == summary
    moved = options(seeds=[1, 0], training={"accelerator": "auto", "workers": 1}, data={"root": "."})
    moved["arms"][1]["name"] = "symmetric"
    again = evenslice.study(moved, out)
    assert again["finished"] == 4
    assert [arm["arm"] for arm in again["comparisons"][0]["arms"]] == ["pretrained", "symmetric"]


def test_other_options_of_the_audit_repeat_the_audit_alone(copied, done, monkeypatch):
    networks = {path: path.stat().st_mtime_ns for path in copied.glob("runs/*/network.safetensors")}
    again = options(seeds=[0, 1], audit={"max_windows": 5})
    after = evenslice.study(again, copied)
    assert {path: path.stat().st_mtime_ns for path in networks} == networks
    assert {json.loads(path.read_text())["audit"]["max_windows"] for path in run_files(copied)} == {5}
    assert {row["windows"] for row in rows(copied)} == {"5"}
    dice = ([arm["figures"]["dice"] for arm in found["comparisons"][0]["arms"]] for found in (done[1], after))
    assert next(dice) == next(dice)
    monkeypatch.setattr("evenslice.studying.study_runner.execute", None)
    assert evenslice.study(again, copied) == after


@pytest.fixture
def own_data(inputs, tmp_path):
    """A copy of the data, the options of a study on it, and a function that changes its labels."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("image.npy", "labels.npy"):
        shutil.copy(inputs / name, data)
    return (
        data,
        options(data={"root": str(data)}),
        lambda *_: np.save(data / "labels.npy", 1 - np.load("labels.npy")),
    )


def test_a_study_does_not_mix_runs_or_audits_of_other_data(own_data, tmp_path, monkeypatch):
    (data, values, change), out = own_data, tmp_path / "mixed"
    evenslice.study(values, out)
    before = figures(out)
    change()
    trained = "datasets: 'blobs': its files are not those on which .*/runs/.* was trained and tested; restore"
    for more in ({"seeds": [0, 1]}, {"audit": {"max_windows": 5}}):
        with pytest.raises(ConfigError, match=trained):
            evenslice.study({**values, **more}, out)
    assert figures(out) == before
    kept = {path: path.read_text() for path in run_files(out)}
    for path in kept:  # as if it had been interrupted before the audits
        path.unlink()
    with pytest.raises(ConfigError, match=trained):
        evenslice.study(values, out)
    for path, text in kept.items():
        path.write_text(text)
    (data / "labels.npy").unlink()
    monkeypatch.setattr("evenslice.studying.study_runner.execute", None)
    assert evenslice.study(values, out)["finished"] == 2  # nothing is read of what is gone


@pytest.mark.parametrize("what", ["data", "weights"])
def test_runs_on_files_that_change_during_a_study_fail(inputs, own_data, tmp_path, what):
    data, values, change = own_data
    out, weights = tmp_path / "out", tmp_path / "changing.pt"
    state = importlib.import_module("tiny_networks").unequal().state_dict()
    message = r"datasets: 'blobs': its files are not those with which the study was started; restore them"
    if what == "weights":
        torch.save(state, weights)
        values["architectures"][0]["weights"] = str(weights)
        message = r"weights: .*changing\.pt, or a file that the network is built from, has changed"

        def change(*_):
            torch.save({name: 2 * value for name, value in state.items()}, weights)

    summary = evenslice.study(values, out, on_finished=change)
    (failed,) = summary["failed"]
    assert (summary["finished"], failed["arm"]) == (1, "tied")
    assert re.match(message, failed["error"])
    assert not list(out.glob("runs/*tied*/network.safetensors"))
    shutil.copy(inputs / "labels.npy", data)
    assert evenslice.study(values, out)["finished"] == 2


# Mistakes


def test_a_crashed_run_is_recorded_and_the_rest_goes_on(inputs, command, tmp_path):
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "unfit.pt")
    broken, out, tried = options(data={"root": str(inputs)}), tmp_path / "broken", []
    broken["arms"].append({"name": "lost", "weights": str(tmp_path / "unfit.pt")})
    broken["architectures"].insert(
        0, {"name": "crashing", "spec": "tiny_networks:crashing", "weights": "none"}
    )
    summary = evenslice.study(broken, out)
    assert summary["finished"] == 2
    errors = {(run["architecture"], run["arm"]): run["error"] for run in summary["failed"]}
    assert set(errors) == {*(("crashing", arm) for arm in ("pretrained", "tied", "lost")), ("small", "lost")}
    assert errors["crashing", "tied"] == "RuntimeError: no luck, today"
    assert "unfit.pt" in errors["small", "lost"]
    crashed = json.loads(next(out.glob("runs/*crashing-tied*/run.json")).read_text())
    assert "in forward" in crashed["traceback"]
    assert [row["dice"] == "" for row in rows(out)] == [row["status"] == "failed" for row in rows(out)]
    (tmp_path / "failing.yaml").write_text(json.dumps(broken))
    done = command("study", "failing.yaml", "--out", out)
    assert done.returncode == 1  # a status of its own
    assert "no luck" in done.stdout
    evenslice.study(broken, out, on_finished=lambda outcome, *_: tried.append(outcome.arm))
    assert sorted(tried) == ["lost", "lost", "pretrained", "tied"]  # those that failed, and no others


SAME = {"strategy": "mirror", "tie": "mirror"}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"data": {"train": [{"image": "no.npy", "labels": "no.npy"}]}}, VolumeError, r"no\.npy"),
        (
            {"arms": [{"name": "pretrained", "weights": "nosuch.pt"}]},
            ConfigError,
            "nosuch.pt: no such weights file",
        ),
        ({"architecture": {"spec": "smp:Unett/resnet18"}}, ModelError, "^architectures: 'small': .*'Unet'"),
        ({"slices": 4}, ConfigError, "model.*slices: 4: a window has an odd number"),
        (
            {"arms": [{"name": n, **SAME} for n in ("pretrained", "b")]},
            ConfigError,
            "small, b: is the same as",
        ),
    ],
)
def test_mistakes_stop_a_study_before_its_first_run(inputs, tmp_path, change, kind, message):
    with pytest.raises(kind, match=message):
        evenslice.study(options(**change), tmp_path / "bad")
    assert not list(tmp_path.glob("bad/**/log"))


# Processes


def test_a_killed_study_goes_on_where_it_was(inputs, done):
    (inputs / "killed.yaml").write_text(json.dumps(options(seeds=[0, 1])))
    environment = {"SLOW": "0.15", "PYTHONWARNINGS": "error"}
    process = Command("study", "killed.yaml", "--out", "killed", cwd=inputs, **environment)
    out, tried = inputs / "killed", []
    wait_until(lambda: len(run_files(out)) == 1 and list(out.glob("runs/*/checkpoints/last.ckpt")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (finished_run,) = run_files(out)
    written = finished_run.stat().st_mtime_ns
    summary = evenslice.study(
        options(seeds=[0, 1]), out, on_finished=lambda outcome, *_: tried.append(outcome.key)
    )
    assert (summary["finished"], len(tried)) == (4, 3)
    assert finished_run.stat().st_mtime_ns == written
    assert figures(out) == figures(done[0])  # as if nothing had happened
