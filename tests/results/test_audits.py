import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit

from evenslice._core.errors import ConfigError, OutputError
from evenslice.auditing.documents import load_audits
from evenslice.results.audits import AuditedVolume, AuditRun, save_audits
from evenslice.results.verdicts import Asymmetry


@pytest.fixture
def audits():
    cases = [("pretrained", PRETRAINED), ("uniform", UNIFORM), ("pretrained, 5 slices", CYCLIC)]
    return [
        make_audit(name, shares, size=32, run={"created": f"2025-01-0{day}T00:00:00+00:00"})
        for day, (name, shares) in enumerate(cases, start=1)
    ]


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
    loaded = load_audits(tmp_path)
    assert len(loaded) == 3
    assert_same(loaded, audits)


def test_the_first_audit_has_the_plain_name(audits, tmp_path):
    save_audits(audits, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.json"))
    assert names == ["audit.1-uniform.json", "audit.2-pretrained-5-slices.json", "audit.json"]
    document = json.loads((tmp_path / "audit.json").read_text())
    assert document["verdict"] == "biased"
    assert [share["offset"] for share in document["shares"]] == [-1, 0, 1]
    assert set(document["shares"][0]) == {"offset", "mean", "low", "high"}
    figure = {"estimate", "low", "high", "judged", "state"}
    for part in (document, document["classes"][0]):
        assert set(part["pairs"][0]) == set(part["reliance"][0]) == figure | {"offset"}
    assert set(document["classes"][0]) == {
        *("class", "pixels", "windows", "pairs", "reliance", "answer_change", "mirror_mismatch")
    }
    assert set(document["decided_by"][0]) == {"question", "class", "offset"}
    assert set(document["answer_change"]) == figure | {"of", "class"}
    assert set(document["mirror_mismatch"]) == figure | {"pairs"}
    assert document["population"] == {"windows": 1683, "read": 120}
    assert (document["format"], document["definitions"]) == (1, 2)
    assert not {"second_opinion", "methods_agree"} & set(document)
    for key in [
        "directional_bias",
        "data_direction",
        "asymmetry",
        "imbalance",
        "mirror_error",
        "mirror_disagreement",
    ]:
        assert set(document[key]) == {"estimate", "low", "high"}
    statistics, run = ({entry.name for entry in dataclasses.fields(kind)} for kind in (Asymmetry, AuditRun))
    assert statistics | run < set(document)


def test_an_audit_shows_itself_in_one_line(audits):
    assert repr(audits[0]).startswith("<Audit 'pretrained': biased, saliency -0.1")
    assert len(repr(audits[0])) < 200


def test_json_knows_no_nan(audits):
    broken = dataclasses.replace(audits[0].statistics.mirror_error, estimate=math.nan, high=math.inf)
    audit = dataclasses.replace(
        audits[0], statistics=dataclasses.replace(audits[0].statistics, mirror_disagreement=broken)
    )
    document = json.loads(audit.to_json())
    assert document["mirror_disagreement"]["estimate"] is None
    assert document["mirror_disagreement"]["high"] is None


def test_audits_of_one_name_are_told_apart_by_their_folders(audits, tmp_path):
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
        save_audits(audits[:1], tmp_path / folder)
    assert sorted(audit.name for audit in load_audits(tmp_path)) == [
        "after: pretrained",
        "before: pretrained",
    ]


def test_audits_in_the_working_directory_are_told_by_its_name(audits, tmp_path, monkeypatch):
    for name in ("first", "first/second"):
        (tmp_path / name).mkdir()
        save_audits(audits[:1], tmp_path / name)
    for place, folder in (("first", "."), ("first/second", "..")):
        monkeypatch.chdir(tmp_path / place)
        assert {audit.name for audit in load_audits(folder)} == {"first: pretrained", "second: pretrained"}


def test_an_older_audit_without_some_entries_of_its_run_is_read(audits, tmp_path):
    save_audits(audits[:1], tmp_path)
    file = tmp_path / "audit.json"
    document = json.loads(file.read_text())
    for name in ("outputs", "windows_without_attribution", "batch", "command", "created"):
        del document[name]
    document["volumes"] = [{"path": "brain.nii.gz", "sha256": "60303ae2"}]
    file.write_text(json.dumps(document))
    (loaded,) = load_audits(tmp_path)
    assert (loaded.run.batch, loaded.run.command, loaded.run.created) == (None, None, "")
    assert loaded.run.volumes == (AuditedVolume(path="brain.nii.gz"),)
    assert loaded.run.tile == (192, 224)


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"pairs": None}, "pairs: None is not a list"),
        ({"pairs": []}, "slices and of pairs"),
        (
            {"reliance": [{"offset": 1, "estimate": "0.1", "low": 0, "high": 1}]},
            "reliance/0/estimate: '0.1' is not a number",
        ),
        ({"format": 99}, "format 99"),
        ({"definitions": 3}, "definitions 3"),
        ({"volumes": ["brain.nii.gz"]}, "volumes/0: 'brain.nii.gz' is not an object"),
        ({"verdict": "fine"}, "verdict: 'fine' is not one of symmetric, "),
        ({"windows": 1e300}, "windows: 1e.300 is not a whole number"),
        ({"seconds": 1e300}, "seconds: 1e.300 is too large"),
        ({"shares": 3}, "shares: 3 is not a list"),
    ],
)
def test_a_damaged_document_is_one_error_that_names_file_and_entry(audits, tmp_path, changes, entry):
    save_audits(audits[:1], tmp_path)
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    refuse(tmp_path, f"audit.json: cannot be read as part of an audit (.*{entry}")


