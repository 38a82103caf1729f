"""What the terminal says of audits: how they were made, the verdict and what decided it, and a table of the questions."""

import dataclasses
import json
from pathlib import Path

import pytest
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit

from evenslice.auditing.auditor import load_audits
from evenslice.cli.printing import show_audits
from evenslice.results import Interval
from evenslice.results.stress import BriefLoss, StressSummary
from evenslice.results.verdicts import Mismatch

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


def test_scaling_verdict_and_advice_stand_above_a_row_for_each_question(shown):
    text = " ".join(lines := shown(make_audit("pretrained", PRETRAINED)))
    places = [
        text.index(part)
        for part in (
            "Input: slices in 0 to 1, less mean 0.5",
            "Classes were assumed to exclude each other",
            "Biased in its gradient maps (z",
            "On this volume: 120 of 1683 windows read.",
            "evenslice symmetrize",
            "question figure [95 %] of found",
        )
    ]
    assert places == sorted(places)
    rows = [line for line in lines if line.split()[-2:-1] == ["beyond"]]
    assert rows[0].startswith("saliency * B −.181 [−.185, ")  # noqa: RUF001
    assert [row.split()[0] for row in rows] == ["saliency", "reliance", "answer", "use"]
    assert [row.split()[-1] for row in rows] == ["±0.05", "±0.05", "0.05", "0.01"]
    assert rows[3].startswith("use E .7")
    assert lines[-1] == "* Decided the verdict, or left it open."


def test_several_audits_have_a_sentence_and_four_rows_each(shown):
    lines = shown(make_audit("pretrained", PRETRAINED), make_audit("uniform", UNIFORM))
    assert any(line.startswith("pretrained: Biased in its gradient maps") for line in lines)
    assert any(line.startswith("uniform: Symmetric: opposite slices") for line in lines)
    assert [line for line in lines if line in ("pretrained", "uniform")] == ["pretrained", "uniform"]
    assert len([line for line in lines if line.startswith("saliency ")]) == 2
    assert any(line == "use E 0 [0, 0] within 0.01" for line in lines)


def test_the_class_and_the_pair_of_a_figure_are_named(shown):
    text = " ".join(shown(make_audit("five", CYCLIC)))
    assert "slices ±1" in text
    assert "class" in text


@pytest.mark.parametrize("width", [30, 38, 45, 60])
def test_a_narrow_terminal_breaks_lines_and_cuts_nothing(monkeypatch, capsys, width):
    def printed(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_audits([make_audit("pretrained", PRETRAINED)], None, json=False)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= columns
        return sorted("".join(text.replace("─", "").split()))

    assert printed(width) == printed(80)


def test_an_older_audit_is_labelled(shown):
    audits = load_audits(Path(__file__).parents[1] / "data" / "written-by-0.2.0" / "audits" / "network")
    text = " ".join(shown(*audits))
    assert text.startswith("Measured with the definitions of version 0.2.")
    assert "as in version 0.2" in text
    assert "nan" not in text


def test_what_is_not_known_is_not_asked(shown):
    nothing = Mismatch(float("nan"), float("nan"), float("nan"), judged=False)
    audit = with_statistics(make_audit("a", UNIFORM), mirror_mismatch=nothing, classes=())
    assert any(line.startswith("use E") and line.endswith("not asked") for line in shown(audit))


def test_json_has_the_audits_alone(capsys):
    audits = [make_audit("a", PRETRAINED), make_audit("b", UNIFORM, run={"method": "occlusion"})]
    show_audits(audits, None, json=True)
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == ["a", "b"]
    show_audits(audits[:1], None, json=True)
    assert json.loads(capsys.readouterr().out)["name"] == "a"


def test_what_a_lost_slice_costs_stands_below_once_for_each_network(shown):
    losses = (BriefLoss("missing", 1, 0.6, 0.8, 0.5, Interval(0.2, 0.1, 0.3)),)
    stress = StressSummary("labels", 16, 0.9, 0.85, losses)
    audit = dataclasses.replace(make_audit("network", PRETRAINED), stress=stress)
    lines = shown(audit)
    assert "Dice when slices are disturbed, 16 windows" in lines
    assert "missing 1 .600 .800 .500 +.200 [.100, .300]" in lines
    methods = [audit.renamed(f"network, {method}") for method in ("gradient", "occlusion")]
    assert [line for line in shown(*methods) if "disturbed" in line] == [
        "network, gradient: Dice when slices are disturbed, 16 windows"
    ]
