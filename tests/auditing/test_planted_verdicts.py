"""Networks whose formula says what the verdict has to be."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from evenslice._core.errors import ConfigError, ModelError
from evenslice.auditing.auditor import audit
from evenslice.neutralizing.neutralization import neutralize
from evenslice.report.audit.wording import verdict_sentence


class Formula(nn.Module):
    """A network that computes a function of its windows (batch, slices, y, x)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, windows):
        return self.function(windows)


def weighted(*weights):
    """A regression: the weighted sum of the slices."""
    return lambda windows: (windows * torch.tensor(weights).view(1, -1, 1, 1)).sum(1)


def difference(windows):
    return windows[:, 2] - windows[:, 0]


def halves(windows):
    """The slice before on the left half, the slice after on the right half."""
    left = torch.arange(windows.shape[3]) < windows.shape[3] // 2
    return torch.where(left, windows[:, 0], windows[:, 2])


def foreground_alone(part):
    """Two classes: the foreground is the brightest part of the middle slice, and reads the slice before three times."""

    def logits(windows):
        before, middle, after = windows.unbind(1)
        found = (middle > 1 - part).float()
        background = (1 - found) * 3 * (before + middle + after)
        foreground = found * (10 + 3 * before + middle + after) - (1 - found)
        return torch.stack([background, foreground], dim=1)

    return logits


def noise(depth=64, seed=0):
    return np.random.default_rng(seed).random((depth, 48, 48)).astype(np.float32)


def found_in(function, volume=None, slices=3, **options):
    volume = noise() if volume is None else volume
    return audit(
        Formula(function), volume, slices=slices, intensity=(0, 1), device="cpu", dtype="float32", **options
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("period", [1, 2])
def test_windows_that_are_their_own_mirrors_do_not_make_a_network_fair(period, dtype):
    """Of a difference of the neighbours, they show nothing; a stack of one slice was a proof that it is symmetric."""
    volume = noise(depth=period)[np.arange(64) % period]
    found = audit(
        Formula(lambda windows: (difference(windows) + windows[:, 1] - 0.5).unsqueeze(1)),
        volume,
        slices=3,
        intensity=(0, 1),
        device="cpu",
        dtype=dtype,
        max_windows=50,
    )
    assert (found.verdict, found.statistics.decided_by.question) == ("inconclusive", "answer")
    assert "all windows are their own mirrors" in verdict_sentence(found)
    assert math.isnan(found.answer.estimate)
    assert math.isnan(found.mismatch.estimate)


def test_windows_that_are_their_own_mirrors_do_not_dilute_the_others():
    volume = np.repeat(noise(depth=30), 3, axis=0)
    found = found_in(lambda windows: (difference(windows) + windows[:, 1] - 0.5).unsqueeze(1), volume)
    alike = found.measurements.own_mirror == 1
    assert alike.mean() == pytest.approx(1 / 3, abs=0.05)
    part, whole = (
        getattr(found.measurements, name)[~alike].sum() for name in ("mirror_disagreement", "foreground")
    )
    assert found.answer.estimate == pytest.approx(part / whole)
    assert np.isnan(found.measurements.mismatch[alike]).all()


def test_empty_windows_are_nothing_to_compare_an_answer_of_one_number_with():
    def answer(windows):  # 100 for tissue, 0 for what is empty, and what the order decides
        tissue = (windows.mean((1, 2, 3)) > 0.1).float()
        return (100 * tissue + difference(windows).mean((1, 2)))[:, None]

    tissue = noise(depth=40)
    padded = np.concatenate([np.zeros((40, *tissue.shape[1:])), tissue])
    found = [found_in(answer, volume).answer.estimate for volume in (tissue, padded)]
    assert found[0] == pytest.approx(np.sqrt(2), rel=0.2)
    assert found[1] == pytest.approx(found[0], rel=0.2)


def decided(found):
    by = found.statistics.decided_by
    return found.verdict, by.question, by.class_number, by.offset


def test_a_difference_of_the_neighbours_is_biased_by_its_answer():
    found = found_in(difference)
    assert decided(found) == ("biased", "answer", None, None)
    assert found.mismatch.estimate == pytest.approx(1, abs=1e-6)
    assert found.answer.estimate == pytest.approx(np.sqrt(2), rel=0.02)  # f(x') = -f(x)
    assert abs(found.attention[0].estimate) < 1e-6


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "occlusion", "integrated_gradients"])
def test_the_classes_of_a_difference_change_whatever_the_method(method):
    found = found_in(lambda windows: difference(windows).unsqueeze(1), method=method, max_windows=60)
    assert decided(found) == ("biased", "answer", None, None)
    assert found.answer.estimate > 0.97


