"""What notebooks show of an audit, a survey and a study: short tables, with all text escaped."""

import json
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


def test_an_audit_says_its_verdict_first_and_answers_four_questions():
    biased = parsed(make_audit("pretrained", PRETRAINED))
    assert biased.text[0] == "biased"
    assert biased.text[1].startswith("Biased in its gradient maps (z-1 gets 59 % of its pair)")
    assert biased.rows[0] == ["question", "", "figure [95 %]", "of", "found"]
    assert [row[0].split()[0] for row in biased.rows[1:]] == ["saliency", "reliance", "answer", "use"]
    assert biased.rows[1][4] == "beyond ±0.05"
    assert biased.rows[1][2].startswith("-0.181 [")
    assert any("evenslice symmetrize" in text for text in biased.text)
    assert biased.text[-1].startswith("Input: slices in 0 to 1")
    assert parsed(make_audit("fair", UNIFORM)).text[0] == "symmetric"


def test_the_text_of_results_is_escaped():
    audit = make_audit(
        "audit", PRETRAINED, run={"scaling": {"mean": 0, "std": 1, "source": "stated"}, "method": HOSTILE}
    )
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
    alone = Survey((network,)).to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>Survey: 1 network: 1 biased.</title>" in alone
    row = dict(zip(page.rows[0], page.rows[1], strict=True))
    assert (row["verdict"], row["D_m"]) == ("biased", "-0.200 [-0.210, -0.190]")
    assert (row["energy"], row["shares"]) == ("0.200 0.700 0.100", "0.250 0.500 0.250")
    assert page.rows[3] == ["timm:b", "no such network"]


def test_a_study_shows_what_its_arms_cost(tmp_path):
    arms = {"pretrained": (-0.19, 0.0), "worse": (0.0, -0.1)}
    folder = make_study(tmp_path / "study", comparisons=[("A", "net"), ("B", "net")], arms=arms)
    page = parsed(_ShownSummary(json.loads((folder / "summary.json").read_text())))
    assert page.text == ["12 of 12 runs finished", "Both data sets, net", "A, net", "B, net"]
    row = dict(zip(page.rows[0], page.rows[2], strict=True))
    assert row["arm"] == "worse"
    assert row["Dice minus pretrained"].startswith("-0.10")
    assert row["not inferior?"].startswith("inferior")
