"""Results, networks and configurations from others: read in bounds, refused in a line; nothing of the user's removed."""

import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import torch
from commands import run_command
from safetensors.torch import save_file
from synthetic import PRETRAINED, UNIFORM, make_audit, save_audits
from synthetic_study import make_study

from evenslice import EvensliceError, load_audits, load_network, save_network
from evenslice.training import RunFolder, load_segmenter

pytestmark = pytest.mark.attack

MEMORY, SECONDS, PATIENCE = 2**30, 5, 60
SPEC = "timm:test_resnet"
OWN = "mine"


def evenslice(*arguments, cwd, status=2):
    """Run a command within bounds of memory and time, and return what it says."""
    if sys.platform != "linux":
        pytest.skip("memory is read from /proc")
    done = run_command(*arguments, cwd=cwd, timeout=PATIENCE)
    said = done.stderr
    assert "Traceback" not in said, said[-2000:]
    assert done.returncode == status, said[-2000:]
    assert done.memory < MEMORY, f"{done.memory / 2**30:.1f} GiB"
    if done.returncode:  # a refusal is quick; the pictures of a report take their time
        assert done.seconds < SECONDS, f"{done.seconds} s"
        assert said.count("\n") == 1, said
    return said


@pytest.fixture
def audit(tmp_path):
    folder = tmp_path / "audit"
    folder.mkdir()
    save_audits([make_audit("pretrained", PRETRAINED, size=16, windows=50)], folder)
    return folder


# Bounded


def bomb(path):
    """Write an .npz file of kilobytes whose one array would take 1 GiB."""
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (2**27,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("measurements/shares.npy", "w", force_zip64=True) as entry:
            entry.write(header.getvalue())
            for _ in range(8):
                entry.write(bytes(2**27))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGED = {
    "bomb": ("audit.npz", bomb, "its arrays have 1,073,741,952 bytes; at most 536,870,912 are read"),
    "pipe": ("audit.json", pipe, "not a regular file"),
    "device": ("audit.npz", device, "not a regular file"),
    "deep": ("audit.json", lambda path: path.write_text("[" * 10**6), "cannot be read as part of an audit"),
    "long": (
        "audit.json",
        lambda path: path.write_text('{"format": 1' + "0" * 20_000_000 + "}"),
        "cannot be read as part of an audit",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_results_that_grow_or_are_no_files_are_refused(audit, tmp_path, kind):
    name, damage, message = DAMAGED[kind]
    damage(audit / name)
    assert message in evenslice("report", audit, cwd=tmp_path)


@pytest.mark.parametrize(("name", "refused"), [("runs/*/run.json", True), ("runs/*/log/metrics.csv", False)])
def test_documents_of_a_study_that_are_devices_are_refused_or_left_out(tmp_path, name, refused):
    study = make_study(tmp_path / "study", arms={"pretrained": (0, 0)}, seeds=(0,), size=16)
    (found,) = study.glob(name)
    device(found)
    said = evenslice("report", study, cwd=tmp_path, status=2 if refused else 0)
    assert ("not a regular file" in said) == refused


@pytest.mark.slow
def test_compressed_entries_of_a_checkpoint_are_not_inflated(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(10)}, buffer)
    compressed = zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(buffer) as plain, compressed as found:
        for entry in plain.infolist():
            with found.open(entry.filename, "w", force_zip64=True) as inflated:
                if entry.filename.endswith("data/0"):
                    for _ in range(12):
                        inflated.write(bytes(2**27))
                else:
                    inflated.write(plain.read(entry))
    files = ("--weights", "bomb.pt", "--out", "out.safetensors")
    assert "bytes, more than it has" in evenslice("neutralize", "--model", SPEC, *files, cwd=tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("record", {"slices": 999_999_999}, "at most 1001"),
        ("record", {"slices": [[[]]] * 9}, "not a whole number"),
        ("source", {"classes": 10**9}, "is too small for its network"),
    ],
)
def test_records_with_huge_numbers_are_refused(tmp_path, part, value, words):
    model, _, source = load_network(SPEC, "none", strategy="uniform")
    path = tmp_path / "network.safetensors"
    save_network(model, path, source=source)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    document = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["evenslice"])
    document[part] |= value
    save_file({"a": torch.zeros(4)}, path, {"evenslice": json.dumps(document)})
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).random((9, 32, 32), np.float32))
    arguments = "audit", "--model", SPEC, "--weights", path, "--volume", "volume.npy"
    assert words in evenslice(*arguments, cwd=tmp_path)


CONFIGURATIONS = {
    "names": "\n".join(f"k{number:05d}: 1" for number in range(84_000)),
    "brackets": "data: " + "[" * 9000 + "]" * 9000,
    "merges": "a: &a {k: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1 if i else ''}, *a{i - 1 if i else ''}]}}\n" for i in range(30)),
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_configurations_that_grow_are_refused(tmp_path, kind):
    (tmp_path / "train.yaml").write_text(CONFIGURATIONS[kind])
    assert "train.yaml: " in evenslice("train", "train.yaml", "--out", "run", cwd=tmp_path)


