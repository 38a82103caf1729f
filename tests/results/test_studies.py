"""What a study found comes back from its folder, and nothing that is wrong with the folder does harm."""

import csv
import json
import math
import shutil
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import ARMS, make_study

from evenslice import ConfigError
from evenslice.results import StudyResults


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("made") / "study", seeds=(0, 1), size=32)


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "study"))


def run_folder(folder):
    """The folder of the first run of the table."""
    key = rows(folder)[0]["key"]
    return next(folder.glob(f"runs/*-{key}"))


def rows(folder):
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(folder, changed):
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, changed[0])
        table.writeheader()
        table.writerows(changed)


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_comes_back(folder):
    results = StudyResults.load(folder)
    assert results.document == json.loads((folder / "summary.json").read_text())
    assert (results.baseline, results.arms) == ("pretrained", tuple(ARMS))
    assert "steps: 300" in results.config
    (comparison,) = results.comparisons
    assert comparison.title == "Lucchi++, EfficientNet-Lite0 U-Net"
    for arm, written in zip(comparison.arms, results.document["comparisons"][0]["arms"], strict=True):
        assert arm.seeds == (0, 1)
        assert arm.metrics["dice"].low == written["figures"]["dice"]["low"]
        assert [share.estimate for share in arm.shares] == [item["estimate"] for item in written["shares"]]
        assert math.isnan(arm.metrics["adapted_rand_error"].estimate)
        assert asdict(arm.bias_removed) == pytest.approx(
            {name: math.nan if value is None else value for name, value in written["bias_removed"].items()},
            nan_ok=True,
        )
        assert arm.holds is written["non_inferiority"]["holds"]
    baseline, _, uniform, *_ = comparison.arms
    assert (baseline.differences, baseline.holds, uniform.margin) == ({}, None, 0.01)


def test_runs_come_with_their_logs_and_examples(folder):
    results = StudyResults.load(folder)
    assert [(run.arm, run.seed) for run in results.runs] == [(arm, seed) for arm in ARMS for seed in (0, 1)]
    run = results.runs_of(results.comparisons[0], "pretrained")[1]
    record = json.loads(next(folder.glob(f"runs/*-{rows(folder)[1]['key']}/run.json")).read_text())
    assert (run.verdict, run.definitions) == (record["verdict"], 2) == ("biased", 2)
    curves = run.curves
    assert curves["step"].tolist() == list(range(0, 301, 10))
    assert (np.isfinite(curves["share_-1"]).sum(), math.isnan(curves["loss"][0])) == (7, True)
    with np.load(run_folder(folder) / "example.npz") as example:
        for name in PICTURES:
            np.testing.assert_array_equal(getattr(results.runs[0].example, name), example[name])
    assert run.circumstances["versions"]["torch"] == "2.9.0"


def test_the_small_files_suffice(folder):
    for pattern in ("config.yaml", "runs/*/result.json", "runs/*/example.npz", "runs/*/log/metrics.csv"):
        for path in folder.glob(pattern):
            path.unlink()
    results = StudyResults.load(folder)
    assert results.config == ""
    assert len(results.runs) == 12
    for run in results.runs:
        assert (run.curves, run.example, run.stress, run.circumstances) == ({}, None, None, {})


def test_runs_that_version_0_2_audited_have_no_verdict_beside_others(folder):
    assert StudyResults.load(folder).definitions == 2
    change(run_folder(folder) / "run.json", definitions=1)
    first, second = StudyResults.load(folder).runs[:2]
    assert [(run.definitions, run.verdict) for run in (first, second)] == [(1, ""), (2, "biased")]


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no study; name a folder that"):
        StudyResults.load(tmp_path)


def refuse(folder, file, reason=""):
    with pytest.raises(ConfigError) as error:
        StudyResults.load(folder)
    assert f"{file}: cannot be read as part of a study" in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *product(
            ("summary.json", "results.csv"),
            (b"", b"[1, 2", b"\xff\xfe\x00", b"[]", b"x\n1,2\n", b"[" * 100_000),
        ),
        *product(("example.npz",), (b"", b"PK not quite", b"\x00" * 1000)),
    ],
)
def test_garbage_is_named(folder, name, content):
    (run_folder(folder) / name if name == "example.npz" else folder / name).write_bytes(content)
    refuse(folder, name)


ARM = {"arm": "x", "figures": {}, "shares": [], "seeds": [0]}


def compared(*arms, **changes):
    """What stands for the comparisons of a summary."""
    return {"comparisons": [{"dataset": "d", "architecture": "a", "arms": arms, **changes}]}


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"format": 2}, "format 2"),
        ({"baseline": 3}, "baseline: 3"),
        ({"planned": -1}, "planned: -1"),
        ({"definitions": True}, "definitions: True"),
        ({"failed": 3}, "failed: 3"),
        (compared({"arm": "x", "figures": {}}), "comparisons/0/arms/0/seeds"),
        (compared(architecture=None), "comparisons/0/architecture: None"),
        (compared(unit="run"), "comparisons/0/unit: 'run'"),
        (compared(ARM | {"non_inferiority": {"holds": "yes"}}), "arms/0/non_inferiority/holds: 'yes'"),
        (compared(ARM | {"figures": {"dice": {"estimate": "0.8"}}}), "figures/dice/estimate: '0.8'"),
        (compared(ARM | {"shares": [{"low": 1}]}), "shares/0/estimate is missing"),
    ],
)
def test_a_wrong_summary_is_refused(folder, changes, entry):
    change(folder / "summary.json", **changes)
    refuse(folder, "summary.json", entry)


@pytest.mark.parametrize("key", ["", "*", "../../etc", "0" * 65, "ABCDEF", "0" * 12])
def test_a_key_cannot_lead_elsewhere(folder, key):
    table = rows(folder)
    table[0]["key"] = key
    write_rows(folder, table)
    refuse(folder, "results.csv", f"no folder runs/*-KEY has the key {key!r}")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"verdict": None}, "verdict: None"), ({"definitions": "new"}, "definitions: 'new'")],
)
def test_a_wrong_record_is_refused(folder, changes, reason):
    change(run_folder(folder) / "run.json", **changes)
    refuse(folder, "run.json", reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("step,loss\n1,many\n", "could not convert"),
        ("step,loss\n,0.5\n", "invalid literal for int"),
        ("step,loss\n20,0.5\n10,0.4\n", "its steps do not increase"),
        ("step,loss\n1,2,3\n", "float"),
        ("step\n" + "1" * 68_000_000, "68,000,005 bytes where at most 67,108,864 are read"),
    ],
)
def test_a_wrong_log_is_refused(folder, text, reason):
    (run_folder(folder) / "log" / "metrics.csv").write_text(text)
    refuse(folder, "metrics.csv", reason)


PICTURES = ("image", "labels", "predicted")


class Danger:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def write_example(folder, **arrays):
    good = {name: np.zeros((4, 5), np.uint8) for name in PICTURES}
    np.savez_compressed(run_folder(folder) / "example.npz", **{**good, **arrays})


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"image": np.zeros((4, 5))}, "image is float64"),
        ({"image": np.zeros((4, 5, 3), np.uint8)}, "image is uint8"),
        ({"image": np.zeros((5, 4), np.uint8)}, "labels is uint8"),
        ({"image": np.zeros((3000, 3000), np.uint8)}, "bytes; at most"),
        ({"image": np.array([[Danger()]], dtype=object)}, "allow_pickle=False"),
    ],
)
def test_a_wrong_example_is_refused(folder, arrays, reason):
    write_example(folder, **arrays)
    refuse(folder, "example.npz", reason)
