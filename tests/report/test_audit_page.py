"""The report on audits: its sentences and answers, the page, charts, tables and files; test_browser.py looks at the page."""

import csv
import math
import re
import shutil
import sys
from dataclasses import astuple, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from commands import call
from pages import HOSTILE, Page, plain, standing_alone
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit, make_stress, save_audits, with_statistics

import evenslice
from evenslice.report import audit_tables as found, charts, style, tables as formatting, write_report
from evenslice.report.next_steps import next_step

KNOWN = make_audit("known", PRETRAINED)


def figure(estimate=math.nan, low=math.nan, high=math.nan, like=KNOWN.saliency[0], **changes):
    """Return a figure of an audit with other values."""
    return replace(like, estimate=estimate, low=low, high=high, **changes)


def decision(question, class_number=None, offset=None):
    (known, *_) = KNOWN.statistics.decided_by
    return replace(known, question=question, class_number=class_number, offset=offset)


LEANING = figure(-0.2, -0.21, -0.19, state="beyond")
ORDERED = figure(0.32, 0.3, 0.34, KNOWN.answer, judged=True, state="beyond", of="classes", class_number=1)


@pytest.fixture(scope="module")
def audits():
    return [
        make_audit("pretrained", PRETRAINED),
        make_audit("uniform", UNIFORM),
        make_audit("cyclic", CYCLIC),
    ]


@pytest.fixture(scope="module")
def folder(audits, tmp_path_factory):
    """The page, figures and tables."""
    return reported(audits, tmp_path_factory.mktemp("report"))


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(evenslice.ConfigError, match="one or more audits"):
        write_report([], tmp_path / "report.html")
    assert not any(tmp_path.iterdir())


def reported(audits, folder):
    """Return a folder of audits with their report."""
    assert call("report", save_audits(audits, folder)) == 0
    return folder


def page_of(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def said(audit):
    return plain(found.verdict_sentence(audit))


def with_run(audit, **changes):
    return replace(audit, run=replace(audit.run, **changes))


def stressed(audit, loss=0.6):
    return replace(audit, stress=make_stress(0.9 - loss, 0.1))


# Sentences and answers.


@pytest.mark.slow
@pytest.mark.parametrize("source", ["recorded", "recorded on a part"])
def test_the_scaling_follows_the_verdict_unless_it_may_be_wrong(source, tmp_path):
    scaling = {"mean": [0.45] * 3, "std": [0.226, 0.224, 0.225], "source": source}
    audit = make_audit("a", PRETRAINED, run={"scaling": scaling, "assumed": False})
    shown = audit.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    warned = source == "recorded on a part"
    assert (shown.index("minus mean 0.45, divided by std 0.226") < shown.index("Biased in its")) == warned
    assert ("setting warning" in shown) == warned


def test_without_a_decision_the_judged_figure_nearest_to_its_tolerance_is_shown():
    pairs = (
        figure(0.01, -0.04, 0.05, state="within"),
        figure(-0.03, -0.04, -0.02, state="within"),
        figure(0.4, 0.3, 0.5, judged=False, state="not judged"),
    )
    audit = make_audit("a", (1 / 7,) * 7)
    audit = with_statistics(audit, verdict="balanced", different=None, decided_by=(), pairs=pairs, classes=())
    saliency = found.four_answers(audit)[0]
    assert (saliency.about, saliency.state) == ("slices ±2", "within")
    assert found.four_answers(with_statistics(audit, pairs=pairs[2:] * 3))[0].verdict == "not judged"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["written-by-0.1.0/audit", "written-by-0.2.0/audits/network", "written-by-0.2.0/audits/methods"]
)
def test_what_older_versions_measured_is_labelled(name, tmp_path):
    audits = evenslice.load_audits(Path(__file__).parents[1] / "data" / name)
    assert {audit.definitions for audit in audits} == {1}
    assert all("with the definitions of version 0.2" in found.verdict_sentence(audit) for audit in audits)
    folder = shutil.copytree(Path(__file__).parents[1] / "data" / name, tmp_path / "copied")
    assert call("report", folder) == 0
    text = " ".join(Page(page_of(folder)).text)
    assert "Measured with the definitions of version 0.2." in text
    assert "not asked" in text  # reliance
    assert "nan" not in text.lower().split()


