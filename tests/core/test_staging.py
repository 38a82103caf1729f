import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evenslice import OutputError
from evenslice._core import staging
from evenslice._core.staging import locked_folder, staged_file, staged_folder

PATTERNS = ("audit*.json", "figures/*.svg")


@pytest.mark.parametrize("folder", [False, True])
def test_an_output_appears_only_when_whole_and_is_replaced_only_by_force(folder, tmp_path):
    path = tmp_path / "new" / "a"

    def write(text, **options):
        with staged_file(path, folder=folder, **options) as beside:
            if folder:
                beside.mkdir()
            (beside / "text" if folder else beside).write_text(text)
            if text == "half":
                raise RuntimeError
        return (path / "text" if folder else path).read_text()

    with pytest.raises(RuntimeError):
        write("half")
    assert list((tmp_path / "new").iterdir()) == []
    assert write("old") == "old"
    with pytest.raises(OutputError, match="exists; .*force"):
        write("new")
    with pytest.raises(RuntimeError):
        write("half", force=True)
    assert write("new", force=True) == "new"
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["a"]


def test_a_file_that_appeared_meanwhile_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OutputError, match="exists; .*force"), staged_file(path) as beside:
        beside.write_text("new")
        path.write_text("of another process")
    with pytest.raises(OutputError, match="No space left"), staged_file(path, force=True):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "of another process"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("path", ["", os.devnull])
def test_a_folder_or_a_device_is_no_file(path, tmp_path):
    with pytest.raises(OutputError, match="name a file"), staged_file(tmp_path / path, force=True):
        pass