def test_a_difference_that_is_always_positive_is_no_class_that_stays():
    found = found_in(lambda windows: 10 + difference(windows).unsqueeze(1))
    assert decided(found) == ("biased", "answer", None, None)
    assert found.answer.estimate == pytest.approx(np.sqrt(2), rel=0.02)
    assert found.mismatch.estimate == pytest.approx(1, abs=1e-6)


def test_a_function_that_answers_in_one_order_only_is_biased_by_its_answer():
    """Of each window and its mirror, one has an attribution, so that there is no pair bias."""
    found = found_in(lambda windows: difference(windows).mean((1, 2)).relu())
    assert decided(found) == ("biased", "answer", None, None)
    assert found.mismatch.estimate == pytest.approx(1, abs=1e-6)
    assert np.isnan(found.attention[0].estimate)
    assert found.run.windows_without_attribution == len(found.measurements.volume)


def test_sides_that_are_read_in_different_places_are_not_called_symmetric():
    found = found_in(halves)
    assert abs(found.attention[0].estimate) < 0.01
    assert found.mismatch.estimate == pytest.approx(1, abs=1e-6)
    assert decided(found)[:2] == ("biased", "answer")
    assert found.answer.estimate == pytest.approx(1, abs=0.02)  # neighbours are unrelated


def test_such_a_network_is_balanced_where_neighbours_hardly_differ():
    volume = 0.99 * noise(depth=1) + 0.01 * noise(seed=1)
    found = found_in(halves, volume)
    assert found.answer.high < 0.05
    assert decided(found)[:2] == ("balanced", "attention")


@pytest.mark.parametrize("part", [0.02, 0.05, 0.1])
def test_a_bias_of_the_foreground_alone_is_found_by_default(part):
    found = found_in(foreground_alone(part))
    assert decided(found) == ("biased", "attention", 1, 1)
    background, foreground = found.statistics.classes
    assert foreground.pixels == pytest.approx(part, abs=0.01)
    assert foreground.pairs[0].estimate == pytest.approx(-0.5, abs=1e-4)
    assert background.pairs[0].estimate == pytest.approx(0, abs=1e-4)
    assert abs(found.attention[0].estimate) < 0.05  # that of the whole output hides it


def test_opposite_pairs_that_cancel_are_biased():
    found = found_in(weighted(0.1, 0.3, 0.2, 0.1, 0.3), slices=5)
    assert found.directional_bias.estimate == pytest.approx(0, abs=1e-5)
    assert found.verdict == "biased"
    assert [pair.estimate for pair in found.attention] == pytest.approx([-0.5, 0.5], abs=1e-5)


def test_the_outer_pair_alone_is_biased():
    found = found_in(weighted(0.3, 0.2, 0.2, 0.2, 0.1), slices=5)
    assert decided(found) == ("biased", "attention", None, 2)


def test_a_tiny_pair_is_shown_but_not_judged():
    found = found_in(weighted(0.0, 1.0, 1e-4))
    assert not found.attention[0].judged
    assert found.attention[0].estimate == pytest.approx(1)
    assert found.verdict == "balanced"


def test_a_saturated_output_is_judged_by_what_it_reads():
    found = found_in(lambda windows: torch.tanh(20 * (windows[:, 0] - 0.5)))
    assert decided(found)[:2] == ("biased", "attention")
    assert found.attention[0].estimate == -1


def test_a_constant_output_is_refused():
    with pytest.raises(ModelError, match="does not depend on its input"):
        found_in(lambda windows: 0 * windows.sum(1) + 3)


def test_an_output_of_steps_is_not_said_to_ignore_its_input():
    def step(windows):
        return (windows[:, :1] > 0.5).to(windows.dtype) - 0.5 + 0 * windows.sum()

    with pytest.raises(ModelError, match="has no gradient .*; measure by method='occlusion'"):
        found_in(step)


@pytest.mark.parametrize(
    ("weights", "verdict"), [((1.0, 2.0, 1.0), "symmetric"), ((1.0, 2.0, 2.0), "biased"), ((0.0, 1.0, 0.0), "symmetric")]
)  # fmt: skip
def test_a_regression(weights, verdict):
    assert found_in(weighted(*weights)).verdict == verdict


@pytest.mark.parametrize(
    ("weights", "verdict"), [((1.0, 2.0, 1.0), "symmetric"), ((1.0, 2.0, 3.0), "biased")]
)
def test_a_detector(weights, verdict):
    def detect(windows):
        scores = weighted(*weights)(windows).sigmoid().flatten(1).mean(1)
        return [{"boxes": torch.zeros(1, 4), "scores": score[None]} for score in scores]

    assert found_in(detect).verdict == verdict


