"""Networks whose attribution is known in closed form."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from formulas import Formula, audit_formula, noise
from torch import nn

from evenslice import Compute, ConfigError, Reading, explain

METHODS = ("gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "gradient_shap", "occlusion")


def maps(network, volume, **options):
    """The maps (N, y, x) of a window that is the whole volume."""
    reading, compute = Reading(intensity=(0, 1)), Compute(device="cpu")
    options = {"slices": len(volume), "reading": reading, "compute": compute} | options
    return explain(network, volume, len(volume) // 2, **options).maps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("read", [0, 1, 4])
def test_a_network_that_reads_one_slice_gives_it_everything(method, read):
    reader = Formula(lambda windows: torch.stack([windows[:, read] ** 2, torch.sin(windows[:, read])], dim=1))
    total = np.abs(maps(reader, noise(depth=5, size=8), method=method)).sum(axis=(1, 2))
    np.testing.assert_allclose(total / total.sum(), np.arange(5) == read, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_attribution_of_the_mirror_is_the_mirror(method):
    """With the same random draws for a window and its mirror, as a bias of a symmetric network shows otherwise."""
    network = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1)).requires_grad_(
        False
    )
    kernel = network[0].weight
    kernel.copy_((kernel + kernel.flip(1)) / 2)
    found = audit_formula(network, noise(depth=6), slices=5, method=method, max_windows=2)
    assert [pair.estimate for pair in found.saliency] == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_contract_in_any_thread(method):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 1))
    volume = noise(depth=3, size=12)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = maps(network, volume, method=method)
    with ThreadPoolExecutor(2) as threads:  # which do not share random numbers
        again = list(threads.map(lambda _: maps(network, volume, method=method), range(4)))
    assert (found.shape, found.dtype) == (volume.shape, np.float32)
    assert (found.min() < 0) == (method != "smoothgrad")
    assert all(np.array_equal(found, other) for other in again)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def two_class_network():
    """Class 0 reads slice 0, class 1 reads slice 2; class 0 is predicted where slice 0 is the brighter."""
    volume = np.zeros((3, 4, 4), np.float32)
    volume[0, :, :3], volume[2, :, 3:] = 1, 1
    return Formula(lambda windows: windows[:, [0, 2]]), volume


@pytest.mark.parametrize(
    ("target", "expected"), [("predicted", [8, 0, -8]), (0, [16, 0, -16]), (1, [-16, 0, 16])]
)
def test_the_target_decides_what_is_explained(target, expected):
    """The log-odds of a class are its logit less that of the other one, 12 pixels of class 0 and 4 of class 1."""
    found = maps(*two_class_network(), target=target, method="gradient")
    assert found.sum(axis=(1, 2)).tolist() == expected


def test_a_wrong_target_is_refused():
    network, volume = two_class_network()
    with pytest.raises(ConfigError, match="target=5: the network only has the classes 0 to 1"):
        maps(network, volume, target=5)
    with pytest.raises(ConfigError, match="needs label volumes; give them as labels"):
        audit_formula(network, target="labels")
