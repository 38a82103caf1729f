"""The page of a study, as self-contained HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice.report.base import style
from evenslice.report.base.pictures import StoredPicture, data_uri, store_picture
from evenslice.report.base.rendering import inline_charts, render_template
from evenslice.report.study import wording as study_wording
from evenslice.report.study.charts import forest_figure, saliency_figure
from evenslice.report.study.curves import learning_figure, shares_figure
from evenslice.report.study.pictures import READING, example_figure, example_panels
from evenslice.report.study.pooled import (
    POOLED_READING,
    pooled_arm_sentence,
    pooled_groups,
    pooled_sentence,
    shown_pooled,
)
from evenslice.report.study.stress import stress_chart, stress_group
from evenslice.report.study.tables import effort_rows, extent_groups, figure_groups, run_rows
from evenslice.results import failed_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.report.base.drawing import Drawing
    from evenslice.report.base.tables import Group
    from evenslice.report.study.pictures import ExamplePanel
    from evenslice.report.study.tables import Row
    from evenslice.results import Comparison, PooledComparison, StudyResults


@dataclass(frozen=True)
class _Arm:
    """An arm in the summary of a comparison."""

    name: str
    colour: str
    badge: str
    sentence: str


@dataclass(frozen=True)
class _Block:
    """A comparison in the page, in words and as a table."""

    title: str
    sentence: str
    reading: str
    arms: tuple[_Arm, ...]
    groups: tuple[Group[Row], ...]


@dataclass(frozen=True)
class _Outlined:
    """A picture of the page with its outlines."""

    name: str
    colour: str
    image: StoredPicture
    outlines: str
    description: str


@dataclass(frozen=True)
class _Example:
    title: str
    pictures: tuple[_Outlined, ...]


def draw_charts(results: StudyResults) -> list[Drawing]:
    """Draw the charts for which the study has data; call it inside ``style.settings()``."""
    if not results.comparisons:
        return []
    charts = (
        forest_figure(results),
        learning_figure(results),
        shares_figure(results),
        saliency_figure(results),
        stress_chart(results),
    )
    return [chart for chart in charts if chart is not None]


def draw_examples(results: StudyResults) -> list[Drawing]:
    """Draw the example of each comparison for files; call it inside ``style.settings()``."""
    return [
        example_figure(panel, f"example-{number}")
        for number, panel in enumerate(example_panels(results), start=1)
    ]


def render(results: StudyResults, charts: Sequence[Drawing]) -> str:
    """Return the page of a study as HTML; call it inside ``style.settings()``."""
    pictures: dict[str, StoredPicture] = {}
    return render_template(
        "study.html",
        "base.css",
        "study.css",
        headline=study_wording.study_headline(results),
        blocks=[
            *(_pooled_block(results, item) for item in shown_pooled(results)),
            *(_block(results, item) for item in results.comparisons),
        ],
        charts=inline_charts(
            charts, "The numbers are in the tables below, and in the folder of tables beside this page."
        ),
        examples=[_example(panel, pictures) for panel in example_panels(results)],
        example_reading=READING,
        pictures=list(pictures.values()),
        failed=failed_runs(results.summary),
        efforts=effort_rows(results),
        run=run_rows(results),
        config=results.config,
    )


def _block(results: StudyResults, item: Comparison) -> _Block:
    arms = tuple(
        _Arm(
            arm.arm,
            style.colour_variable(results.arms.index(arm.arm)),
            "baseline" if arm.arm == results.baseline else study_wording.judgement(arm),
            study_wording.arm_sentence(arm, results.baseline, item.unit),
        )
        for arm in item.arms
    )
    sentence = study_wording.comparison_sentence(item, results.baseline)
    stress = stress_group(results, item)
    groups = (
        *extent_groups(results, [item], item.arms),
        *figure_groups(results, item),
        *([stress] if stress.rows else []),
    )
    unit = f"{item.unit}s"
    reading = f"Means over {unit}, with 95 % intervals by Student's t if there are several {unit}."
    return _Block(item.title, sentence, reading, arms, groups)


def _pooled_block(results: StudyResults, item: PooledComparison) -> _Block:
    arms = tuple(
        _Arm(
            arm.arm,
            style.colour_variable(results.arms.index(arm.arm)),
            "baseline" if arm.arm == results.baseline else study_wording.judgement(arm),
            pooled_arm_sentence(results, item, arm),
        )
        for arm in item.arms
    )
    sets = [found for found in results.comparisons if found.architecture == item.architecture]
    groups = (*extent_groups(results, sets, item.arms), *pooled_groups(results, item))
    return _Block(item.title, pooled_sentence(results, item), POOLED_READING, arms, groups)


def _example(panel: ExamplePanel, pictures: dict[str, StoredPicture]) -> _Example:
    """Prepare an example for the page; an image shared by several arms is added to ``pictures`` once."""
    return _Example(
        panel.title,
        tuple(
            _Outlined(
                item.name,
                style.colour_variable(item.arm),
                store_picture(pictures, item.image),
                data_uri(item.outlines),
                f"Test slice of {panel.title} with the outlines of its labels and of the prediction of {item.name}",
            )
            for item in panel.pictures
        ),
    )
