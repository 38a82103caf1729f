import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from evenslice.results.arms import largest_bias
from evenslice.results.asymmetry import next_look, precise_enough, summarize
from evenslice.results.biases import data_part, directional_bias, model_part, pair_bias
from evenslice.results.evidence import answer_evidence, answer_kind
from evenslice.results.intervals import fit_means
from evenslice.results.measurements import Measurements, _sample, measure_windows
from evenslice.results.subsets import SubsetMeasurements
from evenslice.results.thresholds import Thresholds, least_attention
from evenslice.results.verdicts import WITHIN_LEVEL_OF_RATIOS, Decision, Evidence, agreement


def measurements(shares, mirrored_shares=None, volume=None, mismatch=0.3):
    shares = np.asarray(shares, dtype=float)
    mirrored_shares = shares if mirrored_shares is None else np.asarray(mirrored_shares, dtype=float)
    count = len(shares)
    position = np.zeros((count, 3), dtype=np.int64)
    position[:, 0] = np.arange(count)
    return Measurements(
        volume=np.zeros(count, dtype=np.int64) if volume is None else np.asarray(volume),
        position=position,
        shares=shares,
        mirrored_shares=mirrored_shares,
        wasserstein=np.abs(pair_bias(shares)),
        mirror_error=np.abs(directional_bias(shares)),
        mirror_disagreement=np.full(count, 0.001),
        foreground=np.ones(count),
        lowest_class=np.zeros(count),
        highest_class=np.ones(count),
        change=np.full(count, np.nan),
        power=np.full(count, np.nan),
        level=np.full((count, 1), np.nan),
        mismatch=np.full((count, shares.shape[1] // 2), mismatch),
        outer=np.ones((count, shares.shape[1] // 2)),
        own_mirror=np.zeros(count),
    )


def shares_of(bias, middle=0.4):
    """Shares of three slices with a given pair bias (n,)."""
    outer = (1 - middle) / 2
    return np.stack([outer * (1 - bias), np.full_like(bias, middle), outer * (1 + bias)], axis=1)


@st.composite
def share_rows(draw, count=6):
    half = draw(st.integers(0, 4))
    raw = draw(hnp.arrays(float, (count, 2 * half + 1), elements=st.floats(0, 1, width=32)))
    raw[:, half] += 1e-3
    return raw / raw.sum(axis=1, keepdims=True)


def test_a_class_that_had_no_turn_is_an_open_question():
    bias = 0.01 * np.random.default_rng(0).standard_normal(60)
    mine = measurements(shares_of(bias))
    mine = replace(mine, mirrored_shares=mine.shares)
    window = np.arange(0, 60, 4)
    shares = mine.shares[window]
    classes = np.stack([shares, shares], axis=1)
    subset = SubsetMeasurements(
        window, shares, shares, shares, shares, np.tile([0.5, 0.5], (15, 1)), classes, classes
    )
    assert summarize(mine, subset).verdict == "balanced"
    unseen = np.stack([shares, np.full_like(shares, np.nan)], axis=1)
    found = summarize(mine, replace(subset, class_shares=unseen, mirrored_class_shares=unseen))
    assert (found.verdict, found.decided_by.class_number) == ("inconclusive", 1)
    assert [item.class_number for item in found.classes] == [0]


def test_biases_by_hand():
    shares = np.array([[0.1, 0.2, 0.3, 0.2, 0.2], [0.0, 0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(pair_bias(shares), [[0, 1 / 3], [-1, 0], [0, 0]], atol=1e-15)
    np.testing.assert_allclose(directional_bias(shares), [0.1 / 0.7, -1, 0])


@given(share_rows(), share_rows())
def test_biases_lie_between_minus_one_and_one_and_split_exactly(shares, mirrored):
    for function in (pair_bias, directional_bias):
        bias = function(shares)
        assert (np.abs(bias) <= 1).all()
        np.testing.assert_allclose(function(shares[:, ::-1]), -bias, atol=1e-12)
        other = function(mirrored) if mirrored.shape == shares.shape else -bias
        np.testing.assert_allclose(model_part(bias, other) + data_part(bias, other), bias, atol=1e-15)


@given(share_rows())
def test_a_mirror_symmetric_network_has_no_model_part_whatever_the_data(shares):
    found = summarize(measurements(shares, shares[:, ::-1], mismatch=0))
    for interval in (*found.pairs, found.directional_bias, found.asymmetry):
        assert abs(interval.estimate) < 1e-12
    assert found.verdict == ("symmetric" if shares.shape[1] > 1 else "not applicable")
    np.testing.assert_allclose(found.data_direction.estimate, directional_bias(shares).mean(), atol=1e-12)


@given(share_rows())
def test_reversing_the_stack_flips_the_data_part_and_keeps_the_model_part(shares):
    mirrored = np.roll(shares, 1, axis=0)
    found, swapped = summarize(measurements(shares, mirrored)), summarize(measurements(mirrored, shares))
    assert found.directional_bias.estimate == pytest.approx(swapped.directional_bias.estimate, abs=1e-12)
    assert found.data_direction.estimate == pytest.approx(-swapped.data_direction.estimate, abs=1e-12)
    assert found.asymmetry.estimate == pytest.approx(swapped.asymmetry.estimate, abs=1e-12)


@given(share_rows())
def test_figures_lie_in_their_range_and_inside_their_interval(shares):
    found = summarize(measurements(shares, np.roll(shares, 2, axis=0)))
    assert sum(share.estimate for share in found.shares) == pytest.approx(1)
    for interval in (*found.shares, found.asymmetry, found.imbalance):
        assert -1e-12 <= interval.low <= interval.estimate + 1e-12
        assert interval.estimate - 1e-12 <= interval.high <= 1 + 1e-12
    for interval in (*found.pairs, *found.data_pairs, found.directional_bias, found.data_direction):
        assert -1 <= interval.low <= interval.estimate <= interval.high <= 1


@given(share_rows(), st.randoms(use_true_random=False))
def test_the_order_of_the_windows_does_not_matter(shares, random):
    mine = measurements(shares, np.roll(shares, 1, axis=0))
    order = random.sample(range(len(shares)), len(shares))
    shuffled = Measurements(**{entry.name: getattr(mine, entry.name)[order] for entry in fields(mine)})
    found, again = summarize(mine), summarize(shuffled)
    assert found.verdict == again.verdict
    for one, other in zip(found.shares + found.pairs, again.shares + again.pairs, strict=True):
        figures, others = (one.estimate, one.low, one.high), (other.estimate, other.low, other.high)
        np.testing.assert_allclose(figures, others, atol=1e-7)


def test_asymmetry_and_imbalance_by_hand():
    found = summarize(measurements(np.tile([0.1, 0.2, 0.4, 0.1, 0.2], (50, 1))))
    assert found.asymmetry.estimate == pytest.approx((0.1 + 0.1 + 0.1 + 0.1) / 2)
    assert found.imbalance.estimate == pytest.approx((0.1 + 0 + 0.2 + 0.1 + 0) / 2)
    assert found.asymmetry.low == pytest.approx(found.asymmetry.high) == pytest.approx(0.2)


def test_intervals_end_where_the_figures_do():
    """All attention on the middle slice or, in one window, on all: U is at most 2/3, and the distance at most 3."""
    shares = np.tile([0.0, 1.0, 0.0], (8, 1))
    shares[3] = 1 / 3
    mine = replace(measurements(shares), wasserstein=np.r_[0.0, np.full(7, 3.0)][:, None])
    found = summarize(mine)
    assert found.imbalance.high == pytest.approx(2 / 3)
    assert found.wasserstein[0].high == 3


def test_the_largest_distance_is_that_of_all_saliency_in_one_slice():
    one = torch.zeros(1, 5, 8, 8)
    one[:, 4] = 1 + torch.rand(8, 8)
    rows = measure_windows(one, one, torch.zeros(1, 1), torch.zeros(1, 1))
    assert rows["wasserstein"].tolist() == [pytest.approx([0, 5])]
    few = torch.zeros(1, 5, 256, 256)
    few[:, 4].view(-1)[_sample(256 * 256)[:10].tolist()] = 1.0  # pixels that are all in the sample
    assert measure_windows(few, few, torch.zeros(1, 1), torch.zeros(1, 1))["wasserstein"].max() == 5


def test_the_interval_of_asymmetry_reaches_zero_where_there_is_none():
    bias = np.random.default_rng(0).normal(0, 0.2, size=100)
    found = summarize(measurements(shares_of(bias)))
    assert found.asymmetry.low == 0
    assert 0 < found.asymmetry.estimate < found.asymmetry.high < 0.1


def test_the_cyclic_repeat_is_biased_although_its_directional_bias_vanishes():
    """Five slices fed as R G B R G: the biases of the two pairs have opposite signs and cancel in D."""
    rng = np.random.default_rng(1)
    shares = np.array([0.149, 0.309, 0.083, 0.149, 0.309]) + rng.normal(0, 0.01, size=(60, 5))
    shares /= shares.sum(axis=1, keepdims=True)
    found = summarize(measurements(shares))
    assert abs(found.directional_bias.estimate) < 0.02
    assert [pair.estimate for pair in found.pairs] == pytest.approx([-0.35, 0.35], abs=0.02)
    assert found.verdict == "biased"


@pytest.mark.parametrize(
    ("bias", "spread", "verdict"),
    [(0.0, 0.05, "balanced"), (0.2, 0.05, "biased"), (-0.2, 0.05, "biased"), (0.05, 0.05, "inconclusive"),
     (0.0, 0.9, "inconclusive")],
)  # fmt: skip
def test_verdicts(bias, spread, verdict):
    values = np.clip(np.random.default_rng(2).normal(bias, spread, size=60), -1, 1)
    assert summarize(measurements(shares_of(values))).verdict == verdict


def test_one_biased_pair_among_symmetric_ones_is_enough():
    shares = np.tile([0.2, 0.1, 0.1, 0.1, 0.2, 0.1, 0.2], (50, 1))
    assert summarize(measurements(shares)).verdict == "biased"


@pytest.mark.parametrize("slices", [5, 7, 99, 101, 401])
def test_a_bias_is_found_however_many_slices_share_the_attention(slices):
    """Each of 50 pairs gets less than 2 % of the attention, but all pairs together get nearly all of it."""
    half = slices // 2
    profile = np.array([0.2] * half + [0.6] + [1.0] * half)
    found = summarize(measurements(np.tile(profile / profile.sum(), (50, 1))))
    assert found.verdict == "biased"
    assert all(pair.judged for pair in found.pairs)
    assert largest_bias({"shares": [share.estimate for share in found.shares]}) == pytest.approx(2 / 3)


@pytest.mark.parametrize("slices", [3, 5, 7, 101])
def test_the_pairs_that_are_not_judged_get_little_attention_together(slices):
    pairs = slices // 2
    least = least_attention(pairs)
    outer = np.full(pairs, 0.99 * least / 2)
    profile = np.concatenate([outer * 0.5, [1 - outer.sum() * 2], outer * 1.5])
    found = summarize(measurements(np.tile(profile, (50, 1))))
    assert not any(pair.judged for pair in found.pairs)
    assert 1 - found.shares[pairs].estimate < 0.04
    judged = summarize(measurements(np.tile(profile, (50, 1))), thresholds=Thresholds(judged=0.019))
    assert all(pair.judged for pair in judged.pairs)
    assert (found.least_attention, judged.least_attention) == (least, least_attention(pairs, 0.019))


def test_a_wider_tolerance_accepts_more():
    mine = measurements(shares_of(np.random.default_rng(3).normal(0.1, 0.01, size=60)))
    assert summarize(mine).verdict == "biased"
    assert summarize(mine, thresholds=Thresholds(attention=0.2)).verdict == "balanced"


def test_a_single_slice_has_nothing_to_judge():
    mine = measurements(np.ones((45, 1)))
    found = summarize(mine)
    assert (found.verdict, found.pairs, found.wasserstein) == ("not applicable", (), ())
    assert found.imbalance.estimate == found.asymmetry.estimate == found.directional_bias.estimate == 0
    assert precise_enough(mine)


def test_one_window_is_inconclusive():
    found = summarize(measurements([[0.2, 0.5, 0.3]]))
    assert found.verdict == "inconclusive"
    assert (found.pairs[0].low, found.pairs[0].high) == (-1, 1)


def test_windows_without_attribution_are_left_out():
    shares = shares_of(np.random.default_rng(4).normal(0.1, 0.05, size=50))
    mine = measurements(shares)
    shares = np.vstack([shares, np.full((2, 3), np.nan)])
    assert summarize(measurements(shares)).pairs == summarize(mine).pairs
    none = summarize(measurements(np.full((3, 3), np.nan)))
    assert none.verdict == "inconclusive"
    assert math.isnan(none.directional_bias.estimate)


def test_volumes_are_the_units():
    bias = np.repeat([0.0, 0.2], 50) + np.random.default_rng(5).normal(0, 0.01, size=100)
    pooled, clustered = (
        summarize(measurements(shares_of(bias), volume=volume)) for volume in (None, np.repeat([0, 1], 50))
    )
    assert clustered.verdict == "inconclusive"
    width = [found.pairs[0].high - found.pairs[0].low for found in (pooled, clustered)]
    assert width[1] > 2 * width[0]


def test_looks_come_ever_later():
    looks = [next_look(windows) for windows in range(200)]
    assert looks == sorted(looks)
    assert all(look > windows for windows, look in enumerate(looks))
    assert sorted(set(looks)) == [40, 50, 62, 77, 96, 120, 150, 187, 233]


def test_precision():
    rng = np.random.default_rng(6)
    mine = measurements(shares_of(rng.normal(0.3, 0.05, size=100)))
    half = (summarize(mine).pairs[0].high - summarize(mine).pairs[0].low) / 2
    assert 0.008 < half < 0.02
    assert precise_enough(mine, precision=1.01 * half)
    assert not precise_enough(mine, precision=0.99 * half)
    assert not precise_enough(measurements([[0.2, 0.5, 0.3]]), precision=0.01)


def batch(shape=(3, 5, 32, 48), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) ** 3


def test_measure_agrees_with_numpy_and_scipy():
    one, other = batch(seed=1), batch(seed=2)
    output, mirrored = batch((3, 4, 8, 8), seed=3) - 0.5, batch((3, 4, 8, 8), seed=4) - 0.5
    rows = measure_windows(one, other, output, mirrored)
    a, b = one.double().numpy(), other.double().numpy()
    np.testing.assert_allclose(rows["shares"], a.sum((2, 3)) / a.sum((1, 2, 3))[:, None], rtol=1e-5)
    np.testing.assert_allclose(rows["mirrored_shares"], b.sum((2, 3)) / b.sum((1, 2, 3))[:, None], rtol=1e-5)
    for i in range(3):
        mean = np.concatenate([a[i], b[i]]).mean()
        for k in (1, 2):
            right, left = (np.concatenate([m[i, 2 + j].ravel() for m in (a, b)]) for j in (k, -k))
            expected = stats.wasserstein_distance(right, left) / mean
            assert rows["wasserstein"][i, k - 1] == pytest.approx(expected, rel=1e-4)
    f, g = output.numpy(), mirrored.numpy()
    expected = np.abs(f - g).max((1, 2, 3)) / np.abs(f).max((1, 2, 3))
    np.testing.assert_allclose(rows["mirror_error"], expected, rtol=1e-6)
    np.testing.assert_allclose(rows["mirror_disagreement"], (f.argmax(1) != g.argmax(1)).mean((1, 2)))


def test_the_rows_fill_the_measurements():
    rows = measure_windows(batch(), batch(), torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4))
    rest = {entry.name for entry in fields(Measurements)} - {"volume", "position", "own_mirror"}
    assert set(rows) == rest
    assert all(value.dtype == np.float64 and len(value) == 3 for value in rows.values())


def test_a_mirror_symmetric_network_measures_exactly_zero():
    one, output = batch(), batch((3, 1, 4, 4))
    rows = measure_windows(one, one.flip(1), output, output)
    assert (rows["wasserstein"] == 0).all()
    assert (rows["mirror_error"] == 0).all()
    assert (rows["mirror_disagreement"] == 0).all()
    np.testing.assert_allclose(
        model_part(pair_bias(rows["shares"]), pair_bias(rows["mirrored_shares"])), 0, atol=1e-6
    )


def test_large_maps_are_sampled_closely():
    one, other = (
        batch((1, 3, 512, 384), seed=1) * torch.tensor([1.0, 2.0, 3.0])[:, None, None],
        batch((1, 3, 512, 384), seed=2),
    )
    found = measure_windows(one, other, torch.zeros(1), torch.zeros(1))["wasserstein"][0, 0]
    right, left = (np.concatenate([m[0, j].numpy().ravel() for m in (one, other)]) for j in (2, 0))
    assert found == pytest.approx(
        stats.wasserstein_distance(right, left) / float(torch.cat([one, other]).mean()), rel=0.1
    )


@pytest.mark.parametrize(
    ("output", "mirrored", "disagreement"),
    [
        (torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 2.0]]), 1.0),  # classification
        (torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([[[[1.0, 1.0]]]]), 0.5),  # one logit
        (torch.tensor([3.0]), torch.tensor([1.0]), math.nan),  # no classes
    ],
)
def test_predictions_that_change(output, mirrored, disagreement):
    rows = measure_windows(batch((1, 3, 4, 4)), batch((1, 3, 4, 4)), output, mirrored)
    np.testing.assert_equal(rows["mirror_disagreement"], [disagreement])


def test_outputs_that_are_zero():
    output = torch.tensor([[0.0], [0.0], [2.0]])
    rows = measure_windows(batch(), batch(), output, torch.tensor([[0.0], [1.0], [1.0]]))
    np.testing.assert_equal(rows["mirror_error"], [0, math.nan, 0.5])


def test_attribution_that_is_zero():
    one = torch.zeros(1, 3, 4, 4)
    rows = measure_windows(one, one, torch.ones(1, 1), torch.ones(1, 1))
    assert np.isnan(rows["shares"]).all()
    assert np.isnan(rows["wasserstein"]).all()


def test_half_precision_is_compared_in_single():
    output = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    mirrored = torch.tensor([[1.0078125, 2.0]], dtype=torch.bfloat16)
    rows = measure_windows(batch((1, 3, 4, 4)).bfloat16(), batch((1, 3, 4, 4)).bfloat16(), output, mirrored)
    assert rows["mirror_error"][0] == pytest.approx(0.0078125 / 2)
    assert rows["shares"].sum() == pytest.approx(1)


def test_summaries_keep_the_tolerance():
    mine = replace(measurements(shares_of(np.zeros(50))), mirror_disagreement=np.linspace(0, 0.2, 50))
    found = summarize(mine, thresholds=Thresholds(attention=0.07))
    assert found.tolerance == 0.07
    assert found.mirror_disagreement.estimate == pytest.approx(0.1)


def test_a_pattern_as_fine_as_a_regular_sample_does_not_mislead_the_wasserstein_distance():
    """Every fourth column of the slice after is four times as salient, the others not at all; on average they are equal."""
    even = torch.ones(1, 3, 256, 256)
    striped = even.clone()
    striped[:, 2] = 4.0 * (torch.arange(256) % 4 == 0)
    found = measure_windows(striped, striped, torch.zeros(1), torch.zeros(1))["wasserstein"][0, 0]
    assert found == pytest.approx(0.25 * 3 + 0.75 * 1, abs=0.05)


def test_the_mismatch_sees_the_sign_that_shares_do_not():
    window = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)  # x(z+1) - x(z-1)
    rows = measure_windows(window, window, torch.zeros(1, 1), torch.zeros(1, 1))
    assert rows["shares"].tolist() == [[0.5, 0, 0.5]]
    assert (rows["mismatch"] / rows["outer"]).tolist() == [[1.0]]
    alike = window.abs()
    rows = measure_windows(alike, alike, torch.zeros(1, 1), torch.zeros(1, 1))
    assert rows["mismatch"].tolist() == [[0.0]]


def test_the_answer_is_judged_by_the_foreground_it_has():
    """One of 100 pixels changes: little of the image, half of the foreground."""
    logits = torch.full((1, 1, 10, 10), -1.0)
    mirrored = logits.clone()
    logits[0, 0, 0, :2] = mirrored[0, 0, 0, :1] = 1
    rows = measure_windows(torch.ones(1, 3, 10, 10), torch.ones(1, 3, 10, 10), logits, mirrored)
    assert rows["mirror_disagreement"].tolist() == pytest.approx([0.01])
    assert rows["foreground"].tolist() == pytest.approx([0.02])


@pytest.mark.parametrize("features", [1, 2, 1000])
def test_answers_of_unlike_levels_change_as_much_as_they_vary(features):
    """Unrelated answers have C = 1, whatever the level of each number, and in each volume."""
    count, generator = 4000, torch.Generator().manual_seed(0)
    volume = np.arange(count) % 2
    levels = 100.0 * torch.arange(features) + 1000.0 * torch.from_numpy(volume)[:, None]
    answer, other = (torch.randn(count, features, generator=generator) + levels for _ in range(2))
    rows = measure_windows(
        torch.ones(count, 3, 1, 1), torch.ones(count, 3, 1, 1), answer, other, classes=False
    )
    found = answer_evidence(
        replace(measurements(shares_of(np.zeros(count)), volume=volume), **rows), Thresholds()
    )
    assert found.fit.estimate[0] == pytest.approx(1, abs=0.05)


def answer_of(output, mirrored, *, volume=None, classes=True):
    """Return the evidence on the answer of windows 64 x 64 from their outputs."""
    attribution = torch.ones(len(output), 3, 1, 1).expand(-1, -1, 64, 64)
    rows = measure_windows(attribution, attribution, output, mirrored, classes=classes)
    made = measurements(shares_of(np.zeros(len(output))), volume=volume)
    return answer_evidence(replace(made, **rows), Thresholds())


def bounds(evidence):
    return [float(side[0]) for side in evidence.fit.bounds(WITHIN_LEVEL_OF_RATIOS)]


@pytest.mark.parametrize("shape", [(1,), (1, 8, 8), (3, 8, 8)])
def test_a_class_that_is_predicted_everywhere_does_not_hide_that_the_answer_changes(shape):
    """The output of a regression, always positive, looks like the logit of one class."""
    random = torch.Generator().manual_seed(0)
    output, mirrored = (10 + torch.randn(60, *shape, generator=random) for _ in range(2))
    if shape[0] == 3:
        output[:, 1], mirrored[:, 1] = output[:, 1] + 20, mirrored[:, 1] + 20
    found = answer_of(output, mirrored)
    assert found.fit.estimate[0] == pytest.approx(1, abs=0.1)
    assert not found.within().any()


def kind_of(output, mirrored):
    rows = measure_windows(*[torch.ones(len(output), 3, 8, 8)] * 2, output, mirrored)
    return answer_kind(replace(measurements(shares_of(np.zeros(len(output)))), **rows))


@pytest.mark.parametrize("windows", [40, 400])
def test_a_window_whose_class_changes_does_not_change_what_the_answer_compares(windows):
    """The logits change by more than the tolerance, but the classes of windows are votes, also if none changes."""
    random = torch.Generator().manual_seed(0)
    output = torch.randn(windows, 5, generator=random)
    stay = output + 0.4 * (torch.arange(5) == output.argmax(1, keepdim=True))
    one = stay.clone()
    one[3] = output[3].roll(1)
    found = [answer_of(output, mirrored) for mirrored in (stay, one)]
    assert [item.fit.estimate[0] for item in found] == pytest.approx([0, 1 / windows])
    assert bounds(found[0])[1] == pytest.approx(bounds(found[1])[1], rel=0.3)
    assert [bool(item.within().all()) for item in found] == [windows == 400] * 2
    assert not found[0].exact
    assert kind_of(output, stay) == kind_of(output, one) == "classes"


def test_windows_that_are_their_own_mirrors_do_not_tell():
    mine = measurements(shares_of(np.zeros(50)))
    alike = (np.arange(50) % 2).astype(float)
    mine = replace(mine, mirror_disagreement=0.5 * (1 - alike), own_mirror=alike)
    found = answer_evidence(mine, Thresholds())
    assert found.fit.estimate[0] == pytest.approx(0.5)
    assert found.slices == 25
    none = replace(mine, own_mirror=np.ones(50), mismatch=mine.mismatch * np.nan)
    assert answer_evidence(none, Thresholds()) is None
    statistics = summarize(none)
    assert (statistics.verdict, statistics.decided_by.question) == ("inconclusive", "answer")
    assert statistics.answer_change.of == "unknown"
    assert math.isnan(statistics.mirror_mismatch.estimate)


def test_what_the_answer_compares():
    pixels = torch.full((12, 3, 8, 8), -1.0)
    pixels[:, 1] = 1
    assert kind_of(pixels, pixels) == "scores"  # one class alone
    two = pixels.clone()
    two[3, 2, 0, 0] = 2
    assert kind_of(pixels, two) == kind_of(two, pixels) == kind_of(two, two) == "classes"
    assert kind_of(pixels[:, 0], pixels[:, 0]) == "scores"  # without classes
    numbers = torch.zeros(12, 8, 8, dtype=torch.int64)
    assert kind_of(numbers, numbers) == "classes"


def test_the_statistics_say_what_the_answer_compares():
    classes = summarize(measurements(shares_of(np.zeros(50))))
    assert (classes.answer_change.of, classes.answer_change.estimate) == ("classes", 0.001)
    scores = {"change": np.full(50, 8.0), "power": np.ones(50), "level": np.zeros((50, 1))}
    one = summarize(replace(measurements(shares_of(np.zeros(50))), highest_class=np.zeros(50), **scores))
    assert (one.answer_change.of, one.answer_change.estimate) == ("scores", 2)
    nothing = summarize(replace(measurements(shares_of(np.zeros(50))), foreground=np.full(50, np.nan)))
    assert nothing.answer_change.of == "unknown"


@pytest.mark.parametrize(("windows", "within"), [(40, False), (400, True)])
def test_votes_that_agree_are_not_exact(windows, within):
    """At C = .05, none of 40 windows changes in one audit of eight."""
    numbers = torch.zeros(windows, dtype=torch.int64)
    found = answer_of(numbers, numbers)
    assert found.fit.estimate[0] == 0
    assert bool(found.within().all()) == within
    assert not found.exact
    assert bounds(found)[1] > 3 / windows


@pytest.mark.parametrize(("windows", "within"), [(40, False), (62, False), (77, True)])
def test_segmentations_of_which_none_changed_may_change_in_the_next_window(windows, within):
    """If each twentieth window changed wholly, none of 40 would show it in one audit of eight."""
    output = torch.randn(windows, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = answer_of(output, output + 0.01 * output.abs())  # of which no class changes
    assert found.fit.estimate[0] == 0
    assert bool(found.within().all()) == within
    assert found.fit.bounds(0.95)[1] == pytest.approx(1 - 0.05 ** (1 / found.fit.effective[0]))
    assert found.fit.bounds(0.95, 2)[1] == pytest.approx(1 - 0.025 ** (1 / found.fit.effective[0]))
    numbers = output.argmax(1)  # no number tells whether the scores were the same
    assert bounds(answer_of(numbers, numbers))[1] > 0
    same = answer_of(output, output * (1 + 1e-5))  # whose scores are the same up to rounding
    assert bounds(same) == [0, 0]
    assert same.within().all()


def test_one_slice_of_foreground_is_enough_where_no_score_changes():
    output = torch.full((40, 1, 8, 8), -1.0)
    output[7, 0, 0] = 1
    assert bounds(answer_of(output, output)) == [0, 0]
    mirrored = output.clone()
    mirrored[5] = -0.9
    assert answer_of(output, mirrored).fit.bounds(0.95)[1] == pytest.approx(0.95)


def evidence_of(bias, *, judged=True):
    rng = np.random.default_rng(3)
    fit = fit_means(bias + 0.01 * rng.standard_normal((40, 1)), np.arange(40))
    return Evidence(Decision("attention"), fit, 0.05, (judged,), 40, exact=False)


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        (evidence_of(0.3), evidence_of(0.6), True),
        (evidence_of(0.3), evidence_of(-0.3), False),
        (evidence_of(0.3), evidence_of(0.0), False),
        (evidence_of(0.3), evidence_of(0.6, judged=False), None),
        (evidence_of(0.6, judged=False), evidence_of(0.3), None),
        (evidence_of(0.0), evidence_of(-0.6, judged=False), True),
        (evidence_of(0.05), evidence_of(0.0), None),
    ],
)
def test_agreement_of_methods(first, second, agree):
    rng = np.random.default_rng(4)
    apart = second.fit.estimate - first.fit.estimate
    difference = fit_means(apart + 0.01 * rng.standard_normal((40, 1)), np.arange(40))
    assert agreement(first, second, difference) is agree


def test_a_pixel_of_foreground_in_one_window_decides_nothing():
    output = torch.full((40, 1, 8, 8), -1.0)
    mirrored = output.clone()
    output[7, 0, 0, 0] = 1
    for pixel in (mirrored[7, 0, 0, 0], torch.tensor(1.0)):  # it changes, or stays while all others do
        mirrored[7, 0, 0, 0] = pixel
        found = answer_of(output, mirrored)
        assert found.slices == 1
        assert not found.enough


def test_one_window_of_each_volume_does_not_tell_how_answers_vary():
    output = torch.arange(10.0)[:, None]
    assert answer_of(output, output + 0.3, volume=range(10), classes=False) is None
    both = torch.cat([output, output + 1]), torch.cat([output + 1, output])
    found = answer_of(*both, volume=[*range(10), *range(10)], classes=False)
    assert found.fit.estimate[0] == pytest.approx(1)  # 1 over sqrt(2) times a standard deviation of sqrt(1/2)


def test_tokens_vary_around_the_mean_of_each_feature():
    """One feature is far from the others; it does not make the rest look small."""
    random = torch.Generator().manual_seed(0)
    output, mirrored = torch.randn(2, 40, 17, 24, generator=random)
    output[:, :, 3] += 40
    mirrored[:, :, 3] += 40
    assert answer_of(output, mirrored).fit.estimate[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize(("shape", "single"), [((3, 1, 1), (3,)), ((1, 1, 1), (1,)), ((1, 24), (24,))])
def test_an_output_with_a_single_place_is_judged_as_one_without_any(shape, single, scale):
    """Classifiers that keep their axes of 1 x 1, and a single token."""
    random = torch.Generator().manual_seed(0)
    output, mirrored = 5 * scale + scale * torch.randn(2, 60, *single, generator=random)
    classes = len(shape) == 3
    found = answer_of(output.reshape(60, *shape), mirrored.reshape(60, *shape), classes=classes)
    same = answer_of(output, mirrored, classes=classes)
    assert found.fit.estimate[0] == same.fit.estimate[0]
    assert found.fit.estimate[0] > 0.4
    assert not found.within().any()
    assert not found.exact


def test_class_numbers_of_a_single_place_are_votes():
    numbers, mirrored = torch.randint(3, (2, 40), generator=torch.Generator().manual_seed(0))
    flat, single, kept = (
        answer_of(*(item.reshape(40, *shape) for item in (numbers, mirrored))) for shape in ((), (1, 1), (1,))
    )
    assert single.fit.estimate[0] == kept.fit.estimate[0] == flat.fit.estimate[0]
    assert single.fit.half_width().tolist() == flat.fit.half_width().tolist()


def test_a_change_of_maps_without_any_variation_says_nothing():
    output = torch.arange(40.0)[:, None, None].expand(-1, 8, 8)
    assert answer_of(output, output + 0.001) is None
    assert answer_of(output, output).exact


@given(share_rows())
def test_evidence_that_is_missing_never_gives_a_fair_verdict(shares):
    mine = measurements(shares, shares[:, ::-1], mismatch=0)
    blind = replace(
        mine, mirror_disagreement=np.full(len(shares), np.nan), foreground=np.full(len(shares), np.nan)
    )
    if shares.shape[1] > 1:
        assert summarize(blind).verdict in ("biased", "inconclusive")


def test_rounding_on_few_slices_does_not_hide_that_slices_are_used_alike():
    """Mismatches of an exactly symmetric network are those of rounding, many times larger in one window than in others."""
    mine = measurements(shares_of(np.zeros(6)))
    mine = replace(mine, mismatch=np.array([[1e-6], [1e-6], [2e-6], [5e-4], [1e-6], [1e-6]]))
    found = summarize(mine)
    assert found.mirror_mismatch.high < 0.01
    assert found.verdict == "symmetric"
