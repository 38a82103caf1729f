"""A short run of benchmarks/calibration.py, whose long run is in docs/statistics.md."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from evenslice.results import asymmetry
from evenslice.results.intervals import MeanFit


@pytest.fixture(scope="module")
def calibration():
    path = Path(__file__).parents[2] / "benchmarks" / "calibration.py"
    specification = importlib.util.spec_from_file_location("calibration", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["calibration"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["calibration"]


@pytest.mark.parametrize("stop", ["never", "in the middle", "early"])
@pytest.mark.parametrize("autocorrelation", [0.0, 0.8])
def test_intervals_and_verdicts_are_right_as_often_as_they_say(calibration, autocorrelation, stop):
    """With 600 audits the limits lie three standard errors outside those that are required."""
    found = calibration.rates(calibration.Setting(100, autocorrelation, stop), 600, seed=3)
    assert 0.90 < found["coverage"] < 0.99
    assert found["biased"] < 0.077
    assert found["symmetric"] < 0.077
    assert (found["used"] < 90) == (stop != "never")


def test_the_benchmark_judges_as_the_audit_does(calibration):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        estimate = rng.normal(0, 0.06, size=2)
        scale = np.full((1, 2), rng.uniform(0.001, 0.03))
        fit = MeanFit(estimate, 50, scale, np.ones((1, 2)), 1, np.zeros(2))
        widths = [
            fit.half_width(level, 2)[None] for level in (asymmetry.SYMMETRIC_LEVEL, asymmetry.BIASED_LEVEL)
        ]
        audits = calibration.Audits(estimate[None], fit.half_width()[None], *widths, used=np.array([51]))
        biased, symmetric = calibration.verdicts(audits, np.zeros(2))
        expected = "biased" if biased else "symmetric" if symmetric else "inconclusive"
        assert asymmetry._verdict(fit, calibration.TOLERANCE) == expected
        seen.add(expected)
    assert seen == {"biased", "symmetric", "inconclusive"}
