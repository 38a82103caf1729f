"""The page of a study: its words, numbers, files and safety; test_study_report_browser.py looks at the page."""

import csv
import dataclasses
import json
import math
import re
import shutil
import sys
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from pages import HOSTILE, Page, plain
from PIL import Image
from synthetic_study import ARMS, make_study

from evenslice import cli
from evenslice._core.errors import ConfigError, MissingExtraError, OutputError
from evenslice.cli.study_tables import study_tables
from evenslice.report.base.style import settings
from evenslice.report.files import STUDY_FILES, write_study_report
from evenslice.report.study.charts import forest_figure
from evenslice.report.study.curves import learning_figure, shares_figure
from evenslice.report.study.page import draw_charts, render
from evenslice.report.study.pictures import (
    BOTH,
    LABELLED,
    PREDICTED,
    ArmPicture,
    ExamplePanel,
    around_foreground,
    example_figure,
    example_panels,
    outlines,
)
from evenslice.report.study.tables import figure_groups
from evenslice.report.study.wording import (
    arm_sentence,
    comparison_sentence,
    difference,
    judgement,
    removal,
    removed_part,
    study_headline,
    verdicts,
)
from evenslice.results.intervals import Interval
from evenslice.results.studies import ExampleSlice, load_study

FEW = {name: ARMS[name] for name in ("pretrained", "uniform", "random")}
NAN = Interval(math.nan, math.nan, math.nan)
FAILED = {
    "dataset": "Lucchi++",
    "architecture": "EfficientNet-Lite0 U-Net",
    "arm": "random",
    "seed": 7,
    "error": "RuntimeError: no luck, today",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    comparisons = [("Lucchi++", "EfficientNet-Lite0 U-Net"), ("ISBI 2012", "VGG16 U-Net")]
    folder = tmp_path_factory.mktemp("study")
    return load_study(make_study(folder, comparisons=comparisons, seeds=(0, 1), size=64, failed=[FAILED]))


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    """The folder of the page, its figures and its tables."""
    return write_study_report(results, tmp_path_factory.mktemp("page") / "report.html").parent


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def words(page):
    return " ".join(plain(" ".join(Page(page).text)).split())


def draw(results):
    """Return the page alone."""
    with settings():
        return render(results, draw_charts(results))


def make(tmp_path, **options):
    """Make a small study and return its folder."""
    return make_study(tmp_path / "study", **{"arms": FEW, "seeds": (0, 1), "size": 32, **options})


def arm_of(results, name):
    return next(arm for arm in results.comparisons[0].arms if arm.arm == name)


# Words.


def test_the_sentence_of_an_arm(results):
    uniform = dataclasses.replace(
        arm_of(results, "uniform"),
        bias_removed=Interval(0.984, 0.961, 1.0),
        differences={"dice": Interval(0.0021, -0.0044, 0.0086)},
        holds=True,
    )
    assert plain(arm_sentence(uniform, "pretrained")) == (
        "removes 98 % [96 %, 100 %] of the largest pair bias; Dice differs by +0.002 [-0.004, 0.009] and is not inferior "
        "(margin 0.01)."
    )
    lost = dataclasses.replace(uniform, holds=False, differences={"dice": Interval(-0.08, -0.09, -0.07)})
    assert "differs by -0.080 [-0.090, -0.070] and is inferior" in plain(arm_sentence(lost, "pretrained"))
    open_ = dataclasses.replace(uniform, holds=False, differences={"dice": Interval(0.0, -0.02, 0.02)})
    assert "differs by 0.000 [-0.020, 0.020]; whether it is inferior is not settled (margin 0.01)." in plain(
        arm_sentence(open_, "pretrained")
    )
    single = dataclasses.replace(
        uniform, holds=None, differences={"dice": Interval(0.003, math.nan, math.nan)}
    )
    assert plain(arm_sentence(single, "pretrained")).endswith(
        "Dice differs by +0.003; one seed in common is too few for a test."
    )
    equal = dataclasses.replace(uniform, holds=None, differences={"dice": Interval(0.0, 0.0, 0.0)})
    assert plain(arm_sentence(equal, "pretrained")).endswith(
        "Dice differs by 0.000 [0.000, 0.000]; all differences are equal, so there is no test."
    )
    nothing = dataclasses.replace(uniform, differences={"dice": NAN})
    assert arm_sentence(nothing, "pretrained").endswith("there is no Dice to compare.")
    alone = dataclasses.replace(uniform, differences={})
    assert arm_sentence(alone, "pretrained").startswith("has no seed in common with pretrained")
    assert arm_sentence(uniform, "uniform").startswith("is the baseline: its largest pair bias is ")


def test_judgements_follow_the_interval(results):
    arm = arm_of(results, "uniform")
    for holds, high, expected in [
        (True, 0.02, "not inferior"),
        (False, 0.0, "not settled"),
        (False, -0.01, "not settled"),
        (False, -0.011, "inferior"),
        (None, math.nan, "no test"),
    ]:
        changed = dataclasses.replace(arm, holds=holds, differences={"dice": Interval(-0.02, -0.03, high)})
        assert judgement(changed) == expected


def test_verdicts_are_counted_from_biased_to_symmetric():
    seen = ["symmetric", "balanced", "biased", "symmetric"]
    assert verdicts(seen) == "1 biased, 1 balanced, 2 symmetric"


def test_what_is_removed_is_not_rounded_up():
    texts = {0.899: "89 %", 0.9: "90 %", 0.994: "more than 99 %", 1.0: "100 %", 0.0: "0 %", -0.3: "-30 %"}
    texts |= {-1e6: "below -1000 %"}
    for removed, text in texts.items():
        assert plain(removed_part(Interval(removed, removed, removed))) == f"{text} [{text}, {text}]"
    assert removed_part(NAN) == "\N{EN DASH}"
    assert removal(Interval(-1e6, -2e6, -1e5)).startswith("has more than 1000 times [more than 1000, ")


def test_the_terminal_does_not_round_up_what_is_removed_either(results):
    def shown(estimate, low, high):
        item = dict(results.summary["comparisons"][0])
        arm = next(arm for arm in item["arms"] if "bias_removed" in arm)
        item["arms"] = [{**arm, "bias_removed": {"estimate": estimate, "low": low, "high": high}}]
        summary = {**results.summary, "pooled": [], "comparisons": [item]}
        (cell,) = next(study_tables(summary)).columns[-1].cells
        return cell

    assert shown(0.998, 0.989, 1.0) == ">99%\n[98%, 100%]"
    assert shown(0.0004, -0.3, 0.58) == "<0.1%\n[-30%, 58%]"
    assert shown(-12, -13, -4.2) == "<-1000%\n[<-1000%, -420%]"
    assert shown(None, None, None) == ""


def test_what_is_removed_is_said_as_far_as_the_interval_settles_it():
    assert removal(Interval(0.95, -0.1, 1.0)).startswith(
        "leaves open whether any of the largest pair bias is"
    )
    assert removal(Interval(-0.4, -0.9, 0.1)).startswith("leaves open whether")
    assert removal(Interval(-0.4, -0.9, -0.1)).startswith("adds ")
    assert removal(Interval(0.4, 0.1, 0.7)).startswith("removes ")
    assert removal(NAN) == "is not known to remove any bias"


def test_the_sentence_of_a_comparison(results):
    def said(*arms):
        comparison = dataclasses.replace(results.comparisons[0], arms=arms)
        return plain(comparison_sentence(comparison, "pretrained"))

    def arm(name, removed, holds, high=0.0, low=None):
        return dataclasses.replace(
            arm_of(results, "uniform"),
            arm=name,
            bias_removed=Interval(removed, removed if low is None else low, min(1.0, removed + 0.01)),
            holds=holds,
            differences={"dice": Interval(-0.02, -0.03, high), "largest_bias": Interval(-0.2, -0.21, -0.19)},
        )

    base = arm_of(results, "pretrained")
    assert said(base, arm("a", 0.95, True), arm("b", 0.99, True), arm("c", 0.92, False, -0.02)) == (
        "a and b remove at least 90 % of the largest pair bias of pretrained and are not inferior in Dice; c "
        "removes as much "
        "but is inferior in Dice (margin 0.01)."
    )
    assert said(base, arm("a", 0.95, False), arm("b", 0.5, True)) == (
        "a removes at least 90 % of the largest pair bias of pretrained, but whether it is inferior in Dice "
        "is not settled "
        "(margin 0.01)."
    )
    few = dataclasses.replace(arm("a", 0.95, None), differences={"dice": NAN, "largest_bias": NAN})
    assert said(base, few).endswith("pretrained, but one seed is too few to test Dice.")
    assert said(base, arm("a", 0.95, None)).endswith(
        "pretrained, but all differences in Dice are equal, which cannot be tested."
    )
    assert said(base, arm("a", 0.5, True)).startswith("No arm removes at least 90 %")
    # The mean alone is no reason to name an arm.
    assert said(base, arm("a", 0.95, True, low=0.85)).startswith("No arm is shown to remove at least 90 %")
    none = dataclasses.replace(arm("a", 0.95, True), bias_removed=NAN)
    assert said(base, none).startswith("pretrained shows no bias to be removed: its largest pair bias")
    one = Interval(-0.2, math.nan, math.nan)
    single = dataclasses.replace(none, differences={"dice": NAN, "largest_bias": one})
    assert said(base, single) == "One seed in common is too few to tell what becomes of the bias."
    without_pairs = dataclasses.replace(none, differences={"dice": NAN, "largest_bias": NAN})
    assert said(base, without_pairs) == "There is no largest pair bias to compare."  # windows of one slice
    assert said(base) == "There is no other arm to compare with pretrained."
    alone = dataclasses.replace(arm("a", 0.95, True), differences={})
    assert said(base, alone).startswith("No arm has a seed in common with pretrained")


def test_the_headline_counts_what_is_done(results):
    assert study_headline(results) == (
        "24 of 25 runs are done: 2 data sets, 2 networks, 6 arms and 2 seeds; 1 failed."
    )
    waiting = dataclasses.replace(results, summary=results.summary | {"planned": 28})
    assert study_headline(waiting).endswith("1 failed; 3 are still to be done.")


def test_small_differences_do_not_turn_into_powers_of_ten():
    assert plain(difference(Interval(3.5e-5, -0.0081, 0.0082))) == "0.000 [-0.008, 0.008]"
    assert plain(difference(Interval(-2e-5, math.nan, math.nan))) == "0.000"


def test_a_difference_shows_on_which_side_of_0_its_interval_ends():
    for low, high, ends in [
        (-0.0003, 0.0071, "[-0.0003, 0.0071]"),
        (0.0002, 0.0071, "[0.0002, 0.0071]"),
        (-0.0204, -0.0004, "[-0.0204, -0.0004]"),
        (0.0, 0.0071, "[0.000, 0.007]"),
        (-2e-5, 0.0071, "[-0.00002, 0.00710]"),
        (-2e-7, 0.0071, "[0.000, 0.007]"),  # six decimals would not show it either
    ]:
        assert plain(difference(Interval(0.0031, low, high))).endswith(f" {ends}")
    assert plain(difference(Interval(0.0031, -0.0003, 0.0071))).startswith("+0.0031 ")


# The page.


def test_the_page_stands_alone(page):
    parsed = Page(page)
    assert parsed.links
    assert all(link.startswith(("data:", "#")) for link in parsed.links)
    assert "://" not in re.sub(r' xmlns(:xlink)?="[^"]*"', "", page)
    assert "default-src 'none'" in page
    assert "script" not in parsed.tags
    assert len(set(parsed.ids)) == len(parsed.ids)
    inner = {link.removeprefix("#") for link in parsed.links if link.startswith("#")}
    assert inner | set(parsed.references) <= set(parsed.ids)


def test_the_page_says_everything(results, page):
    text = words(page)
    for comparison in results.comparisons:
        assert comparison.title in text
        assert plain(comparison_sentence(comparison, "pretrained")) in text
        for arm in comparison.arms:
            assert f"{arm.arm} {plain(arm_sentence(arm, 'pretrained'))}" in text
            for name in ("dice", "iou", "hd95", "absolute_bias", "asymmetry", "mirror_disagreement"):
                estimate = plain(f"{arm.metrics[name].estimate:.3f}")
                assert estimate in text or arm.metrics[name].estimate < 0.0005
    assert "24 of 25 runs are done" in text
    assert "RuntimeError: no luck, today" in text
    assert "steps: 300" in text
    assert "2.9.0" in text
    assert "2 biased" in text


def test_the_answer_says_what_it_compares(results):
    def row(results):
        groups = figure_groups(results, results.comparisons[0])
        return [row for group in groups for row in group.rows if row.label == "C compares"]

    (found,) = row(results)
    assert set(found.cells) == {"classes"}
    before = dataclasses.replace(
        results, runs=tuple(dataclasses.replace(run, answer_of="unknown") for run in results.runs)
    )
    assert not row(before)


def test_figures_that_no_arm_has_are_left_out(results):
    labels = [
        {row.label for group in figure_groups(results, item) for row in group.rows}
        for item in results.comparisons
    ]
    assert labels[1] - labels[0] == {"Adapted Rand error", "Variation of information"}
    assert labels[0] < labels[1]


def test_figures_have_a_text_and_a_reading(page):
    assert page.count('<div class="chart">') == page.count("<figcaption>") == 5
    narrow = page.count(' class="narrow" viewBox=')
    assert narrow == page.count(' class="broad" viewBox=') == 4
    assert page.count('<svg role="img" aria-label=') == 5 + narrow + 2 * len(ARMS)
    drawings = "".join(re.findall(r'<div class="chart">.*?</div>', page, flags=re.DOTALL))
    for index in range(len(ARMS)):
        assert f"var(--audit-{index})" in drawings
    assert "mathdefault" not in page


def test_a_shared_image_is_in_the_page_once(page):
    assert page.count("<image id=") == 1  # the same blobs in both comparisons


def test_the_page_stays_small(tmp_path):
    comparisons = [(dataset, "net") for dataset in "abc"]
    results = load_study(make(tmp_path, comparisons=comparisons, size=256))
    assert len(draw(results)) < 1_000_000


def test_the_same_study_gives_the_same_page(results, page):
    assert draw(results) == page


def test_hostile_text_stays_text(tmp_path):
    failed = dict.fromkeys(("dataset", "architecture", "arm", "error"), HOSTILE) | {"seed": 3}
    arms = {HOSTILE: (-0.2, 0.0), "=1+1": (0.0, 0.01)}
    results = load_study(
        make(tmp_path, comparisons=[(HOSTILE, HOSTILE)], arms=arms, baseline=HOSTILE, failed=[failed])
    )
    circumstances = {"versions": {HOSTILE: HOSTILE}, "machine": [HOSTILE], "created": HOSTILE}
    runs = tuple(dataclasses.replace(run, circumstances=circumstances) for run in results.runs)
    results = dataclasses.replace(results, runs=runs, config=HOSTILE)
    path = write_study_report(results, tmp_path / "report.html")
    parsed = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "img"} & set(parsed.tags)
    assert "{{ 7*7 }}" in " ".join(parsed.text)
    for svg in (tmp_path / "figures").glob("*.svg"):
        ET.parse(svg)  # noqa: S314 - our own file
    for table in (tmp_path / "tables").iterdir():
        with table.open(encoding="utf-8", newline="") as file:
            assert not [cell for line in csv.reader(file) for cell in line if cell.startswith(("=", "@"))]


