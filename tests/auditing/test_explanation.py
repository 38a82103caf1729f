"""Slices explained, for networks whose answer is known."""

import re

import numpy as np
import pytest
import torch

import evenslice
from evenslice import ConfigError, Reading, explain

RANGE = (0.0, 1.0)
LARGEST_PART = 512


def weighted(*weights):
    """A network whose second class is favoured by a weighted sum of the slices."""
    network = torch.nn.Conv2d(len(weights), 2, 1, bias=False)
    kernel = torch.tensor(weights).view(1, -1, 1, 1)
    network.weight.requires_grad_(False).copy_(torch.cat([-kernel, kernel]))
    return network


class Product(torch.nn.Module):
    """The log-odds of class 1 are the product of the neighbours, less a half."""

    def forward(self, windows):
        return (windows[:, :1] * windows[:, 2:] - 0.5) * 4


@pytest.fixture
def volume():
    return np.random.default_rng(0).random((9, 20, 30)).astype(np.float32)


def log_odds(network, window, classes):
    with torch.no_grad():
        output = network(window)
    odds = output[:, 0] if output.shape[1] == 1 else output[:, 1] - output[:, 0]
    return float(torch.where(torch.as_tensor(classes)[None] == 1, odds, -odds).sum())


@pytest.mark.parametrize(
    "network",
    [weighted(0.0, 0.0, -3.0), weighted(-1.0, 0.0, 1.0), Product()],
    ids=["one", "difference", "product"],
)
def test_maps_sum_to_the_change_of_the_log_odds(network, volume):
    found = explain(network, volume, 4, slices=3, reading=Reading(intensity=RANGE))
    window = torch.from_numpy(volume[3:6])[None]
    middle = window[:, 1:2].expand(-1, 3, -1, -1)
    change = log_odds(network, window, found.answer) - log_odds(network, middle, found.answer)
    assert (found.method, found.baseline) == ("integrated_gradients", "middle")
    assert found.maps.sum() == pytest.approx(change, rel=0.02)
    assert not found.maps[1].any()


def test_what_adds_is_above_0_and_what_takes_away_below():
    volume = np.full((3, 32, 32), 0.5, np.float32)
    volume[0], volume[2] = 0.6, 0.8
    found = explain(weighted(-1.0, 0.0, 1.0), volume, 1, slices=3, reading=Reading(intensity=RANGE))
    assert (found.answer == 1).all()
    assert np.allclose(found.maps[0], -0.2, atol=1e-5)
    assert np.allclose(found.maps[2], 0.6, atol=1e-5)
    assert found.shares == pytest.approx((0.25, 0, 0.75), abs=1e-5)
    assert found.change.all()


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_another_method_on_request(volume, method):
    found = explain(weighted(1.0, 0.0, -3.0), volume, 4, slices=3, method=method)
    assert (found.z, found.origin, found.offsets) == (4, (0, 0), (-1, 0, 1))
    assert found.maps.shape == (3, 20, 30)
    assert (found.method, found.baseline) == (method, {"occlusion": "gray"}.get(method))
    if method == "gradient":
        assert found.shares == pytest.approx((0.25, 0, 0.75), abs=1e-5)


def test_a_region_alone_is_explained_and_in_view():
    volume = np.random.default_rng(0).random((4, 8, 2 * LARGEST_PART)).astype(np.float32)
    region = np.zeros((8, 2 * LARGEST_PART), bool)
    region[3, 1000] = True
    found = explain(weighted(1.0, 1.0, 1.0), volume, 2, slices=3, region=region)
    assert found.origin == (0, LARGEST_PART)
    assert found.maps.shape == (3, 8, LARGEST_PART)
    assert np.argwhere(found.maps[2]).tolist() == [[3, 1000 - LARGEST_PART]]
    options = {"at": (4, 10), "target": "sum", "reading": Reading(overlapping=True)}
    assert explain(weighted(1.0, 1.0, 1.0), volume, 2, slices=3, **options).origin == (0, 0)


def test_a_function_is_explained_by_replacement_like_the_network_it_runs(volume):
    network = weighted(1.0, 0.5, -3.0)

    def function(windows):
        with torch.no_grad():
            return network(torch.from_numpy(windows)).numpy()

    found = explain(function, volume, 4)
    same = explain(network, volume, 4, method="occlusion", baseline="middle")
    assert (found.method, found.baseline) == ("occlusion", "middle")
    assert np.allclose(found.maps, same.maps, atol=1e-5)
    assert np.array_equal(found.change, same.change)
    # The map of a function that is linear shows, at each pixel, what integrated gradients do.
    assert np.allclose(found.maps, explain(network, volume, 4).maps, atol=1e-4)


@pytest.mark.slow
def test_saved_exported_and_symmetrized_forms_are_explained_alike(tmp_path):
    network, _, source = evenslice.load_network("smp:Unet/tu-test_resnet", "none", slices=3)
    evenslice.save_network(network, tmp_path / "n.safetensors", source=source)
    loaded = evenslice.load_network(str(tmp_path / "n.safetensors")).model
    plane = np.random.default_rng(1).random((5, 32, 32)).astype(np.float32)
    given = explain(network, plane, 2)
    assert np.array_equal(given.maps, explain(loaded, plane, 2).maps)
    evenslice.export(network, tmp_path / "onnx", to="onnx", tile=(32, 32))
    exported = explain(evenslice.load_onnx(tmp_path / "onnx" / "network.onnx"), plane, 2)
    replaced = explain(network, plane, 2, method="occlusion", baseline="middle")
    assert np.allclose(exported.maps, replaced.maps, atol=1e-3 * np.abs(replaced.maps).max())
    assert np.array_equal(exported.answer, given.answer)
    fair = evenslice.symmetrize(network)
    forth, back = explain(fair, plane, 2), explain(fair, plane[::-1].copy(), 2)
    scale = np.abs(forth.maps).max()
    assert np.allclose(forth.maps, back.maps[::-1], atol=1e-4 * scale)
    assert not forth.change.any()


def test_in_a_notebook_it_is_a_picture_with_its_method(volume):
    found = explain(weighted(1.0, 0.0, 1.0), volume, 4)
    page = found._repr_html_()
    assert "data:image/webp;base64," in page
    assert page.count("min(192px, 30vw)") == 3  # on a telephone, too
    assert "By integrated gradients: what each pixel adds" in page
    assert re.fullmatch(
        r"<Explanation of slice 4 by integrated_gradients: shares 0.[45]\d 0.00 0.[45]\d>", repr(found)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"z": 9}, "has no slice 9; choose one of 0 to 8"),
        ({"z": 1.5}, "z: is 1.5, not a whole number"),
        ({"at": (20, 0)}, r"at=\[20, 0\]: .* give a pixel of 20 x 30"),
        ({"region": np.ones((4, 4))}, r"region: give a mask of shape \(20, 30\)"),
        ({"region": np.zeros((20, 30))}, "region: give a mask"),
        ({"region": np.eye(20, 30, 25), "at": (19, 0), "tile": (8, 8)}, "region: no pixel lies in the"),
        ({"method": "gradient", "baseline": "gray"}, "baseline='gray': gradient has none"),
        ({"baseline": "grey"}, "baseline='grey': did you mean 'gray'"),
        ({"target": 7}, "the network only has the classes 0 to 1"),
        ({"target": "labels"}, "target='labels': no labels are read"),
    ],
)
def test_what_cannot_be_asked_is_refused(volume, options, said):
    with pytest.raises(ConfigError, match=said):
        explain(weighted(1.0, 0.0, 0.0), volume, **{"z": 4, **options})
