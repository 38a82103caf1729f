"""Networks whose attribution is known in closed form."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from evenslice import ConfigError
from evenslice.auditing.attribution import (
    METHODS,
    Explained,
    Score,
    attribute as attribute_score,
)


def attribute(network, windows, *, target="auto", labels=None, mirrored=False, **options):
    """Attribute the output of a network."""
    return attribute_score(Score(network, Explained(target), labels, mirrored=mirrored), windows, **options)


def shares(found):
    total = found.attribution.abs().sum(dim=(2, 3))
    return total / total.sum(1, keepdim=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("read", [0, 1, 4])
def test_a_network_that_reads_one_slice_gives_it_everything(method, read):
    class Reader(nn.Module):
        def forward(self, windows):
            return torch.stack([windows[:, read] ** 2, torch.sin(windows[:, read])], dim=1)

    found = attribute(Reader(), torch.rand(2, 5, 8, 8), method=method)
    expected = np.zeros((2, 5))
    expected[:, read] = 1
    np.testing.assert_allclose(shares(found), expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_attribution_of_the_mirror_is_the_mirror(method):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1)).requires_grad_(
        False
    )
    symmetric = network[0].weight
    symmetric.copy_((symmetric + symmetric.flip(1)) / 2)
    windows = torch.rand(2, 5, 16, 16)
    found = attribute(network, windows, method=method, seed=3)
    mirrored = attribute(network, windows, method=method, seed=3, mirrored=True)
    torch.testing.assert_close(mirrored.output, found.output, atol=1e-6, rtol=0)
    torch.testing.assert_close(mirrored.attribution, found.attribution, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_contract_in_any_thread(method):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 1)).requires_grad_(
        False
    )
    windows = torch.rand(2, 3, 12, 10)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = attribute(network, windows, method=method, seed=7)
    with ThreadPoolExecutor(2) as threads:  # which do not share random numbers
        again = list(
            threads.map(lambda _: attribute(network, windows.clone(), method=method, seed=7), range(4))
        )
    assert (found.attribution.shape, found.attribution.dtype) == (windows.shape, torch.float32)
    assert (found.attribution.min() < 0) == (method != "smoothgrad")
    assert not windows.requires_grad
    assert all(torch.equal(found.attribution, other.attribution) for other in again)
    torch.testing.assert_close(found.output, network(windows))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def two_class_network():
    """Class 0 reads slice 0, class 1 reads slice 2; class 0 is predicted where slice 0 is the brighter."""
    network = nn.Conv2d(3, 2, 1, bias=False).requires_grad_(False)
    network.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1]])[..., None, None])
    windows = torch.zeros(1, 3, 4, 4)
    windows[:, 0, :, :3], windows[:, 2, :, 3:] = 1, 1
    return network, windows


@pytest.mark.parametrize(
    ("target", "expected"), [("predicted", [8, 0, -8]), (0, [16, 0, -16]), (1, [-16, 0, 16])]
)
def test_the_target_decides_what_is_explained(target, expected):
    """The log-odds of a class are its logit less that of the other one, 12 pixels of class 0 and 4 of class 1."""
    network, windows = two_class_network()
    found = attribute(network, windows, target=target)
    assert found.attribution.sum(dim=(0, 2, 3)).tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 5}, "target=5: the network only has the classes 0 to 1"),
        ({"target": "labels"}, "give them as labels"),
        ({"target": "labels", "labels": torch.full((1, 4, 4), 7)}, "values from 7 to 7"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    network, windows = two_class_network()
    with pytest.raises(ConfigError, match=message):
        attribute(network, windows, **options)
