"""Sanity checks of attribution on pretrained networks; docs/calibration.md says what follows.

    python benchmarks/sanity.py [--family NAME] [--weights FOLDER] [--volume PATH] [--results FILE] [--quick] [--docs]

1. Parameter randomisation from the top down (Adebayo et al. 2018, arXiv 1810.03292). The parameters of a U-Net are
   redrawn cumulatively, from the output layer down to the stem, and those of the stem alone. How do the pair bias, the
   mirror mismatch and the saliency maps react? Redrawing permutes the values of each parameter, which keeps their
   distribution. A redrawn batch norm whose running statistics came from training gets those of its new input, because
   the old ones describe the activations of another network; all other statistics stay.
2. Faithfulness. Each slice of a window is replaced by something else. Do the shares of the attribution tell which
   replacement changes the output most?

It is a report and not a test: the exit status is 0 whatever it finds. Networks without weights are left out.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kept import Cache, table, write_csvs
from sanity_checks import (
    FIGURES,
    METHODS,
    REPLACEMENTS,
    Randomisation,
    measure_replacements,
    order_of_slices,
    pair_biases,
    right_signs,
)
from sanity_networks import QUICK, STAGES, WAYS, find_families, open_template

import evenslice
from evenslice.auditing.surveyor import mean_of_draws
from evenslice.report.formatting import MINUS, NOTHING
from evenslice.results import Interval, student_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sanity_networks import Family

ROOT = Path(__file__).parents[1]


def stage_table(name: str, stages: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Return the rows of one network, each the means over the draws of a stage."""
    rows = []
    for stage, draws in stages.items():
        failures = [draw["failed"] for draw in draws if "failed" in draw]
        if failures:
            rows.append([name, stage, f"failed: {failures[0]}", *[""] * (len(FIGURES) + 1)])
            continue
        means = [
            mean_of_draws([Interval(*draw[figure]) for draw in draws], bounds)
            for figure, bounds in FIGURES.items()
        ]
        rows.append(
            [name, stage, *map(_cell, means), *(_each(draws, method) for method in ("gradient", "reliance"))]
        )
    return rows


def _each(draws: list[dict[str, Any]], figure: str) -> str:
    """List a figure of all draws, in their order."""
    return " ".join(_number(draw[figure][0]) for draw in draws)


def way_rows(name: str, found: dict[str, list[float]]) -> list[list[str]]:
    """Return the rows of one network in the table of the ways to redraw: means over draws, with Student's interval."""
    rows = []
    for key, draws in found.items():
        stage, way = key.rsplit(", ", 1)
        rows.append(
            [
                name,
                stage.rpartition(": ")[2],
                WAYS[way],
                _cell(student_interval(draws)),
                " ".join(map(_number, sorted(draws))),
            ]
        )
    return rows


def _cell(value: Interval) -> str:
    """Format an interval with two decimals.

    Example:
        >>> _cell(Interval(0.912, 0.85, 0.97))
        '0.91 [0.85, 0.97]'
    """
    if np.isnan(value.estimate):
        return NOTHING
    estimate, low, high = (_number(part) for part in (value.estimate, value.low, value.high))
    return f"{estimate} [{low}, {high}]"


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)


def faith_tables(found: dict[tuple[str, int], dict[str, Any]]) -> dict[str, str]:
    """Return the tables of faithfulness.

    Args:
        found: what ``measure_replacements`` returned for each network and number of slices.
    """
    titles = ["network", "slices", "replaced by", *(method.replace("_", " ") for method in METHODS)]
    tables = {}
    for measure in ("logits", "classes"):
        cells = [
            [
                name,
                str(slices),
                title,
                *(_cell(order_of_slices(rows, method, f"{kind} {measure}")) for method in METHODS),
            ]
            for (name, slices), rows in found.items()
            for kind, title in REPLACEMENTS.items()
            if slices > 3 or kind != "middle"  # two slices have no order, but the sign of the next table
        ]
        tables[f"order of {measure}"] = table(titles, cells)
    tables["signs"] = table(
        titles,
        [
            [
                name,
                str(slices),
                title,
                *(_cell(right_signs(rows, method, f"{kind} logits")) for method in METHODS),
            ]
            for (name, slices), rows in found.items()
            for kind, title in REPLACEMENTS.items()
        ],
    )
    tables["biases"] = _bias_table(found)
    return tables


