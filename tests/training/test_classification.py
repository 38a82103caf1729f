"""Classifiers of the voxel at the centre of a window: which crops they see, how they are scored, and that they learn."""

import json
import re

import numpy as np
import pytest
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score, f1_score
from tiny_training import PAIR, RunFiles, training_options

import evenslice
from evenslice import ModelError, TrainConfig, load_onnx

pytestmark = pytest.mark.slow

NETWORKS = """
import torch
from torch import nn


def probe(classes=2):
    "One weight for each class, slice and pixel of windows of 5 x 5 pixels."
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, classes, 5), nn.Flatten())
    nn.init.normal_(network[0].weight, std=0.01)
    return network


def segmenter():
    return nn.Conv2d(3, 2, 3, padding=1)


def three():
    return probe(3)
"""

IGNORED_VALUE = 9


def write_data(folder):
    """Write dark and bright noise, with the label 7 where the next slice is bright; and labels of which some do not count."""
    rng = np.random.default_rng(0)
    image = (160 * rng.integers(0, 2, (40, 24, 24)) + rng.integers(0, 96, (40, 24, 24))).astype(np.uint8)
    later = np.roll(image, -1, axis=0)
    for last in (19, 28, 39):  # of a part, whose windows are reflected there
        later[last] = image[last - 1]
    labels = np.where(later > 127, 7, 3).astype(np.uint8)
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", labels)
    labels[:, :, ::2] = IGNORED_VALUE
    np.save(folder / "half.npy", labels)
    rare = np.full((6, 48, 48), 3, np.uint8)
    rare[3, 1, 2:5] = 7
    np.save(folder / "rare.npy", rare)
    np.save(folder / "wide.npy", np.tile(image[:6], (1, 2, 2)))


@pytest.fixture(scope="module")
def folder(inputs):
    """A folder of data and of networks to import; the current one."""
    (inputs / "classifiers.py").write_text(NETWORKS)
    write_data(inputs)
    return inputs


def make_config(
    folder, *, labels="labels.npy", data=None, augmentation=None, spec="classifiers:probe", **training
):
    pair, given = {**PAIR, "labels": labels}, {"task": "classification", "steps": 200, "batch": 32}
    given |= {
        "crop": [5, 5],
        "learning_rate": 0.1,
        "weight_decay": 0,
        "validate_every": 50,
        "monitor_every": 100,
    }
    options = training_options(folder, **given | training)
    options["data"] |= {"label_values": [3, 7], "train": [{**pair, "slices": [0, 20]}]}
    options["data"] |= {"validation": [{**pair, "slices": [21, 29]}], "test": [{**pair, "slices": [30, 40]}]}
    options["data"] |= data or {}
    options["model"] |= {"spec": spec, "strategy": "pretrained"}
    options["augmentation"] = {"z_flip": False, "intensity": False, **(augmentation or {})}
    return TrainConfig.model_validate(options)


@pytest.fixture(scope="module")
def planted(folder, tmp_path_factory):
    """A run whose data say that the class of a voxel is whether the same voxel of the next slice is bright."""
    run = tmp_path_factory.mktemp("planted") / "run"
    evenslice.train(make_config(folder), run, progress=False)
    return run


# Training


def test_a_linear_probe_finds_the_voxel_that_the_class_depends_on(planted):
    result = RunFiles(planted).read_result()
    assert result["accuracy"] > 0.97
    assert result["balanced_accuracy"]["mean"] > 0.97
    assert min(result["macro_f1"]["per_class"]) > 0.97
    weights = load_file(planted / "network.safetensors")["0.weight"]
    most = (weights[1] - weights[0]).abs()
    assert np.unravel_index(int(most.argmax()), most.shape) == (2, 2, 2)  # slice +1, centre pixel
    assert most.flatten().sort().values[-2] < most.max() / 5