# Studies of other kinds.


def test_one_seed_has_no_intervals_and_no_test(tmp_path):
    results = load_study(make(tmp_path, seeds=(0,)))
    text = words(draw(results))
    assert "one seed in common is too few for a test" in text
    assert "No test" not in text  # the badge is capitalised by its style alone
    assert "no test" in text
    assert "nan" not in text.lower().split()


def test_another_arm_can_be_the_baseline(tmp_path):
    arms = {"mirror": (0.004, 0.0), "center": (-0.006, -0.05)}
    results = load_study(make(tmp_path, arms=arms, baseline="mirror"))
    text = words(draw(results))
    assert "mirror is the baseline" in text
    assert "Compared with mirror, seed by seed" in text
    assert "pretrained" not in text


def test_without_a_run_of_the_baseline_there_is_nothing_to_compare(tmp_path):
    results = load_study(make(tmp_path, arms={"uniform": (0.0, 0.0), "center": (0.01, 0.0)}))
    text = words(draw(results))
    assert "No arm has a seed in common with pretrained" in text
    assert "Compared with" not in text
    assert "Dice less that of" not in text


def test_nothing_finished_is_a_page_too(tmp_path):
    parsed = Page(draw(load_study(make(tmp_path, comparisons=(), failed=[FAILED]))))
    text = " ".join(" ".join(parsed.text).split())
    assert "0 of 1 run is done; 1 failed." in text
    assert "RuntimeError: no luck, today" in text
    assert "svg" not in parsed.tags


