"""A short run of benchmarks/calibration.py, whose long run is in docs/calibration.md, on a census of a planted network."""

from dataclasses import fields

import calibration
import numpy as np
import pytest
import torch
from formulas import alternating, audit_formula, two_classes

AUDITS = 60
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    """All windows of a stack whose brightness, and with it the answer and the reliance, differs from slice to slice."""
    rng = np.random.default_rng(0)
    volume = rng.random((302, 16, 16)) * rng.uniform(0.6, 1, (302, 1, 1))

    def log_odds(windows):
        return windows[:, 1] - 0.5 + 0.2 * torch.relu(alternating(windows) - 0.3)

    found = audit_formula(two_classes(log_odds), volume, min_windows=10**6, max_windows=10**6)
    assert (found.windows, found.run.stopped) == (300, "settled")
    path = tmp_path_factory.mktemp("censuses") / "planted.npz"
    np.savez(
        path, **{entry.name: getattr(found.measurements, entry.name) for entry in fields(found.measurements)}
    )
    return calibration.Census.load(path)


def test_intervals_cover_the_figures_of_the_census(census):
    found = calibration.coverage(census, AUDITS)
    covered = np.array([rate["covered"] for rate in found.values()])
    assert {name.split()[0] for name in found} == {"saliency", "reliance", "answer", "use"}
    assert covered.mean() > 0.92
    assert covered.min() > 0.83  # four standard errors below 95 %


def test_verdicts_are_those_of_the_census(census):
    found = calibration.verdicts(census, AUDITS)
    assert found["wrong"] <= 0.1
    assert found["windows"] < 300
    assert found["words"].get(found["right"], 0) > 0.9 * AUDITS
