"""`evenslice.evaluate`: networks, functions and ONNX files against labels, or against their own intact answers."""

import json

import numpy as np
import pytest
import zarr
from formulas import linear
from scipy import ndimage
from torch import nn
from values import by_name

from evenslice import Compute, ConfigError, ModelError, OutputError, VolumeError, evaluate, open_volume

IMAGE = ndimage.gaussian_filter(np.random.default_rng(0).random((20, 48, 40)), (0.7, 2, 2)).astype(np.float32)
IMAGE = (IMAGE - IMAGE.min()) / np.ptp(IMAGE)
LABELS = (IMAGE > 0.5).astype(np.uint8)
OPTIONS = {"intensity": (0, 1), "device": "cpu", "dtype": "float32", "progress": False, "surfaces": False}


def evaluated(model=(0.4, 0.4, 0.1), labels=LABELS, **options):
    model = linear(*model) if isinstance(model, tuple) else model
    return evaluate(model, IMAGE, labels, **by_name(evaluate, **{**OPTIONS, **options}))


@pytest.mark.slow
@pytest.mark.parametrize("values", [None, (0, 255)])
def test_a_network_that_finds_its_labels(values):
    labels = LABELS if values is None else LABELS * 255
    found = evaluated((0, 1, 0), labels, label_values=values, surfaces=True)
    document = found.to_dict()
    assert found.dice == found.iou == document["dice"]["mean"] == 1
    for name in ("dice", "iou", "surface_dice", "surface_dice_3"):
        assert document[name]["per_class"][1] == document[name]["mean"] == 1
    assert document["hd95"]["mean"] == 0
    assert document["stress"] is found.stress is None
    assert (document["model"]["slices"], document["volume"]["intensity"]) == (3, (0, 1))


def test_the_scores_do_not_depend_on_stress():
    plain, stressed = evaluated(), evaluated(stress=True, stress_slices=7)
    np.testing.assert_equal(plain.scores.to_dict(), stressed.scores.to_dict())
    assert stressed.stress.slices == 7


def test_without_labels_the_intact_answer_is_the_reference():
    found = evaluated((1, 0, 0), None, stress=True)
    assert found.scores is None
    assert np.isnan(found.dice)
    assert found.stress.reference == "intact answer"
    assert found.stress.intact.dice == 1
    assert found.stress.losses[0].before.dice < 1 == found.stress.losses[0].after.dice
    assert found.to_dict()["dice"] is None


def test_the_document_is_written_once_unless_forced(tmp_path):
    np.save(tmp_path / "labels.npy", 7 * LABELS)
    found = evaluated(labels=tmp_path / "labels.npy", stress=True, label_values=(0, 7), ignore_label=9)
    found.save(tmp_path)
    document = json.loads((tmp_path / "result.json").read_text())
    assert document == json.loads(found.to_json())
    assert {"dice", "iou", "hd95", "surface_dice", "stress", "versions", "created"} <= document.keys()
    assert document["volume"]["labels_path"] == str(tmp_path / "labels.npy")
    expected = {"label_values": [0, 7], "other_labels": "error", "ignore_label": 9, "instances": None}
    assert document["volume"]["label_options"] == expected
    with pytest.raises(OutputError, match=r"holds another result \(result.json\)"):
        found.save(tmp_path)
    found.save(tmp_path, force=True)


@pytest.mark.parametrize("most", [2**26, 8 * 5 * 48 * 40])
def test_labels_that_are_stored_together_are_read_together(tmp_path, monkeypatch, most):
    expected = evaluated(stress=True, stress_slices=5)
    zarr.create_array(tmp_path / "labels.zarr", data=LABELS, chunks=(8, 24, 40))
    monkeypatch.setattr("evenslice.inference.evaluation.CLASS_BYTES", most)
    volume, read = open_volume(tmp_path / "labels.zarr"), []
    source = type(volume._source())
    original = source.read
    monkeypatch.setattr(source, "read", lambda self, key: read.append(key[0].start) or original(self, key))
    found = evaluated(labels=volume, stress=True, stress_slices=5)
    # All once before anything is predicted.
    assert read == ([0, 0, 8, 16] if most == 2**26 else [0, 0, 5, 8, 13, 16])
    assert (found.dice, found.stress) == (expected.dice, expected.stress)


def test_a_function_is_evaluated_as_a_network_is():
    def function(windows):
        return 0.4 * windows[:, :1] + 0.4 * windows[:, 1:2] + 0.1 * windows[:, 2:] - 0.5

    expected, auto = evaluated(stress=True), {"device": "auto", "dtype": "auto"}
    found = evaluated(function, stress=True, **auto)
    assert found.dice == pytest.approx(expected.dice, abs=1e-3)
    for loss, other in zip(found.stress.losses, expected.stress.losses, strict=True):
        assert loss.asymmetry.estimate == pytest.approx(other.asymmetry.estimate, abs=2e-3)
    with pytest.raises(ConfigError, match="device='cpu': has no effect"):
        evaluate(function, IMAGE, LABELS, compute=Compute(device="cpu"))


def test_a_stray_label_in_the_last_slice_is_found_before_anything_is_predicted():
    seen, labels = [], LABELS.copy()
    labels[-1, -1, -1] = 7

    def function(windows):
        seen.append(len(windows))
        return windows[:, :2] - 0.5

    with pytest.raises(VolumeError, match="holds the label value 7"):
        evaluated(function, labels, device="auto", dtype="auto")
    assert sum(seen) < 3  # a trial


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": None}, ConfigError, "give labels, or stress"),
        ({"labels": np.zeros((20, 48, 9), int)}, VolumeError, r"labels of shape \(20, 48, 9\) do not fit"),
        ({"label_values": [0]}, ConfigError, r"label_values=\[0\]"),
        ({"label_values": [0, 7]}, VolumeError, "holds the label value 1"),
        ({"stress_slices": 0, "stress": True}, ConfigError, "stress_slices=0"),
        ({"stress_slices": 5}, ConfigError, "stress_slices: has no effect without stress"),
        ({"fill": "x"}, ConfigError, "fill: 'x'"),
        (
            {"labels": None, "stress": True, "label_values": [0, 1]},
            ConfigError,
            "label_values: has no effect",
        ),
        ({"slices": 4}, ConfigError, "slices=4"),
        ({"slices": 5}, ModelError, "rejects windows"),
        ({"model": nn.Flatten()}, ModelError, "must return"),
        ({"model": "unet", "device": "auto", "dtype": "auto"}, ModelError, "str is not a network"),
    ],
)
def test_what_does_not_fit_is_one_line(change, error, message):
    with pytest.raises(error, match=message) as caught:
        evaluated(**change)
    assert "\n" not in str(caught.value)