def test_what_was_not_logged_is_not_drawn(tmp_path):
    folder = make(tmp_path)
    for pattern in ("config.yaml", "runs/*/result.json", "runs/*/example.npz", "runs/*/log/metrics.csv"):
        for path in folder.glob(pattern):
            path.unlink()
    for path in folder.glob("runs/*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"saliency": None}))
    path = write_study_report(load_study(folder), tmp_path / "report.html")
    parsed = Page(path.read_text(encoding="utf-8"))
    assert "forest" in parsed.ids
    assert not {"learning", "trajectories", "saliency", "examples"} & set(parsed.ids)
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert figures == {"forest", "stress"}  # what run.json says of missing slices is still drawn


def test_some_runs_may_lack_what_others_have(tmp_path):
    folder = make(tmp_path)
    runs = sorted(folder.glob("runs/*"))
    (runs[0] / "log" / "metrics.csv").unlink()
    (runs[1] / "example.npz").unlink()
    (runs[2] / "log" / "metrics.csv").write_text("step,loss\n10,0.5\n")
    path = runs[3] / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"saliency": None, "dice": None, "hd95": None}))
    parsed = Page(draw(load_study(folder)))
    assert {"learning", "trajectories", "saliency", "examples"} <= set(parsed.ids)


@pytest.mark.parametrize("slices", [1, 3, 7])
def test_any_number_of_slices(tmp_path, slices):
    page = words(draw(load_study(make(tmp_path, slices=slices))))
    assert f"slice +{slices // 2}" in page or slices == 1
    assert ("slices before it" in page) == (slices > 1)


