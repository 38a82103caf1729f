"""What the second opinion and the classes cost: no pass of the network whose output is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import evenslice
from evenslice.auditing.attribution import Gradients, attribute
from evenslice.auditing.batches import WindowStream, with_subset
from evenslice.auditing.measurer import Measurer
from evenslice.auditing.subset import cut
from evenslice.inference import ReadyNetwork
from evenslice.results import MethodNames
from evenslice.volumes import Scaling, WindowGrid, open_volume


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
    volume = np.random.default_rng(0).random((60, 128, 128)).astype(np.float32)
    found = evenslice.audit(
        network, volume, slices=3, dtype="float32", device="cpu", batch=8, precision=1e-9, max_windows=40
    )
    assert np.isfinite(found.subset.class_shares).all()  # both classes were explained
    parts = [shape for shape in network.seen if shape[-2:] == (64, 64)]
    # First the trial whether the network takes parts; then, windows 0 and 5, 10 and 15, 20, 25 and 30, 35 and their
    # mirrors, all slices and each of them occluded.
    sizes = [4, 4, 2, 4, 2]
    assert parts == [(2, 3, 64, 64)] + [(size, 3, 64, 64) for size in sizes for _ in range(1 + 3)]


def grid(depth, tile=(16, 16)):
    """Return the windows of an empty volume of a depth."""
    return WindowGrid(open_volume(np.broadcast_to(np.uint8(0), (depth, *tile))), Scaling(0, 1), 3, tile)


def visited(depths, windows):
    """Return volume and depth (0..1) of the windows of a subset, and the place of the part that is measured."""
    found = []
    for batch in WindowStream([grid(depth) for depth in depths], 0, windows).batches(lambda: 2):
        for row, count in zip(batch.subset.tolist(), batch.counts.tolist(), strict=True):
            volume, z = batch.places[row, :2]
            found.append((volume, (z - 1) / (depths[volume] - 2), count % 5))
    return [np.array(column) for column in zip(*found, strict=True)]


def test_the_subset_sees_all_depths():
    _, depths, _ = visited([402], 40)
    assert len(depths) == 8
    gaps = np.diff([0, *np.sort(depths), 1])
    assert gaps.max() < 0.3  # of eight places at equal distances: 0.125


@pytest.mark.parametrize("volumes", [1, 2, 3, 4, 5, 7, 8, 16, 35])
def test_the_subset_sees_every_volume_at_every_depth_and_place(volumes):
    volume, depths, places = visited([402] * volumes, 300 * volumes)
    for one in range(volumes):
        counts = np.histogram2d(depths[volume == one], places[volume == one], bins=(2, 5))[0]
        assert counts.min() >= 1
        assert np.unique((4 * depths[volume == one]).astype(int)).size == 4


@pytest.mark.parametrize("every", [5, 7])
@pytest.mark.parametrize("depth", [*range(8, 45), 100])
def test_the_subset_sees_every_slice_at_every_place_whatever_divides_their_number(depth, every):
    volume = open_volume(np.zeros((depth + 2, 16, 16 * 35), np.float32))
    stream = WindowStream([WindowGrid(volume, Scaling(0, 1), 3, (16, 16))], 0, None, every)
    seen, in_few_rounds = set(), set()
    visited = 0
    for batch in stream.batches(lambda: 8):
        for row, count in zip(batch.subset.tolist(), batch.counts.tolist(), strict=True):
            z = batch.places[row, 1]
            seen.add((z, count % 5))
            in_few_rounds.update([z] if visited + row < every * depth else [])
        visited += len(batch.places)
    assert len(in_few_rounds) == depth
    assert len(seen) == 5 * depth


def test_the_subset_sees_the_volumes_that_are_left_when_one_has_been_seen():
    volume, _, _ = visited([402, 402, 6, 402, 402, 402], 600)
    counts = np.bincount(volume, minlength=6)
    assert counts[2] in (0, 1)
    assert np.delete(counts, 2).min() > 20


@pytest.mark.parametrize(
    ("windows", "crop", "step"),
    [
        (1000, None, 7),
        (1000, (64, 64), 5),
        (48, None, 5),
        (40, (64, 64), 5),
        (39, None, 5),
        (35, None, 1),
        (8, None, 1),
    ],
)
def test_short_audits_have_enough_slices_in_the_subset(windows, crop, step):
    stream = with_subset(WindowStream([grid(402)], 0, windows), MethodNames(), crop)
    assert stream.every == step
    assert slices_in_subset(stream) >= 8


@pytest.mark.parametrize("windows", [40, 44, 48])
@pytest.mark.parametrize("volumes", range(1, 12))
def test_so_have_those_of_several_volumes(volumes, windows):
    stream = WindowStream([grid(402)] * volumes, 0, windows)
    assert slices_in_subset(with_subset(stream, MethodNames(), (64, 64))) >= 8
    if volumes == 3 and windows == 40:
        assert slices_in_subset(replace(stream, every=5)) == 7  # each volume rounds by itself


def slices_in_subset(stream):
    batches = stream.batches(lambda: 8)
    return len({tuple(place) for batch in batches for place in batch.places[batch.subset, :2].tolist()})


def test_few_large_windows_are_kept_as_pictures():
    def kept(tile):
        stream = WindowStream([grid(402, tile)], 0, 40)
        return sum(batch.pictures for batch in stream.batches(lambda: 3))

    assert [kept((side, side)) for side in (256, 1024, 2048, 4096)] == [8, 8, 2, 0]


def test_parts_of_windows_cover_the_tile():
    seen = cut(torch.arange(24 * 24).reshape(1, 24, 24).expand(5, 24, 24), (10, 10), np.arange(5))
    rows, columns = np.unique(seen.numpy() // 24), np.unique(seen.numpy() % 24)
    assert rows.tolist() == columns.tolist() == list(range(24))


class Levels(nn.Module):
    """As many classes as there are levels of gray."""

    def __init__(self, classes):
        super().__init__()
        self.levels = torch.linspace(0, 1, classes).view(1, -1, 1, 1)

    def forward(self, windows):
        return -((0.8 * windows[:, :1] + 0.2 * windows[:, 2:] ** 2 - self.levels) ** 2)  # shares vary


def audit_levels(classes, batch, **options):
    volume = np.random.default_rng(0).random((200, 32, 32))
    options = {"dtype": "float32", "device": "cpu", "intensity": (0, 1), "max_windows": 192} | options
    return evenslice.audit(Levels(classes), volume, slices=3, batch=batch, **options)


@pytest.mark.parametrize(("classes", "batch"), [(4, 2), (8, 8), (12, 32)])
def test_every_class_has_its_turn(classes, batch):
    found = audit_levels(classes, batch, precision=1e-9)
    assert np.isfinite(found.subset.class_shares).all(axis=2).any(axis=0).all()


@pytest.mark.parametrize("precision", [1e-9, 0.02])
def test_the_size_of_a_batch_does_not_matter(precision):
    """Neither to which classes of a window are explained, nor to when an audit stops."""
    one, *others = (audit_levels(8, batch, precision=precision) for batch in (1, 7, 16))
    assert one.run.stopped == ("limit reached" if precision < 1e-3 else "precision reached")
    for other in others:
        assert other.run.stopped == one.run.stopped
        assert len(other.measurements.volume) == len(one.measurements.volume)
        np.testing.assert_allclose(other.subset.class_shares, one.subset.class_shares, atol=1e-5)
        assert other.verdict == one.verdict


@pytest.mark.parametrize("size", [2, 8, 32])
def test_batches_end_where_an_audit_may_stop(size):
    sizes = [len(batch.places) for batch in WindowStream([grid(402)], 0, 250).batches(lambda: size)]
    ends = set(np.cumsum(sizes).tolist())
    assert {40, 50, 62, 77, 96, 120, 150, 187, 200, 233, 250} <= ends
    assert max(sizes) == size
    assert sizes[: 40 // size] == [size] * (40 // size)
    assert len(sizes) <= 250 // size + 11  # each end adds a batch at most


@pytest.mark.parametrize("method", ["gradient", "smoothgrad"])
def test_classes_of_windows_are_explained_together_as_by_themselves(network, method):
    windows, only = torch.rand(3, 3, 16, 16), torch.tensor([1, -1, 0])
    found = attribute(network, windows, method=method, only=only).attribution
    apart = [attribute(network, windows, method=method, only=int(number)).attribution for number in only]
    for row in range(3):
        torch.testing.assert_close(found[row], apart[row][row])
    assert not found[1].any()


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


class Steep(nn.Module):
    """Class 0 looks at both neighbours alike; class 1, of a few of the brightest pixels, at one alone and a thousand times as much."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, windows):
        before, _, after = windows.unbind(1)
        both = before / 2 + after / 2 + 1
        return torch.stack([both, 1000 * (before - 0.998)], dim=1)


