"""What the terminal says of audits: how they were made, the verdict and what decided it; and how tables fit its width."""

import json
from pathlib import Path

import pytest
from synthetic import PRETRAINED, UNIFORM, make_audit
from synthetic_study import make_study

from evenslice import load_audits
from evenslice.cli.printing import show_audits, show_result

WIDTH = 80


@pytest.fixture
def shown(monkeypatch, capsys):
    """Print audits and return the lines."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def shown(*audits):
        show_audits(audits, None, json=False)
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) <= WIDTH for line in lines if not line.startswith(("Next: ", "You may write: ")))
        return [" ".join(line.split()) for line in lines if line.strip()]

    return shown


def test_scaling_and_verdict_stand_above_a_row_for_each_question_and_advice_below(shown):
    text = " ".join(lines := shown(make_audit("pretrained", PRETRAINED)))
    places = [
        text.index(part)
        for part in (
            "Input: slices in 0 to 1, minus mean 0.5",
            "Classes were assumed to exclude each other; if they do not, give --overlapping.",
            "Biased in its gradient maps (z",
            "On this volume: 120 of 1683 windows read.",
            "question figure [95 %] of found",
            "Next: before training, evenslice neutralize --model smp:Unet/tu-tf_efficientnet_lite0 --weights imagenet",
        )
    ]
    assert places == sorted(places)
    rows = [line for line in lines if line.split()[-2:-1] == ["beyond"]]
    assert rows[0].startswith("saliency * B −.181 [−.185, ")  # noqa: RUF001
    assert [row.split()[0] for row in rows] == ["saliency", "reliance", "answer", "use"]
    assert [row.split()[-1] for row in rows] == ["±0.05", "±0.05", "0.05", "0.01"]
    assert rows[3].startswith("use E .7")
    assert "* Decided the verdict, or left it open." in lines


def test_several_audits_have_a_sentence_and_four_rows_each(shown):
    lines = shown(make_audit("pretrained", PRETRAINED), make_audit("uniform", UNIFORM))
    assert any(line.startswith("pretrained: Biased in its gradient maps") for line in lines)
    assert any(line.startswith("uniform: Symmetric: opposite slices") for line in lines)
    assert [line for line in lines if line in ("pretrained", "uniform")] == ["pretrained", "uniform"]
    assert len([line for line in lines if line.startswith("saliency ")]) == 2
    assert any(line == "use E 0 [0, 0] within 0.01" for line in lines)


@pytest.mark.parametrize("width", [30, 38, 45, 60])
def test_a_narrow_terminal_breaks_lines_and_cuts_nothing(monkeypatch, capsys, width):
    def printed(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_audits([make_audit("pretrained", PRETRAINED)], None, json=False)
        text = capsys.readouterr().out
        (command,) = (line for line in text.splitlines() if line.startswith("Next: "))  # to be copied
        assert max(len(line) for line in text.splitlines() if line != command) <= columns
        return sorted("".join(text.replace("─", "").split()))

    assert printed(width) == printed(80)


@pytest.mark.parametrize("width", [70, 80])
def test_the_tables_of_a_study_are_not_cut_either(monkeypatch, capsys, tmp_path, width):
    sets, arms = [("Lucchi++", "net")], {"pretrained": (-0.19, 0.0), "symmetrized at the encoder": (0.0, 0.0)}
    made = make_study(tmp_path / "study", comparisons=sets, arms=arms, folds=(0, 1), size=24)
    summary = json.loads((made / "summary.json").read_text())

    def printed(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_result(summary, summary, json=False)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= columns
        assert "symmetrized" in text
        return sorted("".join(text.replace("─", "").split()))

    assert printed(width) == printed(300)


def test_an_older_audit_is_labelled(shown):
    audits = load_audits(Path(__file__).parents[1] / "data" / "written-by-0.2.0" / "audits" / "network")
    text = " ".join(shown(*audits))
    assert text.startswith("Measured with the definitions of version 0.2.")
    assert "as in version 0.2" in text
    assert "nan" not in text


def test_json_has_the_audits_alone(capsys):
    audits = [make_audit("a", PRETRAINED), make_audit("b", UNIFORM, run={"method": "occlusion"})]
    show_audits(audits, None, json=True)
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == ["a", "b"]
    show_audits(audits[:1], None, json=True)
    assert json.loads(capsys.readouterr().out)["name"] == "a"
