"""What an audit found in words and as the answers to its four questions: verdict, advice, and how it was made."""

import dataclasses
from pathlib import Path

import pytest
from pages import Page, plain
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit, with_statistics

from evenslice.auditing.documents import load_audits
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
from evenslice.report.audit_answers import subject
from evenslice.results import AuditedVolume, Decision, Figure
from evenslice.results.verdicts import AnswerChange, Mismatch


def said(audit):
    return plain(verdict_sentence(audit))


def fair(audit, verdict, *decided, **changes):
    """Return an audit whose windows differ from their mirrors, with a verdict and what decided it."""
    return with_statistics(audit, verdict=verdict, different=None, decided_by=decided, **changes)


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


def test_without_a_decision_the_judged_figure_nearest_to_its_tolerance_is_shown():
    pairs = (
        Figure(0.01, -0.04, 0.05, state="within"),
        Figure(-0.03, -0.04, -0.02, state="within"),
        Figure(0.4, 0.3, 0.5, judged=False, state="not judged"),
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


def with_run(audit, **changes):
    return dataclasses.replace(audit, run=dataclasses.replace(audit.run, **changes))


def test_a_biased_network_is_told_by_each_question_that_decided():
    audit = with_statistics(
        make_audit("a", PRETRAINED),
        pairs=(Figure(-0.2, -0.21, -0.19, state="beyond"),),
        reliance=(Figure(0.1, 0.08, 0.12, state="beyond"),),
        classes=(),
        answer_change=AnswerChange(0.32, 0.3, 0.34, True, "beyond", "classes", 1),
        decided_by=(Decision("saliency", None, 1), Decision("reliance", None, 1), Decision("answer", 1)),
    )
    assert said(audit) == (
        "Biased in its gradient maps (z-1 gets 60 % of its pair), what it relies on (z+1 is missed most) and its answers "
        "(32 % of class 1 changes when a window is reversed)."
    )
    assert [(item.verdict, item.decided) for item in four_answers(audit)] == [
        ("beyond ±0.05", True),
        ("beyond ±0.05", True),
        ("beyond 0.05", True),
        ("beyond 0.01", False),
    ]
    assert "its maps by integrated gradients" in said(with_run(audit, method="integrated_gradients"))
    scores = AnswerChange(0.16, 0.14, 0.18, True, "beyond", "scores")
    by_scores = with_statistics(audit, answer_change=scores, decided_by=(Decision("answer"),))
    assert "changes them by 16 % of what unrelated ones differ by" in said(by_scores)


def test_the_class_and_the_pair_that_decided_are_named():
    audit = with_statistics(make_audit("a", CYCLIC), decided_by=(Decision("saliency", 1, 2),))
    assert said(audit) == "Biased in its gradient maps (z+2 gets 58 % of its pair in class 1)."
    saliency, *others = four_answers(audit)
    assert (saliency.about, saliency.decided) == ("class 1, slices ±2", True)
    assert not any(item.decided for item in others)
    damaged = with_statistics(audit, decided_by=(Decision("saliency", 9, 99),))  # no such figure
    assert four_answers(damaged)[0].about == "slices ±1"


def test_fair_networks_say_how_many_windows_can_differ_and_what_was_not_judged():
    uniform = make_audit("a", UNIFORM)
    equal = "Equal in all 120 windows read"
    assert said(uniform).startswith("Symmetric: ")
    assert said(uniform).endswith(f"{equal}: fewer than 2.4 % of all can differ.")
    assert said(with_statistics(uniform, different=0.0)).endswith(f"{equal}.")
    assert equal not in said(fair(uniform, "symmetric"))
    assert [item.value for item in four_answers(uniform)] == ["0 [0, 0]"] * 4
    mismatch = Mismatch(0.3, 0.28, 0.32, state="beyond")
    balanced = fair(uniform, "balanced", Decision("use"), mirror_mismatch=mismatch)
    assert said(balanced).startswith("Balanced: ")
    assert said(with_statistics(uniform, unjudged_classes=(3, 7))).endswith(
        " below 1 % of the pixels: class 3, 7."
    )


def test_an_inconclusive_verdict_names_what_is_open_and_what_would_settle_it():
    open_ = (Decision("reliance", 1, 2), Decision("answer", 0))
    audit = fair(make_audit("a", CYCLIC), "inconclusive", *open_, needed=310)
    assert said(audit) == (
        "Not settled: reliance (class 1, slices ±2) and answer (class 0). About 310 windows would settle it (max_windows)."
    )
    assert "max_windows" in advice_sentence(audit)
    used = with_run(audit, stopped="all windows used")
    assert "would settle" not in said(used)
    assert "another volume" in advice_sentence(used)


def test_the_verdict_is_about_these_volumes_and_says_what_to_do():
    assert extent_sentence(make_audit("a", UNIFORM)) == "On this volume: 120 of 1683 windows read."
    assert (
        extent_sentence(make_audit("a", UNIFORM, volumes=2)) == "On these volumes: 120 of 3366 windows read."
    )
    assert "evenslice symmetrize" in advice_sentence(make_audit("a", PRETRAINED))
    assert advice_sentence(make_audit("a", UNIFORM)) == "There is nothing to do."
    one = make_audit("a", (1.0,))
    assert (advice_sentence(one), four_answers(one)) == ("", ())
    assert said(one).startswith("Not applicable")


def test_what_was_assumed_about_classes_is_said_for_each_audit():
    (line,) = setting_lines([make_audit("a", UNIFORM, run={"scaling": {"source": "function"}})])
    assert "scales them itself" in line
    assert "the option overlapping" in line
    clamped = make_audit("b", UNIFORM, run={"scaling": None, "assumed": False, "clamped": 0.25})
    both = setting_lines([make_audit("a", UNIFORM), clamped, make_audit("c", UNIFORM)])
    assert [text.partition(":")[0] for text in both] == ["a and c", "b"]
    assert "25 % were clamped" in plain(both[1])


def test_networks_and_volumes_are_named():
    named = "smp:Unet/tu-tf_efficientnet_lite0, weights imagenet, on brain.nii.gz (189 x 233 x 197 voxels)"
    assert subject([make_audit("a", UNIFORM), make_audit("b", UNIFORM)]) == named
    volumes = tuple(AuditedVolume(path=f"/data/em.h5:/raw/{i}", fingerprint=str(i)) for i in range(6))
    one = make_audit("one", PRETRAINED, run={"model": {"class": "package.Network"}, "volumes": volumes})
    two = make_audit("two", PRETRAINED, run={"model": {"spec": "onnx", "weights": "net.onnx"}, "volumes": ()})
    assert subject([one, two]) == (
        "package.Network and onnx, weights net.onnx, on em.h5:/raw/0, em.h5:/raw/1, em.h5:/raw/2 and 3 more"
    )
    nothing = make_audit("two", PRETRAINED, run={"model": {}, "volumes": (AuditedVolume(shape=(3, 4, 5)),)})
    assert subject([nothing]) == "a network of unknown name, on an array (3 x 4 x 5 voxels)"