def test_twelve_arms_have_twelve_looks(tmp_path):
    arms = {f"arm {i}": (-0.2 + 0.03 * i, -0.005 * i) for i in range(12)}
    results = load_study(make(tmp_path, arms=arms, baseline="arm 0"))
    page = draw(results)
    assert words(page).count("arm 11 ") >= 3
    legend = re.search(r'<section id="learning">.*?</section>', page, re.DOTALL)[0]
    assert "stroke-dasharray" in legend  # the ninth and later ones, whose colour comes round again


# Figures.


@pytest.mark.parametrize("part", ["figure", "narrow"])
@pytest.mark.parametrize("loss", [0.005, 0.081, 0.6])
def test_no_result_lies_beyond_its_axis(tmp_path, loss, part):
    """Neither means nor seeds nor the ends of intervals: two seeds may have an interval from -1 to 1."""
    results = load_study(make(tmp_path, arms=FEW | {"random": (0.7, -loss)}))
    for axes in getattr(forest_figure(results), part).axes:
        low, high = axes.get_xlim()
        for line in axes.lines:
            values = np.asarray(line.get_xdata(), dtype=float)
            known = values[np.isfinite(values)]
            assert ((low <= known) & (known <= high)).all()
        assert [text.get_text() for text in axes.texts] == []


