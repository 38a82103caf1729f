"""docs/results.md, with its figures, from what the project's own studies found.

    python studies/write_results.py                     # reads studies/*/, writes docs/results.md and docs/results/
    python studies/write_results.py --record-machine    # and first notes what machine this is, in studies/machine.json
    python studies/write_results.py --record runs/best  # and first notes what a training gave, in
    studies/trainings.json

A study is a folder with ``summary.json`` beside the configuration of the same name: ``studies/datasets/`` came from
``studies/datasets.yaml``. Every number of the page is computed; the prose around them is in ``studies/results.md.j2``.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import jinja2
from PIL import Image
from run_archive import ARCHIVE, unpack

from evenslice._core.config_files import load_config
from evenslice._core.staging import json_text, staged_file, staged_folder
from evenslice._core.versions import package_versions
from evenslice.report.base import style
from evenslice.report.base.wording import NOTHING, interval, listed, number, percent
from evenslice.report.study.page import draw_charts
from evenslice.report.study.pictures import example_figure, example_panels
from evenslice.report.study.stress import stress_group
from evenslice.report.study.tables import figure_groups
from evenslice.report.study.wording import (
    comparison_sentence,
    difference,
    judgement,
    p_value,
    removed_part,
    verdicts,
)
from evenslice.results.seeds import student_interval
from evenslice.results.studies import load_study
from evenslice.studying.config import StudyConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from evenslice.report.base.drawing import Drawing
    from evenslice.results.seeds import ArmSummary, Comparison
    from evenslice.results.studies import StudyResults
    from evenslice.studying.config import Arm, StudyData

STUDIES = Path(__file__).parent
DOCS = STUDIES.parent / "docs"
PACKAGES = ("evenslice", "torch", "lightning", "monai", "timm", "segmentation-models-pytorch", "torchvision")

REMOVED = 0.9  # part of the bias that a uniform start is expected to remove
LOST = 0.01  # Dice that it is expected to lose at most
TIED = 1e-4  # largest pair bias that a tied network is expected to stay below


@dataclass(frozen=True)
class Study:
    """One study: its name, what it was to do, what it found."""

    name: str
    about: str
    config: StudyConfig
    results: StudyResults


@dataclass(frozen=True)
class Found:
    """An arm of a certain kind in one comparison of a study."""

    study: Study
    comparison: Comparison
    arm: ArmSummary

    @property
    def place(self) -> str:
        """Where it was found."""
        return self.comparison.title


@dataclass(frozen=True)
class Expectation:
    """What was expected, and what became of it."""

    text: str
    outcome: str
    evidence: str


def find_studies(folder: Path) -> list[Study]:
    """Read every study that has results, the largest first."""
    studies = []
    for path in sorted(folder.glob("*/summary.json")):
        name = path.parent.name
        if (path.parent / ARCHIVE).exists():
            unpack(path.parent)
        file = folder / f"{name}.yaml"
        config = load_config(file, StudyConfig)
        studies.append(Study(name, _about(file), config, load_study(path.parent)))
    return sorted(studies, key=lambda study: -study.results.summary["planned"])


def _about(file: Path) -> str:
    """Return the first paragraph of the comment at the head of a configuration."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# ").strip())
    return " ".join(lines)


# What was expected.


def expectations(studies: Sequence[Study]) -> list[Expectation]:
    """Hold what was expected of uniform, tied and random starts against what was found; what was not run is left out."""
    uniform = _arms(studies, lambda arm: arm.strategy == "uniform" and arm.tie is None)
    tied = _arms(studies, lambda arm: arm.tie is not None)
    random = _arms(studies, lambda arm: arm.strategy == "random")
    return [
        *_removes_bias([item for item in uniform if not math.isnan(item.arm.bias_removed.estimate)]),
        *_keeps_dice(_with_dice(uniform)),
        *_stays_tied(tied),
        *_loses_dice(_with_dice(random)),
    ]


def _arms(studies: Sequence[Study], chosen: Callable[[Arm], bool]) -> list[Found]:
    return [
        Found(study, comparison, arm)
        for study in studies
        for comparison in study.results.comparisons
        for arm in comparison.arms
        if any(arm.arm == item.name and chosen(item) for item in study.config.arms)
    ]


def _with_dice(found: Sequence[Found]) -> list[Found]:
    return [
        item
        for item in found
        if item.arm.differences and not math.isnan(item.arm.differences["dice"].estimate)
    ]


