"""Scores against closed forms, against MONAI's own, and on whole volumes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from evenslice import ConfigError, ModelError, Scaling, open_volume
from evenslice._core.files import json_text
from evenslice.inference.scoring import evaluate_parts, object_scores, surface_scores
from evenslice.volumes.labels import ClassIndex, LabelledVolume


class Levels(nn.Module):
    """Class c where the middle slice is nearest to c / (classes - 1)."""

    def __init__(self, classes):
        super().__init__()
        self.register_buffer("levels", torch.linspace(0, 1, classes).view(1, -1, 1, 1))

    def forward(self, windows):
        return -((windows[:, 1:2] - self.levels) ** 2)


def part(predicted, labels, classes, name="volume", **options):
    """A part of which `Levels` predicts the given classes."""
    image = predicted.astype(np.float32)
    return LabelledVolume(
        name=name,
        volume=open_volume(image, **options),
        labels=open_volume(labels.astype(np.int64)),
        scaling=Scaling(0, classes - 1),
        index=ClassIndex(np.bincount(labels.ravel(), minlength=classes), ()),
    )


def scores(*pairs, classes=3, **options):
    parts = [part(*pair, classes, name=f"volume {i}") for i, pair in enumerate(pairs)]
    return evaluate_parts(Levels(classes), parts, classes=classes, device="cpu", **options)


def random_classes(seed, shape=(4, 16, 20), classes=3):
    return np.random.default_rng(seed).integers(classes, size=shape)


def ball(radius, shape=(24, 24, 24), shift=0):
    z, y, x = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) // 2
    return z**2 + y**2 + (x - shift) ** 2 <= radius**2


def test_overlap_by_its_definition():
    predicted, labels = random_classes(0), random_classes(1)
    found = scores((predicted, labels))
    for c in range(3):
        both = ((predicted == c) & (labels == c)).sum()
        sizes = (predicted == c).sum() + (labels == c).sum()
        assert found.volumes[0].dice[c] == pytest.approx(2 * both / sizes)
        assert found.volumes[0].iou[c] == pytest.approx(both / (sizes - both))
        assert found.volumes[0].confusion[c].sum() == (labels == c).sum()
        assert found.volumes[0].confusion[:, c].sum() == (predicted == c).sum()
    assert found.mean_dice == pytest.approx(found.volumes[0].dice[1:].mean())
    assert found.mean_iou == pytest.approx(found.volumes[0].iou[1:].mean())


def test_volumes_are_averaged_and_absent_classes_left_out():
    zeros, ones = np.zeros((3, 8, 8), int), np.ones((3, 8, 8), int)
    found = scores((ones, ones), (zeros, ones), (zeros, zeros))
    assert np.isnan(found.volumes[2].dice[1])
    document = found.to_dict()
    assert document["dice"]["per_class"][:2] == [
        0.5,
        0.5,
    ]  # class 0: absent, 0 and 1; class 1: 1, 0 and absent
    assert np.isnan(document["dice"]["per_class"][2])  # a class that no volume has
    assert document["dice"]["mean"] == found.mean_dice == 0.5
    assert np.sum(document["confusion"]) == 3 * 3 * 64
    assert [volume["name"] for volume in document["volumes"]] == ["volume 0", "volume 1", "volume 2"]
    text = json.loads(json_text(document))
    assert text["dice"]["per_class"][2] is None
    assert text["adapted_rand_error"] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's, about itself
@given(seed=st.integers(0, 1000), spacing=st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.5, 2.0)]))
def test_surfaces_agree_with_monai(seed, spacing):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    random = np.random.default_rng(seed)
    labels, predicted = (
        ball(random.integers(3, 8), shift=random.integers(-3, 4)) ^ (random.random((24, 24, 24)) < 0.002)
        for _ in range(2)
    )
    onehot = [torch.from_numpy(np.stack([~mask, mask])[None]) for mask in (predicted, labels)]
    hd95, dice, wide = surface_scores(labels, predicted, spacing)
    limit = max(spacing[1:])
    expected = compute_hausdorff_distance(*onehot, percentile=95, spacing=spacing).item()
    assert hd95 == pytest.approx(expected, rel=1e-5)
    assert dice == pytest.approx(compute_surface_dice(*onehot, [limit], spacing=spacing).item(), rel=1e-5)
    expected = compute_surface_dice(*onehot, [3 * limit], spacing=spacing).item()
    assert wide == pytest.approx(expected, rel=1e-5)


def test_surfaces_of_shifted_balls():
    assert surface_scores(ball(6), ball(6)) == (0, 1, 1)
    hd95, dice, _ = surface_scores(ball(6), ball(6, shift=2), spacing=(9, 9, 3))
    assert 3 < hd95 <= 6  # two voxels of 3 along x
    assert dice == 1  # within the tolerance, the voxel's 9 along y
    assert surface_scores(ball(6), ball(6, shift=2), spacing=(9, 3, 3))[1] < 1  # beyond one voxel of 3
    assert surface_scores(ball(6), ball(6, shift=2), spacing=(9, 3, 3))[2] == 1  # within three


def test_surfaces_of_what_is_not_there():
    nothing = np.zeros((24, 24, 24), bool)
    diagonal = pytest.approx(24 * np.sqrt(3))
    assert surface_scores(ball(6), nothing) == (diagonal, 0, 0)
    assert surface_scores(nothing, ball(6)) == (diagonal, 0, 0)
    assert surface_scores(nothing, ball(6), spacing=(4, 3, 0))[0] == 24 * 5
    assert np.isnan(surface_scores(nothing, nothing)).all()


def test_surfaces_of_a_volume_use_its_spacing():
    masks = ball(6, shift=2).astype(int), ball(6).astype(int)
    plain = part(*masks, 2)
    spaced = part(*masks, 2, spacing=(50, 4, 4), unit="nm")
    found = evaluate_parts(Levels(2), [plain, spaced], classes=2, device="cpu")
    first, second = found.volumes
    assert (first.unit, second.unit, second.spacing) == ("voxel", "nm", (50, 4, 4))
    assert second.hd95[1] == surface_scores(masks[1], masks[0], (50, 4, 4))[0]
    assert second.hd95[1] > first.hd95[1]
    assert np.isnan(first.hd95[0])


def lattice(period=8, size=64, thick=1):
    mask = np.zeros((size, size), bool)
    for offset in range(thick):
        mask[offset::period] = mask[:, offset::period] = True
    return mask


@pytest.mark.parametrize("unit", [1, 1.2, 0.7, 0.3, 10])
def test_surface_dice_is_the_same_in_every_unit(unit):
    """Three steps of 1.2 are 3.5999999999999996 where a sum of them is 3.6."""
    labels = np.zeros((20, 30, 30), bool)
    labels[5:12, 5:20, 5:20] = True
    found = surface_scores(np.roll(labels, 1, axis=0), labels, (3 * unit, unit, unit))
    assert found[2] == 1
    assert found[0] == pytest.approx(3 * unit)


def test_objects_that_are_found_again():
    assert object_scores(lattice(), lattice()) == (0, 0, 0)
    thick = np.roll(lattice(thick=3), -1, axis=(0, 1))  # the same cells between thicker membranes
    error, split, merge = object_scores(lattice(), thick)
    assert error == pytest.approx(0)
    assert split == merge == 0


def test_objects_that_are_merged_or_split():
    error, split, merge = object_scores(lattice(), lattice(16))  # four cells become one
    assert error > 0.5
    assert (split, merge) == (pytest.approx(0, abs=0.1), pytest.approx(2, abs=0.1))
    error, split, merge = object_scores(lattice(16), lattice())
    assert error > 0.5
    assert split == pytest.approx(2, abs=0.15)
    assert merge == pytest.approx(0, abs=0.1)


def test_ignored_pixels_join_no_objects():
    labels = np.zeros((3, 8, 12), np.int64)
    labels[:, :, 4] = 1
    nothing = np.zeros_like(labels)
    whole = scores((nothing, labels), classes=2, boundaries=True, surfaces=False).volumes[0].objects
    labels[:, 6:] = -1  # as if two objects met where nobody looked
    rest = part(nothing, np.maximum(labels, 0), 2)
    rest = replace(rest, labels=open_volume(labels))
    found = evaluate_parts(Levels(2), [rest], classes=2, device="cpu", boundaries=True, surfaces=False)
    np.testing.assert_allclose(found.volumes[0].objects, whole, atol=0.02)
    assert found.volumes[0].objects[2] == pytest.approx(whole[2])  # both are merged


def test_boundaries_of_a_volume():
    labels = np.stack([lattice()] * 4).astype(int)
    predicted = labels.copy()
    predicted[2] = 0
    found = scores((predicted, labels), classes=2, boundaries=True, surfaces=False)
    expected = np.array(object_scores(lattice(), predicted[2])) / 4
    np.testing.assert_allclose(found.volumes[0].objects, expected, atol=1e-12)
    document = found.to_dict()
    assert document["adapted_rand_error"] == pytest.approx(expected[0])
    assert document["variation_of_information"]["merge"] == pytest.approx(expected[2])
    assert np.isnan(found.volumes[0].hd95).all()


def test_a_class_that_the_slices_looked_at_miss_has_one_more():
    labels = np.zeros((9, 8, 8), int)
    labels[4], labels[8, 0, 0], labels[7, :4] = 1, 2, 2
    positions = (np.array([], int), np.flatnonzero(labels == 1)[::3], np.flatnonzero(labels == 2)[::2])
    held = replace(part(labels, labels, 3), index=ClassIndex(np.bincount(labels.ravel()), positions))

    def seen(most):
        options = {"surfaces": False, "most_slices": most, "device": "cpu"}
        return evaluate_parts(Levels(3), [held], classes=3, **options).volumes[0].confusion.diagonal()

    assert seen(1).tolist() == [64 // 2, 64, 64 // 2]  # the middle slice, and that with most of class 2
    assert seen(9).tolist() == np.bincount(labels.ravel()).tolist()


def test_distances_in_different_units_have_no_mean():
    masks = ball(6, shift=2).astype(int), ball(6).astype(int)
    parts = [part(*masks, 2), part(*masks, 2, spacing=(5, 5, 5), unit="nm")]
    found = evaluate_parts(Levels(2), parts, classes=2, device="cpu").to_dict()
    assert np.isnan(found["hd95"]["mean"])
    assert found["volumes"][1]["hd95"][1] == 5 * found["volumes"][0]["hd95"][1]
    assert found["surface_dice"]["mean"] > 0


def test_wrong_options_are_refused():
    labels = random_classes(0)
    with pytest.raises(ModelError, match=r"gives 3 classes, the labels have 4; build it with classes=4"):
        evaluate_parts(Levels(3), [part(labels, labels, 3)], classes=4, device="cpu")
    with pytest.raises(ConfigError, match="at least one"):
        evaluate_parts(Levels(3), [], classes=3)
    with pytest.raises(ConfigError, match="most_slices=5"):
        evaluate_parts(Levels(3), [part(labels, labels, 3)], classes=3, most_slices=5)
