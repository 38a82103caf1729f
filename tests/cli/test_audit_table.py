"""What the terminal says of audits: the verdict, whether the methods agree, a table of 80 columns, and a conclusion."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit

from evenslice.auditing.documents import load_audits
from evenslice.cli.printing import show_audits
from evenslice.cli.tables import VERDICT_STYLES, audit_table
from evenslice.results.asymmetry import AnswerChange, PairBias, SecondOpinion
from evenslice.results.intervals import Interval
from evenslice.results.stress import BriefLoss, StressSummary
from evenslice.results.verdicts import Decision

WIDTH = 80


@pytest.fixture
def shown(monkeypatch, capsys):
    """Print audits and return the lines."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def shown(*audits):
        show_audits(audits, None, json=False)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= WIDTH
        return [" ".join(line.split()) for line in lines if line.strip()]

    return shown


def with_statistics(audit, **changes):
    return dataclasses.replace(audit, statistics=dataclasses.replace(audit.statistics, **changes))


def with_run(audit, **changes):
    return dataclasses.replace(audit, run=dataclasses.replace(audit.run, **changes))


def test_a_row_has_the_verdict_what_decided_it_and_the_three_questions(shown):
    known = PairBias(-0.181, -0.185, -0.177), SecondOpinion("occlusion", 12, (PairBias(-0.09, -0.11, -0.07),))
    pretrained = with_statistics(
        make_audit("pretrained", PRETRAINED), pairs=known[:1], second_opinion=known[1]
    )
    lines = shown(pretrained, make_audit("uniform", UNIFORM))
    assert lines[0] == "The methods agree about both audits."
    assert "network decided by gradient occlusion answer use" in lines
    at = lines.index("pretrained biased -0.181 ± .004 -0.090 ± .020 .300 .750")
    assert lines[at + 1 : at + 3] == ["120 windows attention", "gradient"]
    at = lines.index("uniform symmetric 0.000 ± .000 0.000 ± .000 .000 3e-7")
    assert lines[at + 1] == "120 windows use"


@pytest.mark.parametrize("width", [30, 38, 45, 60])
def test_a_narrow_terminal_breaks_lines_and_cuts_nothing(monkeypatch, capsys, width):
    audit = with_statistics(make_audit("pretrained", PRETRAINED), pairs=(PairBias(-0.193, -0.207, -0.179),))

    def printed(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_audits([audit], None, json=False)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= columns
        return sorted("".join(text.replace("─", "").split()))

    assert printed(width) == printed(80)


def test_agreement_stands_above_the_table(shown):
    audit = with_statistics(make_audit("pretrained", PRETRAINED), methods_agree=False)
    assert " The methods disagree: by gradient the slice before the middle gets" in " ".join(shown(audit)[:6])


def test_the_verdict_is_the_first_thing_said_of_a_single_audit(shown):
    audit = with_statistics(
        make_audit("even", UNIFORM),
        verdict="biased",
        decided_by=Decision("answer"),
        answer_change=AnswerChange(0.3, 0.25, 0.35, "classes"),
    )
    text = " ".join(shown(audit))
    assert text.startswith("Biased: reversing a window changes the class of 30")
    assert text.index("although opposite slices get equal attention") < text.index("The methods agree: ")
    assert shown(audit, make_audit("uniform", UNIFORM))[0] == "The methods agree about both audits."
    one = [make_audit(method, (1.0,), run={"method": method}) for method in ("gradient", "occlusion")]
    for audits in (one, one[:1]):
        assert (
            " ".join(shown(*audits)).count("Not applicable: a window of one slice has no mirrored pair") == 1
        )


def test_several_methods_have_one_conclusion_below_the_table(shown):
    audits = [
        make_audit("gradient", PRETRAINED, run={"method": "gradient"}),
        make_audit("integrated_gradients", UNIFORM, run={"method": "integrated_gradients"}),
    ]
    lines = shown(*audits)
    assert lines[-1] == "The methods disagree: biased by gradient, symmetric by integrated gradients."
    assert any("first method" in line for line in lines)  # the cells name it


def test_the_class_the_method_and_the_pair_that_decided_are_named(shown):
    decision = Decision("attention", "occlusion", 2, 1)
    audit = with_statistics(make_audit("five", CYCLIC), decided_by=decision)
    text = "\n".join(shown(audit))
    for word in ("occlusion", "class 2", "k = 1", "-0.346 ± ", "+0.331 ± ", "-0.173 ± ", "+0.163 ± "):
        assert word in text


def test_pairs_are_told_apart_and_tolerances_stand_below(shown):
    lines = shown(make_audit("five", CYCLIC), with_statistics(make_audit("even", (0.2,) * 5), tolerance=0.05))
    assert any("k=1 -0.346 ± " in line and "k=1 -0.173 ± " in line for line in lines)
    assert any("k=2 +0.331 ± " in line and "k=2 +0.163 ± " in line for line in lines)
    assert lines[-1] == "Tolerances: pair bias within ±.05, C up to .05, E up to .01."
    strict = with_statistics(make_audit("three", PRETRAINED), answer_tolerance=0.01)
    lines = shown(strict)
    assert lines[-1] == "Tolerances: pair bias within ±.05, C up to .01, E up to .01."
    assert not any("k=1" in line for line in lines)
    assert not any("Tolerances:" in line for line in shown(strict, make_audit("three", PRETRAINED)))


def test_an_answer_without_classes_is_marked(shown):
    audit = make_audit("regression", UNIFORM)
    note = "† Of scores: the target is sum, or one class alone is predicted."
    for kind in ("scores", "classes", "unknown"):
        lines = shown(with_statistics(audit, answer_change=AnswerChange(0.1, 0.08, 0.12, kind)))
        assert (note in lines) == any(".100†" in line for line in lines) == (kind == "scores")


def test_the_question_that_is_open_is_named(shown):
    audit = with_statistics(
        make_audit("network", PRETRAINED),
        verdict="inconclusive",
        decided_by=Decision("attention", "gradient"),
    )
    lines = shown(audit)
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["network", "inconclusive"])
    assert [line.split()[-1] for line in lines[at + 1 : at + 4]] == ["open:", "attention", "gradient"]


