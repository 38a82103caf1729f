"""From measurements to figures, states and verdicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from formulas import audit_formula, noise, two_classes
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from evenslice import Tolerances
from evenslice.auditing.explainer import compare_outputs
from evenslice.results import Measurements, ask, summarize

MANY = 10**6


def measurements(saliency, mirrored=None, *, reliance=None, mismatch=0.3, classes=(0.6, 0.4), changed=0.0):
    """Windows with given saliency (n, N), and all else alike; the classes have the figures of all pixels."""
    saliency = np.asarray(saliency, dtype=float)
    count, slices = saliency.shape
    mirrored = saliency if mirrored is None else np.asarray(mirrored, dtype=float)
    both = np.stack([saliency, mirrored], axis=1)[:, :, None]
    changes = both if reliance is None else np.asarray(reliance, dtype=float)[:, None, None]
    changes = np.broadcast_to(changes, both.shape).copy()
    changes[..., slices // 2] = 0
    groups = 1 + len(classes)
    pixels = np.tile(np.asarray(classes, dtype=float), (count, 1))
    changed = np.broadcast_to(np.asarray(changed, dtype=float), pixels.shape) * pixels
    return Measurements(
        volume=np.zeros(count, dtype=np.int64),
        position=np.stack([np.arange(count), np.zeros(count, int), np.zeros(count, int)], axis=1),
        saliency=np.repeat(both, groups, axis=2),
        reliance=np.repeat(changes, groups, axis=2),
        explained=np.ones((count, groups)),
        mismatch=np.full((count, groups, slices // 2), mismatch),
        outer=np.ones((count, groups, slices // 2)),
        pixels=pixels,
        changed=changed,
        union=pixels + changed / 2,
        wasserstein=np.zeros((count, slices // 2)),
        mirror_error=np.full(count, 0.1),
        mirror_disagreement=changed.sum(axis=1) / 2,
        change=np.full(count, 0.01),
        power=np.ones(count),
        level=np.zeros((count, 1)),
        clamped=np.zeros(count),
        own_mirror=np.zeros(count),
    )


def shares_of(bias, middle=0.4):
    """Saliency of three slices with a given pair bias (n,)."""
    outer = (1 - middle) / 2
    return np.stack([outer * (1 - bias), np.full_like(bias, middle), outer * (1 + bias)], axis=1)


def noisy(bias, spread=0.02, count=120, seed=0):
    return shares_of(np.clip(np.random.default_rng(seed).normal(bias, spread, count), -1, 1))


@st.composite
def share_rows(draw, count=6):
    half = draw(st.integers(0, 4))
    raw = draw(hnp.arrays(float, (count, 2 * half + 1), elements=st.floats(0, 1, width=32)))
    raw[:, half] += 1e-3
    return raw / raw.sum(axis=1, keepdims=True)


@pytest.mark.slow
@given(share_rows())
@settings(max_examples=30)
def test_a_mirror_symmetric_network_has_no_model_part_whatever_the_data(shares):
    found = summarize(measurements(shares, shares[:, ::-1]), [MANY])
    for interval in (*found.pairs, found.directional_bias, found.asymmetry):
        assert abs(interval.estimate) < 1e-12
    outer = [
        shares[:, part].sum(axis=1)
        for part in (slice(shares.shape[1] // 2), slice(shares.shape[1] // 2 + 1, None))
    ]
    known = np.where(sum(outer) > 0, sum(outer), 1)
    np.testing.assert_allclose(
        found.data_direction.estimate, ((outer[1] - outer[0]) / known).mean(), atol=1e-12
    )


@pytest.mark.slow
@given(share_rows())
@settings(max_examples=30)
def test_figures_lie_in_their_range_and_inside_their_interval(shares):
    found = summarize(measurements(shares, np.roll(shares, 2, axis=0)), [MANY])
    assert sum(share.estimate for share in found.shares) == pytest.approx(1)
    for interval in (*found.shares, found.asymmetry, found.imbalance):
        assert -1e-12 <= interval.low <= interval.estimate + 1e-12
        assert interval.estimate - 1e-12 <= interval.high <= 1 + 1e-12
    for interval in (*found.pairs, *found.reliance, *found.data_pairs, found.directional_bias):
        assert not interval.low > interval.estimate
        assert not interval.high < interval.estimate


@pytest.mark.parametrize(
    ("bias", "spread", "verdict", "state"),
    [
        (0.0, 0.05, "balanced", "within"),
        (0.2, 0.05, "biased", "beyond"),
        (-0.2, 0.05, "biased", "beyond"),
        (0.05, 0.05, "inconclusive", "open"),
        (0.0, 0.9, "inconclusive", "open"),
    ],
)
def test_verdicts_by_saliency(bias, spread, verdict, state):
    fair = noisy(0, 0.01)
    found = summarize(measurements(noisy(bias, spread), reliance=fair), [MANY])
    assert found.verdict == verdict
    assert found.pairs[0].state == state
    assert found.reliance[0].state == "within"
    assert [item.question for item in found.decided_by] == [
        "use" if verdict == "balanced" else "saliency"
    ] * len(found.decided_by)
    assert (found.needed is None) == (verdict != "inconclusive")


def test_verdicts_by_reliance_answer_and_use():
    fair = noisy(0, 0.01)
    leaning = summarize(measurements(fair, reliance=noisy(0.2)), [MANY])
    assert (leaning.verdict, leaning.decided_by[0].question) == ("biased", "reliance")
    for changed, verdict in ((0.2, "biased"), (0.01, "balanced")):
        rows = np.full((120, 2), changed) * np.random.default_rng(0).uniform(0.9, 1.1, (120, 2))
        found = summarize(measurements(fair, changed=rows), [MANY])
        assert found.verdict == verdict
        expected = changed / (1 + changed / 2)
        assert found.answer_change.estimate == pytest.approx(expected, rel=0.05)
        assert found.answer_change.of == "classes"
    rows = np.full((120, 2), 0.01)
    same = summarize(measurements(fair, changed=rows, mismatch=0.005), [MANY])
    assert (same.verdict, same.mirror_mismatch.state) == ("symmetric", "within")
    for mismatch, state in ((0.5, "beyond"), (0.0095, "open")):
        unlike = measurements(fair, changed=rows, mismatch=mismatch)
        unlike.mismatch[::2] *= 1.1
        found = summarize(unlike, [MANY])
        assert (found.verdict, found.mirror_mismatch.state) == ("balanced", state)
        assert found.decided_by[0].question == "use"
        assert ask(unlike, MANY, Tolerances()).settled() == ("settled" if state == "beyond" else "")


@pytest.mark.parametrize("slices", [3, 5, 7, 101])
def test_the_pairs_that_are_not_judged_get_little_attention_together(slices):
    pairs = slices // 2
    least = 0.02 * min(1, 2 / pairs)
    outer = np.full(pairs, 0.99 * least / 2)
    profile = np.tile(np.concatenate([outer * 0.5, [1 - outer.sum() * 2], outer * 1.5]), (50, 1))
    found = summarize(measurements(profile), [MANY])
    assert not any(pair.judged for pair in found.pairs)
    assert 1 - found.shares[pairs].estimate < 0.04
    judged = summarize(measurements(profile), [MANY], Tolerances(judged_share=0.019))
    assert all(pair.judged for pair in judged.pairs)


def test_a_pair_is_judged_for_reliance_by_what_its_slices_change():
    small = np.tile([0.009, 0.0, 0.01], (120, 1))
    found = summarize(measurements(noisy(0, 0.01), reliance=small), [MANY])
    assert (found.reliance[0].state, found.verdict) == ("not judged", "balanced")
    found = summarize(measurements(noisy(0, 0.01), reliance=1.5 * small), [MANY])
    assert (found.reliance[0].state, found.verdict) == ("beyond", "biased")


def test_classes_are_judged_by_their_size_and_the_two_largest_always():
    sizes = (0.9, 0.002, 0.07, 0.02, 0.008)
    found = summarize(measurements(noisy(0, 0.01), classes=sizes), [MANY])
    assert [item.class_number for item in found.classes] == [0, 2, 3]
    assert found.unjudged_classes == (1, 4)
    small = summarize(measurements(noisy(0, 0.01), classes=(0.996, 0.001, 0.003)), [MANY])
    assert [item.class_number for item in small.classes] == [0, 2]
    more = summarize(measurements(noisy(0, 0.01), classes=sizes), [MANY], Tolerances(judged_class=0.005))
    assert [item.class_number for item in more.classes] == [0, 2, 3, 4]


def test_a_class_that_may_be_too_small_counts_but_does_not_decide_for_biased():
    """Its share of the pixels is 0.8 % with an interval that reaches 1 %."""
    rng = np.random.default_rng(0)
    mine = measurements(noisy(0, 0.01), classes=(0.6, 0.392, 0.008))
    mine.pixels[:, 2] *= rng.choice([0.0, 5.0], 120, p=[0.8, 0.2])
    mine.saliency[:, :, 3] = noisy(0.5)[:, None]
    found = summarize(mine, [MANY])
    assert [item.class_number for item in found.classes] == [0, 1, 2]
    assert found.verdict == "inconclusive"
    assert (found.decided_by[0].question, found.decided_by[0].class_number) == ("saliency", 2)
    assert summarize(mine, [MANY], Tolerances(judged_class=0.001)).verdict == "biased"


def test_windows_that_all_equal_their_mirrors_bound_the_part_that_may_differ():
    count = 58
    mine = measurements(noisy(0, 0.0, count), mismatch=0)
    same = replace(mine, mirror_error=np.full(count, 1e-6))
    found = summarize(same, [MANY])
    assert (found.verdict, found.needed) == ("inconclusive", 59)
    few = same.at(np.arange(10))
    assert [summarize(few, [windows]).needed for windows in (38, 59, MANY)] == [38, 59, 59]
    assert found.different == pytest.approx(0.0503, abs=1e-3)
    more = same.at(np.r_[np.arange(count), 0])
    found = summarize(more, [MANY])
    assert (found.verdict, found.decided_by) == ("symmetric", ())
    assert found.mirror_mismatch.high == found.pairs[0].high == found.answer_change.high == 0
    assert summarize(same, [count]).different == 0
    other = replace(same, mirror_error=np.r_[np.full(count - 1, 1e-6), 1e-3])
    assert summarize(other, [MANY]).different is None


def test_without_an_answer_no_verdict_is_fair():
    """Windows that are their own mirrors say nothing about the order of slices."""
    mine = measurements(noisy(0, 0.01))
    none = replace(mine, own_mirror=np.ones(120), union=0 * mine.union, changed=0 * mine.changed)
    found = summarize(none, [MANY])
    assert (found.verdict, found.decided_by, found.answer_change.of) == ("inconclusive", (), "unknown")
    assert summarize(none, [120]).verdict == "inconclusive"


def test_the_answer_of_scores():
    scores = measurements(noisy(0, 0.01), classes=())
    found = summarize(replace(scores, change=np.full(120, 8.0)), [MANY])
    assert (found.answer_change.of, found.answer_change.estimate) == ("scores", pytest.approx(2))
    one = measurements(noisy(0, 0.01), classes=(0.0, 1.0))  # one class is predicted everywhere
    assert summarize(one, [MANY]).answer_change.of == "scores"
    votes = replace(measurements(noisy(0, 0.01), classes=()), power=np.full(120, np.nan))
    assert summarize(votes, [MANY]).answer_change.of == "unknown"


@pytest.mark.parametrize(
    ("shape", "tile"),
    [((4000, 1), (8, 8)), ((2000, 2), (8, 8)), ((500, 1000), (8, 8)), ((80, 17, 24), (64, 64))],
)
def test_answers_of_unlike_levels_change_as_much_as_they_vary(shape, tile):
    """Unrelated answers have C = 1, whatever the level of each number, or of each feature of tokens."""
    both = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    both += 100.0 * torch.arange(shape[-1])
    count = shape[0] // 2
    mine = replace(
        measurements(noisy(0, 0.01, count), classes=()), **compare_outputs(both, tile, scores=True)
    )
    assert summarize(mine, [MANY]).answer_change.estimate == pytest.approx(1, abs=0.1)


def test_the_distance_between_sides_agrees_with_scipy():
    """The gradient of the log-odds, a sum of cubes, is known: three times the weighted squares."""
    weights, volume = np.array([1.0, 2.0, 0.5, 3.0, 1.5]).reshape(5, 1, 1), noise(depth=5)
    cubes = two_classes(lambda windows: (torch.as_tensor(weights) * windows**3).sum(1))
    found = audit_formula(cubes, volume, slices=5).measurements.wasserstein[0]
    sides = np.stack([weights * volume**2, weights * volume[::-1] ** 2])
    for k in (1, 2):
        expected = stats.wasserstein_distance(sides[:, 2 + k].ravel(), sides[:, 2 - k].ravel()) / sides.mean()
        assert found[k - 1] == pytest.approx(expected, rel=1e-3)
