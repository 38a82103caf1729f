"""Methods on whole volumes whose dependence on the order of slices is known."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.ndimage import convolve, label

from evenslice import ConfigError, ModelError, audit_volume, symmetrize_volume

RANDOM = np.random.default_rng(0)
STACK = RANDOM.random((12, 24, 20)).astype(np.float32)
# Boxes of 320 voxels, some beside others.
BLOBS = np.kron(np.indices((3, 3, 2)).sum(axis=0) % 2, np.ones((4, 8, 10))) > 0


def rising(stack):
    """Carry the first slice upwards and lose a row in each: a propagation in one direction."""
    answer = np.zeros(stack.shape, np.uint8)
    for z in range(len(stack)):
        answer[z, z:] = 1
    return answer


def odd(stack):
    return convolve(stack, np.array([-1.0, 0, 1])[:, None, None]) > 0


def even(stack):
    return convolve(stack, np.array([1.0, -2, 1])[:, None, None]) > 0


def halves(stack):
    """Call the first half along x 3 and the second 4."""
    answer = np.full(stack.shape, 3)
    answer[..., stack.shape[2] // 2 :] = 4
    return answer


def objects(stack):
    """Number objects in the order of the scan."""
    return label(stack > 0.5)[0]


def judged(function, axes=("z",), volume=STACK, **options):
    found = audit_volume(function, volume, axes=axes, **options)
    return found, {axis.axis: axis.verdict for axis in found.axes}


def test_a_propagation_upwards_is_biased_by_what_it_loses():
    found, verdicts = judged(rising, ("z", "x"))
    assert verdicts == {"z": "biased", "x": "symmetric"}
    first, second = rising(STACK), rising(STACK)[::-1]
    expected = 1 - (first & second).sum() / (first | second).sum()
    assert found.axes[0].classes[1].change == pytest.approx(expected)
    # At the ends all rows that the last slice has lost differ, in the middle none.
    profile = found.axes[0].profiles[0]
    assert profile[0] == profile[-1] == pytest.approx(11 / 24)
    assert profile[5] == profile[6] == min(profile)
    assert [slice_.position in (0, 11, 1, 10) for slice_ in found.axes[0].worst] == [True] * 3


def test_convolutions_with_an_odd_and_an_even_kernel():
    assert judged(odd, ("z", "y"))[1] == {"z": "biased", "y": "symmetric"}
    assert judged(even, ("z", "y", "x"))[1] == dict.fromkeys("zyx", "symmetric")


def test_a_small_change_is_balanced_and_a_small_class_is_not_judged():
    def slightly(stack):
        answer = (np.arange(stack.size).reshape(stack.shape) % 2).astype(int)
        answer[0, 0, :9] = 7
        return answer

    found, verdicts = judged(slightly, volume=np.zeros((40, 40, 40)))
    assert verdicts == {"z": "balanced"}
    seventh = found.axes[0].classes[-1]
    assert (seventh.label, seventh.judged, seventh.change) == (7, False, 1.0)
    assert 0 < found.axes[0].largest.change < 0.05


def test_left_and_right_change_places():
    assert judged(halves, ("x",))[1] == {"x": "biased"}
    assert judged(halves, ("x",), swap={3: 4})[1] == {"x": "symmetric"}


def test_objects_may_be_numbered_in_another_order():
    assert judged(objects, volume=BLOBS)[1] == {"z": "biased"}
    found, verdicts = judged(objects, ("z", "y", "x"), BLOBS, instances=True)
    assert verdicts == dict.fromkeys("zyx", "symmetric")
    count = int(objects(BLOBS).max())
    assert all((axis.objects.partners, axis.objects.alone) == (count, (0, 0)) for axis in found.axes)

    def merged(stack):
        """Merge all objects where the first slice is dark."""
        return objects(stack) if stack[0, 0, 0] < 1 else (stack > 0.5).astype(int)

    uneven = BLOBS.astype(float)
    uneven[-1, 0, 0] = 1
    found, verdicts = judged(merged, volume=uneven, instances=True)
    assert verdicts == {"z": "biased"}
    assert found.axes[0].objects.alone[0] > 0


def test_what_two_runs_differ_by_is_taken_away():
    random = np.random.default_rng(0)
    found, verdicts = judged(lambda stack: random.random(stack.shape) < 0.5)
    assert verdicts == {"z": "balanced"}
    assert found.axes[0].classes[1].change > 0.6  # half of the voxels
    assert found.axes[0].classes[1].excess < 0.05
    random = np.random.default_rng(0)
    assert judged(lambda stack: random.random(stack.shape) < 0.5, repeat=False)[1] == {"z": "biased"}


def test_answers_may_be_probabilities_scores_or_tensors():
    scores = lambda stack: torch.from_numpy(np.stack([0.5 - stack, stack - 0.5, 0 * stack - 9]))  # noqa: E731
    assert judged(scores)[0].axes[0].classes[1].voxels == int((STACK > 0.5).sum())
    assert judged(lambda stack: stack[None])[0].axes[0].classes[1].voxels == int((STACK > 0.5).sum())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda stack: stack[1:], r"the answer to <array>: is float32 of shape \(11, 24, 20\)"),
        (lambda stack: np.full(stack.shape, np.nan), "not finite"),
        (
            lambda stack: 1 // int(stack[0, 0, 0] == STACK[0, 0, 0]) * stack,
            "fails on <array> flipped along z .*ZeroDiv",
        ),
    ],
)
def test_a_function_that_fails_or_changes_the_shape(function, message):
    with pytest.raises(ModelError, match=message):
        audit_volume(function, STACK)


@pytest.mark.parametrize(
    "wrong",
    [
        {"axes": ()},
        {"axes": "z"},
        {"axes": ("z", "z")},
        {"axes": ("t",)},
        {"swap": {1: 1}},
        {"swap": {1: 2, 3: 2}},
    ],
)
def test_options_that_mean_nothing(wrong):
    with pytest.raises(ConfigError, match="axes|swap"):
        audit_volume(even, STACK, **wrong)


def test_labels_give_dice_by_side():
    truth = rising(STACK)
    found = audit_volume(rising, STACK, labels=truth)
    dice = found.axes[0].classes[1].dice
    flipped = rising(STACK)[::-1]
    assert dice == pytest.approx((1.0, 2 * (truth & flipped).sum() / (truth.sum() + flipped.sum())))
    assert found.axes[0].classes[1].surface_dice[0] == 1


def test_several_volumes_are_one_census():
    found = audit_volume(
        rising, [STACK, np.zeros((6, 10, 10))], labels=[rising(STACK), np.ones((6, 10, 10), int)]
    )
    assert found.axes[0].voxels == STACK.size + 600
    assert [len(profile) for profile in found.axes[0].profiles] == [12, 6]


@given(st.integers(0, 1000), st.sampled_from([("z",), ("z", "y"), ("x", "y", "z")]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_repair_is_exactly_symmetric(seed, axes, whole):
    random = np.random.default_rng(seed)
    table = random.integers(0, 7, (4, 5, 6))
    swap = {1: 2, 3: 6}

    def method(stack):
        """Answer by place and by the first voxel, so that all flips answer differently."""
        moved = np.roll(table, int(1000 * stack[0, 0, 0]), axis=(0, 1, 2))
        return moved if whole else np.stack([(moved == label) / 3 + stack / 7 for label in range(7)])

    fair = symmetrize_volume(method, axes, swap)
    stack = random.random((4, 5, 6))
    answer, order = fair(stack), [0, 2, 1, 6, 4, 5, 3]
    for axis in axes:
        flipped = np.flip(fair(np.flip(stack, "zyx".index(axis))), "zyx".index(axis) - 3)
        expected = np.asarray(order)[flipped] if whole else flipped[order]
        np.testing.assert_array_equal(answer, expected)


def test_scores_of_whole_numbers_are_averaged():
    fair = symmetrize_volume(lambda stack: np.stack([stack, 255 * stack]).astype(np.uint8), swap={0: 1})
    assert np.array_equal(fair(BLOBS), np.stack([128 * BLOBS] * 2))


def test_class_numbers_are_voted_on_whatever_their_type_and_only_scores_change_places():
    rising = lambda stack: np.cumsum(np.ones_like(stack), axis=0)  # noqa: E731
    voted = symmetrize_volume(rising, swap={1: 2})(np.ones((2, 1, 1)))
    assert voted.ravel().tolist() == [1, 2]
    for method in (lambda stack: stack, lambda stack: np.stack([stack, -stack])):
        with pytest.raises(ConfigError, match="swap=.* scores .* of these classes"):
            symmetrize_volume(method, swap={1: 2})(STACK)
    mixed = lambda stack: stack[None].repeat(2 + (stack[0, 0, 0] == STACK[0, 0, 0]), 0)  # noqa: E731
    with pytest.raises(ModelError, match=r"returns \(3, 12, .* and \(2, 12, .* for a flipped one"):
        symmetrize_volume(mixed)(STACK)
    for method in (lambda stack: stack[1:], str):
        with pytest.raises(ModelError, match="the answer to the volume: is "):
            symmetrize_volume(method)(STACK)


def test_the_document_and_the_page(tmp_path):
    found = audit_volume(rising, STACK, axes=("z", "x"), labels=rising(STACK))
    found.save(tmp_path)
    document = json.loads((tmp_path / "flip.json").read_text())
    assert document["verdict"] == "biased"
    assert [axis["verdict"] for axis in document["axes"]] == ["biased", "symmetric"]
    assert document["axes"][0]["classes"][1]["change"] == found.axes[0].classes[1].change
    page = (tmp_path / "report.html").read_text()
    assert "Biased along z" in page
    assert page.count('<figure class="example">') == 3
    assert "Biased along z" in found._repr_html_()
    assert repr(found).startswith("<VolumeAudit of ")
