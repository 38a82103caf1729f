"""The results of a survey as rows for its page and for a CSV file."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evenslice.report.base.tables import csv_text, flatten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.results import SurveyedNetwork, SurveyResult

CHANNELS = ("red", "green", "blue")


def channel_names(count: int) -> tuple[str, ...]:
    """Name the channels of a network: colours if there are three, else numbers.

    Example:
        >>> channel_names(3), channel_names(2)
        (('red', 'green', 'blue'), ('channel 1', 'channel 2'))
    """
    return CHANNELS if count == 3 else tuple(f"channel {number}" for number in range(1, count + 1))


def survey_csv(survey: SurveyResult) -> str:
    """Return a survey as CSV, one row for each network."""
    return csv_text(_lines(survey))


def run_rows(survey: SurveyResult) -> list[tuple[str, str]]:
    """List the settings, the command first, nested settings under dotted names."""
    return sorted(flatten(asdict(survey.run)), key=lambda row: row[0] not in ("command", "created"))


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
