"""Stress: planted networks lose what their formulas say when slices are disturbed, and nothing else."""

import numpy as np
import pytest
import torch
from formulas import linear
from scipy import ndimage
from scored_parts import labelled, score
from torch import nn

from evenslice import Compute, ConfigError, Reading, Sampling, audit, evaluate

KINDS = ("missing", "blank", "noisy", "shifted")


class Three(nn.Module):
    """Class 2 where class 1 would be by more than a margin."""

    def __init__(self, margin, *weights):
        super().__init__()
        self.margin, self.layer = margin, linear(*weights)

    def forward(self, windows):
        logit = self.layer(windows)
        return torch.cat([-logit, logit, 3 * (logit - self.margin)], dim=1)


def blobs(depth=21, size=40, seed=0, mirrored=False):
    """A smooth volume in 0..1, and where it is bright; if mirrored, the same from both ends."""
    image = np.random.default_rng(seed).random((depth, size, size))
    image = ndimage.gaussian_filter(image, (0.7, 2, 2))
    image = image + image[::-1] if mirrored else image
    image = (image - image.min()) / np.ptp(image)
    return image.astype(np.float32), (image > np.median(image)).astype(np.int64)


def measured(network, image, labels=None, slices=3, step=1, most=999, seed=0):
    compute, reading = Compute(device="cpu", progress=False), Reading(intensity=(0, 1), step=step)
    options = {"surfaces": False, "reading": reading, "compute": compute, "seed": seed}
    return evaluate(network, image, labels, stress=True, stress_slices=most, slices=slices, **options)


def stressed(*arguments, **options):
    return measured(*arguments, **options).stress


@pytest.mark.parametrize("labelled", [True, False])
def test_a_network_that_reads_only_the_slice_before_loses_by_that_alone(labelled):
    image, labels = blobs()
    found = stressed(linear(1.0, 0.0, 0.0), image, labels if labelled else None)
    assert found.reference == ("labels" if labelled else "intact answer")
    assert [(loss.kind, loss.offset) for loss in found.losses] == [(kind, 1) for kind in KINDS]
    for loss in found.losses:
        after = loss.after.loss
        assert (after.estimate, after.low, after.high) == (0, 0, 0)
        assert loss.after.dice == found.intact.dice
        if loss.kind != "noisy":  # where both are noisy, their noise differs, but that before is the same
            assert loss.both.dice == loss.before.dice
        assert loss.asymmetry.estimate == loss.before.loss.estimate
    if not labelled:
        assert found.intact.dice == 1
        assert all(loss.before.loss.low > 0 for loss in found.losses)
    assert found.losses[1].before.dice == 0  # a blank slice is below the threshold everywhere


def test_a_mirrored_network_has_mirrored_losses():
    image, labels = blobs()
    one, other = (stressed(linear(*w), image, labels) for w in [(0.7, 0.2, 0.1), (0.1, 0.2, 0.7)])
    turned = stressed(linear(0.7, 0.2, 0.1), image[::-1].copy(), labels[::-1].copy())
    for a, b, c in zip(one.losses, other.losses, turned.losses, strict=True):
        assert a.before.loss.estimate != a.after.loss.estimate
        if a.kind != "noisy":  # the noise depends on z
            assert b.before.dice != b.after.dice
            assert c.before.dice == b.after.dice  # read from its other end, one network is the other
            assert c.after.dice == b.before.dice
    assert one.reversed.dice == other.intact.dice


def test_a_symmetric_network_on_mirrored_data_has_no_asymmetry_at_all():
    image, labels = blobs(mirrored=True)
    for loss in stressed(linear(0.3, 0.4, 0.3), image, labels).losses:
        assert loss.before.loss.estimate != 0
        if loss.kind != "noisy":  # its noise depends on z
            assert loss.asymmetry.estimate == 0
            assert loss.before.dice == loss.after.dice
        assert loss.asymmetry.low <= 0 <= loss.asymmetry.high
    found = stressed(linear(0.2, 0.2, 0.2, 0.2, 0.2), image, labels, slices=5)
    assert found.reversed.loss.estimate == 0
    places = [(loss.kind, loss.offset) for loss in found.losses[:3]]
    assert places == [("missing", 1), ("missing", 2), ("blank", 1)]


@pytest.mark.parametrize("most", [999, 5])
def test_the_pooled_dice_is_that_of_the_slices_that_were_disturbed(most):
    image, labels = blobs()
    found = measured(linear(0.5, 0.3, 0.2), image, labels, most=most)
    chosen = range(len(image)) if most == 999 else [2, 6, 10, 14, 18]
    assert found.stress.slices == len(chosen)
    before, here = image[abs(np.arange(-1, len(image) - 1))], image
    after = image[[*range(1, len(image)), -2]]
    for end, expected in ((after, found.stress.intact), (np.zeros_like(image), found.stress.losses[1].after)):
        answer = (0.5 * before + 0.3 * here + 0.2 * end) > 0.5
        hits = sum((answer[z] & (labels[z] == 1)).sum() for z in chosen)
        sizes = sum(answer[z].sum() + labels[z].sum() for z in chosen)
        assert expected.dice == pytest.approx(2 * hits / sizes, abs=1e-3)  # ties at the threshold
    if most == 999:
        assert found.stress.intact.dice == found.dice


