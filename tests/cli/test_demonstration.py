"""The demonstration: its folder, its seed, and the whole of it with few windows and steps."""

import json
from dataclasses import make_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import rich

from evenslice import Sampling, open_volume
from evenslice.cli import demo

EXPLAIN = demo._explain


@pytest.fixture
def quick(monkeypatch):
    """Audit and train nothing; note the folders of trainings."""
    trained = []
    monkeypatch.setattr(demo, "_audits", lambda _: [])
    monkeypatch.setattr("evenslice.cli.comparison.write_results", lambda *_: None)
    monkeypatch.setattr("evenslice.study", lambda _, folder: trained.append(folder))
    monkeypatch.setattr("evenslice.results.StudyResults.load", lambda _: SimpleNamespace(document={}))
    monkeypatch.setattr("evenslice.report.tables_of", lambda _: ())
    return trained


@pytest.mark.slow
def test_json_stands_alone_on_standard_output(cli, monkeypatch, tmp_path):
    def short(*given):
        rich.print("a library talks")
        options = configuration(*given)
        options["training"] |= {"steps": 1, "validate_every": 1, "monitor_every": 1, "stress": False}
        for part, slices in (("train", [30, 50]), ("test", [108, 111])):
            options["datasets"][0][part][0]["slices"] = slices
        return options | {"arms": options["arms"][:2], "audit": {"max_windows": 1}}

    configuration = demo._configuration
    few = make_dataclass("Few", [("max_windows", int, 2)], bases=(Sampling,), frozen=True, kw_only=True)
    monkeypatch.setattr("evenslice.Sampling", few)
    monkeypatch.setattr(demo, "_configuration", short)
    monkeypatch.setattr(demo, "STRATEGIES", ("twin",))
    status, out, err = cli("demo", "--json", "--seed", 7, "--out", tmp_path)
    assert (status, "a library talks" in err) == (0, True), err
    found = json.loads(out)
    assert [audit["verdict"] for audit in found["audits"]] == ["inconclusive"]
    assert (found["training"]["finished"], found["training"]["failed"]) == (2, [])
    labels = open_volume(tmp_path / "labels.nii.gz")
    assert labels.shape == (189, 233, 197)
    assert np.unique(labels[90]).tolist() == [0, 1, 2]


@pytest.mark.slow
def test_a_demonstration_can_be_repeated(quick, cli, monkeypatch, tmp_path):
    for seed in (0, 1):
        (tmp_path / f"runs/net-twin-0-{seed}-4e74").mkdir(parents=True)
    monkeypatch.setattr(demo, "_explain", lambda _, *others: EXPLAIN(tmp_path, *others))
    asked = []
    monkeypatch.setattr(
        "evenslice.training.find_network", lambda run: SimpleNamespace(load=lambda: asked.append(run.name))
    )
    monkeypatch.setattr("evenslice.explain", lambda *_: SimpleNamespace(_repr_html_=lambda: "a map"))
    for more in ([], ["--force", "--seed", 1]):
        status, _, err = cli("demo", "--out", tmp_path / "out", *more)
        assert status == 0, err
        assert (tmp_path / "out/explanation.html").read_text().endswith("a map")
    assert asked == ["net-twin-0-0-4e74", "net-twin-0-1-4e74"]


def test_nothing_is_replaced_that_no_demonstration_left(quick, cli, tmp_path):
    (tmp_path / "labels.nii.gz").write_text("mine")
    for more in ([], ["--force"]):
        status, _, err = cli("demo", "--out", tmp_path, *more)
        assert status == 2
        assert "labels.nii.gz" in err
    assert (tmp_path / "labels.nii.gz").read_text() == "mine"
    assert quick == []


def test_the_folder_of_the_training_is_checked_before_the_audits(quick, cli, tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training/config.yaml").write_text("mine")
    status, out, err = cli("demo", "--out", tmp_path, "--force")
    assert (status, out) == (2, "")
    assert "config.yaml: was not written by a study" in err


def test_what_the_training_needs_is_checked_before_the_audits(quick, cli, monkeypatch, tmp_path):
    def missing(name):
        raise ModuleNotFoundError(f"No module named 'absent', wanted by {name}", name="absent")

    monkeypatch.delattr("evenslice.studying.working_in_study", raising=False)
    monkeypatch.setattr("evenslice.studying.__getattr__", missing)
    status, out, err = cli("demo", "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert "the training part of the demonstration needs the package 'absent'" in err