@pytest.mark.parametrize("part", ["figure", "narrow"])
def test_names_of_two_lines_do_not_overlap(tmp_path, part):
    names = [f"symmetrized at the encoder with missing slices {letter}" for letter in "abc"]
    results = load_study(make(tmp_path, arms=FEW | dict.fromkeys(names, (0.0, 0.0)), seeds=(0,)))
    figure = getattr(forest_figure(results), part)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert sum("\n" in label.get_text() for label in figure.axes[0].get_yticklabels()) == 3
    assert all(above.y0 > below.y1 for above, below in pairwise(boxes))


def test_small_and_large_losses_share_an_axis(tmp_path):
    """Linear around the margin and logarithmic beyond, which the caption says; linear alone if all losses are small."""
    large = forest_figure(load_study(make(tmp_path / "large", arms=FEW | {"random": (0.0, -0.4)})))
    assert large.figure.axes[0].get_xscale() == "symlog"
    assert "Beyond 0.02 to either side of 0 this axis is logarithmic." in large.reading
    results = load_study(
        make(tmp_path / "small", arms={name: FEW[name] for name in ("pretrained", "uniform")}, seeds=(0,))
    )
    small = forest_figure(results)
    assert small.figure.axes[0].get_xscale() == "linear"
    assert "logarithmic" not in small.reading


