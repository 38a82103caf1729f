"""`evenslice.evaluate`: networks, functions and ONNX files against labels, or against their own intact answers."""

import json

import numpy as np
import pytest
import torch
import zarr
from scipy import ndimage
from torch import nn
from values import by_name

import evenslice
from evenslice import ConfigError, ModelError, OutputError, VolumeError
from evenslice._core import json_text
from evenslice.inference import scoring


def linear(*weights, threshold=0.5):
    network = nn.Conv2d(len(weights), 1, 1).requires_grad_(False)
    network.weight.copy_(torch.tensor(weights).view(1, -1, 1, 1))
    network.bias.fill_(-threshold)
    return network


@pytest.fixture(scope="module")
def blobs():
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((20, 48, 40)), (0.7, 2, 2))
    image = ((image - image.min()) / np.ptp(image)).astype(np.float32)
    return image, (image > 0.5).astype(np.uint8)


OPTIONS = {"intensity": (0, 1), "device": "cpu", "dtype": "float32", "progress": False}


def test_a_network_that_finds_its_labels(blobs):
    image, labels = blobs
    found = evenslice.evaluate(linear(0, 1, 0), image, labels, **by_name(evenslice.evaluate, **OPTIONS))
    document = found.to_dict()
    assert found.dice == found.iou == document["dice"]["mean"] == 1
    for name in ("dice", "iou", "surface_dice", "surface_dice_3"):
        assert document[name]["per_class"][1] == document[name]["mean"] == 1
    assert document["hd95"]["mean"] == 0
    assert document["stress"] is found.stress is None
    assert document["model"]["slices"] == 3
    assert document["volume"]["intensity"] == (0, 1)


def test_the_scores_do_not_depend_on_stress(blobs):
    image, labels = blobs
    plain, stressed = (
        evenslice.evaluate(
            linear(0.4, 0.4, 0.1),
            image,
            labels,
            **by_name(evenslice.evaluate, stress=stress, stress_slices=7 if stress else None, **OPTIONS),
        )
        for stress in (False, True)
    )
    assert json_text(plain.scores.to_dict()) == json_text(stressed.scores.to_dict())
    assert stressed.stress.slices == 7


def test_without_labels_the_intact_answer_is_the_reference(blobs):
    found = evenslice.evaluate(
        linear(1, 0, 0), blobs[0], **by_name(evenslice.evaluate, stress=True, **OPTIONS)
    )
    assert found.scores is None
    assert np.isnan(found.dice)
    assert found.stress.reference == "intact answer"
    assert found.stress.intact.dice == 1
    assert found.stress.losses[0].before.dice < 1 == found.stress.losses[0].after.dice
    assert found.to_dict()["dice"] is None


def test_the_document_is_written_once_unless_forced(blobs, tmp_path):
    image, labels = blobs
    found = evenslice.evaluate(
        linear(1, 0, 0), image, labels, **by_name(evenslice.evaluate, stress=True, **OPTIONS)
    )
    found.save(tmp_path)
    document = json.loads((tmp_path / "result.json").read_text())
    assert document == json.loads(found.to_json())
    assert {"dice", "iou", "hd95", "surface_dice", "stress", "versions", "created"} <= document.keys()
    with pytest.raises(OutputError, match=r"holds another result \(result.json\)"):
        found.save(tmp_path)
    found.save(tmp_path, force=True)


def test_the_document_names_the_labels_and_what_their_values_mean(blobs, tmp_path):
    image, labels = blobs
    np.save(tmp_path / "labels.npy", 7 * labels.astype(np.uint8))
    options = {**OPTIONS, "label_values": (0, 7), "ignore_label": 9}
    found = evenslice.evaluate(
        linear(1, 0, 0), image, tmp_path / "labels.npy", **by_name(evenslice.evaluate, **options)
    )
    assert found.to_dict()["volume"]["labels_path"] == str(tmp_path / "labels.npy")
    assert found.volume.label_options == {
        "label_values": [0, 7],
        "other_labels": "error",
        "ignore_label": 9,
        "instances": None,
    }


@pytest.mark.parametrize("slices", [{}, {"stress_slices": 5}])
@pytest.mark.parametrize(("most", "starts"), [(2**25, [0, 8, 16]), (5 * 48 * 40, [0, 5, 8, 13, 16])])
def test_labels_that_are_stored_together_are_read_together(
    blobs, tmp_path, monkeypatch, slices, most, starts
):
    image, labels = blobs
    expected = evenslice.evaluate(
        linear(0.4, 0.4, 0.1), image, labels, **by_name(evenslice.evaluate, stress=True, **slices, **OPTIONS)
    )
    zarr.create_array(tmp_path / "labels.zarr", data=labels, chunks=(8, 24, 40))
    monkeypatch.setattr(scoring, "CLASS_BYTES", 8 * most)
    volume, read = evenslice.open_volume(tmp_path / "labels.zarr"), []
    source = type(volume._source())
    original = source.read
    monkeypatch.setattr(source, "read", lambda self, key: read.append(key[0].start) or original(self, key))
    found = evenslice.evaluate(
        linear(0.4, 0.4, 0.1), image, volume, **by_name(evenslice.evaluate, stress=True, **slices, **OPTIONS)
    )
    assert read == [0, *starts]  # all once before anything is predicted
    assert found.dice == expected.dice
    assert found.stress == expected.stress


