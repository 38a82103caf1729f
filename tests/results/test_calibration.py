"""A short run of benchmarks/calibration.py, whose long run is in docs/calibration.md."""

import calibration
import calibration_simulations as simulations
import numpy as np
import pytest
from kept import Cache

from evenslice.results.intervals import MeanFit
from evenslice.results.verdicts import BIASED_LEVEL, WITHIN_LEVEL, Decision, Evidence, judge


@pytest.mark.parametrize("stop", ["never", "in the middle", "early"])
@pytest.mark.parametrize("autocorrelation", [0.0, 0.8])
def test_intervals_and_verdicts_are_right_as_often_as_they_say(autocorrelation, stop):
    """With 600 audits the limits lie three standard errors outside those that are required."""
    found = simulations.rates(simulations.Setting(100, autocorrelation, stop), 600, seed=3)
    assert 0.90 < found["coverage"] < 0.99
    assert found["biased"] < 0.077
    assert found["balanced"] < 0.077
    assert (found["used"] < 90) == (stop != "never")


@pytest.mark.parametrize(("slices", "autocorrelation"), [(4, 0.8), (8, 0.5), (16, 0.8)])
def test_intervals_of_few_slices_cover_the_truth(slices, autocorrelation):
    """With 600 audits the limit lies three standard errors below the 93 % that are required."""
    assert simulations.rates(simulations.Setting(slices, autocorrelation), 600, seed=3)["coverage"] > 0.90


@pytest.mark.parametrize(("name", "slices"), [("answer", 12), ("answer", 100), ("use", 12)])
def test_answer_and_use_at_their_tolerances_are_rarely_found_within(name, slices):
    truth = {"answer": 0.05, "use": 0.01}[name]
    found = simulations.question_rates(simulations.Question(name, truth, slices, 0.5), 600, seed=3)
    assert found["coverage"] > 0.90
    assert found["balanced"] < 0.077
    assert found["biased"] < 0.077


@pytest.mark.parametrize(("slices", "present", "autocorrelation"), [(40, 0.5, 0.5), (100, 0.3, 0.8)])
def test_an_answer_on_uneven_foreground_is_rarely_found_within(slices, present, autocorrelation):
    """As many slices of equal foreground would need narrower intervals, which are wrong in 13 % of these audits."""
    question = simulations.Question("answer", 0.05, slices, autocorrelation, 1.0, present)
    found = simulations.question_rates(question, 600, seed=3)
    assert found["coverage"] > 0.90
    assert max(found["balanced"], found["biased"]) < 0.077
    assert found["found within"] > 0.5
    assert found["found beyond"] > 0.4


@pytest.mark.parametrize("at_tolerance", ["all", "class"])
def test_verdicts_of_whole_audits_are_rarely_wrong(at_tolerance):
    found = simulations.whole_rates(simulations.Whole(at_tolerance, 40, 0.5), 150, seed=3)
    assert max(found.values()) < 0.1


def test_the_benchmark_judges_as_the_audit_does():
    rng = np.random.default_rng(0)
    answer = Evidence(
        Decision("answer"), MeanFit(*one_column(0.0, 0.001), 1, np.zeros(1)), 0.05, (True,), 50, exact=False
    )
    seen = set()
    for _ in range(200):
        estimate = rng.normal(0, 0.06, size=2)
        scale = np.full((1, 2), rng.uniform(0.001, 0.03))
        fit = MeanFit(estimate, 50, scale, np.ones((1, 2)), 1, np.zeros(2))
        evidence = Evidence(Decision("attention"), fit, simulations.TOLERANCE, (True, True), 50, exact=False)
        # the answer is one more test, so three intervals hold simultaneously
        widths = fit.half_width(WITHIN_LEVEL)[None], fit.half_width(BIASED_LEVEL, 3)[None]
        audits = simulations.Audits(estimate[None], fit.half_width()[None], *widths, used=np.array([51]))
        biased, balanced = simulations.verdicts(audits, np.zeros(2))
        expected = "biased" if biased else "balanced" if balanced else "inconclusive"
        assert judge([evidence], answer, None)[0] == expected
        seen.add(expected)
    assert seen == {"biased", "balanced", "inconclusive"}


def one_column(estimate, scale):
    return np.array([estimate]), 50, np.array([[scale]]), np.ones((1, 1))


def test_finished_settings_are_kept_and_not_simulated_again(tmp_path, monkeypatch):
    file = tmp_path / "runs.json"
    table = calibration.few_table(calibration.Rates(20, 0, Cache(file)))
    assert table.count("\n") == 1 + len([*simulations.few_settings()])
    monkeypatch.setattr(calibration, "rates", None)
    assert calibration.few_table(calibration.Rates(20, 0, Cache(file))) == table
