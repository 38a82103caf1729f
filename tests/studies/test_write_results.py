"""The pages of results are made of what studies found: no number in their tables is typed, and expectations are judged strictly."""

import dataclasses
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scripts
from pages import plain
from synthetic_study import ARMS, make_study

from evenslice.report.formatting import p_value
from evenslice.results.arms import Primary
from evenslice.results.intervals import Interval

ROOT = Path(__file__).parents[2]

CONFIG = """# Does it hold? A study made up
# for this test.
#
#     evenslice study made-up

arms:
  - {name: pretrained, strategy: pretrained}
  - {name: random, strategy: random}
  - {name: uniform, strategy: uniform}
  - {name: uniform tied to mirror, strategy: uniform, tie: mirror}
training: {steps: 300, batch: 8, crop: [128, 128]}
architectures:
  - {name: net, spec: "smp:Unet/resnet18"}
datasets:
  - {name: Lucchi++, train: [{image: a, labels: b}], test: [{image: c, labels: d}]}
  - name: ISBI 2012
    train: [{image: a, labels: b}]
    test: [{image: c, labels: d}]
    training: {crop: [64, 96]}
"""

NAMES = ("pretrained", "random", "uniform", "uniform tied to mirror")


@pytest.fixture(scope="module")
def script():
    with scripts.script("write_results") as module:
        yield module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a study of which only what is committed is there."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "made-up.yaml").write_text(CONFIG)
    make_study(
        folder / "made-up",
        comparisons=[("Lucchi++", "net"), ("ISBI 2012", "net")],
        arms={name: ARMS[name] for name in NAMES},
        size=48,
    )
    for path in [*folder.glob("*/config.yaml"), *folder.glob("*/runs/*/result.json")]:
        path.unlink()
    for path in folder.glob("*/runs/run-[12]-*/example.npz"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def docs(script, folder, tmp_path_factory):
    docs = tmp_path_factory.mktemp("docs")
    script.write_pages(script.find_studies(folder), folder, docs)
    return docs


def with_arm(study, name, **changes):
    """The study with an arm's summary changed in its first comparison."""
    first, *others = study.results.comparisons
    arms = tuple(dataclasses.replace(arm, **changes) if arm.arm == name else arm for arm in first.arms)
    comparisons = (dataclasses.replace(first, arms=arms), *others)
    return dataclasses.replace(study, results=dataclasses.replace(study.results, comparisons=comparisons))


def outcomes(script, study):
    return [item.outcome for item in script.expectations([study])]


def read(docs, name):
    """Return a page of results, in ASCII."""
    return plain((docs / name).read_text(encoding="utf-8"))


def test_the_pages_tell_what_was_run_and_what_came_out(script, folder, docs):
    (study,) = script.find_studies(folder)
    overview, text = read(docs, "results.md"), read(docs, "results/made-up.md")
    question = "Does it hold? A study made up for this test."
    assert f"| [`made-up`](results/made-up.md) | {question} | 24 of 24 |\n" in overview
    assert "\nresults/outcomes\nStudy made-up <results/made-up>\n```\n" in overview
    assert text.startswith(f"# {question}\n")
    commands = (
        "python studies/run_archive.py unpack\n    evenslice study studies/made-up.yaml --out studies/made-up"
    )
    assert f"\n    {commands}\n" in text
    assert "Folds of one data set" not in text
    assert (
        "| `made-up` | Lucchi++ | net | 4 | \N{EN DASH} | 0, 1, 2 | 3 | 300 | 8 of 128 x 128 | 5.5 |"
        in overview
    )
    assert (
        "| `made-up` | ISBI 2012 | net | 4 | \N{EN DASH} | 0, 1, 2 | 3 | 300 | 8 of 64 x 96 | 5.5 |"
        in overview
    )
    assert "24 of 24 runs are done.\n" in text
    assert "version 0.2" not in text
    uniform = study.results.comparisons[0].arms[2]
    change = uniform.differences["dice"]
    assert f"| uniform | 3 | {uniform.metrics['dice'].estimate:.3f} [" in text
    assert f"+{change.estimate:.3f} [{change.low:.3f}, {change.high:.3f}] | not inferior, p = " in text
    assert "| Adapted Rand error |" in text
    assert "machine" not in overview  # nobody has said what it was
    assert "nan" not in text.lower().split()


def test_a_page_says_which_audits_are_by_older_definitions(script, folder, tmp_path):
    old = shutil.copytree(folder, tmp_path / "studies")
    for path in [*old.glob("*/summary.json"), *old.glob("*/runs/*/run.json")]:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"definitions": 1}))
    script.write_pages(script.find_studies(old), old, tmp_path / "docs")
    assert "measured with the definitions of version 0.2" in read(tmp_path / "docs", "results/made-up.md")


