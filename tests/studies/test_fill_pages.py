"""The tables of the pages are those that the results of studies and benchmarks give."""

import dataclasses
from pathlib import Path

import fill_pages as pages
import numpy as np
import pytest
import study_results as results

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def studies():
    return [pages.Study.read(name) for name in pages.NAMES]


def test_every_table_on_the_pages_is_that_of_the_committed_results(studies):
    for page, tables in pages.tables(studies).items():
        text = (DOCS / page).read_text(encoding="utf-8")
        assert pages.fill(text, tables) == text, f"{page}: run make results"


def test_figures_of_a_mean_over_runs_are_those_of_the_summary(studies):
    """Losses over all data sets stand in both: pooled here from the runs, and in the summary of the study."""
    arms = [arm for study in studies for arm in study.pooled if arm.name == study.summary.baseline]
    arms = [arm for arm in arms if any(run.get("stress_both") for run in arm.runs)]
    assert len(arms) == 6
    for arm in arms:
        own = arm.mean(lambda run, _: results.lost("both", run)).interval()
        known = dataclasses.astuple(arm.entry.metrics["loss_both"])
        assert dataclasses.astuple(own) == pytest.approx(known, abs=1e-9)


def test_a_run_that_studies_share_has_one_verdict_and_counts_once(studies):
    """And audits of version 0.2 are not mixed with later ones, whose rows say what they define."""
    runs = [run for study in studies if study.name not in ("short", "compute") for run in study.runs]
    assert not any(run.get("definitions") for run in runs)
    judged = {(run["key"], run["verdict"]) for run in runs}
    counts = [
        int(cell) for part in pages.verdict_table(studies).split("|") if (cell := part.strip()).isdigit()
    ]
    assert sum(counts) == len(judged) == len({key for key, _ in judged}) < len(runs)


def test_every_run_of_a_study_is_done_and_its_arms_are_in_its_configuration(studies):
    for study in studies:
        assert study.summary.finished == study.summary.planned == len(study.runs)
        assert {run["arm"] for run in study.runs} == {item["name"] for item in study.config["arms"]}


def surveyed(name, kind):
    rows = [row for row in results.read_rows(results.STUDIES / f"{name}.csv") if row["kind"] == kind]
    return rows, [pages.bounds(row, "directional_bias") for row in rows]


def said(page):
    return " ".join(page.read_text().replace("\N{MINUS SIGN}", "-").split())


def test_the_survey_says_of_its_networks_what_its_rows_say():
    rows, leans = surveyed("survey", "encoder")
    trained = zip(*surveyed("survey", "trained"), strict=True)
    assert [lean.high < 0 < float(row["red"]) - float(row["blue"]) for row, lean in trained] == [True] * 3
    redder = {row["network"]: float(row["red"]) - float(row["blue"]) for row in rows}
    leaning = [lean.low * lean.high > 0 for lean in leans]
    red_first = [redder[row["network"]] * lean.estimate < 0 for row, lean in zip(rows, leans, strict=True)]
    assert (len(rows), sum(leaning), np.logical_and(leaning, red_first).sum()) == (7, 6, 5)
    chromatic = [float(row["chromatic"]) for row in rows]
    assert (round(min(chromatic), 2), round(max(chromatic), 2)) == (0.20, 0.55)
    decided = [row["decided_by"].split() for row in rows]
    assert all({"saliency", "answer"} <= {*names} for names in decided)
    assert sum("reliance" in names for names in decided) == 4
    assert min(redder, key=lambda name: abs(redder[name])) == "EfficientNet-Lite2"


def test_the_survey_says_of_the_network_of_ct_and_its_random_draws_what_their_rows_say():
    rows, text = results.read_rows(results.STUDIES / "survey-ct.csv"), said(DOCS / "survey.md")
    assert [row["axis"] for row in rows] == ["z", "y", "x"] * 6
    assert f"pair bias of {rows[0]['taps']} along z" in text
    for row in rows[:3]:
        assert f"{row['gradient']} [{row['gradient_low']}, {row['gradient_high']}]" in text
    largest = max(abs(float(row["gradient"])) for row in rows[3:])
    assert f"by at most {largest:.3f} along any axis" in text


def test_the_survey_says_of_random_draws_what_their_rows_say():
    (drawn, leans), (_, others) = surveyed("survey-null", "encoder"), surveyed("survey", "encoder")
    assert len({row["seed"] for row in drawn}) * 6 == len(drawn)
    leaning, pretrained = (
        [lean.estimate for lean in found if lean.low > 0.05 or lean.high < -0.05] for found in (leans, others)
    )
    assert [lean < 0 for lean in pretrained] == [True] * 6
    before = sum(lean < 0 for lean in leaning)
    median, other = (np.median([abs(lean.estimate) for lean in found]) for found in (leans, others))
    changed = sum(float(row["answer_change_low"]) > 0.05 for row in drawn)
    alone = sum(row["decided_by"] == "answer" for row in drawn)
    assert {row["verdict"] for row in drawn} == {"biased"}
    rows, functions = surveyed("survey-null", "trained")
    sizes = {row["network"][:3]: [] for row in rows}
    for row, lean in zip(rows, functions, strict=True):
        sizes[row["network"][:3]].append(abs(lean.estimate))
    vit, ssd, resnet = sizes.values()
    for claim in (
        f"Of {len(drawn)} random draws",
        f"{len(leaning)} lean by more than 0.05 with the whole interval, {before} of them to the slice",
        f"Their median |D| is {median:.3f}, the pretrained networks' {other:.3f}",
        f"C is above 0.05 in {changed}: audits call all of them biased, too, {alone} by their answers alone",
        f"the ResNet leans by at most {max(resnet):.3f}, the transformer by {max(vit):.3f}, but the detector",
        f"detector of faces by {min(ssd):.3f} to {max(ssd):.3f}, to either side",
    ):
        assert claim in said(DOCS / "survey.md")
    for page in (DOCS.parent / "README.md", DOCS / "explanation" / "claims.md"):
        assert f"{len(leaning)} of {len(drawn)} random" in said(page)