def test_too_few_slices_are_explained(shown):
    note = "Fewer than 8 slices seen: raise --max-windows, or audit a larger volume as well."
    for windows in (5, 50):
        audit = with_statistics(
            make_audit("network", PRETRAINED, windows=windows),
            verdict="inconclusive",
            decided_by=Decision("attention", "gradient"),
        )
        assert (note in " ".join(shown(audit))) == (windows == 5)
    assert note not in " ".join(shown(make_audit("network", PRETRAINED, windows=5)))  # whose answer is biased


def test_a_pair_that_is_not_judged_stands_in_brackets(shown):
    lines = shown(make_audit("tiny pair", (0.004, 0.99, 0.006)))
    assert any("(+0.196 ± " in line for line in lines)
    assert lines[-1] == "(…) Too little attention to be judged."


def test_one_window_is_not_called_windows(shown):
    lost = StressSummary("labels", 1, 0.9, 0.85, ())
    lines = shown(dataclasses.replace(make_audit("one", PRETRAINED, windows=1), stress=lost))
    assert any(line.startswith("1 window ") for line in lines)
    assert "Dice when slices are disturbed, 1 window" in lines


def test_brackets_of_the_second_method_are_explained_too(shown):
    audit = with_statistics(
        make_audit("network", PRETRAINED),
        second_opinion=SecondOpinion("occlusion", 12, (PairBias(-0.09, -0.11, -0.07, judged=False),)),
    )
    lines = shown(audit)
    assert any("(-0.090 ± .020)" in line for line in lines)
    assert lines[-1] == "(…) Too little attention to be judged."


NARROW, BROAD = PairBias(-0.2, -0.205, -0.195), PairBias(-0.2, -0.22, -0.18)


@pytest.mark.parametrize(
    ("stopped", "precision", "pair", "noted"),
    [
        ("precision reached", 0.01, NARROW, False),
        ("limit reached", 0.01, BROAD, True),
        ("all windows used", 0.01, BROAD, True),
        ("limit reached", 0.01, NARROW, False),  # and yet precise
        ("all windows used", 0.01, NARROW, False),
        ("all windows used", None, BROAD, False),
        ("", 0.01, BROAD, False),
        ("limit reached", 0.01, PairBias(-0.99, -1.0, -0.97), True),  # cut off at the end of its range
        ("limit reached", 0.01, PairBias(math.nan, math.nan, math.nan), True),
    ],
)
def test_the_note_on_precision_is_true(shown, stopped, precision, pair, noted):
    audit = with_run(make_audit("network", PRETRAINED), stopped=stopped, precision=precision)
    text = "\n".join(shown(with_statistics(audit, pairs=(pair,))))
    assert ("* Stopped before reaching --precision." in text) == noted
    assert ("120 windows *" in text) == noted