def _removes_bias(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        removed = [item.arm.bias_removed for item in found]
        yield Expectation(
            f"A uniform start removes at least {percent(REMOVED)} of the largest pair bias that is left "
            "after fine-tuning, "
            "with every data set and network.",
            _outcome(
                confirmed=all(part.low >= REMOVED for part in removed),
                refuted=any(part.high < REMOVED for part in removed),
            ),
            _evidence(found, lambda item: removed_part(item.arm.bias_removed)),
        )


def _outcome(*, confirmed: bool, refuted: bool) -> str:
    return "refuted" if refuted else "confirmed" if confirmed else "open"


def _keeps_dice(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        changes = [item.arm.differences["dice"] for item in found]
        lost = any(change.high < -LOST for change in changes)
        shown = all(item.arm.holds and item.arm.margin <= LOST for item in found)
        yield Expectation(
            f"It does so at a Dice that is no more than {LOST:g} below that of the pretrained start.",
            _outcome(confirmed=shown, refuted=lost),
            _evidence(found, _dice),
        )


def _stays_tied(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        biases = [item.arm.metrics["largest_bias"] for item in found]
        yield Expectation(
            f"The largest pair bias of a tied network stays below {number(TIED)}.",
            _outcome(
                confirmed=all(bias.high < TIED for bias in biases),
                refuted=any(bias.low > TIED for bias in biases),
            ),
            _evidence(found, lambda item: interval(item.arm.metrics["largest_bias"])),
        )


def _loses_dice(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        changes = [item.arm.differences["dice"] for item in found]
        gained = any(change.low > 0 for change in changes)
        shown = all(change.high < 0 for change in changes)
        yield Expectation(
            "A network that starts at random loses Dice.",
            _outcome(confirmed=shown, refuted=gained),
            _evidence(found, _dice),
        )


def _dice(item: Found) -> str:
    return f"{difference(item.arm.differences['dice'])}, {judgement(item.arm)}"


def _evidence(found: Sequence[Found], write: Callable[[Found], str]) -> str:
    return "; ".join(f"{item.place}: {write(item)}" for item in found) + "."


# Tables.


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def result_table(study: Study, comparison: Comparison) -> str:
    """Return what matters most of each arm, one a row."""
    baseline = study.results.baseline
    header = (
        "arm",
        "Dice",
        f"Dice less {baseline}",
        "not inferior?",
        "largest pair bias",
        "part of it removed",
        "mirror disagreement",
    )
    return table(header, (_result_row(arm) for arm in comparison.arms))


def _result_row(arm: ArmSummary) -> list[str]:
    compared = bool(arm.differences)
    tested = f"{judgement(arm)} ({p_value(arm.p)})" if not math.isnan(arm.p) else NOTHING
    return [
        arm.arm,
        interval(arm.metrics["dice"]),
        difference(arm.differences["dice"]) if compared else NOTHING,
        tested,
        interval(arm.metrics["largest_bias"]),
        removed_part(arm.bias_removed),
        percent(arm.metrics["mirror_disagreement"].estimate),
    ]


def stress_table(study: Study, comparison: Comparison) -> str:
    """Return what a missing neighbour costs each arm, one a row; empty if no run measured it."""
    rows = []
    for arm in comparison.arms:
        runs = [run for run in study.results.runs_of(comparison, arm.arm) if run.stress is not None]
        losses = [
            (run.stress.intact, loss, run.stress.reversed)
            for run in runs
            if run.stress is not None
            for loss in run.stress.losses
            if (loss.kind, loss.offset) == ("missing", 1)
        ]
        if losses:
            columns = [
                [intact - loss.before for intact, loss, _ in losses],
                [intact - loss.after for intact, loss, _ in losses],
                [loss.asymmetry.estimate for _, loss, _ in losses],
                [intact - loss.both for intact, loss, _ in losses],
                [intact - turned for intact, _, turned in losses],
            ]
            cells = [interval(student_interval(column, (-1, 1))) for column in columns]
            rows.append([arm.arm, *cells, verdicts([run.verdict for run in runs])])
    header = ("arm", "loss, slice before missing", "loss, slice after missing", "before less after")
    return table((*header, "loss, both missing", "loss, reversed", "verdicts"), rows) if rows else ""


def full_table(study: Study, comparison: Comparison) -> str:
    """Return every figure of each arm, one a column, in groups below their titles."""
    names = [arm.arm for arm in comparison.arms]
    rows = []
    stress = stress_group(study.results, comparison)
    for group in (*figure_groups(study.results, comparison), *([stress] if stress.rows else [])):
        rows.append([f"**{group.title}**", *[""] * len(names)])
        rows += [[row.label, *row.cells] for row in group.rows]
    return table(["", *names], rows)


def run_table(studies: Sequence[Study]) -> str:
    """Return what was run, a row for each data set and network."""
    header = ("data set", "network", "arms", "seeds", "slices", "steps", "crops", "minutes of training a run")
    return table(header, (row for study in studies for row in _run_rows(study)))


def _run_rows(study: Study) -> Iterator[list[str]]:
    for comparison in study.results.comparisons:
        runs = [run for arm in comparison.arms for run in study.results.runs_of(comparison, arm.arm)]
        training = _data(study, comparison.dataset).training
        known = [run.seconds / 60 for run in runs if not math.isnan(run.seconds)]
        yield [
            comparison.dataset,
            comparison.architecture,
            str(len(comparison.arms)),
            ", ".join(map(str, sorted({run.seed for run in runs}))),
            str(study.config.slices),
            listed([str(steps) for steps in sorted({run.steps for run in runs})]),
            f"{training.batch} of {training.crop[0]} x {training.crop[1]}",
            f"{median(known):.1f}" if known else NOTHING,
        ]


def _data(study: Study, name: str) -> StudyData:
    return next(data for data in study.config.datasets if data.name == name)


# Single networks.


def describe_training(run: Path) -> dict[str, Any]:
    """Say what one training gave, without paths that belong to one machine alone.

    Args:
        run: the folder that ``evenslice train`` wrote.
    """
    found = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return {
        "command": found["command"],
        "model": {name: found["config"]["model"][name] for name in ("spec", "slices", "strategy")},
        "data": found["name"],
        "steps": found["steps"],
        "seconds": found["seconds"],
        "dice": found["dice"]["mean"],
        "iou": found["iou"]["mean"],
        "directional_bias": found["bias"]["directional_bias"],
        "versions": found["versions"],
    }


def training_table(trainings: Iterable[dict[str, Any]]) -> str:
    """Return what single trainings gave, a row for each."""
    header = ("command", "slices", "start", "steps", "minutes", "Dice", "IoU", "directional bias")
    return table(header, (_training_row(training) for training in trainings))


def _training_row(training: dict[str, Any]) -> list[str]:
    return [
        f"`{training['command']}`",
        str(training["model"]["slices"]),
        training["model"]["strategy"],
        str(training["steps"]),
        f"{training['seconds'] / 60:.1f}",
        f"{training['dice']:.3f}",
        f"{training['iou']:.3f}",
        f"{training['directional_bias']:+.3f}".replace("-", "\N{MINUS SIGN}"),
    ]


# Machine.


def describe_machine() -> dict[str, Any]:
    """Say what machine this is, without names that belong to it alone."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(PACKAGES),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


# The page.


def write_page(studies: Sequence[Study], folder: Path, docs: Path) -> None:
    """Write the page and its figures.

    Args:
        studies: what to show.
        folder: that of the studies, with ``machine.json`` and ``trainings.json``.
        docs: where to write.
    """
    machine, trainings = _noted(folder / "machine.json"), _noted(folder / "trainings.json")
    with style.settings(), staged_folder(docs / "results", ("*.svg", "*.webp"), force=True) as beside:
        shown = [_shown(study, beside) for study in studies]
    environment = jinja2.Environment(  # noqa: S701  # it writes Markdown
        loader=jinja2.FileSystemLoader(STUDIES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("results.md.j2").render(
        studies=shown,
        expectations=expectations(studies),
        runs=run_table(studies),
        trainings=training_table(trainings.values()) if trainings else None,
        machine=machine,
    )
    with staged_file(docs / "results.md", force=True) as path:
        path.write_text(text, encoding="utf-8")


def _noted(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def _note(file: Path, content: dict[str, Any]) -> None:
    with staged_file(file, force=True) as beside:
        beside.write_text(json_text(content), encoding="utf-8")


def _shown(study: Study, folder: Path) -> dict[str, Any]:
    """Draw a study's figures into a folder, and return what the template needs."""
    drawings = draw_charts(study.results)
    for drawing in drawings:
        buffer = io.StringIO()
        drawing.figure.savefig(buffer, format="svg", metadata=style.NO_METADATA)
        file = folder / f"{study.name}-{drawing.name}.svg"
        file.write_text(style.compact_svg(buffer.getvalue()), encoding="utf-8")
    examples = []
    for index, panel in enumerate(example_panels(study.results), start=1):
        drawing = example_figure(panel, f"example-{index}")
        _save_picture(drawing, folder / f"{study.name}-{drawing.name}.webp")
        examples.append(drawing)
    return {
        "name": study.name,
        "about": study.about,
        "planned": study.results.summary["planned"],
        "finished": study.results.summary["finished"],
        "failed": study.results.summary["failed"],
        "drawings": drawings,
        "examples": examples,
        "comparisons": [
            {
                "title": item.title,
                "sentence": comparison_sentence(item, study.results.baseline),
                "table": result_table(study, item),
                "stress": stress_table(study, item),
                "figures": full_table(study, item),
            }
            for item in study.results.comparisons
        ],
    }


def _save_picture(drawing: Drawing, path: Path) -> None:
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=100)
    Image.open(buffer).convert("RGB").save(path, "WEBP", quality=70, method=6)


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
    write_page(studies, options.studies, options.docs)
    print(options.docs / "results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