def test_every_figure_of_the_page_is_there_and_small(docs):
    text = (docs / "results" / "made-up.md").read_text(encoding="utf-8")
    files = {path.name for path in (docs / "results").iterdir() if path.suffix != ".md"}
    charts = ("forest", "learning", "stress", "missing")
    assert files == {
        *(f"made-up-{name}.svg" for name in charts),
        "made-up-example-1.webp",
        "made-up-example-2.webp",
    }
    for name in files:
        assert f"]({name})" in text
        assert (docs / "results" / name).stat().st_size < 150_000


def test_figures_and_pages_of_earlier_studies_do_not_stay(script, folder, docs, tmp_path):
    again = shutil.copytree(docs, tmp_path / "docs")
    (again / "results" / "gone.md").write_text("")
    (again / "results" / "gone-forest.svg").write_text("")
    script.write_pages(script.find_studies(folder), folder, again)
    assert not list((again / "results").glob("gone*"))
    for page in ("results.md", "results/made-up.md", "results/outcomes.md"):
        assert (again / page).read_bytes() == (docs / page).read_bytes()


def test_what_an_outcome_rests_on_is_a_list_and_not_a_cell(script, folder, docs):
    (study,) = script.find_studies(folder)
    text = (docs / "results.md").read_text(encoding="utf-8")
    short = text[text.index("## In short") : text.index("## The defaults")]
    outcomes = (docs / "results" / "outcomes.md").read_text(encoding="utf-8")
    expected = [*script.expectations([study]), *script.pooled_expectations([study])]
    rows = re.findall(r"^\| (\d+) \| (.*) \| \*\*(.*)\*\* \|$", short, re.MULTILINE)
    assert rows == [(str(n), item.text, item.outcome) for n, item in enumerate(expected, start=1)]
    for item in expected:
        for found in item.evidence["made-up"]:
            assert f"\n  - {found}\n" in outcomes
    assert max(map(len, [*short.splitlines(), *outcomes.splitlines()])) < 300


def test_the_signs_of_a_loss_and_of_a_pair_bias_are_said_where_they_are_read(docs):
    text = (docs / "results" / "made-up.md").read_text(encoding="utf-8")
    assert "above 0 if the slice before is worth more" in text
    assert "below 0 if the slice before gets more" in text
    assert "| D_m, directional bias |" in text