def test_a_biased_network_is_told_by_each_question_that_decided():
    audit = with_statistics(
        make_audit("a", PRETRAINED),
        pairs=(LEANING,),
        reliance=(figure(0.1, 0.08, 0.12, state="beyond"),),
        classes=(),
        answer_change=ORDERED,
        decided_by=(decision("saliency", None, 1), decision("reliance", None, 1), decision("answer", 1)),
    )
    assert said(audit) == (
        "Biased in its gradient maps (z-1 gets 60 % of its pair), what it relies on (z+1 is missed most) and its answers "
        "(32 % of class 1 changes when a window is reversed)."
    )
    assert [(item.verdict, item.decided) for item in found.four_answers(audit)] == [
        *[("beyond ±0.05", True)] * 2,
        ("beyond 0.05", True),
        ("beyond 0.01", False),
    ]
    assert "its maps by integrated gradients" in said(with_run(audit, method="integrated_gradients"))
    scores = replace(ORDERED, estimate=0.16, of="scores", class_number=None)
    by_scores = with_statistics(audit, answer_change=scores, decided_by=(decision("answer"),))
    assert "changes them by 16 % of the difference between unrelated ones" in said(by_scores)


def test_the_class_and_the_pair_that_decided_are_named(audits):
    audit = with_statistics(audits[2], decided_by=(decision("saliency", 1, 2),))
    assert said(audit) == "Biased in its gradient maps (z+2 gets 58 % of its pair in class 1)."
    saliency, *others = found.four_answers(audit)
    assert (saliency.about, saliency.decided) == ("class 1, slices ±2", True)
    assert not any(item.decided for item in others)
    damaged = with_statistics(audit, decided_by=(decision("saliency", 9, 99),))  # no such figure
    assert found.four_answers(damaged)[0].about == "slices ±1"


def test_fair_networks_say_how_many_windows_can_differ_and_what_was_not_judged(audits):
    uniform, equal = audits[1], "Equal in all 120 windows read"
    assert said(uniform).startswith("Symmetric: ")
    assert said(uniform).endswith(f"{equal}: fewer than 2.4 % of all can differ.")
    assert said(with_statistics(uniform, different=0.0)).endswith(f"{equal}.")
    assert equal not in said(with_statistics(uniform, different=None))
    assert [item.value for item in found.four_answers(uniform)] == ["0 [0, 0]"] * 4
    mismatch = figure(0.3, 0.28, 0.32, KNOWN.mismatch, state="beyond")
    balanced = with_statistics(
        uniform, verdict="balanced", decided_by=(decision("use"),), mirror_mismatch=mismatch
    )
    assert said(balanced).startswith("Balanced: ")
    assert said(with_statistics(uniform, unjudged_classes=(3, 7))).endswith("1 % of the pixels: class 3, 7.")


def test_the_terminal_is_told_the_verdict_its_extent_and_what_to_do(audits):
    lines, steps = found.audit_lines([audits[0], make_audit("two", UNIFORM, volumes=2)])
    assert steps == [next_step(audits[0])]
    assert [(name, word, tone) for name, word, _, tone in lines[1:3]] == [
        ("pretrained: ", "Biased", "bad"),
        ("two: ", "Symmetric:", "good"),
    ]
    assert lines[1][2].endswith("On this volume: 120 of 1683 windows read.")
    assert lines[2][2].endswith("On these volumes: 120 of 3366 windows read.")
    one = make_audit("a", (1.0,))
    assert (next_step(one), found.four_answers(one)) == ("", ())
    assert said(one).startswith("Not applicable")


# Figures as text.


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (-0.0003, 0.0071, "[-0.0003, 0.0071]"),
        (0.0, 0.0071, "[0.000, 0.007]"),
        (-2e-5, 0.0071, "[-0.00002, 0.00710]"),
        (-2e-7, 0.0071, "[0.000, 0.007]"),  # six decimals would not show it either
    ],
)
def test_a_difference_shows_on_which_side_of_0_its_interval_ends(low, high, ends):
    assert plain(formatting.difference(figure(0.0031, low, high))).endswith(f" {ends}")
    assert formatting.difference(figure(-2e-5)) == "0.000"


# The page.


