"""Results, networks and configurations from others: read in bounds, refused in a line; nothing of the user's removed."""

import io
import json
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
from commands import run_command
from safetensors import safe_open
from safetensors.torch import save_file
from synthetic import PRETRAINED, UNIFORM, make_audit, save_audits

from evenslice import load_audits, load_network, save_network

pytestmark = pytest.mark.attack

MEMORY, SECONDS, PATIENCE = 2**30, 30, 60
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


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [("record", {"slices": 999_999_999}, "at most 1001"), ("source", {"classes": 10**9}, "has more than")],
)
def test_records_with_huge_numbers_are_refused(tmp_path, part, value, words):
    model, _, source = load_network(SPEC, "none", strategy="uniform")
    path = tmp_path / "network.safetensors"
    save_network(model, path, source=source)
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["evenslice"])
    document[part] |= value
    save_file({"a": torch.zeros(4)}, path, {"evenslice": json.dumps(document)})
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).random((9, 32, 32), np.float32))
    arguments = "audit", "--model", SPEC, "--weights", path, "--volume", "volume.npy"
    assert words in evenslice(*arguments, cwd=tmp_path)


CONFIGURATIONS = {
    "names": "\n".join(f"k{number:05d}: 1" for number in range(84_000)),
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
    names = ["figures/example-photo.png", "tables/mine.csv", "thesis.docx", "../secret.txt"]
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