def test_expectations_are_judged(script, folder):
    (study,) = script.find_studies(folder)
    assert outcomes(script, study) == ["confirmed"] * 5
    lost = Interval(-0.02, -0.03, -0.011)
    for removed, expected in [
        (Interval(0.95, 0.91, 0.99), "confirmed"),
        (Interval(0.95, 0.89, 1.0), "open"),  # the point estimate would do, its interval does not
        (Interval(0.85, 0.8, 0.91), "open"),
        (Interval(0.85, 0.8, 0.89), "refuted"),
    ]:
        assert outcomes(script, with_arm(study, "uniform", bias_removed=removed))[0] == expected
    refuted = with_arm(study, "uniform", differences={"dice": lost}, holds=False)
    assert outcomes(script, refuted)[1] == "refuted"
    for unsettled in (Interval(0.0, -0.02, 0.02), Interval(-0.02, -0.03, -0.009)):
        open_ = with_arm(study, "uniform", differences={"dice": unsettled}, holds=False)
        assert outcomes(script, open_)[1] == "open"
    untested = with_arm(study, "uniform", holds=None)
    assert outcomes(script, untested)[1] == "open"
    assert (
        outcomes(script, with_arm(study, "random", differences={"dice": Interval(-0.02, -0.05, 0.01)}))[3]
        == "open"
    )
    higher = Interval(0.01, -0.005, 0.02)
    assert outcomes(script, with_arm(study, "random", differences={"dice": higher}))[3] == "open"
    gained = Interval(0.01, 0.005, 0.02)
    assert outcomes(script, with_arm(study, "random", differences={"dice": gained}))[3] == "refuted"
    pretrained = study.results.comparisons[0].arms[0]
    for bias, expected in ((Interval(0.1, 0.04, 0.2), "open"), (Interval(0.03, 0.02, 0.04), "refuted")):
        metrics = pretrained.metrics | {"largest_bias": bias}
        assert outcomes(script, with_arm(study, "pretrained", metrics=metrics))[4] == expected


@pytest.mark.parametrize(
    ("bias", "outcome"),
    [
        (Interval(2e-5, 0.0, 9e-5), "confirmed"),
        (Interval(2e-5, 0.0, 3e-4), "open"),
        (Interval(2e-4, 1.5e-4, 3e-4), "refuted"),
        (Interval(2e-5, math.nan, math.nan), "open"),  # one seed
    ],
)
def test_a_tied_network_is_judged_by_its_interval(script, folder, bias, outcome):
    (study,) = script.find_studies(folder)
    tied = "uniform tied to mirror"
    arm = next(arm for arm in study.results.comparisons[0].arms if arm.arm == tied)
    changed = with_arm(study, tied, metrics=arm.metrics | {"largest_bias": bias})
    (expectation,) = [item for item in script.expectations([changed]) if "tied" in item.text]
    assert expectation.outcome == outcome
    assert plain(expectation.evidence["made-up"][-1]) == "ISBI 2012, net: 0 [0, 0]"


def test_of_several_exact_arms_the_worst_is_shown(script, folder):
    (study,) = script.find_studies(folder)
    arms = [item.model_copy(update={"tie": "mirror"}) for item in study.config.arms[2:]]
    tied = dataclasses.replace(
        study, config=study.config.model_copy(update={"arms": (*study.config.arms[:2], *arms)})
    )
    for arm, high in zip(arms, (9e-5, 3e-5), strict=True):
        metrics = study.results.comparisons[0].arms[2].metrics | {"largest_bias": Interval(2e-5, 1e-5, high)}
        tied = with_arm(tied, arm.name, metrics=metrics)
    (expectation,) = [item for item in script.expectations([tied]) if "tied" in item.text]
    assert (
        plain(expectation.evidence["made-up"][0])
        == "Lucchi++, net: 2.0e-5 [1.0e-5, 9.0e-5] at most, in 2 arms"
    )


def test_what_is_committed_is_judged_by_intervals(script):
    """VGG16, whose stem could not move, is not among the networks."""
    studies = [study for study in script.find_studies(ROOT / "studies") if study.results.comparisons]
    titles = {item.architecture for study in studies for item in study.results.comparisons}
    assert titles == {
        "EfficientNet-Lite0 U-Net", "EfficientNet-Lite0", "MobileNetV1 U-Net", "MobileNetV2 U-Net",
    }  # fmt: skip
    for item in script.expectations(studies):
        assert re.fullmatch(r"confirmed|refuted|open( \(interim\)| \(confirmed in `.+`\))?", item.outcome)
    for study in studies:
        for comparison in study.results.comparisons:
            for arm in comparison.arms:
                high, low = arm.metrics[study.results.score].high, arm.metrics["largest_bias"].low
                if math.isnan(high):  # of a single seed
                    assert not study.complete
                else:
                    assert high <= 1
                    assert low >= 0


