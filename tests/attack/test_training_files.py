"""Trainings lose nothing, resume only from what they wrote, and replace no file of the user's."""

import csv
import errno
import json
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_training import start, trained, training_options, tree

from evenslice._core import ConfigError, OutputError, mark_staging
from evenslice.cli import main
from evenslice.training import RunFolder, TrainConfig, train

pytestmark = pytest.mark.attack


@pytest.fixture(scope="module")
def config(inputs):
    return TrainConfig.model_validate(training_options(inputs))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config, run)
    return run


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """A run that stopped at step 36 of 60, with a checkpoint of step 20."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped here"):
        patch.setenv("STOP_AT", "37")
        train(config, run)
    return run


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of the run that stopped."""
    return RunFolder(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line within this process."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return command


def test_a_run_that_stopped_ends_as_an_undisturbed_one(config, run, undisturbed):
    train(config, run.path, resume=True)
    assert trained(run.path) == trained(
        undisturbed
    )  # its log among others: validated every 20, measured every 30


def test_a_checkpoint_is_never_copied_into_its_place(config, run, undisturbed, tmp_path, monkeypatch):
    """As where the folder for temporary files is on another file system, and the disk of the run is full."""
    other = tmp_path / "other"
    other.mkdir()
    rename = os.rename

    def rename_within(source, target):
        if Path(source).is_relative_to(other) != Path(target).is_relative_to(other):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    def copy_to_full_disk(source, target, **_):
        Path(target).write_bytes(b"")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(other))
        patch.setattr(os, "rename", rename_within)
        patch.setattr(shutil, "copyfile", copy_to_full_disk)
        train(config, run.path, resume=True)
    assert trained(run.path) == trained(undisturbed)


def test_a_full_disk_leaves_the_previous_checkpoint(config, run, undisturbed, monkeypatch):
    before, write = run.last.read_bytes(), Path.write_bytes

    def write_to_full_disk(path, data):
        if path.name == "last.ckpt":
            write(path, bytes(data)[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_to_full_disk)
        with pytest.raises(OutputError, match=r"last\.ckpt: cannot be written \(No space left"):
            train(config, run.path, resume=True)
    assert run.last.read_bytes() == before
    train(config, run.path, resume=True)
    assert trained(run.path) == trained(undisturbed)


class Command:
    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        return os.system, (self.text,)


def flipped(content):
    with zipfile.ZipFile(__import__("io").BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    place = largest.header_offset + 200 + largest.file_size // 2
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


def altered(change):
    def alter(path):
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    return alter


def pickled(path):
    torch.save({"state_dict": Command(f"touch {path.parent}/executed")}, path)


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


BAD = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "one bit": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "text": lambda path: path.write_text("epoch: 3"),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps(Command("false"))),
    "pickled command": pickled,
    "large": lambda path: os.truncate(path, 2**40),
    "pipe": make_pipe,
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "a list": lambda path: torch.save([1, 2], path),
    "weights alone": altered(lambda found: [found.pop(name) for name in ("optimizer_states", "loops")]),
    "other weights": altered(
        lambda found: found["state_dict"].update({"network.0.weight": torch.zeros(9, 3, 3, 3)})
    ),
    "no weights": altered(lambda found: found["state_dict"].pop("network.0.weight")),
    "text for a count": altered(
        lambda found: found["loops"]["fit_loop"].update(epoch_progress={"current": "none"})
    ),
    "no measurements": altered(
        lambda found: [state.update(history=["none"]) for state in found["callbacks"].values()]
    ),
    "no time": altered(lambda found: found.pop("evenslice")),
}


def without_assumptions(error):
    """Leave out the lines that say what a training assumes, which may come before an error."""
    kept = [line for line in error.splitlines(keepends=True) if not line.startswith(ASSUMPTIONS)]
    return "".join(kept)


ASSUMPTIONS = ("network: ", "slices: ", "scaling: ", "data: ", "training: ", "test: ")


@pytest.mark.parametrize("case", BAD)
def test_an_unusable_checkpoint_is_one_line_that_says_what_to_do(run, command, inputs, case):
    BAD[case](run.last)
    status, error = command("train", run.config, "--out", run.path, "--resume")
    error = without_assumptions(error)
    assert error.count("\n") == 1, error
    assert "last.ckpt: cannot be resumed from (" in error
    assert "delete it to train from the start again" in error
    assert status == 2
    assert not (run.last.parent / "executed").exists()
    assert run.last.exists()


