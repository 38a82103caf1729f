"""Networks whose formula says what the verdict has to be."""

import math

import numpy as np
import pytest
import torch
from formulas import (
    Formula,
    alternating,
    audit_formula,
    decided,
    difference,
    foreground_alone,
    noise,
    two_classes,
    weighted,
)
from torch import nn
from values import by_name

import evenslice
from evenslice import ModelError

ANSWER = ("answer", None, None)


def checked(function):
    """A margin that reads the middle slice, and the slice before or after in a checkerboard."""
    return lambda windows: function(windows) + 0.25 * (alternating(windows) - 0.5)


def test_an_answer_that_changes_decides_although_attention_is_even():
    found = audit_formula(two_classes(checked(lambda windows: windows[:, 1] - 0.5)))
    assert decided(found) == ("biased", [("answer", 1, None)])
    assert found.answer.estimate == pytest.approx(0.155, abs=0.02)
    assert found.mismatch.estimate == pytest.approx(1)
    assert abs(found.saliency[0].estimate) < 0.01
    assert found.run.stopped == "settled"


@pytest.mark.slow
def test_an_audit_goes_on_until_the_answer_is_settled():
    """The gradient is narrow at once; whether C is above its tolerance is not."""
    blocks = np.kron(noise(depth=202, size=8), np.ones((1, 4, 4)))
    function = two_classes(lambda windows: windows[:, 1] - 0.5 + 0.085 * (alternating(windows) - 0.5))
    found = audit_formula(function, blocks)
    assert decided(found)[0] == "biased"
    assert decided(found)[1][0][0] == "answer"
    assert found.windows > 40
    early = audit_formula(function, blocks, max_windows=40)
    assert (early.verdict, early.run.stopped) == ("inconclusive", "limit reached")
    assert early.answer.state == "open"
    assert 40 < early.statistics.needed <= 200


@pytest.mark.parametrize("part", [0.02, 0.1])
def test_a_bias_of_the_foreground_alone_is_found(part):
    found = audit_formula(foreground_alone(part))
    assert decided(found) == ("biased", [("saliency", 1, 1), ("reliance", 1, 1)])
    background, foreground = found.statistics.classes
    assert foreground.pixels == pytest.approx(part, abs=0.01)
    assert foreground.pairs[0].estimate == pytest.approx(-0.5, abs=1e-4)
    assert background.pairs[0].estimate == pytest.approx(0, abs=1e-4)
    assert foreground.reliance[0].estimate == pytest.approx(-0.5, abs=0.02)
    assert abs(found.saliency[0].estimate) < 0.05  # the figure of all pixels hides it


def test_a_class_too_small_to_be_judged_is_named():
    def three(windows):
        before, middle, after = windows.unbind(1)
        fair = (before + middle + after) / 3 - 0.5
        speck = torch.where(middle > 0.997, 20 + 9 * before, -20 + 0 * before)
        return torch.stack([-fair, fair, speck], dim=1)

    found = audit_formula(three)
    assert found.statistics.unjudged_classes == (2,)
    assert [item.class_number for item in found.statistics.classes] == [0, 1]
    judged = audit_formula(three, judged_class=0.001)
    assert decided(judged) == ("biased", [("saliency", 2, 1), ("reliance", 2, 1)])


def leaning(windows):
    return (difference(windows) + windows[:, 1] - 0.5)[:, None]


def test_windows_that_are_their_own_mirrors_neither_make_a_network_fair_nor_dilute_the_others():
    """A stack of one slice says nothing about a difference of the neighbours."""
    found = audit_formula(leaning, noise(depth=1)[np.zeros(50, int)])
    assert found.verdict == "inconclusive"
    assert math.isnan(found.answer.estimate)
    assert math.isnan(found.mismatch.estimate)
    found = audit_formula(leaning, np.repeat(noise(depth=20), 3, axis=0))
    measured, number = found.measurements, found.answer.class_number
    tell = measured.own_mirror == 0
    assert tell.mean() == pytest.approx(2 / 3, abs=0.1)
    part = measured.changed[tell, number].sum() / measured.union[tell, number].sum()
    assert found.answer.estimate == pytest.approx(part)
    assert not measured.outer[~tell].any()


