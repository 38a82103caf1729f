"""The command ``evaluate``: what it prints, and what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx.helper import make_node
from onnx_graphs import save

BEFORE = Path(__file__).parents[1] / "data" / "written-by-0.1.0"
SOURCE = ("--model", "my_networks:before", "--weights", "none")
NETWORK = [*SOURCE, "--mean", "0", "--std", "1", "--dtype", "float32"]
SCALED = ["--volume", "image.npy", "--intensity", "0", "255"]


@pytest.fixture(scope="module")
def images(folder):
    """The folder, with an image and labels of several kinds."""
    image = np.random.default_rng(0).integers(0, 255, (16, 32, 32), dtype=np.uint8)
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", (image > 127).astype(np.uint8))
    np.save(folder / "grey.npy", np.where(image > 127, 255, 0).astype(np.uint8))
    np.save(folder / "empty.npy", np.zeros((16, 32, 32), np.uint8))
    return folder


@pytest.fixture
def evaluate(images, run):
    """Run the command; return its status, output and errors, and the JSON document."""

    def evaluate(*arguments, network=NETWORK, command="evaluate"):
        code, out, err = run(command, *network, *arguments)
        out = out.removeprefix("building\n")
        return code, json.loads(out) if "--json" in arguments and code == 0 else " ".join(out.split()), err

    return evaluate


def test_scores_and_stress_are_printed_and_written(evaluate, tmp_path):
    arguments = [*SCALED, "--labels", "grey.npy", "--label-values", "0,255", "--stress", "--out", tmp_path]
    code, out, err = evaluate(*arguments)
    assert (code, err) == (0, "")
    assert "agreement with the labels" in out
    assert "reversed stack" in out
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["command"].startswith("evenslice evaluate --model my_networks:before")
    code, _, err = evaluate(*arguments)
    assert (code, "replace it with --force" in err) == (2, True)


def test_json_stands_alone_on_standard_output(evaluate):
    stress = ("--stress", "--stress-slices", "5", "--json")
    code, document, err = evaluate(*SCALED, "--labels", "labels.npy", *stress)
    assert code == 0
    assert (document["stress"]["reference"], document["stress"]["slices"]) == ("labels", 5)
    missing = document["stress"]["losses"][0]
    assert (missing["kind"], missing["offset"]) == ("missing", 1)
    assert missing["after"]["loss"] == {"estimate": 0, "low": 0, "high": 0}
    assert document["dice"]["mean"] == document["dice"]["per_class"][1]
    assert "building" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Dice with the intact answer when slices are disturbed, 16 windows"),
        (
            ["--labels", "empty.npy"],
            "The answer is right about no class but 0 in these slices, so there is nothing to",
        ),
    ],
)
def test_labels_are_optional_under_stress(evaluate, options, said):
    code, out, err = evaluate(*SCALED, "--stress", *options)
    assert (code, err) == (0, "")
    assert said in out


@pytest.mark.slow
def test_an_onnx_file(evaluate, images):
    weights = [
        ("kernel", np.array([0, 0, 1], np.float32).reshape(1, 3, 1, 1)),
        ("bias", np.array([-0.5], np.float32)),
    ]
    save(images / "after.onnx", [make_node("Conv", ["x", "kernel", "bias"], ["y"])], weights=weights)
    network = ["--model", "onnx", "--weights", "after.onnx"]
    code, document, err = evaluate(*SCALED, "--stress", "--json", network=network)
    assert code == 0, err
    missing = document["stress"]["losses"][0]
    assert missing["before"]["dice"] == 1 > missing["after"]["dice"]
    code, _, err = evaluate(*SCALED, "--stress", "--classes", "2", network=network)
    assert (code, "--classes: an ONNX network states its own" in err) == (2, True)
    image = np.load(images / "image.npy").astype(int)
    averaged = ["--symmetrize", "output"]
    for options, read in (([], image[2:]), (averaged, (image[2:] + image[:-2]) / 2)):
        out = ["--out", f"after{len(options)}.npy"]
        code, _, err = evaluate(*SCALED, *options, *out, network=network, command="segment")
        assert code == 0, err
        clear = read != 127.5
        assert np.array_equal(np.load(images / out[1])[1:-1][clear], (read > 127.5)[clear])
    code, _, err = evaluate("--to", "onnx", "--out", "again", network=network, command="export")
    assert (code, "cannot be exported" in err) == (2, True)


def test_objects_between_boundaries_are_scored_in_a_table_of_their_own(evaluate, images):
    cells = np.repeat(np.repeat(np.arange(1, 5).reshape(2, 2), 16, axis=0), 16, axis=1)
    np.save(images / "cells.npy", np.broadcast_to(cells, (16, 32, 32)).astype(np.uint16))
    arguments = [*SCALED, "--labels", "cells.npy", "--instances", "dense", "--no-surfaces"]
    code, out, err = evaluate(*arguments)
    assert (code, err) == (0, "")
    _, document, _ = evaluate(*arguments, "--json")
    row = out[out.index("objects between the boundaries") :]
    for value in (document["adapted_rand_error"], *document["variation_of_information"].values()):
        assert f"{value:.3f}".removeprefix("0") in row
    assert "objects" not in evaluate(*SCALED, "--labels", "labels.npy", "--no-surfaces")[1]
