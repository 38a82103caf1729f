"""What a detector finds in a window and in its mirror, averaged: the same for both orders, and as many scores as their mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchvision.ops import batched_nms

from evenslice import ModelError, symmetrize

WINDOW = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)


def averaged(one, other):
    """Return the mean of what a detector finds in a window and in its mirror."""
    (mean,) = symmetrize(lambda windows: [one if windows[0, 0, 0, 0] else other])(WINDOW)
    return mean


def found(boxes, labels, scores, **more):
    boxes, scores = (torch.tensor(values, dtype=torch.float32) for values in (boxes, scores))
    more = {name: torch.tensor(values, dtype=torch.float32) for name, values in more.items()}
    return {
        "boxes": boxes.reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "scores": scores,
        **more,
    }


ROW = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2, st.integers(1, 2), st.floats(0.01, 1))


@st.composite
def detected(draw):
    """What a detector returns: boxes of two classes that have passed its non-maximum suppression."""
    rows = draw(st.lists(ROW, max_size=6))
    boxes = [(x, y, x + width, y + height) for x, y, width, height, _, _ in rows]
    scores = [score for *_, score in rows]
    everything = found(boxes, [label for *_, label, _ in rows], scores, masks=scores)
    kept = batched_nms(everything["boxes"], everything["scores"], everything["labels"], 0.5)
    return {name: values[kept] for name, values in everything.items()}


@pytest.mark.slow
@given(detected(), detected())
@settings(deadline=None)
def test_the_order_of_the_windows_does_not_show_and_scores_sum_to_their_mean(one, other):
    mean, again = averaged(one, other), averaged(other, one)
    assert mean.keys() == one.keys()
    for name, values in mean.items():
        assert torch.equal(values, again[name]), name
    assert (mean["scores"].diff() <= 0).all()
    both = (one["scores"].sum() + other["scores"].sum()).item() / 2
    assert mean["scores"].sum().item() == pytest.approx(both, abs=1e-6)


def test_one_object_is_averaged_and_others_are_not():
    """A shifted box of the same class is the same object; one of another class, or elsewhere, is not."""
    one = found([(0, 0, 10, 10), (30, 0, 40, 10)], [1, 2], [0.8, 0.6], masks=[[1.0], [0.5]])
    other = found([(0, 2, 10, 12), (30, 0, 40, 10)], [1, 1], [0.4, 0.2], masks=[[0.0], [0.25]])
    mean = averaged(one, other)
    assert mean["boxes"].tolist() == [[0, 1, 10, 11], [30, 0, 40, 10], [30, 0, 40, 10]]
    assert mean["labels"].tolist() == [1, 2, 1]
    torch.testing.assert_close(mean["scores"], torch.tensor([0.6, 0.3, 0.1]))
    assert mean["masks"].flatten().tolist() == [0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    "more",
    [
        *({"sizes": value} for value in (torch.zeros(3), torch.tensor(1.0), "cell")),
        {"masks": torch.zeros(1, 4, dtype=torch.bool)},  # which window's would it be?
    ],
)
def test_what_is_not_there_for_each_object_cannot_be_averaged(more):
    one = found([(0, 0, 10, 10)], [1], [0.8]) | more
    with pytest.raises(ModelError, match="cannot be averaged; return boxes, labels and scores"):
        averaged(one, one)


def test_a_list_of_other_maps_is_averaged_as_it_is():
    fair = symmetrize(lambda windows: [{"scores": windows[:, 0]}, {"scores": 2 * windows[:, 0]}])
    first, second = fair(np.array([[[[1.0]], [[5.0]], [[3.0]]]]))
    assert (first["scores"].item(), second["scores"].item()) == (2, 4)