@pytest.mark.parametrize("part", ["figure", "narrow"])
def test_the_forest_shows_the_means_of_the_summary(results, part):
    figure = getattr(forest_figure(results), part)
    blocks = len(results.comparisons)
    axes = figure.axes[1] if part == "figure" else figure.axes[blocks]
    means = [arm.metrics["largest_bias"].estimate for arm in results.comparisons[0].arms]
    drawn = [
        line.get_xdata()[0]
        for line in axes.lines
        if line.get_markersize() == 6 and line.get_marker() not in {"None", "."}
    ]
    np.testing.assert_allclose(drawn, means)


def test_figures_for_narrow_screens_are_narrow(results):
    with settings():
        for drawing in draw_charts(results):
            figure = drawing.narrow or drawing.figure
            assert figure.get_figwidth() <= 5.6


def test_the_caption_of_learning_curves_is_true_without_validation(results, tmp_path):
    folder = make(tmp_path)
    for path in folder.glob("runs/*/log/metrics.csv"):
        table = read(path)
        with path.open("w", newline="", encoding="utf-8") as file:
            log = csv.DictWriter(
                file, [name for name in table[0] if name != "validation_dice"], extrasaction="ignore"
            )
            log.writeheader()
            log.writerows(table)
    drawing = learning_figure(load_study(folder))
    assert len(drawing.figure.axes) == 1
    assert "No part of the training data was kept out for validation" in drawing.reading
    assert "accuracy" not in drawing.reading
    assert "costs no accuracy" in learning_figure(results).reading


@pytest.mark.parametrize("part", ["figure", "narrow"])
def test_arms_that_were_not_trained_have_neither_panel_nor_line(tmp_path, part):
    """As those with ``network_of``: a panel without curves would look like a fair arm."""
    folder = make(tmp_path, arms={name: ARMS[name] for name in ("pretrained", "uniform", "mirror")})
    assert "for each arm, with means" in shares_figure(load_study(folder)).reading
    for path in folder.glob("runs/*/run.json"):
        if json.loads(path.read_text())["arm"] == "uniform":
            (path.parent / "log" / "metrics.csv").unlink()
    results = load_study(folder)
    shares = shares_figure(results)
    titles = [axes.get_title() for axes in getattr(shares, part).axes if axes.axison]
    assert titles == ["pretrained", "mirror"]
    assert "for each arm whose training logged it, with means" in shares.reading
    legend = getattr(learning_figure(results), part).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["pretrained", "mirror"]


def test_outlines_tell_labels_from_predictions():
    labels, predicted = np.zeros((2, 192, 192), np.uint8)
    labels[40:80, 40:80] = 1
    predicted[40:80, 40:100] = 1
    layer = outlines(ExampleSlice(np.zeros((192, 192), np.uint8), labels, predicted))
    assert layer.shape == (192, 192, 4)

    def colour(y, x):
        return "#" + "".join(f"{part:02x}" for part in layer[y, x, :3]) if layer[y, x, 3] else None

    assert colour(60, 40) == colour(60, 39) == BOTH
    assert colour(60, 80) == LABELLED
    assert colour(60, 99) == PREDICTED
    assert colour(60, 60) is colour(10, 10) is None


def test_small_examples_get_finer_outlines(tmp_path):
    results = load_study(make(tmp_path, size=40))
    (panel,) = example_panels(results)
    assert [picture.name for picture in panel.pictures] == list(FEW)
    height, width = panel.pictures[0].image.shape
    scale = -(-192 // max(height, width))
    assert panel.pictures[0].outlines.shape == (scale * height, scale * width, 4)


def test_titles_of_pictures_do_not_meet():
    names = ["symmetrized at the output", "symmetrized at the encoder", "mirror tied with slices missing"] * 2
    image, outlines = np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)
    pictures = tuple(ArmPicture(index, name, image, outlines) for index, name in enumerate(names))
    figure = example_figure(ExamplePanel("Cells", pictures), "example").figure
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes] == names


def test_examples_are_cropped_around_the_foreground():
    labels = np.zeros((256, 200), np.uint8)
    labels[200:210, 150:190] = 2
    image = np.arange(256 * 200, dtype=np.int64).reshape(256, 200)
    found = around_foreground(ExampleSlice(image, labels, labels))
    assert found.labels.shape == (24, 52)
    assert np.count_nonzero(found.labels) == np.count_nonzero(labels)
    y, x = divmod(int(found.image[0, 0]), 200)
    assert (y, x) == (193, 144)
    assert found.image.shape == found.labels.shape == found.predicted.shape
    empty = ExampleSlice(image, np.zeros_like(labels), labels)
    assert around_foreground(empty) is empty
    everywhere = np.ones_like(labels)
    assert around_foreground(ExampleSlice(image, everywhere, labels)).labels.shape == (256, 200)


