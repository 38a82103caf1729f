"""Studies of tiny networks: what they write, and that nothing disturbs them."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from commands import Command, run_command
from scipy import ndimage
from torch import nn

import evenslice
from evenslice._core.config_files import Section, as_config, load_config, to_yaml
from evenslice._core.errors import ConfigError, OutputError, VolumeError, option
from evenslice.cli import entry as cli
from evenslice.results.studies import load_study
from evenslice.studying import run_execution, study_runner
from evenslice.studying.config import STUDY_TEMPLATE, StudyConfig, StudyData
from evenslice.studying.run_outcomes import RunOutcome
from evenslice.studying.runs import plan_runs
from evenslice.studying.study_runner import study
from evenslice.training.config import TrainingConfig

STUDYING = "evenslice.studying"

NETWORKS = """
import os
import time
from pathlib import Path
from typing import get_args

import torch
from torch import nn


class Watched(nn.Module):
    "Takes its time in training, and says which process it is in."

    def forward(self, x):
        if self.training and "WATCHED" in os.environ:
            Path(os.environ["WATCHED"], str(os.getpid())).touch()
            time.sleep(float(os.environ["SLOW"]))
        return x


def small():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1), Watched())
    torch.manual_seed(1)
    with torch.no_grad():
        network[0].weight.copy_((torch.rand(4, 3, 3, 3) - 0.4) * torch.tensor([1.0, 4.0, 0.2]).view(3, 1, 1))
    return network


