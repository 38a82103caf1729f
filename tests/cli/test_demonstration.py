"""The demonstration: its folder and its seed; what it computes takes minutes, and is tested with its parts."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from evenslice.cli import demonstration, main
from evenslice.studying.study_runner import STUDY_FILES, working_in_study
from evenslice.volumes import open_volume, write_volume


@pytest.fixture
def studied(monkeypatch):
    """Leave the files of a study where the demonstration would train, as ``study`` does; note where."""
    folders = []

    def study(config, folder):
        with working_in_study(folder):
            for name in STUDY_FILES:
                (folder / name).write_text(str(config.seeds))
            (folder / "runs" / "pretrained-0123456789ab").mkdir(parents=True, exist_ok=True)
            folders.append(folder)

    monkeypatch.setattr("evenslice.studying.study", study)
    monkeypatch.setattr(demonstration, "load_study", lambda folder: folder)
    monkeypatch.setattr(demonstration, "_probable_classes", lambda: np.ones((4, 5, 6), np.uint8))
    monkeypatch.setattr(demonstration, "mni152", lambda: open_volume(np.ones((4, 5, 6), np.uint8)))
    return folders


def test_a_demonstration_replaces_an_earlier_one(studied, tmp_path):
    folder = tmp_path / "training"
    demonstration.train_demo(folder, seed=1)
    (folder / "runs" / "uniform-0123456789ab").mkdir()
    demonstration.train_demo(folder, seed=2, force=True)
    assert studied == [folder, folder]
    assert [run.name for run in (folder / "runs").iterdir()] == ["pretrained-0123456789ab"]
    assert {(folder / name).read_text() for name in STUDY_FILES} == {"(2,)"}


def test_nothing_is_removed_that_no_demonstration_left(studied, tmp_path):
    from evenslice import OutputError

    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(OutputError, match=r"config\.yaml"):
        demonstration.train_demo(tmp_path, force=True)
    assert (tmp_path / "config.yaml").read_text() == "mine"
    assert studied == []


def test_labels_of_the_user_are_not_taken_for_those_of_a_demonstration(
    studied, monkeypatch, capsys, tmp_path
):
    from evenslice import OutputError

    mine, folder = np.zeros((4, 5, 6), np.uint8), tmp_path / "training"
    write_volume(open_volume(mine), folder / "labels.nii.gz", labels=True)
    (folder / "config.yaml").write_text("mine")
    (folder / "runs").mkdir()
    with pytest.raises(OutputError, match=r"labels\.nii\.gz: exists"):
        demonstration.train_demo(folder)
    monkeypatch.setattr(demonstration, "run_demo", None)
    assert run(monkeypatch, "--out", str(tmp_path)) == 2
    assert (
        "labels.nii.gz: exists; choose another --out, or replace it with --force" in capsys.readouterr().err
    )
    assert np.array_equal(open_volume(folder / "labels.nii.gz")[...], mine)
    with pytest.raises(OutputError, match=r"config\.yaml"):
        demonstration.train_demo(folder, force=True)
    assert (folder / "config.yaml").read_text() == "mine"
    assert (folder / "runs").exists()
    assert studied == []


def test_the_folder_of_the_training_is_checked_before_the_audits(monkeypatch, capsys, tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training/config.yaml").write_text("mine")
    monkeypatch.setattr(demonstration, "run_demo", None)
    assert run(monkeypatch, "--out", str(tmp_path)) == 2
    assert "config.yaml: was not written by a study" in capsys.readouterr().err


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evenslice", "demo", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_a_seed_that_no_training_takes_is_refused_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demonstration, "run_demo", None)
    assert run(monkeypatch, "--seed", str(2**32), "--out", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err == "error: --seed 4294967296: the training takes seeds up to 4294967295\n"
    assert not (tmp_path / "out").exists()


def test_what_the_training_needs_is_checked_before_the_audits(monkeypatch, capsys, tmp_path):
    def missing(name):
        raise ModuleNotFoundError(f"No module named 'absent', wanted by {name}", name="absent")

    monkeypatch.setattr(demonstration, "run_demo", None)
    monkeypatch.setattr(demonstration, "import_module", missing)
    assert run(monkeypatch, "--out", str(tmp_path / "out")) == 2
    assert "the training part of the demonstration needs the package 'absent'" in capsys.readouterr().err


def test_json_stands_alone_on_standard_output(monkeypatch, capsys, tmp_path):
    def talk(*_, **__):
        sys.stdout.write("a library talks\n")
        return []

    def train(*_, **__):
        sys.stdout.write("a library talks\n")
        return SimpleNamespace(summary={"finished": 3}, runs=[])

    monkeypatch.setattr(demonstration, "run_demo", talk)
    monkeypatch.setattr(demonstration, "train_demo", train)
    monkeypatch.setattr("evenslice.cli.comparison.write_results", lambda *_: None)
    monkeypatch.setattr("evenslice.cli.study_tables.course_table", lambda _: "")
    assert run(monkeypatch, "--json", "--out", str(tmp_path / "out")) == 0
    captured = capsys.readouterr()
    assert "talks" not in captured.out
    assert captured.err.count("a library talks") == 2
