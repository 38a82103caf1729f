"""The chart of what an average gains against what it costs: places and intervals are those of the study and of costs.json."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import scripts

from evenslice.report.style import settings

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def drawn():
    """The study that has costs, its comparison and its chart."""
    costs = json.loads((STUDIES / "costs.json").read_text())["cuts"]
    with scripts.script("found_studies") as found, scripts.script("cost_figure") as script, settings():
        (study,) = [study for study in found.find_studies(STUDIES) if study.name == "cuts"]
        (comparison,) = study.results.comparisons
        yield comparison, costs, script.cost_figure(comparison, costs, study.results.baseline)


def test_each_arm_stands_at_its_cost_with_its_interval(drawn):
    comparison, costs, drawing = drawn
    (axes,) = drawing.figure.axes
    bars = {bar.get_label(): bar for bar in axes.containers}
    compared = [arm for arm in comparison.arms if arm.differences]
    assert sorted(bars) == sorted(arm.arm for arm in compared)
    for arm in compared:
        point, _, (line,) = bars[arm.arm]
        (place,), (height,) = point.get_data()
        assert place == costs["pass"][arm.arm]
        assert height == pytest.approx(arm.differences["dice"].estimate)
        (segment,) = line.get_segments()
        assert segment[:, 1] == pytest.approx([arm.differences["dice"].low, arm.differences["dice"].high])
        for mark in (point, line):
            assert axes.bbox.contains(*mark.get_transform().transform(segment)[0])  # it can be seen


def test_the_marks_of_arms_of_the_same_cost_do_not_hide_each_other(drawn):
    _, _, drawing = drawn
    (axes,) = drawing.figure.axes
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    places = sorted(
        {round(float(line.get_transform().transform(line.get_xydata())[0, 0]), 1) for line in marks}
    )
    assert len(places) == 5
    assert min(b - a for a, b in pairwise(places)) > 5  # pixels


def test_the_caption_names_the_command_that_measured_the_cost(drawn):
    _, costs, drawing = drawn
    assert f"`{costs['command']}`" in drawing.reading
