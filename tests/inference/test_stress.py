"""Stress: planted networks lose what their formulas say when slices are disturbed, and nothing else."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import evenslice
from evenslice import ConfigError, Scaling, open_volume
from evenslice.inference.prediction import class_map, even_slices
from evenslice.inference.ready_networks import ReadyNetwork
from evenslice.inference.scoring import (
    KINDS,
    SHIFT,
    Disturbances,
    StressedVolume,
    confusion_matrix,
    evaluate_parts,
    stress,
)
from evenslice.volumes.labels import ClassIndex, LabelledVolume

ONE = Scaling(0, 1)


def linear(*weights, threshold=0.5):
    """Class 1 where a weighted sum of the slices exceeds a threshold."""
    network = nn.Conv2d(len(weights), 1, 1).requires_grad_(False)
    network.weight.copy_(torch.tensor(weights).view(1, -1, 1, 1))
    network.bias.fill_(-threshold)
    return network


def ready(network, slices=3):
    return ReadyNetwork(network, slices=slices, device="cpu", dtype="float32")


def blobs(depth=21, size=40, seed=0, mirrored=False):
    """A smooth volume in 0..1, and where it is bright; if mirrored, the same from both ends."""
    image = np.random.default_rng(seed).random((depth, size, size))
    image = ndimage.gaussian_filter(image, (0.7, 2, 2))
    image = image + image[::-1] if mirrored else image
    image = (image - image.min()) / np.ptp(image)
    return image.astype(np.float32), (image > np.median(image)).astype(np.int64)


def measured(network, image, labels=None, slices=3, **options):
    volume = StressedVolume(open_volume(image), ONE, None if labels is None else open_volume(labels))
    return stress(
        ready(network, slices), [volume], slices=slices, most_slices=None, progress=False, **options
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_a_network_that_reads_only_the_slice_before_loses_by_that_alone(labelled):
    image, labels = blobs()
    found = measured(linear(1.0, 0.0, 0.0), image, labels if labelled else None)
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
    one, other = (measured(linear(*w), image, labels) for w in [(0.7, 0.2, 0.1), (0.1, 0.2, 0.7)])
    turned = measured(linear(0.7, 0.2, 0.1), image[::-1].copy(), labels[::-1].copy())
    for a, b, c in zip(one.losses, other.losses, turned.losses, strict=True):
        assert a.before.loss.estimate != a.after.loss.estimate
        if a.kind != "noisy":  # the noise depends on z
            assert b.before.dice != b.after.dice
            assert c.before.dice == b.after.dice  # read from its other end, one network is the other
            assert c.after.dice == b.before.dice
    assert one.reversed.dice == other.intact.dice


def test_a_symmetric_network_on_mirrored_data_has_no_asymmetry_at_all():
    image, labels = blobs(mirrored=True)
    np.testing.assert_array_equal(image, image[::-1])
    for loss in measured(linear(0.3, 0.4, 0.3), image, labels).losses:
        assert loss.before.loss.estimate != 0
        if loss.kind != "noisy":  # its noise depends on z
            assert loss.asymmetry.estimate == 0
            assert loss.before.dice == loss.after.dice
        assert loss.asymmetry.low <= 0 <= loss.asymmetry.high


def test_a_network_symmetric_in_all_slices_does_not_mind_a_reversed_stack():
    image, labels = blobs()
    found = measured(linear(0.2, 0.2, 0.2, 0.2, 0.2), image, labels, slices=5)
    assert found.reversed.loss.estimate == 0
    assert [(loss.kind, loss.offset) for loss in found.losses[:3]] == [
        ("missing", 1),
        ("missing", 2),
        ("blank", 1),
    ]


def test_the_pooled_dice_is_that_of_the_summed_confusion_matrices():
    image, labels = blobs()
    found = measured(linear(0.5, 0.3, 0.2), image, labels)
    part = LabelledVolume("blobs", open_volume(image), open_volume(labels), ONE, ClassIndex(np.zeros(2), ()))
    scores = evaluate_parts(
        linear(0.5, 0.3, 0.2), [part], classes=2, stressed=99, device="cpu", surfaces=False
    )
    assert found.intact.dice == scores.mean_dice == scores.stress.intact.dice
    assert found.intact.iou == pytest.approx(scores.mean_iou)
    assert scores.stress == found
    window = [image[abs(np.arange(-1, len(image) - 1))], image, image[[*range(1, len(image)), -2]]]
    window[2] = np.zeros_like(image)  # blank after
    answer = (0.5 * window[0] + 0.3 * window[1] + 0.2 * window[2]) > 0.5
    matrix = sum(confusion_matrix(labels[z], answer[z].astype(int), 2) for z in range(len(image)))
    dice = 2 * matrix[1, 1] / (matrix[1].sum() + matrix[:, 1].sum())
    assert found.losses[1].after.dice == pytest.approx(dice, abs=1e-3)  # ties at the threshold


def test_the_interval_is_that_of_the_difference_over_slices():
    image, labels = blobs(depth=60)
    loss = measured(linear(0.7, 0.2, 0.1), image, labels).losses[0]
    assert loss.asymmetry.low < loss.asymmetry.estimate < loss.asymmetry.high
    assert loss.asymmetry.estimate == pytest.approx(loss.before.loss.estimate - loss.after.loss.estimate)
    halves = [measured(linear(0.7, 0.2, 0.1), image[s], labels[s]).losses[0] for s in np.split(np.r_[:60], 2)]
    assert all(loss.asymmetry.low < half.asymmetry.estimate < loss.asymmetry.high for half in halves)


def test_volumes_count_the_same():
    pairs = [blobs(seed=0), blobs(depth=9, seed=1)]
    network = ready(linear(0.7, 0.2, 0.1))
    volumes = [StressedVolume(open_volume(image), ONE, open_volume(labels)) for image, labels in pairs]
    both = stress(network, volumes, slices=3, most_slices=None)
    # The noise differs by volume, and is left out here.
    single = [stress(network, [volume], slices=3, most_slices=None) for volume in volumes]
    expected = np.mean([one.losses[0].asymmetry.estimate for one in single])
    assert both.losses[0].asymmetry.estimate == pytest.approx(expected)
    assert both.slices == 30


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_noise():
    image, labels = blobs()
    one, again, other = (measured(linear(0.7, 0.2, 0.1), image, labels, seed=s) for s in (1, 1, 2))
    assert one.to_dict() == again.to_dict()
    assert one.losses[2] != other.losses[2]
    assert one.losses[3] == other.losses[3]


def test_a_sample_of_slices_gets_the_noise_of_its_slices():
    image, labels = blobs(size=64)  # no padding, which would change the noise
    volume = StressedVolume(open_volume(image), ONE, open_volume(labels))
    found = stress(ready(linear(0.7, 0.2, 0.1)), [volume], slices=3, most_slices=5)
    assert found.slices == 5
    assert even_slices([21], 5) == [[2, 6, 10, 14, 18]]
    network = ready(linear(0.7, 0.2, 0.1))
    ways = Disturbances(3)
    hits = np.zeros((len(ways), 2))
    for z in even_slices([21], 5)[0]:
        window = [image[z - 1], image[z], image[z + 1]]
        for way, shown in enumerate(ways.windows(window, 0, z)):
            answer = class_map(network(torch.from_numpy(np.stack(shown))[None])[0], 2)
            hits[way] += (answer & labels[z]).sum() * 2, answer.sum() + labels[z].sum()
    dice = hits[:, 0] / hits[:, 1]
    assert [found.intact.dice, found.reversed.dice] == pytest.approx(dice[:2])
    sides = [side.dice for loss in found.losses for side in (loss.before, loss.after, loss.both)]
    assert sides == pytest.approx(dice[2:])


def test_what_stands_in_the_place_of_a_slice():
    window = [np.random.default_rng(k).random((6, 20), dtype=np.float32) for k in range(3)]
    shown = list(Disturbances(3).windows(window, 0, 7))
    assert all(way[1] is window[1] for way in shown)
    names = [
        "intact",
        "reversed",
        *(f"{kind} {side}" for kind in KINDS for side in ("before", "after", "both")),
    ]
    found = dict(zip(names, shown, strict=True))
    assert found["missing before"][0] is window[1]
    assert found["missing before"][2] is window[2]
    assert not found["blank after"][2].any()
    shifted = found["shifted before"][0]
    np.testing.assert_array_equal(shifted[:, SHIFT:], window[0][:, :-SHIFT])
    assert (shifted[:, :SHIFT] == window[0][:, :1]).all()
    before, after = found["noisy before"][0] - window[0], found["noisy after"][2] - window[2]
    free = (before == np.clip(before, -0.5, 0.5)) & (found["noisy before"][0] * found["noisy after"][2] > 0)
    free &= (found["noisy before"][0] < 1) & (found["noisy after"][2] < 1)
    np.testing.assert_allclose(before[free], after[free], atol=1e-6)  # the same noise whatever the side
    assert np.abs(found["noisy both"][2] - found["noisy after"][2]).max() > 0.01
    assert found["reversed"][0] is window[2]


def test_a_class_that_the_answer_alone_has_counts_as_0_in_both_means():
    image, labels = blobs()
    found = evenslice.evaluate(
        nn.Sequential(linear(0.5, 0.3, 0.2), Three(0.2)),
        image,
        labels,
        stress=True,
        stress_slices=21,
        reading=evenslice.Reading(intensity=(0, 1)),
        surfaces=False,
    )
    intact = found.stress.intact
    assert intact.dice_per_class[2] == 0
    assert found.dice == intact.dice == intact.dice_per_class[1] / 2
    loss = found.stress.losses[0].before
    assert loss.dice == loss.dice_per_class[1] / 2
    assert loss.loss.estimate == pytest.approx(intact.dice - loss.dice)
    nothing = measured(linear(1.0, 0.0, 0.0), image, np.zeros_like(labels))
    assert nothing.intact.dice == nothing.losses[0].asymmetry.estimate == 0


def test_a_class_that_neither_has_is_left_out():
    image, labels = blobs()
    found = measured(nn.Sequential(linear(1.0, 0.0, 0.0), Three(9)), image, labels)
    assert len(found.intact.dice_per_class) == 3
    assert found.intact.dice == found.intact.dice_per_class[1]
    nothing = measured(linear(0.0, 0.0, 0.0), image, np.zeros_like(labels))
    assert np.isnan([nothing.intact.dice, nothing.losses[0].asymmetry.estimate]).all()


class Three(nn.Module):
    """Class 2 where class 1 would be by more than a margin."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, logit):
        return torch.cat([-logit, logit, 2 * logit - self.margin], dim=1)


