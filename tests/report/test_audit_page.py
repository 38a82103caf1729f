"""The report's words, numbers, files and safety; test_report_browser.py looks at the page."""

import csv
import dataclasses
import html
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from pages import HOSTILE, Page, plain
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit

from evenslice._core.errors import ConfigError, MissingExtraError, OutputError
from evenslice.auditing.documents import load_audits
from evenslice.networks.stem_kernels import StemKernels
from evenslice.report.audit.agreement import agreement_sentence, methods_sentence
from evenslice.report.audit.charts import biases_figure
from evenslice.report.audit.conclusions import conclude, conclusion
from evenslice.report.audit.kernels import kernel_figures
from evenslice.report.audit.page import draw_charts, render
from evenslice.report.audit.pictures import MAX_PIXELS, example_panels
from evenslice.report.audit.questions import three_questions
from evenslice.report.audit.subject import network_names, volume_names
from evenslice.report.audit.summary import audit_html
from evenslice.report.audit.tables import csv_tables
from evenslice.report.audit.wording import context_sentence, headline, verdict_sentence
from evenslice.report.base.stress_chart import stress_figure
from evenslice.report.base.style import AUDIT_COLOURS, audit_colour, audit_marker, settings
from evenslice.report.base.wording import few_lines, interval, one_line, percent
from evenslice.report.files import write_figures, write_report, write_tables
from evenslice.results.asymmetry import AnswerChange, ClassBias, PairBias, SecondOpinion, summarize
from evenslice.results.audits import AuditedVolume, AuditRun
from evenslice.results.intervals import Interval
from evenslice.results.measurements import split_biases
from evenslice.results.stress import BriefLoss, StressSummary
from evenslice.results.verdicts import Decision

NAN = Interval(float("nan"), float("nan"), float("nan"))


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


# Words.


def decided(audit, verdict, question="attention", **details):
    """Return the audit with another verdict and what decided it."""
    return with_statistics(audit, verdict=verdict, decided_by=Decision(question, **details))


def older(audit):
    """Return the audit as an earlier version made it."""
    unknown = {"answer_change": NAN, "mirror_mismatch": NAN, "decided_by": None}
    return with_statistics(audit, methods_agree=None, second_opinion=None, classes=(), **unknown)


def by_occlusion(pairs, windows=12):
    return SecondOpinion("occlusion", windows, pairs)


def said(audit):
    return plain(verdict_sentence(audit))


def test_a_biased_network_is_told_by_how_much_more_one_slice_gets():
    audit = with_statistics(make_audit("a", PRETRAINED), pairs=(PairBias(-0.23, -0.24, -0.22),))
    assert said(audit) == (
        "Biased: by gradient, the slice before the middle gets 1.6 times the attention of the one after it "
        "(pair bias -0.230, 95 % interval -0.240 to -0.220; tolerance ±0.05)."
    )


def test_the_pair_that_decided_is_named():
    pairs = (PairBias(0.5, -0.2, 1.0), PairBias(0.2, 0.19, 0.21))
    audit = with_statistics(make_audit("a", CYCLIC), pairs=pairs)
    assert said(decided(audit, "biased", method="gradient", offset=2)).startswith(
        "Biased: by gradient, the slice 2 after the middle gets 1.5 times"
    )
    assert said(older(audit)).startswith("Biased: by gradient, the slice 2 after the middle")  # the surest
    assert said(decided(audit, "biased", method="gradient", offset=99)).startswith(
        "Biased"
    )  # from a damaged file


def test_a_second_method_or_a_class_that_decided_is_named():
    audit = make_audit("a", PRETRAINED)
    by_second = decided(audit, "biased", method="occlusion", offset=1)
    assert said(by_second).startswith("Biased: by occlusion, the slice before the middle gets 1.20 times")
    by_class = decided(audit, "biased", method="gradient", class_number=1, offset=1)
    assert said(by_class).startswith("Biased in class 1: by gradient, the slice before the middle gets 1.20")
    attention, *_ = three_questions(by_class)
    assert [figure.label for figure in attention.figures] == ["gradient", "occlusion", "class 1, gradient"]


def test_a_network_that_ignores_one_side_has_no_ratio():
    audit = with_statistics(make_audit("a", PRETRAINED), pairs=(PairBias(1.0, 1.0, 1.0),))
    assert "after the middle gets the attention of its pair and the one before it none" in said(audit)


def test_an_answer_that_depends_on_the_order_is_told_by_what_changes():
    audit = decided(make_audit("a", UNIFORM), "biased", "answer")
    audit = with_statistics(audit, answer_change=AnswerChange(0.97, 0.96, 0.98, "classes"))
    assert said(audit) == (
        "Biased: reversing a window changes the class of 97 % of the foreground pixels, although opposite slices get "
        "equal attention (answer change 0.970, 95 % interval 0.960 to 0.980; tolerated up to 0.05)."
    )
    for foreground, words in (
        (1.0, "97 % of the predicted classes"),
        (np.nan, "the output by 97 % of the difference"),
    ):
        part = np.full(120, foreground)
        measured = dataclasses.replace(
            audit.measurements, foreground=part, mirror_disagreement=part, level=np.ones((120, 1))
        )
        assert words in said(dataclasses.replace(audit, measurements=measured))
    assert "although" not in said(decided(make_audit("a", PRETRAINED), "biased", "answer"))


