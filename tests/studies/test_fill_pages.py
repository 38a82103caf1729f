"""The tables of the pages are those that the results of the studies give, and expectations are judged strictly."""

import csv
import dataclasses
import re
from pathlib import Path

import pytest
from scripts import script

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pages():
    with script("fill_pages") as module:
        yield module


@pytest.fixture(scope="module")
def studies(pages):
    return [pages.Study.read(name) for name in pages.NAMES]


@pytest.fixture(scope="module")
def judging():
    with script("study_results") as module:
        yield module


def test_every_table_on_the_pages_is_that_of_the_committed_results(pages, studies):
    for page, tables in pages.tables(studies).items():
        text = (DOCS / page).read_text(encoding="utf-8")
        assert pages.fill(text, tables) == text, f"{page}: run studies/fill_pages.py"


def test_the_charts_are_drawn_from_the_same_results(pages, studies, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    pages.draw(studies)
    for path in tmp_path.rglob("*.svg"):
        drawn, kept = (_text(each) for each in (path, DOCS / path.relative_to(tmp_path)))
        assert drawn == kept


def _text(path):
    return re.findall(r"<text[^>]*>([^<]*)", path.read_text(encoding="utf-8"))


def test_figures_of_a_mean_over_runs_are_those_of_the_summary(studies):
    """Losses over all data sets stand in both: pooled here from the runs, and in the summary of the study."""
    arms = [arm for study in studies for arm in study.pooled if arm.name == study.summary["baseline"]]
    arms = [arm for arm in arms if any(run.get("stress_both") for run in arm.runs)]
    assert len(arms) == 7
    with script("study_results") as results:
        for arm in arms:
            own = arm.mean(lambda run, _: results.lost(run, "both")).interval()
            known = dataclasses.astuple(arm.figure("loss_both"))
            assert dataclasses.astuple(own) == pytest.approx(known, abs=1e-9)


def test_an_expectation_is_refuted_by_one_and_confirmed_by_all(judging, studies):
    first, *others = studies[0].alone
    elsewhere = studies[1].alone
    nothing = lambda _: False  # noqa: E731
    everything = lambda _: True  # noqa: E731
    assert judging.judge([first], everything, nothing) == "confirmed"
    assert judging.judge([first, *others], everything, lambda arm: arm is first) == "refuted"
    assert judging.judge([first, *others], lambda arm: arm is first, nothing) == "open"
    named = judging.judge([first, *elsewhere], lambda arm: arm.study is studies[1], nothing)
    assert named == "open; confirmed in `families`"


def test_what_is_not_known_confirms_nothing(judging, studies):
    arm = next(arm for arm in studies[0].pooled if arm.name == "twin")
    unknown = dict.fromkeys(("estimate", "low", "high"))
    blank = dataclasses.replace(
        arm, entry={**arm.entry, "differences": {"dice": unknown}, "bias_removed": unknown}
    )
    assert judging.judge([blank], lambda arm: arm.change.high < 0, lambda arm: arm.change.low > 0) == "open"
    assert judging.judge([blank], lambda arm: judging.removed(arm).low >= 0.9, lambda _: False) == "open"


def test_the_best_of_several_is_tested_as_the_best_of_several(judging, studies):
    arms = [arm for arm in studies[0].pooled if judging.costs_one_pass(arm.how)]
    assert [arm.name for arm in arms] == ["twin", "mirror tied", "uniform", "center tied"]
    (best,), (alone,) = (list(judging.best_of(found)) for found in (arms, arms[:1]))
    assert best.p == pytest.approx(4 * alone.p)
    assert alone.p == pytest.approx(arms[0].test["p"])  # as the summary has it


def test_every_run_of_a_study_is_done_and_its_arms_are_in_its_configuration(studies):
    for study in studies:
        assert study.summary["finished"] == study.summary["planned"] == len(study.runs)
        assert {run["arm"] for run in study.runs} == {item["name"] for item in study.config["arms"]}


def test_the_survey_says_of_its_networks_what_its_rows_say():
    with (DOCS.parent / "studies" / "survey.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "encoder"]
    leaning = [
        row for row in rows if float(row["directional_bias_low"]) * float(row["directional_bias_high"]) > 0
    ]
    redder = {row["network"]: float(row["red"]) - float(row["blue"]) for row in rows}
    red_first = [row for row in leaning if redder[row["network"]] * float(row["directional_bias"]) < 0]
    assert (len(rows), len(leaning), len(red_first)) == (7, 6, 5)
    chromatic = [float(row["chromatic"]) for row in rows]
    assert (min(chromatic), max(chromatic)) == (0.20, 0.55)
    assert min(redder, key=lambda name: abs(redder[name])) == "EfficientNet-Lite2"
