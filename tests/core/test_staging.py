import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evenslice import OutputError
from evenslice._core import staging

PATTERNS = ("audit*.json", "figures/*.svg")


@pytest.mark.parametrize("path", ["", os.devnull])
def test_a_folder_or_a_device_is_no_file(path, tmp_path):
    with pytest.raises(OutputError, match="name a file"), staging.staged_file(tmp_path / path, force=True):
        pass


def write(folder, *names, content="new", **options):
    """Write a result of some files, documents among them."""
    documents = ("audit*.json", "survey.json", "result.json")
    options = {"force": True, **options}
    patterns = options.pop("patterns", PATTERNS)
    with staging.staged_folder(
        folder, patterns, documents=[item for item in documents if item in patterns], **options
    ) as new:
        for name in names:
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text('{\n  "format": 1, "is": "' + content)
        if content == "half":
            raise RuntimeError


def found(folder):
    """Return what the files are, without the list of them."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".evenslice-files.json")
    return {str(path.relative_to(folder)): path.read_text().rpartition('"')[2] for path in files}


def test_results_replace_results_only_by_force_and_leave_other_files(tmp_path):
    for path in (tmp_path, tmp_path / "new"):
        with pytest.raises(RuntimeError):
            write(path, "audit.json", content="half")
    assert not list(tmp_path.iterdir())
    write(tmp_path, "audit.old.json", "figures/old.svg", content="old")
    for name in ("notes.txt", "figures/thesis.tex"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=r"holds another result \(audit.old.json\).*force"):
        write(tmp_path, "audit.json", force=False)
    with pytest.raises(RuntimeError):
        write(tmp_path, "audit.json", content="half")
    theirs = {"notes.txt": "mine", "figures/thesis.tex": "mine"}
    assert found(tmp_path) == theirs | {"audit.old.json": "old", "figures/old.svg": "old"}
    write(tmp_path, "audit.json", "figures/new.svg")
    assert found(tmp_path) == theirs | {"audit.json": "new", "figures/new.svg": "new"}


def test_a_move_that_fails_takes_everything_back(tmp_path):
    write(tmp_path, "audit.json", content="old")
    (tmp_path / "figures").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path, "audit.json", "figures/new.svg")
    assert found(tmp_path)["audit.json"] == "old"
    assert (tmp_path / "figures").is_file()


def old_results(folder):
    return sorted(path.name for path in folder.rglob("audit.?.json") if path.read_text().endswith("old"))


@pytest.mark.parametrize("move", [1, 2, 4, 5])
@pytest.mark.parametrize("back", [True, False])
def test_an_interrupt_right_after_a_move_loses_no_old_result(tmp_path, monkeypatch, move, back):
    write(tmp_path, "audit.a.json", "audit.b.json", content="old")
    replace, made = Path.replace, []

    def interrupted(source, target):
        if len(made) < move or back:
            replace(source, target)
        made.append(target)
        if len(made) == move or (len(made) > move and not back):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", interrupted)
        write(tmp_path, "audit.json")
    assert old_results(tmp_path) == ["audit.a.json", "audit.b.json"]
    if back:
        assert set(found(tmp_path)) == {"audit.a.json", "audit.b.json"}
    write(tmp_path, "survey.json", patterns=["survey.json"])  # which removes what killed processes left
    assert old_results(tmp_path) == ["audit.a.json", "audit.b.json"]


def test_only_what_evenslice_wrote_is_replaced(tmp_path):
    files = {"patterns": ["audit.json", "a.html"]}
    for content in ("first", "second"):
        with staging.staged_folder(
            tmp_path, ["audit.json", "a.html"], documents=["audit.json"], force=True
        ) as folder:
            (folder / "audit.json").write_text('{\n  "format": 1}')
            (folder / "a.html").write_text(content)
    (tmp_path / ".evenslice-files.json").unlink()
    with pytest.raises(OutputError, match="evenslice did not write it"):
        write(tmp_path, "audit.json", **files)
    assert (tmp_path / "a.html").read_text() == "second"


def test_the_next_result_removes_what_a_killed_one_left_and_not_what_is_being_written(tmp_path):
    code = (
        "import os, signal; from evenslice._core.staging import staged_folder\n"
        f"with staged_folder({str(tmp_path)!r}, ['a.json'], documents=['a.json']) as beside:\n"
        "    (beside / 'a.json').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = tmp_path.glob(".unfinished.*")
    with staging.staged_folder(tmp_path, ["b.txt"], documents=[]) as working:
        assert not left.exists()
        write(tmp_path, "audit.json")
        assert working.is_dir()
        (working / "b.txt").write_text("whole")
    assert set(found(tmp_path)) == {"audit.json", "b.txt"}


def test_a_result_of_another_kind_is_kept_where_names_are_shared(tmp_path):
    shared = [["survey.json", "report.html"], ["audit.json", "report.html"], ["result.json"]]
    survey, audit, result = ({"patterns": names} for names in shared)
    write(tmp_path, *shared[0], **survey)
    for force in (False, True):
        with pytest.raises(
            OutputError, match=r"result of another kind \(survey.json\), to which report.html"
        ):
            write(tmp_path, *shared[1], force=force, **audit)
    assert set(found(tmp_path)) == set(shared[0])
    write(tmp_path, *shared[0], **survey)
    write(tmp_path, *shared[2], force=False, **result)  # no name is shared


def test_a_file_where_a_folder_should_be_is_said_to_be_one(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 3")
    for out in (tmp_path / "base.yaml", tmp_path / "base.yaml" / "run"):
        for context in (staging.staged_folder(out, ["*"], documents=[]), staging.locked_folder(out, "")):
            with pytest.raises(OutputError, match=r"base\.yaml.* is, or lies in, a file"), context:
                pass


def test_a_folder_that_goes_with_the_process_that_held_it(tmp_path, monkeypatch):
    """Between two attempts to lock it, the other process may have ended."""
    folder = tmp_path / "unfinished"
    other = staging.FileLock(folder / staging.LOCK)

    def end_other(_):
        other.release(force=True)
        shutil.rmtree(folder)

    folder.mkdir()
    other.acquire()
    monkeypatch.setattr("time.sleep", end_other)
    with pytest.raises(OutputError, match="is busy"), staging.locked_folder(folder, "is busy"):
        pass