@pytest.mark.slow
def test_the_interval_is_that_of_the_difference_over_slices():
    image, labels = blobs(depth=60)
    loss = stressed(linear(0.7, 0.2, 0.1), image, labels).losses[0]
    assert loss.asymmetry.low < loss.asymmetry.estimate < loss.asymmetry.high
    assert loss.asymmetry.estimate == pytest.approx(loss.before.loss.estimate - loss.after.loss.estimate)
    halves = [stressed(linear(0.7, 0.2, 0.1), image[s], labels[s]).losses[0] for s in np.split(np.r_[:60], 2)]
    assert all(loss.asymmetry.low < half.asymmetry.estimate < loss.asymmetry.high for half in halves)


def test_volumes_count_the_same():
    pairs = [blobs(seed=0), blobs(depth=9, seed=1)]
    network, parts = linear(0.7, 0.2, 0.1), [labelled(*pair, 2) for pair in pairs]
    both = score(network, parts, 2, stressed=None, surfaces=False).stress
    single = [stressed(network, *pair) for pair in pairs]
    # The noise differs by volume, and is left out here.
    expected = np.mean([one.losses[0].asymmetry.estimate for one in single])
    assert both.losses[0].asymmetry.estimate == pytest.approx(expected)
    assert both.slices == 30


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_noise():
    image, labels = blobs()
    one, again, other = (stressed(linear(0.7, 0.2, 0.1), image, labels, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one.losses[2] != other.losses[2]
    assert one.losses[3] == other.losses[3]


def test_what_stands_in_the_place_of_a_slice():
    batches = []

    def function(windows):
        batches.append(windows.copy())
        return windows[:, :1]

    image = np.random.default_rng(0).random((3, 32, 32), np.float32)
    evaluate(function, image, stress=True, stress_slices=1, reading=Reading(intensity=(0, 1)))
    sides = [f"{kind} {side}" for kind in KINDS for side in ("before", "after", "both")]
    found = dict(zip(["intact", "reversed", *sides], np.concatenate(batches)[-14:], strict=True))
    assert all(np.array_equal(way[1], image[1]) for way in found.values())
    missing, noisy, shifted = (found[f"{kind} before"] for kind in ("missing", "noisy", "shifted"))
    for shown, expected in (
        (found["intact"], image),
        (found["reversed"], image[::-1]),
        (missing, image[[1, 1, 2]]),
        (found["blank after"][2], np.zeros_like(image[2])),
        (shifted[0][:, 8:], image[0][:, :-8]),
        (shifted[0][:, :8], image[0][:, [0] * 8]),
    ):
        np.testing.assert_array_equal(shown, expected)
    other = found["noisy after"]
    inside = np.logical_and(*((plane > 0) & (plane < 1) for plane in (noisy[0], other[2])))
    before, after = noisy[0] - image[0], other[2] - image[2]
    np.testing.assert_allclose(before[inside], after[inside], atol=1e-6)  # the same noise whatever the side
    assert np.abs(found["noisy both"][2] - other[2]).max() > 0.01


def test_a_class_that_the_answer_alone_has_counts_as_0_and_one_that_neither_has_is_left_out():
    image, labels = blobs()
    found = measured(Three(0.2, 0.5, 0.3, 0.2), image, labels)
    intact, loss = found.stress.intact, found.stress.losses[0].before
    assert intact.dice_per_class[2] == 0
    assert found.dice == intact.dice == intact.dice_per_class[1] / 2
    assert loss.dice == loss.dice_per_class[1] / 2
    assert loss.loss.estimate == pytest.approx(intact.dice - loss.dice)
    nothing = stressed(linear(1.0, 0.0, 0.0), image, np.zeros_like(labels))
    assert nothing.intact.dice == nothing.losses[0].asymmetry.estimate == 0
    found = stressed(Three(9, 1.0, 0.0, 0.0), image, labels)
    assert len(found.intact.dice_per_class) == 3
    assert found.intact.dice == found.intact.dice_per_class[1]
    nothing = stressed(linear(0.0, 0.0, 0.0), image, np.zeros_like(labels))
    assert np.isnan([nothing.intact.dice, nothing.losses[0].asymmetry.estimate]).all()


def test_a_window_of_one_slice_has_nothing_to_disturb():
    image, labels = blobs(depth=4)
    with pytest.raises(ConfigError, match="slices=1"):
        stressed(linear(1.0), image, labels, slices=1)


def test_step_is_the_distance_between_slices():
    image, labels = blobs()
    found = stressed(linear(1.0, 0.0, 0.0), image, labels, step=2)
    answer = image[[abs(z - 2) for z in range(len(image))]] > 0.5
    dice = 2 * (answer & (labels == 1)).sum() / (answer.sum() + labels.sum())
    assert found.intact.dice == pytest.approx(dice)


def test_an_audit_with_labels_says_what_a_lost_slice_costs():
    image, labels = blobs()
    sampling = Sampling(max_windows=28, tile=(32, 32))
    found = audit(
        linear(0.7, 0.2, 0.1), image, labels=labels, sampling=sampling, compute=Compute(device="cpu")
    )
    assert found.stress.slices == 2