def test_a_function_is_evaluated_as_a_network_is(blobs):
    image, labels = blobs

    def function(windows):
        return 0.4 * windows[:, :1] + 0.4 * windows[:, 1:2] + 0.1 * windows[:, 2:] - 0.5

    expected = evenslice.evaluate(
        linear(0.4, 0.4, 0.1), image, labels, **by_name(evenslice.evaluate, stress=True, **OPTIONS)
    )
    found = evenslice.evaluate(
        function,
        image,
        labels,
        stress=True,
        reading=evenslice.Reading(intensity=(0, 1)),
        compute=evenslice.Compute(progress=False),
    )
    assert found.dice == pytest.approx(expected.dice, abs=1e-3)
    for loss, other in zip(found.stress.losses, expected.stress.losses, strict=True):
        assert loss.asymmetry.estimate == pytest.approx(other.asymmetry.estimate, abs=2e-3)
    with pytest.raises(ConfigError, match="device='cpu' has no effect on a function"):
        evenslice.evaluate(function, image, labels, compute=evenslice.Compute(device="cpu"))


def test_a_stray_label_in_the_last_slice_is_found_before_anything_is_predicted(blobs):
    image, labels = blobs
    seen = []

    def function(windows):
        seen.append(len(windows))
        return np.stack([1 - 2 * windows[:, 1], 2 * windows[:, 1] - 1], axis=1)

    labels = np.array(labels)
    labels[-1, -1, -1] = 7
    with pytest.raises(VolumeError, match="holds the label value 7"):
        evenslice.evaluate(
            function,
            image,
            labels,
            slices=3,
            reading=evenslice.Reading(intensity=(0, 1)),
            compute=evenslice.Compute(progress=False),
        )
    assert sum(seen) < 3  # a trial


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": None}, ConfigError, "nothing to compare the answers with; give labels, or stress"),
        ({"labels": np.zeros((20, 48, 9), int)}, VolumeError, r"labels of shape \(20, 48, 9\) do not fit"),
        ({"label_values": [0]}, ConfigError, r"label_values=\[0\]: give a different value for each of the 2"),
        ({"label_values": [0, 7]}, VolumeError, "holds the label value 1"),
        ({"stress_slices": 0, "stress": True}, ConfigError, "stress_slices=0: must be at least 1"),
        ({"stress_slices": 5}, ConfigError, "stress_slices: has no effect without stress"),
        ({"seed": -1, "stress": True}, ConfigError, "seed=-1: must be at least 0"),
        ({"seed": 1.5}, ConfigError, "seed: is 1.5, not a whole number"),
        ({"stress_slices": 1.5, "stress": True}, ConfigError, "stress_slices: is 1.5, not a whole number"),
        ({"batch": "4"}, ConfigError, "batch: is '4', not a whole number"),
        ({"batch": 1.5}, ConfigError, "batch: is 1.5, not a whole number"),
        ({"step": "1"}, ConfigError, "step: is '1', not a whole number"),
        ({"fill": "x"}, ConfigError, "fill: 'x' is not a number"),
        (
            {"labels": None, "stress": True, "label_values": [0, 1]},
            ConfigError,
            "label_values: has no effect without labels",
        ),
        ({"slices": 4}, ConfigError, "slices=4: a window has an odd number"),
        ({"slices": 5}, ModelError, "rejects windows"),
        ({"model": nn.Flatten()}, ModelError, "must return"),
        ({"model": "unet"}, ModelError, "str is not a network"),
    ],
)
def test_what_does_not_fit_is_one_line(blobs, change, error, message):
    given = {"model": linear(1, 0, 0), "volume": blobs[0], "labels": blobs[1], **OPTIONS} | change
    if isinstance(given["model"], str):
        del given["device"], given["dtype"]
    with pytest.raises(error, match=message) as caught:
        evenslice.evaluate(**by_name(evenslice.evaluate, **given))
    assert "\n" not in str(caught.value)


def test_label_values_name_the_classes(blobs):
    image, labels = blobs
    found = evenslice.evaluate(
        linear(0, 1, 0),
        image,
        labels * 255,
        **by_name(evenslice.evaluate, reading=evenslice.Reading(label_values=[0, 255]), **OPTIONS),
    )
    assert found.dice == 1
