"""Labels that number objects: boundaries are trained, scored and remembered as if they had been stored."""

import json

import numpy as np
import pytest
import tiny_training
import torch
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information
from torch import nn

import evenslice
from evenslice import ConfigError, TrainConfig
from evenslice._core import as_config
from evenslice.training.config import ModelConfig
from evenslice.training.data import open_data
from evenslice.volumes import LabelValues


@pytest.fixture(scope="module")
def cells():
    """Numbers of cells that fill a volume, with 0 between some, and the boundary that is to be found."""
    coarse = np.random.default_rng(0).integers(0, 7, (24, 12, 12))
    numbers = np.kron(coarse, np.ones((1, 4, 4), int)).astype(np.uint32) * 1000
    return numbers, LabelValues(instances="dense").class_volume(evenslice.open_volume(numbers), 2)[...]


class Bright(nn.Module):
    def forward(self, x):
        return torch.stack([0.5 - x[:, 1], x[:, 1] - 0.5], dim=1)


def test_slice_windows_find_them(cells):
    numbers, edges = cells
    data = evenslice.SliceWindows(
        edges.astype(np.float32),
        numbers,
        reading=evenslice.Reading(instances="dense"),
        foreground=1.0,
        crop=(32, 32),
    )
    window, labels = data[0]
    assert torch.equal(labels, window[1].round().long())
    with pytest.raises(ConfigError, match="instances: has no effect without labels"):
        evenslice.SliceWindows(edges, reading=evenslice.Reading(instances="dense"))
    with pytest.raises(ConfigError, match="instances='dense': gives 2 classes"):
        evenslice.SliceWindows(edges, numbers, reading=evenslice.Reading(instances="dense"), classes=3)


def test_evaluate_and_audit_score_them(cells):
    numbers, edges = cells
    scores = evenslice.evaluate(
        Bright(), edges, numbers, reading=evenslice.Reading(instances="dense", intensity=(0, 1))
    )
    assert scores.dice == 1
    found = evenslice.audit(
        Bright(),
        edges,
        labels=numbers,
        reading=evenslice.Reading(instances="dense", intensity=(0, 1)),
        sampling=evenslice.Sampling(max_windows=8),
        compute=evenslice.Compute(dtype="float32"),
    )
    assert found.stress.intact == 1
    with pytest.raises(ConfigError, match="instances: has no effect without labels"):
        evenslice.evaluate(Bright(), edges, stress=True, reading=evenslice.Reading(instances="dense"))
    with pytest.raises(ConfigError, match="instances: has no effect without labels"):
        evenslice.audit(Bright(), edges, reading=evenslice.Reading(instances="dense"))


def test_evaluate_compares_the_objects():
    numbers = np.kron(np.arange(1, 5).reshape(2, 2), np.ones((10, 10), int))[None].repeat(4, axis=0)
    edges = LabelValues(instances="dense").class_volume(evenslice.open_volume(numbers), 2)[...]
    merged = edges.astype(np.float32)
    merged[:, :8, 9:11] = 0  # the two upper objects become one
    truth, halves = label(edges[0] == 0, connectivity=1), np.repeat([1, 2], 10)[:, None].repeat(20, axis=1)
    halves[10:, 10:] = 3
    error, _, _ = adapted_rand_error(truth, halves, ignore_labels=(0,))
    split, merge = variation_of_information(truth, halves, ignore_labels=(0,))
    found = evenslice.evaluate(
        Bright(),
        merged,
        numbers,
        reading=evenslice.Reading(instances="dense", intensity=(0, 1)),
        surfaces=False,
    )
    assert error > 0
    np.testing.assert_allclose(found.scores.volumes[0].objects, (error, split, merge))


@pytest.fixture
def islands(tmp_path):
    """Two objects on a background that is far larger, and an image in which nothing lies between them."""
    numbers = np.zeros((6, 32, 64), np.uint16)
    numbers[:, 8:24, 8:16], numbers[:, 8:24, 16:24] = 5, 9
    edges = LabelValues(instances="sparse").class_volume(evenslice.open_volume(numbers), 2)[...]
    merged = edges.astype(np.float32)
    merged[:, 9:23, 15:17] = 0
    np.save(tmp_path / "merged.npy", merged)
    np.save(tmp_path / "numbers.npy", numbers)
    inside = (numbers[0] > 0) & (edges[0] == 0)
    expected = variation_of_information(numbers[0][inside], np.ones(inside.sum(), int))
    return tmp_path, expected