@pytest.mark.slow
def test_the_page_stands_alone_and_has_every_figure_of_every_audit(audits, folder):
    page = page_of(folder)
    text = " ".join(plain(" ".join(standing_alone(page).text)).split())
    for audit in audits:
        assert audit.name in text
        assert said(audit) in text
        kept = audit.statistics
        singles = (kept.directional_bias, kept.data_direction, kept.asymmetry, kept.imbalance)
        pairs = (*audit.saliency, *audit.reliance, *kept.data_pairs, *kept.wasserstein)
        for value in (*audit.shares, *pairs, *singles):
            assert plain(formatting.interval(value)) in text
    for value in ("60303ae2" * 8, "evenslice audit --model", "brain.nii.gz", "2.9.0"):
        assert value in text
    assert text.count("60303ae2" * 8) == 1  # what is equal for all audits is shown once
    drawn = "".join(re.findall(r'<div class="chart">.*?</div>', page, flags=re.DOTALL))
    for index in range(3):
        assert f"var(--audit-{index})" in drawn
        assert style.audit_colour(index) not in drawn


@pytest.mark.slow
def test_hostile_text_stays_text(tmp_path):
    run = {"command": HOSTILE, "model": {HOSTILE: [HOSTILE, {"x": HOSTILE}]}}
    audit = make_audit(HOSTILE, PRETRAINED, examples=1, run=run)
    audit = replace(audit, kernels=(replace(audit.kernels[0], name=HOSTILE + r"\1\q"),))
    formula = make_audit("=HYPERLINK(1)", UNIFORM, examples=0, run={"command": "@SUM(1)"})
    parsed = Page(page_of(reported([audit, formula], tmp_path)))
    assert parsed.tags.count("script") == 1
    assert "img" not in parsed.tags
    for path in tmp_path.glob("figures/*.svg"):
        ET.parse(path)  # noqa: S314 - our own file
    for path in tmp_path.glob("tables/*.csv"):
        assert not [cell for row in read(path) for cell in row.values() if cell.startswith(("=", "@"))]


