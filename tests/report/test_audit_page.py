"""The report's words, numbers, files and safety; test_audit_page_browser.py looks at the page."""

import csv
import dataclasses
import html
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from pages import HOSTILE, Page, plain
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit

from evenslice._core.errors import ConfigError, MissingExtraError, OutputError
from evenslice.auditing.documents import load_audits
from evenslice.networks.inputs import StemKernels
from evenslice.report import (
    advice_sentence,
    extent_sentence,
    four_answers,
    setting_lines,
    verdict_sentence,
    write_figures,
    write_report,
    write_tables,
)
from evenslice.report.audit.charts import biases_figure
from evenslice.report.audit.kernels import kernel_figures
from evenslice.report.audit.page import draw_charts, render
from evenslice.report.audit.pictures import MAX_PIXELS, example_panels
from evenslice.report.audit.sentences import network_names, volume_names
from evenslice.report.audit.tables import csv_tables
from evenslice.report.base.stress_chart import stress_figure
from evenslice.report.base.style import AUDIT_COLOURS, audit_colour, audit_marker, settings
from evenslice.report.base.wording import few_lines, interval, one_line, percent
from evenslice.results import AuditedVolume, AuditRun, Decision, Interval, PairBias
from evenslice.results.asymmetry import AnswerChange, Mismatch
from evenslice.results.stress import BriefLoss, StressSummary

NAN = Interval(float("nan"), float("nan"), float("nan"))
UNKNOWN = {
    "answer_change": AnswerChange(*dataclasses.astuple(NAN), judged=False),
    "mirror_mismatch": Mismatch(*dataclasses.astuple(NAN), judged=False),
}


@pytest.fixture(scope="module")
def audits():
    return [
        make_audit("pretrained", PRETRAINED),
        make_audit("uniform", UNIFORM),
        make_audit("cyclic", CYCLIC),
    ]


@pytest.fixture(scope="module")
def page(audits, tmp_path_factory):
    return write_report(audits, tmp_path_factory.mktemp("report") / "report.html").read_text(encoding="utf-8")


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def with_statistics(audit, **changes):
    return dataclasses.replace(audit, statistics=dataclasses.replace(audit.statistics, **changes))


def with_run(audit, **changes):
    return dataclasses.replace(audit, run=dataclasses.replace(audit.run, **changes))


# Words.


def said(audit):
    return plain(verdict_sentence(audit))


def fair(audit, verdict, *decided, **changes):
    """Return an audit whose windows differ from their mirrors, with a verdict and what decided it."""
    return with_statistics(audit, verdict=verdict, different=None, decided_by=decided, **changes)


def test_a_biased_network_is_told_by_each_question_that_decided():
    audit = with_statistics(
        make_audit("a", PRETRAINED),
        pairs=(PairBias(-0.2, -0.21, -0.19, state="beyond"),),
        reliance=(PairBias(0.1, 0.08, 0.12, state="beyond"),),
        classes=(),
        answer_change=AnswerChange(0.32, 0.3, 0.34, True, "beyond", "classes", 1),
        decided_by=(Decision("saliency", None, 1), Decision("reliance", None, 1), Decision("answer", 1)),
    )
    assert said(audit) == (
        "Biased in its gradient maps (z-1 gets 60 % of its pair), in what it relies on (z+1 is missed most) and in its answers "
        "(32 % of class 1 changes when a window is reversed)."
    )
    alone = with_statistics(audit, decided_by=(Decision("saliency", None, 1),))
    assert said(alone) == "Biased in its gradient maps (z-1 gets 60 % of its pair)."
    assert said(with_run(alone, method="integrated_gradients")).startswith(
        "Biased in its maps by integrated gradients"
    )
    scores = AnswerChange(0.16, 0.14, 0.18, True, "beyond", "scores")
    by_scores = with_statistics(audit, answer_change=scores, decided_by=(Decision("answer"),))
    assert "reversing a window changes them by 16 % of what unrelated ones differ by" in said(by_scores)


