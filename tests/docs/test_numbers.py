"""Every number that README and pages quote of the project's studies is one that their committed results give."""

import csv
import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import shared
import study_results as results
import trained

from evenslice.report.tables import difference, interval
from evenslice.results import Interval

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SIGN = "[+\N{MINUS SIGN}]?"
OTHERS = {
    "calibration.md": "a test below",
    "survey.md": "its tables are filled in by make results",
    "planted-evidence.md": "tests/docs/test_planted_evidence.py",
    "glossary.md": "an example",
    "vouch.md": "an example",
}
"""Pages with intervals that are not of a study, and what holds them."""
PAGES = [
    ROOT / "README.md",
    *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts and path.name not in OTHERS),
]


@pytest.fixture(scope="module")
def studies():
    return {name: results.Study.read(name) for name in results.NAMES}


@pytest.fixture(scope="module")
def known(studies):
    """All that may be quoted, as one text."""
    texts = [text for study in studies.values() for text in results.quotable(study)]
    return plain("\n".join([*texts, *recomputed(studies)]))


def recomputed(studies):
    """Yield what the text says beyond the figures of arms.

    By how much C is larger than from a uniform start, for each data set; by how much more a missing slice before costs a
    pretrained start than one after, over all data sets; and how much less of that the same networks show, symmetrized at the
    output. What one slice loses beside three of two starts; starts after other steps; averages over y or x beside z.
    """

    def gain(name):
        return lambda run, other: float(run[name]) - float(other[name])

    def unequal(run):
        return results.lost("before", run) - results.lost("after", run)

    price, compute, short = (studies[name] for name in ("price", "compute", "short"))
    for arm in (*price.alone, *studies["default-crops"].alone):
        if arm.name == "uniform":
            yield interval(arm.mean(lambda run, other: gain("answer_change")(other, run)).interval())
    pooled = {arm.name: arm for arm in price.pooled}
    yield interval(pooled["pretrained"].mean(lambda run, _: unequal(run)).interval())
    less = pooled["symmetrized at the output"].mean(lambda run, other: unequal(other) - unequal(run))
    yield interval(less.interval())
    for arm in (arm for arm in (*compute.alone, *compute.pooled) if arm.name == "one slice"):
        less = arm.mean(gain("dice"), "pretrained").interval()
        yield from (difference(less), interval(Interval(-less.estimate, -less.high, -less.low)))
    both = dataclasses.replace(compute, runs=[*compute.runs, *price.runs])
    for arm in (arm for arm in (*both.alone, *both.pooled) if arm.name == "one slice"):
        yield interval(arm.mean(lambda run, other: gain("dice")(other, run), "uniform").interval())
    rows = results.read_rows(results.STUDIES / "short" / "steps.csv")
    for steps in ("100", "400", "2400"):
        runs = [run for run in rows if run["steps"] == steps]
        arms = dataclasses.replace(short, runs=runs).pooled
        yield from (difference(arm.mean(gain("dice")).interval()) for arm in arms if arm.name != "pretrained")
    flips = [row for row in shared.read_lines(trained.RESULTS) if row["measure"] == "flips"]
    yield from (write(trained.in_folds(flips)) for write in (interval, difference))


def plain(text):
    """Write an estimate and its interval in one way: on one line, in one form, and without leading zeros."""
    text = re.sub(r"\s+", " ", text).replace(" Dice [", " [")
    return re.sub(r"(?<![\d.])0\.", ".", text)