FOLDED = """# Do folds show more? A study made up, too.

seeds: [0, 1]
arms:
  - {name: pretrained, strategy: pretrained}
  - {name: uniform, strategy: uniform}
  - {name: fair, network_of: pretrained, symmetrize: output}
primary: {arm: fair}
architectures:
  - {name: net, spec: "smp:Unet/resnet18"}
datasets:
  - {name: Lucchi++, pairs: [{image: a, labels: b}], blocks: 3, folds: 3}
  - {name: ISBI 2012, pairs: [{image: a, labels: b}], blocks: 3, folds: 3}
"""


def test_a_study_with_folds_begins_with_all_data_sets(script, folder, tmp_path):
    studies = shutil.copytree(folder, tmp_path / "studies")
    (studies / "folded.yaml").write_text(FOLDED)
    make_study(
        studies / "folded",
        comparisons=[("Lucchi++", "net"), ("ISBI 2012", "net")],
        arms={"pretrained": (-0.19, 0.0), "uniform": (-0.001, -0.03), "fair": (0.0, 0.01)},
        folds=(0, 1, 2),
        seeds=(0, 1),
        size=24,
        failed=[{"dataset": "d", "architecture": "n", "arm": "a", "fold": 2, "seed": 1, "error": "no luck"}],
        primary=Primary("fair", "net", 0.005),
    )
    found = script.find_studies(studies)
    script.write_pages(found, studies, tmp_path / "docs")
    part = read(tmp_path / "docs", "results/folded.md")
    assert part.startswith("# Do folds show more?")
    assert part.index("## Both data sets, net (study `folded`)") < part.index(
        "## Lucchi++, net (study `folded`)"
    )
    assert "Folds of one data set share training data, so intervals over folds may be too narrow" in part
    assert part.count("Means over folds, with 95 % intervals by Student's t.") == 2
    assert "* Primary comparison, with a margin of 0.005" in part
    assert "| fair * | " in part
    assert "| superior, p " in part
    assert "every p is interim" in part  # one run failed
    assert "- d, n, a, fold 2, seed 1: no luck" in part
    assert "| `folded` | Lucchi++ | net | 3 | 3 | 0, 1 |" in read(tmp_path / "docs", "results.md")
    assert pooled_outcomes(read(tmp_path / "docs", "results/outcomes.md")) == [
        ("Open (interim)", 1),
        ("Open (interim)", 1),
        ("Refuted", 1),  # by the other study, which is complete
    ]
    # An arm that symmetrizes another's network is none that starts uniform, whatever its unused default says.
    uniform, _, *_ = (
        item.evidence for item in script.expectations([each for each in found if each.name == "folded"])
    )
    assert [item.startswith("Lucchi++, net") for item in uniform["folded"]] == [True, False]


def pooled_outcomes(text):
    """What became of the last three expectations, over all data sets, and how many findings the study with folds has on each."""
    parts = re.split(r"^\*\*\d+\. ", text, flags=re.MULTILINE)[-3:]
    own = [part.partition("- Study `folded`\n")[2].partition("- Study `")[0] for part in parts]
    outcomes = [re.findall(r"\*\* (.*):$", part, re.MULTILINE)[0] for part in parts]
    return [
        (outcome, item.count("  - Both data sets, net")) for outcome, item in zip(outcomes, own, strict=True)
    ]


def folded_study(script, folder, arms, *, config=FOLDED, **options):
    """A study with three folds and two seeds of these arms, with nothing missing."""
    (folder / "folded.yaml").write_text(config)
    sets = [("Lucchi++", "net"), ("ISBI 2012", "net")]
    make_study(
        folder / "folded", comparisons=sets, arms=arms, folds=(0, 1, 2), seeds=(0, 1), size=24, **options
    )
    (study,) = script.find_studies(folder)
    return study


ARMS_FOLDED = {"pretrained": (-0.19, 0.0), "uniform": (-0.001, -0.03), "fair": (0.0, 0.01)}


