"""Maps of one slice, for networks whose answer is known."""

import numpy as np
import pytest
import torch

from evenslice import ConfigError, ModelError
from evenslice.auditing import map_slice
from evenslice.auditing.slice_maps import LARGEST_PART


def weighted(*weights):
    """A network whose second class is favoured by a weighted sum of the slices."""
    network = torch.nn.Conv2d(len(weights), 2, 1, bias=False)
    kernel = torch.tensor(weights).view(1, -1, 1, 1)
    network.weight.requires_grad_(False).copy_(torch.cat([-kernel, kernel]))
    return network


@pytest.fixture
def volume():
    return np.random.default_rng(0).random((9, 20, 30)).astype(np.float32)


def test_saliency_is_the_weights_and_change_is_where_the_reversed_window_answers_otherwise(volume):
    maps = map_slice(weighted(1.0, 0.0, -3.0), volume, 4, slices=3)
    assert (maps.z, maps.origin, maps.offsets) == (4, (0, 0), (-1, 0, 1))
    assert maps.saliency.shape == (3, 20, 30)
    assert np.allclose(maps.saliency.sum(axis=(1, 2)), [0.25, 0, 0.75], atol=1e-5)
    before, after = (np.clip(volume[z], *np.percentile(volume, (0.5, 99.5))) for z in (3, 5))
    low, high = np.percentile(volume, (0.5, 99.5))
    before, after = (before - low) / (high - low), (after - low) / (high - low)
    expected = (before - 3 * after > 0) != (after - 3 * before > 0)
    assert (maps.change == expected).mean() > 0.99  # percentiles are of a sample
    assert 0 < expected.mean() < 1


def test_a_symmetric_network_changes_nothing(volume):
    maps = map_slice(weighted(1.0, -3.0, 1.0), volume, 0, slices=3)
    assert not maps.change.any()


def test_of_a_large_plane_the_part_around_the_centre_is_explained():
    volume = np.random.default_rng(0).random((4, 8, 2 * LARGEST_PART)).astype(np.float32)
    maps = map_slice(weighted(1.0, 1.0, 1.0), volume, 2, slices=3, centre=(4, 1000))
    assert maps.origin == (0, LARGEST_PART)
    assert maps.saliency.shape == (3, 8, LARGEST_PART)


def test_an_output_without_a_class_for_each_pixel_has_no_change(volume):
    network = torch.nn.Sequential(weighted(1.0, 0.0, 0.0), torch.nn.Flatten(), torch.nn.LazyLinear(1))
    network(torch.zeros(1, 3, 32, 32))
    assert map_slice(network, volume, 4, slices=3).change is None


def test_a_function_is_refused_by_name(volume):
    def thresholds(windows):
        return windows[:, 1:2] > 0.5

    with pytest.raises(ModelError, match="thresholds has no gradient to map; give a network"):
        map_slice(thresholds, volume, 4)


def test_a_slice_that_is_not_there_is_refused(volume):
    with pytest.raises(ConfigError, match=r"<array>: has no slice 9; choose one of 0 to 8"):
        map_slice(weighted(1.0, 0.0, 0.0), volume, 9)


def test_a_window_that_does_not_matter_has_no_saliency(volume):
    maps = map_slice(weighted(0.0, 0.0, 0.0), volume, 4, slices=3)
    assert not maps.saliency.any()
