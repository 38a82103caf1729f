"""The result of a survey of networks, and the file that holds it."""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import UNREADABLE, ConfigError, json_text, local_path, read_json, reason
from evenslice.results.audit_json import DEFINITIONS
from evenslice.results.audits import AuditedVolume  # noqa: TC001  # ``from_plain`` reads the annotation
from evenslice.results.intervals import UNKNOWN, Interval
from evenslice.results.plain_values import from_plain
from evenslice.results.student import clipped, student_interval

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

__all__ = ["SURVEY_FILES", "SurveyResult", "SurveyRun", "SurveyedNetwork", "is_survey", "mean_of_draws"]

FORMAT = 1
LARGEST = 1e9  # no figure of a survey can be larger

SURVEY_FILES = ("survey.json", "survey.csv", "report.html", "figures/balance.png", "figures/balance.svg")
"""Names of the files that ``Survey.save`` writes."""


@dataclass(frozen=True)
class SurveyedNetwork:
    """One network of a survey; if it failed, only ``spec``, ``weights`` and ``error`` are set.

    Attributes:
        spec: the specification of the network.
        weights: ``"imagenet"``, ``"none"`` or the path of a file.
        origin: source of the weights: a package and its version, a hub, a digest, a seed.
        random: top-level parts of the network with random weights.
        draws: number of times that these were drawn; energies and what follows are means over the draws.
        stems: dotted names of the layers that read the image.
        energy: (C,) share of each channel in the energy of the stems, 0..1; see ``evenslice.results.channel_balance``.
        chromatic: part of that energy to which a gray image does not contribute, 0..1.
        verdict: of the audit of every draw; "inconclusive" if they differ.
        shares: (N,) share of each slice in the saliency.
        pairs: (K,) pair biases of the saliency.
        reliance: (K,) those of the reliance; empty in surveys of version 0.2, where the answer change is unknown too.
        answer_change: C.
        answer_of: what it compares: "classes", "scores", or "unknown".
        directional_bias: D_m.
        mirror_error: change of the output when a window is reversed, relative to its largest value.
        mirror_disagreement: share of the predictions that change when a window is reversed.
        windows: number of windows that the network was shown.
        seconds: duration.
        error: why the network could not be surveyed, in one line; empty if it could.
    """

    spec: str
    weights: str
    origin: str = ""
    random: tuple[str, ...] = ()
    draws: int = 1
    stems: tuple[str, ...] = ()
    energy: tuple[float, ...] = ()
    chromatic: float = math.nan
    verdict: str = ""
    shares: tuple[Interval, ...] = ()
    pairs: tuple[Interval, ...] = ()
    reliance: tuple[Interval, ...] = ()
    answer_change: Interval = UNKNOWN
    answer_of: str = "unknown"
    directional_bias: Interval = UNKNOWN
    mirror_error: Interval = UNKNOWN
    mirror_disagreement: Interval = UNKNOWN
    windows: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def offsets(self) -> tuple[int, ...]:
        """The window's offsets, -K..K."""
        half = len(self.shares) // 2
        return tuple(range(-half, len(self.shares) - half))

    @property
    def sort_key(self) -> tuple[bool, float, float]:
        """The key that sorts networks by absolute D_m, then by largest pair bias, descending; unknown and failed last."""
        bias = abs(self.directional_bias.estimate)
        largest = max((abs(pair.estimate) for pair in self.pairs), default=0.0)
        return bool(self.error), math.inf if math.isnan(bias) else -bias, -largest


