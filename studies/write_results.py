"""docs/results.md, and a page for each study with its figures, from what the project's own studies found.

    python studies/write_results.py                     # reads studies/*/, writes docs/results.md and docs/results/
    python studies/write_results.py --record-machine    # and first notes what machine this is, in studies/machine.json
    python studies/write_results.py --record runs/best  # and first notes what a training gave, in
    studies/trainings.json

A study is a folder with ``summary.json`` beside the configuration of the same name: ``studies/price/`` came from
``studies/price.yaml``. Every number in the tables and figures of the pages is computed; the prose around them is in
``studies/results.md.j2``, ``studies/study.md.j2`` and ``studies/outcomes.md.j2``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candidate_rows import candidate_table, read_rows
from cost_figure import cost_figure
from found_studies import find_studies
from missing_figure import missing_figure
from paging import DOCS, STUDIES, markdown, write_figure, write_page
from PIL import Image
from pooled_expectations import pooled_expectations
from recorded import describe_machine, describe_training, segmenter_table, training_table
from study_expectations import expectations
from study_result_tables import full_table, run_table, stress_table

from evenslice._core.staging import staged_file, staged_folder
from evenslice._core.text import json_text
from evenslice.report import style
from evenslice.report.pictures import outlined_panels
from evenslice.report.study_charts import study_charts
from evenslice.report.study_tables import arm_tables, shown_pooled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from found_studies import Study

    from evenslice.report.pictures import Panel
    from evenslice.results.arms import PooledComparison


def write_pages(studies: Sequence[Study], folder: Path, docs: Path) -> None:
    """Write the overview, the page of each study, and their figures.

    Args:
        studies: what to show.
        folder: that of the studies, with ``machine.json``, ``trainings.json``, ``segmenters.json``, ``costs.json`` and
            ``candidates.csv``.
        docs: where to write.
    """
    costs = _noted(folder / "costs.json")
    judged = [*expectations(studies), *pooled_expectations(studies)]
    with (
        style.settings(),
        staged_folder(docs / "results", ("*.svg", "*.webp", "*.md"), force=True) as beside,
    ):
        shown = [_shown(study, costs.get(study.name), beside) for study in studies]
        for study in shown:
            write_page("study.md.j2", beside / f"{study['name']}.md", study=study)
        write_page("outcomes.md.j2", beside / "outcomes.md", expectations=judged)
    write_page(
        "results.md.j2",
        docs / "results.md",
        studies=shown,
        expectations=judged,
        runs=run_table(studies),
        **_beside_studies(folder),
    )


def _beside_studies(folder: Path) -> dict[str, Any]:
    """Return what the overview shows besides the studies: the machine, and single trainings."""
    machine, trainings = _noted(folder / "machine.json"), _noted(folder / "trainings.json")
    segmenters, candidates = _noted(folder / "segmenters.json"), read_rows(folder / "candidates.csv")
    return {
        "trainings": training_table(trainings.values()) if trainings else None,
        "segmenters": segmenter_table(segmenters["found"]) if segmenters else None,
        "segmenters_on": segmenters.get("machine"),
        "candidates": candidate_table(candidates),
        "candidate_seeds": len({row.seed for row in candidates}),
        "machine": machine,
    }


def _noted(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def _note(file: Path, content: dict[str, Any]) -> None:
    with staged_file(file, force=True) as beside:
        beside.write_text(json_text(content), encoding="utf-8")


def _shown(study: Study, costs: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    """Draw a study's figures into a folder, and return what the template needs."""
    drawings = study_charts(study.results)
    tables = {item.title: item for item in arm_tables(study.results.summary)}
    if costs is not None:
        drawings += [cost_figure(item, costs, study.results.baseline) for item in study.results.comparisons]
    drawings += [missing_figure(item) for item in shown_pooled(study.results.pooled) if _is_stressed(item)]
    for drawing in drawings:
        write_figure(drawing, folder / f"{study.name}-{drawing.name}.svg")
    examples = []
    for index, panel in enumerate(outlined_panels(study.results), start=1):
        _save_picture(panel, folder / f"{study.name}-example-{index}.webp")
        examples.append(
            {"name": f"example-{index}", "title": panel.title, "arms": [one.name for one in panel.strips]}
        )
    return {
        "name": study.name,
        "about": study.about,
        "planned": study.planned,
        "complete": study.complete,
        "definitions": study.results.definitions,
        "finished": study.results.summary["finished"],
        "failed": study.results.summary["failed"],
        "drawings": drawings,
        "examples": examples,
        "classifies": study.config.training.task == "classification",
        "folded": any(item.unit == "fold" for item in study.results.comparisons),
        "pooled": [
            {
                "title": item.title,
                "sentence": tables[item.title].note,
                "table": markdown(tables[item.title]),
            }
            for item in shown_pooled(study.results.pooled)
        ],
        "comparisons": [
            {
                "title": item.title,
                "sentence": tables[item.title].note,
                "table": markdown(tables[item.title]),
                "stress": stress_table(study, item),
                "figures": full_table(study, item),
            }
            for item in study.results.comparisons
        ],
    }


def _is_stressed(pooled: PooledComparison) -> bool:
    """Return whether every arm was tested with missing slices, in several data sets."""
    return len(pooled.datasets) > 1 and not any(
        math.isnan(arm.metrics["loss_both"].estimate) for arm in pooled.arms
    )


def _save_picture(panel: Panel, path: Path) -> None:
    """Save the test slices of a panel with their outlines, from left to right."""
    tiles = []
    for strip in panel.strips:
        layer = Image.fromarray(strip.pictures[0].layer)
        image = Image.fromarray(strip.pictures[0].image).resize(layer.size).convert("RGBA")
        tiles.append(Image.alpha_composite(image, layer))
    width, height = tiles[0].size
    found = Image.new("RGB", ((width + 8) * len(tiles) - 8, height), "white")
    for index, tile in enumerate(tiles):
        found.paste(tile.convert("RGB"), ((width + 8) * index, 0))
    found.save(path, "WEBP", quality=70, method=6)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Write docs/results.md from the results of the studies.")
    parser.add_argument("--record-machine", action="store_true", help="note what machine this is")
    parser.add_argument("--record", type=Path, metavar="RUN", help="note what a training in this folder gave")
    parser.add_argument("--studies", type=Path, default=STUDIES, help="folder of the studies")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to")
    options = parser.parse_args()
    if options.record_machine:
        _note(options.studies / "machine.json", describe_machine())
    if options.record is not None:
        file = options.studies / "trainings.json"
        _note(file, _noted(file) | {options.record.name: describe_training(options.record)})
    studies = find_studies(options.studies)
    if not studies:
        print(f"{options.studies}: no study has results yet; docs/results.md stays as it is")
        return 0
    write_pages(studies, options.studies, options.docs)
    print(options.docs / "results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
