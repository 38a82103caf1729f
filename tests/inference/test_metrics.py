"""Scores against closed forms, against MONAI's own, and on whole volumes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scored_parts import labelled, score
from torch import nn

from evenslice import Compute, ModelError, Reading, evaluate, open_volume

pytestmark = pytest.mark.slow  # MONAI and scikit-image compare surfaces and objects


class Levels(nn.Module):
    """Class c where the middle slice is nearest to c / (classes - 1)."""

    def __init__(self, classes):
        super().__init__()
        self.register_buffer("levels", torch.linspace(0, 1, classes).view(1, -1, 1, 1))

    def forward(self, windows):
        return -((windows[:, 1:2] - self.levels) ** 2)


def part(predicted, labels, classes, **options):
    """A part of which `Levels` predicts the given classes."""
    return labelled(predicted, labels, classes, high=classes - 1, **options)


def scores(*parts, classes=3, asked=None, **options):
    parts = [part(*item, classes) if isinstance(item, tuple) else item for item in parts]
    return score(Levels(classes), parts, asked or classes, **options)


def surfaces(labels, predicted, spacing=(1, 1, 1)):
    """HD95, surface Dice and that with the wider tolerance."""
    image, reading = open_volume(predicted.astype(np.float32), spacing=spacing), Reading(intensity=(0, 1))
    found = evaluate(Levels(2), image, labels.astype(int), reading=reading, compute=Compute(device="cpu"))
    (volume,) = found.scores.volumes
    return volume.hd95[1], volume.surface_dice[1], volume.surface_dice_3[1]


def objects(labels, predicted):
    """The adapted Rand error of a slice, and what the prediction splits and merges."""
    stack = [np.stack([plane] * 3).astype(int) for plane in (predicted, labels)]
    return scores(tuple(stack), classes=2, boundaries=True, surfaces=False).volumes[0].objects


def ball(radius, shape=(24, 24, 24), shift=0):
    z, y, x = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) // 2
    return z**2 + y**2 + (x - shift) ** 2 <= radius**2


def test_overlap_by_its_definition():
    predicted, labels = (np.random.default_rng(seed).integers(3, size=(4, 16, 20)) for seed in (0, 1))
    reading = Reading(intensity=(0, 2))
    found = evaluate(Levels(3), predicted, labels, reading=reading, compute=Compute(device="cpu"))
    (volume,) = found.scores.volumes
    for c in range(3):
        both = ((predicted == c) & (labels == c)).sum()
        sizes = (predicted == c).sum() + (labels == c).sum()
        assert volume.dice[c] == pytest.approx(2 * both / sizes)
        assert volume.iou[c] == pytest.approx(both / (sizes - both))
        assert volume.confusion[c].sum() == (labels == c).sum()
        assert volume.confusion[:, c].sum() == (predicted == c).sum()
    assert (found.dice, found.iou) == pytest.approx((volume.dice[1:].mean(), volume.iou[1:].mean()))


def test_volumes_are_averaged_and_absent_classes_left_out():
    zeros, ones = np.zeros((3, 8, 8), int), np.ones((3, 8, 8), int)
    found = scores((ones, ones), (zeros, ones), (zeros, zeros))
    assert np.isnan(found.volumes[2].dice[1])
    document = found.to_dict()
    # Class 0: absent, 0 and 1; class 1: 1, 0 and absent; class 2: in no volume.
    np.testing.assert_array_equal(document["dice"]["per_class"], [0.5, 0.5, np.nan])
    assert document["dice"]["mean"] == found.mean_dice == 0.5
    assert np.sum(document["confusion"]) == 3 * 3 * 64
    assert len(document["volumes"]) == 3
    assert np.isnan(document["adapted_rand_error"])


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's, about itself
@settings(max_examples=40)
@given(seed=st.integers(0, 1000), spacing=st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.5, 2.0)]))
def test_surfaces_agree_with_monai(seed, spacing):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    random = np.random.default_rng(seed)
    labels, predicted = (
        ball(random.integers(3, 8), shift=random.integers(-3, 4)) ^ (random.random((24, 24, 24)) < 0.002)
        for _ in range(2)
    )
    onehot = [torch.from_numpy(np.stack([~mask, mask])[None]) for mask in (predicted, labels)]
    limit = max(spacing[1:])
    expected = (
        compute_hausdorff_distance(*onehot, percentile=95, spacing=spacing).item(),
        compute_surface_dice(*onehot, [limit], spacing=spacing).item(),
        compute_surface_dice(*onehot, [3 * limit], spacing=spacing).item(),
    )
    assert surfaces(labels, predicted, spacing) == pytest.approx(expected, rel=1e-5)


NOTHING, DIAGONAL = np.zeros((24, 24, 24), bool), 24 * np.sqrt(3)


@pytest.mark.parametrize(
    ("masks", "spacing", "expected"),
    [
        ((ball(6), ball(6)), (1, 1, 1), (0, 1, 1)),
        ((ball(6), NOTHING), (1, 1, 1), (DIAGONAL, 0, 0)),
        ((NOTHING, ball(6)), (1, 1, 1), (DIAGONAL, 0, 0)),
        ((NOTHING, ball(6)), (4, 3, 12), (24 * 13, 0, 0)),
        ((NOTHING, NOTHING), (1, 1, 1), (np.nan,) * 3),
    ],
)
def test_surfaces_that_are_the_same_or_not_there(masks, spacing, expected):
    assert surfaces(*masks, spacing) == pytest.approx(expected, nan_ok=True)


def test_surfaces_of_shifted_balls():
    hd95, dice, _ = surfaces(ball(6), ball(6, shift=2), spacing=(9, 9, 3))
    assert 3 < hd95 <= 6  # two voxels of 3 along x
    assert dice == 1  # within the tolerance, the voxel's 9 along y
    _, dice, wide = surfaces(ball(6), ball(6, shift=2), spacing=(9, 3, 3))
    assert dice < 1 == wide  # beyond one voxel of 3, and within three


@pytest.mark.parametrize("unit", [1, 1.2, 0.3, 10])
def test_surface_dice_is_the_same_in_every_unit(unit):
    """Three steps of 1.2 are 3.5999999999999996 where a sum of them is 3.6."""
    labels = np.zeros((20, 30, 30), bool)
    labels[5:12, 5:20, 5:20] = True
    found = surfaces(np.roll(labels, 1, axis=0), labels, (3 * unit, unit, unit))
    assert (found[0], found[2]) == (pytest.approx(3 * unit), 1)


def test_surfaces_use_the_spacing_of_a_volume_and_distances_in_different_units_have_no_mean():
    masks = ball(6, shift=2).astype(int), ball(6).astype(int)
    parts = [part(*masks, 2), part(*masks, 2, spacing=(50, 4, 4), unit="nm")]
    found = scores(*parts, classes=2)
    first, second = found.volumes
    assert (first.unit, second.unit, second.spacing) == ("voxel", "nm", (50, 4, 4))
    assert second.hd95[1] == surfaces(masks[1], masks[0], (50, 4, 4))[0] > first.hd95[1]
    assert np.isnan(first.hd95[0])
    document = found.to_dict()
    assert np.isnan(document["hd95"]["mean"])
    assert document["surface_dice"]["mean"] > 0


def lattice(period=8, size=64, thick=1):
    mask = np.zeros((size, size), bool)
    for offset in range(thick):
        mask[offset::period] = mask[:, offset::period] = True
    return mask


@pytest.mark.parametrize(
    ("labels", "predicted", "wrong", "split", "merge"),
    [
        (lattice(), lattice(), False, 0, 0),
        # The same cells between thicker membranes.
        (lattice(), np.roll(lattice(thick=3), -1, axis=(0, 1)), False, 0, 0),
        (lattice(), lattice(16), True, 0, 2),  # four cells become one
        (lattice(16), lattice(), True, 2, 0),
    ],
)
def test_objects_are_merged_split_or_found_again(labels, predicted, wrong, split, merge):
    error, *parts = objects(labels, predicted)
    assert parts == pytest.approx((split, merge), abs=0.15)
    assert error > 0.5 if wrong else error == pytest.approx(0)


def test_ignored_pixels_join_no_objects():
    labels = np.zeros((3, 8, 12), np.int64)
    labels[:, :, 4] = 1
    nothing = np.zeros_like(labels)
    options = {"classes": 2, "boundaries": True, "surfaces": False}
    whole = scores((nothing, labels), **options).volumes[0].objects
    labels[:, 6:] = -1  # as if two objects met where nobody looked
    found = scores((nothing, labels), **options).volumes[0].objects
    np.testing.assert_allclose(found, whole, atol=0.02)
    assert found[2] == pytest.approx(whole[2])  # both are merged


def test_boundaries_of_a_volume():
    labels = np.stack([lattice()] * 4).astype(int)
    predicted = labels.copy()
    predicted[2] = 0
    found = scores((predicted, labels), classes=2, boundaries=True, surfaces=False)
    error, _, merge = np.array(objects(lattice(), predicted[2])) / 4
    document = json.loads(json.dumps(found.to_dict()))
    assert document["adapted_rand_error"] == pytest.approx(error)
    assert document["variation_of_information"]["merge"] == pytest.approx(merge)
    assert np.isnan(found.volumes[0].hd95).all()


def test_a_class_that_the_slices_looked_at_miss_has_one_more():
    labels = np.zeros((9, 8, 8), int)
    labels[4], labels[8, 0, 0], labels[7, :4] = 1, 2, 2
    positions = (np.array([], int), np.flatnonzero(labels == 1)[::3], np.flatnonzero(labels == 2)[::2])
    held = part(labels, labels, 3, positions=positions)

    def seen(most):
        return scores(held, surfaces=False, most_slices=most).volumes[0].confusion.diagonal()

    assert seen(1).tolist() == [64 // 2, 64, 64 // 2]  # the middle slice, and that with most of class 2
    assert seen(9).tolist() == np.bincount(labels.ravel()).tolist()


def test_another_number_of_classes_is_refused():
    labels = np.zeros((4, 8, 8), int)
    with pytest.raises(ModelError, match="gives 3 classes, the labels have 4"):
        scores((labels, labels), asked=4)