def quoted(text):
    return re.findall(rf"{SIGN}\.?\d[\d.]* \[{SIGN}\.?\d[^]]*\]", plain(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_intervals_in_the_text_are_those_of_the_studies(page, known):
    assert [interval for interval in quoted(page.read_text()) if interval not in known] == []


def test_intervals_that_are_said_to_include_0_do(studies):
    """What a reversed stack costs on each data set."""
    for arm in (arm for study in studies.values() for arm in study.alone if arm.name == "pretrained"):
        if "stress_reversed" in arm.runs[0]:
            turned = arm.mean(lambda run, _: results.lost("reversed", run)).interval()
            assert turned.low <= 0 <= turned.high


def test_single_trainings_gave_what_is_said(studies):
    found = json.loads((ROOT / "studies" / "trainings.json").read_text())
    best = [found[name]["iou"] for name in ("best", "best-1", "best-2")]
    twin = [float(run["iou"]) for run in studies["default-crops"].runs if run["arm"] == "twin"]
    page = plain((DOCS / "training.md").read_text())
    for values in (best, twin):
        assert f"{sum(values) / 3:.3f}".removeprefix("0") in page


def test_the_claims_page_says_what_the_results_say(studies):
    """What stands there beside intervals: counts of verdicts, planted evidence, classifiers."""
    page = plain((DOCS / "explanation" / "claims.md").read_text())
    pooled = {arm.name: arm for arm in studies["price"].pooled}
    uniform = pooled["uniform"].runs
    judged = Counter(run["verdict"] for run in uniform)
    assert (judged["symmetric"], judged["biased"], "nine are `biased`" in page) == (0, 9, True)
    assert f"None of {len(uniform)} networks is judged `symmetric`" in page
    with (ROOT / "benchmarks" / "results" / "planted-all-intensity.csv").open() as file:
        gradient = next(row for row in csv.DictReader(file) if row["method"] == "gradient")
    rows = shared.read_lines(ROOT / "benchmarks" / "planted-evidence.jsonl")
    cell = {"marks": "intensity", "background": "EM", "family": "EfficientNet-Lite0"}
    for start in ("pretrained", "uniform", "twin"):
        assert plain(gradient[start]) in page, start
        own = [row["gradient"]["bias"] for row in rows if {**cell, "arm": start}.items() <= row.items()]
        assert f"by {sum(abs(sum(bias) / 2) for bias in own) / len(own):.3f}".replace("0.", ".") in page
    for start in ("pretrained", "uniform"):
        shares = (
            pooled[start].mean(lambda run, _, n=n: float(run[f"share_{n}"])).interval() for n in (-1, 0, 1)
        )
        assert " ".join(f"{share.estimate:.2f}"[1:] for share in shares) in page
    arms = {arm.name: arm.entry.metrics["largest_bias"].estimate for arm in studies["classification"].pooled}
    found = f"{arms['uniform']:.3f} of a pair bias of {arms['pretrained']:.3f}".replace("0.", ".")
    assert found in page
    mixed = [arm.datasets[0] for arm in studies["price"].alone if arm.name == "uniform" and _above(arm)]
    assert (mixed, len(studies["price"].summary.comparisons)) == (["ISBI 2012", "FIB-25"], 4)
    short = [arm for arm in studies["short"].alone if arm.name == "uniform" and _above(arm)]
    assert (len(short), "on three after 200 steps" in page) == (3, True)


def _above(arm):
    """Whether the answers of the baseline change more than those of an arm, with the whole interval."""
    return arm.difference("answer_change").high < 0


def test_figures_of_calibration_and_sanity_are_those_of_the_benchmarks():
    rows = {}
    for path in (ROOT / "benchmarks" / "results").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows[path.stem] = list(csv.reader(file))
    page = (DOCS / "calibration.md").read_text()
    cells = plain("\n".join(cell for table in rows.values() for row in table for cell in row))
    assert len(quoted(page)) > 15
    assert [interval for interval in quoted(page) if interval not in cells] == []
    said = plain(page)
    verdicts = rows["calibration-verdicts"][1:]
    assert {row[4] for row in verdicts} == {"0.0%"}
    assert Counter(row[2] for row in verdicts) == {"biased": 10, "symmetric": 3, "balanced": 1}
    header, *edges = rows["calibration-tolerance"]
    numbers = [(name, float(row[n].rstrip("%") or 0)) for row in edges for n, name in enumerate(header) if n]
    worst = {word: max(each for name, each in numbers if name.endswith(word)) for word in ("biased", "fair")}
    assert f"at most {worst['biased']} % of audits said so" in said
    assert f"`symmetric` are wrong (at most {worst['fair']} %;" in said