# Files.


def test_figures_and_tables_lie_beside_the_page(results, folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    figures = ("forest", "learning", "trajectories", "saliency", "stress", "example-1", "example-2")
    assert names == {
        ".evenslice-files.json",
        "report.html",
        *(f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")),
        *(f"tables/{name}.csv" for name in ("arms", "curves", "saliency", "pooled")),
    }
    for path in (folder / "figures").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width == (840 if path.name == "stress.png" else 1500)


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_every_figure(results, folder):
    arms = read(folder / "tables" / "arms.csv")
    arm = arm_of(results, "uniform")
    chosen = [
        row for row in arms if (row["dataset"], row["arm"], row["figure"]) == ("Lucchi++", "uniform", "dice")
    ]
    assert [(row["kind"], float(row["estimate"]), float(row["low"])) for row in chosen] == [
        ("mean", arm.metrics["dice"].estimate, arm.metrics["dice"].low),
        ("difference", arm.differences["dice"].estimate, arm.differences["dice"].low),
    ]
    others = {
        row["figure"]: row["estimate"] for row in arms if row["arm"] == "uniform" and row["kind"] != "mean"
    }
    assert {"bias_removed", "dice_not_inferior"} < set(others)
    curves = read(folder / "tables" / "curves.csv")
    assert len(curves) == sum(len(run.curves["step"]) for run in results.runs)
    assert float(curves[5]["share_0"]) == results.runs[0].curves["share_0"][5]
    assert curves[0]["loss"] == ""
    saliency = read(folder / "tables" / "saliency.csv")
    assert len(saliency) == 3 * len(results.runs)
    assert [row["offset"] for row in saliency[:3]] == ["-1", "0", "1"]
    assert float(saliency[1]["p50"]) == results.runs[0].saliency[1, 3]


def test_what_an_earlier_page_left_does_not_stay(tmp_path):
    two = [("Lucchi++", "U-Net"), ("ISBI 2012", "U-Net")]
    write_study_report(load_study(make(tmp_path, size=24, comparisons=two)), tmp_path / "report.html")
    before = (tmp_path / "tables" / "arms.csv").read_text()
    (tmp_path / "figures" / "mine.svg").write_text("old")
    write_study_report(load_study(make(tmp_path / "one", size=24)), tmp_path / "report.html")
    assert not (tmp_path / "figures" / "example-2.svg").exists()
    assert (tmp_path / "figures" / "mine.svg").read_text() == "old"
    assert (tmp_path / "tables" / "arms.csv").read_text() != before
    assert all(
        any(path.match(pattern) for pattern in STUDY_FILES) for path in (tmp_path / "tables").iterdir()
    )


def test_a_place_that_cannot_be_written_is_named(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: is a file; name a folder"):
        write_study_report(results, tmp_path / "file" / "report.html")


def test_the_extra_is_named_where_it_is_missing(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"the page of a study needs .*evenslice\[report\]"):
        write_study_report(results, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


# The command.


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evenslice", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        cli.main()
    return status.value.code


def test_the_report_command_draws_the_page_of_a_study_anew(tmp_path, monkeypatch, capsys):
    folder = make(tmp_path)
    assert run_command(monkeypatch, folder) == 0
    printed = capsys.readouterr().out
    assert "Lucchi++, EfficientNet-Lite0 U-Net" in printed
    assert "report.html" in printed.replace("\n", "")  # long paths are wrapped
    assert Page((folder / "report.html").read_text(encoding="utf-8")).ids
    shutil.rmtree(folder / "figures")
    assert run_command(monkeypatch, folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "summary.json").read_text())
    assert (folder / "figures" / "forest.svg").exists()


def test_a_broken_study_is_one_clear_line(tmp_path, monkeypatch, capsys):
    folder = make(tmp_path)
    (folder / "summary.json").write_text("{")
    assert run_command(monkeypatch, folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "summary.json: cannot be read as part of a study" in error


def test_loading_refuses_before_anything_is_drawn(tmp_path):
    with pytest.raises(ConfigError, match="holds no study"):
        write_study_report(load_study(tmp_path), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
