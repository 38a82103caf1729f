"""The page of a study with folds: all data sets first, the primary comparison marked, folds as what means are over."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil

import pytest
from pages import plain
from rich.console import Console
from synthetic_study import make_study

from evenslice._core.text import json_text
from evenslice.cli.study_tables import study_tables
from evenslice.report.base import style
from evenslice.report.base.wording import NOTHING
from evenslice.report.files import write_study_report
from evenslice.report.study.charts import forest_figure
from evenslice.report.study.csv_files import csv_tables
from evenslice.report.study.page import draw_charts, render
from evenslice.report.study.pooled import pooled_arm_sentence, pooled_groups, pooled_sentence, shown_pooled
from evenslice.report.study.stress import stress_group
from evenslice.report.study.summary import study_html
from evenslice.report.study.tables import figure_groups
from evenslice.report.study.wording import arm_sentence
from evenslice.results.arms import summarize_runs
from evenslice.results.intervals import Interval
from evenslice.results.pooling import Primary, pool_runs
from evenslice.results.studies import load_study

ARMS = {"pretrained": (-0.19, 0.0), "uniform": (-0.001, -0.03), "fair": (0.0, 0.01)}
SETS = [("Lucchi++", "net"), ("ISBI 2012", "net")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_study(
        tmp_path_factory.mktemp("pooled") / "study",
        comparisons=SETS,
        arms=ARMS,
        folds=(0, 1, 2),
        seeds=(0, 1),
        size=24,
        primary=Primary("fair", "net", 0.005),
    )


@pytest.fixture(scope="module")
def results(folder):
    return load_study(folder)


def test_what_is_pooled_comes_back_from_the_summary(folder, results):
    (pooled,) = results.pooled
    written = json.loads((folder / "summary.json").read_text())["pooled"][0]
    assert (pooled.architecture, pooled.datasets) == ("net", ("Lucchi++", "ISBI 2012"))
    for arm, document in zip(pooled.arms, written["arms"], strict=True):
        assert arm.metrics["dice"].low == document["figures"]["dice"]["low"]
        assert arm.primary is document.get("primary", False)
    fair = pooled.arms[2]
    assert (fair.margin, fair.holds, fair.superior) == (0.005, True, True)
    assert fair.p_superior == written["arms"][2]["superiority"]["p"]
    uniform = pooled.arms[1]
    assert uniform.p_adjusted == uniform.p_differs == written["arms"][1]["difference"]["p_adjusted"]


@pytest.mark.parametrize("changed", [{"holds": "yes"}, {"p": "small"}])
def test_a_damaged_part_is_refused(folder, tmp_path, changed):
    from evenslice._core.errors import ConfigError

    bad = shutil.copytree(folder, tmp_path / "bad")
    summary = json.loads((bad / "summary.json").read_text())
    summary["pooled"][0]["arms"][1]["non_inferiority"] |= changed
    (bad / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="summary"):
        load_study(bad)


def test_the_page_begins_with_all_data_sets(results):
    with style.settings():
        text = plain(render(results, draw_charts(results)))
    assert text.index("Both data sets, net") < text.index("Lucchi++, net")
    assert "The primary comparison, named in the configuration, compares fair with pretrained." in text
    assert "This is the primary comparison." in text
    assert "12 of 12 runs" not in text
    assert "36 of 36 runs are done: 2 data sets, 1 network, 3 arms, 3 folds and 2 seeds." in text
    assert "Means over folds, with 95 % intervals by Student" in text
    assert "Compared with pretrained, fold by fold" in text


def test_arms_are_judged_over_all_data_sets(results):
    (pooled,) = results.pooled
    baseline, uniform, fair = (plain(pooled_arm_sentence(results, pooled, arm)) for arm in pooled.arms)
    assert baseline.startswith("is the baseline: its largest pair bias is 0.1")
    assert ": inferior (margin 0.01, p = " in uniform
    assert "adjusted for the number of comparisons" in uniform
    assert ": not inferior (margin 0.005, p" in fair
    assert "; superior (p " in fair
    rows = {row.label: row.cells for group in pooled_groups(results, pooled) for row in group.rows}
    assert rows["Primary: superior?"][:2] == (NOTHING, NOTHING)
    assert rows["the same, adjusted"][2] == NOTHING  # the primary comparison needs none
    margins = [cell.rpartition("margin ")[2] for cell in rows["Test of non-inferiority"][1:]]
    assert margins == ["0.01", "0.005"]
    assert "loss, missing, both at ±1" in rows


def test_rounding_does_not_hide_on_which_side_of_a_limit_a_figure_lies(results):
    (pooled,) = results.pooled
    (single, *_) = results.comparisons
    found = {
        "metrics": {"largest_bias": Interval(0.0561, 0.0498, 0.0624)},  # of which the tolerance is .05
        "differences": {"dice": Interval(-0.0075, -0.0096, -0.0054)},  # of which the margin is .01
    }

    def changed(arm):
        known = {name: {**getattr(arm, name), **values} for name, values in found.items()}
        return dataclasses.replace(arm, margin=0.01, p=0.0249, holds=True, **known)

    uniform = dataclasses.replace(changed(pooled.arms[1]), p_adjusted=0.0496)
    baseline = dataclasses.replace(pooled.arms[0], metrics={**pooled.arms[0].metrics, **found["metrics"]})
    item = dataclasses.replace(pooled, arms=(baseline, uniform))
    difference, bias = "-0.0075 [-0.0096, -0.0054]", "0.0561 [0.0498, 0.0624]"
    sentence = plain(pooled_arm_sentence(results, item, uniform))
    assert f"{difference}: not inferior (margin 0.01, p = 0.0249); difference: p = 0.0496" in sentence
    assert bias in plain(pooled_arm_sentence(results, item, baseline))
    alone = changed(single.arms[1])
    assert f"differs by {difference} and is not inferior" in plain(arm_sentence(alone, "pretrained", "fold"))
    groups = (
        *pooled_groups(results, item),
        *figure_groups(results, dataclasses.replace(single, arms=(single.arms[0], alone))),
    )
    rows = [(row.label, plain(row.cells[1])) for group in groups for row in group.rows]
    assert rows.count(("Dice", difference)) == rows.count(("largest |B|", bias)) == 2
    summary = {**results.summary, "pooled": [item.to_dict()], "comparisons": []}
    assert difference in plain(study_html(summary))
    (table,) = study_tables(summary)
    columns = [[*column.cells] for column in table.columns]
    assert ["", "-.0075\n[-.0096, -.0054]\nnot inferior\np = 0.0249"] in columns
    assert ["", "0.0496"] in columns


def test_what_a_summary_does_not_state_is_none_in_the_terminal_too(results):
    summary = json.loads(json_text(results.summary))
    for item in (*summary["comparisons"], *summary["pooled"]):
        for arm in item["arms"]:
            for name in ("directional_bias", "loss_both"):
                arm["figures"].pop(name, None)
    cells = [[*table.columns[-2].cells, *table.columns[-1].cells] for table in study_tables(summary)]
    assert all("none" in of_one for of_one in cells)


def test_no_zero_is_negative_in_the_terminal(results):
    summary = json.loads(json_text(results.summary))
    tiny = {"estimate": -0.0001, "low": -0.0002, "high": -0.00005}
    for item in (*summary["comparisons"], *summary["pooled"]):
        for arm in item["arms"]:
            arm["figures"].update(directional_bias=tiny, loss_both=tiny)
    cells = [cell for table in study_tables(summary) for column in table.columns for cell in column.cells]
    assert ".000\n[.000, .000]" in cells
    assert not any(re.search(r"-\.0*\b(?!\d)", str(cell)) for cell in cells)


def test_p_is_interim_while_runs_are_missing(results):
    def words(found):
        with style.settings():
            page = plain(render(found, draw_charts(found)))
        console = Console(width=100, record=True, file=io.StringIO())
        for table in study_tables(found.summary):
            console.print(table)
        return page, " ".join(console.export_text().split())

    page, printed = words(results)
    assert "interim" not in page + printed
    waiting = dataclasses.replace(results, summary={**results.summary, "planned": 40})
    page, printed = words(waiting)
    assert "every p is interim" in printed
    assert page.count("interim p ") == len(re.findall(r"\bp (=|&lt;) ", page)) > 0
    assert printed.count("interim p ") == len(re.findall(r"\bp [=<] ", printed)) > 0


def test_arms_with_fewer_seeds_show_how_many(folder, results, tmp_path):
    """Their means are over other runs than the baseline's, so differences need not be those of the means."""

    def shown(found):
        with style.settings():
            page = plain(render(found, draw_charts(found)))
        console = Console(width=100, record=True, file=io.StringIO())
        for table in study_tables(found.summary):
            console.print(table)
        return page, [" ".join(line.split()) for line in console.export_text().splitlines()]

    page, printed = shown(results)
    assert "folds x seeds" not in page
    assert "folds x" not in "".join(printed)
    lost = [("fair", dataset, fold, 1) for dataset, _ in SETS for fold in range(3)]
    page, printed = shown(without_runs(folder, tmp_path / "out", lost))
    assert page.count('<th scope="row">folds x seeds</th>') == 3  # over both data sets, and in each
    assert page.count("<td>3 x 1</td>") == 3
    assert page.count("<td>3 x 2</td>") == 6
    assert "a difference need not be that of the means" in page
    assert [line.split()[:4] for line in printed if line.startswith("fair ")] == [["fair", "3", "x", "1"]] * 3
    assert sum(line.startswith("pretrained 3 x 2 ") for line in printed) == 3


