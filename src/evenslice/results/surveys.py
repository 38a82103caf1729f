"""The result of a survey of networks, and the file that holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, json_text, local_path, read_json, reading
from evenslice.results.audits import AuditedVolume  # noqa: TC001  # ``from_plain`` reads the annotation
from evenslice.results.documents import (
    DEFINITIONS,
    FORMAT,
    PAIRS,
    SLICES,
    definitions_of,
    from_plain,
    to_plain,
)
from evenslice.results.intervals import UNKNOWN, Interval

if TYPE_CHECKING:
    import os
    from typing import Self


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
        energy: (C,) share of each channel in the energy of the stems, 0..1; see ``evenslice.auditing.surveyor``.
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
    shares: tuple[Interval, ...] = field(default=(), metadata=SLICES)
    pairs: tuple[Interval, ...] = field(default=(), metadata=PAIRS)
    reliance: tuple[Interval, ...] = field(default=(), metadata=PAIRS)
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
            "networks": to_plain(self.networks),
            **to_plain(self.run),
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
        with reading(path, "a survey", "run the survey again"):
            document = read_json(path)
            definitions = definitions_of(document)
            networks = from_plain(tuple[SurveyedNetwork, ...], document["networks"], "networks")
            survey = cls(networks, from_plain(SurveyRun, document), definitions)
            if not survey.measured or not all(map(_is_whole, survey.measured)):
                raise ValueError("it holds no network that was measured, or one without its measurements")
        return survey

    def to_json(self) -> str:
        """Return the survey as a JSON document; undefined values are null."""
        return json_text(self.to_dict())


def _is_whole(item: SurveyedNetwork) -> bool:
    """Return whether a network has all its figures."""
    pairs = len(item.shares) // 2
    known = bool(item.energy) and len(item.shares) % 2 == 1 and item.draws > 0
    return known and len(item.pairs) == pairs and len(item.reliance) in (0, pairs)