def test_the_fair_verdicts():
    uniform = make_audit("a", UNIFORM)
    assert "are used in the same way, place by place (mirror mismatch 2.5e-7, tolerated up to 0.01)" in said(
        uniform
    )
    assert said(older(uniform)).startswith(
        "Symmetric: the slices before and after the middle get the same attention"
    )
    assert "(the largest is below 0.001)" in said(older(uniform))
    balanced = decided(uniform, "balanced", method="gradient")
    balanced = with_statistics(balanced, mirror_mismatch=Interval(0.3, 0.2, 0.4))
    assert said(balanced) == (
        "Balanced: the slices before and after the middle get equal attention by gradient and by occlusion (the largest "
        "pair bias is below 0.001; tolerance ±0.05), and their order hardly changes the answer (answer change "
        "0, tolerated up to 0.05), but they are not used in the same way place by place (mirror mismatch 0.300, "
        "tolerated up to 0.01)."
    )
    assert "was not measured." in said(with_statistics(balanced, mirror_mismatch=NAN))
    open_use = with_statistics(balanced, mirror_mismatch=Interval(0.01, 0.005, 0.015))
    assert "are not shown to be used in the same way" in said(open_use)
    assert said(make_audit("a", (1.0,))).startswith("Not applicable: a window of one slice")


def test_an_inconclusive_verdict_names_the_open_question_and_what_would_settle_it():
    audit = make_audit("a", CYCLIC)
    undecided = decided(audit, "inconclusive", method="gradient")
    assert "1 before" not in said(undecided)
    assert (
        "whether the slices next to the middle get equal attention by gradient, to within ±0.05, is not settled"
        in (said(undecided))
    )
    width = max(pair.high - pair.low for pair in undecided.pairs) / 2
    (asked,) = re.findall(r"ask for more precision, below ±(0\.\d+)\.$", said(undecided))
    assert 0 < float(asked) < width
    constant = [dataclasses.replace(pair, low=pair.estimate, high=pair.estimate) for pair in audit.pairs]
    assert said(with_statistics(undecided, pairs=tuple(constant))).endswith("audit another volume as well.")
    for stopped, advice in (
        ("limit reached", "audit more windows."),
        ("all windows used", "another volume as well."),
    ):
        run = dataclasses.replace(undecided.run, stopped=stopped)
        assert said(dataclasses.replace(undecided, run=run)).endswith(advice)
    by_class = decided(audit, "inconclusive", method="gradient", class_number=1)
    assert "equal attention in class 1 by gradient" in said(by_class)
    unknown = with_statistics(
        undecided, pairs=(PairBias(np.nan, np.nan, np.nan), PairBias(0.1, -np.inf, np.inf))
    )
    assert "too few windows" in said(unknown)
    answer = decided(audit, "inconclusive", "answer")
    assert (
        "whether reversing a window changes more than 5 % of the answer is not settled (answer change 0.300"
        in (said(answer))
    )
    assert "could not be measured" in said(with_statistics(answer, answer_change=NAN))


def test_an_open_verdict_beside_an_interval_beyond_the_tolerance_is_explained():
    """One of many tests may err: the intervals that decide hold for all at once, and are wider than those shown."""
    beyond = {
        "pairs": (PairBias(0.08, 0.052, 0.108),),
        "answer_change": AnswerChange(0.08, 0.052, 0.12, "classes"),
    }
    audit = with_statistics(make_audit("a", PRETRAINED), **beyond)
    wider = "; the one that holds for all tests at once, which decides, is wider); "
    assert f"95 % interval 0.052 to 0.108{wider}" in said(decided(audit, "inconclusive", method="gradient"))
    assert f"95 % interval 0.052 to 0.120{wider}" in said(decided(audit, "inconclusive", "answer"))
    few = with_statistics(make_audit("few", PRETRAINED, windows=5), **beyond)
    for question in ("attention", "answer"):
        assert "all tests" not in said(decided(few, "inconclusive", question, method="gradient"))


def test_few_slices_are_given_as_the_reason():
    audit = make_audit("a", PRETRAINED, windows=5)
    assert audit.statistics.decided_by.question == "answer"  # which is exact
    assert three_questions(audit)[0].found == "fewer than 8 slices"
    audit = decided(audit, "inconclusive", method="gradient")
    assert said(audit).endswith("5 distinct slices were seen, 8 are needed.")
    limited = dataclasses.replace(audit, run=dataclasses.replace(audit.run, stopped="limit reached"))
    assert said(limited).endswith("5 distinct slices were seen, 8 are needed: audit more windows.")
    states = {question.name: question.found for question in three_questions(audit)}
    assert states["attention"] == "fewer than 8 slices"


def test_what_stands_beside_the_verdict():
    assert plain(context_sentence(make_audit("a", CYCLIC))) == (
        "The middle slice gets 8 % of the attention (an even split gives 20 %). The bias of 2 of 2 pairs is estimated "
        "beyond the tolerance. Reversing a window changes the output by 69 % of its largest value and the "
        "class of 12 % "
        "of the pixels."
    )
    without = with_statistics(make_audit("a", UNIFORM), mirror_disagreement=NAN)
    assert "largest value." in context_sentence(without)


def test_windows_or_pixels_change_their_class():
    audit = make_audit("a", CYCLIC)
    foreground = np.ones_like(audit.measurements.foreground)  # a segmenter may have no background, either
    for change, level, words in (
        (0.3, 0.0, "of the pixels."),
        (1.0, 0.0, "of the pixels."),
        (0.0, 0.0, "of the pixels."),
        (1.0, 2.0, "of the windows."),  # the number of its class
        (0.0, 2.0, "of the windows."),
    ):
        changed = np.where(np.arange(len(foreground)) % 4, 0.0, change)
        measured = dataclasses.replace(
            audit.measurements,
            foreground=foreground,
            mirror_disagreement=changed,
            level=np.full((len(foreground), 1), level),
        )
        assert context_sentence(dataclasses.replace(audit, measurements=measured)).endswith(words)


