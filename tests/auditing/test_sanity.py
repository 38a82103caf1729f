"""A short run of benchmarks/sanity.py on networks whose answers are known; its long run is in benchmarks/results."""

import numpy as np
import pytest
import sanity
import torch
from kept import Cache, write_csvs
from sanity_checks import (
    METHODS,
    REPLACEMENTS,
    Randomisation,
    measure_replacements,
    order_of_slices,
    pair_biases,
    right_signs,
)
from sanity_networks import STAGES, Effort, Family
from torch import nn

import evenslice

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def volume():
    return evenslice.open_volume(np.random.default_rng(0).random((48, 32, 32), dtype=np.float32))


@pytest.fixture
def effort():
    return Effort(windows=8, draws=1, replaced=6, tile=(32, 32))


def linear(weights):
    """Two classes with opposite logits, so that the weights of both have the same size."""
    network = nn.Conv2d(len(weights), 2, 1, bias=False)
    network.weight.data = torch.tensor([weights, [-value for value in weights]]).view(2, -1, 1, 1)
    return network


class Wave(nn.Module):
    """A quick, small wave of the slice before, and the slice after: steep in the first, moved by the second."""

    def forward(self, x):
        return 0.01 * torch.sin(1000 * x[:, :1]) + x[:, 2:]


def biased_stem():
    """Three convolutions of which the first reads mostly the slice before."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 2, 1),
    )
    network[0].weight.data *= torch.tensor([3.0, 1.0, 0.3])[:, None, None]
    network[1].running_mean[:] = 0.1  # statistics of training; those of the other are of a new layer
    evenslice.neutralize(network, slices=3, strategy="pretrained", mean=0, std=1)
    return network.eval()


@pytest.mark.parametrize("weights", [(3.0, 2.0, 1.0), (5.0, 1.0, 4.0, 2.0, 3.0)])
def test_shares_of_a_linear_network_predict_every_replacement(volume, effort, weights):
    found = measure_replacements(linear(weights), volume, len(weights), effort)
    np.testing.assert_allclose(
        found["gradient"], np.tile(np.array(weights) / sum(weights), (12, 1)), rtol=1e-5
    )
    for kind in REPLACEMENTS:
        for method in METHODS:
            assert order_of_slices(found, method, f"{kind} logits").estimate == pytest.approx(1)
            assert right_signs(found, method, f"{kind} logits").estimate == 1
    for k, bias in enumerate(pair_biases(found, "gray logits"), start=1):
        before, after = weights[len(weights) // 2 - k], weights[len(weights) // 2 + k]
        assert bias.estimate == pytest.approx((after - before) / (after + before), abs=0.03)


def test_a_steep_but_small_wave_misleads_the_gradient_and_not_occlusion(volume, effort):
    found = measure_replacements(Wave(), volume, 3, effort)
    for kind in REPLACEMENTS:
        assert right_signs(found, "gradient", f"{kind} logits").estimate == 0
        assert right_signs(found, "occlusion", f"{kind} logits").estimate == 1


def test_a_bias_of_the_stem_alone_goes_with_the_stem_and_stays_without(volume, effort):
    randomisation = Randomisation(biased_stem(), volume, effort)
    bias = {stage: randomisation.measure(stage, seed=0)["gradient"][0] for stage in STAGES}
    kept = ("nothing: as built", "output layer and decoder", "... and the first third: all but the stem")
    assert all(bias[stage] < -0.7 for stage in kept), bias
    assert all(abs(bias[stage]) < 0.2 for stage in ("everything", "the stem alone")), bias


def test_results_are_kept_and_tables_written_to_files(volume, effort, tmp_path):
    class Planted(Family):
        def load(self, slices):
            network = linear((3.0, 2.0, 1.0, 2.0, 1.0)[:slices])
            evenslice.neutralize(network, slices=slices, strategy="pretrained", mean=0, std=1)
            return network

    family, file = Planted("planted", "", "", effort), tmp_path / "results.json"
    tables = sanity.measure_all([family], volume, "noise", Cache(file))
    again = Cache(file)
    again.get = lambda key, _: again.known[key]  # measures nothing
    assert sanity.measure_all([family], volume, "noise", again) == tables
    assert tables["signs"].splitlines()[2] == (
        "| planted | 3 | mean gray | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |"
    )
    write_csvs("noise", tables, tmp_path)
    signs = (tmp_path / "noise-signs.csv").read_text().splitlines()
    assert signs[1] == 'planted,3,mean gray,"1.00 [1.00, 1.00]","1.00 [1.00, 1.00]","1.00 [1.00, 1.00]"'
    assert len(signs) == len(tables["signs"].splitlines()) - 1