def test_results_replace_results_only_by_force_and_leave_other_files(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("notes.txt", "audit.old.json", "figures/old.svg", "figures/thesis.tex"):
        (tmp_path / name).write_text("old")
    with pytest.raises(OutputError, match=r"holds another result \(audit.old.json\).*force"):
        with staged_folder(tmp_path, PATTERNS):
            pass
    with staged_folder(tmp_path, PATTERNS, force=True) as folder:
        (folder / "audit.json").write_text("new")
        (folder / "figures").mkdir()
        (folder / "figures" / "new.svg").write_text("new")
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["audit.json", "figures", "figures/new.svg", "figures/thesis.tex", "notes.txt"]


def test_a_move_that_fails_takes_everything_back(tmp_path):
    (tmp_path / "audit.json").write_text("old")
    (tmp_path / "figures").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        with staged_folder(tmp_path, PATTERNS, force=True) as folder:
            (folder / "audit.json").write_text("new")
            (folder / "figures").mkdir()
            (folder / "figures" / "new.svg").write_text("new")
    assert (tmp_path / "audit.json").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["audit.json", "figures"]


def replace_old_results(folder):
    """Replace two old results by a new one, of another name."""
    for name in ("audit.a.json", "audit.b.json"):
        (folder / name).write_text("old")
    with staged_folder(folder, PATTERNS, force=True) as beside:
        (beside / "audit.json").write_text("new")


def old_results(folder):
    return sorted(path.name for path in folder.rglob("audit.?.json") if path.read_text() == "old")


@pytest.mark.parametrize("move", [1, 2, 3])
def test_an_interrupt_right_after_a_move_takes_everything_back(tmp_path, monkeypatch, move):
    replace, made = Path.replace, []

    def interrupted(source, target):
        replace(source, target)
        made.append(target)
        if len(made) == move:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_old_results(tmp_path)
    assert sorted(os.listdir(tmp_path)) == old_results(tmp_path) == ["audit.a.json", "audit.b.json"]


def test_old_results_that_cannot_be_taken_back_are_not_removed(tmp_path, monkeypatch):
    replace, made = Path.replace, []

    def interrupted(source, target):
        made.append(target)
        if len(made) > 1:  # the second move, and the first that is undone
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", interrupted)
        replace_old_results(tmp_path)
    assert old_results(tmp_path) == ["audit.a.json", "audit.b.json"]
    with staged_folder(tmp_path, ["survey.json"]) as beside:  # which removes what killed processes left
        (beside / "survey.json").write_text("new")
    assert old_results(tmp_path) == ["audit.a.json", "audit.b.json"]


def test_a_failed_result_leaves_what_was_there(tmp_path):
    (tmp_path / "audit.json").write_text("old")
    for path in (tmp_path, tmp_path / "new"):
        with pytest.raises(RuntimeError), staged_folder(path, PATTERNS, force=True) as folder:
            (folder / "audit.json").write_text("half")
            raise RuntimeError
    assert os.listdir(tmp_path) == ["audit.json"]
    assert (tmp_path / "audit.json").read_text() == "old"


def test_only_what_evenslice_wrote_is_replaced(tmp_path):
    def write(text):
        with staged_folder(tmp_path, ["a.json", "a.html"], documents=["a.json"], force=True) as folder:
            (folder / "a.json").write_text(text)
            (folder / "a.html").write_text(text)

    (tmp_path / "a.json").write_text('{\n  "format": 1}')  # as Python saved it, without a list
    write("first")
    write("second")
    assert (tmp_path / "a.html").read_text() == "second"
    (tmp_path / ".evenslice-files.json").unlink()
    with pytest.raises(OutputError, match="evenslice did not write it"):
        write("third")
    assert (tmp_path / "a.html").read_text() == "second"


def test_the_next_result_removes_what_a_killed_one_left_and_not_what_is_being_written(tmp_path):
    code = (
        "import os, signal; from evenslice._core.staging import staged_folder\n"
        f"with staged_folder({str(tmp_path)!r}, ['a.txt']) as beside:\n"
        "    (beside / 'a.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = tmp_path.glob(".unfinished.*")
    with staged_folder(tmp_path, ["b.txt"]) as working:
        assert not left.exists()
        with staged_folder(tmp_path, ["a.txt"]) as beside:
            (beside / "a.txt").write_text("whole")
        assert working.is_dir()
        (working / "b.txt").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("staged", [staged_file, lambda path: staged_folder(path, ["a.txt"])])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://me:pass@host/a", r"^https://\*\*\*@host/a: is an address"),
        ("", "^the path is empty; name a"),
    ],
)
def test_an_address_or_nothing_is_not_taken_for_the_name_of_a_folder(
    tmp_path, monkeypatch, staged, path, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=message), staged(path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_result_of_another_kind_is_kept_where_names_are_shared(tmp_path):
    def write(*names, force):
        documents = [name for name in names if name.endswith(".json")]
        with staged_folder(tmp_path, names, documents=documents, force=force) as folder:
            for name in names:
                (folder / name).write_text('{\n  "format": 1}' if name in documents else names[0])

    write("survey.json", "report.html", force=False)
    for force in (False, True):
        message = (
            r"holds a result of another kind \(survey.json\), to which report.html belongs; choose another"
        )
        with pytest.raises(OutputError, match=message):
            write("audit.json", "report.html", force=force)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["report.html", "survey.json"]
    assert (tmp_path / "report.html").read_text() == "survey.json"
    write("survey.json", "report.html", force=True)
    write("result.json", force=False)  # no name is shared
    write("result.json", force=True)


def test_a_file_where_a_folder_should_be_is_said_to_be_one(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 3")
    for out in (tmp_path / "base.yaml", tmp_path / "base.yaml" / "run"):
        with (
            pytest.raises(OutputError, match=r"base\.yaml: is a file; name a folder$"),
            staged_folder(out, ["*"]),
        ):
            pass
        with (
            pytest.raises(OutputError, match=r"base\.yaml: is a file; name a folder$"),
            locked_folder(out, ""),
        ):
            pass


def test_a_folder_that_goes_with_the_process_that_held_it(tmp_path, monkeypatch):
    """Between two attempts to lock it, the other process may have ended."""
    folder = tmp_path / "unfinished"
    other = staging.FileLock(folder / "lock")

    def end_other(_):
        other.release(force=True)
        shutil.rmtree(folder)

    folder.mkdir()
    other.acquire()
    monkeypatch.setattr("time.sleep", end_other)
    with pytest.raises(OutputError, match="is busy"), staging.locked(folder / "lock", "is busy"):
        pass