def test_what_is_not_known_is_left_out_and_what_has_no_bounds_is_drawn_to_the_edge(tmp_path):
    audit = make_audit("a", PRETRAINED, windows=3)
    single = ("directional_bias", "data_direction", "asymmetry", "imbalance", "mirror_error")
    audit = with_statistics(
        audit,
        verdict="inconclusive",
        decided_by=(),
        classes=(),
        pairs=(figure(judged=False),),
        shares=(figure(),) * 3,
        reliance=(figure(0.3, -np.inf, np.inf),),
        data_pairs=(figure(),),
        **{"wasserstein": (figure(),), **dict.fromkeys((*single, "mirror_disagreement"), figure())},
        answer_change=figure(like=KNOWN.answer, judged=False),
        mirror_mismatch=figure(like=KNOWN.mismatch, judged=False),
    )
    audit = replace(
        audit,
        measurements=replace(audit.measurements, saliency=np.zeros_like(audit.measurements.saliency)),
        examples=replace(audit.examples, maps=np.full_like(audit.examples.maps, np.nan)),
        kernels=(),
        run=evenslice.Audit.Run(),
    )
    text = " ".join(Page(audit.to_html(tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "[-∞, ∞]" in plain(text)
    assert "nan" not in text.lower().split()
    assert "Shares of the saliency" not in text
    assert "How the saliency is shared" not in text
    assert "Reliance: pair bias" in text


@pytest.mark.slow
def test_what_a_lost_slice_costs_is_shown_once_for_each_network(tmp_path):
    audits = [
        stressed(make_audit(f"{strategy}, {method}", PRETRAINED), loss)
        for strategy, loss in (("pretrained", 0.6), ("uniform", 0.7))
        for method in ("gradient", "occlusion")
    ]
    page = Page(page_of(reported(audits, tmp_path)))
    titles = [text for text in page.text if text.endswith("Dice when slices are disturbed, 16 windows")]
    assert [title.partition(":")[0] for title in titles] == ["pretrained, gradient", "uniform, gradient"]
    assert "stress" in page.ids


# Charts and pictures.


def kernels_of(audits):
    """The titles of the blocks, the names of their inputs, and the pictures."""
    with style.settings():
        (drawing,) = charts.kernel_figures(audits)
    shown = [axes for axes in drawing.figure.axes if axes.images]
    inputs = [[plain(text.get_text()) for text in axes.texts] for axes in shown]
    titles = [axes.get_title(loc="left") for axes in shown]
    return titles, inputs, [axes.images[0].get_array() for axes in shown]


def test_kernels_before_and_after_are_those_of_each_network(audits):
    titles, inputs, _ = kernels_of(audits)
    assert titles == ["pretrained", "uniform", "cyclic"]
    assert inputs[2] == ["-2", "-1", "0", "+1", "+2"]
    assert kernels_of(audits[1:2])[:2] == (["before", "uniform"], [["R", "G", "B"], ["-1", "0", "+1"]])


def test_kernels_of_a_network_read_from_a_file_are_not_called_before(audits):
    """What they were before is not known, and their inputs are slices, not colours."""
    pretrained, uniform = audits[:2]
    after = uniform.kernels[0].after
    read_back = replace(uniform, kernels=(replace(uniform.kernels[0], before=after),))
    titles, inputs, shown = kernels_of([pretrained, read_back])
    assert (titles, inputs) == (["pretrained", "uniform"], [["-1", "0", "+1"]] * 2)
    energy = np.square(pretrained.kernels[0].after).sum(axis=(1, 2, 3))
    first = np.sort(np.argsort(-energy, kind="stable")[:8])[0]  # the same filters of both
    for picture, kernels in zip(shown, (pretrained.kernels[0].after, after), strict=True):
        np.testing.assert_array_equal(picture[:3, :3], kernels[first, 0])


def test_every_bar_has_its_share_above_it_however_low_it_is(audits):
    low = with_statistics(audits[0], shares=(figure(0.001), figure(0.9), figure(0.099)))
    (axes,) = charts.shares_figure([low]).figure.axes
    assert [text.get_text() for text in axes.texts] == ["0 %", "90 %", "10 %"]


def test_nothing_lies_off_the_axes_and_what_is_not_judged_is_pale(audits):
    wide = with_statistics(audits[0], reliance=(figure(0.6, -0.2, 0.9, judged=False),))
    drawing = charts.biases_figure([wide, audits[1]])
    assert len(drawing.figure.axes) == 2  # saliency and reliance
    for axes in drawing.figure.axes:
        low, high = axes.get_xlim()
        assert all(low <= x <= high for line in axes.lines for x in line.get_xdata())
        assert high > 0.9
    assert {line.get_alpha() for line in drawing.figure.axes[1].lines} >= {0.35, 1.0}
    assert ("Pale" in drawing.reading, "Pale" in charts.biases_figure(audits).reading) == (True, False)


# Files.


def test_a_place_that_cannot_be_written_is_an_error_that_leaves_nothing(audits, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(evenslice.OutputError, match="taken: exists"):
        audits[0].to_html(tmp_path / "taken")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


@pytest.mark.slow
def test_charts_are_svg_and_the_style_of_matplotlib_stays(audits, folder, tmp_path):
    before = dict(mpl.rcParams)
    reported([stressed(audits[0])], tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"shares.svg", "biases.svg", "stress.svg", "kernels-1.svg"}
    assert dict(mpl.rcParams) == before
    assert {path.name for path in (folder / "figures").iterdir()} == names - {"stress.svg"}


@pytest.mark.slow
def test_tables_hold_every_figure_and_every_window(audits, folder):
    figures, windows, run = (
        read(folder / "tables" / f"{name}.csv") for name in ("figures", "windows", "run")
    )
    (row,) = [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("cyclic", "pairs", "2")]
    ends = [float(row[key]) for key in ("estimate", "low", "high")]
    assert ends == list(astuple(audits[2].saliency[1])[:3])
    assert (row["judged"], row["state"], row["class"]) == ("True", "beyond", "")
    of_class = [r["figure"] for r in figures if (r["audit"], r["class"]) == ("pretrained", "0")]
    assert of_class == ["answer_change", "saliency", "reliance", "answer", "use"]
    assert not [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("uniform", "pairs", "2")]
    assert len(windows) == sum(audit.windows for audit in audits)
    first, last, measured = windows[0], windows[-1], audits[2].measurements
    assert first["share_-2"] == first["mismatch_2"] == ""
    assert float(first["share_-1"]) == audits[0].measurements.shares[0, 0, 0]
    assert float(last["mismatch_2"]) == measured.mismatch[-1, 0, 1]
    assert (float(last["change"]), int(last["z"])) == (measured.change[-1], measured.position[-1, 0])
    settings = {r["setting"]: r["uniform"] for r in run}
    assert (settings["verdict"], settings["definitions"], settings["step"]) == ("symmetric", "2", "1")


def test_the_extra_is_named_where_it_is_missing(audits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(evenslice.MissingExtraError, match=r"evenslice\[report\]"):
        audits[0].to_html(tmp_path / "report.html")