def test_an_older_audit_says_what_it_did_not_measure(shown):
    audits = load_audits(Path(__file__).parents[1] / "data" / "written-by-0.1.0" / "audit")
    lines = shown(*audits)
    assert lines[0] == "Answer and use were not measured by the version that made both audits."
    assert any(line.endswith("none none none") for line in lines)


def test_what_is_not_known_is_none(shown):
    unknown = AnswerChange(math.nan, math.nan, math.nan)
    audit = with_statistics(
        make_audit("network", PRETRAINED),
        verdict="inconclusive",
        decided_by=Decision("attention"),
        pairs=(PairBias(math.nan, math.nan, math.nan),),
        answer_change=unknown,
        mirror_mismatch=unknown,
        second_opinion=None,
    )
    assert not any("nan" in line for line in shown(audit))
    assert shown(make_audit("one", (1.0,)))[1] == "attention, answer and use"


def test_every_verdict_has_a_style():
    for verdict in ("symmetric", "balanced", "biased", "inconclusive", "not applicable"):
        assert verdict in VERDICT_STYLES
        audit_table([with_statistics(make_audit("a", UNIFORM, windows=10), verdict=verdict)])


def test_json_has_the_audits_alone(capsys):
    audits = [make_audit("a", PRETRAINED), make_audit("b", UNIFORM)]
    show_audits(audits, None, json=True)
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == ["a", "b"]
    show_audits(audits[:1], None, json=True)
    assert json.loads(capsys.readouterr().out)["name"] == "a"


def test_json_of_several_methods_has_one_shape(capsys):
    for audits in (
        [make_audit(method, (1.0,), run={"method": method}) for method in ("gradient", "smoothgrad")],
        [make_audit(method, PRETRAINED, run={"method": method}) for method in ("gradient", "smoothgrad")],
    ):
        show_audits(audits, None, json=True)
        found = json.loads(capsys.readouterr().out)
        assert [item["name"] for item in found["audits"]] == ["gradient", "smoothgrad"]
        assert len(found["conclusions"]) == (1 if audits[0].pairs else 0)


def test_an_interval_cut_off_at_the_end_of_its_range_is_shown_by_its_ends(shown):
    audit = with_statistics(make_audit("network", PRETRAINED), pairs=(PairBias(-0.98, -1.0, -0.93),))
    lines = shown(audit)
    assert any("-0.980" in line and "±" not in line.partition("-0.980")[2][:4] for line in lines)
    assert any("[-1.00, -0.93]" in line for line in lines)


def test_rounding_does_not_hide_on_which_side_of_a_tolerance_a_figure_lies(shown):
    audit = with_statistics(
        make_audit("network", PRETRAINED),
        pairs=(PairBias(0.0506, 0.0503, 0.0509),),
        answer_change=AnswerChange(0.0497, 0.049, 0.0499, "classes"),
        mirror_mismatch=Interval(0.0102, 0.01, 0.011),
    )
    line = next(line for line in shown(audit) if line.startswith("network biased"))
    assert "+0.0506 ± .0003" in line
    assert line.endswith(".0497 .0102")
    cut_off = with_statistics(audit, pairs=(PairBias(0.055, 0.052, 0.4),))
    assert any("[0.052, 0.400]" in line for line in shown(cut_off))


def test_what_a_lost_slice_costs_stands_below_once_for_each_network(shown):
    losses = (BriefLoss("missing", 1, 0.6, 0.8, 0.5, Interval(0.2, 0.1, 0.3)),)
    audit = dataclasses.replace(
        make_audit("network", PRETRAINED), stress=StressSummary("labels", 16, 0.9, 0.85, losses)
    )
    lines = shown(audit)
    assert "Dice when slices are disturbed, 16 windows" in lines
    assert "missing 1 .600 .800 .500 +.200 [+.100, +.300]" in lines
    methods = [with_run(audit.renamed(method), method=method) for method in ("gradient", "occlusion")]
    lines = shown(*methods)
    assert [line for line in lines if "disturbed" in line] == ["Dice when slices are disturbed, 16 windows"]
    methods = [one.renamed(f"network, {one.name}") for one in methods]
    lines = shown(*methods, with_run(make_audit("other", UNIFORM), strategy="uniform"))
    assert [line for line in lines if "disturbed" in line] == [
        "network: Dice when slices are disturbed, 16 windows"
    ]