def test_too_few_folds_are_admitted(results, tmp_path):
    few = load_study(
        make_study(tmp_path / "few", comparisons=SETS, arms=ARMS, folds=(0, 1), seeds=(0,), size=24)
    )
    assert "the 95 % intervals cover in only 89 % of cases" in plain(pooled_sentence(few, few.pooled[0]))
    assert "89 %" not in plain(pooled_sentence(results, results.pooled[0]))


def test_data_sets_with_other_numbers_of_folds_are_named(results):
    first, second = results.comparisons
    arms = tuple(dataclasses.replace(arm, folds=(0, 1)) for arm in first.arms)
    unequal = dataclasses.replace(results, comparisons=(dataclasses.replace(first, arms=arms), second))
    said = plain(pooled_sentence(unequal, results.pooled[0]))
    assert "The numbers of replicates differ: 2 folds of Lucchi++ and 3 folds of ISBI 2012." in said
    assert "numbers of replicates" not in pooled_sentence(results, results.pooled[0])


def test_an_arm_with_fewer_folds_or_seeds_than_others_is_named(results):
    first, second = results.comparisons
    arms = tuple(
        dataclasses.replace(arm, folds=(0, 1) if arm.arm == "fair" else (0, 1, 2)) for arm in first.arms
    )
    all_few = tuple(dataclasses.replace(arm, folds=(0, 1)) for arm in second.arms)
    few = dataclasses.replace(
        results,
        comparisons=(dataclasses.replace(first, arms=arms), dataclasses.replace(second, arms=all_few)),
    )
    said = plain(pooled_sentence(few, results.pooled[0]))
    assert " Lucchi++ (fair) and ISBI 2012 have fewer than 3 replicates: " in said