class Crashing(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = small()

    def forward(self, x):
        if self.training:
            raise RuntimeError("no luck,\\ntoday")
        return self.main(x)


def crashing():
    return Crashing().eval()


def linear():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
"""


def write_data(folder):
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((24, 48, 48)), (1, 3, 3))
    blobs /= blobs.std()
    np.save(
        folder / "image.npy",
        np.clip(100 + 30 * blobs + 20 * rng.standard_normal(blobs.shape), 0, 255).astype("u1"),
    )
    np.save(folder / "labels.npy", (blobs > 0.8).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of data and of networks to import; the current one."""
    folder = tmp_path_factory.mktemp("studying")
    (folder / "studied.py").write_text(NETWORKS)
    write_data(folder)
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    os.chdir(before)


def options(**changes):
    pair = {"image": "image.npy", "labels": "labels.npy"}
    return {
        "seeds": [0],
        "training": {
            "steps": 6,
            "validate_every": 2,
            "batch": 2,
            "crop": [32, 32],
            "monitor_every": 3,
            "dtype": "float32",
            "accelerator": "cpu",
        },
        "audit": {"max_windows": 8},
        "arms": [
            {"name": "pretrained", "strategy": "pretrained"},
            {"name": "tied", "tie": "mirror"},
        ],
        "architectures": [{"name": "small", "spec": "studied:small", "weights": "none"}],
        "datasets": [
            {
                "name": "blobs",
                "validation_fraction": 0.1,
                "train": [pair | {"slices": [0, 16]}],
                "test": [pair | {"slices": [17, 24]}],
            }
        ],
        **changes,
    }


def config(**changes):
    return StudyConfig.model_validate(options(**changes))


def rows(out):
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_files(out):
    return sorted(out.glob("runs/*/run.json"))


def figures(out):
    """What runs found, without what differs from one time to another."""
    found = [json.loads(path.read_text()) for path in run_files(out)]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


@pytest.fixture(scope="module")
def done(folder):
    """An undisturbed study of two arms and two seeds."""
    out = folder / "done"
    seen = []
    summary = study(config(seeds=[0, 1]), out, on_finished=lambda *progress: seen.append(progress))
    return out, summary, seen


def test_a_study_writes_what_it_found(done):
    out, summary, seen = done
    assert (summary["planned"], summary["finished"], summary["failed"]) == (4, 4, [])
    assert [(count, total) for _, count, total in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(outcome.seed, outcome.arm) for outcome, _, _ in seen] == [
        (seed, arm) for seed in (0, 1) for arm in ("pretrained", "tied")
    ]
    assert json.loads((out / "summary.json").read_text()) == summary
    table = rows(out)
    assert [(row["arm"], row["seed"]) for row in table] == [
        (arm, seed) for arm in ("pretrained", "tied") for seed in "01"
    ]
    columns = "dataset,architecture,arm,fold,seed,dice,iou,directional_bias,asymmetry,imbalance,share_-1,share_0,share_1,seconds"
    assert (out / "results.csv").read_text().startswith(columns)
    for row in table:
        assert 0 <= float(row["dice"]) <= 1
        assert sum(float(row[f"share_{k}"]) for k in (-1, 0, 1)) == pytest.approx(1)
        assert row["status"] == "done"
    assert load_config(out / "config.yaml", StudyConfig).arms == config().arms


@pytest.mark.usefixtures("drawn")
def test_a_study_ends_with_its_page(done, monkeypatch):
    out, _, _ = done
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "4 of 4" in page
    assert "blobs, small" in page
    for section in ("forest", "learning", "examples"):
        assert f'<section id="{section}">' in page
    assert (out / "figures" / "forest.svg").exists()
    (out / "report.html").unlink()
    monkeypatch.setattr(study_runner, "execute", None)
    study(config(seeds=[0, 1]), out)  # nothing is left to do
    assert "4 of 4" in (out / "report.html").read_text(encoding="utf-8")


def test_the_arms_are_what_they_should_be(done):
    _, summary, _ = done
    pretrained, tied = summary["comparisons"][0]["arms"]
    assert pretrained["figures"]["directional_bias"]["estimate"] < -0.3
    assert tied["figures"]["absolute_bias"]["estimate"] < 1e-5
    assert tied["figures"]["largest_bias"]["estimate"] < 1e-5
    assert pretrained["figures"]["largest_bias"]["low"] > 0.05
    assert tied["bias_removed"]["estimate"] == pytest.approx(1, abs=1e-4)
    assert tied["figures"]["reliance"]["estimate"] < 1e-4 < pretrained["figures"]["reliance"]["estimate"]
    assert summary["definitions"] == 2
    assert tied["seeds"] == [0, 1]
    assert tied["differences"]["dice"]["estimate"] == pytest.approx(
        tied["figures"]["dice"]["estimate"] - pretrained["figures"]["dice"]["estimate"]
    )


def test_a_run_leaves_what_a_report_needs(done):
    out, _, _ = done
    for path in run_files(out):
        kept = {item.name for item in path.parent.iterdir()}
        assert kept == {
            "audit.json",
            "audit.npz",
            "config.yaml",
            "data.json",
            "example.npz",
            "log",
            "network.safetensors",
        } | {
            "result.json",
            "run.json",
        }
        with np.load(path.parent / "example.npz") as example:
            assert example["image"].shape == example["labels"].shape == example["predicted"].shape == (48, 48)
            assert example["labels"].sum() > 0


def test_the_table_has_what_a_missing_neighbour_costs(done):
    out, _, _ = done
    for row in rows(out):
        folder = next(path.parent for path in run_files(out) if path.parent.name.endswith(row["key"]))
        stress = json.loads((folder / "result.json").read_text())["stress"]
        missing = stress["losses"][0]
        assert (missing["kind"], missing["offset"]) == ("missing", 1)
        found = [float(row[f"stress_{name}"]) for name in ("before", "after", "both", "intact", "reversed")]
        assert found == [
            *(missing[side] for side in ("before", "after", "both")),
            stress["intact"],
            stress["reversed"],
        ]
    for run in load_study(out).runs:
        assert run.stress.slices > 0
        assert run.stress.losses[0].before < 1
        if run.arm == "tied":  # symmetric: it answers a reversed window alike, but for rounding
            assert run.stress.reversed == pytest.approx(run.stress.intact, abs=1e-3)


@pytest.mark.usefixtures("drawn")
def test_a_study_without_stress_has_no_such_columns(folder):
    out = folder / "unstressed"
    changed = options()
    changed["training"]["stress"] = False
    study(StudyConfig.model_validate(changed), out)
    assert not any(name.startswith("stress") for name in rows(out)[0])
    assert load_study(out).runs[0].stress is None
    assert '<section id="stress">' not in (out / "report.html").read_text(encoding="utf-8")
    said = []
    study(StudyConfig.model_validate(changed), out, on_start=said.extend)
    assert not said
    study(config(), out, on_start=said.extend)  # losses are asked for now
    (line,) = said
    runs = "blobs, small, pretrained, fold 0, seed 0; blobs, small, tied, fold 0, seed 0"
    assert line == f"training.stress: these finished runs were tested without it, and stay so: {runs}"
    again = options()  # nor do they fail where they are audited again
    again["audit"] = {**again.get("audit", {}), "max_windows": 9}
    assert study(StudyConfig.model_validate(again), out)["finished"] == 2
    assert load_study(out).runs[0].stress is None


@pytest.mark.usefixtures("drawn")
def test_a_run_that_version_0_2_audited_is_kept_and_named(done, tmp_path):
    out = Path(shutil.copytree(done[0], tmp_path / "older"))
    old = next(path for path in run_files(out) if "pretrained-0-0" in path.parent.name)
    record = json.loads(old.read_text())
    del record["definitions"]
    old.write_text(json.dumps(record))
    said = []
    summary = study(config(seeds=[0, 1]), out, on_start=said.extend)
    (line,) = said
    assert line.startswith("audit: these finished runs were audited by version 0.2, and have no figures")
    assert line.endswith(": blobs, small, pretrained, fold 0, seed 0")
    assert (summary["finished"], summary["definitions"]) == (4, 2)
    assert sorted(row["definitions"] for row in rows(out)) == ["1", "2", "2", "2"]
    pretrained = summary["comparisons"][0]["arms"][0]
    assert pretrained["seeds"] == [0, 1]
    assert pretrained["figures"]["dice"]["low"] is not None
    assert pretrained["figures"]["largest_bias"]["low"] is None  # of one run
    assert (
        pretrained["figures"]["answer_change"]["low"] is not None
    )  # of two classes, it has the same meaning


def test_a_finished_study_repeats_nothing(done, monkeypatch):
    out, summary, _ = done
    monkeypatch.setattr(study_runner, "execute", None)
    assert study(config(seeds=[0, 1]), out) == summary
    moved = options(seeds=[1, 0])
    moved["training"] |= {"accelerator": "auto", "workers": 1}
    moved["datasets"][0]["root"] = "."
    moved["arms"][1]["name"] = "symmetric"
    again = study(StudyConfig.model_validate(moved), out)
    assert again["finished"] == 4
    assert [arm["arm"] for arm in again["comparisons"][0]["arms"]] == ["pretrained", "symmetric"]


def test_other_options_of_the_audit_repeat_the_audit_alone(folder, monkeypatch):
    out = folder / "audited"
    before = study(config(), out)
    (folder_of_run,) = (path.parent for path in run_files(out) if "tied" in path.parent.name)
    trained = (folder_of_run / "network.safetensors").stat().st_mtime_ns
    after = study(config(audit={"max_windows": 5}), out)
    assert (folder_of_run / "network.safetensors").stat().st_mtime_ns == trained
    assert json.loads((folder_of_run / "run.json").read_text())["audit"]["max_windows"] == 5
    assert {row["windows"] for row in rows(out)} == {"5"}
    dice, again = (
        [arm["figures"]["dice"] for arm in found["comparisons"][0]["arms"]] for found in (before, after)
    )
    assert dice == again
    monkeypatch.setattr(study_runner, "execute", None)
    assert study(config(audit={"max_windows": 5}), out) == after


def data_of_its_own(folder, name):
    """Return the options of a study on a copy of the data, and where that is."""
    data = folder / name
    data.mkdir()
    for file in ("image.npy", "labels.npy"):
        shutil.copy(folder / file, data)
    values = options()
    values["datasets"][0]["root"] = str(data)
    return values, data


def change_labels(data):
    np.save(data / "labels.npy", 1 - np.load(data / "labels.npy"))


CHANGED = "datasets: 'blobs': its files are not those on which .*/runs/.* was trained and tested; restore"


def test_a_study_does_not_mix_runs_on_other_data(folder, monkeypatch):
    values, data = data_of_its_own(folder, "mixed_data")
    out = folder / "mixed"
    study(StudyConfig.model_validate(values), out)
    change_labels(data)
    with pytest.raises(ConfigError, match=CHANGED):
        study(StudyConfig.model_validate({**values, "seeds": [0, 1]}), out)
    (data / "labels.npy").unlink()
    monkeypatch.setattr(study_runner, "execute", None)
    assert study(StudyConfig.model_validate(values), out)["finished"] == 2  # nothing is read of what is gone


def test_scores_are_not_joined_with_an_audit_of_other_data(folder):
    values, data = data_of_its_own(folder, "audited_data")
    out = folder / "audited_on_others"
    study(StudyConfig.model_validate(values), out)
    before = figures(out)
    change_labels(data)
    with pytest.raises(ConfigError, match=CHANGED):
        study(StudyConfig.model_validate({**values, "audit": {"max_windows": 5}}), out)
    assert figures(out) == before
    for path in run_files(out):  # as if it had been interrupted before the audits
        path.unlink()
    with pytest.raises(ConfigError, match=CHANGED):
        study(StudyConfig.model_validate(values), out)


def test_runs_on_data_that_change_during_a_study_fail(folder):
    values, data = data_of_its_own(folder, "data_changed_meanwhile")
    out, before = folder / "changed_meanwhile", np.load(data / "labels.npy")

    def change(*_):
        np.save(data / "labels.npy", 1 - before)

    summary = study(StudyConfig.model_validate(values), out, on_finished=change)
    (failed,) = summary["failed"]
    assert (summary["finished"], failed["arm"]) == (1, "tied")
    assert failed["error"].startswith(
        "datasets[0]: its files are not those with which the study was started; restore them"
    )
    assert not list(out.glob("runs/*tied*/network.safetensors"))
    np.save(data / "labels.npy", before)
    assert study(StudyConfig.model_validate(values), out)["finished"] == 2


def test_runs_from_weights_that_change_during_a_study_fail(folder):
    sys.path.insert(0, str(folder))
    weights, out = folder / "changing.pt", folder / "weights_changed_meanwhile"
    network = importlib.import_module("studied").small()
    torch.save(network.state_dict(), weights)
    values = options()
    values["architectures"][0]["weights"] = weights.name

    def change(*_):
        torch.save({name: 2 * value for name, value in network.state_dict().items()}, weights)

    summary = study(StudyConfig.model_validate(values), out, on_finished=change)
    (failed,) = summary["failed"]
    assert (summary["finished"], failed["arm"]) == (1, "tied")
    assert re.match(
        r"architectures\[0\]\.weights: .*changing\.pt, or a file that the network is built from, has changed",
        failed["error"],
    )
    assert not list(out.glob("runs/*tied*/network.safetensors"))
    assert study(StudyConfig.model_validate(values), out)["finished"] == 2


@pytest.mark.usefixtures("drawn")
def test_a_run_of_a_function_that_has_changed_is_another(folder, monkeypatch):
    """Else a study would take the mean over different networks."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    module = folder / "revised.py"
    module.write_text((folder / "studied.py").read_text())
    values = options()
    values["architectures"][0] |= {"spec": "revised:small", "weights": "none"}
    keys = [run.key for run in plan_runs(StudyConfig.model_validate(values))]
    assert keys == [run.key for run in plan_runs(StudyConfig.model_validate(values))]
    module.write_text(module.read_text() + "\nrevised = True\n")
    assert not {*keys} & {run.key for run in plan_runs(StudyConfig.model_validate(values))}


def test_a_study_can_be_given_more(done, tmp_path, monkeypatch):
    out, seen = Path(shutil.copytree(done[0], tmp_path / "study")), []

    def pretend(run, base, data, progress):
        seen.append((run.seed, run.arm))
        return RunOutcome(**run.labels, key=run.key, status="failed", error="", audit={})

    monkeypatch.setattr(study_runner, "execute", pretend)
    grown = options(seeds=[0, 1, 2])
    grown["arms"].append({"name": "uniform"})
    study(StudyConfig.model_validate(grown), out)
    assert sorted(seen) == [
        (0, "uniform"),
        (1, "uniform"),
        (2, "pretrained"),
        (2, "tied"),
        (2, "uniform"),
    ]


def test_a_crashed_run_is_recorded_and_the_rest_goes_on(folder):
    broken = options()
    torch.save({"other.weight": torch.zeros(2)}, folder / "unfit.pt")
    broken["arms"].append({"name": "lost", "weights": "unfit.pt"})
    broken["architectures"].insert(0, {"name": "crashing", "spec": "studied:crashing", "weights": "none"})
    out = folder / "broken"
    summary = study(StudyConfig.model_validate(broken), out)
    assert summary["finished"] == 2
    errors = {(run["architecture"], run["arm"]): run["error"] for run in summary["failed"]}
    assert set(errors) == {
        ("crashing", "pretrained"),
        ("crashing", "tied"),
        ("crashing", "lost"),
        ("small", "lost"),
    }
    assert errors["crashing", "tied"] == "RuntimeError: no luck, today"
    assert "unfit.pt" in errors["small", "lost"]
    crashed = json.loads(next(out.glob("runs/*crashing-tied*/run.json")).read_text())
    assert "in forward" in crashed["traceback"]
    table = rows(out)
    assert [row["status"] for row in table].count("failed") == 4
    assert all(row["dice"] == "" for row in table if row["status"] == "failed")
    tried = []
    study(StudyConfig.model_validate(broken), out, on_finished=lambda outcome, *_: tried.append(outcome.arm))
    assert sorted(tried) == ["lost", "lost", "pretrained", "tied"]  # those that failed, and no others


def test_errors_of_runs_name_options_as_the_study_has_them(folder, monkeypatch):
    saved = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    evenslice.neutralize(saved, slices=3, strategy="mirror")
    evenslice.save_network(saved, folder / "saved.safetensors")
    arms = [
        {"name": "pretrained", "strategy": "pretrained"},
        {"name": "saved", "strategy": "center", "weights": "saved.safetensors"},
        {"name": "twin", "strategy": "twin"},
    ]
    architectures = [
        {"name": "small", "spec": "studied:small", "weights": "none"},
        {"name": "linear", "spec": "studied:linear", "weights": "none"},
        {"name": "misspelt", "spec": "smp:Unet/resnet18?classes=3", "weights": "none"},
    ]
    changed = options(
        arms=arms, architectures=architectures, audit={"max_windows": 8, "method": "gradient_shap"}
    )
    changed["training"] |= {"steps": 1, "stress": False}

    def unable(*_, **__):
        raise ConfigError(
            f"cannot; measure by {option('method', 'occlusion')}, choose {option('device', 'cpu')}"
        )

    monkeypatch.setattr(run_execution, "audit", unable)
    failed = study(StudyConfig.model_validate(changed), folder / "misspelt")["failed"]
    errors = {(run["architecture"], run["arm"]): run["error"] for run in failed}
    assert errors["small", "pretrained"] == (
        "audit: cannot; measure by audit.method: occlusion, choose training.accelerator: cpu"
    )
    assert errors["small", "saved"].startswith("arms[1], architectures[0]: ")
    assert errors["small", "saved"].endswith(
        "give arms[1].strategy: mirror, or start from the original weights"
    )
    assert errors["linear", "twin"].startswith("arms[2], architectures[1]: no activation follows")
    assert errors["linear", "twin"].endswith("symmetrize the network instead (arms[2].symmetrize: output)")
    assert errors["misspelt", "pretrained"].endswith(
        "classes is not allowed here: architectures[2].weights and datasets[0].classes decide"
    )
    assert errors["misspelt", "saved"].endswith("arms[1].weights and datasets[0].classes decide")
    assert not any("model" in error for error in errors.values())


def test_bad_data_stop_a_study_before_its_first_run(folder):
    missing = options()
    missing["datasets"].append(
        {**missing["datasets"][0], "name": "other", "train": [{"image": "no.npy", "labels": "no.npy"}]}
    )
    with pytest.raises(VolumeError, match=r"no\.npy"):
        study(StudyConfig.model_validate(missing), folder / "bad")
    assert not (folder / "bad").exists()


def start(folder, name, *arguments, slow, **changes):
    (folder / f"{name}.yaml").write_text(json.dumps(options(**changes)))
    watched = folder / f"{name}_watched"
    watched.mkdir(exist_ok=True)
    environment = {"WATCHED": str(watched), "SLOW": str(slow), "PYTHONWARNINGS": "error"}
    return Command("study", f"{name}.yaml", "--out", name, *arguments, cwd=folder, **environment), watched


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(folder, done):
    process, _ = start(folder, "killed", slow=0.15, seeds=[0, 1])
    out = folder / "killed"
    wait_for(lambda: len(run_files(out)) == 1 and list(out.glob("runs/*/checkpoints/last.ckpt")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (finished_run,) = run_files(out)
    written = finished_run.stat().st_mtime_ns
    tried = []
    summary = study(config(seeds=[0, 1]), out, on_finished=lambda outcome, *_: tried.append(outcome.key))
    assert summary["finished"] == 4
    assert len(tried) == 3
    assert finished_run.stat().st_mtime_ns == written
    assert figures(out) == figures(done[0])  # as if nothing had happened


@pytest.mark.slow
def test_a_study_whose_worker_is_killed_ends_in_one_line_and_goes_on(folder, done):
    process, watched = start(folder, "spread", "--workers", "2", slow=0.1)
    wait_for(lambda: list(watched.iterdir()), process)
    worker = int(next(watched.iterdir()).name)
    assert worker != process.pid
    os.kill(worker, signal.SIGKILL)
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 2, error
    assert error.strip().splitlines()[-1].startswith("error: a worker process was killed")
    study(config(), folder / "spread")
    assert figures(folder / "spread") == [record for record in figures(done[0]) if record["seed"] == 0]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs a path that differs by process")
def test_a_worker_that_would_write_elsewhere_ends_a_study_before_its_first_run(folder, tmp_path, monkeypatch):
    from distributed import LocalCluster

    data = options()["datasets"][0] | {"root": str(folder)}
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster:
        process = subprocess.Popen(
            [*worker, cluster.scheduler_address], cwd=tmp_path / "there", stderr=subprocess.DEVNULL
        )
        try:
            message = (
                r"^/proc/self/cwd/out: is another folder for the worker on .*; choose a folder \(out\) that"
            )
            with pytest.raises(OutputError, match=message):
                study(
                    {**options(), "datasets": [data]},
                    "/proc/self/cwd/out",
                    scheduler=cluster.scheduler_address,
                )
        finally:
            process.terminate()
            process.wait()
    assert not list(tmp_path.rglob("run.json"))


def test_the_command_prints_tables(done, folder, monkeypatch, capsys):
    out, _, _ = done
    file = folder / "again.yaml"
    file.write_text(json.dumps(options(seeds=[0, 1])))
    monkeypatch.setattr(sys, "argv", ["evenslice", "study", str(file), "--out", str(out)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 0
    printed = capsys.readouterr().out
    assert "blobs, small" in printed
    assert "tied" in printed
    assert "results.csv" in printed
    assert "report.html" in printed
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)["finished"] == 4


def without_folds(config):
    """The data sets of a configuration whose files need not be there to plan runs."""
    return config.model_copy(update={"datasets": config.datasets[1:]})


def test_the_template_is_a_study():
    example = load_config(STUDY_TEMPLATE, StudyConfig)
    runs = plan_runs(without_folds(example))
    assert len(runs) == 3 * 5  # seeds, arms
    assert len({run.key for run in runs}) == len(runs)
    assert [data.training.steps for data in example.datasets] == [1000, 600]
    assert [run.config.model.tie for run in runs[:5]] == [None, None, None, "mirror", None]


def sections(kind):
    """Yield a section of a configuration and all that it holds, as far as they are not those of train."""
    yield kind
    for info in kind.model_fields.values():
        for inner in (info.annotation, *get_args(info.annotation)):
            if (
                isinstance(inner, type)
                and issubclass(inner, Section)
                and inner.__module__.startswith(STUDYING)
            ):
                yield from sections(inner)


def test_the_template_shows_every_option():
    text = STUDY_TEMPLATE.read_text()
    found = [*sections(StudyConfig)]
    assert {kind.__name__ for kind in found} >= {
        "Arm",
        "Architecture",
        "AuditOptions",
        "PrimaryComparison",
        "StudyData",
    }
    names = {name for kind in found for name in kind.model_fields}
    assert [
        name for name in sorted(names) if not re.search(rf"\b{name}: ", text) and f"{name}:\n" not in text
    ] == []


def test_the_template_is_printed_to_start_from(tmp_path):
    printed = run_command("study", "--print-config", cwd=tmp_path)
    assert (printed.returncode, printed.stderr) == (0, "")
    (tmp_path / "study.yaml").write_text(printed.stdout)
    assert load_config(tmp_path / "study.yaml", StudyConfig).primary.arm == "twin"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"stepss": 3}, r"training.stepss: no such option; did you mean 'steps'\? known: [^;]*"),
        ({"devices": 2}, "training: {'devices': 2}: a run of a study uses one device; [^;]*"),
    ],
)
def test_a_wrong_option_for_all_data_sets_is_said_of_itself_alone(training, message):
    with pytest.raises(ConfigError) as raised:
        as_config({**options(), "training": training}, StudyConfig)
    assert re.fullmatch(message, str(raised.value))
    assert "datasets" not in str(raised.value)


def test_weights_are_looked_for_before_the_first_run(tmp_path):
    arms = options()["arms"]
    arms[-1]["weights"] = str(tmp_path / "nosuch.pt")
    with pytest.raises(ConfigError, match=r"^arms\[1\].weights: .*nosuch.pt: no such weights file"):
        study({**options(), "arms": arms}, tmp_path / "out")
    assert not list((tmp_path / "out").glob("**/log"))


def test_a_configuration_is_written_as_it_is_read(tmp_path):
    changed = options()
    changed["training"]["steps"] = 500
    changed["datasets"][0]["training"] = {"steps": 2000}  # the default, but not the study's
    (tmp_path / "a.yaml").write_text(json.dumps(changed))
    first = load_config(tmp_path / "a.yaml", StudyConfig)
    (tmp_path / "b.yaml").write_text(to_yaml(first))
    second = load_config(tmp_path / "b.yaml", StudyConfig)
    assert first == second
    assert second.datasets[0].training.steps == 2000
    assert second.datasets[0].training.batch == 2


def test_the_key_is_that_of_what_matters(tmp_path):
    def key(change=lambda _: None):
        values = options()
        change(values)
        return plan_runs(StudyConfig.model_validate(values))[0].key

    def weights(content):
        (tmp_path / "w.pt").write_bytes(content)
        return key(lambda values: values["architectures"][0].update(weights=str(tmp_path / "w.pt")))

    assert key() == key(lambda values: values["arms"][0].update(name="pretrained"))
    assert key() == key(lambda values: values["training"].update(accelerator="auto", tensorboard=True))
    assert key() == key(lambda values: values["datasets"][0].update(root=str(tmp_path)))
    assert key() != key(lambda values: values["training"].update(steps=7))
    assert key() != key(lambda values: values["datasets"][0].update(training={"steps": 7}))
    assert key() == key(lambda values: values["audit"].update(max_windows=9))
    assert key() != key(lambda values: values.update(seeds=[1]))
    assert weights(b"one") != weights(b"two")
    assert weights(b"one") == weights(b"one")


def test_an_arm_that_starts_from_a_saved_network_leaves_it_as_it_is(tmp_path):
    network = nn.Conv2d(3, 2, 3)
    evenslice.neutralize(network, slices=3, strategy="center")
    evenslice.save_network(network, tmp_path / "fair.safetensors")
    arms = [{"name": "pretrained", "weights": str(tmp_path / "fair.safetensors")}, {"name": "uniform"}]
    found = {
        run.arm: run.config.model.strategy
        for run in plan_runs(StudyConfig.model_validate(options() | {"arms": arms}))
    }
    assert found == {"pretrained": "pretrained", "uniform": "uniform"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "uniform"}, "baseline: 'uniform': no arm has this name; the arms are pretrained, tied"),
        ({"arms": [{"name": "uniform"}]}, "baseline: 'pretrained': no arm has this name; the arms are"),
        ({"audit": {"method": "gradeint"}}, "audit.method: 'gradeint': did you mean 'gradient'"),
        ({"seeds": [1, 1]}, "seeds: .*different seeds"),
        ({"seeds": [0, 2**33]}, "seeds: .*from 0 to 4294967295"),
        ({"seed": [1]}, "seed: no such option; did you mean 'seeds'"),
        ({"slices": 4}, "slices: 4: a window has an odd number"),
        ({"training": {"steps": 0}}, "training.steps: 0"),
        ({"training": {"stepz": 4}}, "training.stepz: no such option; did you mean 'steps'"),
        ({"training": {"devices": 2}}, "training.*one device"),
        ({"arms": [{"name": "pretrained", "strategy": "unifrom"}]}, r"arms\[0\].strategy: 'unifrom': did"),
        ({"arms": [{"name": "pretrained"}] * 2}, "arms: .*'pretrained' occurs twice"),
        ({"datasets": [{"name": "a", "train": [{"image": "i", "labels": "l"}]}]}, r"datasets\[0\].test: is"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, change, message):
    (tmp_path / "bad.yaml").write_text(json.dumps(options(**change)))
    with pytest.raises(ConfigError, match=message) as error:
        load_config(tmp_path / "bad.yaml", StudyConfig)
    assert "\n" not in str(error.value)


def test_options_given_as_objects_count_as_those_of_a_file():
    pair = {"image": "image.npy", "labels": "labels.npy"}
    data = StudyData(name="blobs", train=[pair], test=[pair], training={"batch": 3})
    given = StudyConfig.model_validate(
        {**options(), "datasets": (data,), "training": TrainingConfig(steps=6, crop=(32, 32))}
    )
    (training,) = {run.config.training for run in plan_runs(given)}
    assert (training.steps, training.batch, training.crop) == (6, 3, (32, 32))
    as_tuple = StudyConfig.model_validate({**options(), "datasets": tuple(options()["datasets"])})
    assert as_tuple == config()


def test_a_study_with_failed_runs_ends_with_a_status_of_its_own(folder, monkeypatch, capsys):
    broken = options(architectures=[{"name": "crashing", "spec": "studied:crashing", "weights": "none"}])
    (folder / "failing.yaml").write_text(json.dumps(broken))
    monkeypatch.setattr(sys, "argv", ["evenslice", "study", "failing.yaml", "--out", "failing"])
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 1
    assert "no luck" in capsys.readouterr().out


def test_arms_that_are_the_same_are_refused(folder):
    same = options()
    same["arms"].append({"name": "again", "strategy": "uniform", "tie": "mirror"})
    with pytest.raises(ConfigError, match="blobs, small, again: is the same as blobs, small, tied"):
        study(StudyConfig.model_validate(same), folder / "same")
