"""The page of a study: its tables, charts, files and safety; test_browser.py looks at the page."""

import copy
import csv
import dataclasses
import json
import math
import re
import shutil
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from commands import call
from pages import HOSTILE, Page, plain, standing_alone
from synthetic import make_stress
from synthetic_study import ARMS, make_study

from evenslice.report import charts, html_of, pictures, study_tables as tables, style
from evenslice.results import StudyResults, StudySummary

pytestmark = pytest.mark.slow

FEW = {name: ARMS[name] for name in ("pretrained", "uniform", "random")}
FAILED = {
    "dataset": "Lucchi++",
    "architecture": "EfficientNet-Lite0 U-Net",
    "arm": "random",
    "seed": 7,
    "error": "RuntimeError: no luck, today",
}
FOLDED = {"pretrained": (-0.19, 0.0), "uniform": (-0.001, -0.03), "fair": (0.0, 0.01)}
SETS = [("Lucchi++", "net"), ("ISBI 2012", "net")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a study with its page, its charts and its tables."""
    comparisons = [("Lucchi++", "EfficientNet-Lite0 U-Net"), ("ISBI 2012", "VGG16 U-Net")]
    made = tmp_path_factory.mktemp("study")
    make_study(made, comparisons=comparisons, seeds=(0, 1), size=64, failed=[FAILED])
    draw(made)
    return made


@pytest.fixture(scope="module")
def results(folder):
    return StudyResults.load(folder)


@pytest.fixture(scope="module")
def pooled_folder(tmp_path_factory):
    primary = ("fair", "net", 0.005)
    folder = tmp_path_factory.mktemp("pooled") / "study"
    return make_study(
        folder, comparisons=SETS, arms=FOLDED, folds=(0, 1, 2), seeds=(0, 1), size=24, primary=primary
    )


@pytest.fixture(scope="module")
def pooled_results(pooled_folder):
    return StudyResults.load(pooled_folder)


def draw(folder):
    """Draw the page of a study, and return it."""
    assert call("report", folder) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def words(page):
    return " ".join(plain(" ".join(Page(page).text)).split())


def make(tmp_path, **options):
    """Make a small study and return its folder."""
    return make_study(tmp_path / "study", **{"arms": FEW, "seeds": (0, 1), "size": 32, **options})


def arm_of(results, name):
    return next(arm for arm in results.comparisons[0].arms if arm.arm == name)


def cells_of(table):
    """Return the cells of each column by arm."""
    return {row.label: dict(zip(table.columns[1:], map(plain, row.cells), strict=True)) for row in table.rows}


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Tables.


def test_rounding_does_not_hide_on_which_side_of_a_limit_a_figure_lies(pooled_results):
    summary = copy.deepcopy(pooled_results.document)
    for item in (*summary["comparisons"], *summary["pooled"]):
        uniform = item["arms"][1]
        uniform["figures"]["largest_bias"] = {"estimate": 0.0561, "low": 0.0498, "high": 0.0624}
        uniform["differences"]["dice"] = {"estimate": -0.0075, "low": -0.0096, "high": -0.0054}
        uniform["non_inferiority"] |= {"p": 0.0249, "holds": True}
    pooled, apart, *alone = tables.arm_tables(StudySummary.read(summary))
    assert cells_of(apart)["uniform"]["Lucchi++"] == "-0.0075 [-0.0096, -0.0054]"
    for table in (pooled, *alone):
        row = cells_of(table)["uniform"]
        assert row["Dice minus pretrained"] == "-0.0075 [-0.0096, -0.0054]"
        assert row["test"] == "non-inferior\np = 0.0249"
        assert row["largest |B|"] == "0.0561 [0.0498, 0.0624]"
    assert "-0.0075 [-0.0096, -0.0054]" in plain(html_of(summary))


def test_what_was_found_stands_first_and_one_seed_is_not_called_unknown(pooled_results, tmp_path):
    (primary,) = tables.findings(pooled_results)
    assert primary.startswith(
        "fair: largest pair bias 0 [0, 0], audits 12 symmetric; Dice +0.010 [0.004, 0.015] "
    )
    assert primary.endswith(" beside pretrained on these 2 data sets, non-inferior.")
    page = words(draw(make(tmp_path, seeds=(0,))))
    assert re.search(r"uniform: largest pair bias [0-9.]+, audits .+?; Dice .?[0-9.]+ beside", page), page[
        :300
    ]
    assert page.index("too few runs to test it") < page.index("runs done")


# All data sets.


def test_a_study_with_folds_begins_with_all_data_sets(pooled_folder, pooled_results):
    pooled, apart, first, _ = tables.arm_tables(pooled_results)
    assert (pooled.title, first.title) == ("2 of 2 data sets, net", "Lucchi++, net")
    assert "* Primary comparison, with a margin of 0.005" in pooled.note
    assert "Means over folds" in first.note
    assert "interim" not in pooled.note
    waiting = tables.arm_tables(dataclasses.replace(pooled_results, planned=40))
    assert all("every p is interim" in table.note for table in waiting if table.title != apart.title)
    assert (apart.title, apart.columns) == (
        "Dice minus pretrained, net",
        ("arm", "I²", "Lucchi++", "ISBI 2012"),
    )
    for name, cells in cells_of(apart).items():
        (arm,) = [arm for arm in pooled_results.pooled[0].arms if arm.arm == name]
        assert cells["I²"] == f"{arm.heterogeneity['dice']:.2f}".replace("0.00", "0")
        assert (
            cells["Lucchi++"]
            == {row.rstrip(" *"): each for row, each in cells_of(first).items()}[name][
                "Dice minus pretrained"
            ]
        )
    rows = cells_of(pooled)
    assert rows["uniform"]["test"].startswith("inferior\np ")
    assert rows["fair *"]["test"].startswith("non-inferior\np ")
    assert rows["fair *"]["superior?"].startswith("superior\np ")
    assert rows["fair *"]["p"] == "\N{EN DASH}"  # the primary comparison needs no adjustment
    assert rows["uniform"]["p"].startswith("p ")
    assert {row["folds x seeds"] for row in cells_of(first).values()} == {"3 x 2"}
    assert "folds x seeds" not in pooled.columns  # all arms have the same
    groups = tables.statistics_groups(pooled_results, pooled_results.pooled[0])
    labels = {row.label for group in groups for row in group.rows}
    assert {"loss, missing, both at ±1", "missing, both at ±1", "largest |B|"} <= labels
    text = words(draw(pooled_folder))
    assert text.index("2 of 2 data sets, net") < text.index("Lucchi++, net")
    assert "36 of 36 runs done: 2 data sets, 1 network, 3 arms, 3 folds and 2 seeds." in text


def test_too_few_replicates_and_missing_data_sets_are_admitted(pooled_results, tmp_path):
    few = StudyResults.load(make(tmp_path, comparisons=SETS, arms=FOLDED, folds=(0, 1), seeds=(0,)))
    (note, *_), (before, *_) = (
        [table.note for table in tables.arm_tables(one)] for one in (few, pooled_results)
    )
    assert "Fewer than 3 replicates in Lucchi++ and ISBI 2012" in note
    assert "Fewer than" not in before
    pooled = dataclasses.replace(pooled_results.pooled[0], missing=("EPFL",))
    table = tables.arm_tables(dataclasses.replace(pooled_results, pooled=(pooled,)))[0]
    assert table.title == "2 of 3 data sets, net"
    assert "so nothing is tested: EPFL." in table.note


def test_only_summaries_that_correct_for_the_overlap_of_folds_say_so(pooled_results):
    now = [table.note for table in tables.arm_tables(pooled_results) if "intervals" in table.note]
    assert len(now) == 3
    assert all("corrected for the overlap of folds (Nadeau and Bengio)" in note for note in now)
    old = copy.deepcopy(pooled_results.document)
    for item in old["comparisons"]:
        del item["folds"]
    assert "overlap" not in " ".join(table.note for table in tables.arm_tables(StudySummary.read(old)))


# The page.


def test_the_page_stands_alone_and_shows_everything(results, folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "script" not in standing_alone(page).tags
    text = words(page)
    for comparison in results.comparisons:
        assert comparison.title in text
        for arm in comparison.arms:
            for name in ("dice", "iou", "hd95", "absolute_bias", "asymmetry", "mirror_disagreement"):
                estimate = plain(f"{arm.metrics[name].estimate:.3f}")
                assert estimate in text or arm.metrics[name].estimate < 0.0005
    for said in ("24 of 25 runs done", "RuntimeError: no luck, today", "steps: 300", "2.9.0", "2 biased"):
        assert said in text
    assert page.count("<image id=") == 1  # the same blobs in both comparisons
    charts = re.findall(r'<div class="chart">.*?</div>', page, flags=re.DOTALL)
    assert len(charts) == page.count('<div class="chart"><svg role="img" aria-label="') == 3
    assert all(f"var(--audit-{index})" in "".join(charts) for index in range(len(ARMS)))
    assert draw(folder) == page
    assert len(page) < 500_000


def test_hostile_text_stays_text(tmp_path):
    failed = dict.fromkeys(("dataset", "architecture", "arm", "error"), HOSTILE) | {"seed": 3}
    arms = {HOSTILE: (-0.2, 0.0), "=1+1": (0.0, 0.01)}
    folder = make(tmp_path, comparisons=[(HOSTILE, HOSTILE)], arms=arms, baseline=HOSTILE, failed=[failed])
    circumstances = {"versions": {HOSTILE: HOSTILE}, "machine": [HOSTILE], "created": HOSTILE}
    for path in folder.glob("runs/*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | circumstances))
    (folder / "config.yaml").write_text(HOSTILE)
    parsed = Page(draw(folder))
    assert not {"script", "img"} & set(parsed.tags)
    assert "{{ 7*7 }}" in " ".join(parsed.text)
    for svg in (folder / "figures").glob("*.svg"):
        ET.parse(svg)  # noqa: S314 - our own file
    for table in (folder / "tables").iterdir():
        assert not [cell for row in read(table) for cell in row.values() if cell.startswith(("=", "@"))]


def test_without_runs_or_one_of_the_baseline_there_is_nothing_to_compare(tmp_path):
    nothing = Page(draw(make(tmp_path / "nothing", comparisons=(), failed=[FAILED])))
    assert "0 of 1 run done, 1 failed." in " ".join(" ".join(nothing.text).split())
    assert "svg" not in nothing.tags
    arms = {"uniform": (0.0, 0.0), "center": (0.01, 0.0)}
    text = words(draw(make(tmp_path, slices=1, arms=arms)))
    assert "No arm can be compared with pretrained" in text
    assert "minus" not in text


def test_what_was_not_logged_is_not_drawn(tmp_path):
    folder = make(tmp_path)
    for pattern in ("config.yaml", "runs/*/result.json", "runs/*/example.npz", "runs/*/log/metrics.csv"):
        for path in folder.glob(pattern):
            path.unlink()
    assert not {"learning", "examples", "stress"} & set(Page(draw(folder)).ids)
    assert [path.name for path in (folder / "figures").iterdir()] == ["forest.svg"]


# Charts.


@pytest.mark.parametrize("loss", [0.005, 0.6])
def test_no_result_lies_beyond_its_axis(tmp_path, loss):
    """Neither means nor the ends of intervals, nor a margin; two seeds may have an interval from -1 to 1."""
    results = StudyResults.load(make(tmp_path, arms=FEW | {"random": (0.7, -loss)}))
    for axes in charts.forest_figure(results).figure.axes:
        low, high = axes.get_xlim()
        values = np.concatenate([np.asarray(line.get_xdata(), float) for line in axes.lines])
        known = values[np.isfinite(values)]
        assert ((low <= known) & (known <= high)).all()


def test_the_forest_shows_means_and_margins_of_each_block(pooled_results):
    with style.settings():
        figure = charts.forest_figure(pooled_results).figure
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    assert titles == ["2 of 2 data sets, net", "Lucchi++, net", "ISBI 2012, net"]
    scores, biases = figure.axes[:2]
    margins = [line.get_xdata()[0] for line in scores.lines if line.get_linestyle() == "--"]
    assert margins == [-0.01, -0.005]
    means = [arm.metrics["largest_bias"].estimate for arm in pooled_results.pooled[0].arms]
    drawn = [line.get_xdata()[0] for line in biases.lines if line.get_marker() not in {"None", ""}]
    np.testing.assert_allclose(drawn, means)


def test_the_bias_is_followed_during_training(results, tmp_path):
    drawing = charts.learning_figure(results)
    shares = [results.runs[0].curves[f"share_{k}"] for k in (-1, 1)]
    bias = abs(shares[1] - shares[0]) / (shares[0] + shares[1])
    thin = next(line for line in drawing.figure.axes[1].lines if line.get_linewidth() < 1)
    np.testing.assert_allclose(thin.get_ydata(), bias[np.isfinite(bias)])
    folder = make(tmp_path)
    for path in folder.glob("runs/*/log/metrics.csv"):
        path.write_text(re.sub("validation_dice", "another", path.read_text()))
    figure = charts.learning_figure(StudyResults.load(folder)).figure
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "largest pair bias"]


# What disturbed slices cost.


def losses(before, after, **options):
    return make_stress(before, after, kinds=("missing", "blank"), **options)


def test_the_chart_shows_mean_losses_before_and_after():
    items = [
        charts.StressItem("one", 0, (losses(0.3, 0.1), losses(0.1, math.nan)), "a"),
        charts.StressItem("two", 1, (losses(0.05, -0.02),), "b"),
    ]
    with style.settings():
        drawing = charts.stress_figure(items)
    ends = [
        [tuple(np.round(line.get_xdata(), 6)) for line in axes.lines if len(line.get_xdata()) == 2][:2]
        for axes in drawing.figure.axes
    ]
    assert ends == [[(0.2, 0.1)] * 2, [(0.05, -0.02)] * 2]
    assert [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()] == ["missing", "blank"]
    assert [axes.get_title(loc="left") for axes in drawing.figure.axes] == ["a", "b"]
    agreement = charts.stress_figure(
        [charts.StressItem("one", 0, (losses(0.3, 0.1, reference="intact answer"),))]
    )
    assert agreement.reading.startswith("Agreement with the intact answer lost")


# Examples.


def test_outlines_tell_labels_from_predictions(results):
    labels, predicted = np.zeros((2, 192, 192), np.uint8)
    labels[40:80, 40:80] = 1
    predicted[40:80, 40:100] = 1
    parts = {"image": np.zeros_like(labels), "labels": labels, "predicted": predicted}
    layer = pictures.outlines(dataclasses.replace(results.runs[0].example, **parts))

    def colour(y, x):
        return tuple(layer[y, x, :3].tolist()) if layer[y, x, 3] else None

    assert colour(60, 40) == colour(60, 39) == pictures.BOTH
    assert (colour(60, 80), colour(60, 99)) == (pictures.LABELLED, pictures.PREDICTED)
    assert colour(60, 60) is colour(10, 10) is None


# Files.


def test_charts_and_tables_lie_beside_the_page(results, folder):
    names = {kind: {path.name for path in (folder / kind).iterdir()} for kind in ("figures", "tables")}
    assert names == {
        "figures": {"forest.svg", "learning.svg", "stress.svg"},
        "tables": {"arms.csv", "pooled.csv"},
    }
    arms, arm = read(folder / "tables" / "arms.csv"), arm_of(results, "uniform")
    chosen = [
        row for row in arms if (row["dataset"], row["arm"], row["figure"]) == ("Lucchi++", "uniform", "dice")
    ]
    assert [(row["kind"], float(row["estimate"]), float(row["low"])) for row in chosen] == [
        ("mean", arm.metrics["dice"].estimate, arm.metrics["dice"].low),
        ("difference", arm.differences["dice"].estimate, arm.differences["dice"].low),
    ]
    others = {row["figure"] for row in arms if row["arm"] == "uniform" and row["kind"] != "mean"}
    assert {"bias_removed", "dice_not_inferior"} < others


# The command.


def test_the_report_command_draws_the_page_of_a_study_anew(tmp_path, capsys):
    folder = make(tmp_path)
    assert Page(draw(folder)).ids
    printed = capsys.readouterr().out
    assert "Lucchi++, EfficientNet-Lite0 U-Net" in printed
    assert "report.html" in printed.replace("\n", "")  # long paths are wrapped
    assert all(
        len(line) <= 80 for line in printed.splitlines() if not line.startswith(("results: ", "report: "))
    )
    shutil.rmtree(folder / "figures")
    assert call("report", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "summary.json").read_text())
    assert (folder / "figures" / "forest.svg").exists()
