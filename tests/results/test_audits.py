"""Audits come back from their files as they were, and nothing that is wrong with a file does harm."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit, save_audits, with_statistics

from evenslice import ConfigError, OutputError, load_audits

FIGURE = {"estimate", "low", "high", "judged", "state"}


@pytest.fixture(scope="module")
def audits():
    cases = [("pretrained", PRETRAINED), ("uniform", UNIFORM), ("pretrained, 5 slices", CYCLIC)]
    return [
        make_audit(name, shares, size=32, run={"created": f"2025-01-0{day}T00:00:00+00:00"})
        for day, (name, shares) in enumerate(cases, start=1)
    ]


@pytest.fixture
def folder(audits, tmp_path):
    save_audits(audits[:1], tmp_path)
    return tmp_path


def assert_same(a, b):
    if dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for entry in dataclasses.fields(a):
            assert_same(getattr(a, entry.name), getattr(b, entry.name))
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        np.testing.assert_equal(a, b)


def test_audits_come_back_from_their_files_as_they_were(audits, tmp_path):
    save_audits(audits, tmp_path)
    assert_same(load_audits(tmp_path), audits)


def test_in_short_an_audit_says_its_verdict_and_its_figures(audits):
    shown = repr(audits[0])
    assert shown.startswith("<Audit 'pretrained': biased, saliency ")
    for figure in (
        f"C {audits[0].answer.estimate:.3f}",
        f"E {audits[0].mismatch.estimate:.3f}, 120 windows>",
    ):
        assert figure in shown
    unasked = dataclasses.replace(audits[0].saliency[0], estimate=np.nan)
    assert "saliency" not in repr(with_statistics(audits[0], pairs=(unasked,)))


def test_the_document_has_its_keys(audits, folder):
    document = json.loads((folder / "audit.json").read_text())
    assert (document["verdict"], document["format"], document["definitions"]) == ("biased", 1, 2)
    assert [share["offset"] for share in document["shares"]] == [-1, 0, 1]
    assert set(document["shares"][0]) == {"offset", "mean", "low", "high"}
    for part in (document, document["classes"][0]):
        assert set(part["pairs"][0]) == set(part["reliance"][0]) == FIGURE | {"offset"}
    assert set(document["classes"][0]) == {
        *("class", "pixels", "windows", "pairs", "reliance", "answer_change", "mirror_mismatch")
    }
    assert set(document["decided_by"][0]) == {"question", "class", "offset"}
    assert set(document["answer_change"]) == FIGURE | {"of", "class"}
    assert set(document["mirror_mismatch"]) == FIGURE | {"pairs"}
    assert document["population"] == {"windows": 1683, "read": 120}
    for key in ("directional_bias", "data_direction", "asymmetry", "imbalance", "mirror_error"):
        assert set(document[key]) == {"estimate", "low", "high"}
    held = (audits[0].statistics, audits[0].run)
    assert {entry.name for item in held for entry in dataclasses.fields(item)} < set(document)


@pytest.mark.parametrize(
    ("folders", "within", "asked", "names"),
    [
        (("before", "after"), ".", ".", ["after: pretrained", "before: pretrained"]),
        (("first", "first/second"), "first", ".", ["first: pretrained", "second: pretrained"]),
        (("first", "first/second"), "first/second", "..", ["first: pretrained", "second: pretrained"]),
    ],
)
def test_audits_of_one_name_are_told_apart_by_their_folders(
    audits, tmp_path, monkeypatch, folders, within, asked, names
):
    for name in folders:
        (tmp_path / name).mkdir()
        save_audits(audits[:1], tmp_path / name)
    monkeypatch.chdir(tmp_path / within)
    assert sorted(audit.name for audit in load_audits(asked)) == names


def refuse(folder, file, entry=""):
    with pytest.raises(ConfigError) as caught:
        load_audits(folder)
    assert f"{file}: cannot be read as part of an audit" in str(caught.value)
    assert entry in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"pairs": None}, "pairs: None"),
        ({"reliance": [{"offset": 1, "estimate": "0.1", "low": 0, "high": 1}]}, "reliance/0/estimate: '0.1'"),
        ({"format": 99}, "format 99"),
        ({"definitions": 3}, "definitions 3"),
        ({"volumes": ["brain.nii.gz"]}, "volumes/0: 'brain.nii.gz'"),
        ({"verdict": "fine"}, "verdict: 'fine'"),
        ({"windows": 1e300}, "windows: 1e"),
        ({"seconds": "1"}, "seconds: '1'"),
        ({"shares": 3}, "not iterable"),
    ],
)
def test_a_damaged_document_is_one_error_that_names_file_and_entry(folder, changes, entry):
    file = folder / "audit.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    refuse(folder, "audit.json", entry)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"format": 1}', '{"shares": '])
def test_what_is_no_document_is_refused(folder, content):
    (folder / "audit.json").write_text(content)
    refuse(folder, "audit.json")


@pytest.mark.parametrize(
    ("name", "array", "entry"),
    [
        ("measurements/union", np.zeros((120, 3)), "measurements/union is float64 of shape"),
        ("measurements/volume", np.zeros(120), "measurements/volume is float64"),
        ("measurements/level", np.array([object()]), "allow_pickle=False"),
        ("examples/images", np.zeros((2, 5, 32, 32), np.uint8), "examples/images is uint8"),
        ("examples/images", None, "examples/images"),
        ("kernels/0/after", None, "kernels/0/after"),
    ],
)
def test_damaged_arrays_are_one_error_that_names_file_and_entry(folder, name, array, entry):
    with np.load(folder / "audit.npz") as known:
        kept = {**known, name: array}
    np.savez(folder / "audit.npz", **{name: array for name, array in kept.items() if array is not None})
    refuse(folder, "audit.npz", entry)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_audits_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no audit"):
        load_audits(tmp_path / name)


def test_a_wrong_suffix_is_an_error_that_names_the_right_one(audits, tmp_path):
    with pytest.raises(OutputError, match=r"a\.npz: .*a\.json"):
        audits[0].save(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_an_audit_that_cannot_be_written_leaves_the_one_before(audits, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        audits[1].save(folder / "audit.json")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