def test_the_class_and_the_pair_that_decided_are_named():
    audit = with_statistics(make_audit("a", CYCLIC), decided_by=(Decision("saliency", 1, 2),))
    assert said(audit) == "Biased in its gradient maps (z+2 gets 58 % of its pair in class 1)."
    saliency, *others = four_answers(audit)
    assert (saliency.about, saliency.decided) == ("class 1, slices ±2", True)
    assert not any(item.decided for item in others)
    damaged = with_statistics(audit, decided_by=(Decision("saliency", 9, 99),))  # no such figure
    assert four_answers(damaged)[0].about == "slices ±1"


def test_a_symmetric_network_says_how_many_windows_can_differ():
    uniform = make_audit("a", UNIFORM)
    assert said(uniform) == (
        "Symmetric: opposite slices are used in the same way, place by place. Equal in all 120 windows read: fewer than 2.4 % "
        "of all can differ."
    )
    assert said(with_statistics(uniform, different=0.0)).endswith("Equal in all 120 windows read.")
    assert said(fair(uniform, "symmetric")).endswith("place by place.")
    assert [item.value for item in four_answers(uniform)] == ["0 [0, 0]"] * 4


def test_a_balanced_network_says_what_is_equal_and_what_is_not():
    use = Decision("use")
    mismatch = Mismatch(0.3, 0.28, 0.32, state="beyond")
    audit = fair(make_audit("a", UNIFORM), "balanced", use, mirror_mismatch=mismatch)
    assert said(audit) == (
        "Balanced: opposite slices get equal saliency and reliance, and the order of slices does not change the answer; but "
        "they are not used in the same way, place by place."
    )
    without = with_statistics(audit, pairs=(PairBias(*dataclasses.astuple(NAN), judged=False),), classes=())
    assert "opposite slices get equal reliance, and" in said(without)
    assert four_answers(without)[0].verdict == "not asked"
    mismatch = Mismatch(0.01, 0.008, 0.012, state="open")
    assert said(fair(without, "balanced", use, mirror_mismatch=mismatch)).endswith(
        "but whether they are used in the same way, place by place, is open."
    )


def test_an_inconclusive_verdict_names_what_is_open_and_what_would_settle_it():
    audit = fair(
        make_audit("a", CYCLIC), "inconclusive", Decision("reliance", 1, 2), Decision("answer", 0), needed=310
    )
    assert said(audit) == (
        "Not settled: reliance (class 1, slices ±2) and answer (class 0). About 310 windows would settle it (max_windows)."
    )
    assert advice_sentence(audit) == "Read more windows (max_windows)."
    used = with_run(audit, stopped="all windows used")
    assert "would settle" not in said(used)
    assert "another volume" in advice_sentence(used)
    equal = with_statistics(
        make_audit("a", UNIFORM), verdict="inconclusive", different=0.07, needed=59, decided_by=()
    )
    assert said(equal) == (
        "Not settled. Equal in all 120 windows read: fewer than 7 % of all can differ. About 59 windows would settle it "
        "(max_windows)."
    )


def test_classes_that_were_not_judged_are_named():
    audit = with_statistics(make_audit("a", UNIFORM), unjudged_classes=(3, 7))
    assert said(audit).endswith("Classes 3, 7 cover less than 1 % of the pixels and were not judged.")
    audit = with_statistics(audit, unjudged_classes=(3,))
    assert said(audit).endswith("Class 3 covers less than 1 % of the pixels and was not judged.")


def test_the_verdict_is_about_these_volumes():
    assert extent_sentence(make_audit("a", UNIFORM)) == "On this volume: 120 of 1683 windows read."
    assert extent_sentence(make_audit("a", UNIFORM, volumes=2)) == (
        "On these volumes: 120 of 3366 windows read."
    )