def test_the_background_of_sparse_objects_is_no_object(islands):
    folder, (split, merge) = islands
    found = evenslice.evaluate(
        Bright(),
        folder / "merged.npy",
        folder / "numbers.npy",
        reading=evenslice.Reading(instances="sparse", intensity=(0, 1)),
        surfaces=False,
    )
    assert (split, merge) == pytest.approx((0, 1))
    np.testing.assert_allclose(found.scores.volumes[0].objects[1:], (split, merge), atol=1e-12)
    assert found.scores.volumes[0].objects[0] == pytest.approx(
        1 / 3, abs=0.01
    )  # one object for two: recall 1, precision .5


def test_a_configuration_says_so(cells, tmp_path):
    numbers, edges = cells
    np.save(tmp_path / "image.npy", edges.astype(np.float32))
    np.save(tmp_path / "labels.npy", numbers)
    pair = {"image": "image.npy", "labels": "labels.npy"}
    options = {"root": str(tmp_path), "train": [pair], "instances": "dense", "ignore_label": 1000}
    config = as_config({"data": options}, TrainConfig)
    (part,) = open_data(config.data, ModelConfig()).train
    labels = part.labels[...]
    assert np.array_equal(labels < 0, numbers == 1000)
    assert 0 < part.index.counts[1] < (edges == 1).sum()  # fewer, as there is none beside what is ignored
    for changes, message in (
        ({"classes": 3}, "data.instances: 'dense': gives 2 classes, inside and boundary, not 3"),
        ({"label_values": [0, 5]}, "data.instances: 'dense': object numbers are not class values"),
        (
            {"other_labels": "background"},
            "data.instances: 'dense': object numbers are not class values",
        ),
        ({"instances": "all"}, "data.instances: 'all': should be 'sparse' or 'dense'"),
    ):
        with pytest.raises(ConfigError, match=message):
            as_config({"data": options | changes}, TrainConfig)


def test_objects_that_do_not_meet_have_no_boundary_to_learn(tmp_path):
    np.save(tmp_path / "image.npy", np.random.default_rng(0).random((8, 16, 16)))
    np.save(tmp_path / "labels.npy", np.ones((8, 16, 16), np.uint8))
    pair = {"image": "image.npy", "labels": "labels.npy"}
    config = as_config({"data": {"root": str(tmp_path), "train": [pair], "instances": "dense"}}, TrainConfig)
    with pytest.raises(ConfigError, match=r"has no boundary between objects .* or omit data\.instances"):
        open_data(config.data, ModelConfig())


def test_a_run_remembers_it(cells, tmp_path, command):
    numbers, edges = cells
    tiny_training.write_inputs(tmp_path)
    np.save(tmp_path / "numbers.npy", numbers)
    np.save(tmp_path / "labels.npy", edges.astype(np.uint8))
    scores = {}
    for name, labels, own in (("stored", "labels.npy", {}), ("found", "numbers.npy", {"instances": "dense"})):
        options = tiny_training.training_options(
            tmp_path, steps=2, validate_every=2, monitor_every=None, crop=[16, 16], stress=False
        )
        pair = {**tiny_training.PAIR, "labels": labels}
        options["data"] |= own | {
            "train": [{**pair, "slices": [0, 14]}],
            "test": [{**pair, "slices": [16, 24]}],
        }
        options["data"] |= {"validation_fraction": 0}
        (tmp_path / "train.yaml").write_text(json.dumps(options))
        done = command("train", "train.yaml", "--out", name, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["adapted_rand_error"] is None) == (
            name == "stored"
        )  # nothing says that these are boundaries
        scores[name] = found["confusion"]
    assert scores["found"] == scores["stored"]

    network = [
        "--run",
        "found",
        "--model",
        "tiny_networks:tiny",
        "--volume",
        "image.npy",
        "--no-surfaces",
        "--json",
    ]
    results = [
        command("evaluate", *network, "--labels", labels, *more)
        for labels, more in (
            ("numbers.npy", []),
            ("numbers.npy", ["--instances", "sparse"]),
        )
    ]
    weights = ["--weights", "found/network.safetensors", "--label-values", "0,1"]
    expected = command("evaluate", *network[2:], *weights, "--labels", "labels.npy")
    assert expected.returncode == 0, expected.stderr
    dense, sparse = (json.loads(done.stdout)["confusion"] for done in results)
    assert dense == json.loads(expected.stdout)["confusion"]
    assert sparse != dense
