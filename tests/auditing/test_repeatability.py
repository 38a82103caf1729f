"""Networks that answer the same window in two ways are refused."""

import pytest
import torch
from formulas import audit_formula, noise
from torch import nn

import evenslice
from evenslice._core.errors import ModelError


class MonteCarlo(nn.Dropout2d):
    """Dropout that is on in evaluation mode too."""

    def forward(self, features):
        return nn.functional.dropout2d(features, self.p, training=True)


class BatchMean(nn.Module):
    def forward(self, features):
        return features - features.mean(0, keepdim=True)


def around(layer):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), layer, nn.Conv2d(8, 2, 1)
    ).train()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (MonteCarlo(0.2), r"in a second run, .*; random: 1 \(MonteCarlo\); make it deterministic"),
        (BatchMean(), r"beside another window, .*; dependent on the batch: 1 \(BatchMean\); make it"),
        (nn.BatchNorm2d(8, track_running_stats=False), r"beside another window, .*: 1 \(BatchNorm2d\);"),
    ],
)
def test_networks_that_are_not_repeatable_are_refused_and_their_layers_named(layer, message):
    with pytest.raises(ModelError, match=message):
        audit_formula(around(layer), noise(depth=12))


@pytest.mark.parametrize("layer", [nn.Dropout2d(0.5), nn.BatchNorm2d(8)])
def test_networks_left_in_training_mode_are_audited_in_evaluation_mode(layer):
    model = around(layer)
    first, again = (audit_formula(model, noise(depth=12)) for _ in range(2))
    assert model.training
    assert first.saliency == again.saliency


def test_random_functions_are_refused():
    def function(windows):
        return torch.rand(len(windows), 2, 32, 32).numpy()

    with pytest.raises(ModelError, match="another output for the same window in a second run"):
        evenslice.audit(function, noise(depth=12), slices=3, compute=evenslice.Compute(progress=False))


def test_memory_that_runs_out_in_the_check_is_told_in_one_line():
    class Small(nn.Conv2d):
        def forward(self, windows):
            if len(windows) > 1:
                raise torch.OutOfMemoryError
            return super().forward(windows)

    with pytest.raises(ModelError, match="memory of the device has run out: two windows .*smaller tile"):
        audit_formula(Small(3, 2, 1), noise(depth=12))