def with_pooled(study, name, **changes):
    """The study with an arm over all data sets changed."""
    (pooled,) = study.results.pooled
    arms = tuple(dataclasses.replace(arm, **changes) if arm.arm == name else arm for arm in pooled.arms)
    results = dataclasses.replace(study.results, pooled=(dataclasses.replace(pooled, arms=arms),))
    return dataclasses.replace(study, results=results)


def judged(script, study, part):
    """The outcome of the expectation over all data sets that has these words."""
    (item,) = [item for item in script.pooled_expectations([study]) if part in item.text]
    return item.outcome


def test_a_primary_arm_is_judged_by_its_tests(script, tmp_path):
    study = folded_study(script, tmp_path, ARMS_FOLDED, primary=Primary("fair", "net", 0.005))
    assert study.complete
    gains = "symmetrized at the output scores higher"
    assert judged(script, study, gains) == "confirmed"
    unsettled = with_pooled(study, "fair", superior=None)
    assert judged(script, unsettled, gains) == "open"
    (both,) = [
        item.outcome
        for item in script.pooled_expectations([study, dataclasses.replace(unsettled, name="other")])
        if gains in item.text
    ]
    assert both == f"open (confirmed in `{study.name}`)"
    fair = study.results.pooled[0].arms[2]
    lower = fair.differences | {"dice": Interval(-0.02, -0.03, -0.01)}
    changes = {"superior": None, "differences": lower}
    assert judged(script, with_pooled(study, "fair", **changes), gains) == "refuted"
    unfinished = {**study.results.summary, "planned": 37}
    results = dataclasses.replace(study.results, summary=unfinished)
    assert judged(script, dataclasses.replace(study, results=results), gains) == "open (interim)"


def test_another_arm_is_judged_by_its_adjusted_p(script, tmp_path):
    study = folded_study(script, tmp_path, ARMS_FOLDED)
    gains = "symmetrized at the output scores higher"
    assert judged(script, study, gains) == "confirmed"
    for p, sign, outcome in [
        (0.049, 1, "confirmed"),
        (0.06, 1, "open"),
        (0.04, -1, "refuted"),
        (0.06, -1, "open"),
    ]:
        change = Interval(sign * 0.01, sign * 0.01 - 0.009, sign * 0.01 + 0.009)  # without 0, whatever p says
        changed = with_pooled(study, "fair", p_adjusted=p, differences={"dice": change})
        assert judged(script, changed, gains) == outcome
    (item,) = [
        item
        for item in script.pooled_expectations([with_pooled(study, "fair", p_adjusted=math.nan)])
        if gains in item.text
    ]
    assert item.evidence["folded"][-1].endswith(", no test")


def test_a_network_that_is_trained_symmetrized_is_none_that_was_symmetrized_after_training(script, tmp_path):
    trained_so = FOLDED.replace("network_of: pretrained, symmetrize", "strategy: pretrained, symmetrize")
    study = folded_study(script, tmp_path, ARMS_FOLDED, config=trained_so)
    assert not [item for item in script.pooled_expectations([study]) if "scores higher" in item.text]


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [((0.0, -0.03), "confirmed"), ((-0.02, -0.03), "refuted"), ((-0.0095, -0.03), "open")],
)
def test_the_best_fair_start_is_judged_as_the_best_of_several(script, tmp_path, gains, outcome):
    config = FOLDED.replace(
        "{name: fair, network_of: pretrained, symmetrize: output}", "{name: mirror, strategy: mirror}"
    )
    config = config.replace("primary: {arm: fair}\n", "")
    uniform, mirror = gains
    arms = {"pretrained": (-0.19, 0.0), "uniform": (0.0, uniform), "mirror": (0.0, mirror)}
    study = folded_study(script, tmp_path, arms, config=config)
    assert judged(script, study, "best fair start") == outcome
    (item,) = [item for item in script.pooled_expectations([study]) if "best fair start" in item.text]
    (best,) = [arm for arm in study.results.pooled[0].arms if arm.arm == "uniform"]
    assert best.margin == 0.01
    assert item.evidence["folded"][-1].endswith(f"the best of 2, adjusted {p_value(min(1.0, 2 * best.p))}")


