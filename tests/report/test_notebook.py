"""What notebooks show of an audit and a survey: short tables, with all text escaped."""

import re
from html import unescape

from pages import plain
from surveyed import make_survey, network
from synthetic import PRETRAINED, UNIFORM, make_audit

from evenslice import Survey

HOSTILE = "<img src=x onerror=alert(1)>"


def parsed(shown):
    """What a notebook shows of a result: its tags, the text outside of tables, and the cells of each row."""
    text = shown._repr_html_()
    rows = [
        re.findall(r"(?s)<t[dh][^>]*>(.*?)&nbsp;&nbsp;</t[dh]>", row)
        for row in re.findall(r"(?s)<tr>(.*?)</tr>", text)
    ]
    outside = re.sub(r"(?s)<table>.*?</table>", "", text)
    lines = [line for line in (plain(unescape(part)) for part in re.split(r"<[^>]+>", outside)) if line]
    return lines, [[plain(unescape(cell)) for cell in row] for row in rows]


def test_an_audit_says_its_verdict_first_and_answers_four_questions():
    lines, rows = parsed(make_audit("pretrained", PRETRAINED))
    assert lines[0] == "biased"
    assert lines[1].startswith("Biased in its gradient maps (z-1 gets 59 % of its pair)")
    assert rows[0] == ["question", "", "figure [95 %]", "of", "found"]
    assert [row[0].split()[0] for row in rows[1:]] == ["saliency", "reliance", "answer", "use"]
    assert (rows[1][4], lines[2]) == ("beyond ±0.05", "* Decided the verdict, or left it open.")
    assert rows[1][2].startswith("-0.181 [")
    assert any(line.startswith("Next: before training, evenslice neutralize --model ") for line in lines)
    assert lines[-1].startswith("Input: slices in 0 to 1")
    assert parsed(make_audit("fair", UNIFORM))[0][0] == "symmetric"


def test_the_text_of_results_is_escaped():
    run = {"scaling": {"mean": 0, "std": 1, "source": "stated"}, "method": HOSTILE}
    for shown in (make_audit("audit", PRETRAINED, run=run), Survey((network(HOSTILE, 0.0, error=HOSTILE),))):
        assert "<img" not in shown._repr_html_()
        assert "&lt;img" in shown._repr_html_()


def test_a_survey_counts_the_biased_networks(tmp_path):
    survey = make_survey()
    lines, rows = parsed(survey)
    assert lines[0] == "4 networks: 2 biased, 1 symmetric, 1 failed."
    page = survey.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<title>Survey: {lines[0]}</title>" in page
    figures = dict(zip(rows[0], rows[1], strict=True))
    assert (figures["verdict"], figures["D_m"]) == ("biased\npartly random", "-0.210 [-0.230, -0.190]")
    assert (figures["energy"], figures["shares"]) == ("0.200 0.700 0.100", "0.300 0.500 0.200")
    assert rows[-1] == ["timm:nix", "timm has no network 'nix'"]