@pytest.mark.parametrize(
    ("function", "change"),
    [
        (difference, np.sqrt(2)),  # f(x') = -f(x)
        (lambda windows: 10 + difference(windows)[:, None], np.sqrt(2)),  # one class everywhere
        (alternating, 1),  # sides that are read in different places; neighbours are unrelated
        (lambda windows: difference(windows).mean((1, 2)).relu(), None),  # no window has two gradients
    ],
)
def test_scores_that_the_order_decides_are_biased_in_the_answer(function, change):
    found = audit_formula(function)
    assert decided(found) == ("biased", [ANSWER])
    assert found.answer.of == "scores"
    if change is None:
        assert np.isnan(found.saliency[0].estimate)
    else:
        assert found.answer.estimate == pytest.approx(change, rel=0.02)
        assert found.mismatch.estimate == pytest.approx(1, abs=1e-6)
        assert abs(found.saliency[0].estimate) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("method", ["smoothgrad", "occlusion", "integrated_gradients"])
def test_the_method_of_saliency_changes_neither_answer_nor_use(method):
    found = audit_formula(two_classes(difference), noise(depth=20), method=method)
    assert decided(found)[0] == "biased"
    assert decided(found)[1][-1][0] == "answer"
    use = "replacement" if method == "occlusion" else "gradient"
    assert (found.run.method, found.run.use) == (method, use)
    assert found.answer.estimate > 0.97
    assert found.mismatch.estimate == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("weights", "verdict", "offsets"),
    [
        ((1.0, 2.0, 1.0), "symmetric", []),
        ((0.0, 1.0, 0.0), "symmetric", []),
        ((1.0, 2.0, 2.0), "biased", [1, 1, None]),
        ((0.0, 1.0, 1e-4), "balanced", [None]),  # a pair with too little attention to be judged
        ((0.1, 0.3, 0.2, 0.1, 0.3), "biased", [1, 1, None]),  # opposite biases that cancel in D
        ((0.3, 0.2, 0.2, 0.2, 0.1), "biased", [2, 2, None]),  # the outer pair alone
    ],
)
def test_regressions(weights, verdict, offsets):
    found = audit_formula(weighted(*weights), noise(depth=30), slices=len(weights))
    assert (found.verdict, [item.offset for item in found.statistics.decided_by]) == (verdict, offsets)
    before, after = np.array(weights[: len(weights) // 2][::-1]), np.array(weights[len(weights) // 2 + 1 :])
    with np.errstate(invalid="ignore"):
        expected = (after - before) / (after + before)
    for figures in (found.saliency, found.reliance):
        np.testing.assert_allclose([pair.estimate for pair in figures], np.nan_to_num(expected), atol=1e-4)


@pytest.mark.parametrize(
    ("function", "saliency", "questions"),
    [
        (lambda windows: torch.tanh(20 * (windows[:, 0] - 0.5)), -1, ["saliency", "reliance", "answer"]),
        (
            lambda windows: (windows[:, :1] > 0.5).float() - 0.5 + 0 * windows.sum(),
            math.nan,
            ["reliance", "answer"],
        ),
    ],
)
def test_saturated_outputs_and_steps_are_judged_by_what_they_read(function, saliency, questions):
    found = audit_formula(function, noise(depth=20))
    assert (found.verdict, [item.question for item in found.statistics.decided_by]) == ("biased", questions)
    assert found.saliency[0].estimate == pytest.approx(saliency, nan_ok=True)
    assert found.reliance[0].estimate == -1


def test_a_constant_output_is_refused():
    """All its windows equal their mirrors, which is no reason to call it symmetric."""
    with pytest.raises(ModelError, match="nothing in 18 windows moves it"):
        audit_formula(lambda windows: 0 * windows.sum(1) + 3, noise(depth=20))


def audit_function(function, volume, **options):
    options = {"slices": 3, "intensity": (0, 1), "progress": False, **options}
    return evenslice.audit(function, volume, **by_name(evenslice.audit, **options))


@pytest.mark.parametrize(
    ("weights", "verdict"), [((1.0, 2.0, 1.0), "symmetric"), ((1.0, 2.0, 3.0), "biased")]
)
def test_detectors_and_functions(weights, verdict):
    def detect(windows):
        scores = weighted(*weights)(windows).sigmoid().flatten(1).mean(1)
        return [{"boxes": torch.zeros(1, 4), "scores": score[None]} for score in scores]

    def function(windows):
        return np.einsum("bkyx,k->byx", windows, np.array(weights, dtype=np.float32))

    assert audit_formula(detect, noise(depth=20)).verdict == verdict
    found = audit_function(function, noise(depth=20))
    assert (found.verdict, found.run.method, found.run.use) == (verdict, "", "replacement")
    assert np.isnan(found.saliency[0].estimate)
    assert not found.saliency[0].judged
    assert found.reliance[0].estimate == pytest.approx(0 if verdict == "symmetric" else 0.5, abs=0.02)


@pytest.mark.parametrize(
    ("function", "target", "verdict", "answer"),
    [
        (lambda windows: windows[:, 1] > 0.9, "auto", "symmetric", 0),
        # half of class 1 and of class 2 change
        (lambda windows: (windows[:, 1] > 0.5) * (1 + (windows[:, 0] > 0.5)), "auto", "biased", 2 / 3),
        # numbers that are not those of classes are scores
        (lambda windows: 500 * (windows[:, 0] + 2 * windows[:, 1] + windows[:, 2]), "sum", "symmetric", 0),
    ],
)
def test_functions_of_whole_numbers(function, target, verdict, answer):
    found = audit_function(lambda windows: function(windows).astype(np.int64), noise(depth=64), target=target)
    assert found.run.explained == ("score" if target == "sum" else "class numbers")
    assert (found.verdict, found.answer.estimate) == (verdict, pytest.approx(answer, abs=0.02))
    assert verdict == "symmetric" or found.reliance[0].estimate == -1


@pytest.mark.parametrize("options", [{"strategy": "uniform"}, {"strategy": "pretrained", "tie": "mirror"}])
def test_networks_that_are_fair_by_construction_are_symmetric(options):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    evenslice.neutralize(network, slices=3, mean=0.5, std=0.5, **options)
    found = audit_formula(network, noise(depth=30))
    assert decided(found) == ("symmetric", [])
    assert found.mismatch.high < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("make", ["twin", "symmetrized"])
def test_a_network_made_symmetric_is_so_after_59_windows_at_most(make):
    import timm

    network = timm.create_model("test_resnet", num_classes=2).eval()
    if make == "twin":
        evenslice.neutralize(network, slices=3, strategy="twin", mean=0.5, std=0.5)
    else:
        network = evenslice.symmetrize(network)
    found = audit_formula(network, noise(depth=200))
    assert decided(found) == ("symmetric", [])
    assert found.windows <= 59
    assert found.statistics.different < 0.05
    assert found.saliency[0].high == found.answer.high == found.mismatch.high == 0


@pytest.mark.parametrize(
    "kind", [pytest.param("compiled", marks=pytest.mark.slow), "linear", "three-dimensional"]
)
def test_networks_without_a_stem_that_can_be_found(kind):
    """They are not neutralized, only audited."""
    if kind == "compiled":
        network = torch.compile(nn.Conv2d(3, 2, 3, padding=1), backend="eager")
    elif kind == "linear":
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 3))
    else:
        inner = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU())
        network = Formula(lambda windows: inner(windows[:, None]).mean(2))
    found = audit_formula(network, noise(depth=20, size=16), tile=(16, 16))
    assert found.verdict == "biased"