def with_losses(study, losses, noise):
    """The study with the Dice that each arm loses if the slice before is missing."""
    random, runs = np.random.default_rng(0), []
    for run in study.results.runs:
        before = run.stress.intact - losses[run.arm] - noise * random.standard_normal()
        missing, *others = run.stress.losses
        assert (missing.kind, missing.offset) == ("missing", 1)
        stress = dataclasses.replace(
            run.stress, losses=(dataclasses.replace(missing, before=before), *others)
        )
        runs.append(dataclasses.replace(run, stress=stress))
    return dataclasses.replace(study, results=dataclasses.replace(study.results, runs=tuple(runs)))


@pytest.mark.parametrize(
    ("loss", "noise", "outcome"),
    [(0.05, 0.005, "confirmed"), (0.2, 0.005, "refuted"), (0.1, 0.005, "open"), (0.05, 0.2, "open")],
)
def test_a_fair_start_should_halve_what_a_missing_slice_costs(script, tmp_path, loss, noise, outcome):
    study = folded_study(script, tmp_path, ARMS_FOLDED)
    changed = with_losses(study, {"pretrained": 0.2, "uniform": loss, "fair": 0.0}, noise)
    assert judged(script, changed, "missing") == outcome
    (item,) = [item for item in script.pooled_expectations([changed]) if "missing" in item.text]
    assert item.evidence["folded"][0].startswith("Both data sets, net: uniform loses 0.")
    assert "; its loss minus half of that: " in item.evidence["folded"][0]


def test_losses_are_compared_where_an_arm_has_runs(script, tmp_path):
    """An arm of one seed beside a baseline of two: the seed that it lacks costs the baseline much more."""
    study = with_losses(
        folded_study(script, tmp_path, ARMS_FOLDED), {"pretrained": 0.2, "uniform": 0.15, "fair": 0}, 0.001
    )
    runs = [run for run in study.results.runs if (run.arm, run.seed) != ("uniform", 1)]
    for n, run in enumerate(runs):
        if (run.arm, run.seed) == ("pretrained", 1):
            missing, *others = run.stress.losses
            worse = (dataclasses.replace(missing, before=missing.before - 0.5), *others)
            runs[n] = dataclasses.replace(run, stress=dataclasses.replace(run.stress, losses=worse))
    fewer = dataclasses.replace(study, results=dataclasses.replace(study.results, runs=tuple(runs)))
    assert judged(script, fewer, "missing") == "refuted"


def test_what_is_not_known_confirms_nothing(script, folder):
    (study,) = script.find_studies(folder)
    unknown = Interval(math.nan, math.nan, math.nan)
    assert outcomes(script, with_arm(study, "uniform", bias_removed=unknown))[0] == "open"
    assert outcomes(script, with_arm(study, "uniform", differences={}, holds=None))[1] == "open"
    assert outcomes(script, with_arm(study, "random", differences={"dice": unknown}))[3] == "open"
    pretrained = study.results.comparisons[0].arms[0]
    one_seed = pretrained.metrics | {"largest_bias": Interval(0.2, math.nan, math.nan)}
    assert outcomes(script, with_arm(study, "pretrained", metrics=one_seed))[4] == "open"


def test_a_study_that_lacks_results_is_open(script, folder):
    (study,) = script.find_studies(folder)
    first, second = study.results.comparisons
    for comparisons in ((first,), (first, dataclasses.replace(second, arms=second.arms[:2]))):
        results = dataclasses.replace(study.results, comparisons=comparisons)
        found = outcomes(script, dataclasses.replace(study, results=results))
        assert set(found) == {"open (interim)"}
    unfinished = {**study.results.summary, "planned": 25}
    results = dataclasses.replace(study.results, summary=unfinished)
    assert outcomes(script, dataclasses.replace(study, results=results)) == ["open (interim)"] * 5