@pytest.mark.parametrize(
    ("weights", "verdict"), [((1.0, 2.0, 1.0), "symmetric"), ((1.0, 2.0, 3.0), "biased")]
)
def test_a_function(weights, verdict):
    def function(windows):
        return np.einsum("bkyx,k->byx", windows, np.array(weights, dtype=np.float32))

    found = audit(function, noise(), slices=3, intensity=(0, 1))
    assert found.verdict == verdict
    assert found.statistics.second_opinion is None


def test_a_function_of_scores_is_biased_in_its_foreground_alone():
    def scores(windows):
        return foreground_alone(0.1)(torch.from_numpy(windows)).numpy()

    found = audit(scores, noise(), slices=3, intensity=(0, 1), max_windows=60)
    assert decided(found) == ("biased", "attention", 1, 1)
    background, foreground = found.statistics.classes
    assert foreground.pairs[0].estimate == pytest.approx(-0.5, abs=0.01)
    assert background.pairs[0].estimate == pytest.approx(0, abs=1e-4)
    assert abs(found.attention[0].estimate) < 0.05


def test_a_function_of_classes_is_judged_by_what_its_classes_read():
    def middle(windows):
        return (windows[:, 1] > 0.9).astype(np.int64)

    def before(windows):
        return ((windows[:, 1] > 0.5) * (1 + (windows[:, 0] > 0.5))).astype(np.int64)

    fair, unfair = (audit(part, noise(depth=90), slices=3, intensity=(0, 1)) for part in (middle, before))
    assert fair.verdict == "symmetric"
    assert fair.statistics.answer_change.estimate == 0
    # Classes do not tell how near the scores are to others: that no class changes has to be seen on about 70 slices.
    assert 70 < len(fair.measurements.volume) < 88
    assert decided(audit(middle, noise(depth=60), slices=3, intensity=(0, 1)))[:2] == (
        "inconclusive",
        "answer",
    )
    assert decided(unfair) == ("biased", "attention", None, 1)
    assert unfair.attention[0].estimate == -1
    assert unfair.answer.estimate == pytest.approx(
        0.5, abs=0.02
    )  # half of the foreground is of another class


def test_that_no_class_changes_has_to_be_seen_on_many_slices_where_scores_do():
    """A window that changed its classes may not have been among 40; scores that change say that there may be one."""

    def logits(windows):
        columns = torch.arange(windows.shape[3]) % 2 == 0
        neighbour = torch.where(columns, windows[:, 0], windows[:, 2])
        foreground = torch.where(windows[:, 1] > 0.5, 3.0, -3.0) + windows[:, 1] + neighbour
        return torch.stack([torch.zeros_like(foreground), foreground], dim=1)

    few, many = (found_in(logits, noise(depth=depth), tolerance=0.1) for depth in (60, 120))
    assert few.answer.estimate == many.answer.estimate == 0
    assert decided(few)[:2] == ("inconclusive", "answer")
    assert few.answer.high == pytest.approx(1 - 0.05 ** (1 / 58), rel=0.01)
    assert decided(many)[:2] == ("balanced", "attention")
    assert len(many.measurements.volume) == 77


def test_networks_that_are_fair_by_construction_are_symmetric():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    both = Formula(lambda windows: (plain(windows) + plain(windows.flip(1))) / 2)
    assert audit(both, noise(), device="cpu").verdict == "symmetric"
    for options in ({"strategy": "uniform"}, {"strategy": "pretrained", "tie": "mirror"}):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
        neutralize(network, slices=3, mean=0.5, std=0.5, **options)
        found = audit(network, noise(), device="cpu")
        assert (found.verdict, found.statistics.decided_by.question) == ("symmetric", "use")


def test_two_methods_that_find_opposite_biases_disagree():
    """The gradient of the slice before is steep and tiny in reach; that of the slice after is gentle and moves more."""

    def steep(windows):
        before, _, after = windows.unbind(1)
        return torch.sin(60 * before) / 12 + 2 * after

    found = found_in(steep)
    assert found.attention[0].estimate < -0.05
    assert found.statistics.second_opinion.pairs[0].estimate > 0.05
    assert found.statistics.methods_agree is False


def test_methods_agree_about_a_linear_network():
    assert found_in(weighted(1.0, 1.0, 3.0)).statistics.methods_agree is True


def test_few_slices_are_enough_only_where_all_windows_say_the_same():
    def mostly(windows):  # attention to the slice after grows with its brightness
        before, middle, after = windows.unbind(1)
        return before + middle + 3 * after**2

    volume = noise(depth=7)
    found = found_in(mostly, volume)
    assert found.attention[0].low > 0.05
    assert found.verdict == "inconclusive"
    assert found_in(mostly, noise(depth=30)).verdict == "biased"
    assert found_in(weighted(1.0, 1.0, 3.0), volume).verdict == "biased"


