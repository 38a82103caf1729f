"""The chart of what disturbed slices cost, and its place in the page of a study."""

import dataclasses
import json
import math

import pytest
from evenslice.report.study.stress import stress_chart
from matplotlib.patches import Rectangle
from synthetic_study import ARMS, make_study

from evenslice._core.errors import ConfigError
from evenslice.report.files import write_study_report
from evenslice.report.stress_chart import StressItem, stress_figure
from evenslice.report.stress_tables import stress_group
from evenslice.report.style import settings
from evenslice.results.intervals import Interval
from evenslice.results.stress import BriefLoss, StressSummary
from evenslice.results.studies import load_study

FEW = {name: ARMS[name] for name in ("pretrained", "uniform")}
WIDTH = 420
"""Pixels of a narrow window."""


def summary(before, after, kinds=("missing", "blank"), reference="labels"):
    losses = [
        BriefLoss(kind, 1, 0.9 - before, 0.9 - after, 0.5, Interval(before - after, math.nan, math.nan))
        for kind in kinds
    ]
    return StressSummary(reference, 9, 0.9, 0.8, tuple(losses))


def bars(figure):
    """Return the bars of each axes, from above."""
    return [
        [
            round(bar.get_width(), 6)
            for bar in sorted(axes.patches, key=lambda bar: bar.get_y())
            if isinstance(bar, Rectangle)
        ]
        for axes in figure.axes
    ]


def test_the_bars_are_the_losses_before_and_after():
    items = [StressItem("one", 0, (summary(0.3, 0.1),)), StressItem("two", 1, (summary(0.05, -0.02),))]
    drawing = stress_figure(items)
    assert bars(drawing.figure) == [[0.3, 0.1, 0.05, -0.02] * 2]
    assert [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()] == ["missing", "blank"]
    assert "slice is missing (the middle slice in its place) or blank. Where a" in drawing.reading
    assert drawing.name == "stress"
    assert "means over" not in drawing.reading
    assert drawing.reading.endswith("With intact slices, the Dice is 0.900 (one) and 0.900 (two).")
    assert stress_figure(items[:1]).reading.endswith("With intact slices, the Dice is 0.900.")


def test_as_many_arms_as_there_are_look_different():
    items = [StressItem(f"arm {index}", index, (summary(0.3, 0.1),)) for index in range(17)]
    drawing = stress_figure(items)
    (legend,) = drawing.figure.legends
    looks = {(patch.get_facecolor(), patch.get_hatch()) for patch in legend.get_patches()[: len(items)]}
    assert len(looks) == len(items)
    drawn = {(bar.get_facecolor()[:3], bar.get_hatch()) for bar in drawing.figure.axes[0].patches}
    assert drawn == {(colour[:3], hatch) for colour, hatch in looks}


def test_seeds_are_averaged_and_shown():
    drawing = stress_figure([StressItem("one", 0, (summary(0.3, 0.1), summary(0.1, math.nan)))])
    assert bars(drawing.figure) == [[0.2, 0.1, 0.2, 0.1]]
    assert "means over runs" in drawing.reading
    assert "intact slices, the" not in drawing.reading
    assert [len(line.get_xdata()) for line in drawing.figure.axes[0].lines[:2]] == [2, 2]


def test_blocks_have_axes_of_their_own():
    items = [StressItem("one", 0, (summary(0.3, 0.1),), block) for block in ("a", "b")]
    drawing = stress_figure(items)
    figure = drawing.figure
    assert "intact slices, the" not in drawing.reading
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == ["a", "b"]


def test_agreement_is_named_where_there_were_no_labels():
    drawing = stress_figure([StressItem("one", 0, (summary(0.3, 0.1, reference="intact answer"),))])
    assert drawing.reading.startswith("Agreement with the intact answer lost")
    assert "the Dice is" not in drawing.reading


def test_where_there_is_nothing_to_lose_it_is_said():
    unknown = Interval(math.nan, math.nan, math.nan)
    losses = (BriefLoss("missing", 1, math.nan, math.nan, math.nan, unknown),)
    empty = StressItem("empty", 0, (StressSummary("labels", 9, math.nan, math.nan, losses),))
    full = StressItem("full", 1, (summary(0.3, 0.1),))
    nothing = "no class but 0 was found, so there is nothing to lose."
    assert stress_figure([empty]).reading.endswith(f" In these slices, {nothing}")
    assert f" In the slices of empty, {nothing}" in stress_figure([empty, full]).reading
    assert nothing not in stress_figure([full]).reading