def without(folder, out, *, arm, dataset, folds=(0, 1, 2), seeds=(0, 1)):
    """A study in which the runs of an arm on a data set have failed, in some folds."""
    return without_runs(folder, out, [(arm, dataset, fold, seed) for fold in folds for seed in seeds])


def without_runs(folder, out, failed, **changes):
    """A study in which runs have failed, and metrics of the others are changed."""
    shutil.copytree(folder, out)
    summary = json.loads((out / "summary.json").read_text())
    records = [json.loads(path.read_text()) for path in sorted(out.glob("runs/*/run.json"))]
    names = ("arm", "dataset", "fold", "seed")
    left = [record | changes for record in records if tuple(record[name] for name in names) not in failed]
    summary["comparisons"] = [
        item.to_dict() for item in summarize_runs(left, baseline="pretrained", margin=0.01)
    ]
    summary["pooled"] = [item.to_dict() for item in pool_runs(left, baseline="pretrained", margin=0.01)]
    (out / "summary.json").write_text(json_text(summary))
    found = load_study(out)
    runs = [run for run in found.runs if tuple(getattr(run, name) for name in names) not in failed]
    runs = [dataclasses.replace(run, metrics=run.metrics | changes) for run in runs]
    return dataclasses.replace(found, runs=tuple(runs))


