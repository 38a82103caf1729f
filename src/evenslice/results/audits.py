"""The result of an audit, and the files that hold it.

An audit is kept in two files: ``audit.json`` holds the statistics with their intervals and what was run, ``audit.npz``
the measurements behind them and the example windows of the report. Audits made together for comparison are kept in one
folder, the second and later ones as ``audit.1-NAME.json`` and so on.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    OutputError,
    json_text,
    local_path,
    read_json,
    reason,
    staged_file,
)
from evenslice.networks import StemKernels
from evenslice.results.array_files import read_arrays
from evenslice.results.audit_checks import check_audit
from evenslice.results.audit_json import DEFINITIONS, statistics_from_plain, statistics_to_plain
from evenslice.results.measurements import Measurements
from evenslice.results.plain_values import from_plain
from evenslice.results.stress import StressSummary

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

    from evenslice.results.asymmetry import AnswerChange, Asymmetry, Mismatch, PairBias
    from evenslice.results.intervals import Interval
    from evenslice.results.verdicts import Verdict

__all__ = [
    "AuditResult",
    "AuditRun",
    "AuditedVolume",
    "ExampleWindows",
    "StemShape",
    "save_audits",
]

FORMAT = 1
MOST_BYTES = 2**29
"""Largest size of the measurements and examples of one audit that is read back."""

LONGEST_SLUG = 60  # characters of an audit's name in that of its file


@dataclass(frozen=True, eq=False)
class ExampleWindows:
    """A few windows for the report.

    Attributes:
        volume: (e,) index of the volume a window was taken from.
        position: (e, 3) window centre slice z and in-plane origin y, x, in voxels.
        images: (e, N, y, x) uint8, the slices as the network saw them, scaled to 0..255.
        saliency: (e, N, y, x) float32, absolute attribution divided by its sum over the window.
        maps: (e, N, y, x) float32, what each pixel adds to the answer (above 0) or takes from it; in audits by version 0.2
            the saliency.
    """

    volume: NDArray[np.int64]
    position: NDArray[np.int64]
    images: NDArray[np.uint8]
    saliency: NDArray[np.float32]
    maps: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AuditedVolume:
    """A volume that an audit read.

    Attributes:
        path: the file, folder or address.
        format: name of its file format.
        shape: (z, y, x).
        region: first voxel and one past the last along z, y, x of the file; None for all of it.
        select: the index that was picked along each other axis of the file, such as ``{"t": 0}``.
        level: the resolution level, 0 the finest.
        dtype: NumPy type of the voxels.
        spacing: voxel size (z, y, x) in ``unit``; None if unknown.
        unit: of the spacing; None if unknown.
        fingerprint: digest of its content.
        windows: number of windows that it has.
        intensity: the voxel values that became 0 and 1.
        fill: the voxel value that replaced NaN and infinity; None if none was given.
        labels_path: where its labels are; None without labels.
        labels: digest of their content; likewise.
    """

    path: str = ""
    format: str = ""
    shape: tuple[int, ...] = ()
    region: tuple[tuple[int, ...], ...] | None = None
    select: dict[str, Any] = field(default_factory=dict)
    level: int = 0
    dtype: str = ""
    spacing: tuple[float, ...] | None = None
    unit: str | None = None
    fingerprint: str = ""
    windows: int | None = None
    intensity: tuple[float, ...] = ()
    fill: float | None = None
    labels_path: str | None = None
    labels: str | None = None


@dataclass(frozen=True)
class StemShape:
    """The name of a stem and the shape of its kernels."""

    name: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AuditRun:
    """What an audit ran; an entry missing from an older document has its default.

    Attributes:
        slices: N, the slices of a window.
        step: distance between neighbouring slices of a window.
        strategy: that of ``neutralize``; None for a network without a record of it.
        tie: the constraint that ``neutralize`` put on training.
        method: of attribution, for the question of saliency; empty if that is not asked.
        baseline: what the method compares a window with: the "middle" slice or "gray"; None for a method without one.
        maps: method and baseline of the maps of the examples; empty if they show the saliency.
        use: what the question of use compares: "gradient" or "replacement".
        target: what was explained, "auto" resolved.
        explained: "log-odds" of classes that exclude each other, the logit of each "channel" of classes that overlap, "score",
            or "class numbers".
        assumed: whether it was assumed that classes exclude each other; else the network or the user says so.
        outputs: name of the function that reduced the network's output.
        label_options: what the values of the labels mean, by the names of the options; None without labels.
        precision: half-width of the 95 % intervals at which the audit was to stop; None for the word alone.
        windows_available: number of windows in all volumes.
        windows_without_attribution: number of windows in which nothing moved the output.
        stopped: "settled", "precision reached", "limit reached" or "all windows used".
        tile: size (y, x) of a window in the plane.
        batch: windows in one pass of the network.
        seed: random seed.
        device: PyTorch device.
        dtype: PyTorch type of the computation.
        scaling: ``mean`` and ``std`` by which slices in 0..1 were scaled, and their ``source``: "recorded", "recorded on a part",
            "given", "stated" by the network's library, "assumed", or "function" if it scales by itself.
        clamped: part of the probabilities that were clamped to [1e-6, 1 - 1e-6].
        model: ``class`` of the network; if the command line built it, also its specification and weights.
        stems: the layers that read the image.
        volumes: the volumes.
        command: the command line.
        versions: of Python and of the packages involved.
        created: date and time in UTC, ISO 8601.
        seconds: duration.
    """

    slices: int = 0
    step: int = 1
    strategy: str | None = None
    tie: str | None = None
    method: str = ""
    baseline: str | None = None
    maps: tuple[str, ...] = ()
    use: str = ""
    target: int | str = ""
    explained: str = ""
    assumed: bool = False
    outputs: str | None = None
    label_options: dict[str, Any] | None = None
    precision: float | None = None
    windows_available: int | None = None
    windows_without_attribution: int | None = None
    stopped: str = ""
    tile: tuple[int, ...] = ()
    batch: int | None = None
    seed: int = 0
    device: str = ""
    dtype: str = ""
    scaling: dict[str, Any] | None = None
    clamped: float | None = None
    model: dict[str, Any] = field(default_factory=dict)
    stems: tuple[StemShape, ...] = ()
    volumes: tuple[AuditedVolume, ...] = ()
    command: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float | None = None


@dataclass(frozen=True, repr=False, eq=False)
class AuditResult:
    """The result of an audit.

    The main statistics are attributes (``audit.verdict``, ``audit.directional_bias.low``); ``save`` writes the result
    to files and ``load`` reads it. ``evenslice.Audit`` adds the report.

    Attributes:
        name: distinguishes this audit from those it is compared with: a strategy, a method, "audit".
        statistics: the statistics with their intervals.
        windows: number of windows read.
        measurements: what was measured on each of them; None in an audit of version 0.2.
        examples: a few windows with their saliency.
        stress: what disturbed slices cost the network; None if that was not measured.
        kernels: the stems before and after the strategy, both the same if the former are unknown; empty for a network
            without a record of ``neutralize``.
        run: what was run.
        definitions: those of the figures: 2, or 1 in an audit of version 0.2.
    """

    name: str
    statistics: Asymmetry
    windows: int
    measurements: Measurements | None
    examples: ExampleWindows
    kernels: tuple[StemKernels, ...] = ()
    stress: StressSummary | None = None
    run: AuditRun = field(default_factory=AuditRun)
    definitions: int = DEFINITIONS

    def __repr__(self) -> str:
        figures = [
            f"{name} {' '.join(f'{pair.estimate:+z.3f}' for pair in pairs)}"
            for name, pairs in (("saliency", self.pairs), ("reliance", self.reliance))
        ]
        return f"<Audit {self.name!r}: {self.verdict}, {', '.join(figures)}, {self.windows} windows>"

    @property
    def verdict(self) -> Verdict:
        """The verdict: "symmetric", "balanced", "biased", "inconclusive" or, at N = 1, "not applicable"."""
        return self.statistics.verdict

    @property
    def shares(self) -> tuple[Interval, ...]:
        """Mean share of each offset -K..K, with its interval."""
        return self.statistics.shares

    @property
    def pairs(self) -> tuple[PairBias, ...]:
        """The pair biases B_1..B_K of the saliency (their model parts), with their intervals."""
        return self.statistics.pairs

    @property
    def saliency(self) -> tuple[PairBias, ...]:
        """Whether a map of saliency would favour a side: the pair biases, as ``pairs``."""
        return self.statistics.pairs

    @property
    def reliance(self) -> tuple[PairBias, ...]:
        """Whether the network relies on a side: the pair biases of what replacing a slice by the middle one changes."""
        return self.statistics.reliance

    @property
    def answer(self) -> AnswerChange:
        """Whether the order matters: C, the part of the answer that changes when a window is reversed, and ``of`` what."""
        return self.statistics.answer_change

    @property
    def mismatch(self) -> Mismatch:
        """Whether opposite slices are used in the same way: the mirror mismatch E."""
        return self.statistics.mirror_mismatch

    @property
    def directional_bias(self) -> Interval:
        """D_m, the model part of the directional bias."""
        return self.statistics.directional_bias

    @property
    def offsets(self) -> tuple[int, ...]:
        """The window's offsets, -K..K."""
        half = len(self.statistics.shares) // 2
        return tuple(range(-half, half + 1))

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain values, with the keys of ``audit.json``."""
        statistics = statistics_to_plain(self.statistics)
        first = ("verdict", "decided_by", "tolerance")
        return {
            "format": FORMAT,
            "definitions": self.definitions,
            "name": self.name,
            **{name: statistics.pop(name) for name in first},
            "windows": self.windows,
            "population": {"windows": self.run.windows_available, "read": self.windows},
            **statistics,
            "stress": None if self.stress is None else self.stress.to_dict(),
            **asdict(self.run),
        }

    def to_json(self) -> str:
        """Return the audit as a JSON document; undefined values are null."""
        return json_text(self.to_dict())

    def renamed(self, name: str) -> Self:
        """Return this audit under another name."""
        return replace(self, name=name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the audit to a ``.json`` file and an ``.npz`` file of the same name beside it.

        Raises:
            OutputError: the name does not end in ``.json``, or a file cannot be written.
        """
        path = local_path(path)
        if path.suffix != ".json":
            raise OutputError(f"{path}: an audit is kept in a .json file; write {_json_file(path)}")
        arrays = {
            f"{group}/{key}": value
            for group, item in (("measurements", self.measurements), ("examples", self.examples))
            for key, value in _arrays(item).items()
        }
        for index, kernels in enumerate(self.kernels):
            arrays[f"kernels/{index}/before"] = kernels.before
            arrays[f"kernels/{index}/after"] = kernels.after
        # Both are written before either replaces one of an older audit.
        with (
            staged_file(path, force=True) as document,
            staged_file(path.with_suffix(".npz"), force=True) as beside,
        ):
            document.write_text(self.to_json(), encoding="utf-8")
            np.savez_compressed(beside, **arrays)  # type: ignore[arg-type]  # numpy types its keyword options first

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what ``save`` wrote.

        Args:
            path: the ``.json`` file; the ``.npz`` file of the same name is read too.

        Raises:
            ConfigError: one of the two cannot be read, or is not part of an audit.
        """
        path = local_path(path, ConfigError)
        if path.suffix != ".json":
            raise ConfigError(f"{path}: an audit is kept in a .json file; read {_json_file(path)}")
        try:
            found = cls._from_files(read_json(path), read_arrays(path.with_suffix(".npz"), MOST_BYTES))
            check_audit(found)
        except UNREADABLE as error:
            raise ConfigError(
                f"{path}: cannot be read as an audit ({reason(error)}); run the audit again"
            ) from error
        return found

    @classmethod
    def _from_files(cls, document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
        run, definitions = from_plain(AuditRun, document), document.get("definitions", 1)
        if definitions not in (1, DEFINITIONS):
            raise ValueError(f"definitions {definitions}, this version reads 1 and {DEFINITIONS}")
        measured = _group(arrays, "measurements") if definitions == DEFINITIONS else None
        return cls(
            name=str(document["name"]),
            statistics=statistics_from_plain(document),
            windows=int(document["windows"]),
            measurements=None if measured is None else Measurements(**measured),
            # Version 0.2 wrote no maps.
            examples=ExampleWindows(**{"maps": arrays["examples/saliency"]} | _group(arrays, "examples")),
            kernels=tuple(
                StemKernels(stem.name, **_group(arrays, f"kernels/{index}"))
                for index, stem in enumerate(run.stems)
            ),
            stress=None if document.get("stress") is None else StressSummary.from_dict(document["stress"]),
            run=run,
            definitions=definitions,
        )


def _json_file(path: Path) -> Path:
    return path.with_suffix(".json") if path.name and not path.is_dir() else path / "audit.json"


def save_audits(audits: Sequence[AuditResult], folder: str | os.PathLike[str]) -> None:
    """Write audits into an existing folder: the first as ``audit.json``, the others as ``audit.INDEX-NAME.json``."""
    for index, audit in enumerate(audits):
        slug = re.sub(r"[^a-z0-9]+", "-", audit.name.lower())[:LONGEST_SLUG].strip("-")
        audit.save(Path(folder) / ("audit.json" if index == 0 else f"audit.{index}-{slug}.json"))


def _arrays(item: Measurements | ExampleWindows | None) -> dict[str, NDArray[Any]]:
    return {} if item is None else {entry.name: getattr(item, entry.name) for entry in fields(item)}


def _group(arrays: dict[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    return {
        key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")
    }
