"""Files of version 0.2.0 are read: networks, audits, runs of training, a study, a survey, exports; and audits of 0.1.0."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import evenslice

pytestmark = pytest.mark.slow  # networks of MONAI

WRITTEN = Path(__file__).parents[1] / "data" / "written-by-0.2.0"
AUDITS = {
    "network": ["biased", "symmetric"],
    "labels": ["inconclusive"],
    "methods": ["biased", "biased"],
    "function": ["biased"],
}


@pytest.fixture
def folder(tmp_path):
    """A copy, which tests may write to."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "written"))


def windows(slices):
    return torch.rand(1, slices, 16, 16, generator=torch.Generator().manual_seed(0))


def output(network, slices):
    with torch.no_grad():
        return network(windows(slices)).numpy()


def trained():
    """Return the output of the network that was exported."""
    return output(evenslice.load_network(str(WRITTEN / "run" / "network.safetensors")).model, 3)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "strategy", "tie", "averaged"),
    [
        ("twin", "twin", None, ("model.0.adn.A",)),
        ("tied", "mirror", "mirror", ()),
        ("encoder", "pretrained", None, ("encoder",)),
        ("output", "pretrained", None, ("",)),
    ],
)
def test_saved_networks_give_the_output_they_gave(name, strategy, tie, averaged):
    network, record, _ = evenslice.load_network(str(WRITTEN / "networks" / f"{name}.safetensors"))
    assert (record.slices, record.strategy, record.tie, record.symmetrized) == (5, strategy, tie, averaged)
    close(output(network, 5), np.load(WRITTEN / "networks" / f"{name}.npy"))


@pytest.mark.parametrize(("name", "verdicts"), AUDITS.items())
def test_audits_say_what_they_said(name, verdicts):
    audits = evenslice.load_audits(WRITTEN / "audits" / name)
    assert [audit.verdict for audit in audits] == verdicts
    said = [json.loads(path.read_text()) for path in sorted((WRITTEN / "audits" / name).glob("audit*.json"))]
    said.sort(key=lambda document: document["created"])
    for audit, document in zip(audits, said, strict=True):
        assert (audit.verdict, audit.run.method) == (document["verdict"], document["method"])
        assert [share.estimate for share in audit.shares] == [share["mean"] for share in document["shares"]]
        assert [pair.estimate for pair in audit.saliency] == [pair["estimate"] for pair in document["pairs"]]
        assert audit.answer.estimate == document["answer_change"]["estimate"]
        assert audit.mismatch.estimate == document["mirror_mismatch"]["estimate"]
        assert audit.windows == document["windows"] == 40
        assert audit.definitions == 1
        assert (audit.stress is not None) == (name == "labels")


def test_audits_of_0_1_say_what_they_said_and_what_was_not_asked_stays_open():
    folder = WRITTEN.with_name("written-by-0.1.0") / "audit"
    pretrained, uniform = evenslice.load_audits(folder)
    assert (pretrained.verdict, uniform.verdict) == ("biased", "symmetric")
    for audit, name in ((pretrained, "audit.json"), (uniform, "audit.1-uniform.json")):
        said = json.loads((folder / name).read_text())
        assert audit.definitions == 1
        assert audit.saliency[0].estimate == said["pairs"][0]["estimate"]
        assert [share.estimate for share in audit.shares] == [share["mean"] for share in said["shares"]]
        open_figures = (audit.answer, audit.mismatch, *audit.reliance)
        assert np.isnan([figure.estimate for figure in open_figures]).all()


@pytest.mark.parametrize("name", [*(f"audits/{name}" for name in AUDITS), "audits", "survey", "study"])
def test_reports_are_rebuilt(folder, name, cli):
    assert cli("report", folder / name)[0] == 0
    assert (folder / name / "report.html").stat().st_size > 10_000


def test_a_finished_run_is_kept_and_segments_as_it_did(folder, cli):
    run, said = folder / "run", json.loads((WRITTEN / "run" / "result.json").read_text())
    assert evenslice.train(folder / "train.yaml", run, resume=True, progress=False) == said
    network = "network.safetensors"
    assert (run / network).read_bytes() == (WRITTEN / "run" / network).read_bytes()
    files = ["--run", run, "--volume", folder / "image.tif", "--out", folder / "again.tif"]
    assert cli("segment", *files, "--dtype", "float32", "--device", "cpu")[0] == 0
    same = tifffile.imread(folder / "again.tif") == tifffile.imread(folder / "labels_of_run.tif")
    assert same.mean() > 0.999


def test_an_interrupted_run_is_resumed(folder, cli):
    assert cli("train", folder / "train.yaml", "--out", folder / "half", "--resume")[0] == 0
    found, expected = (json.loads((folder / name / "result.json").read_text()) for name in ("half", "run"))
    # ``run`` is the same training without the interruption.
    assert found["dice"]["mean"] == pytest.approx(expected["dice"]["mean"], abs=0.02)
    logged, before = ((base / "half" / "log" / "metrics.csv").read_text() for base in (folder, WRITTEN))
    assert logged.startswith(before)  # it went on from the checkpoint


def test_a_finished_study_repeats_no_run(folder, monkeypatch):
    monkeypatch.setattr("evenslice.studying.study_runner.execute", None)
    said = json.loads((WRITTEN / "study" / "summary.json").read_text())
    summary = evenslice.study(folder / "study.yaml", folder / "study")
    assert summary["finished"] == summary["planned"] == 4
    for arm, known in zip(summary["comparisons"][0]["arms"], said["comparisons"][0]["arms"], strict=True):
        assert arm["figures"]["dice"] == pytest.approx(known["figures"]["dice"])


def test_a_survey_says_what_it_said():
    survey = evenslice.Survey.load(WRITTEN / "survey")
    stored, now = json.loads((WRITTEN / "survey" / "survey.json").read_text()), json.loads(survey.to_json())
    for before, after in zip(stored.pop("networks"), now["networks"], strict=True):
        assert {name: after[name] for name in before} == before
    assert {name: now[name] for name in stored if name != "volumes"} == {
        name: value for name, value in stored.items() if name != "volumes"
    }
    assert now["definitions"] == 1


def test_exported_networks_give_the_output_of_the_trained_one():
    onnx = evenslice.load_onnx(WRITTEN / "exported" / "onnx" / "network.onnx")
    close(onnx(windows(3).numpy()), trained())
    close(output(evenslice.load_network(str(WRITTEN / "exported" / "huggingface")).model, 3), trained())


def test_an_exported_model_for_bioimageio_gives_the_output_beside_it():
    exported = WRITTEN / "exported" / "bioimageio"
    given = np.load(exported / "test_input.npy")
    low, high = np.percentile(given, (0.5, 99.5))  # bioimage.io scales the input as rdf.yaml says
    scaled = np.clip((given - low) / (high - low), 0, 1).astype(np.float32)
    network = evenslice.load_onnx(exported / "weights.onnx")
    close(network(scaled), np.load(exported / "test_output.npy"))