def test_an_arm_that_lacks_a_data_set_is_said_to(folder, tmp_path):
    found = without(folder, tmp_path / "out", arm="uniform", dataset="ISBI 2012")
    (pooled,) = found.pooled
    said = plain(pooled_sentence(found, pooled))
    assert "uniform has no result on ISBI 2012." in said
    assert "fair has no result" not in said
    uniform = next(arm for arm in pooled.arms if arm.arm == "uniform")
    sentence = plain(pooled_arm_sentence(found, pooled, uniform))
    assert sentence.endswith(" on Lucchi++; without a comparison on ISBI 2012 there is no test.")
    rows = {row.label: row.cells for group in pooled_groups(found, pooled) for row in group.rows}
    assert "HD95" not in rows
    assert "Adapted Rand error" not in rows  # one of the data sets alone has it


def test_an_arm_that_lacks_a_fold_is_not_tested(folder, tmp_path):
    """What is left may be what is easy."""
    found = without(folder, tmp_path / "out", arm="uniform", dataset="ISBI 2012", folds=[2])
    (pooled,) = found.pooled
    said = plain(pooled_sentence(found, pooled))
    assert "uniform is not tested, as uniform has no run in fold 2 of ISBI 2012." in said
    assert "fair is not tested" not in said
    uniform, fair = pooled.arms[1:]
    assert (uniform.arm, uniform.holds, fair.holds) == ("uniform", None, True)
    assert math.isnan(uniform.p_differs)
    assert math.isfinite(uniform.differences["dice"].low)
    assert plain(pooled_arm_sentence(found, pooled, uniform)).endswith(
        "; there is no test, as uniform has no run in fold 2 of ISBI 2012."
    )


def test_the_page_names_whose_run_is_missing(folder, tmp_path):
    """Not the arm's where the baseline has failed, nor the folds where seeds are missing."""
    lost = [("pretrained", "ISBI 2012", fold, seed) for fold in (0, 2) for seed in (0, 1)]
    lost += [("pretrained", "Lucchi++", 1, 0), ("fair", "Lucchi++", 1, 1)]
    found = without_runs(folder, tmp_path / "out", lost)
    (pooled,) = found.pooled
    said = plain(pooled_sentence(found, pooled))
    nothing = "pretrained has no run in folds 0 and 2 of ISBI 2012"
    seeds = "fair has only seed 0 and pretrained only seed 1 in fold 1 of Lucchi++"
    assert f" uniform is not tested, as {nothing}. fair is not tested, as {nothing}, and {seeds}." in said
    uniform, fair = (plain(pooled_arm_sentence(found, pooled, arm)) for arm in pooled.arms[1:])
    assert uniform.endswith(f"; there is no test, as {nothing}.")
    assert fair.endswith(f"; there is no test, as {nothing}, and {seeds}.")


def test_arms_without_a_test_for_the_same_reason_are_named_together(folder, tmp_path):
    found = without(folder, tmp_path / "out", arm="pretrained", dataset="Lucchi++", folds=[1])
    said = plain(pooled_sentence(found, found.pooled[0]))
    assert " uniform and fair are not tested, as pretrained has no run in fold 1 of Lucchi++." in said


def test_a_fold_without_a_score_is_named(results):
    (pooled,) = results.pooled
    uniform = dataclasses.replace(pooled.arms[1], holds=None)
    runs = tuple(
        dataclasses.replace(run, metrics=run.metrics | {"dice": math.nan})
        if (run.arm, run.dataset, run.fold) == ("uniform", "Lucchi++", 1)
        else run
        for run in results.runs
    )
    found = dataclasses.replace(results, runs=runs)
    assert plain(pooled_arm_sentence(found, pooled, uniform)).endswith(
        "; there is no test, as uniform has no Dice in fold 1 of Lucchi++."
    )


def test_equal_differences_are_no_evidence(folder, tmp_path):
    found = without_runs(folder, tmp_path / "out", [], dice=0.5)
    uniform = found.pooled[0].arms[1]
    assert (uniform.holds, uniform.differences["dice"].high) == (None, 0.0)
    assert plain(pooled_arm_sentence(found, found.pooled[0], uniform)) == (
        "differs in Dice by 0.000 [0.000, 0.000]; in each data set all differences are equal, so there is no test."
    )


def test_an_arm_is_not_blamed_for_what_the_baseline_lacks(folder, tmp_path):
    found = without(folder, tmp_path / "out", arm="pretrained", dataset="ISBI 2012")
    (pooled,) = found.pooled
    said = plain(pooled_sentence(found, pooled))
    assert "pretrained has no result on ISBI 2012." in said
    assert "uniform has no result" not in said
    uniform = next(arm for arm in pooled.arms if arm.arm == "uniform")
    assert uniform.datasets == ("Lucchi++", "ISBI 2012")
    assert "on Lucchi++; without a comparison on ISBI 2012 there is no test." in plain(
        pooled_arm_sentence(found, pooled, uniform)
    )


