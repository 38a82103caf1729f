"""What the second opinion and the classes cost: no pass of the network whose output is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import evenslice
from evenslice.auditing import subset
from evenslice.auditing.attribution import Gradients, attribute
from evenslice.auditing.measurer import Measurer
from evenslice.inference import ReadyNetwork
from evenslice.results import MethodNames


class Counted(nn.Module):
    """Two classes, each with a part of the pixels; neither linear nor symmetric. Keeps the shapes of its windows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 1))
        self.seen = []

    def __deepcopy__(self, memo):
        return self

    def forward(self, windows):
        self.seen.append(tuple(windows.shape))
        logit = self.layers(windows)
        logit = logit - logit.mean(dim=(2, 3), keepdim=True)
        return torch.cat([logit, -logit], dim=1)


@pytest.fixture
def network():
    return Counted().requires_grad_(False)


def measurer(network, crop):
    ready = ReadyNetwork(network, slices=3, device="cpu", dtype="float32")
    methods = MethodNames("gradient", "occlusion", "gradient")
    return Measurer(ready, [], None, "predicted", methods, crop, 0)


def test_parts_of_windows_take_one_pass_and_one_for_each_occluded_slice(network):
    volume = np.random.default_rng(0).random((40, 128, 128)).astype(np.float32)
    found = evenslice.audit(
        network, volume, slices=3, dtype="float32", device="cpu", batch=8, precision=1e-9, max_windows=32
    )
    assert np.isfinite(found.subset.class_shares).all()  # both classes were explained
    parts = [shape for shape in network.seen if shape[-2:] == (64, 64)]
    # First the trial whether the network takes parts; then, three windows and their mirrors of each 16, all slices and
    # each of them occluded.
    assert parts == [(2, 3, 64, 64)] + [(6, 3, 64, 64)] * (1 + 3) * 2


@pytest.mark.parametrize("batch", [2, 8, 16, 32])
@pytest.mark.parametrize("classes", [4, 8, 12])
def test_batches_explain_every_class_in_the_end(monkeypatch, classes, batch):
    """Whatever divisors the sizes of batches and groups have in common with the number of classes."""
    drawn = set()

    def classes_of(_, first, explain, maps, present, turn, original=subset._explain_classes):
        found = list(original(_, first, explain, maps, present, turn))
        drawn.update(number for number, _ in found)
        return found

    monkeypatch.setattr(subset, "_explain_classes", classes_of)
    levels = torch.linspace(0, 1, classes).view(1, -1, 1, 1)

    class Levels(nn.Module):
        def forward(self, windows):
            return -((0.8 * windows[:, :1] + 0.2 * windows[:, 2:] ** 2 - levels) ** 2)  # shares vary

    volume = np.random.default_rng(0).random((200, 32, 32))
    options = {"dtype": "float32", "device": "cpu", "intensity": (0, 1), "precision": 1e-9}
    evenslice.audit(Levels(), volume, slices=3, batch=batch, max_windows=192, **options)
    assert drawn == set(range(classes))


def test_known_outputs_are_not_computed_again(network):
    windows = torch.rand(2, 3, 16, 16)
    first = attribute(network, windows, method="occlusion")
    assert len(network.seen) == 1 + 3
    again = attribute(network, windows, method="occlusion", known=first.output)
    assert len(network.seen) == 1 + 3 + 3
    assert torch.equal(first.attribution, again.attribution)


@pytest.mark.parametrize("target", ["predicted", "labels", "sum", 1])
def test_kept_gradients_are_those_of_separate_passes(network, target):
    windows, labels = torch.rand(2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16))
    kept = Gradients(network, windows, target=target, labels=labels, seed=0)
    assert len(network.seen) == 1
    for only in (None,) if target == "sum" else (None, 0, 1, None):
        one = kept.explain(only)
        other = attribute(network, windows, target=target, labels=labels, only=only)
        torch.testing.assert_close(one.attribution, other.attribution)
        assert torch.equal(one.output, other.output)


@pytest.mark.parametrize("method", ["gradient", "occlusion", "smoothgrad"])
def test_windows_and_mirrors_in_one_pass_are_explained_as_by_themselves(network, method):
    parts = measurer(network, crop=(16, 16))
    whole = replace(parts, crop=None)
    windows = torch.rand(3, 3, 16, 16)
    found, expected = (item.explain_both(windows, None, method=method) for item in (parts, whole))
    known = parts.explain_both(windows, None, method=method, found=expected)
    for one in (found, known):
        for name in ("given", "mirrored"):
            torch.testing.assert_close(getattr(one, name).attribution, getattr(expected, name).attribution)
            torch.testing.assert_close(getattr(one, name).output, getattr(expected, name).output)