def test_a_study_is_planned_by_the_larger_of_its_plans(script, tmp_path):
    """The configuration may have been extended, or cut, since its results were written."""
    study = folded_study(script, tmp_path, ARMS_FOLDED)
    assert (study.planned, study.complete) == (36, True)
    extended = study.config.model_copy(update={"seeds": (0, 1, 2)})
    grown = dataclasses.replace(study, config=extended)
    assert (grown.planned, grown.complete) == (54, False)
    results = dataclasses.replace(study.results, summary={**study.results.summary, "planned": 54})
    cut = dataclasses.replace(study, results=results)
    assert (cut.planned, cut.complete) == (54, False)


TWO_NETWORKS = """# Does it hold for both networks?

seeds: [0, 1, 2]
arms:
  - {name: pretrained, strategy: pretrained}
  - {name: fair, network_of: pretrained, symmetrize: output}
  - {name: twin, strategy: twin}
primary: {arm: fair}
architectures:
  - {name: net, spec: "smp:Unet/resnet18"}
  - {name: other, spec: "smp:Unet/resnet34"}
datasets:
  - {name: Lucchi++, train: [{image: a, labels: b}], test: [{image: c, labels: d}]}
"""


def test_a_network_without_the_primary_comparison_counts_too(script, tmp_path):
    (tmp_path / "two.yaml").write_text(TWO_NETWORKS)
    make_study(
        tmp_path / "two",
        comparisons=[("Lucchi++", "net"), ("Lucchi++", "other")],
        arms={"pretrained": (-0.19, 0.0), "fair": (0.0, 0.02), "twin": (0.0, 0.0)},
        primary=Primary("fair", "net", 0.005),
        size=24,
    )
    (study,) = script.find_studies(tmp_path)
    expected = script.pooled_expectations([study])
    assert len(expected) == 3
    for item in expected:
        (one, other) = item.evidence["two"]
        assert one.startswith("Tests on Lucchi++, net: ")
        assert other.startswith("Tests on Lucchi++, other: ")


def test_comparisons_of_one_name_are_told_apart(script, folder, tmp_path):
    studies = shutil.copytree(folder, tmp_path / "studies")
    shutil.copytree(studies / "made-up", studies / "again")
    shutil.copy(studies / "made-up.yaml", studies / "again.yaml")
    found = script.find_studies(studies)
    evidence = script.expectations(found)[0].evidence
    assert list(evidence) == ["again", "made-up"]
    assert all(lines[0].startswith("Lucchi++, net: ") for lines in evidence.values())
    script.write_pages(found, studies, tmp_path / "docs")
    pages = [read(tmp_path / "docs", f"results/{name}.md") for name in ("again", "made-up")]
    headings = [line for page in pages for line in page.splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings)) == 6  # with one over all data sets in each


def test_what_was_not_run_is_not_judged(script, folder):
    (study,) = script.find_studies(folder)
    arms = tuple(arm for arm in study.config.arms if arm.name in {"pretrained", "random"})
    only = dataclasses.replace(study, config=study.config.model_copy(update={"arms": arms}))
    assert [item.text for item in script.expectations([only])] == [
        "A network that starts at random loses Dice.",
        "A network with a pretrained start still has a largest pair bias of more than 0.05 after training.",
    ]