def test_a_checkpoint_that_is_damaged_anywhere_is_refused_or_does_no_harm(
    config, stopped, undisturbed, tmp_path
):
    chance, resumed, refused = np.random.default_rng(0), 0, []
    for number in range(40):
        run = RunFolder(shutil.copytree(stopped, tmp_path / str(number)))
        content = bytearray(run.last.read_bytes())
        place = int(chance.integers(len(content)))
        if number % 4 == 0:
            content = content[:place]
        elif number % 4 == 1:
            content[place:place] = chance.bytes(9)
        else:
            content[place] ^= 1 << int(chance.integers(8))
        run.last.write_bytes(content)
        try:
            train(config, run.path, resume=True)
        except ConfigError as error:
            refused.append(str(error))
        else:
            resumed += 1
            assert trained(run.path) == trained(undisturbed)
    assert all(re.fullmatch(r".*last\.ckpt: cannot be resumed from .*", text) for text in refused)
    assert resumed < 20  # a bit between the parts of the file means nothing


def test_without_its_unusable_checkpoint_a_run_ends_as_an_undisturbed_one(config, run, undisturbed):
    run.last.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"last\.ckpt: .* delete it"):
        train(config, run.path, resume=True)
    run.last.unlink()
    train(config, run.path, resume=True)
    assert trained(run.path) == trained(undisturbed)


