"""What a survey of networks found, and how it travels to files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, json_text
from evenslice.results.intervals import Interval

if TYPE_CHECKING:
    import os
    from typing import Self

__all__ = ["SURVEY_FILES", "SurveyResult", "Surveyed", "is_survey"]

FORMAT = 1

SURVEY_FILES = ("survey.json", "survey.csv", "report.html", "figures/balance.png", "figures/balance.svg")
"""Names of everything that ``Survey.save`` writes."""

_UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Surveyed:
    """One network of a survey; of a network that failed, only ``spec``, ``weights`` and ``error`` say anything.

    Attributes:
        spec: which network.
        weights: ``"imagenet"``, ``"none"`` or the path of a file.
        origin: where the weights came from: a package and its version, a hub, a digest, a seed.
        random: top-level parts of the network that were drawn at random.
        stems: dotted names of the layers that read the image.
        energy: (C,) share of each channel in the energy of the stems, 0..1; see ``evenslice.results.color_balance``.
        chromatic: part of that energy that a gray image never meets, 0..1.
        verdict: of the audit.
        shares: (N,) share of each slice in the attribution, with its interval.
        pairs: (K,) model part of each pair bias, with its interval.
        directional_bias: D_m, with its interval.
        mirror_error: change of the output when a window is reversed, relative to its largest value.
        mirror_disagreement: share of the predictions that change then.
        windows: how many the network was shown.
        seconds: what it took.
        error: why the network could not be surveyed, in one line; empty where it could.
    """

    spec: str
    weights: str
    origin: str = ""
    random: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    energy: tuple[float, ...] = ()
    chromatic: float = math.nan
    verdict: str = ""
    shares: tuple[Interval, ...] = ()
    pairs: tuple[Interval, ...] = ()
    directional_bias: Interval = _UNKNOWN
    mirror_error: Interval = _UNKNOWN
    mirror_disagreement: Interval = _UNKNOWN
    windows: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def offsets(self) -> tuple[int, ...]:
        """The window's offsets, -K..K."""
        half = len(self.shares) // 2
        return tuple(range(-half, len(self.shares) - half))

    @property
    def order(self) -> tuple[bool, float, float]:
        """The place in a table: largest absolute D_m first, then largest pair bias; what is not known or failed comes last."""
        bias = abs(self.directional_bias.estimate)
        largest = max((abs(pair.estimate) for pair in self.pairs), default=0.0)
        return bool(self.error), math.inf if math.isnan(bias) else -bias, -largest


@dataclass(frozen=True, repr=False)
class SurveyResult:
    """What a survey found: its networks, that with the largest absolute D_m first and those that failed last.

    Attributes:
        networks: all of them.
        run: what was run, ready for JSON: slices, windows, seed, volumes, command, versions, created, seconds.
    """

    networks: tuple[Surveyed, ...]
    run: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = (
            f"{item.spec} {item.error or f'{item.directional_bias.estimate:+.3f}'}" for item in self.networks
        )
        return f"<Survey: {'; '.join(lines)}>"

    @property
    def measured(self) -> tuple[Surveyed, ...]:
        """The networks that could be surveyed."""
        return tuple(item for item in self.networks if not item.error)

    @property
    def failed(self) -> tuple[Surveyed, ...]:
        """The networks that could not."""
        return tuple(item for item in self.networks if item.error)

    def to_dict(self) -> dict[str, Any]:
        """Return the survey as plain values, as ``survey.json`` holds them."""
        return {"format": FORMAT, "networks": [_plain(item) for item in self.networks], **self.run}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what ``evenslice survey --out`` wrote into a folder.

        Raises:
            ConfigError: it holds no survey, or one that cannot be read.
        """
        path = Path(folder) / "survey.json"
        if not path.is_file():
            raise ConfigError(f"{folder}: holds no survey; name a folder that `evenslice survey --out` wrote")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.pop("format") != FORMAT:
                raise ValueError(f"this version reads format {FORMAT}")
            survey = cls(tuple(_from_plain(item) for item in document.pop("networks")), document)
            if not survey.measured or not all(item.energy and item.shares for item in survey.measured):
                raise ValueError("there is no network in it, or one of which nothing was measured")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: cannot be read as a survey ({error}); run the survey again"
            ) from error
        return survey

    def to_json(self) -> str:
        """Return the survey as one JSON document; figures that do not exist are null."""
        return json_text(self.to_dict())


def _plain(item: Surveyed) -> dict[str, Any]:
    values = asdict(item)
    for name, offsets in (("shares", item.offsets), ("pairs", range(1, len(item.pairs) + 1))):
        values[name] = [{"offset": k, **value} for k, value in zip(offsets, values[name], strict=True)]
    return values


def is_survey(folder: str | os.PathLike[str]) -> bool:
    """Say whether a folder is that of a survey."""
    return (Path(folder) / "survey.json").is_file()


def _from_plain(item: dict[str, Any]) -> Surveyed:
    return Surveyed(
        spec=str(item["spec"]),
        weights=str(item["weights"]),
        origin=str(item["origin"]),
        random=tuple(map(str, item["random"])),
        stems=tuple(map(str, item["stems"])),
        energy=tuple(map(_number, item["energy"])),
        chromatic=_number(item["chromatic"]),
        verdict=str(item["verdict"]),
        shares=tuple(map(_interval, item["shares"])),
        pairs=tuple(map(_interval, item["pairs"])),
        directional_bias=_interval(item["directional_bias"]),
        mirror_error=_interval(item["mirror_error"]),
        mirror_disagreement=_interval(item["mirror_disagreement"]),
        windows=int(item["windows"]),
        seconds=float(item["seconds"]),
        error=str(item["error"]),
    )


def _interval(value: dict[str, Any]) -> Interval:
    return Interval(*(_number(value[name]) for name in ("estimate", "low", "high")))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