def test_the_machine_is_noted_without_its_name(script, folder, tmp_path, monkeypatch):
    import platform

    copy = shutil.copytree(folder, tmp_path / "studies")
    arguments = ["write_results.py", "--studies", str(copy), "--docs", str(tmp_path), "--record-machine"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert script.main() == 0
    machine = json.loads((copy / "machine.json").read_text())
    assert set(machine) == {"processor", "cores", "memory", "system", "versions"}
    assert machine["cores"] >= 1
    assert machine["versions"]["python"] == platform.python_version()
    assert f'"{platform.node()}"' not in json.dumps(machine)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert f"no benchmark): {machine['processor']}, {machine['cores']} core" in text


def test_what_single_trainings_gave_is_noted_and_shown(script, folder, tmp_path, monkeypatch):
    run = tmp_path / "best"
    run.mkdir()
    found = {
        "command": "evenslice train studies/best.yaml --out runs/best",
        "config": {
            "data": {"root": "/home/somebody"},
            "model": {"spec": "x", "slices": 5, "strategy": "mirror"},
        },
        "name": "Lucchi++",
        "steps": 2300,
        "seconds": 1170.0,
        "dice": {"mean": 0.95, "per_class": [0.99, 0.95]},
        "iou": {"mean": 0.9, "per_class": [0.98, 0.9]},
        "bias": {"directional_bias": -0.012},
        "versions": {"torch": "2"},
        "machine": {"platform": "somewhere"},
    }
    (run / "result.json").write_text(json.dumps(found))
    studies = shutil.copytree(folder, tmp_path / "studies")
    arguments = ["--studies", str(studies), "--docs", str(tmp_path / "docs"), "--record", str(run)]
    monkeypatch.setattr(sys, "argv", ["write_results.py", *arguments])
    assert script.main() == 0
    noted = (studies / "trainings.json").read_text()
    assert list(json.loads(noted)) == ["best"]
    assert "some" not in noted
    row = "| `evenslice train studies/best.yaml --out runs/best` | 5 | mirror | 2300 | 19.5 | 0.950 | 0.900 | \N{MINUS SIGN}0.012 |"
    assert row in (tmp_path / "docs" / "results.md").read_text()


def test_what_other_tools_gave_is_shown(script, folder, tmp_path, monkeypatch):
    studies = shutil.copytree(folder, tmp_path / "studies")
    scores = {"iou": 0.7637, "dice": 0.866, "training": 1272.0, "prediction": 309.0}
    found = [
        {"tool": "evenslice", "version": "0.2.0", "start": "twin", "steps": 950, **scores},
        {"tool": "biapy", "version": "3.7.1", "epochs": 7, **scores},
        {"tool": "nnunet", "version": "2.8.1", "steps": 25, **scores},
    ]
    (studies / "segmenters.json").write_text(json.dumps({"machine": "two old cores", "found": found}))
    arguments = ["--studies", str(studies), "--docs", str(tmp_path / "docs")]
    monkeypatch.setattr(sys, "argv", ["write_results.py", *arguments])
    assert script.main() == 0
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "The machine: two old cores." in page
    network = "U-Net on EfficientNet-Lite0, pretrained, 3 slices, twin"
    assert f"| evenslice 0.2.0 | {network} | 950 steps | 21.2 | 5.2 | 0.764 | 0.866 |" in page
    assert "| BiaPy 3.7.1 | 2-D attention U-Net | 7 epochs | 21.2 | 5.2 | 0.764 | 0.866 |" in page
    assert "| nnU-Net 2.8.1 | 2d configuration | 25 steps | 21.2 | 5.2 | 0.764 | 0.866 |" in page


def test_without_a_study_the_page_stays(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["write_results.py", "--studies", str(tmp_path), "--docs", str(tmp_path)]
    )
    assert script.main() == 0
    assert "no study has results yet" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_studies_of_the_project_are_readable(script, tmp_path):
    """Their own configurations, with results that are made up."""
    for name in ("stress", "families"):
        shutil.copy(ROOT / "studies" / f"{name}.yaml", tmp_path)
    make_study(tmp_path / "stress", comparisons=[("ISBI 2012", "EfficientNet-Lite0 U-Net")], size=24)
    make_study(
        tmp_path / "families",
        comparisons=[("Lucchi++", "MobileNetV1 U-Net")],
        arms={name: ARMS[name] for name in ("pretrained", "random", "uniform")},
        seeds=(0, 1),
        size=24,
    )
    studies = script.find_studies(tmp_path)
    assert [study.name for study in studies] == ["stress", "families"]  # the larger one first
    assert len(script.expectations(studies)) == 4  # neither has an arm that is exactly fair, of those made up
    assert "| `stress` | ISBI 2012 | EfficientNet-Lite0 U-Net | 6 |" in script.run_table(studies)
