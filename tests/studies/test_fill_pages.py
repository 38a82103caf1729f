"""The tables of the pages are those that the results of studies and benchmarks give."""

import csv
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


def test_every_run_of_a_study_is_done_and_its_arms_are_in_its_configuration(studies):
    for study in studies:
        assert study.summary.finished == study.summary.planned == len(study.runs)
        assert {run["arm"] for run in study.runs} == {item["name"] for item in study.config["arms"]}


def test_the_survey_says_of_its_networks_what_its_rows_say():
    with (DOCS.parent / "studies" / "survey.csv").open(newline="") as file:
        every = list(csv.DictReader(file))
    rows, trained = ([row for row in every if row["kind"] == kind] for kind in ("encoder", "trained"))
    assert [
        float(row["directional_bias_high"]) < 0 < float(row["red"]) - float(row["blue"]) for row in trained
    ] == [True] * 3
    leaning = [
        row for row in rows if float(row["directional_bias_low"]) * float(row["directional_bias_high"]) > 0
    ]
    redder = {row["network"]: float(row["red"]) - float(row["blue"]) for row in rows}
    red_first = [row for row in leaning if redder[row["network"]] * float(row["directional_bias"]) < 0]
    assert (len(rows), len(leaning), len(red_first)) == (7, 6, 5)
    chromatic = [float(row["chromatic"]) for row in rows]
    assert (round(min(chromatic), 2), round(max(chromatic), 2)) == (0.20, 0.55)
    decided = [row["decided_by"].split() for row in rows]
    assert all({"saliency", "answer"} <= {*names} for names in decided)
    assert sum("reliance" in names for names in decided) == 4
    assert min(redder, key=lambda name: abs(redder[name])) == "EfficientNet-Lite2"


def test_the_survey_says_of_the_network_of_ct_what_its_rows_say():
    with (DOCS.parent / "studies" / "survey-ct.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = (DOCS / "survey.md").read_text().replace("\N{MINUS SIGN}", "-")
    assert [row["axis"] for row in rows] == ["z", "y", "x"]
    assert f"pair bias of {rows[0]['taps']} along z" in text
    for row in rows:
        assert f"{row['gradient']} [{row['gradient_low']}, {row['gradient_high']}]" in text


def test_the_survey_says_of_random_draws_what_their_rows_say():
    rows = {}
    for name in ("survey", "survey-null"):
        with (DOCS.parent / "studies" / f"{name}.csv").open(newline="") as file:
            rows[name] = [row for row in csv.DictReader(file) if row["kind"] == "encoder"]
    drawn = rows["survey-null"]
    assert len({row["seed"] for row in drawn}) * 6 == len(drawn)
    leaning, others = (
        [
            row
            for row in found
            if float(row["directional_bias_low"]) > 0.05 or float(row["directional_bias_high"]) < -0.05
        ]
        for found in (drawn, rows["survey"])
    )
    before = sum(float(row["directional_bias"]) < 0 for row in leaning)
    changed = sum(float(row["answer_change_low"]) > 0.05 for row in drawn)
    sizes = [
        np.median([abs(float(row["directional_bias"])) for row in found]) for found in (drawn, rows["survey"])
    ]
    text = " ".join((DOCS / "survey.md").read_text().split())
    assert f"Of {len(drawn)} random draws" in text
    assert (
        f"{len(leaning)} lean by more than 0.05 with the whole interval, {before} of them to the slice"
        in text
    )
    assert f"Their median |D| is {sizes[0]:.3f}, the pretrained networks' {sizes[1]:.3f}" in text
    alone = [row for row in drawn if row["decided_by"] == "answer"]
    said = f"C is above 0.05 in {changed}: audits call all of them biased, too, {len(alone)} by their answers alone"
    assert (said in text, {row["verdict"] for row in drawn}) == (True, {"biased"})
    assert [float(row["directional_bias"]) < 0 for row in others] == [True] * 6
    for page in (DOCS.parent / "README.md", DOCS / "explanation" / "claims.md"):
        assert f"{len(leaning)} of {len(drawn)} random" in " ".join(page.read_text().split())