@pytest.mark.parametrize("method", ["gradient", "occlusion", "integrated_gradients"])
def test_the_attention_to_a_class_is_not_that_to_rare_ones(method):
    volume = np.random.default_rng(0).random((24, 32, 32))
    audit = evenslice.audit(
        Steep(), volume, slices=3, intensity=(0, 1), dtype="float32", method=method, progress=False
    )
    (only,) = audit.statistics.classes
    assert only.class_number == 0
    assert 0 < audit.measurements.foreground.max() < 0.01
    assert [(pair.low, pair.high) for pair in only.pairs] == [(pytest.approx(0, abs=1e-6),) * 2]


class Uneven(nn.Module):
    """Uses its neighbours nearly alike; as one logit, or beside a background whose logit is constant."""

    def __init__(self, background):
        super().__init__()
        self.background = background
        self.weights = nn.Parameter(torch.tensor([0.49, 0.2, 0.51]).view(1, 3, 1, 1))

    def forward(self, windows):
        logit = (self.weights * (windows - 0.5)).sum(1, keepdim=True)
        return torch.cat([0 * logit.detach(), logit], dim=1) if self.background else logit


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_a_background_with_a_constant_logit_has_no_attention_and_keeps_nobody_waiting(method):
    volume = np.random.default_rng(0).random((300, 48, 48))
    options = {"slices": 3, "intensity": (0, 1), "dtype": "float32", "method": method, "progress": False}
    one, two = (evenslice.audit(Uneven(background), volume, **options) for background in (False, True))
    assert (two.verdict, len(two.measurements.volume)) == (one.verdict, len(one.measurements.volume))
    assert one.verdict == "balanced"
    assert [item.class_number for item in two.statistics.classes] == [1]


