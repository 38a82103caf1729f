"""Classifiers of the voxel at the centre of a window: which crops they see, how they are scored, and that they learn."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import nn

from evenslice import (
    AugmentationConfig,
    ModelError,
    TrainConfig,
    load_onnx,
    open_volume,
    train,
)
from evenslice.training import RunFolder
from evenslice.training.crops import CentredCrops, read_around
from evenslice.training.tasks import classification_scores, evaluate_centres, lattice
from evenslice.volumes import LabelledVolume, Scaling, WindowGrid, index_classes

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classification")
    (folder / "classifiers.py").write_text(NETWORKS)
    write_data(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.syspath_prepend(str(folder))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield folder
        torch.set_num_threads(threads)


def make_config(
    folder, *, labels="labels.npy", data=None, augmentation=None, spec="classifiers:probe", **training
):
    pair = {"image": "image.npy", "labels": labels}
    options = {
        "data": {
            "name": "planted",
            "root": str(folder),
            "label_values": [3, 7],
            "train": [{**pair, "slices": [0, 20]}],
            "validation": [{**pair, "slices": [21, 29]}],
            "test": [{**pair, "slices": [30, 40]}],
            **(data or {}),
        },
        "model": {"spec": spec, "weights": "none", "strategy": "pretrained"},
        "augmentation": {"z_flip": False, "intensity": False, **(augmentation or {})},
        "training": {
            "task": "classification",
            "steps": 200,
            "batch": 32,
            "crop": [5, 5],
            "learning_rate": 0.1,
            "weight_decay": 0,
            "validate_every": 50,
            "monitor_every": 100,
            "dtype": "float32",
            "accelerator": "cpu",
            **training,
        },
    }
    return TrainConfig.model_validate(options)


@pytest.fixture(scope="module")
def planted(folder, tmp_path_factory):
    """A run whose data say that the class of a voxel is whether the same voxel of the next slice is bright."""
    run = tmp_path_factory.mktemp("planted") / "run"
    train(make_config(folder), run, progress=False)
    return run


# Training


@pytest.mark.slow
def test_a_linear_probe_finds_the_voxel_that_the_class_depends_on(planted):
    result = RunFolder(planted).read_result()
    assert result["accuracy"] > 0.97
    assert result["balanced_accuracy"]["mean"] > 0.97
    assert min(result["macro_f1"]["per_class"]) > 0.97
    weights = load_file(planted / "network.safetensors")["0.weight"]
    most = (weights[1] - weights[0]).abs()
    assert np.unravel_index(int(most.argmax()), most.shape) == (2, 2, 2)  # slice +1, centre pixel
    assert most.flatten().sort().values[-2] < most.max() / 5


def test_the_result_counts_every_centre_once(folder, planted):
    result = RunFolder(planted).read_result()
    confusion, labels = np.array(result["confusion"]), np.load(folder / "labels.npy")[30:40]
    assert confusion.sum(axis=1).tolist() == [(labels == 3).sum(), (labels == 7).sum()]  # all 5,760 voxels
    assert result["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert result["stress"] is None
    assert "dice" not in result


def test_validation_and_the_bias_are_logged(planted):
    rows = RunFolder(planted).read_metrics()
    score = "validation_balanced_accuracy"
    validated = {row["step"]: row[score] for row in rows if score in row}
    assert [*validated] == [0, 50, 100, 150, 200]
    assert validated[0] < 0.7
    assert validated[200] > 0.95
    kept = {"step": 200, "balanced_accuracy": validated[200]}
    assert RunFolder(planted).read_result()["validation"] == kept
    measured = [row for row in rows if "share_1" in row]
    assert [row["step"] for row in measured] == [0, 100, 200]
    assert measured[0]["share_1"] < 0.45
    assert measured[-1]["share_1"] > 0.6
    assert measured[-1]["directional_bias"] > 0.5


@pytest.mark.slow
def test_reversed_windows_hide_a_class_that_depends_on_the_next_slice(folder, tmp_path):
    """Half of all windows are reversed: then the next slice says what the class is, or nothing, and 3 of 4 are found."""
    result = train(make_config(folder, augmentation={"z_flip": True}), tmp_path / "run", progress=False)
    assert 0.6 < result["accuracy"] < 0.85


@pytest.mark.slow
def test_voxels_to_ignore_are_neither_learned_nor_counted(folder, tmp_path):
    config = make_config(folder, labels="half.npy", data={"ignore_label": IGNORED_VALUE})
    result = train(config, tmp_path / "run", progress=False)
    assert np.sum(result["confusion"]) == 10 * 24 * 12
    assert result["accuracy"] > 0.97


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
        train(make_config(folder, **changes), tmp_path / "run", progress=False)
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


@pytest.mark.slow
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


# Crops


def part_of(image, labels, *, classes=3, high=64, keep=1000):
    labels = open_volume(labels)
    index = index_classes(labels, classes, keep=keep)
    return LabelledVolume("p", open_volume(image), labels, Scaling(0, high), index)


def numbered(shape):
    """Return different voxels in 0..1, exact in float32."""
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape) / 256


@given(
    plane=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    place=st.tuples(st.integers(0, 8), st.integers(0, 8)),
)
def test_windows_around_a_voxel_are_those_of_a_mirrored_plane(plane, size, place):
    y, x = place[0] % plane[0], place[1] % plane[1]
    image = numbered((3, *plane))
    grid = WindowGrid(open_volume(image), Scaling(0, 1), 3, (1, 1))
    padded = np.pad(image, [(0, 0), (12, 12), (12, 12)], mode="symmetric")
    top, left = y + 12 - size[0] // 2, x + 12 - size[1] // 2
    found = read_around(grid, (1, y, x), size)
    assert np.array_equal(found, padded[:, top : top + size[0], left : left + size[1]])
    assert found[1, size[0] // 2, size[1] // 2] == image[1, y, x]


@pytest.mark.parametrize("crop", [(5, 5), (6, 6), (4, 7), (1, 2)])
def test_the_class_is_that_of_the_centre_pixel_whatever_was_flipped_or_rotated(crop):
    labels = np.random.default_rng(0).integers(0, 3, (5, 11, 8))
    augmentation = AugmentationConfig(intensity=False)
    part = part_of(labels.astype(np.float32), labels)
    crops = CentredCrops([part], slices=3, crop=crop, length=200, augmentation=augmentation)
    windows, classes = zip(*crops, strict=True)
    assert all(window.shape == (3, *crop) for window in windows)
    assert [int(64 * window[1, crop[0] // 2, crop[1] // 2]) for window in windows] == [
        int(label) for label in classes
    ]
    assert len(set(map(int, classes))) == 3


def test_rare_classes_are_drawn_as_often_as_asked_for():
    labels = np.zeros((4, 50, 50), np.int64)
    labels[2, 10, 10:20], labels[1, 0, 0] = 1, 2
    crops = CentredCrops([part_of(labels, labels)], slices=1, crop=(3, 3), length=2000, foreground=0.5)
    drawn = Counter(int(label) for _, label in crops)
    assert drawn[0] == pytest.approx(1000, abs=100)
    assert drawn[1] == pytest.approx(500, abs=80)
    assert drawn[2] == pytest.approx(500, abs=80)


# Scores


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
def test_scores_are_those_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    truth, answer = (np.append(random.integers(0, 3, 30), [0, 1, 2]) for _ in range(2))
    confusion = np.zeros((3, 3), np.int64)
    np.add.at(confusion, (truth, answer), 1)
    scores = classification_scores(confusion)
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, answer))
    assert scores["balanced_accuracy"]["mean"] == pytest.approx(balanced_accuracy_score(truth, answer))
    assert scores["macro_f1"]["mean"] == pytest.approx(f1_score(truth, answer, average="macro"))
    assert scores["macro_f1"]["per_class"] == pytest.approx(f1_score(truth, answer, average=None))


def test_classes_without_centres_have_no_recall():
    scores = classification_scores(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert scores["balanced_accuracy"] == {
        "mean": 0.75,
        "per_class": pytest.approx([0.75, *[math.nan] * 2], nan_ok=True),
    }
    assert scores["macro_f1"]["mean"] == pytest.approx(
        (6 / 7 + 0) / 2
    )  # class 1 was predicted, class 2 was not
    nothing = classification_scores(np.zeros((2, 2), np.int64))
    assert np.isnan(
        [nothing["accuracy"], nothing["balanced_accuracy"]["mean"], nothing["macro_f1"]["mean"]]
    ).all()


def probing(*bias):
    """Return a network of two classes whose logits are constant, until its weights are set."""
    network = nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten()).requires_grad_(False)
    network[0].weight.zero_()
    network[0].bias.copy_(torch.tensor(bias))
    return network


@pytest.mark.slow
def test_the_answers_of_a_known_network_are_counted(folder):
    """Where the network reads the voxel that the class is made of, all is right; one that says 1 always finds all of 1."""
    config, image = make_config(folder), np.load(folder / "image.npy").astype(np.float32)[:20]
    labels = (np.load(folder / "labels.npy")[:20] == 7).astype(np.int64)
    part = part_of(image, labels, classes=2, high=255)

    def confusion(network, most=10**6):
        return evaluate_centres(network, [part], config, most=most, device="cpu")["confusion"]

    assert confusion(probing(0.0, 1.0)) == [[0, (labels == 0).sum()], [0, (labels == 1).sum()]]
    network = probing(0.5, 0.0)
    network[0].weight[1, 2, 2, 2] = 1
    assert confusion(network) == [[(labels == 0).sum(), 0], [0, (labels == 1).sum()]]
    fewer = np.array(confusion(network, most=100))
    assert fewer.sum() == np.trace(fewer) == len(lattice([image.shape], 100))


SHAPES = st.lists(st.tuples(*[st.integers(1, 12)] * 3), min_size=1, max_size=4)


@given(SHAPES, st.integers(1, 200))
def test_centres_are_spread_evenly_over_all_volumes(shapes, most):
    places = lattice(shapes, most)
    assert len(set(places)) == len(places) <= max(most, len(shapes))
    steps = set()
    for number, shape in enumerate(shapes):
        own = [place for index, place in places if index == number]
        assert own
        for axis, length in enumerate(shape):
            along = sorted({place[axis] for place in own})
            assert abs(along[0] - (length - 1 - along[-1])) <= 1
            assert 0 <= along[0] <= along[-1] < length
            steps |= set(np.diff(along).tolist())
    assert len(steps) <= 1


@pytest.mark.parametrize("keep", [100, 0])
def test_a_class_that_the_lattice_misses_counts_nevertheless(folder, keep):
    labels = np.zeros((6, 40, 40), np.int64)
    labels[3, 1, 2:5] = 1
    part = part_of(np.zeros(labels.shape, np.float32), labels, classes=2, keep=keep)
    always = evaluate_centres(probing(1.0, 0.0), [part], make_config(folder), most=16, device="cpu")
    assert always["confusion"][1] == [3, 0]
    assert always["balanced_accuracy"]["mean"] == 0.5  # and not 1, for finding nothing but the background
