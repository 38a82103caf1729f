"""Whole commands: what they print, and what they write."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evenslice

WEIGHTS = ["--model", "my_networks:unequal", "--weights", "weights.pt"]
AUDIT = ["audit", *WEIGHTS, "--max-windows", "60", "--volume", "good.tif"]
SHORT = ["audit", *WEIGHTS, "--max-windows", "8", "--volume", "good.tif", "--json"]


def network(name):
    return ["--model", f"my_networks:{name}", "--weights", "none"]


@pytest.mark.slow
def test_audit_writes_its_results_and_prints_a_table(run, tmp_path):
    code, out, err = run(*AUDIT, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "Biased in its gradient maps (z" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".evenslice-files.json", "audit.json", "audit.npz", "report.html", "figures", "tables"}
    document = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (document["verdict"], document["strategy"]) == ("biased", "pretrained")
    assert document["command"].startswith("evenslice audit --model my_networks:unequal")
    assert document["volumes"][0]["spacing"] == [50, 4, 4]
    assert document["volumes"][0]["fingerprint"].startswith("sha256:")
    code, _, err = run(*AUDIT, "--out", tmp_path / "out")
    assert code == 2
    assert "holds another result" in err
    code, out, err = run(*AUDIT, "--strategy", "uniform", "--out", tmp_path / "out", "--force")
    assert (code, err) == (0, "")
    code, out, _ = run("report", tmp_path, "--badge", tmp_path / "badge.json")
    assert code == 0
    assert "Symmetric: " in out
    assert 'You may write: "symmetric on good.tif: B, C and E 0 in all windows read and, with' in " ".join(
        out.split()
    )
    assert json.loads((tmp_path / "badge.json").read_text())["message"] == "z-symmetric, C = 0"
    assert "uniform" in (tmp_path / "report.html").read_text()


UNIFORM = ["--strategy", "uniform"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--fail-on-bias"], 1),
        ([*UNIFORM, "--fail-on-bias"], 0),
        ([*UNIFORM, "--fail-on-bias", "--max-windows", "1"], 0),  # inconclusive
        ([*UNIFORM, "--require", "symmetric"], 0),
        (["--require", "balanced"], 1),
        ([*UNIFORM, "--require", "symmetric", "--max-windows", "1"], 1),
        ([*UNIFORM, "--strategy", "pretrained", "--require", "symmetric"], 1),
        ([*network("one_slice"), "--require", "balanced"], 1),  # no verdict applies
    ],
)
def test_a_verdict_decides_the_status(run, options, code):
    status, _, err = run(*AUDIT, *options)
    assert status == code
    told = [line for line in err.splitlines() if line.startswith(("--require ", "--fail-on-bias: "))]
    assert len(told) == code  # of the only audit that falls short


@pytest.mark.slow
def test_strategies_and_methods_stand_side_by_side(run, tmp_path):
    strategies = ["--strategy", "pretrained", "--strategy", "mirror"]
    methods = ["--method", "gradient", "--method", "occlusion"]
    code, out, _ = run(*SHORT, *strategies, *methods, "--out", tmp_path)
    assert code == 0
    names = [document["name"] for document in json.loads(out)]
    assert names == ["pretrained, gradient", "pretrained, occlusion", "mirror, gradient", "mirror, occlusion"]
    assert len(list(tmp_path.glob("audit*.json"))) == 4


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--strategy", "0.2,0.6,0.2"], "profile 0.2, 0.6, 0.2"),
        (["--symmetrize", "output"], "pretrained, symmetrized"),
        (["--tie", "uniform", "--symmetrize", "output"], "pretrained, tied, symmetrized"),
        (["--weights", "none"], "as built"),
        (["--model", "timm:test_resnet", "--weights", "none"], "random weights"),
        ([*network("AlongZ"), "--slices", "5"], "as built"),  # whose first layer cannot be found
        ([*network("AlongZ"), "--slices", "5", "--mean", "0.5"], "as built"),
    ],
)
def test_an_audit_is_named_after_what_was_audited(options, name, run):
    code, out, err = run(*SHORT, *options)
    assert code == 0, err
    found = json.loads(out)
    assert found["name"] == name
    assert found["model"].get("symmetrized") == ("output" if "symmetrized" in name else None)
    given = (found["scaling"]["source"], found["scaling"]["mean"]) == ("given", [0.5])
    assert given == ("--mean" in options)


@pytest.mark.parametrize("name", ["report.html", "tables/run.csv"])
@pytest.mark.parametrize("place", [".", "copied"])  # above an audit, and beside one
def test_a_report_replaces_nothing_of_the_user(run, tmp_path, place, name):
    written = Path(__file__).parents[1] / "data" / "written-by-0.2.0" / "audits" / "labels"
    hidden = shutil.ignore_patterns(".*")
    shutil.copytree(written, tmp_path / "copied", ignore=hidden)  # as `cp -r dir/*` does
    theirs = tmp_path / place / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("mine")
    code, _, err = run("report", tmp_path / place)
    assert code == 2
    assert f"{name}: has the name of a result, but evenslice did not write it; move it away" in err
    assert theirs.read_text() == "mine"


def test_neutralize_writes_weights_that_an_audit_finds_fair(run, tmp_path):
    fair = tmp_path / "fair.safetensors"
    code, out, _ = run("neutralize", *WEIGHTS, "--out", fair, "--slices", "5", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["slices"] == 5
    assert record["permutation_error"] < 1e-5
    code, out, _ = run("audit", *WEIGHTS[:2], "--weights", fair, "--volume", "good.tif", "--json")
    assert code == 0, out
    found = json.loads(out)
    assert (found["verdict"], found["slices"], found["strategy"]) == ("symmetric", 5, "uniform")
    code, _, err = run("audit", *WEIGHTS[:2], "--weights", fair, "--volume", "good.tif", "--mean", "0.5")
    assert code == 2
    assert "states its own mean and std" in err


ENCODER = ["--model", "my_networks:in_parts", "--weights", "encoder.pt"]


@pytest.mark.parametrize(
    "command",
    [
        ["segment", "--volume", "good.tif"],
        ["evaluate", "--volume", "good.tif", "--labels", "labels.tif"],
        ["export", "--to", "huggingface"],
    ],
    ids=lambda command: command[0],
)
def test_no_answers_of_a_network_whose_weights_are_there_in_part(run, tmp_path, command):
    code, out, err = run(*command, *ENCODER, "--out", tmp_path / "out.tif")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(
        "error: encoder.pt: lacks the network's decoder, so that its answers would be random"
    )
    assert not list(tmp_path.iterdir())


def test_parts_without_weights_are_noted_until_they_may_have_been_trained(run, tmp_path):
    fair = tmp_path / "fair.safetensors"
    note = "note: encoder.pt lacks parts of the network (decoder); they "
    assert run("audit", *ENCODER, *SHORT[5:])[2].startswith(f"{note}were random in this audit; ")
    for command in ("symmetrize", "neutralize"):
        code, _, err = run(command, *ENCODER, "--out", fair, "--force")
        assert (code, err.startswith(f"{note}are random in ")) == (0, True)
    source = [*ENCODER[:2], "--weights", fair]
    assert run("segment", *source, "--volume", "good.tif", "--out", tmp_path / "out.tif")[::2] == (0, "")


@pytest.mark.slow
def test_weights_for_another_number_of_slices_come_with_a_note(run, tmp_path):
    model, path = ["--model", "smp:Unet/tu-test_resnet"], tmp_path / "trained.pt"
    torch.save(evenslice.load_network(model[1], "none").model.state_dict(), path)
    command = [*model, "--weights", path, "--volume", "good.tif", "--slices"]
    note = f"note: {path} has 3 inputs; its first layer was adapted to 5 slices: train it again"
    for words in (["audit", "--max-windows", "2"], ["segment", "--out", tmp_path / "out.tif", "--force"]):
        assert note not in run(*words, *command, "3")[2]
        assert note in run(*words, *command, "5")[2].splitlines()


@pytest.mark.slow
def test_answers_of_a_network_that_was_never_trained_come_with_a_note(run, tmp_path):
    unet = ["--model", "smp:Unet/tu-tf_efficientnet_lite0"]
    files = ["--volume", "good.tif", "--out", tmp_path / "out.tif"]
    fair = tmp_path / "fair.safetensors"
    _, _, err = run("segment", "--model", "smp:Unet/tu-test_resnet", "--weights", "none", *files)
    assert err.startswith("note: with --weights none, the network is randomly initialized; train it before")
    several = [*UNIFORM, "--strategy", "pretrained", "--max-windows", "2", "--volume", "good.tif"]
    note = "note: with --weights imagenet, parts of the network (decoder, segmentation_head) are randomly"
    for command in (["neutralize", "--out", fair], ["audit", *several]):
        code, _, err = run(*command, *unet, "--weights", "imagenet")
        assert (code, err.count(note)) == (0, 1)
    code, _, err = run("segment", *unet, "--weights", fair, *files, "--force")  # may have been trained since
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "--max-windows", "4"],
        ["evaluate", "--stress"],
        ["segment", "--out", "of-slices.tif", "--force"],
    ],
    ids=lambda command: command[0],
)
def test_a_gap_in_a_folder_of_slices_is_told(run, tmp_path, command):
    for z in (0, 1, 2, 4, 5, 6, 7, 8, 9):
        Image.fromarray(np.full((40, 48), 20 * z, np.uint8)).save(tmp_path / f"z{z}.png")
    note = f"note: {tmp_path}: missing slices 3, by the file names; those beside a gap count as adjacent"
    code, _, err = run(*command, *WEIGHTS, "--volume", tmp_path)
    assert (code, err.splitlines().count(note)) == (0, 1)
    code, _, err = run(*command, *WEIGHTS, "--volume", tmp_path, "--region", "3:,:,:")  # behind the gap
    assert (code, "missing" in err) == (0, False)


def test_info_describes_a_volume(run):
    code, out, _ = run("info", "good.tif", "--json")
    assert (code, json.loads(out)["shape"]) == (0, [30, 48, 40])
    code, out, _ = run("info", "labels.tif")
    assert (code, "30 x 48 x 40 voxels (z, y, x)" in out) == (0, True)
    assert run("--version") == (0, f"evenslice {evenslice.__version__}\n", "")
