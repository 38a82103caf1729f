"""A survey as a table for its page, the terminal and notebooks, and as a CSV file."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any, Final

from evenslice.report.tables import (
    MINUS,
    Row,
    Table,
    counted,
    csv_text,
    difference,
    html_table,
    number,
    plain_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.results import SurveyedNetwork, SurveyResult

READING: Final = (
    f"Directional bias D_m: {MINUS}1 if all attention goes to the slices before the middle, 0 if the network is fair, 1 if all "
    "goes to those after. Energy: share of each channel (red, green, "
    "blue) in the sum of squares of the stem's kernels, with the network's normalisation folded in. Chromatic: the part of that "
    "energy to which a gray image does not contribute. Shares: share of each slice in the attribution. Mirror error: change of "
    "the output when a window is reversed, relative to its largest value."
)


def headline(survey: SurveyResult) -> str:
    """Count the networks and verdicts of a survey in one sentence."""
    verdicts = [item.verdict for item in survey.measured]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts))]
    failed = [f"{len(survey.failed)} failed"] if survey.failed else []
    return f"{counted(len(survey.networks), 'network')}: {', '.join(counts + failed)}."


def networks_table(survey: SurveyResult) -> Table:
    """Return a row for each network that was measured."""
    rows = [
        Row(
            item.spec,
            (
                item.verdict
                + ("\nall random" if item.random == ("*",) else "\npartly random" if item.random else ""),
                difference(item.directional_bias),
                " ".join(map(number, item.energy)),
                number(item.chromatic),
                " ".join(number(share.estimate) for share in item.shares),
                number(item.mirror_error.estimate),
            ),
        )
        for item in survey.measured
    ]
    columns = ("network", "verdict", "D_m", "energy", "chromatic", "shares", "mirror error")
    draws = max((item.draws for item in survey.measured), default=1)
    note = f"Networks with random parts: means over {draws} draws." if draws > 1 else ""
    return plain_table("Colour balance and slice bias", columns, rows, note)


def failed_table(survey: SurveyResult) -> Table:
    """Return the networks that could not be surveyed, and why."""
    return plain_table(
        "What failed", ("network", "error"), [Row(item.spec, (item.error,)) for item in survey.failed]
    )


def tables_of_survey(survey: SurveyResult) -> list[Table]:
    """Return the table of the networks that were measured, and that of those which were not, as far as there are any."""
    return [table for table in (networks_table(survey), failed_table(survey)) if table.rows]


def survey_html(survey: SurveyResult) -> str:
    """Return a survey in short as HTML, for notebooks."""
    tables = "".join(map(html_table, tables_of_survey(survey)))
    return f"<p><b>{escape(headline(survey))}</b></p>{tables}"


def survey_csv(survey: SurveyResult) -> str:
    """Return a survey as CSV, one row for each network."""
    return csv_text(_lines(survey))


def _lines(survey: SurveyResult) -> Iterator[list[Any]]:
    channels = max(len(item.energy) for item in survey.networks)
    half = max(len(item.pairs) for item in survey.networks)
    yield [
        *("spec", "weights", "origin", "random", "stems", "verdict"),
        *(f"energy_{number}" for number in range(1, channels + 1)),
        "chromatic",
        *(f"share_{k}" for k in range(-half, half + 1)),
        *("directional_bias", "directional_bias_low", "directional_bias_high"),
        *(f"pair_{k}" for k in range(1, half + 1)),
        *("mirror_error", "mirror_disagreement", "windows", "draws", "seconds", "error"),
    ]
    for item in survey.networks:
        yield _line(item, channels, half)


def _line(item: SurveyedNetwork, channels: int, half: int) -> list[Any]:
    bias = item.directional_bias
    missing: list[float | None] = [None] * (half - len(item.pairs))
    shares = [share.estimate for share in item.shares] or [math.nan]
    return [
        *(item.spec, item.weights, item.origin, " ".join(item.random), " ".join(item.stems), item.verdict),
        *(*item.energy, *[None] * (channels - len(item.energy))),
        item.chromatic,
        *(*missing, *shares, *missing),
        *(bias.estimate, bias.low, bias.high),
        *(*(pair.estimate for pair in item.pairs), *missing),
        *(item.mirror_error.estimate, item.mirror_disagreement.estimate),
        *(item.windows, item.draws, item.seconds, item.error),
    ]