class ManyClasses(nn.Module):
    """Of 301 classes, the last reads the slice before at half of the pixels, and class 5 the slice behind at the others."""

    def __init__(self, other):
        super().__init__()
        self.other, self.weight = other, nn.Parameter(torch.ones(1))

    def forward(self, windows):
        rows, columns = torch.arange(windows.shape[2]), torch.arange(windows.shape[3])
        here = ((rows[:, None] // 2 + columns // 2) % 2).float()
        logits = windows.new_zeros(len(windows), 301, *windows.shape[2:]) - 1
        logits[:, self.other] = (windows[:, 0] + 1) * here * self.weight
        logits[:, 5] = (windows[:, 2] + 1) * (1 - here) * self.weight
        return logits


@pytest.mark.parametrize("other", [7, 300])
def test_the_rest_of_a_window_is_that_of_its_last_class_alone_if_no_class_is_beyond_those_looked_at(other):
    volume = np.random.default_rng(0).random((24, 32, 32))
    found = evenslice.audit(ManyClasses(other), volume, intensity=(0, 1), dtype="float32", device="cpu")
    assert found.verdict == "biased"
    pairs = {item.class_number: item.pairs[0].estimate for item in found.statistics.classes}
    assert pairs == {5: 1.0, 7: -1.0} if other == 7 else {5: 1.0}
