"""Networks that return probabilities where logits are needed are refused; no network of logits is."""

import numpy as np
import pytest
import torch
from torch import nn
from values import by_name

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
        evenslice.segment(model, volume, tmp_path / "labels.tif", **by_name(evenslice.segment, **options))
    assert not list(tmp_path.iterdir())
    with pytest.raises(evenslice.ModelError, match=says):
        evenslice.evaluate(model, volume, volume > 128, **by_name(evenslice.evaluate, **options))


@pytest.mark.parametrize(
    ("model", "of_logits"),
    [
        (ending_in(nn.Sigmoid()), ending_in(nn.Identity())),
        (function, lambda windows: windows[:, 2:] - windows[:, :1]),
    ],
)
def test_an_audit_looks_behind_a_last_sigmoid(model, of_logits, volume):
    found, same = (
        evenslice.audit(
            network,
            volume,
            sampling=evenslice.Sampling(max_windows=8),
            compute=evenslice.Compute(progress=False),
        )
        for network in (model, of_logits)
    )
    assert found.run.explained == "log-odds"
    for name in ("answer", "reliance", "mismatch"):
        estimates = [
            [figure.estimate for figure in np.atleast_1d(getattr(audit, name))] for audit in (found, same)
        ]
        np.testing.assert_allclose(*estimates, atol=1e-5)


def test_softmax_is_refused_only_where_probabilities_are_computed(volume, tmp_path):
    model = ending_in(nn.Softmax(1), classes=3)
    with pytest.raises(
        evenslice.ModelError, match=r"returns probabilities, which add up to 1.* without its last softmax"
    ):
        evenslice.segment(model, volume, tmp_path / "p.ome.zarr", probabilities=True)
    labels = evenslice.segment(model, volume, tmp_path / "labels.tif")
    same = evenslice.segment(model[0], volume, tmp_path / "same.tif")
    np.testing.assert_array_equal(labels[...], same[...])


def test_so_are_sigmoids_of_several_classes(volume, tmp_path):
    model = ending_in(nn.Sigmoid(), classes=3)
    with pytest.raises(
        evenslice.ModelError, match="probability of each class by itself.* without its last sigmoid"
    ):
        evenslice.segment(model, volume, tmp_path / "p.ome.zarr", probabilities=True)
    labels = evenslice.segment(model, volume, tmp_path / "labels.tif")
    same = evenslice.segment(model[0], volume, tmp_path / "same.tif")
    np.testing.assert_array_equal(labels[...], same[...])


def test_the_average_over_window_and_mirror_of_probabilities_is_one_too(volume, tmp_path):
    model = ending_in(nn.Sigmoid())
    evenslice.neutralize(model, 3, strategy="pretrained", mean=0, std=1)
    fair = evenslice.symmetrize(model)
    with pytest.raises(evenslice.ModelError, match="returns a probability"):
        evenslice.segment(fair, volume, tmp_path / "labels.tif")


class Bounded(nn.Module):
    """Logits that lie between 0 and 1 for windows in 0..1."""

    def forward(self, windows):
        return windows.mean(dim=1, keepdim=True)


def only_in_range(windows):
    if windows.min() < 0 or windows.max() > 1:
        raise ValueError("voxels must lie in 0..1")
    return windows[:, :1]


class Normalized(nn.Module):
    """Logits without a scale: windows far beyond 0..1 give what noise within gives, here between 0 and 1."""

    def forward(self, windows):
        middle = windows[:, 1:2] - windows[:, 1:2].mean(dim=(2, 3), keepdim=True)
        return 0.4 + 0.1 * middle / middle.std(dim=(2, 3), keepdim=True).clamp_min(1e-6).clamp_max(3)


def mask(windows):
    return (windows[:, 1:2] > 0.5).astype(np.float32)


def clipped(windows):
    return np.clip(windows[:, 1:2] - 0.5, 0, 1)


@pytest.mark.parametrize("model", [Normalized(), mask, clipped], ids=["normalized", "mask", "clipped"])
def test_what_no_sigmoid_made_is_accepted(model, volume, tmp_path):
    labels = evenslice.segment(
        model, volume, tmp_path / "labels.tif", reading=evenslice.Reading(intensity=(0, 255))
    )
    assert labels.shape == volume.shape
    evenslice.evaluate(
        model, volume, volume > 128, reading=evenslice.Reading(intensity=(0, 255)), surfaces=False
    )


@pytest.mark.parametrize("model", [Bounded(), only_in_range], ids=["network", "function"])
def test_logits_between_0_and_1_are_no_probabilities(model, volume, tmp_path):
    labels = evenslice.segment(
        model, volume, tmp_path / "labels.tif", reading=evenslice.Reading(intensity=(0, 255))
    )
    np.testing.assert_array_equal(labels[...].max(), 1)