# Nothing removed


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_the_user_beside_results_stay(audit, tmp_path):
    evenslice("report", audit, cwd=tmp_path, status=0)
    names = [
        "figures/example-photo.png",
        "audit-notes.json.txt",
        "tables/mine.csv",
        "thesis.docx",
        "../secret.txt",
    ]
    for name in names:
        (audit / name).write_text(OWN)
    listed = audit / ".evenslice-files.json"
    document = json.loads(listed.read_text())
    document["files"] += ["../secret.txt", "thesis.docx", str(tmp_path / "secret.txt"), "figures"]
    listed.write_text(json.dumps(document))  # as a folder from somebody else may list
    evenslice("report", audit, cwd=tmp_path, status=0)
    assert {name: (audit / name).read_text() for name in names} == dict.fromkeys(names, OWN)
    (audit / "figures" / "example-7.png").write_text(OWN)
    before = tree(audit)
    said = evenslice("report", audit, cwd=tmp_path)
    assert "figures/example-7.png: has the name of a result, but evenslice did not write it" in said
    assert tree(audit) == before


def test_force_replaces_no_file_of_the_user(tmp_path):
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).random((12, 32, 32), np.float32))
    paper = tmp_path / "paper"
    (paper / "figures").mkdir(parents=True)
    for name in ("report.html", "figures/shares.png", "audit.json"):
        (paper / name).write_text(OWN)
    before = tree(paper)
    arguments = ("audit", "--model", SPEC, "--weights", "none", "--volume", "volume.npy", "--max-windows", 6)
    said = evenslice(*arguments, "--out", paper, "--force", cwd=tmp_path)
    assert "evenslice did not write it" in said
    assert tree(paper) == before


@pytest.mark.parametrize("name", ["figures", "report.html"])
def test_nothing_is_written_or_removed_through_links(audit, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for own in ("shares.png", "example-1.png", "page"):
        (elsewhere / own).write_text(OWN)
    (audit / name).symlink_to(elsewhere / "page" if name == "report.html" else elsewhere)
    before = tree(elsewhere)
    said = evenslice("report", audit, cwd=tmp_path)
    assert f"{name}: is a link, through which nothing is written" in said
    assert tree(elsewhere) == before
    assert (audit / name).is_symlink()


# Damage


WRITTEN = Path(__file__).parents[1] / "data" / "written-by-0.2.0"
COUNT = fuzzing.COUNT or 15


def edit_record(content, chance):
    """Change the header of a network file, or its record of evenslice."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if chance.random() < 0.7:
        inner = header["__metadata__"]["evenslice"].encode()
        header["__metadata__"]["evenslice"] = fuzzing.edit_json(inner, chance).decode()
    else:
        header = json.loads(fuzzing.edit_json(json.dumps(header), chance))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def edit_npz(content, chance):
    """Change the shape, the type or the values of an array, or leave it out."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = chance.choice(sorted(arrays))
    array = arrays.pop(name)
    changes = [
        lambda: array[: len(array) // 2],
        lambda: array.astype(chance.choice(("<U3", "i1", "c16", "V5"))),
        lambda: np.full_like(array, 1 if array.dtype.kind != "f" else chance.choice((np.nan, np.inf, 3e38))),
        lambda: array[..., None],
        None,
    ]
    if (change := chance.choice(changes)) is not None:
        arrays[name] = change()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def edit_archive(content, chance):
    """Damage one entry of a file of ``torch.save``, whose checksums stay right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        chosen = chance.choice(before.namelist())
        for entry in before.namelist():
            data = before.read(entry)
            after.writestr(entry, fuzzing.damaged(data, chance) if entry == chosen else data)
    return buffer.getvalue()


EDITS = {".json": fuzzing.edit_json, ".npz": edit_npz, ".safetensors": edit_record, ".pt": edit_archive}


def seeds(kind, folder):
    """Copy what an earlier version wrote; each of its files is damaged."""
    if kind == "checkpoint":
        network = load_network(SPEC, "none").model.state_dict()
        torch.save({"state_dict": network}, folder / "network.pt")
    else:
        shutil.copytree(WRITTEN / kind, folder, dirs_exist_ok=True)
    files = [path for path in folder.rglob("*") if path.suffix in {*EDITS, ".csv", ".yaml"}]
    return [
        fuzzing.Seed(str(folder), [path], {"file": path}, EDITS.get(path.suffix)) for path in sorted(files)
    ]


def look(kind, item):
    """Read results and show them, as a user would see them."""
    from evenslice.cli.app import run

    if kind == "checkpoint":
        load_network(SPEC, str(item.options["file"]))
    elif kind == "networks":
        load_network(str(item.options["file"]))
    elif kind == "run":
        load_segmenter(Path(item.path))
        found = RunFolder(Path(item.path))
        found.read_result()
        found.read_metrics()
    else:
        with tempfile.TemporaryDirectory() as copy, redirect_stdout(io.StringIO()):
            status = run(["report", shutil.copytree(item.path, f"{copy}/{kind}")])
        if status == 2:
            raise EvensliceError("refused")
        assert status == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["audits/network", "study", "survey", "run", "networks", "checkpoint"])
def test_damaged_results_are_read_or_refused(kind):
    tally, findings = fuzzing.fuzz(partial(seeds, kind), partial(look, kind), COUNT, seed=3)
    assert findings == []
    assert tally["read"] + tally["refused"] == COUNT


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_network_files_get_the_umask(tmp_path, umask):
    model, _, source = load_network(SPEC, "none")
    before = os.umask(umask)
    try:
        save_network(model, tmp_path / "network.safetensors", source=source)
    finally:
        os.umask(before)
    assert (tmp_path / "network.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_audits_of_one_folder_come_back_under_long_names(tmp_path):
    audits = [make_audit(name, UNIFORM, size=16, windows=50) for name in ("a", "b" * 400, "\udcff\x1b[31m")]
    save_audits(audits, tmp_path)
    assert {item.name for item in load_audits(tmp_path)} == {item.name for item in audits}
