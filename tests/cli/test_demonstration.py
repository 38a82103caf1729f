"""The demonstration: its folder and its seed; what it computes takes minutes, and is tested with its parts."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from evenslice import open_volume
from evenslice.cli import demo

CLASSES = (189, 233, 197)
EXPLAIN = demo._explain


@pytest.fixture
def quick(monkeypatch):
    """Audit and train nothing, but let libraries talk; note the folders of trainings."""
    trained = []

    def talk(*_, **__):
        sys.stdout.write("a library talks\n")
        return []

    def study(config, folder):
        talk()
        trained.append((config["seeds"], folder))

    monkeypatch.setattr(demo, "_audits", talk)
    monkeypatch.setattr(demo, "_explain", lambda *_: "map of a slice")
    monkeypatch.setattr("evenslice.cli.comparison.write_results", lambda *_: None)
    monkeypatch.setattr("evenslice.study", study)
    result = SimpleNamespace(document={"finished": 3})
    monkeypatch.setattr("evenslice.results.StudyResults.load", lambda _: result)
    monkeypatch.setattr("evenslice.report.tables_of", lambda _: ())
    return trained


@pytest.mark.slow
def test_json_stands_alone_on_standard_output(quick, cli, tmp_path):
    status, out, err = cli("demo", "--json", "--seed", 7, "--out", tmp_path)
    assert status == 0, err
    assert json.loads(out) == {"audits": [], "training": {"finished": 3}}
    assert err.count("a library talks") == 2
    assert quick == [([7], tmp_path / "training")]
    labels = open_volume(tmp_path / "labels.nii.gz")
    assert labels.shape == CLASSES
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