def test_a_pair_that_is_not_judged_is_marked_everywhere(tmp_path):
    audit = make_audit("a", (0.004, 0.99, 0.006))
    assert not audit.pairs[0].judged
    assert "The slices ±1 get less than 2 % of the attention and are not judged." in plain(
        context_sentence(audit)
    )
    several = make_audit("a", (0.001, 0.002, 0.004, 0.985, 0.005, 0.002, 0.001))
    assert "±1, ±2 and ±3 get less than 1.33 % of the attention" in plain(context_sentence(several))
    assert "too little to be judged" in agreement_sentence(audit)
    assert three_questions(audit)[0].found == "not judged"
    assert "although" not in said(audit)  # nothing is known to be equal
    page = Page(write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("not judged") >= 4  # attention, B, second opinion, classes
    assert "(not judged)" in " ".join(page.text)  # in the chart


def test_a_pair_that_the_second_method_alone_does_not_judge_is_explained():
    unjudged = by_occlusion((PairBias(0.0, -0.1, 0.1, judged=False),))
    audit = make_audit("a", PRETRAINED)
    assert "Pale markers" not in biases_figure([audit]).reading
    assert "Pale markers" in biases_figure([with_statistics(audit, second_opinion=unjudged)]).reading


# Agreement.


def test_rounding_does_not_hide_on_which_side_of_a_tolerance_a_figure_lies():
    beyond = {
        "pairs": (PairBias(0.0506, 0.0503, 0.0509),),
        "answer_change": AnswerChange(0.0513, 0.0504, 0.0522, "classes"),
    }
    audit = with_statistics(make_audit("a", PRETRAINED), **beyond)
    assert "(pair bias 0.0506, 95 % interval 0.0503 to 0.0509; tolerance ±0.05)" in said(audit)
    by_answer = decided(audit, "biased", "answer")
    assert "(answer change 0.0513, 95 % interval 0.0504 to 0.0522; tolerated up to 0.05)" in said(by_answer)
    attention, answer, _ = three_questions(audit)
    assert attention.figures[0].interval == "0.0503 to 0.0509"
    assert (answer.figures[0].estimate, answer.figures[0].interval) == ("0.0513", "0.0504 to 0.0522")
    assert all(text in audit_html(audit) for text in ("0.0506 [0.0503, 0.0509]", "0.0513 [0.0504, 0.0522]"))
    pairs = beyond["pairs"]
    tables = render(
        [with_statistics(audit, second_opinion=by_occlusion(pairs), classes=(ClassBias(1, 0.5, 12, pairs),))]
    )
    assert tables.count("<td>0.0506 [0.0503, 0.0509]") == 3  # by gradient, by occlusion and of the class
    assert "<td>0.0513 [0.0504, 0.0522]" in tables
    within = {
        "pairs": (PairBias(0.0496, 0.0495, 0.0497),),
        "answer_change": AnswerChange(0.0497, 0.0490, 0.0498, "classes"),
        "mirror_mismatch": Interval(0.0098, 0.0096, 0.0099),
    }
    same = with_statistics(make_audit("a", UNIFORM), **within)
    assert "(mirror mismatch 0.0098, tolerated up to 0.01)" in said(same)
    assert "(answer change 0.0497, tolerated up to 0.05)" in said(same)
    equal = decided(same, "balanced", method="gradient")
    assert "(the largest pair bias is 0.0496; tolerance ±0.05)" in said(equal)
    unsettled = with_statistics(same, pairs=(PairBias(0.04, 0.03, 0.0503),), methods_agree=None)
    assert "pair bias 0.0300 to 0.0503" in plain(agreement_sentence(unsettled))


def test_methods_that_agree():
    assert agreement_sentence(make_audit("a", PRETRAINED)) == (
        "The methods agree: the slice before the middle gets 1.44 times the attention of the one after it by gradient, "
        "and 1.20 times by occlusion."
    )
    assert agreement_sentence(make_audit("a", UNIFORM)) == (
        "The methods agree: by gradient and by occlusion, opposite slices get equal attention."
    )
    only = with_statistics(make_audit("a", PRETRAINED), pairs=(PairBias(-1.0, -1.0, -1.0),))
    assert "by gradient the slice before the middle gets the attention of its pair and" in agreement_sentence(
        only
    )


def test_methods_are_not_said_to_agree_about_what_one_does_not_judge():
    audit = with_statistics(
        make_audit("a", UNIFORM),
        pairs=(PairBias(0.02, 0.01, 0.03),),
        methods_agree=True,
        second_opinion=by_occlusion((PairBias(-0.4, -0.5, -0.3, judged=False),)),
    )
    assert plain(agreement_sentence(audit)) == (
        "The methods agree: by gradient both get equal attention, by occlusion both get less than 2 % of the attention, too "
        "little to be judged."
    )


PAIRS = {
    bias: PairBias(bias, bias - 0.02, bias + 0.02, judged=bias > -0.5)
    for bias in (-0.6, 0.0, 0.04, 0.15, 0.2, 0.35, 0.6)
}


@pytest.mark.parametrize(
    ("first", "second", "agree", "k"),
    [
        ((0.2, 0.15), (0.6, 0.0), False, 2),  # the first pair leans to the same side by both
        ((0.2, 0.04), (0.35, 0.04), None, 2),  # the second is open
        ((0.2, 0.6), (0.0, -0.6), False, 1),  # the second is not judged by both
        ((0.0, 0.6), (0.0, -0.6), None, 2),
    ],
)
def test_the_pair_that_methods_differ_about_is_told(first, second, agree, k):
    audit = with_statistics(
        make_audit("a", CYCLIC),
        pairs=tuple(PAIRS[bias] for bias in first),
        methods_agree=agree,
        second_opinion=by_occlusion(tuple(PAIRS[bias] for bias in second)),
    )
    assert f" about the slices ±{k}" in agreement_sentence(audit)


def test_equal_attention_is_not_said_of_a_method_that_judges_no_pair():
    audit = with_statistics(
        make_audit("a", UNIFORM),
        verdict="balanced",
        pairs=(PairBias(0.001, -0.01, 0.012),),
        classes=(),
        second_opinion=by_occlusion((PairBias(0.9, 0.88, 0.92, judged=False),)),
    )
    assert "get equal attention by gradient (the largest pair bias is 0.001;" in verdict_sentence(audit)


def test_the_bound_that_decides_about_the_answer_is_told_where_the_shown_one_does_not():
    audit = make_audit("a", UNIFORM, windows=64)
    found = dataclasses.replace(
        audit.measurements,
        mirror_disagreement=np.zeros(64),
        mirror_error=np.full(64, 0.1),
        foreground=np.ones(64),
    )
    statistics = summarize(found)
    audit = dataclasses.replace(audit, measurements=found, statistics=statistics)
    audit = with_statistics(
        audit, verdict="inconclusive", decided_by=Decision("answer"), answer_tolerance=0.05
    )
    high = 1 - 0.05 ** (1 / 64)
    assert audit.answer.high == pytest.approx(high)
    assert plain(verdict_sentence(audit)).startswith(
        "Inconclusive: whether reversing a window changes more than 5 % of the answer is not settled (answer change 0, "
        f"95 % interval 0 to {high:.3f}; that of 97 %, which decides, reaches {1 - 0.03 ** (1 / 64):.3f});"
    )
    narrow = with_statistics(audit, answer_tolerance=0.025)
    assert "changes more than 2.5 % of the answer" in plain(verdict_sentence(narrow))
    assert "which decides" not in verdict_sentence(narrow)


def test_methods_that_disagree():
    audit = with_statistics(
        make_audit("a", PRETRAINED),
        methods_agree=False,
        second_opinion=by_occlusion((PairBias(0.1, 0.08, 0.12),)),
    )
    assert agreement_sentence(audit) == (
        "The methods disagree: by gradient the slice before the middle gets 1.44 times the attention of the one after "
        "it, by occlusion the slice after the middle gets 1.22 times the attention of the one before it."
    )
    fair = with_statistics(audit, second_opinion=by_occlusion((PairBias(0.0, -0.01, 0.01),)))
    assert agreement_sentence(fair).endswith("by occlusion both get equal attention.")
    unsure = with_statistics(audit, second_opinion=by_occlusion((PairBias(0.1, -0.1, 0.3),)))
    assert plain(agreement_sentence(unsure)).endswith(
        "of the one before it (not certain: pair bias -0.100 to 0.300)."
    )
    # A wide interval around nearly nothing does not show equal attention.
    wide = with_statistics(audit, second_opinion=by_occlusion((PairBias(-0.03, -0.2, 0.14),)))
    assert plain(agreement_sentence(wide)).endswith(
        "by occlusion it is not certain whether both get equal attention (pair bias -0.200 to 0.140)."
    )
    five = make_audit("a", CYCLIC)
    apart = by_occlusion((five.pairs[0], PairBias(-0.2, -0.22, -0.18)))
    assert "disagree about the slices ±2: by gradient the slice 2 after the middle" in (
        agreement_sentence(with_statistics(five, methods_agree=False, second_opinion=apart))
    )


def test_agreement_that_is_not_settled():
    audit = with_statistics(make_audit("a", PRETRAINED, windows=50), methods_agree=None)
    assert agreement_sentence(audit).startswith(
        "Whether the methods agree is not settled: by gradient the slice"
    )
    assert agreement_sentence(audit).endswith("(the second method saw 5 distinct slices, 8 are needed).")
    audit = with_statistics(make_audit("a", PRETRAINED, windows=10), methods_agree=None)
    assert agreement_sentence(audit).endswith("(the second method saw 1 distinct slice, 8 are needed).")


def test_a_black_box_has_the_test_of_its_answer_beside_occlusion():
    audit = make_audit("a", PRETRAINED, run={"method": "occlusion"})
    audit = with_statistics(audit, second_opinion=None, methods_agree=None)
    assert agreement_sentence(audit) == (
        "Only occlusion can be used on this network; the test of its answer stands beside it."
    )
    assert "no second opinion" in agreement_sentence(
        dataclasses.replace(audit, run=dataclasses.replace(audit.run, method="gradient"))
    )


def test_agreement_is_the_first_thing_said(audits, tmp_path):
    assert headline(audits[:1]) == agreement_sentence(audits[0])
    mixed = [with_statistics(audits[0], methods_agree=False), audits[1], older(audits[2].renamed("old"))]
    assert headline(mixed) == (
        "The methods disagree about pretrained; they agree about uniform; answer and use were not measured by the "
        "version that made old. Of 3 audits, 2 are biased and 1 is symmetric."
    )
    page = Page(write_report(audits[:1], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert next(text for text in page.text if "The methods" in text) == headline(audits[:1])


def test_a_network_without_a_second_opinion_is_not_one_for_occlusion_alone(audits):
    lacking = with_statistics(audits[0], methods_agree=None, second_opinion=None)
    black_box = dataclasses.replace(
        lacking.renamed("black box"), run=dataclasses.replace(lacking.run, method="occlusion")
    )
    assert methods_sentence([lacking, black_box, audits[1]]) == (
        "The methods agree about uniform; only occlusion can be used on black box; there is no second opinion on "
        "pretrained."
    )


def test_the_headline_counts(audits):
    assert headline(audits).endswith("Of 3 audits, 2 are biased and 1 is symmetric.")
    balanced = decided(audits[1], "balanced", method="gradient")
    assert headline([audits[0], balanced]).endswith("Of 2 audits, 1 is biased and 1 is balanced.")


def by(method, shares, name=None, **changes):
    audit = make_audit(name or method, shares, run={"method": method})
    return with_statistics(audit, **changes) if changes else audit


OPPOSITE = (PairBias(0.1, 0.08, 0.12),)


@pytest.mark.parametrize(
    ("second", "agree", "says"),
    [
        (by("smoothgrad", PRETRAINED), True, "Gradient and smoothgrad agree: biased."),
        (
            by("integrated_gradients", UNIFORM, verdict="balanced"),
            False,
            "The methods disagree: biased by gradient, balanced by integrated gradients.",
        ),
        (
            by("occlusion", UNIFORM, verdict="inconclusive"),
            None,
            "Not every method settles it: biased by gradient, inconclusive by occlusion.",
        ),
        (
            by("occlusion", PRETRAINED, pairs=OPPOSITE),
            False,
            "Gradient and occlusion disagree about which of the slices ±1 is favoured: biased by gradient and by occlusion.",
        ),
    ],
    ids=["agree", "disagree", "open", "opposite"],
)
def test_several_methods_give_one_conclusion(second, agree, says):
    (found,) = conclude([by("gradient", PRETRAINED), second])
    assert (found.agree, found.says) == (agree, says)
    assert found.verdicts == {"gradient": "biased", second.run.method: second.verdict}


def test_methods_that_all_leave_the_verdict_open_are_not_said_to_agree():
    (found,) = conclude(
        [by(method, UNIFORM, verdict="inconclusive") for method in ("gradient", "smoothgrad")]
    )
    assert (found.agree, found.says) == (
        None,
        "The verdicts by gradient and smoothgrad are both inconclusive.",
    )


def test_methods_that_find_no_bias_agree():
    (found,) = conclude([by("gradient", UNIFORM), by("occlusion", UNIFORM, verdict="balanced")])
    assert found.agree is True
    assert found.says == "No method finds a bias: symmetric by gradient, balanced by occlusion."


def test_repeated_audits_by_one_method_have_no_conclusion():
    assert (
        conclude(
            [by("gradient", PRETRAINED, "a"), by("gradient", UNIFORM, "a"), by("occlusion", UNIFORM, "a")]
        )
        == []
    )


def test_conclusions_are_drawn_for_each_network():
    audits = [
        by(method, shares, f"{strategy}, {method}")
        for strategy, shares in (("pretrained", PRETRAINED), ("uniform", UNIFORM))
        for method in ("gradient", "occlusion")
    ]
    assert conclusion(audits) == (
        "pretrained: gradient and occlusion agree: biased. uniform: gradient and occlusion agree: symmetric."
    )
    assert headline(audits) == conclusion(audits)
    audits[0] = with_statistics(audits[0], methods_agree=False)
    assert headline(audits).startswith(
        f"{conclusion(audits)} The methods disagree about 'pretrained, gradient'; "
    )


@pytest.mark.parametrize(
    "rests",
    [
        {"methods_agree": False},
        {"methods_agree": None},
        {"decided_by": Decision("answer")},
    ],
    ids=["contradicted", "not settled", "by the answer"],
)
def test_verdicts_that_do_not_rest_on_methods_that_agree_are_not_called_agreement(rests):
    audits = [by(method, PRETRAINED, **rests) for method in ("gradient", "occlusion", "smoothgrad")]
    assert conclusion(audits) == "The verdicts by gradient, occlusion and smoothgrad are all biased."
    assert conclusion(audits[:2]) == "The verdicts by gradient and occlusion are both biased."


def test_audits_of_different_networks_have_no_conclusion(audits):
    assert conclusion(audits) == ""
    other = by("occlusion", PRETRAINED)
    other = dataclasses.replace(other, run=dataclasses.replace(other.run, model={"spec": "another"}))
    assert conclusion([by("gradient", PRETRAINED), other]) == ""


# Questions.


def test_the_three_questions_say_whether_they_are_within_their_tolerance():
    found = {question.name: question for question in three_questions(make_audit("a", PRETRAINED))}
    assert {name: question.found for name, question in found.items()} == {
        "attention": "beyond ±0.05",
        "answer": "beyond 0.05",
        "use": "beyond 0.01",
    }
    assert [name for name, question in found.items() if question.decided] == ["attention"]
    assert [figure.label for figure in found["attention"].figures] == ["gradient", "occlusion"]
    fair = three_questions(make_audit("a", UNIFORM))
    assert [(item.state, item.decided) for item in fair] == [
        ("within", False),
        ("within", False),
        ("within", True),
    ]
    assert three_questions(make_audit("a", (1.0,))) == ()


def test_the_summary_calls_open_what_did_not_decide():
    audit = make_audit("a", PRETRAINED)
    assert "decided by: attention, by gradient" in audit_html(audit)
    inconclusive = decided(audit, "inconclusive", method="gradient")
    assert "open: attention, by gradient" in audit_html(inconclusive)
    assert "decided by" not in audit_html(inconclusive)


def test_the_answer_change_of_outputs_without_classes_is_explained(page):
    assert (
        "of outputs without classes, with the target sum, or where one class alone is predicted, the size of the change of "
        "the scores" in page
    )


def test_the_questions_never_contradict_the_verdict():
    edge = PairBias(0.04, 0.029, 0.051)  # the verdict rests on a slightly narrower interval
    audit = with_statistics(make_audit("a", UNIFORM), pairs=(edge,))
    assert three_questions(decided(audit, "balanced", method="gradient"))[0].state == "within"
    assert three_questions(decided(audit, "inconclusive", method="gradient"))[0].state == "open"
    surely = with_statistics(audit, pairs=(PairBias(0.07, 0.051, 0.09),))  # but not together with all others
    assert three_questions(decided(surely, "inconclusive", method="gradient"))[0].state == "open"
    assert three_questions(decided(surely, "biased", method="gradient", offset=1))[0].state == "beyond"


def test_what_kept_the_verdict_open_is_not_called_within():
    """C and E are judged by wider intervals than those of 95 %, and E for each pair besides."""
    audit = make_audit("a", UNIFORM)
    open_answer = decided(audit, "inconclusive", "answer")
    assert [item.state for item in three_questions(open_answer)] == ["within", "open", "within"]
    balanced = decided(audit, "balanced", method="gradient")
    assert [item.state for item in three_questions(balanced)] == ["within", "within", "open"]


def test_a_bound_that_a_file_does_not_hold_is_not_within_the_tolerance():
    audit = with_statistics(
        make_audit("a", UNIFORM), answer_change=AnswerChange(0.03, 0.0, math.nan, "classes")
    )
    assert three_questions(decided(audit, "inconclusive", "answer"))[1].state == "open"


def test_a_class_that_no_window_explained_is_named():
    audit = decided(make_audit("a", UNIFORM), "inconclusive", method="gradient", class_number=7)
    assert three_questions(audit)[0].state == "open"
    assert "class 7 covers at least 1 % of the pixels, but its attention has not" in verdict_sentence(audit)


def test_an_open_answer_is_told_by_its_own_slices():
    """Foreground in 5 of 120 slices says too little, however narrow the interval."""
    audit = make_audit("a", UNIFORM)
    foreground = np.where(np.arange(120) < 5, 0.4, 0.0)
    audit = dataclasses.replace(
        audit, measurements=dataclasses.replace(audit.measurements, foreground=foreground)
    )
    audit = decided(audit, "inconclusive", "answer")
    assert "5 distinct slices were seen with an answer, 8 are needed" in verdict_sentence(audit)
    assert three_questions(audit)[1].found == "fewer than 8 slices"


def test_windows_without_attribution_in_both_orders_are_not_told_to_be_too_few():
    audit = decided(make_audit("a", UNIFORM), "inconclusive", method="gradient")
    audit = dataclasses.replace(audit, run=dataclasses.replace(audit.run, windows_without_attribution=120))
    assert "no window has an attribution in both orders of its slices" in verdict_sentence(audit)


def test_a_change_of_numbers_is_not_told_as_one_of_classes():
    """One class is predicted everywhere, so C compares the outputs."""
    audit = make_audit("a", PRETRAINED)
    assert audit.answer.of == "classes"
    scores = dataclasses.replace(audit.answer, of="scores")
    audit = decided(with_statistics(audit, answer_change=scores), "biased", "answer")
    assert "of the difference of unrelated outputs" in verdict_sentence(audit)


def test_what_an_older_version_did_not_measure_is_said(tmp_path):
    audits = load_audits(Path(__file__).parents[1] / "data" / "written-by-0.1.0" / "audit")
    text = " ".join(Page(write_report(audits, tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "Answer and use were not measured by the version that made this audit." in text
    assert [question.found for question in three_questions(audits[0])[1:]] == ["not measured"] * 2
    assert "nan" not in text.lower().split()


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
    assert network_names([one, two]) == "package.Network (one) and onnx, weights net.onnx (two)"
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
    for figure in (drawing.figure, drawing.narrow):
        assert titles(figure) == ["before =\npretrained", "uniform\nafter", "cyclic\nafter"]
        assert inputs(figure)[2] == ["−2", "−1", "0", "+1", "+2"]  # noqa: RUF001
    assert "except where the network averages over each window and its mirror" in drawing.reading
    alone = draw_kernels(audits[1:2])
    assert titles(alone.figure) == ["before", "uniform\nafter"]
    assert inputs(alone.figure) == [["R", "G", "B"], ["−1", "0", "+1"]]  # noqa: RUF001


def test_kernels_of_a_network_read_from_a_file_are_not_called_before(audits):
    """What they were before is not known, and their inputs are slices, not colours."""
    pretrained, uniform = audits[:2]
    after = uniform.kernels[0].after
    read_back = dataclasses.replace(uniform, kernels=(dataclasses.replace(uniform.kernels[0], before=after),))
    drawing = draw_kernels([pretrained, read_back])
    assert titles(drawing.figure) == ["pretrained", "uniform"]
    assert inputs(drawing.figure) == [["−1", "0", "+1"]] * 2  # noqa: RUF001
    shown = [axes.images[0].get_array() for axes in drawing.figure.axes if axes.images]
    filters = [int(label.get_text()) for label in drawing.figure.axes[0].get_yticklabels()]
    for picture, kernels in zip(shown, (pretrained.kernels[0].after, after), strict=True):
        np.testing.assert_array_equal(picture[:3, :3], kernels[filters[0], 0])


def test_kernels_of_networks_that_differ_have_their_own_before_and_filters(audits):
    other = StemKernels(
        "encoder.stem_0", np.ones((4, 3, 7, 7), np.float32), np.zeros((4, 3, 7, 7), np.float32)
    )
    mixed = [audits[1], dataclasses.replace(audits[1].renamed("other"), kernels=(other,))]
    drawing = draw_kernels(mixed)
    assert titles(drawing.figure) == ["uniform\nbefore", "uniform\nafter", "other\nbefore", "other\nafter"]
    for axes in (axes for axes in drawing.narrow.axes if axes.images):
        box = axes.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1


# Charts.


def test_both_methods_are_in_the_chart_and_nothing_lies_off_the_axis(audits):
    wide = by_occlusion((PairBias(0.6, -0.2, 0.9),))
    figure = biases_figure([with_statistics(audits[0], second_opinion=wide)]).figure
    axes = figure.axes[0]
    assert {line.get_marker() for line in axes.lines} >= {"o", "x"}
    low, high = axes.get_xlim()
    assert all(low <= x <= high for line in axes.lines for x in line.get_xdata())
    assert high > 0.9
    reading = biases_figure(audits).reading
    assert "fair" not in reading  # which takes more than equal attention
    assert (
        "Attention is equal if markers and intervals under the model part lie within the shaded tolerance"
        in reading
    )
    assert [text.get_text() for text in figure.legends[0].texts] == ["gradient", "occlusion"]


def test_every_chart_has_a_figure_for_narrow_screens(audits):
    with settings():
        for drawing in draw_charts(audits):
            assert drawing.narrow.get_figwidth() < 6 < drawing.figure.get_figwidth()


def test_charts_are_laid_out_once(audits, monkeypatch, tmp_path):
    """Saving a figure lays it out anew, and draws it twice, unless its layout is settled."""
    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(self) or draw(self, renderer))
    with settings():
        for drawing in draw_charts(audits):
            drawn.clear()
            drawing.figure.savefig(tmp_path / "chart.svg")
            drawing.narrow.savefig(tmp_path / "narrow.svg")
            assert drawn == [drawing.figure, drawing.narrow]


def test_intervals_as_text():
    assert plain(interval(Interval(-0.2346, -0.25, 2e-6))) == "-0.235 [-0.250, 2.0e-6]"
    assert interval(None) == interval(NAN) == "–"  # noqa: RUF001 - the dash that stands for no figure
    assert interval(Interval(0.5, float("nan"), float("nan"))) == "0.500"
    assert plain(interval(Interval(0.0, -np.inf, np.inf))) == "0 [-∞, ∞]"


def test_nearly_all_is_not_called_all():
    assert [plain(percent(share)) for share in (0.994, 0.997, 1 - 1e-9, 1.0, 1.004)] == [
        *("99 %", "more than 99 %", "100 %"),  # but for rounding
        *("100 %", "100 %"),
    ]


def test_labels_are_short_and_on_one_line():
    assert one_line("a\n\tb\x00c") == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"


def test_longer_labels_are_on_two_lines():
    assert few_lines("mirror tied") == "mirror tied"
    assert few_lines("pretrained with\nmissing slices") == "pretrained with missing\nslices"
    assert few_lines("a-b " * 30, 11) == "a-b a-b a-b\na-b a-b…"
    assert few_lines("x" * 90, 10) == "x" * 10 + "\n…"


# Numbers.


def test_pair_biases_in_closed_form():
    audit = make_audit("a", CYCLIC, windows=2)
    measured = dataclasses.replace(
        audit.measurements,
        shares=np.array([[0.1, 0.2, 0.1, 0.3, 0.3], [0.0, 0.5, 0.5, 0.0, 0.0]]),
        mirrored_shares=np.array([[0.3, 0.3, 0.1, 0.2, 0.1], [0.0, 0.0, 0.5, 0.5, 0.0]]),
    )
    parts = split_biases(measured)
    np.testing.assert_allclose(parts.model, np.zeros((2, 2)), atol=1e-15)
    np.testing.assert_allclose(parts.data, np.array([[0.2, 0.5], [-1, 0]]))


@given(
    hnp.arrays(np.float64, (4, 7), elements=st.floats(0, 1)),
    hnp.arrays(np.float64, (4, 7), elements=st.floats(0, 1)),
)
def test_the_parts_of_a_pair_bias_stay_in_range_and_add_up(shares, mirrored):
    measured = dataclasses.replace(make_measurements(), shares=shares, mirrored_shares=mirrored)
    parts = split_biases(measured)
    swapped = split_biases(dataclasses.replace(measured, shares=mirrored, mirrored_shares=shares))
    assert np.all(np.abs(parts.model) <= 1)
    assert np.all(np.abs(parts.data) <= 1)
    np.testing.assert_array_equal(swapped.model, parts.model)
    np.testing.assert_array_equal(swapped.data, -parts.data)


def make_measurements():
    return make_audit("a", (1 / 7,) * 7, windows=4).measurements


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
        for value in (*audit.shares, *audit.pairs, *statistics.data_pairs, *statistics.wasserstein, *singles):
            assert plain(interval(value)) in text
    for value in ("60303ae2" * 8, "evenslice audit --model", "brain.nii.gz", "2.9.0"):
        assert value in text


def test_every_picture_has_a_text_and_every_figure_a_reading(page):
    assert page.count("<figcaption>") == page.count('<div class="chart">') == 4
    assert page.count('<svg role="img" aria-label=') == 2 * 4 + 2 * (3 + 3 + 5)  # charts are there twice
    assert page.count("<svg ") == 1 + page.count(
        '<svg role="img" aria-label='
    )  # the store of images alone has none


def test_colours_of_the_figures_follow_the_page(page):
    drawings = "".join(re.findall(r'<div class="chart">.*?</div>', page, flags=re.DOTALL))
    assert "var(--ink)" in drawings
    for index in range(3):
        assert f"var(--audit-{index})" in drawings
        assert audit_colour(index) not in drawings


def test_an_image_that_audits_share_is_kept_once():
    pair = [make_audit(name, PRETRAINED) for name in ("a", "b")]
    assert [[row.name for row in panel.rows] for panel in example_panels(pair)] == [["a", "b"], ["a", "b"]]


def test_saliency_is_on_one_scale_across_slices_and_audits():
    panel, _ = example_panels([make_audit(name, s) for name, s in (("a", PRETRAINED), ("b", UNIFORM))])
    middle, after = (np.mean(panel.rows[0].overlays[k][..., 3]) for k in (1, 2))
    even = np.mean(panel.rows[1].overlays[1][..., 3])
    assert after < even < middle


def test_names_of_stems_may_hold_backslashes(tmp_path):
    audit = make_audit("a", PRETRAINED)
    named = dataclasses.replace(audit, kernels=(dataclasses.replace(audit.kernels[0], name=r"conv\1\q"),))
    assert r"conv\1\q" in write_report([named], tmp_path / "report.html").read_text(encoding="utf-8")


def test_saliency_in_half_precision_is_drawn():
    audit = make_audit("a", PRETRAINED, examples=1, size=300)
    half = dataclasses.replace(audit.examples, saliency=audit.examples.saliency.astype(np.float16))
    (panel,) = example_panels([dataclasses.replace(audit, examples=half)])
    assert max(panel.rows[0].overlays[0].shape[:2]) == MAX_PIXELS


def test_large_slices_are_shrunk_and_keep_their_shape(tmp_path):
    audit = make_audit("a", PRETRAINED, examples=1, size=300)
    audit = dataclasses.replace(
        audit,
        examples=dataclasses.replace(
            audit.examples,
            images=audit.examples.images[..., :200],
            saliency=audit.examples.saliency[..., :200],
        ),
    )
    (panel,) = example_panels([audit])
    assert panel.rows[0].images[0].shape == (MAX_PIXELS, round(MAX_PIXELS * 2 / 3))
    assert panel.rows[0].overlays[0].shape == (*panel.rows[0].images[0].shape, 4)


def test_the_page_stays_small(tmp_path):
    path = write_report([make_audit("a", CYCLIC, examples=8, size=256)], tmp_path / "report.html")
    assert path.stat().st_size < 3_000_000


def test_hostile_text_stays_text(tmp_path):
    audit = make_audit(
        HOSTILE,
        PRETRAINED,
        examples=1,
        run={"command": HOSTILE, "model": {HOSTILE: [HOSTILE, {"x": HOSTILE}]}},
    )
    audit = dataclasses.replace(audit, kernels=(dataclasses.replace(audit.kernels[0], name=HOSTILE),))
    other = make_audit("other", UNIFORM)
    parsed = Page(write_report([audit, other], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert parsed.tags.count("script") == 1
    assert "img" not in parsed.tags
    for path in write_figures([audit, other], tmp_path):
        if path.suffix == ".svg":
            ET.parse(path)  # noqa: S314 - our own file


def test_names_in_charts_are_not_taken_for_markup(tmp_path):
    name = 'a id="b" d="M 1.23456" #1b1f24'
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
    assert ("course" in page.ids) == (slices > 1)
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
    assert "first 48 of 320 inputs" in page.text


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
    nothing = dict.fromkeys(
        (
            "directional_bias",
            "data_direction",
            "asymmetry",
            "imbalance",
            "mirror_error",
            "mirror_disagreement",
            "answer_change",
            "mirror_mismatch",
        ),
        NAN,
    )
    audit = with_statistics(
        audit,
        verdict="inconclusive",
        shares=(NAN,) * 3,
        pairs=(PairBias(*dataclasses.astuple(NAN)),),
        second_opinion=None,
        classes=(),
        data_pairs=(NAN,),
        wasserstein=(NAN,),
        **nothing,
    )
    empty = np.full_like(audit.measurements.shares, np.nan)
    audit = dataclasses.replace(
        audit,
        measurements=dataclasses.replace(audit.measurements, shares=empty, mirrored_shares=empty),
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
        f"{n}{s}" for n in ("shares", "biases", "course", "kernels-1", "example-1") for s in (".png", ".svg")
    } <= names
    assert names == {path.name for path in (tmp_path / "new" / "figures").iterdir()}
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    assert dict(mpl.rcParams) == before


def test_tables_hold_every_figure_and_every_window(audits, tmp_path):
    figures, windows, run = (read(path) for path in write_tables(audits, tmp_path))
    (row,) = [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("cyclic", "pairs", "2")]
    assert [float(row[key]) for key in ("estimate", "low", "high")] == list(
        dataclasses.astuple(audits[2].pairs[1])[:3]
    )
    assert (row["judged"], row["method"], row["class"]) == ("True", "gradient", "")
    second = [r for r in figures if (r["audit"], r["figure"]) == ("cyclic", "second_opinion")]
    assert [(r["method"], r["offset"]) for r in second] == [("occlusion", "1"), ("occlusion", "2")]
    classes = [r for r in figures if (r["audit"], r["figure"]) == ("pretrained", "classes")]
    assert [(r["class"], r["offset"], r["method"]) for r in classes] == [
        ("0", "1", "gradient"),
        ("1", "1", "gradient"),
    ]
    (change,) = [r for r in figures if (r["audit"], r["figure"]) == ("pretrained", "answer_change")]
    assert float(change["estimate"]) == audits[0].answer.estimate
    for name in ("foreground", "change", "power", "level"):
        assert float(windows[-1][name]) == getattr(audits[2].measurements, name)[-1]
    for name in ("mismatch", "outer"):
        assert float(windows[-1][f"{name}_2"]) == getattr(audits[2].measurements, name)[-1, 1]
        assert windows[0][f"{name}_2"] == ""
    assert not [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("uniform", "pairs", "2")]
    assert len(windows) == sum(len(audit.measurements.volume) for audit in audits)
    assert windows[0]["share_-2"] == windows[0]["pair_model_2"] == ""
    assert float(windows[0]["share_-1"]) == audits[0].measurements.shares[0, 0]
    assert float(windows[-1]["wasserstein_2"]) == audits[2].measurements.wasserstein[-1, 1]
    assert int(windows[-1]["z"]) == audits[2].measurements.position[-1, 0]
    assert {"setting": "verdict", "pretrained": "biased", "uniform": "symmetric", "cyclic": "biased"} in run
    assert {"setting": "methods_agree", "pretrained": "True", "uniform": "True", "cyclic": "True"} in run
    assert {
        "setting": "decided_by.question",
        "pretrained": "attention",
        "uniform": "use",
        "cyclic": "attention",
    } in run
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


def test_the_old_report_stays_when_the_new_one_fails(audits, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_report(audits[:1], path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


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
    losses = (BriefLoss("missing", 1, 0.6, 0.8, 0.5, Interval(0.2, 0.1, 0.3)),)
    stress = StressSummary("labels", 16, 0.9, 0.85, losses)
    audits = [
        dataclasses.replace(by(method, shares, f"{strategy}, {method}"), stress=stress)
        for strategy, shares in (("pretrained", PRETRAINED), ("uniform", UNIFORM))
        for method in ("gradient", "occlusion")
    ]
    with settings():
        draw_charts(audits)
        draw_charts([audit.renamed(audit.run.method) for audit in audits[:2]])
    assert [[(item.name, item.index) for item in items] for items in drawn] == [
        [("pretrained", 0), ("uniform", 2)],
        [("gradient", 0)],  # alone, it has no legend
    ]
