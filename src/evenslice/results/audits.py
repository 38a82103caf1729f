"""The results of audits and of surveys of networks, and the files that hold them.

An audit is kept in two files: ``audit.json`` holds the statistics with their intervals and what was run, ``audit.npz``
the measurements behind them and the example windows of the report. Audits made together for comparison are kept in one
folder, the second and later ones as ``audit.1-NAME.json`` and so on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray  # noqa: TC002  # ``from_arrays`` reads the annotations

from evenslice._core import ConfigError, OutputError, json_text, local_path, read_json, reading, staged_file
from evenslice.networks import StemKernels
from evenslice.results import documents
from evenslice.results.intervals import UNKNOWN, Interval
from evenslice.results.measurements import Measurements
from evenslice.results.stress import StressSummary  # noqa: TC001  # ``documents`` reads the annotations
from evenslice.results.verdicts import Asymmetry  # noqa: TC001  # likewise

if TYPE_CHECKING:
    import os
    from typing import Self

    from evenslice.results.verdicts import AnswerChange, Figure, Mismatch, Verdict

MOST_BYTES = 2**29
"""Largest size of the measurements and examples of one audit that is read back."""


@dataclass(frozen=True, eq=False)
class ExampleWindows:
    """A few windows for the report.

    Attributes:
        volume: (e,) index of the volume a window was taken from.
        position: (e, 3) window centre slice z and in-plane origin y, x, in voxels.
        images: (e, N, y, x) uint8, the slices as the network saw them, scaled to 0..255.
        maps: (e, N, y, x) float32, what each pixel adds to the answer (above 0) or takes from it; in audits by version 0.2
            the absolute attribution divided by its sum over the window.
    """

    volume: Annotated[NDArray[np.int64], "e"]
    position: Annotated[NDArray[np.int64], "e 3"]
    images: Annotated[NDArray[np.uint8], "e N y x"]
    maps: Annotated[NDArray[np.float32], "e N y x"]


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


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What audits and surveys say of how they were run."""

    seed: int = 0
    method: str = ""
    target: int | str = ""
    device: str = ""
    volumes: tuple[AuditedVolume, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    created: str = ""
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class AuditRun(_Run):
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
    baseline: str | None = None
    maps: tuple[str, ...] = ()
    use: str = ""
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
    dtype: str = ""
    scaling: dict[str, Any] | None = None
    clamped: float | None = None
    model: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False, eq=False)
