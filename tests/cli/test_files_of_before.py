"""Files that version 0.1.0 wrote are read: networks, audits, surveys, runs of training, and finished studies."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evenslice
from evenslice._core.config_files import load_config
from evenslice.auditing.documents import Survey
from evenslice.cli import main
from evenslice.studying.config import StudyConfig

BEFORE = Path(__file__).parents[1] / "data" / "written-by-0.1.0"
SPEC = "smp:Unet/tu-test_resnet?encoder_depth=2&decoder_channels=[4,4]"


@pytest.fixture
def folder(tmp_path):
    """A copy, which tests may write to."""
    return Path(shutil.copytree(BEFORE, tmp_path / "before"))


@pytest.fixture
def run_cli(monkeypatch):
    """Run a command line within this process and return its status."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code

    return run


def test_a_saved_network_gives_the_output_it_gave():
    network, record, source = evenslice.load_network(SPEC, str(BEFORE / "fair.safetensors"))
    windows = torch.rand(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = network(windows)
    np.testing.assert_allclose(output.numpy(), np.load(BEFORE / "output_of_fair.npy"), rtol=0, atol=1e-5)
    assert (record.strategy, record.tie, record.slices, source.weights) == (
        "mirror",
        "mirror",
        5,
        str(BEFORE / "fair.safetensors"),
    )
    assert network.get_submodule("encoder.model.conv1.0").parametrizations  # the tie is there again


def not_known_before(volume):
    """Take out of a volume what version 0.1.0 did not note."""
    return [volume.pop(name) for name in ("region", "select", "level", "labels_path", "labels")]


def test_audits_say_what_they_said(folder):
    pretrained, uniform = evenslice.load_audits(folder / "audit")
    assert (pretrained.verdict, uniform.verdict) == ("biased", "symmetric")
    for audit, name in ((pretrained, "audit.json"), (uniform, "audit.1-uniform.json")):
        found, said = json.loads(audit.to_json()), json.loads((folder / "audit" / name).read_text())
        assert [pair.pop("judged") for pair in found["pairs"]] == [True]
        assert [not_known_before(volume) for volume in found["volumes"]] == [[None, {}, 0, None, None]]
        assert {key: found[key] for key in said} == said
        # What that version did not ask stays open.
        assert found["answer_change"]["estimate"] is found["mirror_mismatch"]["estimate"] is None
        assert found["decided_by"] is found["second_opinion"] is None


def test_a_survey_says_what_it_said(folder):
    survey = json.loads(Survey.load(folder / "survey").to_json())
    assert survey.pop("draws") == 1  # later versions draw random parts several times
    assert {network.pop("draws") for network in survey["networks"]} == {1}
    assert [not_known_before(volume) for volume in survey["volumes"]] == [[None, {}, 0, None, None]]
    assert survey == json.loads((folder / "survey" / "survey.json").read_text())


@pytest.mark.parametrize("name", ["audit", "survey", "study"])
def test_reports_are_rebuilt(folder, name, run_cli):
    assert run_cli("report", str(folder / name)) == 0
    assert (folder / name / "report.html").stat().st_size > 10_000


def test_the_run_of_a_training_segments_as_it_did(folder, run_cli):
    out = folder / "again.npy"
    files = ["--run", str(folder / "run"), "--volume", str(folder / "image.tif"), "--out", str(out)]
    # The labels were made in bfloat16, which is not the default on every machine.
    assert run_cli("segment", *files, "--dtype", "bfloat16") == 0
    assert (np.load(out) == np.load(folder / "labels_of_run.npy")).mean() > 0.999


def test_a_finished_study_repeats_no_run(folder, monkeypatch):
    monkeypatch.setattr("evenslice.studying.study_runner.execute", None)
    before = _rounded((folder / "study" / "summary.json").read_text())
    table = _rows(folder / "study" / "results.csv")
    summary = evenslice.study(load_config(folder / "study.yaml", StudyConfig), folder / "study")
    assert summary["finished"] == summary["planned"] == before["finished"] == 4
    for arm, known in zip(summary["comparisons"][0]["arms"], before["comparisons"][0]["arms"], strict=True):
        for kind in ("figures", "differences"):
            for name, value in known.get(kind, {}).items():
                found = _rounded(json.dumps(arm[kind][name]))
                assert found["estimate"] == value["estimate"]
                if value["low"] is not None:  # later versions keep intervals within the range of the quantity
                    assert value["low"] <= found["low"] <= found["high"] <= value["high"]
    for row, known in zip(_rows(folder / "study" / "results.csv"), table, strict=True):
        assert {name: row[name] for name in known} == known
        assert float(row["largest_bias"]) == abs(float(row["directional_bias"]))  # three slices have one pair


def _rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _rounded(text):
    """Read JSON; the last digits of an interval depend on who computes Student's t."""
    return json.loads(text, parse_float=lambda number: round(float(number), 12))