def refuse(folder, reason):
    with pytest.raises(ConfigError, match=reason.replace("(", r"\(")) as caught:
        load_audits(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"format": 1}', '{"shares": '])
def test_what_is_no_document_is_refused(audits, tmp_path, content):
    save_audits(audits[:1], tmp_path)
    (tmp_path / "audit.json").write_text(content)
    refuse(tmp_path, "audit.json: cannot be read as part of an audit")


@pytest.mark.parametrize(
    ("arrays", "entry"),
    [
        (
            {"measurements/union": np.zeros((120, 3))},
            "measurements/union is float64 of shape",
        ),
        ({"measurements/volume": np.zeros(120)}, "measurements/volume is float64"),
        ({"measurements/volume": np.full(120, 7)}, "of a volume that is none"),
        ({"measurements/level": np.array([object()])}, "allow_pickle=False"),
        ({"examples/maps": np.full((2, 3, 32, 32), np.nan, np.float32)}, "examples/maps holds values beyond"),
        ({"examples/images": np.zeros((2, 5, 32, 32), np.uint8)}, "examples/images is uint8"),
        ({"examples/images": None}, "examples/images"),
        ({"kernels/0/after": np.zeros((4, 3))}, "kernels/0/after is of shape"),
    ],
)
def test_damaged_arrays_are_one_error_that_names_file_and_entry(audits, tmp_path, arrays, entry):
    save_audits(audits[:1], tmp_path)
    with np.load(tmp_path / "audit.npz") as known:
        kept = {name: array for name, array in {**known, **arrays}.items() if array is not None}
    np.savez(tmp_path / "audit.npz", **kept)
    refuse(tmp_path, f"audit.npz: cannot be read as part of an audit (.*{entry}")
    (tmp_path / "audit.npz").write_bytes(b"PK not quite")
    refuse(tmp_path, "audit.npz: cannot be read as part of an audit")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_audits_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no audit"):
        load_audits(tmp_path / name)


@pytest.mark.parametrize(("act", "error"), [("save", OutputError), ("load", ConfigError)])
def test_a_wrong_suffix_is_an_error_that_names_the_right_one(audits, tmp_path, act, error):
    with pytest.raises(error, match=r"a\.npz: .*a\.json"):
        getattr(audits[0], act)(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_an_audit_that_cannot_be_written_leaves_the_one_before(audits, tmp_path, monkeypatch):
    audits[0].save(tmp_path / "audit.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        audits[1].save(tmp_path / "audit.json")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
