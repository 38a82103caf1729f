"""What is explained and compared does not change where the answer does not."""

import numpy as np
import pytest
import torch
from formulas import Formula, audit_formula, decided, difference, noise, two_classes
from hypothesis import given, settings, strategies as st
from torch import nn

import evenslice

AXIS = {"saliency": 2, "reliance": 2}  # of the classes; else 1


def network(classes, scale=2.0):
    """A small network, neither linear nor symmetric."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, classes, 1), Formula(lambda z: scale * z)
    )


def after(model, function):
    return Formula(lambda windows: function(model(windows)))


def rows(function, *, method="gradient"):
    """Measure a few windows."""
    return audit_formula(function, noise(depth=5), method=method).measurements


def assert_equal_rows(found, expected, classes=None):
    """Compare measurements up to rounding; column i of ``found`` is class ``classes[i]`` of ``expected``."""
    columns = slice(None) if classes is None else list(classes)
    groups = slice(None) if classes is None else [0, *(number + 1 for number in classes)]
    for name in ("pixels", "changed", "union", "explained", "mismatch", "outer", "saliency", "reliance"):
        wanted = np.moveaxis(getattr(expected, name), AXIS.get(name, 1), 0)
        wanted = wanted[columns if name in ("pixels", "changed", "union") else groups]
        values = np.moveaxis(getattr(found, name), AXIS.get(name, 1), 0)
        np.testing.assert_allclose(values, wanted, rtol=2e-3, atol=2e-4, err_msg=name)


def figures(found):
    """All figures of an audit, those of classes by the part of the pixels that they have."""
    statistics = found.statistics
    parts = [statistics, *sorted(statistics.classes, key=lambda item: item.pixels)]
    return [
        figure.estimate
        for part in parts
        for figure in (*part.pairs, *part.reliance, part.answer_change, part.mirror_mismatch)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradient", "integrated_gradients"])
@given(order=st.permutations(range(3)))
@settings(max_examples=3)
def test_the_numbers_of_classes_do_not_matter(method, order):
    model = network(3)
    expected = rows(model, method=method)
    assert_equal_rows(rows(after(model, lambda z: z[:, order]), method=method), expected, order)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradient", "occlusion"])
@given(constant=st.floats(-50, 50), offset=st.sampled_from([0, 1, 2]), factor=st.floats(-20, 20))
@settings(max_examples=4)
def test_a_term_of_all_logits_does_not_matter(method, constant, offset, factor):
    """Softmax does not see it, whether it is a number or a slice."""
    model, expected = network(3), rows(network(3), method=method)
    found = rows(
        lambda windows: model(windows) + constant + factor * windows[:, offset, None] ** 2, method=method
    )
    assert_equal_rows(found, expected)


def test_a_lesion_may_be_class_0_or_1():
    def lesion(windows):
        return 8 * (windows[:, 1] - 0.85) + windows[:, 0] - 0.5

    one, other = (audit_formula(two_classes(part)) for part in (lesion, lambda windows: -lesion(windows)))
    assert decided(one)[1][-1] == ("answer", 1, None)
    assert decided(other)[1][-1] == ("answer", 0, None)
    assert one.answer.estimate == pytest.approx(0.246, abs=0.02)
    np.testing.assert_allclose(figures(one), figures(other), rtol=1e-4, atol=1e-6)


def test_a_margin_that_reads_one_side_is_not_hidden_by_a_term_of_all_logits():
    unfair = two_classes(lambda windows: windows[:, 0] - 0.5)
    found = audit_formula(lambda windows: unfair(windows) + 1000 * (windows[:, :1] + windows[:, 2:]))
    assert found.verdict == "biased"
    assert {item.question for item in found.statistics.decided_by} == {"saliency", "reliance", "answer"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "head", "assumed"),
    [
        (3, lambda z: z.softmax(1), False),
        (3, lambda z: z.log_softmax(1), None),
        (3, lambda z: z.exp() / z.exp().sum(1, keepdim=True), False),
        (1, torch.sigmoid, False),
        (2, torch.sigmoid, False),
    ],
)
def test_heads_give_the_figures_of_the_logits_before_them(classes, head, assumed):
    model, volume = network(classes), noise(depth=12)
    logits = audit_formula(model, volume, **({"overlapping": True} if classes == 2 else {}))
    found = audit_formula(after(model, head), volume)
    np.testing.assert_allclose(figures(found), figures(logits), rtol=1e-4, atol=1e-5)
    assert found.run.explained == ("channel" if classes == 2 else "log-odds")
    assert not found.run.clamped
    assert assumed is None or found.run.assumed == assumed


@pytest.mark.parametrize(("scale", "clamped"), [(2.0, 0.0), (200.0, 0.5)])
def test_a_black_box_may_return_probabilities(scale, clamped):
    model = network(3, scale).eval()

    def function(head):
        @torch.no_grad()
        def run(windows):
            return head(model(torch.from_numpy(windows))).numpy()

        return evenslice.audit(
            run,
            noise(depth=12),
            slices=3,
            reading=evenslice.Reading(intensity=(0, 1)),
            compute=evenslice.Compute(progress=False),
        )

    logits, found = function(lambda z: z), function(lambda z: z.softmax(1))
    assert (logits.run.assumed, found.run.assumed) == (True, False)
    assert found.run.clamped == pytest.approx(clamped, abs=0.3 if clamped else 0)
    assert found.answer.estimate == logits.answer.estimate
    if not clamped:
        np.testing.assert_allclose(figures(found), figures(logits), rtol=1e-4, atol=1e-5)


def channels(windows):
    """Three logits that may be above 0 at once; the first reads the slice before, the others are fair."""
    before, middle, after = windows.unbind(1)
    return torch.stack([before - 0.5, middle - 0.6, before + after - 0.4], dim=1)


@pytest.mark.parametrize("told", ["by its sigmoids", "by the user"])
def test_channels_that_overlap_are_judged_each_by_itself(told):
    if told == "by the user":
        found = audit_formula(channels, overlapping=True)
    else:
        found = audit_formula(lambda windows: torch.sigmoid(channels(windows)))
    assert decided(found) == ("biased", [("saliency", 0, 1), ("reliance", 0, 1), ("answer", 0, None)])
    assert (found.run.explained, found.run.assumed) == ("channel", False)
    assert np.isnan(found.saliency[0].estimate)  # there is no figure over all
    assert np.isnan(found.mismatch.estimate)
    first, *others = found.statistics.classes
    assert (first.pairs[0].estimate, first.reliance[0].estimate) == (-1, -1)
    assert [item.pairs[0].estimate for item in others] == pytest.approx([0, 0], abs=1e-6)
    assert [item.answer_change.estimate for item in others] == [0, 0]


def test_channels_are_assumed_to_exclude_each_other_and_that_is_said():
    plain, stated = (
        audit_formula(channels, noise(depth=12), **more) for more in ({}, {"overlapping": False})
    )
    assert (plain.run.explained, plain.run.assumed, stated.run.assumed) == ("log-odds", True, False)
    assert figures(plain) == figures(stated)


def test_wrapped_networks_with_a_record_say_that_their_input_is_scaled():
    """A wrapper that scales its input itself around a network with a record has it scaled twice."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    evenslice.neutralize(inner, slices=3, strategy="pretrained", mean=0.4, std=0.2)

    class Scaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, windows):
            return self.inner((windows - 0.4) / 0.2)

    options = {"volume": noise(depth=12)}
    sources = [
        audit_formula(model, **options).run.scaling["source"]
        for model in (inner, Scaling(), nn.Conv2d(3, 2, 1), lambda w: difference(w)[:, None])
    ]
    assert sources == ["recorded", "recorded on a part", "assumed", "assumed"]
    scaling = audit_formula(Scaling(), **options).run.scaling
    assert (scaling["mean"], scaling["std"]) == ([pytest.approx(0.4)], [pytest.approx(0.2)])