def test_what_to_do_next():
    assert "evenslice symmetrize" in advice_sentence(make_audit("a", PRETRAINED))
    assert "strategy twin" in advice_sentence(make_audit("a", PRETRAINED))
    assert advice_sentence(make_audit("a", UNIFORM)) == "There is nothing to do."
    assert "favour neither side" in advice_sentence(fair(make_audit("a", UNIFORM), "balanced"))
    one = make_audit("a", (1.0,))
    assert (advice_sentence(one), four_answers(one)) == ("", ())
    assert said(one).startswith("Not applicable: a window of one slice")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("recorded", "as recorded on the network."),
        ("recorded on a part", "slices were scaled twice."),
        ("given", "as given."),
        ("stated", "as the network's library states for its pretrained weights."),
        ("assumed", "which is assumed: neither the network nor its library states a scaling."),
    ],
)
def test_the_scaling_is_said_first(source, says, tmp_path):
    scaling = {"mean": [0.45] * 3, "std": [0.226, 0.224, 0.225], "source": source}
    audit = make_audit("a", PRETRAINED, run={"scaling": scaling, "assumed": False})
    (line,) = setting_lines([audit])
    assert line.startswith("Input: slices in 0 to 1, less mean 0.45, over std 0.226, 0.224, 0.225, ")
    assert line.endswith(says)
    shown = write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8")
    assert shown.index("Input: slices in 0 to 1") < shown.index("Biased in its")
    assert ("setting warning" in shown) == (source == "recorded on a part")


def test_what_was_assumed_about_classes_is_said_first():
    (line,) = setting_lines([make_audit("a", UNIFORM, run={"scaling": {"source": "function"}})])
    assert line == (
        "The function gets slices in 0 to 1, and scales them itself. Classes were assumed to exclude each other; the option "
        "overlapping says otherwise."
    )
    clamped = make_audit("b", UNIFORM, run={"scaling": None, "assumed": False, "clamped": 0.25})
    both = setting_lines([make_audit("a", UNIFORM), clamped, make_audit("c", UNIFORM)])
    assert [text.partition(":")[0] for text in both] == ["a and c", "b"]
    assert "25 % were clamped" in plain(both[1])


def test_states_and_tolerances_of_the_answers():
    found = {item.question: item for item in four_answers(make_audit("a", PRETRAINED))}
    assert {name: item.verdict for name, item in found.items()} == {
        "saliency": "beyond ±0.05",
        "reliance": "beyond ±0.05",
        "answer": "beyond 0.05",
        "use": "beyond 0.01",
    }
    assert [name for name, item in found.items() if item.decided] == ["saliency", "reliance", "answer"]


def test_without_a_decision_the_judged_figure_nearest_to_its_tolerance_is_shown():
    pairs = (
        PairBias(0.01, -0.04, 0.05, state="within"),
        PairBias(-0.03, -0.04, -0.02, state="within"),
        PairBias(0.4, 0.3, 0.5, judged=False, state="not judged"),
    )
    audit = fair(make_audit("a", (1 / 7,) * 7), "balanced", pairs=pairs, classes=())
    saliency = four_answers(audit)[0]
    assert (saliency.about, saliency.state) == ("slices ±2", "within")
    unjudged = with_statistics(audit, pairs=pairs[2:] * 3)
    assert four_answers(unjudged)[0].verdict == "not judged"