def test_what_is_not_drawn_is_said():
    near, far = (
        StressSummary(
            "labels", 9, 0.9, 0.8, (BriefLoss("missing", k, 0.6, 0.8, 0.5, Interval(0.2, 0.1, 0.3)),)
        )
        for k in (3, 4)
    )
    assert "not drawn" not in stress_figure([StressItem("one", 0, (near,))]).reading
    drawing = stress_figure([StressItem("one", 0, (near,)), StressItem("two", 1, (far,))])
    assert drawing.reading.endswith("Slices more than 3 away from the middle are not drawn.")


@pytest.mark.parametrize("count", [1, 6])
def test_it_is_legible_on_a_telephone(count):
    kinds = ("missing", "blank", "noisy", "shifted")
    items = [
        StressItem(f"a rather long name of arm {i}", i, (summary(0.3, 0.1, kinds),)) for i in range(count)
    ]
    with settings():
        figure = stress_figure(items).figure
        figure.draw_without_rendering()
        page = figure.bbox
        shrunk = WIDTH / (figure.get_size_inches()[0] * 96)
        for text in [*figure.axes[0].get_yticklabels(), *figure.legends[0].get_texts()]:
            assert text.get_fontsize() * 96 / 72 * shrunk >= 9
            box = text.get_window_extent()
            assert page.x0 <= box.x0 < box.x1 <= page.x1
            assert page.y0 <= box.y0 < box.y1 <= page.y1


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study", arms=FEW, seeds=(0, 1), size=32, slices=5)


def test_the_page_of_a_study_shows_chart_and_table(study):
    results = load_study(study)
    write_study_report(results, study / "report.html")
    page = (study / "report.html").read_text(encoding="utf-8")
    assert '<section id="stress">' in page
    assert "What a disturbed slice costs" in page
    assert (study / "figures" / "stress.svg").is_file()
    group = stress_group(results, results.comparisons[0])
    assert len(group.rows) == 4 * 2 * 4 + 1
    assert "0 if both are worth the same." in group.meaning  # to a fair network they need not be
    row = next(row for row in group.rows if row.label == "missing, asymmetry at ±1")
    found = [run.stress.losses[0].asymmetry.estimate for run in results.runs if run.arm == "pretrained"]
    assert row.cells[0].split(" ")[0] == f"{sum(found) / 2:.3f}"


def test_a_study_of_before_has_neither(study):
    for path in study.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        del result["stress"]
        path.write_text(json.dumps(result))
    results = load_study(study)
    assert stress_chart(results) is None
    assert not stress_group(results, results.comparisons[0]).rows
    write_study_report(results, study / "report.html")
    assert '<section id="stress">' not in (study / "report.html").read_text(encoding="utf-8")


def test_runs_that_measured_different_kinds_stand_together(study):
    results = load_study(study)
    run = results.runs[0]
    fewer = dataclasses.replace(run, stress=dataclasses.replace(run.stress, losses=run.stress.losses[:1]))
    mixed = dataclasses.replace(results, runs=(results.runs[1], fewer, *results.runs[2:]))
    assert stress_group(mixed, mixed.comparisons[0]).rows
    assert stress_chart(mixed) is not None


@pytest.mark.parametrize(
    "stress",
    [
        5,
        [],
        {"losses": 3},
        {"losses": [None] * 1000},
        {"reference": "labels", "slices": 1, "intact": 0.5, "reversed": 0.5, "losses": [{"kind": 4}]},
        {"reference": "labels", "slices": 1, "intact": 1e30, "reversed": 0.5, "losses": []},
    ],
)
def test_a_damaged_file_is_named(study, stress):
    path = next(iter(study.glob("runs/*/result.json")))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stress": stress}))
    with pytest.raises(ConfigError, match=r"result.json: cannot be read as part of a study"):
        load_study(study)


def test_many_blocks_do_not_make_the_figure_endless():
    items = [
        StressItem(f"arm {arm}", arm, (summary(0.3, 0.1),), f"block {block}")
        for block in range(40)
        for arm in range(16)
    ]
    with settings():
        assert stress_figure(items).figure.get_size_inches()[1] < 200