class AuditResult:
    """The result of an audit.

    The main statistics are attributes (``audit.verdict``, ``audit.reliance[0].low``); ``save`` writes the result to files and
    ``load`` reads it. ``evenslice.Audit`` adds the report.

    Attributes:
        name: distinguishes this audit from those it is compared with: a strategy, a method, "audit".
        statistics: the statistics with their intervals.
        windows: number of windows read.
        measurements: what was measured on each of them; None in an audit of version 0.2.
        examples: a few windows with their saliency.
        stress: the cost of disturbed slices; None if that was not measured.
        kernels: the stems before and after the strategy, both the same if the former are unknown; empty for a network
            without a record of ``neutralize``.
        run: what was run.
        definitions: those of the figures: 2, or 1 in an audit of version 0.2.
    """

    Run = AuditRun
    Volume = AuditedVolume
    Examples = ExampleWindows

    name: str
    statistics: Asymmetry = field(metadata=documents.INLINE)
    windows: int
    measurements: Measurements | None = field(metadata=documents.UNWRITTEN)
    examples: ExampleWindows = field(metadata=documents.UNWRITTEN)
    kernels: tuple[StemKernels, ...] = field(default=(), metadata=documents.UNWRITTEN)
    stress: StressSummary | None = None
    run: AuditRun = field(default_factory=AuditRun, metadata=documents.INLINE)
    definitions: int = documents.DEFINITIONS

    def __repr__(self) -> str:
        figures = [
            f"{name} {' '.join(f'{pair.estimate:+z.3f}' for pair in pairs)}"
            for name, pairs in (("saliency", self.saliency), ("reliance", self.reliance))
            if not any(math.isnan(pair.estimate) for pair in pairs)
        ]
        figures += [f"C {self.answer.estimate:.3f}", f"E {self.mismatch.estimate:.3f}"]
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
    def saliency(self) -> tuple[Figure, ...]:
        """Whether a map of saliency would favour a side: the pair biases B_1..B_K (their model parts)."""
        return self.statistics.pairs

    @property
    def reliance(self) -> tuple[Figure, ...]:
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
    def offsets(self) -> tuple[int, ...]:
        """The window's offsets, -K..K."""
        half = len(self.statistics.shares) // 2
        return tuple(range(-half, half + 1))

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain values, with the keys of ``audit.json``."""
        plain = documents.to_plain(self)
        for share in plain["shares"]:
            share["mean"] = share.pop("estimate")
        return {
            "format": documents.FORMAT,
            **plain,
            "population": {"windows": self.run.windows_available, "read": self.windows},
            "stems": [{"name": item.name, "shape": list(item.after.shape)} for item in self.kernels],
        }

    def to_json(self) -> str:
        """Return the audit as a JSON document; undefined values are null."""
        return json_text(self.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the audit to a ``.json`` file and an ``.npz`` file of the same name beside it.

        Raises:
            OutputError: the name does not end in ``.json``, or a file cannot be written.
        """
        path = local_path(path)
        if path.suffix != ".json":
            raise OutputError(
                f"{path}: an audit is kept in a .json file, such as {path.stem or 'audit'}.json"
            )
        arrays = documents.to_arrays(self.examples, "examples/")
        if self.measurements is not None:
            arrays |= documents.to_arrays(self.measurements, "measurements/")
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
        with reading(path, "an audit", "run the audit again"):
            document = documents.checked(read_json(path))
            stems = [str(stem["name"]) for stem in document.get("stems", [])]
            decided = document.get("decided_by") or []  # a single one by the definitions of version 0.2
            document["decided_by"] = [decided] if isinstance(decided, dict) else decided
            document["shares"] = [{**share, "estimate": share["mean"]} for share in document["shares"]]
            found = documents.entries(cls, document)
            slices = len(found["statistics"].shares)
        with reading(path.with_suffix(".npz"), "an audit", "run the audit again") as beside:
            arrays, measured = documents.read_arrays(beside, MOST_BYTES), None
            if "examples/maps" not in arrays:  # as in version 0.2
                arrays["examples/maps"] = arrays["examples/saliency"]
            examples = documents.from_arrays(ExampleWindows, arrays, "examples/", N=slices)
            if found["definitions"] == documents.DEFINITIONS:
                sizes = {"n": found["windows"], "N": slices, "K": slices // 2}
                measured = documents.from_arrays(Measurements, arrays, "measurements/", **sizes)
            kernels = tuple(
                StemKernels(stem, arrays[f"kernels/{n}/before"], arrays[f"kernels/{n}/after"])
                for n, stem in enumerate(stems)
            )
        return cls(**found, measurements=measured, examples=examples, kernels=kernels)


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
        decided_by: the questions that decided these verdicts, or are open, such as "saliency"; empty in surveys of version 0.2.
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
    decided_by: tuple[str, ...] = ()
    shares: tuple[Interval, ...] = field(default=(), metadata=documents.SLICES)
    pairs: tuple[Interval, ...] = field(default=(), metadata=documents.PAIRS)
    reliance: tuple[Interval, ...] = field(default=(), metadata=documents.PAIRS)
    answer_change: Interval = UNKNOWN
    answer_of: str = "unknown"
    directional_bias: Interval = UNKNOWN
    mirror_error: Interval = UNKNOWN
    mirror_disagreement: Interval = UNKNOWN
    windows: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class SurveyRun(_Run):
    """What a survey ran; see ``AuditRun``.

    Attributes:
        slices: N as requested; None for as many as each network has inputs.
        windows: number of windows that each network was shown.
        draws: number of times that random parts of a network were drawn.
    """

    slices: int | None = None
    windows: int = 0
    draws: int = 1


@dataclass(frozen=True, repr=False)
class SurveyResult:
    """The result of a survey.

    Attributes:
        networks: all networks, the one with the largest absolute D_m first, those that failed last.
        run: what was run.
        definitions: those of the figures: 2, or 1 in a survey of version 0.2.
    """

    Network = SurveyedNetwork
    Run = SurveyRun

    networks: tuple[SurveyedNetwork, ...]
    run: SurveyRun = field(default_factory=SurveyRun, metadata=documents.INLINE)
    definitions: int = documents.DEFINITIONS

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
        return {"format": documents.FORMAT, **documents.to_plain(self)}

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
            survey: Self = documents.from_plain(cls, documents.checked(read_json(path)))
        return survey

    def to_json(self) -> str:
        """Return the survey as a JSON document; undefined values are null."""
        return json_text(self.to_dict())
