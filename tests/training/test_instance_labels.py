"""Labels that number objects: boundaries are trained, scored and remembered as if they had been stored."""

import json

import numpy as np
import pytest
import tiny_training
import torch
from formulas import linear
from skimage.metrics import variation_of_information
from tiny_training import PAIR

import evenslice
from evenslice import ConfigError, Reading

DENSE = Reading(instances="dense", intensity=(0, 1))


def boundaries(numbers, kind):
    """Return the classes of all slices, as those of whole planes."""
    planes = evenslice.SliceWindows(np.indices(numbers.shape)[2], numbers, reading=Reading(instances=kind))
    return np.stack([classes.numpy() for _, classes in (planes[z] for z in range(len(planes)))])


@pytest.fixture(scope="module")
def cells():
    """Numbers of cells that fill a volume, with 0 between some, and the boundary that is to be found."""
    coarse = np.random.default_rng(0).integers(0, 7, (24, 12, 12))
    numbers = np.kron(coarse, np.ones((1, 4, 4), int)).astype(np.uint32) * 1000
    return numbers, boundaries(numbers, "dense")


def test_slice_windows_evaluate_and_audit_find_them(cells):
    numbers, edges = cells
    image, options = edges.astype(np.float32), {"reading": DENSE}
    window, labels = evenslice.SliceWindows(image, numbers, foreground=1.0, crop=(32, 32), **options)[0]
    assert torch.equal(labels, window[1].round().long())
    assert evenslice.evaluate(linear(0.0, 1.0, 0.0), edges, numbers, surfaces=False, **options).dice == 1
    more = {"sampling": evenslice.Sampling(max_windows=8), "compute": evenslice.Compute(dtype="float32")}
    assert evenslice.audit(linear(0.0, 1.0, 0.0), edges, labels=numbers, **options, **more).stress.intact == 1
    with pytest.raises(ConfigError, match="instances='dense': gives 2 classes"):
        evenslice.SliceWindows(image, numbers, classes=3, **options)
    for call in (
        evenslice.SliceWindows,
        lambda *given, **more: evenslice.audit(linear(0.0, 1.0, 0.0), *given, **more),
    ):
        with pytest.raises(ConfigError, match="instances: has no effect without labels"):
            call(image, **options)


def test_the_background_of_sparse_objects_is_no_object():
    """Two objects on a background that is far larger, and an image in which nothing lies between them."""
    numbers = np.zeros((6, 32, 64), np.uint16)
    numbers[:, 8:24, 8:16], numbers[:, 8:24, 16:24] = 5, 9
    edges = boundaries(numbers, "sparse")
    merged = edges.astype(np.float32)
    merged[:, 9:23, 15:17] = 0
    inside = (numbers[0] > 0) & (edges[0] == 0)
    expected = variation_of_information(numbers[0][inside], np.ones(inside.sum(), int))
    reading = Reading(instances="sparse", intensity=(0, 1))
    found = evenslice.evaluate(linear(0.0, 1.0, 0.0), merged, numbers, reading=reading, surfaces=False)
    objects = found.scores.volumes[0].objects
    assert expected == pytest.approx((0, 1))
    np.testing.assert_allclose(objects[1:], expected, atol=1e-12)
    assert objects[0] == pytest.approx(1 / 3, abs=0.01)  # one object for two: recall 1, precision .5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 3}, "data.instances: 'dense': gives 2 classes, inside and boundary, not 3"),
        ({"label_values": [0, 5]}, "data.instances: 'dense': object numbers are not class values"),
        ({"instances": "all"}, "data.instances: 'all': should be 'sparse' or 'dense'"),
        ({"train": [{**PAIR, "labels": "one.npy"}]}, "has no voxel of class 1"),
    ],
)
def test_a_configuration_is_checked(cells, tmp_path, changes, message):
    numbers, edges = cells
    for name, array in (
        ("image", edges.astype(np.float32)),
        ("labels", numbers),
        ("one", np.ones_like(numbers)),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    options = {"root": str(tmp_path), "train": [PAIR], "instances": "dense", **changes}
    with pytest.raises(ConfigError, match=message):
        evenslice.train({"data": options}, tmp_path / "run")


@pytest.mark.slow
def test_a_run_remembers_it(cells, tmp_path, command):
    numbers, edges = cells
    tiny_training.write_inputs(tmp_path)
    np.save(tmp_path / "numbers.npy", numbers)
    np.save(tmp_path / "labels.npy", edges.astype(np.uint8))

    def run(*arguments):
        done = command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    scores = {}
    quick = {"steps": 2, "validate_every": 2, "monitor_every": None, "crop": [16, 16], "stress": False}
    for name, labels, own in (("stored", "labels.npy", {}), ("found", "numbers.npy", {"instances": "dense"})):
        options, pair = tiny_training.training_options(tmp_path, **quick), {**PAIR, "labels": labels}
        options["data"] |= own | {"validation_fraction": 0}
        options["data"] |= {"train": [{**pair, "slices": [0, 14]}], "test": [{**pair, "slices": [16, 24]}]}
        (tmp_path / "train.yaml").write_text(json.dumps(options))
        scores[name] = run("train", "train.yaml", "--out", name)
    assert scores["found"]["confusion"] == scores["stored"]["confusion"]
    assert scores["found"]["adapted_rand_error"] is not None
    assert scores["stored"]["adapted_rand_error"] is None  # nothing says that these are boundaries

    network = ["--model", "tiny_networks:tiny", "--volume", "image.npy", "--no-surfaces", "--labels"]
    dense = run("evaluate", "--run", "found", *network, "numbers.npy")
    sparse = run("evaluate", "--run", "found", *network, "numbers.npy", "--instances", "sparse")
    weights = ["--weights", "found/network.safetensors", "--label-values", "0,1"]
    assert dense["confusion"] == run("evaluate", *network, "labels.npy", *weights)["confusion"]
    assert sparse["confusion"] != dense["confusion"]