def test_the_result_counts_every_centre_once(folder, planted):
    result = RunFiles(planted).read_result()
    confusion, labels = np.array(result["confusion"]), np.load(folder / "labels.npy")[30:40]
    assert confusion.sum(axis=1).tolist() == [(labels == 3).sum(), (labels == 7).sum()]  # all 5,760 voxels
    assert result["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    truth, answer = (np.repeat(kind.ravel(), confusion.ravel()) for kind in np.indices((2, 2)))
    assert result["balanced_accuracy"]["mean"] == pytest.approx(balanced_accuracy_score(truth, answer))
    assert result["macro_f1"]["per_class"] == pytest.approx(f1_score(truth, answer, average=None))
    assert result["stress"] is None
    assert "dice" not in result


def test_validation_and_the_bias_are_logged(planted):
    rows = RunFiles(planted).read_metrics()
    score = "validation_balanced_accuracy"
    validated = {row["step"]: row[score] for row in rows if score in row}
    assert [*validated] == [0, 50, 100, 150, 200]
    assert validated[0] < 0.7
    assert validated[200] > 0.95
    kept = {"step": 200, "balanced_accuracy": validated[200]}
    assert RunFiles(planted).read_result()["validation"] == kept
    measured = [row for row in rows if "share_1" in row]
    assert [row["step"] for row in measured] == [0, 100, 200]
    assert measured[0]["share_1"] < 0.45
    assert measured[-1]["share_1"] > 0.6
    assert measured[-1]["directional_bias"] > 0.5


def test_reversed_windows_hide_a_class_that_depends_on_the_next_slice(folder, tmp_path):
    """Half of all windows are reversed: then the next slice says what the class is, or nothing, and 3 of 4 are found."""
    result = evenslice.train(
        make_config(folder, augmentation={"z_flip": True}), tmp_path / "run", progress=False
    )
    assert 0.6 < result["accuracy"] < 0.85


def test_voxels_to_ignore_are_neither_learned_nor_counted(folder, tmp_path):
    config = make_config(folder, labels="half.npy", data={"ignore_label": IGNORED_VALUE})
    result = evenslice.train(config, tmp_path / "run", progress=False)
    assert np.sum(result["confusion"]) == 10 * 24 * 12
    assert result["accuracy"] > 0.97


def test_a_class_counts_although_no_centre_of_the_lattice_is_on_it(folder, tmp_path):
    data = {"test": [{"image": "wide.npy", "labels": "rare.npy"}]}
    result = evenslice.train(make_config(folder, data=data, steps=1), tmp_path / "run", progress=False)
    assert [sum(row) for row in result["confusion"]] == [3 * 24 * 24, 3]


# What a classifier is for


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": "classifiers:segmenter"}, r"of shape \(1, 2, 5, 5\); a classifier must return \(batch"),
        ({"spec": "classifiers:three"}, "returns 3 channels; 2 classes with the loss ce need 2"),
        ({"task": "segmentation"}, r"a segmentation network must return \(batch, classes, y, x\)"),
    ],
)
def test_a_network_of_another_task_is_refused(folder, tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        evenslice.train(make_config(folder, **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.yaml").exists()


NETWORK = ("--model", "classifiers:probe", "--volume")


@pytest.mark.parametrize("name", ["segment", "evaluate"])
def test_no_volume_is_segmented_by_a_classifier(folder, planted, command, name):
    out = ["--out", "out.npy"] if name == "segment" else []
    done = command(name, *NETWORK, folder / "image.npy", "--run", planted, *out)
    assert done.returncode == 2
    said = f"error: --run: the run {planted} trained a classifier of crops, which gives no map of"
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def audited(folder, command, *arguments):
    """Return the size of the windows that a classifier is audited on."""
    done = command("audit", *NETWORK, folder / "image.npy", "--max-windows", "8", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["tile"]


def test_a_classifier_is_audited_on_windows_as_large_as_its_crops(folder, planted, command):
    assert audited(folder, command, "--run", planted) == [5, 5]
    assert audited(folder, command, "--run", planted, "--tile", "8", "8") == [8, 8]


def test_a_folder_for_hugging_face_states_the_size_of_the_crops(folder, planted, command, tmp_path):
    hub = tmp_path / "hub"
    network = ("export", "--model", "classifiers:probe", "--to")
    assert command(*network, "huggingface", "--run", planted, "--out", hub).returncode == 0
    assert json.loads((hub / "config.json").read_text())["crop"] == [5, 5]
    card = (hub / "README.md").read_text()
    assert "trained on windows of 5 x 5 pixels (y, x), and classifies the voxel at (2, 2)" in card
    assert "# (batch, 3, 5, 5), scaled as above" in card
    assert audited(folder, command, "--weights", hub) == [5, 5]
    assert command(*network, "onnx", "--weights", hub, "--out", tmp_path / "onnx").returncode == 0
    assert load_onnx(tmp_path / "onnx" / "network.onnx").tile == (5, 5)
    (hub / "config.json").write_text((hub / "config.json").read_text().replace('"crop": [', '"crop": [0, '))
    done = command("audit", *NETWORK, folder / "image.npy", "--weights", hub)
    assert done.returncode == 2
    assert re.search("description of how it reads volumes is damaged .*crop", done.stderr)