def test_labels_show_what_a_lost_slice_costs():
    """A network that finds bright voxels in the slice before loses everything with it and nothing with the one after."""
    volume = np.zeros((20, 64, 64), dtype=np.float32)
    volume[:, :, 32:] = 1

    def bright(windows):
        return (windows[:, :1] - 0.5) + 0.001 * (windows[:, 1:2] + windows[:, 2:])

    labels = (volume * 255).astype(np.uint8)
    found = found_in(bright, volume, labels=labels, label_values=[0, 255])
    blank = next(loss for loss in found.stress.losses if loss.kind == "blank")
    assert (found.stress.reference, found.stress.intact) == ("labels", 1)
    assert (blank.before, blank.after) == (0, 1)
    assert blank.asymmetry.estimate == 1
    assert found.to_dict()["stress"]["losses"][1]["kind"] == "blank"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "labels"}, "target='labels' needs label volumes; give them as labels"),
        ({"label_values": [0, 255]}, "label_values: has no effect without labels; give both"),
        ({"other_labels": "background"}, "other_labels: has no effect without labels; give both"),
    ],
)
def test_labels_that_are_needed_are_asked_for(options, message):
    with pytest.raises(ConfigError, match=message):
        found_in(difference, **options)


@pytest.mark.parametrize("target", ["predicted", "labels"])
@pytest.mark.parametrize("values", [[0, 2, 7], [0, 0], [0]])
def test_label_values_are_those_of_the_classes_of_the_network(target, values):
    volume = np.random.default_rng(0).random((12, 32, 32))
    with pytest.raises(ConfigError, match=r"label_values=\[.*\]: give a different value for each"):
        found_in(foreground_alone(0.3), volume, labels=(volume > 0.5) * 2, label_values=values, target=target)


def many_classes(count):
    """A network whose answer is one of as many classes as its middle slice is bright, each with equal attention."""
    at = [-sum((k + 1) / count for k in range(number)) for number in range(count)]

    def logits(windows):
        before, middle, after = windows.unbind(1)
        fixed = middle.detach()
        each = 1 + 0.3 * torch.sin(50 * fixed), 1 + 0.3 * torch.cos(50 * fixed)
        mixed = middle + 0.006 * (after * each[0] - before * each[1])
        return torch.stack([(1 + number) * mixed + at[number] for number in range(count)], dim=1)

    return logits


def test_an_audit_goes_on_until_each_class_was_seen_in_enough_slices():
    volume = np.random.default_rng(0).random((300, 32, 32)).astype(np.float32)
    found = found_in(many_classes(8), volume, batch=8, judged_share=0.01)
    assert found.verdict == "balanced"
    assert found.run.stopped == "precision reached"
    assert min(item.windows for item in found.statistics.classes) >= 8
    few = found_in(many_classes(8), volume, batch=8, judged_share=0.01, max_windows=64)
    assert few.verdict == "inconclusive"
    seen = few.statistics.classes[0].windows
    assert seen < 8
    assert f"{seen} distinct slices were seen, 8 are needed" in verdict_sentence(few)


def test_whole_numbers_that_are_not_of_classes_are_measured_as_numbers():
    def summed(windows):
        return (500 * (windows[:, 0] + windows[:, 2]) + 1000 * windows[:, 1]).astype(np.int64)

    volume = noise()
    found = audit(summed, volume, slices=3, target="sum", intensity=(0, 1))
    assert found.verdict == "symmetric"
    assert found.answer.estimate == 0


def test_an_audit_draws_nothing_from_the_random_numbers_of_its_caller():
    torch.manual_seed(0)
    expected = torch.rand(1)
    for method in ("gradient", "occlusion"):
        torch.manual_seed(0)
        volume = np.random.default_rng(0).random((12, 128, 128)).astype(np.float32)
        found_in(weighted(1.0, 2.0, 1.0), volume, method=method, max_windows=8)
        assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_difference_of_the_neighbours_is_used_oppositely_whatever_the_classes(classes, method):
    def logits(windows):
        found = difference(windows)
        return torch.stack({1: [found], 2: [-found, found], 3: [-found, found, found - 9]}[classes], dim=1)

    found = found_in(logits, method=method, max_windows=30)
    assert found.mismatch.estimate == pytest.approx(1, abs=1e-4)
    assert found.verdict == "biased"


def test_an_answer_that_rarely_changes_does_not_hide_the_opposite_use():
    """Where reversing the window changes the class, its mirror is explained for the class of the window all the same."""

    def column(windows):
        found = torch.ones_like(windows[:, 0])
        found[..., 0] = difference(windows)[..., 0]
        return torch.stack([-found, found], dim=1)

    found = found_in(column, max_windows=60)
    assert found.answer.estimate < 0.05
    assert found.mismatch.estimate == pytest.approx(1, abs=1e-4)
    assert found.verdict != "symmetric"
