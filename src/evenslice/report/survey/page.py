"""The page of a survey, as self-contained HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice.report.base import style, wording
from evenslice.report.base.rendering import inline_charts, render_template
from evenslice.report.survey.charts import balance_figure, channel_colour
from evenslice.report.survey.summary import headline
from evenslice.report.survey.tables import channel_names, run_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.report.base.drawing import Drawing
    from evenslice.results import SurveyedNetwork, SurveyResult


@dataclass(frozen=True)
class _Part:
    """One part of a strip: its name, its share of the whole, and its colour."""

    name: str
    share: float
    colour: str


@dataclass(frozen=True)
class _Row:
    """A network in the table."""

    item: SurveyedNetwork
    context: str
    energy: tuple[_Part, ...]
    shares: tuple[_Part, ...]


def draw_charts(survey: SurveyResult) -> list[Drawing]:
    """Draw the charts of a survey; call it inside ``style.settings()``."""
    return [balance_figure(survey)]


def render(survey: SurveyResult) -> str:
    """Return the page of a survey as HTML."""
    with style.settings():
        charts = inline_charts(draw_charts(survey), "The numbers are in the table below.")
    return render_template(
        "survey.html",
        "base.css",
        "survey.css",
        headline=headline(survey),
        charts=charts,
        rows=[_row(item) for item in survey.measured],
        failed=survey.failed,
        run=run_rows(survey),
    )


def _row(item: SurveyedNetwork) -> _Row:
    energy = zip(channel_names(len(item.energy)), item.energy, strict=True)
    return _Row(
        item=item,
        context="; ".join(_context(item)),
        energy=tuple(
            _Part(name, share, style.colour_variable(channel_colour(channel)))
            for channel, (name, share) in enumerate(energy)
        ),
        shares=tuple(
            _Part(wording.signed(k), share.estimate, "var(--quiet)")
            for k, share in zip(item.offsets, item.shares, strict=True)
        ),
    )


def _context(item: SurveyedNetwork) -> Iterator[str]:
    """Describe the origin of a network's weights, the layers that read the image, and its random parts."""
    yield f"weights: {item.origin}"
    yield f"stem: {', '.join(item.stems) or 'the network itself'}"
    drawn = f" (mean of {item.draws} draws)" if item.draws > 1 else ""
    if item.random == ("*",):
        yield f"all weights random{drawn}"
    elif item.random:
        yield f"random: {', '.join(item.random)}{drawn}"
