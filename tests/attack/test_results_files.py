"""Results, networks and configurations from others: read in bounds, refused in a line; nothing of the user's removed."""

import io
import json
import os
import shutil
import stat
import sys
import zipfile
from pathlib import Path

import fuzz_results
import fuzz_volumes
import numpy as np
import pytest
from commands import run_command
from safetensors.torch import save_file
from synthetic import PRETRAINED, UNIFORM, make_audit
from synthetic_study import make_study

from evenslice.auditing import load_audits
from evenslice.neutralizing import load_network, save_network
from evenslice.results import save_audits

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
    assert done.returncode in ((0, 2) if status is None else (status,)), said[-2000:]
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


# Bounded: results


def _bomb(path):
    """Write an .npz file of kilobytes whose one array would take 3 GiB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (3 * 2**27,)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("measurements/shares.npy", "w", force_zip64=True) as entry:
            entry.write(header.getvalue())
            for _ in range(24):
                entry.write(bytes(2**27))


def test_an_npz_bomb_is_refused(audit, tmp_path):
    _bomb(audit / "audit.npz")
    said = evenslice("report", audit, cwd=tmp_path)
    assert "its arrays have 3,221,225,600 bytes; at most 536,870,912 are read" in said


@pytest.mark.parametrize("name", ["audit.json", "audit.npz"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_results_that_are_pipes_or_devices_are_refused(audit, tmp_path, name, kind):
    (audit / name).unlink()
    if kind == "pipe":
        os.mkfifo(audit / name)
    else:
        (audit / name).symlink_to("/dev/zero")
    assert "not a regular file" in evenslice("report", audit, cwd=tmp_path)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("results.csv", True),
        ("runs/*/run.json", True),
        ("config.yaml", False),
        ("runs/*/log/metrics.csv", False),
    ],
)
def test_documents_of_a_study_that_are_devices_are_refused_or_left_out(tmp_path, name, refused):
    study = make_study(tmp_path / "study", arms={"pretrained": (0, 0)}, seeds=(0,), size=16)
    (found,) = study.glob(name)
    found.unlink()
    found.symlink_to("/dev/zero")
    said = evenslice("report", study, cwd=tmp_path, status=2 if refused else 0)
    assert ("not a regular file" in said) == refused


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5 + "1" + "}" * 10**5, '{"format": 1' + "0" * 20_000_000 + "}"]
)
def test_deep_or_huge_documents_are_refused(audit, tmp_path, text):
    (audit / "audit.json").write_text(text)
    assert "audit.json: cannot be read as part of an audit" in evenslice("report", audit, cwd=tmp_path)


# Bounded: networks


def _plain_archive(path, data_pkl=None, size=10):
    import torch

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(size)}, buffer)
    return zipfile.ZipFile(buffer)


@pytest.mark.slow
def test_compressed_entries_of_a_checkpoint_are_not_inflated(tmp_path):
    with (
        _plain_archive(tmp_path) as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            if entry.filename.endswith("data/0"):
                with bomb.open(entry.filename, "w", force_zip64=True) as inflated:
                    for _ in range(32):
                        inflated.write(bytes(2**27))
            else:
                bomb.writestr(entry.filename, plain.read(entry))
    said = evenslice(
        *("neutralize", "--model", SPEC, "--weights", "bomb.pt", "--out", "out.safetensors"), cwd=tmp_path
    )
    assert "bytes, more than it has" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": {"slices": 999_999_999}}, "at most 1001"),
        ({"record": {"slices": 1001}}, "has no weights for 1001 slices"),
        ({"record": {"slices": [[[]]] * 9}}, "not a whole number"),
        ({"source": {"classes": 10**9}}, "is too small for its network"),
    ],
)
def test_records_with_huge_numbers_are_refused(tmp_path, changes, words):
    model, _, source = load_network(SPEC, "none", strategy="uniform")
    path = tmp_path / "network.safetensors"
    save_network(model, path, source=source)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    document = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["evenslice"])
    for part, values in changes.items():
        document[part] |= values
    import torch

    save_file({"a": torch.zeros(4)}, path, {"evenslice": json.dumps(document)})
    arguments = "audit", "--model", SPEC, "--weights", path, "--volume", "volume.npy"
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).random((9, 32, 32), np.float32))
    assert words in evenslice(*arguments, cwd=tmp_path)


# Bounded: configurations


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"k{number:05d}: 1" for number in range(84_000)),
        "data: " + "[" * 9000 + "]" * 9000,
        "- " * 400_000,
        "a: &a {k: 1}\n"
        + "".join(
            f"a{i}: &a{i} {{<<: [*a{i - 1 if i else ''}, *a{i - 1 if i else ''}]}}\n" for i in range(30)
        ),
    ],
    ids=["names", "brackets", "dashes", "merges"],
)
def test_configurations_that_grow_are_refused(tmp_path, text):
    (tmp_path / "train.yaml").write_text(text)
    assert "train.yaml: " in evenslice("train", "train.yaml", "--out", "run", cwd=tmp_path)


# Nothing removed


def _tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_the_user_beside_results_stay(audit, tmp_path):
    evenslice("report", audit, cwd=tmp_path, status=0)
    mine = [
        "figures/example-photo.png",
        "figures/kernels-mine.svg",
        "audit-notes.json.txt",
        "tables/mine.csv",
    ]
    for name in mine:
        (audit / name).write_text(OWN)
    evenslice("report", audit, cwd=tmp_path, status=0)
    assert {name: (audit / name).read_text() for name in mine} == dict.fromkeys(mine, OWN)


def test_a_file_of_the_user_with_the_name_of_a_result_is_not_replaced(audit, tmp_path):
    evenslice("report", audit, cwd=tmp_path, status=0)
    (audit / "figures" / "example-7.png").write_text(OWN)
    before = _tree(audit)
    said = evenslice("report", audit, cwd=tmp_path)
    assert "figures/example-7.png: has the name of a result, but evenslice did not write it" in said
    assert _tree(audit) == before


def test_force_replaces_no_file_of_the_user(tmp_path):
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).random((12, 32, 32), np.float32))
    paper = tmp_path / "paper"
    (paper / "figures").mkdir(parents=True)
    for name in ("report.html", "figures/shares.png", "figures/example-photo.png", "audit.json"):
        (paper / name).write_text(OWN)
    before = _tree(paper)
    arguments = ("audit", "--model", SPEC, "--weights", "none", "--volume", "volume.npy", "--max-windows", 6)
    said = evenslice(*arguments, "--out", paper, "--force", cwd=tmp_path)
    assert "evenslice did not write it" in said
    assert _tree(paper) == before


def test_a_list_that_names_files_of_the_user_changes_nothing(audit, tmp_path):
    evenslice("report", audit, cwd=tmp_path, status=0)
    (tmp_path / "secret.txt").write_text(OWN)
    (audit / "thesis.docx").write_text(OWN)
    listed = audit / ".evenslice-files.json"
    document = json.loads(listed.read_text())
    document["files"] += ["../secret.txt", "thesis.docx", str(tmp_path / "secret.txt"), "figures"]
    listed.write_text(json.dumps(document))
    evenslice("report", audit, cwd=tmp_path, status=0)
    assert (tmp_path / "secret.txt").read_text() == (audit / "thesis.docx").read_text() == OWN


@pytest.mark.parametrize("name", ["figures", "tables", "report.html"])
def test_nothing_is_written_or_removed_through_links(audit, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for own in ("shares.png", "example-1.png", "run.csv", "page"):
        (elsewhere / own).write_text(OWN)
    (audit / name).symlink_to(elsewhere / "page" if name == "report.html" else elsewhere)
    before = _tree(elsewhere)
    said = evenslice("report", audit, cwd=tmp_path)
    assert f"{name}: is a link, through which nothing is written" in said
    assert _tree(elsewhere) == before
    assert (audit / name).is_symlink()


@pytest.mark.slow
def test_a_folder_of_an_earlier_version_is_drawn_again(tmp_path):
    folder = tmp_path / "audit"
    shutil.copytree(Path(__file__).parents[1] / "data" / "written-by-0.1.0" / "audit", folder)
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "example-photo.png").write_text(OWN)
    evenslice("report", folder, cwd=tmp_path, status=0)
    assert (folder / "figures" / "shares.svg").exists()
    assert (folder / "figures" / "example-photo.png").read_text() == OWN
    evenslice("report", folder, cwd=tmp_path, status=0)


# Damage


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz_results.KINDS)
def test_damaged_results_are_read_or_refused(name):
    tally, findings = fuzz_volumes.fuzz(name, 15, seed=3, script=fuzz_results.__file__)
    assert findings == []
    assert tally["read"] + tally["refused"] == 15


# The umask


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_network_files_get_the_umask(tmp_path, umask):
    model, _, source = load_network(SPEC, "none", strategy="uniform")
    before = os.umask(umask)
    try:
        save_network(model, tmp_path / "network.safetensors", source=source)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "network.safetensors").stat().st_mode) == 0o666 & ~umask


def test_audits_of_one_folder_come_back_under_long_names(tmp_path):
    audits = [make_audit(name, UNIFORM, size=16, windows=50) for name in ("a", "b" * 400, "\udcff\x1b[31m")]
    save_audits(audits, tmp_path)
    assert {item.name for item in load_audits(tmp_path)} == {item.name for item in audits}
