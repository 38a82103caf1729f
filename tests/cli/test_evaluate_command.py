"""The command ``evaluate``: what it prints, what it writes, how it fails."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import run_command
from evenslice.cli.evaluation_tables import evaluation_tables

import evenslice
from evenslice import inference
from evenslice.inference import scoring

BEFORE = Path(__file__).parents[1] / "data" / "written-by-0.1.0"
NETWORKS = """
import torch
from torch import nn

def before():
    print("building")
    network = nn.Conv2d(3, 1, 1).requires_grad_(False)
    network.weight.copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    network.bias.fill_(-0.5)
    return network
"""
NETWORK = [
    "--model",
    "evaluated:before",
    "--weights",
    "none",
    "--mean",
    "0",
    "--std",
    "1",
    "--dtype",
    "float32",
]
SCALED = ["--volume", "image.npy", "--intensity", "0", "255"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "evaluated.py").write_text(NETWORKS)
    image = np.random.default_rng(0).integers(0, 255, (16, 32, 32), dtype=np.uint8)
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", (image > 127).astype(np.uint8))
    np.save(folder / "grey.npy", np.where(image > 127, 255, 0).astype(np.uint8))
    np.save(folder / "short.npy", np.zeros((9, 32, 32), np.uint8))
    return folder


def run(folder, *arguments):
    return run_command("evaluate", *arguments, cwd=folder)


def test_scores_and_stress_are_printed_and_written(folder, tmp_path):
    out = tmp_path / "out"
    arguments = [*NETWORK, *SCALED, "--labels", "grey.npy", "--label-values", "0,255", "--stress"]
    done = run(folder, *arguments, "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert "agreement with the labels" in done.stdout
    assert "reversed stack" in done.stdout
    document = json.loads((out / "result.json").read_text())
    assert document["command"].startswith("evenslice evaluate --model evaluated:before")
    again = run(folder, *arguments, "--out", str(out))
    assert again.returncode == 2
    assert "replace it with --force" in again.stderr


@pytest.mark.parametrize("most", [2**26, 10])
def test_it_is_said_why_surfaces_of_a_large_volume_are_not_compared(monkeypatch, most):
    for module in (inference, scoring):
        monkeypatch.setattr(module, "LARGEST_SURFACE", most)
    image = np.random.default_rng(0).random((3, 8, 8))
    found = evenslice.evaluate(
        lambda windows: windows[:, 1:2] - 0.5, image, image > 0.5, reading=evenslice.Reading(intensity=(0, 1))
    )
    (table,) = evaluation_tables(found)
    said = None if most > 10 else "surfaces are compared in volumes of up to 10 voxels; give a --region"
    assert table.caption == said


def test_json_stands_alone_on_standard_output(folder):
    done = run(
        folder, *NETWORK, *SCALED, "--labels", "labels.npy", "--stress", "--stress-slices", "5", "--json"
    )
    assert done.returncode == 0
    document = json.loads(done.stdout)
    stress = document["stress"]
    assert (stress["reference"], stress["slices"]) == ("labels", 5)
    missing = stress["losses"][0]
    assert (missing["kind"], missing["offset"]) == ("missing", 1)
    assert missing["after"]["loss"] == {"estimate": 0, "low": 0, "high": 0}
    assert document["dice"]["mean"] == document["dice"]["per_class"][1]
    assert "building" in done.stderr


def test_it_is_said_why_there_is_nothing_to_lose(folder):
    np.save(folder / "empty.npy", np.zeros((16, 32, 32), np.uint8))
    done = run(folder, *NETWORK, *SCALED, "--labels", "empty.npy", "--stress")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "The answer is right about no class but 0 in these slices, so there is nothing to lose"
        in " ".join(done.stdout.split())
    )


def test_labels_are_optional_under_stress(folder):
    done = run(folder, *NETWORK, *SCALED, "--stress")
    assert done.returncode == 0
    assert "Dice with the intact answer when slices are disturbed, 16 windows" in " ".join(
        done.stdout.split()
    )
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_labels_may_lack_the_axis_of_which_an_entry_of_the_image_is_selected(folder):
    image = np.load(folder / "image.npy")
    np.save(folder / "channels.npy", np.stack([255 - image, image]))
    chosen = ["--volume", "channels.npy", "--axes", "czyx", "--select", "c=1", "--intensity", "0", "255"]
    scores = []
    for volume in (SCALED, chosen):
        done = run(folder, *NETWORK, *volume, "--labels", "labels.npy", "--json")
        assert done.returncode == 0, done.stderr
        scores.append(json.loads(done.stdout)["dice"])
    assert scores[0] == scores[1]
    # The shape of a cube would show no mistake.
    cube = np.random.default_rng(1).integers(0, 255, (16, 16, 16, 2), dtype=np.uint8)
    np.save(folder / "turned.npy", cube)
    np.save(folder / "turned_labels.npy", (cube[..., 1] > 127).astype(np.uint8))
    np.save(folder / "upright.npy", cube[..., 1].T)
    np.save(folder / "upright_labels.npy", (cube[..., 1].T > 127).astype(np.uint8))
    scores = []
    for name, options in (("upright", []), ("turned", ["--axes", "xyzc", "--select", "c=1"])):
        files = ["--volume", f"{name}.npy", "--labels", f"{name}_labels.npy", "--intensity", "0", "255"]
        done = run(folder, *NETWORK, *files, *options, "--json")
        assert done.returncode == 0, done.stderr
        scores.append(json.loads(done.stdout)["dice"])
    assert scores[0] == scores[1]
    done = run(folder, *NETWORK, *chosen, "--labels", "missing.npy")
    assert done.returncode == 2
    assert "missing.npy: no such file" in done.stderr


def test_an_onnx_file(folder):
    import evenslice  # noqa: F401  # the package that the command runs

    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kernel = onnx.numpy_helper.from_array(np.array([0, 0, 1], np.float32).reshape(1, 3, 1, 1), "kernel")
    bias = onnx.numpy_helper.from_array(np.array([-0.5], np.float32), "bias")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["windows", "kernel", "bias"], ["logits"])],
        "network",
        [onnx.helper.make_tensor_value_info("windows", 1, ["batch", 3, "y", "x"])],
        [onnx.helper.make_tensor_value_info("logits", 1, ["batch", 1, "y", "x"])],
        [kernel, bias],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "after.onnx")
    network = ["--model", "onnx", "--weights", "after.onnx"]
    done = run(folder, *network, *SCALED, "--stress", "--json")
    assert done.returncode == 0, done.stderr
    missing = json.loads(done.stdout)["stress"]["losses"][0]
    assert missing["before"]["dice"] == 1 > missing["after"]["dice"]
    done = run(folder, *network, *SCALED, "--stress", "--classes", "2")
    assert done.returncode == 2
    assert "--classes: an ONNX network states its own" in done.stderr
    image = np.load(folder / "image.npy").astype(int)
    for name, options, read in (
        ("labels.npy", [], image[2:]),
        ("fair.npy", ["--symmetrize", "output"], (image[2:] + image[:-2]) / 2),
    ):
        out = ["--out", f"after-{name}"]
        done = run_command("segment", *network, *SCALED, *options, *out, cwd=folder)
        assert done.returncode == 0, done.stderr
        clear = read != 127.5
        assert np.array_equal(np.load(folder / out[1])[1:-1][clear], (read > 127.5)[clear])
    done = run_command("export", *network, "--to", "onnx", "--out", "again", cwd=folder)
    assert done.returncode == 2
    assert "--model: a function" in done.stderr


def test_an_onnx_file_that_evenslice_exported_needs_no_scaling(folder):
    import evenslice

    pytest.importorskip("onnxruntime")
    network = torch.nn.Conv2d(3, 2, 3, padding=1).eval()
    evenslice.neutralize(network, slices=3, mean=0.5, std=0.25)
    evenslice.export(network, folder / "exported", to="onnx")
    source = ["--model", "onnx", "--weights", "exported/network.onnx", "--volume", "image.npy"]
    done = run(folder, *source, "--stress", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["mean"] == [0.5]
    audited = run_command("audit", *source, "--max-windows", 8, "--json", cwd=folder)
    assert audited.returncode == 0, audited.stderr
    assert json.loads(audited.stdout)["scaling"] == {"mean": [0.5], "std": [0.25], "source": "function"}
    refused = run(folder, *source, "--stress", "--mean", "0.4")
    assert refused.returncode == 2
    assert "states its own mean and std; leave out --mean and --std" in refused.stderr


def test_the_run_of_a_training_of_an_earlier_version(tmp_path):
    folder = Path(shutil.copytree(BEFORE, tmp_path / "before"))
    files = ["--volume", "image.tif", "--labels", "labels.tif"]
    done = run(folder, "--run", "run", *files, "--stress", "--stress-slices", "6", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert 0 < document["dice"]["mean"] < 1
    assert document["stress"]["slices"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare the answers with; give --labels, or --stress"),
        (
            ["--labels", "short.npy"],
            r"labels of shape (9, 32, 32) do not fit image.npy of shape (16, 32, 32)",
        ),
        (["--labels", "grey.npy"], "holds the label value 255, but the 2 classes have the values 0, 1"),
        (["--labels", "grey.npy"], "--label-values 0,255"),
        (
            ["--labels", "labels.npy", "--label-values", "1,2,3"],
            "--label-values 1,2,3: give a different value",
        ),
        (["--labels", "labels.npy", "--label-values", "a"], "whole numbers are needed, such as 0,255"),
        (["--labels", "missing.npy"], "missing.npy: no such file"),
        (["--stress", "--stress-slices", "0"], "--stress-slices"),
        (
            ["--labels", "labels.npy", "--stress-slices", "5"],
            "--stress-slices: has no effect without --stress",
        ),
        (["--stress", "--no-surfaces"], "--no-surfaces: has no effect without --labels"),
        (["--stress", "--run", "run"], "--mean: the run run determines it; omit it, or omit --run"),
    ],
)
def test_an_error_is_one_line_and_status_2(folder, arguments, message):
    done = run(folder, *NETWORK, *SCALED, *arguments)
    assert (done.returncode, done.stdout.replace("building\n", "")) == (2, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_labels_elsewhere_are_refused_and_the_way_out_is_that_of_the_command(folder):
    image = np.load(folder / "image.npy").T
    nib.save(nib.Nifti1Image(image, np.diag([2, 2, 2, 1])), folder / "image.nii")
    nib.save(nib.Nifti1Image((image > 127).astype(np.uint8), np.diag([-2, -2, 2, 1])), folder / "labels.nii")
    arguments = [*NETWORK, "--volume", "image.nii", "--labels", "labels.nii", "--intensity", "0", "255"]
    done = run(folder, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: labels.nii: its axes x, y, z run to LPS, those of image.nii to RAS; "
    )
    assert done.stderr.endswith("open it with --label-axes xyz\n")
    assert run(folder, *arguments, "--label-axes", "xyz").returncode == 0


def test_objects_between_boundaries_are_scored_in_a_table_of_their_own(folder):
    cells = np.repeat(np.repeat(np.arange(1, 5).reshape(2, 2), 16, axis=0), 16, axis=1)
    np.save(folder / "cells.npy", np.broadcast_to(cells, (16, 32, 32)).astype(np.uint16))
    arguments = [*NETWORK, *SCALED, "--labels", "cells.npy", "--instances", "dense", "--no-surfaces"]
    done = run(folder, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(run(folder, *arguments, "--json").stdout)
    row = done.stdout[done.stdout.index("objects between the boundaries") :]
    for value in (document["adapted_rand_error"], *document["variation_of_information"].values()):
        assert f"{value:.3f}".removeprefix("0") in row
    plain = run(folder, *NETWORK, *SCALED, "--labels", "labels.npy", "--no-surfaces")
    assert "objects" not in plain.stdout