@pytest.mark.parametrize(
    "folder", ["written-by-0.1.0/audit", "written-by-0.2.0/audits/network", "written-by-0.2.0/audits/methods"]
)
def test_what_older_versions_measured_is_labelled(folder, tmp_path):
    audits = load_audits(Path(__file__).parents[1] / "data" / folder)
    assert {audit.definitions for audit in audits} == {1}
    assert all("with the definitions of version 0.2" in verdict_sentence(audit) for audit in audits)
    assert all("Measured with the definitions of version 0.2." in line for line in setting_lines(audits))
    text = " ".join(Page(write_report(audits, tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "Measured with the definitions of version 0.2." in text
    assert "not asked" in text  # reliance
    assert "nan" not in text.lower().split()
    assert write_tables(audits, tmp_path)
    assert write_figures(audits, tmp_path)


# The top of the page.


def test_the_network_and_the_volumes_are_named_first(audits, tmp_path):
    page = Page(write_report(audits, tmp_path / "report.html").read_text(encoding="utf-8"))
    at = page.text.index("Does the network treat its slices alike?")
    named = "smp:Unet/tu-tf_efficientnet_lite0, weights imagenet, on brain.nii.gz (189 × 233 × 197 voxels)"  # noqa: RUF001
    assert named in " ".join(page.text[at : at + 8])


def test_networks_and_volumes_that_differ_are_all_named():
    volumes = tuple(AuditedVolume(path=f"/data/em.h5:/raw/{i}", fingerprint=str(i)) for i in range(6))
    one = make_audit("one", PRETRAINED, run={"model": {"class": "package.Network"}, "volumes": volumes})
    two = make_audit("two", PRETRAINED, run={"model": {"spec": "onnx", "weights": "net.onnx"}, "volumes": ()})
    assert network_names([one]) == "package.Network"
    assert network_names([one, two]) == "package.Network and onnx, weights net.onnx"
    assert volume_names([one, two]) == "em.h5:/raw/0, em.h5:/raw/1, em.h5:/raw/2 and 3 more"
    nothing = make_audit("two", PRETRAINED, run={"model": {}, "volumes": (AuditedVolume(shape=(3, 4, 5)),)})
    assert network_names([nothing]) == "a network of unknown name"
    assert volume_names([nothing]) == "an array (3 × 4 × 5 voxels)"  # noqa: RUF001


# Kernels.


def draw_kernels(audits):
    with settings():
        (drawing,) = kernel_figures(audits)
    return drawing


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.images]


def inputs(figure):
    return [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes if axes.images]


def test_kernels_before_and_after_are_those_of_each_network(audits):
    drawing = draw_kernels(audits)
    assert titles(drawing.figure) == ["pretrained", "uniform", "cyclic"]
    assert inputs(drawing.figure)[2] == ["−2", "−1", "0", "+1", "+2"]  # noqa: RUF001
    assert "except where the network averages over each window and its mirror" in drawing.reading
    alone = draw_kernels(audits[1:2])
    assert titles(alone.figure) == ["before", "uniform"]
    assert inputs(alone.figure) == [["R", "G", "B"], ["−1", "0", "+1"]]  # noqa: RUF001


def test_kernels_of_a_network_read_from_a_file_are_not_called_before(audits):
    """What they were before is not known, and their inputs are slices, not colours."""
    pretrained, uniform = audits[:2]
    after = uniform.kernels[0].after
    read_back = dataclasses.replace(uniform, kernels=(dataclasses.replace(uniform.kernels[0], before=after),))
    drawing = draw_kernels([pretrained, read_back])
    assert titles(drawing.figure) == ["pretrained", "uniform"]
    assert inputs(drawing.figure) == [["−1", "0", "+1"]] * 2  # noqa: RUF001
    energy = np.square(pretrained.kernels[0].after).sum(axis=(1, 2, 3))
    first = np.sort(np.argsort(-energy, kind="stable")[:8])[0]  # the same filters of both
    shown = [axes.images[0].get_array() for axes in drawing.figure.axes if axes.images]
    for picture, kernels in zip(shown, (pretrained.kernels[0].after, after), strict=True):
        np.testing.assert_array_equal(picture[:3, :3], kernels[first, 0])


# Charts.


def test_nothing_lies_off_the_axes_and_what_is_not_judged_is_pale(audits):
    wide = with_statistics(audits[0], reliance=(PairBias(0.6, -0.2, 0.9, judged=False),))
    figure = biases_figure([wide, audits[1]]).figure
    assert "Pale markers" not in biases_figure(audits).reading
    assert "Pale markers" in biases_figure([wide]).reading
    assert len(figure.axes) == 2  # saliency and reliance
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert all(low <= x <= high for line in axes.lines for x in line.get_xdata())
        assert high > 0.9


def test_charts_are_laid_out_once(audits, monkeypatch, tmp_path):
    """Saving a figure lays it out anew, and draws it twice, unless its layout is settled."""
    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(self) or draw(self, renderer))
    with settings():
        for drawing in draw_charts(audits):
            drawn.clear()
            drawing.figure.savefig(tmp_path / "chart.svg")
            assert drawn == [drawing.figure]


def test_intervals_and_shares_as_text():
    assert plain(interval(Interval(-0.2346, -0.25, 2e-6))) == "-0.235 [-0.250, 2.0e-6]"
    assert interval(None) == interval(NAN) == "–"  # noqa: RUF001 - the dash that stands for no figure
    assert interval(Interval(0.5, float("nan"), float("nan"))) == "0.500"
    assert plain(interval(Interval(0.0, -np.inf, np.inf))) == "0 [-∞, ∞]"
    assert plain(percent(0.997)) == "more than 99 %"
    assert [plain(percent(share)) for share in (0.994, 1 - 1e-9, 1.004)] == ["99 %", "100 %", "100 %"]


def test_labels_are_short():
    assert one_line("a\n\tb\x00c") == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"
    assert few_lines("pretrained with\nmissing slices") == "pretrained with missing\nslices"
    assert few_lines("a-b " * 30, 11) == "a-b a-b a-b\na-b a-b…"


# The page.


def test_the_page_stands_alone(page):
    parsed = Page(page)
    assert parsed.links
    assert all(link.startswith(("data:", "#")) for link in parsed.links)
    beside_namespaces = re.sub(r' xmlns(:xlink)?="[^"]*"', "", page)
    assert "://" not in beside_namespaces
    assert "default-src 'none'" in page


def test_identifiers_are_unique_and_references_point_at_them(page):
    parsed = Page(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    inner = {link.removeprefix("#") for link in parsed.links if link.startswith("#")}
    assert inner | set(parsed.references) <= set(parsed.ids)


def test_the_page_has_every_figure_of_every_audit(audits, page):
    text = plain(" ".join(Page(page).text))
    for audit in audits:
        assert audit.name in text
        assert plain(verdict_sentence(audit)) in text
        statistics = audit.statistics
        singles = (
            statistics.directional_bias,
            statistics.data_direction,
            statistics.asymmetry,
            statistics.imbalance,
        )
        pairs = (*audit.pairs, *audit.reliance, *statistics.data_pairs, *statistics.wasserstein)
        for value in (*audit.shares, *pairs, *singles):
            assert plain(interval(value)) in text
    for value in ("60303ae2" * 8, "evenslice audit --model", "brain.nii.gz", "2.9.0"):
        assert value in text


def test_every_picture_has_a_text_and_every_figure_a_reading(page):
    assert page.count("<figcaption>") == page.count('<div class="chart">') == 3
    assert page.count('<svg role="img" aria-label=') == 3 + 2 * (3 + 3 + 5)
    assert page.count("<svg ") == 1 + page.count(
        '<svg role="img" aria-label='
    )  # the store of images alone has none


def test_colours_of_the_figures_follow_the_page(page):
    drawings = "".join(re.findall(r'<div class="chart">.*?</div>', page, flags=re.DOTALL))
    assert "var(--ink)" in drawings
    for index in range(3):
        assert f"var(--audit-{index})" in drawings
        assert audit_colour(index) not in drawings


def test_saliency_is_on_one_scale_across_slices_and_audits():
    panel, _ = example_panels([make_audit(name, s) for name, s in (("a", PRETRAINED), ("b", UNIFORM))])
    middle, after = (np.mean(panel.rows[0].overlays[k][..., 3]) for k in (1, 2))
    even = np.mean(panel.rows[1].overlays[1][..., 3])
    assert after < even < middle


def test_large_slices_are_shrunk_and_keep_their_shape_also_in_half_precision():
    audit = make_audit("a", PRETRAINED, examples=1, size=300)
    maps = audit.examples.maps[..., :200].astype(np.float16)
    examples = dataclasses.replace(audit.examples, images=audit.examples.images[..., :200], maps=maps)
    (panel,) = example_panels([dataclasses.replace(audit, examples=examples)])
    assert panel.rows[0].images[0].shape == (MAX_PIXELS, round(MAX_PIXELS * 2 / 3))
    assert panel.rows[0].overlays[0].shape == (*panel.rows[0].images[0].shape, 4)


def test_hostile_text_stays_text(tmp_path):
    audit = make_audit(
        HOSTILE,
        PRETRAINED,
        examples=1,
        run={"command": HOSTILE, "model": {HOSTILE: [HOSTILE, {"x": HOSTILE}]}},
    )
    audit = dataclasses.replace(
        audit, kernels=(dataclasses.replace(audit.kernels[0], name=HOSTILE + r"\1\q"),)
    )
    other = make_audit("other", UNIFORM)
    parsed = Page(write_report([audit, other], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert parsed.tags.count("script") == 1
    assert "img" not in parsed.tags
    for path in write_figures([audit, other], tmp_path):
        if path.suffix == ".svg":
            ET.parse(path)  # noqa: S314 - our own file


def test_names_in_charts_are_not_taken_for_markup(tmp_path):
    name = 'a d="M 1.23456" #1b1f24'
    page = write_report(
        [make_audit(name, CYCLIC), make_audit("other", UNIFORM)], tmp_path / "report.html"
    ).read_text(encoding="utf-8")
    texts = [
        html.unescape(text)
        for figure in re.findall("<svg.*?</svg>", page, re.DOTALL)
        for text in re.findall(">([^<]+)</text>", figure)
    ]
    named = {text for text in texts if text.startswith("a ")}
    assert name in named
    # Where room is short, a name ends with an ellipsis.
    assert all(name.startswith(text.split("…")[0]) for text in named)


def test_writing_the_same_audits_twice_gives_the_same_page(audits, page, tmp_path):
    assert write_report(audits, tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_an_audit_read_from_its_files_gives_the_same_page(audits, tmp_path):
    audits[2].save(tmp_path / "audit.json")
    first = write_report([audits[2]], tmp_path / "a.html").read_bytes()
    assert write_report(load_audits(tmp_path), tmp_path / "b.html").read_bytes() == first


@pytest.mark.parametrize("slices", [1, 3, 9])
def test_any_number_of_slices_alone(slices, tmp_path):
    audit = make_audit("alone", (1 / slices,) * slices)
    page = Page(write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("biases" in page.ids) == (slices > 1)
    assert write_figures([audit], tmp_path)
    assert write_tables([audit], tmp_path)


def test_any_numbers_of_slices_together_with_volumes_and_stems_of_several_kinds(tmp_path):
    audits = [
        make_audit("volumes", PRETRAINED, volumes=12, windows=200, stems=2),
        make_audit("one slice", (1.0,)),
        make_audit("seven", (1 / 7,) * 7),
        make_audit("few", (0.32, 0.33, 0.35), windows=2),
    ]
    linear = StemKernels("linear", np.ones((40, 192, 1, 1), np.float32), np.ones((40, 320, 1, 1), np.float32))
    patches = StemKernels(
        "patches", np.zeros((2, 3, 16, 16), np.float32), np.zeros((2, 3, 16, 16), np.float32)
    )
    audits.append(dataclasses.replace(make_audit("cyclic", CYCLIC), kernels=(linear, patches)))
    page = Page(write_report(audits, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"kernels-1", "kernels-2", "kernels-3", "kernels-4"} <= set(page.ids)
    assert "first 24 of 320 inputs" in page.text


def test_an_interval_without_bounds_is_drawn_to_the_edge(tmp_path):
    open_ended = Interval(0.3, -np.inf, np.inf)
    audit = make_audit("a", PRETRAINED, windows=1)
    audit = with_statistics(
        audit, verdict="inconclusive", shares=(open_ended,) * 3, pairs=(PairBias(0.3, -np.inf, np.inf),)
    )
    page = write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "[−∞, ∞]" in page  # noqa: RUF001 - a true minus sign


def test_what_was_not_measured_is_left_out(tmp_path):
    audit = make_audit("a", PRETRAINED, windows=3)
    single = (
        "directional_bias",
        "data_direction",
        "asymmetry",
        "imbalance",
        "mirror_error",
        "mirror_disagreement",
    )
    unknown = PairBias(*dataclasses.astuple(NAN), judged=False)
    audit = with_statistics(
        audit,
        verdict="inconclusive",
        decided_by=(),
        shares=(NAN,) * 3,
        pairs=(unknown,),
        reliance=(unknown,),
        classes=(),
        data_pairs=(NAN,),
        wasserstein=(NAN,),
        **dict.fromkeys(single, NAN),
        **UNKNOWN,
    )
    empty = np.zeros_like(audit.measurements.saliency)
    audit = dataclasses.replace(
        audit,
        measurements=dataclasses.replace(audit.measurements, saliency=empty),
        examples=dataclasses.replace(audit.examples, saliency=np.full_like(audit.examples.saliency, np.nan)),
        kernels=(),
        run=AuditRun(),
    )
    text = " ".join(Page(write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "nan" not in text.lower().split()
    figures, windows, _ = (read(path) for path in write_tables([audit], tmp_path))
    assert {row["estimate"] for row in figures} == {""}
    assert {row["share_0"] for row in windows} == {""}


# Files.


def test_figures_are_written_as_png_and_svg(audits, tmp_path):
    before = dict(mpl.rcParams)
    paths = write_figures(audits, tmp_path / "new" / "figures")
    names = {path.name for path in paths}
    assert {
        f"{n}{s}" for n in ("shares", "biases", "kernels-1", "example-1") for s in (".png", ".svg")
    } <= names
    assert names == {path.name for path in (tmp_path / "new" / "figures").iterdir()}
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    assert dict(mpl.rcParams) == before


def test_tables_hold_every_figure_and_every_window(audits, tmp_path):
    figures, windows, run = (read(path) for path in write_tables(audits, tmp_path))
    (row,) = [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("cyclic", "pairs", "2")]
    ends = [float(row[key]) for key in ("estimate", "low", "high")]
    assert ends == list(dataclasses.astuple(audits[2].pairs[1])[:3])
    assert (row["judged"], row["state"], row["class"]) == ("True", "beyond", "")
    of_class = [r for r in figures if (r["audit"], r["class"]) == ("pretrained", "0")]
    assert [(r["figure"], r["offset"]) for r in of_class if r["figure"] != "answer_change"] == [
        ("saliency", "1"),
        ("reliance", "1"),
        ("answer", ""),
        ("use", ""),
    ]
    (change,) = [r for r in figures if (r["audit"], r["figure"]) == ("pretrained", "answer_change")]
    assert float(change["estimate"]) == audits[0].answer.estimate
    assert not [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("uniform", "pairs", "2")]
    assert len(windows) == sum(audit.windows for audit in audits)
    first, last, measured = windows[0], windows[-1], audits[2].measurements
    assert first["share_-2"] == first["pair_model_2"] == first["mismatch_2"] == ""
    assert float(first["share_-1"]) == audits[0].measurements.shares[0, 0, 0]
    assert float(last["wasserstein_2"]) == measured.wasserstein[-1, 1]
    assert float(last["mismatch_2"]) == measured.mismatch[-1, 0, 1]
    assert float(last["change"]) == measured.change[-1]
    assert int(last["z"]) == measured.position[-1, 0]
    assert {"setting": "verdict", "pretrained": "biased", "uniform": "symmetric", "cyclic": "biased"} in run
    assert {"setting": "definitions", "pretrained": "2", "uniform": "2", "cyclic": "2"} in run
    assert {"setting": "step", "pretrained": "1", "uniform": "1", "cyclic": "1"} in run


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path):
    audit = make_audit("=HYPERLINK(1)", PRETRAINED, examples=0, run={"command": "@SUM(1)"})
    for path in write_tables([audit], tmp_path):
        lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
        assert not [cell for line in lines for cell in line if cell.startswith(("=", "@"))]


def test_no_audit_is_an_error(tmp_path):
    for write in (write_report, write_figures, write_tables):
        with pytest.raises(ConfigError, match="needs one or more audits"):
            write([], tmp_path / "x")


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(audits, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="taken: exists; name a file"):
        write_report(audits[:1], tmp_path / "taken")
    for write in (write_figures, write_tables):
        with pytest.raises(OutputError, match="file: is a file; name a folder"):
            write(audits[:1], tmp_path / "file")
    assert {path.name for path in tmp_path.rglob("*")} == {"taken", "file"}


def test_figures_of_an_earlier_report_do_not_stay(audits, tmp_path):
    for name in ("kernels-7.png", "example-9.svg", "mine.png"):
        (tmp_path / name).write_text("")
    written = write_figures([make_audit("a", PRETRAINED, examples=0)], tmp_path)
    assert set(tmp_path.iterdir()) == {*written, tmp_path / "mine.png"}


def test_the_extra_is_named_where_it_is_missing(audits, tmp_path, monkeypatch):
    users = ("evenslice.report.audit.page", "evenslice.report.base.rendering", "jinja2")
    for name in [name for name in sys.modules if name.startswith(users)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"writing a report needs .*evenslice\[report\]"):
        write_report(audits[:1], tmp_path / "report.html")


def test_importing_the_report_draws_nothing_in():
    code = "import sys, evenslice.report.files; print({'matplotlib', 'jinja2', 'PIL'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_audits_past_the_last_colour_differ_by_marker():
    looks = [(audit_colour(index), audit_marker(index)) for index in range(2 * len(AUDIT_COLOURS))]
    assert len(set(looks)) == len(looks)


def test_what_a_lost_slice_costs_is_drawn_and_tabled():
    losses = (BriefLoss("missing", 1, 0.6, 0.8, 0.5, Interval(0.2, 0.1, 0.3)),)
    audit = dataclasses.replace(
        make_audit("network", PRETRAINED), stress=StressSummary("labels", 16, 0.9, 0.85, losses)
    )
    page = render([audit, make_audit("other", UNIFORM)])
    assert "stress_asymmetry_missing,1,0.2,0.1,0.3" in csv_tables([audit])["figures.csv"]
    assert "What a disturbed slice costs" in page
    assert "missing, k = 1" in page
    with settings():
        assert "stress" in [drawing.name for drawing in draw_charts([audit])]
    assert "lost or damaged" not in render([make_audit("other", UNIFORM)])


def test_what_a_lost_slice_costs_is_drawn_once_for_each_network(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "evenslice.report.audit.page.stress_figure", lambda items: drawn.append(items) or stress_figure(items)
    )
    audits = []
    for strategy, loss in (("pretrained", 0.6), ("uniform", 0.7)):
        losses = (BriefLoss("missing", 1, loss, 0.8, 0.5, Interval(0.2, 0.1, 0.3)),)
        stress = StressSummary("labels", 16, 0.9, 0.85, losses)
        audits += [
            dataclasses.replace(make_audit(f"{strategy}, {method}", PRETRAINED), stress=stress)
            for method in ("gradient", "occlusion")
        ]
    with settings():
        draw_charts(audits)
    assert [(item.name, item.index) for item in drawn[0]] == [
        ("pretrained, gradient", 0),
        ("uniform, gradient", 2),
    ]
