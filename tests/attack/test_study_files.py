"""Studies repeat what is damaged, replace no file of the user's, and do not work in one folder at once."""

import io
import json
import os
import shutil
import signal
import sys
import time
import zipfile

import numpy as np
import pytest
from tiny_training import start, studied, study_options, tree

from evenslice._core import mark_staging
from evenslice.cli import main
from evenslice.results import load_study
from evenslice.studying import StudyConfig, study
from evenslice.training import RunFolder, TrainConfig, train

pytestmark = pytest.mark.attack


@pytest.fixture(scope="module")
def config(inputs):
    return StudyConfig.model_validate(study_options(inputs))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "study"
    study(config, out)
    return out


@pytest.fixture
def out(undisturbed, tmp_path):
    """A copy of the finished study."""
    return shutil.copytree(undisturbed, tmp_path / "study")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line within this process."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return command


def first_run(out):
    return min((out / "runs").iterdir())


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def junk(path):
    path.write_bytes(b"\xff\x00" * 50)


DAMAGED = [
    *[("run.json", empty), ("result.json", cut), ("network.safetensors", cut), ("audit.json", cut)],
    *[("audit.npz", junk), ("example.npz", cut), ("config.yaml", junk), ("data.json", empty)],
    ("log/metrics.csv", junk),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_a_run_with_a_damaged_file_is_repeated(config, out, undisturbed, name, damage):
    damage(first_run(out) / name)
    repeated = []
    study(config, out, on_finished=lambda outcome, *_: repeated.append(outcome.status))
    assert repeated == ["done"]
    assert studied(out) == studied(undisturbed)
    assert len(load_study(out).runs) == 2


def test_a_run_whose_network_was_removed_on_purpose_is_finished(config, out, undisturbed):
    for run in (out / "runs").iterdir():
        (run / "network.safetensors").unlink()
    repeated = []
    study(config, out, on_finished=lambda outcome, *_: repeated.append(outcome.status))
    assert repeated == []


def test_a_run_whose_checkpoint_is_damaged_begins_again(config, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setenv("STOP_AT", "7")
        summary = study(config, out)
    assert summary["finished"] == 0
    for run in (out / "runs").iterdir():
        empty(run / "checkpoints" / "last.ckpt")
    assert study(config, out)["finished"] == 2
    assert studied(out) == studied(undisturbed)


@pytest.mark.parametrize("name", ["config.yaml", "results.csv", "summary.json", "report.html"])
def test_a_file_of_the_user_is_not_replaced(inputs, command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text = "# my own comments\n" + json.dumps(study_options(inputs))
    given = tmp_path / ("config.yaml" if name == "config.yaml" else "study.yaml")
    for path in (tmp_path / name, given):
        path.write_text(text)
    status, error = command("study", given, "--out", ".")
    assert status == 2
    assert error.count("\n") == 1
    assert f"{name}: was not written by a study, or its runs are elsewhere" in error
    assert (tmp_path / name).read_text() == text
    assert tree(tmp_path) == sorted({name, given.name})


def test_a_summary_without_its_runs_is_not_replaced(inputs, undisturbed, command, tmp_path):
    (tmp_path / "out").mkdir()
    shutil.copy(undisturbed / "summary.json", tmp_path / "out")
    (tmp_path / "study.yaml").write_text(json.dumps(study_options(inputs)))
    status, error = command("study", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert status == 2
    assert "summary.json: was not written by a study, or its runs are elsewhere" in error
    assert error.endswith("restore its folder runs, or choose another folder\n")
    assert tree(tmp_path / "out") == ["summary.json"]


def test_comments_in_the_configuration_of_a_study_stay(out, command, undisturbed):
    path = out / "config.yaml"
    text = "# my own comments\n" + path.read_text()
    path.write_text(text)
    assert command("study", path, "--out", out)[0] == 0
    assert path.read_text() == text


def test_what_somebody_put_beside_the_checkpoints_stays(config, undisturbed, tmp_path):
    out = tmp_path / "study"
    mine = out / "runs" / first_run(undisturbed).name / "checkpoints" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("notes")
    study(config, out)
    assert mine.read_text() == "notes"


def test_of_two_studies_in_one_folder_the_second_is_told_so(config, inputs, command, undisturbed, tmp_path):
    out = tmp_path / "study"
    process = start(inputs, "study", study_options(inputs), out, SLOW="0.3")
    try:
        for _ in range(1200):
            if list(out.glob("runs/*/checkpoints/last.ckpt")):
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        status, error = command("study", inputs / "study.yaml", "--out", out)
        assert status == 2
        assert error.count("\n") == 1
        assert "another `evenslice study` is at work in it" in error
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    study(config, out)
    assert studied(out) == studied(undisturbed)


def test_a_run_that_is_trained_alone_is_not_trained_by_a_study_too(config, undisturbed, tmp_path, inputs):
    out = tmp_path / "study"
    study(config, out)
    run = first_run(out)
    options = TrainConfig.model_validate(json.loads((run / "result.json").read_text())["config"])
    for name in ("run.json", "result.json", "network.safetensors"):
        (run / name).unlink()
    process = start(inputs, "train", options.model_dump(mode="json"), run, "--resume", SLOW="0.3")
    try:
        for _ in range(1200):
            if (run / ".evenslice-lock").exists():
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        assert (run / ".evenslice-lock").exists()
        (failed,) = study(config, out)["failed"]
        assert "another `evenslice train` is at work in it" in failed["error"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert study(config, out)["finished"] == 2
    assert studied(out) == studied(undisturbed)


@pytest.mark.parametrize("name", ["network.safetensors", "result.json", "audit.json"])
def test_a_run_is_not_repaired_while_another_process_works_on_it(config, out, undisturbed, name):
    run = RunFolder(first_run(out))
    cut(run.path / name)
    (run.path / ".audit.npz.a1b2_3d4").mkdir()  # which that process is writing
    before = tree(run.path)
    with run.lock():
        (failed,) = study(config, out)["failed"]
        assert "is at work in it; wait for it" in failed["error"]
        assert tree(run.path) == sorted([*before, ".evenslice-lock"])
        assert (run.path / ".audit.npz.a1b2_3d4").exists()
    study(config, out)
    assert studied(out) == studied(undisturbed)


def test_a_run_that_another_process_finishes_meanwhile_is_not_failed(config, out, undisturbed):
    """As a worker does that Dask takes for lost, although it goes on."""
    first, last = sorted((out / "runs").iterdir())
    finished = [(run / "run.json", (run / "run.json").read_text()) for run in (first, last)]
    for path, _ in finished:
        path.unlink()
    with RunFolder(first).lock():

        def finish(outcome, *_):
            if outcome.status == "done":  # of the other run, which is the last
                for path, text in finished[:1]:
                    path.write_text(text)

        summary = study(config, out, on_finished=finish)
    assert (summary["finished"], summary["failed"]) == (2, [])
    assert studied(out) == studied(undisturbed)


def test_what_a_killed_study_left_is_removed(config, out, undisturbed):
    run = first_run(out)
    (run / "run.json").unlink()
    for folder, name in (
        (out, "summary.json"),
        (out, "unfinished"),
        (run, "audit.npz"),
        (run, "result.json"),
        (run / "log", "metrics.csv"),
    ):
        (folder / f".{name}.a1b2_3d4").mkdir()
        mark_staging(folder / f".{name}.a1b2_3d4")
        (folder / f".{name}.a1b2_3d4" / name).write_bytes(bytes(100))
    (out / ".evenslice-lock").touch()
    study(config, out)
    assert studied(out) == studied(undisturbed)
    assert not [*out.rglob(".evenslice-lock"), *out.rglob(".*.a1b2_3d4")]


def test_files_that_inflate_or_never_end_are_damaged(config, out, undisturbed):
    run = first_run(out)
    content = io.BytesIO()
    np.save(content, np.zeros((2**13, 2**13), np.uint8))
    with zipfile.ZipFile(run / "example.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("image", "labels", "predicted"):
            archive.writestr(f"{name}.npy", content.getvalue())
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    study(config, out)
    assert studied(out) == studied(undisturbed)


def test_training_in_the_folder_of_a_study_goes_as_anywhere(config, out):
    run = first_run(out)
    options = TrainConfig.model_validate(json.loads((run / "result.json").read_text())["config"])
    assert train(options, run, resume=True)["steps"] == 8
