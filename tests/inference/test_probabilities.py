"""Networks that return probabilities where logits are needed are refused; no network of logits is."""

import numpy as np
import pytest
import torch
from torch import nn
from values import by_name

from evenslice import Compute, ModelError, Reading, Sampling, audit, evaluate, neutralize, segment, symmetrize

VOLUME = np.random.default_rng(0).integers(0, 255, (6, 32, 32), np.uint8)
READING = Reading(intensity=(0, 255))


def ending_in(last, classes=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, classes, 3, padding=1), last)


class Masked(nn.Sequential):
    """Probabilities times others, away from 0 and 1."""

    def forward(self, windows):
        found = super().forward(windows)
        return (found * found).clamp(1e-6, 1 - 1e-6)


def function(windows):
    return 1 / (1 + np.exp(-(windows[:, 2:] - windows[:, :1])))


def fair(model):
    neutralize(model, 3, strategy="pretrained", mean=0, std=1)
    return symmetrize(model)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (ending_in(nn.Sigmoid()), {}),
        (ending_in(nn.Sigmoid()), {"dtype": "bfloat16"}),
        (ending_in(nn.Hardsigmoid()), {}),
        (Masked(*ending_in(nn.Sigmoid())), {}),
        (fair(ending_in(nn.Sigmoid())), {}),  # the average of probabilities is one, too
        (function, {}),
    ],
)
def test_a_last_sigmoid_is_refused_where_classes_are_told(model, options, tmp_path):
    says = "returns probabilities.* build it without its last sigmoid"
    with pytest.raises(ModelError, match=says):
        segment(model, VOLUME, tmp_path / "labels.tif", **by_name(segment, **options))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match=says):
        evaluate(model, VOLUME, VOLUME > 128, **by_name(evaluate, **options))


@pytest.mark.parametrize(
    ("model", "of_logits"),
    [
        (ending_in(nn.Sigmoid()), ending_in(nn.Identity())),
        (function, lambda windows: windows[:, 2:] - windows[:, :1]),
    ],
)
def test_an_audit_looks_behind_a_last_sigmoid(model, of_logits):
    options = {"sampling": Sampling(max_windows=6), "compute": Compute(progress=False)}
    found, same = (audit(network, VOLUME, **options) for network in (model, of_logits))
    assert found.run.explained == "log-odds"
    for name in ("answer", "reliance", "mismatch"):
        estimates = [
            [figure.estimate for figure in np.atleast_1d(getattr(one, name))] for one in (found, same)
        ]
        np.testing.assert_allclose(*estimates, atol=1e-5)


@pytest.mark.parametrize(("last", "name"), [(nn.Softmax(1), "softmax"), (nn.Sigmoid(), "sigmoid")])
def test_several_probabilities_are_refused_only_where_some_are_computed(tmp_path, last, name):
    model = ending_in(last, classes=3)
    with pytest.raises(ModelError, match=f"returns probabilities.* without its last {name}"):
        segment(model, VOLUME, tmp_path / "p.ome.zarr", probabilities=True)
    np.testing.assert_array_equal(segment(model, VOLUME)[...], segment(model[0], VOLUME)[...])


class Bounded(nn.Module):
    """Logits that lie between 0 and 1 for windows in 0..1."""

    def forward(self, windows):
        return windows.mean(dim=1, keepdim=True)


class Normalized(nn.Module):
    """Logits without a scale: windows far beyond 0..1 give what noise within gives, here between 0 and 1."""

    def forward(self, windows):
        middle = windows[:, 1:2] - windows[:, 1:2].mean(dim=(2, 3), keepdim=True)
        return 0.4 + 0.1 * middle / middle.std(dim=(2, 3), keepdim=True).clamp_min(1e-6).clamp_max(3)


def only_in_range(windows):
    if windows.min() < 0 or windows.max() > 1:
        raise ValueError("voxels must lie in 0..1")
    return windows[:, :1]


def mask(windows):
    return (windows[:, 1:2] > 0.5).astype(np.float32)


def clipped(windows):
    return np.clip(windows[:, 1:2] - 0.5, 0, 1)


@pytest.mark.parametrize("model", [Bounded(), Normalized(), only_in_range, mask, clipped])
def test_what_no_sigmoid_made_is_accepted(model):
    labels = segment(model, VOLUME, reading=READING)
    assert labels[...].max() == 1
    assert evaluate(model, VOLUME, VOLUME > 128, reading=READING, surfaces=False).dice > 0