@dataclass(frozen=True, kw_only=True)
class SurveyRun:
    """What a survey ran; an entry missing from an older document has its default.

    Attributes:
        slices: N as requested; None for as many as each network has inputs.
        windows: number of windows that each network was shown.
        draws: number of times that random parts of a network were drawn.
        seed: random seed.
        method: of attribution.
        target: what was explained, "auto" resolved.
        device: PyTorch device.
        volumes: the volume.
        versions: of Python and of the packages involved.
        command: the command line.
        created: date and time in UTC, ISO 8601.
        seconds: duration.
    """

    slices: int | None = None
    windows: int = 0
    draws: int = 1
    seed: int = 0
    method: str = ""
    target: int | str = ""
    device: str = ""
    volumes: tuple[AuditedVolume, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    created: str = ""
    seconds: float | None = None


@dataclass(frozen=True, repr=False)
class SurveyResult:
    """The result of a survey.

    Attributes:
        networks: all networks, the one with the largest absolute D_m first, those that failed last.
        run: what was run.
        definitions: those of the figures: 2, or 1 in a survey of version 0.2.
    """

    networks: tuple[SurveyedNetwork, ...]
    run: SurveyRun = field(default_factory=SurveyRun)
    definitions: int = DEFINITIONS

    def __repr__(self) -> str:
        lines = (
            f"{item.spec} {item.error or f'{item.directional_bias.estimate:+z.3f}'}" for item in self.networks
        )
        return f"<Survey: {'; '.join(lines)}>"

    @property
    def measured(self) -> tuple[SurveyedNetwork, ...]:
        """The networks that were surveyed."""
        return tuple(item for item in self.networks if not item.error)

    @property
    def failed(self) -> tuple[SurveyedNetwork, ...]:
        """The networks that could not be surveyed."""
        return tuple(item for item in self.networks if item.error)

    def to_dict(self) -> dict[str, Any]:
        """Return the survey as plain values, with the keys of ``survey.json``."""
        return {
            "format": FORMAT,
            "definitions": self.definitions,
            "networks": [_plain(item) for item in self.networks],
            **asdict(self.run),
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what ``evenslice survey --out`` wrote into a folder.

        Raises:
            ConfigError: the folder holds no survey, or one that cannot be read.
        """
        path = local_path(folder, ConfigError) / "survey.json"
        if not path.is_file():
            raise ConfigError(f"{folder}: holds no survey; name a folder that `evenslice survey --out` wrote")
        try:
            document = read_json(path)
            if document["format"] != FORMAT:
                raise ValueError(f"this version reads format {FORMAT}")
            definitions = document.get("definitions", 1)
            if definitions not in (1, DEFINITIONS):
                raise ValueError(f"definitions {definitions}, this version reads 1 and {DEFINITIONS}")
            networks = from_plain(tuple[SurveyedNetwork, ...], document["networks"])
            survey = cls(networks, from_plain(SurveyRun, document), definitions)
            if not survey.measured or not all(map(_is_whole, survey.measured)):
                raise ValueError("it holds no network that was measured, or one without its measurements")
        except UNREADABLE as error:
            raise ConfigError(
                f"{path}: cannot be read as a survey ({reason(error)}); run the survey again"
            ) from error
        return survey

    def to_json(self) -> str:
        """Return the survey as a JSON document; undefined values are null."""
        return json_text(self.to_dict())


def mean_of_draws(draws: Sequence[Interval], bounds: tuple[float, float]) -> Interval:
    """Return the mean of a statistic over draws of a network's random parts, with a 95 % interval.

    All draws were shown the same windows, so the interval has two parts: that over the windows, by the mean of the draws'
    half-widths (of one that is clipped at the edge of the range, that of its other side), and that over the draws, by
    Student's t. The half-width is the root of the sum of their squares.

    Args:
        draws: the statistic of each draw with its interval over windows; a single one is returned as it is.
        bounds: the range of the statistic, to which the interval is clipped.

    Example:
        >>> found = mean_of_draws([Interval(-0.21, -0.24, -0.18), Interval(-0.19, -0.22, -0.16)], bounds=(-1, 1))
        >>> f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
        '-0.20 [-0.33, -0.07]'
    """
    if len(draws) == 1:
        return Interval(draws[0].estimate, draws[0].low, draws[0].high)
    over_draws = student_interval([draw.estimate for draw in draws])
    half = math.hypot(
        sum(max(draw.high - draw.estimate, draw.estimate - draw.low) for draw in draws) / len(draws),
        (over_draws.high - over_draws.low) / 2,
    )
    middle = over_draws.estimate
    return clipped(Interval(middle, middle - half, middle + half), bounds)


def _is_whole(item: SurveyedNetwork) -> bool:
    """Return whether a network has all its figures, and none that a page cannot show."""
    figures = (
        *(item.directional_bias, item.mirror_error, item.mirror_disagreement, item.answer_change),
        *(*item.shares, *item.pairs, *item.reliance),
    )
    plain = (*item.energy, item.chromatic, *(value for figure in figures for value in astuple(figure)))
    return (
        bool(item.energy)
        and len(item.shares) % 2 == 1
        and len(item.pairs) == len(item.shares) // 2
        and len(item.reliance) in (0, len(item.pairs))
        and not any(abs(value) > LARGEST for value in plain)
        and 0 <= item.windows < LARGEST
        and 1 <= item.draws < LARGEST
    )


def _plain(item: SurveyedNetwork) -> dict[str, Any]:
    values = asdict(item)
    for name, first in (("shares", -(len(item.shares) // 2)), ("pairs", 1), ("reliance", 1)):
        values[name] = [{"offset": k, **value} for k, value in enumerate(values[name], first)]
    return values


def is_survey(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a survey."""
    return (Path(folder) / "survey.json").is_file()