def test_what_a_checkpoint_names_is_not_removed(config, run, undisturbed, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    key = ModelCheckpoint(
        run.last.parent, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    ).state_key
    state = {"dirpath": "elsewhere", "best_model_path": f"local://{precious}"}
    altered(lambda found: found["callbacks"].update({key: state}))(run.last)
    train(config, run.path, resume=True)
    assert (precious / "thesis.txt").exists()
    assert trained(run.path) == trained(undisturbed)


def test_a_run_killed_before_its_last_measurement_gets_it(inputs, tmp_path):
    config = TrainConfig.model_validate(training_options(inputs, steps=25))
    whole, killed = tmp_path / "whole", RunFolder(tmp_path / "killed")
    train(config, whole)
    shutil.copytree(whole, killed.path)
    killed.network.unlink()
    killed.result.unlink()
    with killed.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[-1] |= {
        name: ""
        for name in rows[-1]
        if name.startswith("share") or name in {"directional_bias", "asymmetry", "imbalance"}
    }
    with killed.metrics.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    train(config, killed.path, resume=True)
    assert trained(killed.path) == trained(whole)


def test_a_row_that_was_cut_short_is_written_again(config, run, undisturbed):
    with run.metrics.open("a") as file:
        file.write("4")  # of 40,0.5,...
    train(config, run.path, resume=True)
    assert trained(run.path) == trained(undisturbed)


def test_a_log_is_not_lost_where_a_resumed_run_cannot_write(config, run, undisturbed, monkeypatch):
    before, enter = run.metrics.read_bytes(), csv.DictWriter.writerows

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", fail)
        with pytest.raises(OutputError, match=r"metrics\.csv: cannot be written"):
            train(config, run.path, resume=True)
    assert csv.DictWriter.writerows is enter
    assert run.metrics.read_bytes() == before
    train(config, run.path, resume=True)
    assert trained(run.path) == trained(undisturbed)


def without_rows(path):
    """Drop the rows after step 10, as if a power failure had lost them."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


LOST_LOGS = {
    "damaged": lambda path: path.write_bytes(b"step;loss\n0;1\n"),
    "removed": lambda path: path.unlink(),
    "cut": without_rows,
}


@pytest.mark.parametrize("case", LOST_LOGS)
def test_a_log_that_is_lost_does_not_make_another_network_the_best(inputs, command, tmp_path, case):
    np.save(inputs / "inverted.npy", 1 - np.load(inputs / "labels.npy"))  # better the less is learned
    options = training_options(inputs, keep="best", stress=False)
    options["data"]["validation"] = [{"image": "image.npy", "labels": "inverted.npy", "slices": [20, 24]}]
    options["data"] = {name: options["data"][name] for name in ("name", "root", "train", "validation")}
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    train(options, whole.path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped here"):
        patch.setenv("STOP_AT", "46")
        train(options, run.path)
    LOST_LOGS[case](run.metrics)
    status, error = command("train", "--out", run.path, "--resume")
    assert status == 0, error
    assert trained(run.path) == trained(whole.path)
    assert whole.read_result()["validation"]["step"] < 60


STATED_IN = {
    "result.json": lambda run: run.last.unlink(),
    "network.safetensors": lambda run: (run.result.unlink(), run.last.unlink()),
    "best.safetensors": lambda run: (run.result.unlink(), run.network.unlink()),
    "last.ckpt": lambda run: (run.result.unlink(), run.network.unlink(), run.best.unlink()),
}


@pytest.mark.parametrize("name", STATED_IN)
def test_a_run_does_not_go_on_with_an_edited_configuration(undisturbed, command, tmp_path, name):
    run = RunFolder(shutil.copytree(undisturbed, tmp_path / "run"))
    STATED_IN[name](run)
    given = shutil.copy(run.config, tmp_path / "config.yaml")
    text = run.config.read_text()
    edited = text.replace("learning_rate: 0.01", "learning_rate: 0.02").replace("seed: 0", "seed: 1")
    run.config.write_text(edited)
    before = tree(run.path)
    status, error = command("train", "--out", run.path, "--resume")
    assert status == 2
    assert re.search(
        rf"error: seed, training\.learning_rate: changed since the run began, as .*{name} says", error
    )
    assert tree(run.path) == before
    status, error = command("train", given, "--out", run.path, "--resume")  # as it was, but for the folder
    assert status == 2
    assert "error: seed, training.learning_rate: changed since the run began" in error
    run.config.write_text(text)
    assert command("train", "--out", run.path, "--resume")[0] == 0


def drop_result(run, name):
    run.result.unlink()
    return getattr(run, name)


DAMAGED = {
    "result": lambda run: run.result,
    "data": lambda run: drop_result(run, "data"),
    "metrics": lambda run: drop_result(run, "metrics"),
    "network": lambda run: drop_result(run, "network"),
    "config": lambda run: drop_result(run, "config"),
}


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe\x00", b'{"train": 3, "dice": [], "data": 1}']
)
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_is_one_line(undisturbed, command, inputs, tmp_path, name, content):
    run = RunFolder(shutil.copytree(undisturbed, tmp_path / "run"))
    config = shutil.copy(run.config, tmp_path / "config.yaml")
    path = DAMAGED[name](run)
    path.write_bytes(content)
    status, error = command("train", config, "--out", run.path, "--resume")
    assert status == 2
    error = without_assumptions(error)
    assert error.count("\n") == 1, error
    assert path.name in error


@pytest.mark.parametrize("name", ["config.yaml", "data.json", "log/metrics.csv"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_file_of_the_user_is_not_replaced(inputs, command, tmp_path, monkeypatch, name, resume):
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    text = "# my own comments\n" + json.dumps(training_options(inputs))
    theirs.write_text(text)
    given = theirs if name == "config.yaml" else tmp_path / "train.yaml"
    given.write_text(text)
    status, error = command("train", given, "--out", ".", *(["--resume"] if resume else []))
    assert status == 2
    assert f"{name}: is not a file of a run" in error
    assert "choose another folder" in error
    assert theirs.read_text() == text
    assert tree(tmp_path) == sorted({name, given.name})


def test_the_configuration_of_a_run_without_a_checkpoint_is_its_own(config, undisturbed, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for path in (undisturbed / "config.yaml", undisturbed / "data.json"):
        shutil.copy(path, run.path)
    train(config, run.path, resume=True)
    assert trained(run.path) == trained(undisturbed)


def test_of_two_trainings_in_one_folder_the_second_is_told_so(inputs, command, undisturbed, tmp_path):
    options, run = training_options(inputs, workers=2), RunFolder(tmp_path / "run")
    process = start(inputs, "train", options, run.path, SLOW="0.2")
    try:
        for _ in range(1200):
            if run.last.exists():
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        for arguments in ([], ["--resume"]):
            status, error = command("train", inputs / "train.yaml", "--out", run.path, *arguments)
            assert status == 2
            assert error.count("\n") == 1
            assert "another `evenslice train` is at work in it" in error
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # The processes that cut its crops live for some seconds more; they must not hold its lock.
    train(TrainConfig.model_validate(options), run.path, resume=True)
    assert trained(run.path) == trained(undisturbed)


def test_what_a_killed_run_left_is_removed(config, run, undisturbed):
    for folder, name in ((run.path, "config.yaml"), (run.last.parent, "last.ckpt"), (run.log, "metrics.csv")):
        (folder / f".{name}.a1b2_3d4").mkdir()
        mark_staging(folder / f".{name}.a1b2_3d4")
        (folder / f".{name}.a1b2_3d4" / name).write_bytes(bytes(100))
    (run.path / ".evenslice-lock").touch()
    (run.path / ".lock").write_text("mine")
    theirs = [run.path / name for name in (".mine.a1b2_3d4", ".result.json.previous")]
    for folder in theirs:
        folder.mkdir()
    train(config, run.path, resume=True)
    assert all(folder.exists() for folder in theirs)
    assert (run.path / ".lock").read_text() == "mine"
    for folder in theirs:
        folder.rmdir()
    (run.path / ".lock").unlink()
    assert trained(run.path) == trained(undisturbed)
    assert not [*run.path.rglob(".*")]