def test_what_cannot_be_stressed():
    image, _ = blobs()
    with pytest.raises(ConfigError, match="slices=1: such a window has no neighbours"):
        measured(linear(1.0), image, slices=1)
    with pytest.raises(ConfigError, match="give at least one"):
        stress(ready(linear(1.0, 0.0, 0.0)), [], slices=3)
    volumes = [StressedVolume(open_volume(image), ONE, open_volume(item)) for item in (image,)]
    volumes.append(StressedVolume(open_volume(image), ONE))
    with pytest.raises(ConfigError, match="some volumes have labels and some have none"):
        stress(ready(linear(1.0, 0.0, 0.0)), volumes, slices=3)
    part = LabelledVolume("blobs", open_volume(image), open_volume(image), ONE, ClassIndex(np.zeros(2), ()))
    with pytest.raises(ConfigError, match="disturbed slices need all slices"):
        evaluate_parts(linear(1, 0, 0), [part], classes=2, most_slices=3, surfaces=False, stressed=3)


def test_step_is_the_distance_between_slices():
    image, labels = blobs()
    found = measured(linear(1.0, 0.0, 0.0), image, labels, step=2)
    answer = image[[abs(z - 2) for z in range(len(image))]] > 0.5
    dice = 2 * (answer & (labels == 1)).sum() / (answer.sum() + labels.sum())
    assert found.intact.dice == pytest.approx(dice)
