"""Trainings lose nothing, resume only from what they wrote, and replace no file of the user's."""

import json
import os
import pickle
import shutil

import pytest
import torch
from commands import wait_until
from tiny_training import RunFiles, start, trained, training_options, tree

import evenslice

pytestmark = [pytest.mark.attack, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    evenslice.train(training_options(inputs), run)
    return run


@pytest.fixture(scope="module")
def stopped(inputs, tmp_path_factory):
    """A run that stopped at step 36 of 60, with a checkpoint of step 20."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped here"):
        patch.setenv("STOP_AT", "37")
        evenslice.train(training_options(inputs), run)
    return run


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of the run that stopped."""
    return RunFiles(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture
def resume(inputs, undisturbed):
    """Resume a run, and check that it ends as the undisturbed one, its log among others."""

    def resume(path):
        evenslice.train(training_options(inputs), path, resume=True)
        assert trained(path) == trained(undisturbed)

    return resume


class Command:
    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        return os.system, (self.text,)


def altered(change):
    def alter(path):
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    return alter


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


BAD = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps(Command("false"))),
    "pickled command": lambda path: torch.save(
        {"state_dict": Command(f"touch {path.parent}/executed")}, path
    ),
    "pipe": make_pipe,
    "a list": lambda path: torch.save([1, 2], path),
    "weights alone": altered(lambda found: [found.pop(name) for name in ("optimizer_states", "loops")]),
    "other weights": altered(
        lambda found: found["state_dict"].update({"network.0.weight": torch.zeros(9, 3, 3, 3)})
    ),
    "no time": altered(lambda found: found.pop("evenslice")),
}


@pytest.mark.parametrize("case", BAD)
def test_an_unusable_checkpoint_is_one_line_that_says_what_to_do(run, command, case):
    BAD[case](run.last)
    status, error = command("train", run.config, "--out", run.path, "--resume")
    assert error.count("\n") == 1, error
    assert "last.ckpt: cannot be resumed from (" in error
    assert "delete it to train from the start again" in error
    assert status == 2
    assert not (run.last.parent / "executed").exists()
    assert run.last.exists()


def test_without_its_checkpoint_a_run_begins_again(run, resume):
    run.last.unlink()
    resume(run.path)


def test_what_a_checkpoint_names_is_not_removed(run, resume, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    key = ModelCheckpoint(
        run.last.parent, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    ).state_key
    state = {"dirpath": "elsewhere", "best_model_path": f"local://{precious}"}
    altered(lambda found: found["callbacks"].update({key: state}))(run.last)
    resume(run.path)
    assert (precious / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["result", "data", "metrics", "network", "config"])
def test_a_damaged_file_of_a_run_is_one_line(undisturbed, command, tmp_path, name):
    run = RunFiles(shutil.copytree(undisturbed, tmp_path / "run"))
    config = shutil.copy(run.config, tmp_path / "config.yaml")
    if name != "result":
        run.result.unlink()
    path = getattr(run, name)
    path.write_bytes(b"\xff\xfe\x00")
    status, error = command("train", config, "--out", run.path, "--resume")
    assert status == 2
    assert error.count("\n") == 1, error
    assert path.name in error


@pytest.mark.parametrize(("name", "resume"), [("config.yaml", []), ("data.json", ["--resume"])])
def test_a_file_of_the_user_is_not_replaced(inputs, command, tmp_path, monkeypatch, name, resume):
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    text = "# my own comments\n" + json.dumps(training_options(inputs))
    theirs.write_text(text)
    given = theirs if name == "config.yaml" else tmp_path / "train.yaml"
    given.write_text(text)
    status, error = command("train", given, "--out", ".", *resume)
    assert status == 2
    assert f"{name}: is not a file of a run" in error
    assert theirs.read_text() == text
    assert tree(tmp_path) == sorted({name, given.name})


def test_of_two_trainings_in_one_folder_the_second_is_told_so(inputs, command, undisturbed, tmp_path):
    options, run = training_options(inputs, workers=2), RunFiles(tmp_path / "run")
    process = start(inputs, "train", options, run.path, SLOW="0.2")
    try:
        wait_until(run.last.exists, process)
        for arguments in ([], ["--resume"]):
            status, error = command("train", inputs / "train.yaml", "--out", run.path, *arguments)
            assert status == 2
            assert "another `evenslice train` is at work in it" in error
    finally:
        process.kill()
    # The processes that cut its crops live for some seconds more; they must not hold its lock.
    evenslice.train(options, run.path, resume=True)
    assert trained(run.path) == trained(undisturbed)


def test_what_a_killed_run_left_is_removed(run, inputs):
    for folder, name in ((run.path, "config.yaml"), (run.last.parent, "last.ckpt"), (run.log, "metrics.csv")):
        left = folder / f".{name}.a1b2_3d4"
        left.mkdir()
        (left / ".evenslice-staging").touch()
        (left / name).write_bytes(bytes(100))
    (run.path / ".evenslice-lock").touch()
    theirs = [run.path / name for name in (".mine.a1b2_3d4", ".result.json.previous", ".lock")]
    for folder in theirs:
        folder.mkdir()
    evenslice.train(training_options(inputs), run.path, resume=True)
    assert sorted(run.path.rglob(".*")) == sorted(theirs)