def _bias_table(found: dict[tuple[str, int], dict[str, Any]]) -> str:
    columns = [*METHODS, *(f"{kind} logits" for kind in REPLACEMENTS)]
    rows = []
    for (name, slices), measured in found.items():
        biases = [pair_biases(measured, column) for column in columns]
        for k, cells in enumerate(zip(*biases, strict=True), start=1):
            rows.append([name, str(slices), f"±{k}", *map(_cell, cells)])
    titles = [*(method.replace("_", " ") for method in METHODS), *REPLACEMENTS.values()]
    return table(["network", "slices", "pair", *titles], rows)


def measure_all(
    families: Sequence[Family], volume: evenslice.Volume, label: str, cache: Cache, *, quick: bool = False
) -> dict[str, str]:
    """Measure every network and return all tables."""
    stage_rows: list[list[str]] = []
    ways: list[list[str]] = []
    faith: dict[tuple[str, int], dict[str, Any]] = {}
    for family in families:
        effort = QUICK if quick else family.effort
        randomisation = Randomisation(family.load(3), volume, effort)
        prefix = f"{label}, {family.name}"
        stage_rows += stage_table(family.name, measure_stages(randomisation, prefix, cache))
        ways += way_rows(
            family.name, cache.get(f"{prefix}, ways, {effort.draws} draws", randomisation.compare_ways)
        )
        for slices in (3, 5):
            faith[family.name, slices] = cache.get(
                f"{prefix}, replaced slices of {slices}, {effort.replaced} windows",
                partial(measure_replacements, family.load(slices), volume, slices, effort),
            )
    biases = ["B of the gradient", "B of the reliance", "E"]
    draws = ["gradient, each draw", "reliance, each draw"]
    header = ["network", "redrawn", *biases, "gradient maps", "occlusion maps", *draws]
    return {
        "stages": table(header, stage_rows),
        "ways": table(["network", "redrawn", "from", "B by gradient", "each draw"], ways),
        **faith_tables(faith),
    }


def measure_stages(
    randomisation: Randomisation, prefix: str, cache: Cache
) -> dict[str, list[dict[str, Any]]]:
    """Return what was found for each draw of each stage; the network as built has one."""
    effort = randomisation.effort
    return {
        stage: [
            cache.get(
                f"{prefix}, {stage}, draw {seed}, {effort.windows} windows",
                partial(randomisation.measure, stage, seed=seed),
            )
            for seed in range(effort.draws if parts else 1)
        ]
        for stage, parts in STAGES.items()
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("EVENSLICE_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--family", action="append", help="only this network; can be repeated")
    parser.add_argument("--weights", type=Path, default=shared / "weights", help="folder of files of weights")
    parser.add_argument("--volume", type=Path, help="another volume than the MNI152 template with noise")
    parser.add_argument(
        "--results", type=Path, help="JSON file for what is measured; a second run goes on there"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few windows and one draw, too few for conclusions"
    )
    parser.add_argument("--docs", action="store_true", help="write the tables to benchmarks/results")
    options = parser.parse_args()
    if options.docs and (options.quick or options.family):
        parser.error("--docs: the tables that are kept are of all networks; leave out --quick and --family")
    known = find_families(options.weights)
    names = [family.name for family in known]
    if unknown := set(options.family or ()) - set(names):
        parser.error(f"--family {min(unknown)}: known are {', '.join(names)}")
    chosen = [family for family in known if family.name in (options.family or names)]
    for family in chosen:
        if family.missing and options.docs:
            parser.error(
                f"--docs: the tables that are kept are of all networks, and {family.name} is left out: {family.missing}"
            )
        if family.missing:
            print(f"{family.name} is left out: {family.missing}")
    volume = evenslice.open_volume(options.volume) if options.volume else open_template()
    label = options.volume.name.partition(".")[0] if options.volume else "MNI152"
    present = [family for family in chosen if not family.missing]
    tables = measure_all(present, volume, label, Cache(options.results), quick=options.quick)
    for name, lines in tables.items():
        print(f"\n{label}: {name}\n\n{lines}")
    if options.docs:
        write_csvs("sanity" if label == "MNI152" else f"sanity-{label}", tables)


if __name__ == "__main__":
    main()
