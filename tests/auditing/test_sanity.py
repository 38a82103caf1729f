"""A short run of benchmarks/sanity.py on networks whose answers are known; its long run is in benchmarks/results."""

import numpy as np
import pytest
import sanity
import torch
from torch import nn

import evenslice


@pytest.fixture(autouse=True)
def _little_effort(monkeypatch):
    for name, value in {"WINDOWS": 8, "DRAWS": 1, "REPLACED": 4, "TILE": 32}.items():
        monkeypatch.setattr(sanity, name, value)


@pytest.fixture(scope="module")
def volume():
    return evenslice.open_volume(np.random.default_rng(0).random((48, 32, 32), dtype=np.float32))


def linear(weights):
    """Two classes with opposite logits, so that the weights of both have the same size."""
    network = nn.Conv2d(len(weights), 2, 1, bias=False)
    network.weight.data = torch.tensor([weights, [-value for value in weights]]).view(2, -1, 1, 1)
    evenslice.neutralize(network, slices=len(weights), strategy="pretrained", mean=0, std=1)
    return network


def biased_stem():
    """Three convolutions of which the first reads mostly the slice before."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Conv2d(16, 2, 1),
    )
    network[0].weight.data *= torch.tensor([3.0, 1.0, 0.3])[:, None, None]
    network[1].running_mean[:] = 0.1  # statistics of training; those of the other are of a new layer
    evenslice.neutralize(network, slices=3, strategy="pretrained", mean=0, std=1)
    return network.eval()


@pytest.mark.parametrize("weights", [(3.0, 2.0, 1.0), (5.0, 1.0, 4.0, 2.0, 3.0)])
def test_shares_of_a_linear_network_predict_every_replacement(volume, weights):
    found = sanity.measure_replacements(linear(weights), volume, len(weights))
    np.testing.assert_allclose(
        found["gradient"], np.tile(np.array(weights) / sum(weights), (8, 1)), rtol=1e-5
    )
    for kind in sanity.REPLACEMENTS:
        for method in sanity.METHODS:
            assert sanity.right_signs(found, method, kind)[0] == 1


@pytest.mark.slow
def test_a_bias_of_the_stem_alone_goes_with_the_stem_and_stays_without(volume):
    found = {stage: sanity.measure_stage(biased_stem(), volume, stage, 0) for stage in sanity.STAGES}
    bias = {stage: rows["gradient"][0] for stage, rows in found.items()}
    kept = ("nothing: as built", "output layer and decoder", "... and the first third: all but the stem")
    assert all(bias[stage] < -0.7 for stage in kept), bias
    assert all(abs(bias[stage]) < 0.2 for stage in ("everything", "the stem alone")), bias
    assert found["nothing: as built"]["gradient maps"] == pytest.approx([1, 1, 1])
