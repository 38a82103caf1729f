"""What a detector finds in a window and in its mirror, averaged: the same for both orders, and as many scores as their mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchvision.ops import batched_nms

from evenslice import ModelError, symmetrize
from evenslice.neutralizing.averages import average_detections


def found(boxes, labels, scores, **more):
    boxes, scores = (torch.tensor(values, dtype=torch.float32) for values in (boxes, scores))
    more = {name: torch.tensor(values, dtype=torch.float32) for name, values in more.items()}
    return {
        "boxes": boxes.reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "scores": scores,
        **more,
    }


@st.composite
def detected(draw):
    """What a detector returns: boxes of two classes that have passed its non-maximum suppression."""
    coordinates = st.integers(0, 20)
    rows = draw(
        st.lists(
            st.tuples(coordinates, coordinates, st.integers(1, 20), st.integers(1, 20), st.integers(1, 2), st.floats(0.01, 1)),
            max_size=6,
        )
    )  # fmt: skip
    everything = found(
        [(x, y, x + width, y + height) for x, y, width, height, _, _ in rows],
        [label for *_, label, _ in rows],
        [score for *_, score in rows],
        masks=[score for *_, score in rows],
    )
    kept = batched_nms(everything["boxes"], everything["scores"], everything["labels"], 0.5)
    return {name: values[kept] for name, values in everything.items()}


@pytest.mark.slow
@given(detected(), detected())
@settings(deadline=None)
def test_the_order_of_the_windows_does_not_show_and_scores_sum_to_their_mean(one, other):
    mean, again = average_detections(one, other), average_detections(other, one)
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
    mean = average_detections(one, other)
    assert mean["boxes"].tolist() == [[0, 1, 10, 11], [30, 0, 40, 10], [30, 0, 40, 10]]
    assert mean["labels"].tolist() == [1, 2, 1]
    torch.testing.assert_close(mean["scores"], torch.tensor([0.6, 0.3, 0.1]))
    assert mean["masks"].flatten().tolist() == [0.5, 0.5, 0.25]


def test_gradients_reach_both_windows():
    one, other = found([(0, 0, 10, 10)], [1], [0.8]), found([(0, 0, 10, 10)], [1], [0.4])
    scores = [values["scores"].requires_grad_() for values in (one, other)]
    average_detections(one, other)["scores"].sum().backward()
    assert [values.grad.tolist() for values in scores] == [[0.5], [0.5]]


@pytest.mark.parametrize(
    ("more", "other"),
    [
        ({"masks": torch.zeros(1, 4)}, {}),
        ({}, {"masks": torch.zeros(1, 4)}),
        *[
            (more, more)
            for more in (
                {"boxes": None},
                {"sizes": torch.zeros(3)},
                {"name": "cell"},
                {"area": torch.tensor(1.0)},
                {"masks": torch.zeros(1, 4, dtype=torch.bool)},  # which window's would it be?
            )
        ],
    ],
)
def test_what_is_not_there_for_each_object_of_both_cannot_be_averaged(more, other):
    one = found([(0, 0, 10, 10)], [1], [0.8])
    pair = ({name: v for name, v in (one | each).items() if v is not None} for each in (more, other))
    with pytest.raises(ModelError, match="cannot be averaged; return boxes, labels and scores"):
        average_detections(*pair)


def test_a_list_of_other_maps_is_averaged_as_it_is():
    fair = symmetrize(lambda windows: [{"scores": windows[:, 0]}, {"scores": 2 * windows[:, 0]}])
    first, second = fair(np.array([[[[1.0]], [[5.0]], [[3.0]]]]))
    assert (first["scores"].item(), second["scores"].item()) == (2, 4)


def test_a_function_that_detects_is_averaged_by_objects():
    """It finds an object where a slice is bright: two in the window below, one of them in its mirror, too."""

    def detect(windows):
        return [
            {
                "boxes": np.array([[10.0 * k, 0, 10 * k + 8, 8] for k in bright], dtype=np.float32).reshape(
                    -1, 4
                ),
                "labels": np.ones(len(bright), dtype=np.int64),
                "scores": np.array([0.8 for _ in bright], dtype=np.float32),
            }
            for bright in ([k for k in range(3) if window[k].max() > 0] for window in windows)
        ]

    window = np.zeros((1, 3, 4, 4), np.float32)
    window[:, :2] = 1
    fair = symmetrize(detect)
    (mean,), (again,) = fair(window), fair(window[:, ::-1])
    assert mean["boxes"][:, 0].tolist() == [10, 0, 20]
    torch.testing.assert_close(mean["scores"], torch.tensor([0.8, 0.4, 0.4]))
    for name, values in mean.items():
        assert torch.equal(values, again[name])
