"""Fill the tables of docs from the results kept in this folder and in benchmarks.

Those of src/README.md are filled from the first line of the docstrings of modules.

    make results

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``; all other text is written by hand.
"""

from __future__ import annotations

import ast
import math
import re
import tomllib
from collections import Counter
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import planted_evidence
import sanity
import trained
import whole_volumes
from shared import RESULTS, table, write_csvs
from size import PACKAGE, ROOT, modules, tree
from study_results import NAMES, STUDIES, Study, read_rows

from evenslice.report.tables import NOTHING, difference, interval, number
from evenslice.results.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from study_results import Arm

DOCS = ROOT / "docs"
LIBRARIES = ("timm", "torchvision", "smp", "monai", "transformers")


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Return a page with its tables in place.

    Raises:
        ValueError: it has not exactly one place for each.
    """
    found = re.findall(r"^<!-- table: (.+) -->$", text, re.MULTILINE)
    if sorted(found) != sorted(tables):
        raise ValueError(f"the page has places for {', '.join(found)}, and there are {', '.join(tables)}")
    for name, rows in tables.items():
        before, start, rest = text.partition(f"<!-- table: {name} -->\n")
        text = f"{before}{start}\n{rows}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def tables(studies: Sequence[Study]) -> dict[str, dict[str, str]]:
    """Return every table by its page and name."""
    planted, order = planted_evidence.tables(), trained.tables()
    coverage = read_rows(RESULTS / "calibration-coverage.csv")
    return {
        "results.md": {
            "verdicts": verdict_table(studies),
            **{study.name: study_table(study) for study in studies},
            "steps": steps_table(next(study for study in studies if study.name == "short")),
        },
        "survey.md": {
            "networks": survey_table("encoder", "encoder"),
            "trained": survey_table("trained", "network"),
            "libraries": library_table(),
        },
        "coverage.md": {"coverage": coverage_table()},
        "calibration.md": {
            "calibration coverage": table(list(coverage[0]), (list(row.values()) for row in coverage)),
            "sanity stages": stage_table(),
        },
        "planted-evidence.md": planted
        | {name: order[name] for name in ("erased objects", "which neighbour")},
        "explanation/does-it-matter.md": {"order of slices": order["order of slices"]},
        "whole-volumes.md": {"clients": whole_volumes.method_table()},
        "../src/README.md": {"modules": module_tables()},
    }


def study_table(study: Study) -> str:
    """Return what matters most of each arm of a study, one a row: over all data sets, then on each of several.

    The primary comparison is in bold, and so are differences on one data set whose interval excludes 0. Beside the chart of
    ``price``, its table says what missing slices cost.
    """
    score = "Dice" if study.summary.score == "dice" else "balanced accuracy"
    sets = study.summary.pooled[0].datasets
    more = ("I²", *sets) if len(sets) > 1 else ()
    header = ("arm", f"{score}, minus {study.summary.baseline}", "test", "pair bias", "lost", *more)
    named = len({arm.network for arm in study.pooled}) > 1
    return table(header, (_arm_row(arm, named=named) for arm in study.pooled))


def _arm_row(arm: Arm, *, named: bool) -> list[str]:
    entry, metrics = arm.entry, arm.entry.metrics
    name = f"**{arm.name}**" if entry.primary else arm.name
    score = arm.study.summary.score
    outcome = NOTHING if entry.holds is None else "superior" if entry.superior else str(entry.outcome)
    row = [
        f"{arm.network.split()[0]}: {name}" if named else name,
        arm.change_text if entry.differences else number(metrics[score].estimate),
        outcome if entry.differences else "",
        number(metrics["largest_bias"].estimate),
        number(metrics["loss_both"].estimate) if arm.study.name == "price" else "",
    ]
    alone = [other for other in arm.study.alone if other.name == arm.name]
    if len(arm.datasets) == 1:
        return row
    if not entry.differences:
        return [*row, *[""] * (1 + len(alone))]
    return [
        *row,
        number(entry.heterogeneity[score], 2),
        *(_short(other.difference(score)) for other in alone),
    ]


def steps_table(short: Study) -> str:
    """Return the differences in Dice from a pretrained start after other numbers of steps; one fold gives no interval."""
    rows, sets = list[list[str]](), short.pooled[0].datasets
    for steps, runs in groupby(read_rows(STUDIES / "short" / "steps.csv"), itemgetter("steps")):
        study = replace(short, runs=list(runs))
        for arm in (arm for arm in study.pooled if arm.entry.differences):
            found = arm.mean(_more_dice)
            alone = (other.mean(_more_dice).interval() for other in study.alone if other.name == arm.name)
            heterogeneity = number(found.heterogeneity, 2)
            rows.append(
                [
                    f"{int(steps):,}: {arm.name}",
                    difference(found.interval()),
                    heterogeneity,
                    *map(_short, alone),
                ]
            )
    return table(("steps: arm", "Dice, minus pretrained", "I²", *sets), rows)


def _more_dice(run: Mapping[str, str], other: Mapping[str, str]) -> float:
    return float(run["dice"]) - float(other["dice"])


def _short(change: Interval) -> str:
    """Return a difference, in bold if its interval excludes 0."""
    text = difference(Interval(change.estimate, math.nan, math.nan))
    return f"**{text}**" if change.low > 0 or change.high < 0 else text


def verdict_table(studies: Sequence[Study]) -> str:
    """Return how many audits by version 0.2 ended with each verdict; later ones audited what ``short`` and ``compute`` added.

    Studies share runs, each of which counts once.
    """
    arms = [arm for study in studies if study.name not in ("short", "compute") for arm in study.pooled]
    found = Counter({run["key"]: (arm.start, run["verdict"]) for arm in arms for run in arm.runs}.values())
    words = sorted({word for _, word in found})
    starts = dict.fromkeys(start for start, _ in found)
    return table(
        ("start", *words), ([start, *(str(found[start, word]) for word in words)] for start in starts)
    )


def survey_table(kind: str, title: str) -> str:
    """Return the surveyed networks of a kind: as encoders of a U-Net, or with what they were trained for."""
    header = (title, "red, green, blue", "directional bias", "reliance", "C")
    return table(
        header,
        (
            [
                row["network"],
                _shares(row[name] for name in ("red", "green", "blue")),
                interval(bounds(row, "directional_bias")),
                interval(bounds(row, "reliance")),
                f"{float(row['answer_change']):.2f}",
            ]
            for row in read_rows(STUDIES / "survey.csv")
            if row["kind"] == kind
        ),
    )


def bounds(row: Mapping[str, str], name: str) -> Interval:
    """Return an estimate with its interval from the columns of a CSV."""
    return Interval(*(float(row[name + end]) for end in ("", "_low", "_high")))


def _shares(parts: Iterable[str]) -> str:
    return " ".join(f"{float(part):.3f}".removeprefix("0") for part in parts)


def library_table() -> str:
    """Return what each first layer for five slices does before any training."""
    rows = (
        [row["first_layer"], _shares(row["shares"].split()), row["mirror_error"], row["gray_error"]]
        for row in read_rows(STUDIES / "peers.csv")
    )
    return table(("first layer", "shares", "mirror error", "gray error"), rows)


def coverage_table() -> str:
    """Return how many networks of each library keep what each way promises, at 3 and at 5 slices."""
    swept = {
        way: read_rows(STUDIES / "sweep" / f"{way}.csv")
        for way in ("coverage", "twin", "symmetrize", "engine")
    }
    rows = []
    for library in (*LIBRARIES, "all"):
        cells = [library]
        for way, found in swept.items():
            whole = [row for row in found if library in ("all", row["library"]) and not row["unbuilt"]]
            kept = sum(row["outcome_3"] == "ok" and row["outcome_5"] in ("ok", "") for row in whole)
            lacking = sum("no place" in (row["outcome_3"], row["outcome_5"]) for row in whole)
            cells.append(f"{kept} of {len(whole)}" if whole else NOTHING)
            if way == "twin":
                cells.append(str(lacking))
        rows.append(cells)
    header = ("library", "`uniform`", "`twin`", "no place for `twin`", "`symmetrize`", "OpenVINO")
    return table(header, rows)


def stage_table() -> str:
    """Return the pair bias of the gradient after each stage of redrawing, of each network from a pretrained start."""
    rows, name = read_rows(RESULTS / "sanity-stages.csv"), sanity.FIGURES[0]
    rows = [row for row in rows if not row["network"].startswith(("twin", "uniform"))]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    cells: dict[str, list[str]] = {stage: [] for stage in sanity.STAGES}
    for row in rows:
        shown = row[name] if row["redrawn"] in sanity.BETWEEN else row[name].partition(" [")[0]
        cells[row["redrawn"]].append(shown)
    return table(["redrawn", *networks], ([stage, *found] for stage, found in cells.items()))


def module_tables() -> str:
    """Return a table of the modules of each package, from the highest to the lowest, as pyproject.toml lists them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    parts = []
    for name in "|".join(contract["layers"]).replace(" ", "").split("|"):
        room = PACKAGE / name
        own = sorted(path for path in modules().values() if room in path.parents)
        if own:
            rows = [(f"`{path.relative_to(room).as_posix()}`", _first_line(path)) for path in own]
            title = f"**`{name}/`** {_first_line(room / '__init__.py')}"
            parts += [title, table(("module", "what it holds"), rows)]
    return "\n\n".join(parts)


def _first_line(path: Path) -> str:
    """Return the first sentence or paragraph of a module's docstring, whichever is shorter, in one line."""
    text = ast.get_docstring(tree(path)) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def main() -> None:
    """Fill every page."""
    studies = [Study.read(name) for name in NAMES]
    for page, found in tables(studies).items():
        path = DOCS / page
        path.write_text(fill(path.read_text(encoding="utf-8"), found), encoding="utf-8")
        print(path)
    write_csvs("planted", planted_evidence.whole_tables())


if __name__ == "__main__":
    main()
