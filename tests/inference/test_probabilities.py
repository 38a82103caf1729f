"""Networks that return probabilities where logits are needed are refused; no network of logits is."""

import numpy as np
import pytest
import torch
from torch import nn

import evenslice


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 255, (12, 64, 64), np.uint8)


def ending_in(last, classes=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, classes, 3, padding=1), last)


def function(windows):
    return 1 / (1 + np.exp(-(windows[:, 2:] - windows[:, :1])))


@pytest.mark.parametrize("model", [ending_in(nn.Sigmoid()), ending_in(nn.Hardsigmoid()), function])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_last_sigmoid_is_refused_where_classes_are_told(model, dtype, volume, tmp_path):
    options = {} if model is function else {"dtype": dtype}
    says = r"returns a probability, .* build it without its last sigmoid"
    with pytest.raises(evenslice.ModelError, match=says):
        evenslice.segment(model, volume, tmp_path / "labels.tif", **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(evenslice.ModelError, match=says):
        evenslice.evaluate(model, volume, volume > 128, **options)
    with pytest.raises(evenslice.ModelError, match=says + ", or audit its plain output with target"):
        evenslice.audit(model, volume, **options)


def test_a_last_sigmoid_may_be_audited_as_a_plain_output(volume):
    audit = evenslice.audit(ending_in(nn.Sigmoid()), volume, target="sum", max_windows=8)
    assert audit.run.target == "sum"


def test_softmax_is_refused_only_where_probabilities_are_computed(volume, tmp_path):
    model = ending_in(nn.Softmax(1), classes=3)
    with pytest.raises(
        evenslice.ModelError, match=r"returns probabilities, which add up to 1.* without its last softmax"
    ):
        evenslice.segment(model, volume, tmp_path / "p.ome.zarr", probabilities=True)
    labels = evenslice.segment(model, volume, tmp_path / "labels.tif", dtype="float32")
    same = evenslice.segment(model[0], volume, tmp_path / "same.tif", dtype="float32")
    np.testing.assert_array_equal(labels[...], same[...])


class Bounded(nn.Module):
    """Logits that lie between 0 and 1 for windows in 0..1."""

    def forward(self, windows):
        return windows.mean(dim=1, keepdim=True)


def only_in_range(windows):
    if windows.min() < 0 or windows.max() > 1:
        raise ValueError("voxels must lie in 0..1")
    return windows[:, :1]


@pytest.mark.parametrize("model", [Bounded(), only_in_range], ids=["network", "function"])
def test_logits_between_0_and_1_are_no_probabilities(model, volume, tmp_path):
    labels = evenslice.segment(model, volume, tmp_path / "labels.tif", intensity=(0, 255))
    np.testing.assert_array_equal(labels[...].max(), 1)


def test_log_softmax_gives_the_same_probabilities(volume, tmp_path):
    model = ending_in(nn.LogSoftmax(1), classes=2)
    found = evenslice.segment(model, volume, tmp_path / "a.ome.zarr", probabilities=True, dtype="float32")
    same = evenslice.segment(model[0], volume, tmp_path / "b.ome.zarr", probabilities=True, dtype="float32")
    np.testing.assert_allclose(found[...], same[...], atol=1e-6)