def test_one_data_set_is_not_pooled_unless_it_has_the_primary_comparison(tmp_path):
    alone = {"comparisons": SETS[:1], "arms": ARMS, "folds": (0, 1, 2), "seeds": (0,), "size": 24}
    assert shown_pooled(load_study(make_study(tmp_path / "a", **alone))) == []
    primary = Primary("fair", "net", 0.005)
    assert len(shown_pooled(load_study(make_study(tmp_path / "b", **alone, primary=primary)))) == 1


def test_a_margin_beyond_all_results_is_drawn(tmp_path):
    primary = Primary("fair", "net", 0.3)
    found = load_study(
        make_study(
            tmp_path / "wide",
            comparisons=SETS,
            arms=ARMS,
            folds=(0, 1, 2),
            seeds=(0,),
            size=24,
            primary=primary,
        )
    )
    with style.settings():
        axes = forest_figure(found).figure.axes[0]
    lines = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert min(lines) == -0.3
    assert axes.get_xlim()[0] < -0.3


def test_the_forest_has_a_block_of_all_data_sets(results):
    with style.settings():
        drawing = forest_figure(results)
        figure = drawing.figure
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    assert titles == ["Both data sets, net", "Lucchi++, net", "ISBI 2012, net"]
    assert "single folds" in drawing.reading
    first, second = (axes for axes in figure.axes[:3:2])
    margins = [
        [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        for axes in (first, second)
    ]
    assert margins == [[-0.01, -0.005], [-0.01, -0.01]]
    dots = [len(line.get_xdata()) for line in first.lines if line.get_marker() == "."]
    assert dots == [2, 2]  # data sets
    dots = [len(line.get_xdata()) for line in second.lines if line.get_marker() == "."]
    assert dots == [3, 3]  # folds


def test_losses_of_an_arm_are_means_over_folds(results):
    item = results.comparisons[0]
    row = stress_group(results, item).rows[0]
    runs = results.runs_of(item, "pretrained")
    assert len(runs) == 6
    assert plain(row.cells[0]).count("[") == 1


def test_tables_know_folds(results):
    tables = {name: list(csv.DictReader(io.StringIO(text))) for name, text in csv_tables(results).items()}
    assert {row["folds"] for row in tables["arms.csv"]} == {"3"}
    assert (
        {row["fold"] for row in tables["curves.csv"]}
        == {row["fold"] for row in tables["saliency.csv"]}
        == set("012")
    )
    tests = {(row["arm"], row["figure"]) for row in tables["pooled.csv"] if row["kind"] == "p"}
    assert ("fair", "dice_superior") in tests
    assert ("uniform", "dice_differs_adjusted") in tests
    assert ("fair", "dice_differs_adjusted") not in tests


def test_the_report_is_written(folder, results):
    write_study_report(results, folder / "report.html")
    assert (folder / "tables" / "pooled.csv").exists()


def test_the_terminal_shows_all_data_sets_first(results):
    summary = dict(results.summary)
    summary["failed"] = [
        {"dataset": "d", "architecture": "n", "arm": "a", "fold": 2, "seed": 1, "error": "no luck"}
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    for table in study_tables(summary):
        console.print(table)
    text = console.export_text()
    assert text.index("Both data sets, net: means with 95 % intervals") < text.index(
        "Lucchi++, net: means over folds"
    )
    assert "fair *" in text
    assert text.count(" inferior ") > text.count(" not inferior ") > 0  # the words of the page
    assert "no worse" not in " ".join(text.split())
    assert "* Primary comparison" in " ".join(text.split())
    assert "d, n, a, fold 2, seed 1" in text
    assert max(map(len, text.splitlines())) <= 100
    summary["pooled"] = [{**summary["pooled"][0], "missing": ["EPFL"]}]
    assert next(iter(study_tables(summary))).title == "2 of 3 data sets, net: means with 95 % intervals"
    first = summary["comparisons"][0]
    arms = [{name: value for name, value in arm.items() if name != "folds"} for arm in first["arms"]]
    assert list(
        study_tables({**summary, "comparisons": [{**first, "arms": arms}]})
    )  # as an earlier version wrote them
