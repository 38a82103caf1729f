"""Studies repeat what is damaged, replace no file of the user's, and do not work in one folder at once."""

import json
import os
import shutil

import pytest
from filelock import FileLock
from tiny_training import studied, study_options, tree

import evenslice

pytestmark = [pytest.mark.attack, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(inputs):
    return study_options(inputs)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "study"
    evenslice.study(config, out)
    return out


@pytest.fixture
def out(undisturbed, tmp_path):
    """A copy of the finished study."""
    return shutil.copytree(undisturbed, tmp_path / "study")


def first_run(out):
    return min((out / "runs").iterdir())


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def junk(path):
    path.write_bytes(b"\xff\x00" * 50)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGED = {
    "run.json": empty,
    "network.safetensors": cut,
    "audit.npz": junk,
    "data.json": pipe,
    "log/metrics.csv": junk,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_run_with_a_damaged_file_is_repeated(config, out, undisturbed, name):
    DAMAGED[name](first_run(out) / name)
    repeated = []
    evenslice.study(config, out, on_finished=lambda outcome, *_: repeated.append(outcome.status))
    assert repeated == ["done"]
    assert studied(out) == studied(undisturbed)


def test_a_run_whose_network_was_removed_on_purpose_is_finished(config, out):
    for run in (out / "runs").iterdir():
        (run / "network.safetensors").unlink()
    repeated = []
    evenslice.study(config, out, on_finished=lambda outcome, *_: repeated.append(outcome.status))
    assert repeated == []


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
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


def test_comments_in_the_configuration_of_a_study_stay(out, command):
    path = out / "config.yaml"
    text = "# my own comments\n" + path.read_text()
    path.write_text(text)
    assert command("study", path, "--out", out)[0] == 0
    assert path.read_text() == text


def test_a_run_is_not_repaired_while_another_process_works_on_it(config, out, undisturbed):
    run = first_run(out)
    cut(run / "network.safetensors")
    (run / ".audit.npz.a1b2_3d4").mkdir()  # which that process is writing
    before = tree(run)
    with FileLock(run / ".evenslice-lock"):
        (failed,) = evenslice.study(config, out)["failed"]
        assert "is at work in it; wait for it" in failed["error"]
        assert tree(run) == sorted([*before, ".evenslice-lock"])
        assert (run / ".audit.npz.a1b2_3d4").exists()
    evenslice.study(config, out)
    assert studied(out) == studied(undisturbed)


def test_what_a_killed_study_left_is_removed(config, out, undisturbed):
    run = first_run(out)
    (run / "run.json").unlink()
    for folder, name in (
        (out, "summary.json"),
        (out, "unfinished"),
        (run, "audit.npz"),
        (run / "log", "metrics.csv"),
    ):
        left = folder / f".{name}.a1b2_3d4"
        left.mkdir()
        (left / ".evenslice-staging").touch()
        (left / name).write_bytes(bytes(100))
    (out / ".evenslice-lock").touch()
    evenslice.study(config, out)
    assert studied(out) == studied(undisturbed)
    assert not [*out.rglob(".evenslice-lock"), *out.rglob(".*.a1b2_3d4")]
