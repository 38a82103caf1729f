"""What notebooks show of an audit, a survey and a study: short tables, with all text escaped."""

import json
from dataclasses import replace
from html.parser import HTMLParser

from pages import plain
from synthetic import PRETRAINED, UNIFORM, make_audit
from synthetic_study import make_study

from evenslice.auditing import Survey
from evenslice.results.intervals import Interval
from evenslice.results.surveys import SurveyedNetwork
from evenslice.studying.study_runner import _ShownSummary

HOSTILE = "<img src=x onerror=alert(1)>"


class _Tables(HTMLParser):
    """Collects the tags of a page, the cells of its tables, and the rest of its text."""

    def __init__(self):
        super().__init__()
        self.tags, self.rows, self.text = [], [], []

    def handle_starttag(self, tag, attrs):  # noqa: ARG002  # given by the parser
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        inside = self.rows and self.tags[-1] in ("td", "th")
        (self.rows[-1] if inside else self.text).append(plain(data).strip("\xa0 "))


def parsed(shown):
    page = _Tables()
    page.feed(shown._repr_html_())
    return page


def test_an_audit_says_its_verdict_first():
    biased = parsed(make_audit("pretrained", PRETRAINED))
    assert biased.text[0] == "biased"
    assert [row[0] for row in biased.rows[:4]] == ["slice", "-1", "0", "+1"]
    assert biased.rows[1][1].startswith("0.26")
    assert parsed(make_audit("fair", UNIFORM)).text[0] == "symmetric"


def test_how_long_an_audit_took_is_said_only_where_it_is_known():
    known = make_audit("one", PRETRAINED, windows=1)
    assert parsed(known).text[-1] == "1 window in 41 s; precision reached"
    unknown = make_audit("array", PRETRAINED, windows=2, run={"seconds": None, "stopped": ""})
    assert parsed(unknown).text[-1] == "2 windows"


def test_what_a_question_found_is_said_of_its_figures_together():
    """One method may be beyond the tolerance and the other not."""
    rows = parsed(make_audit("pretrained", PRETRAINED)).rows
    first = [row[0] for row in rows].index("attention")
    (_, found, figure), *others = rows[first : first + 4]
    assert found == "beyond \N{PLUS-MINUS SIGN}0.05"
    assert figure.startswith("gradient -0.")
    assert [row[:2] for row in others] == [["", ""], ["answer", "beyond 0.05"], ["use", "beyond 0.01"]]
    assert others[0][2].startswith("occlusion ")


def test_the_text_of_results_is_escaped():
    audit = make_audit("audit", PRETRAINED, run={"stopped": HOSTILE})
    failed = SurveyedNetwork(HOSTILE, "imagenet", error=HOSTILE)
    for page in (parsed(audit), parsed(Survey((failed,)))):
        assert "img" not in page.tags
        assert any(HOSTILE in text for text in [*page.text, *(cell for row in page.rows for cell in row)])


def test_a_survey_counts_the_biased_networks(tmp_path):
    known = Interval(-0.2, -0.21, -0.19)
    network = SurveyedNetwork(
        "timm:a",
        "imagenet",
        energy=(0.2, 0.7, 0.1),
        chromatic=0.5,
        verdict="biased",
        shares=tuple(Interval(share, share, share) for share in (0.25, 0.5, 0.25)),
        pairs=(known,),
        directional_bias=known,
        mirror_error=known,
        mirror_disagreement=known,
    )
    page = parsed(Survey((network, SurveyedNetwork("timm:b", "imagenet", error="no such network"))))
    assert page.text == ["2 networks: 1 biased, 1 failed."]
    for windows, few in ((4, True), (40, False)):
        open_ = replace(network, verdict="inconclusive", windows=windows)
        assert ("Fewer than 8 slices were seen" in parsed(Survey((open_,))).text[0]) == few
    alone = Survey((network,)).to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>Survey of 1 network</title>" in alone
    assert page.rows[1] == ["timm:a", "biased", "0.250 0.500 0.250", "-0.200 [-0.210, -0.190]"]
    assert page.rows[3] == ["timm:b", "no such network"]


def test_a_study_shows_what_its_arms_cost(tmp_path):
    arms = {"pretrained": (-0.19, 0.0), "worse": (0.0, -0.1)}
    folder = make_study(tmp_path / "study", comparisons=[("A", "net"), ("B", "net")], arms=arms)
    page = parsed(_ShownSummary(json.loads((folder / "summary.json").read_text())))
    assert page.text == ["12 of 12 runs finished", "Both data sets, net", "A, net", "B, net"]
    assert page.rows[0] == ["arm", "Dice [95 %]", "minus pretrained", "not inferior?"]
    assert page.rows[2][0] == "worse"
    assert page.rows[2][2].startswith("-0.10")
    assert page.rows[2][3] == "inferior"
