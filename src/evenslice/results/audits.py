"""What an audit found, and how it travels to and from files.

An audit is kept in two files of its folder: ``audit.json`` holds every figure with its interval and what was run,
``audit.npz`` the measurements behind the figures and the pictures of the report. Audits that were made together to be
compared lie in one folder, the second and later ones as ``audit.1-NAME.json`` and so on.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, json_text, staged_file
from evenslice.results.asymmetry import Asymmetry, Measurements
from evenslice.results.intervals import Interval

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

    from evenslice.results.asymmetry import Verdict

__all__ = ["AuditResult", "Examples", "StemKernels", "save_audits"]

FORMAT = 1

_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError),
    *(MemoryError, OverflowError, RecursionError, zipfile.BadZipFile, zlib.error),
)  # what json, zipfile and NumPy raise on damaged or hostile files


@dataclass(frozen=True)
class Examples:
    """A few windows to look at.

    Attributes:
        volume: (e,) index of the volume a window was taken from.
        position: (e, 3) window centre slice z and in-plane origin y, x, in voxels.
        images: (e, N, y, x) uint8, the slices as the network saw them, scaled to 0..255.
        saliency: (e, N, y, x) float32, absolute attribution divided by its sum over the window.
    """

    volume: NDArray[np.int64]
    position: NDArray[np.int64]
    images: NDArray[np.uint8]
    saliency: NDArray[np.float32]


@dataclass(frozen=True)
class StemKernels:
    """One stem's kernels before and after: (filters, inputs, ky, kx) float32; a linear stem has ky = kx = 1."""

    name: str
    before: NDArray[np.float32]
    after: NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class AuditResult:
    """What an audit found.

    The figures are at hand as attributes (``audit.verdict``, ``audit.directional_bias.low``); ``save`` and ``load``
    keep them in files. ``evenslice.Audit`` is this with its page.

    Attributes:
        name: what tells this audit from those it is compared with: a strategy, a method, "audit".
        statistics: the figures with their intervals.
        measurements: what was measured on each window.
        examples: a few windows with their saliency.
        kernels: the stems before and after the strategy; before is the same as after where that is not known, and
            there are none for a network that ``neutralize`` has not seen.
        run: what was run, ready for JSON: slices, step, strategy, tie, method, target, outputs, precision,
            windows_available, windows_without_attribution, stopped, tile, seed, dtype, device, scaling, model, stems, volumes, command, versions, created, seconds.
    """

    name: str
    statistics: Asymmetry
    measurements: Measurements
    examples: Examples
    kernels: tuple[StemKernels, ...] = ()
    run: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shares = " ".join(f"{share.estimate:.3f}" for share in self.shares)
        pairs = " ".join(f"{pair.estimate:+.3f}" for pair in self.pairs)
        windows = len(self.measurements.volume)
        return (
            f"<Audit {self.name!r}: {self.verdict}, shares {shares}, pair biases {pairs}, {windows} windows>"
        )

    @property
    def verdict(self) -> Verdict:
        """What the statistics say: symmetric, biased, inconclusive or, at N = 1, not applicable."""
        return self.statistics.verdict

    @property
    def shares(self) -> tuple[Interval, ...]:
        """Mean share of each offset -K..K, with its interval."""
        return self.statistics.shares

    @property
    def pairs(self) -> tuple[Interval, ...]:
        """Model part of the pair biases B_1..B_K, with their intervals."""
        return self.statistics.pairs

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
        """Return the audit as plain values, as ``audit.json`` holds them."""
        statistics = asdict(self.statistics)
        shares = statistics.pop("shares")
        figures = {
            "shares": [
                {"offset": k, "mean": share["estimate"], "low": share["low"], "high": share["high"]}
                for k, share in zip(self.offsets, shares, strict=True)
            ],
            **{
                key: [{"offset": k, **value} for k, value in enumerate(statistics.pop(key), start=1)]
                for key in ("pairs", "data_pairs", "wasserstein")
            },
        }
        return {
            "format": FORMAT,
            "name": self.name,
            "verdict": statistics.pop("verdict"),
            "tolerance": statistics.pop("tolerance"),
            "windows": len(self.measurements.volume),
            **figures,
            **statistics,
            **self.run,
        }

    def to_json(self) -> str:
        """Return the audit as one JSON document; figures that do not exist are null."""
        return json_text(self.to_dict())

    def renamed(self, name: str) -> Self:
        """Return the same audit under another name."""
        return replace(self, name=name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the audit to a ``.json`` file and, beside it, an ``.npz`` file of the same name."""
        path = Path(path)
        arrays = {
            **{f"measurements/{key}": value for key, value in _arrays(self.measurements).items()},
            **{f"examples/{key}": value for key, value in _arrays(self.examples).items()},
        }
        for index, kernels in enumerate(self.kernels):
            arrays[f"kernels/{index}/before"] = kernels.before
            arrays[f"kernels/{index}/after"] = kernels.after
        with staged_file(path.with_suffix(".npz"), force=True) as beside:
            np.savez_compressed(beside, **arrays)  # type: ignore[arg-type]  # numpy types its keyword options first
        with staged_file(path, force=True) as beside:
            beside.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what ``save`` wrote.

        Args:
            path: the ``.json`` file; the ``.npz`` file lies beside it.

        Raises:
            ConfigError: one of the two cannot be read, or is not part of an audit.
        """
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
                arrays = dict(file)
            return cls._from_files(document, arrays)
        except _UNREADABLE as error:
            raise ConfigError(f"{path}: cannot be read as an audit ({error}); run the audit again") from error

    @classmethod
    def _from_files(cls, document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
        known = {entry.name for entry in fields(Asymmetry)}
        names = [stem["name"] for stem in document.get("stems", [])]
        return cls(
            name=str(document["name"]),
            statistics=Asymmetry(**{key: _figure(value) for key, value in document.items() if key in known}),
            measurements=Measurements(**_group(arrays, "measurements")),
            examples=Examples(**_group(arrays, "examples")),
            kernels=tuple(
                StemKernels(name, **_group(arrays, f"kernels/{i}")) for i, name in enumerate(names)
            ),
            run={
                key: value
                for key, value in document.items()
                if key not in known | {"format", "name", "windows"}
            },
        )


def save_audits(audits: Sequence[AuditResult], folder: str | os.PathLike[str]) -> None:
    """Write audits into a folder that exists: the first as ``audit.json``, others as ``audit.NAME.json``."""
    for index, audit in enumerate(audits):
        slug = re.sub(r"[^a-z0-9]+", "-", audit.name.lower()).strip("-")
        audit.save(Path(folder) / ("audit.json" if index == 0 else f"audit.{index}-{slug}.json"))


def _arrays(item: Measurements | Examples) -> dict[str, NDArray[Any]]:
    return {entry.name: getattr(item, entry.name) for entry in fields(item)}


def _group(arrays: dict[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    return {
        key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")
    }


def _figure(value: Any) -> Any:
    """Rebuild one entry of the statistics: an interval, a list of them by offset, or a plain value."""
    if isinstance(value, list):
        return tuple(_figure(item) for item in value)
    if isinstance(value, dict):
        estimate = value["mean"] if "mean" in value else value["estimate"]
        return Interval(
            *(float("nan") if x is None else float(x) for x in (estimate, value["low"], value["high"]))
        )
    return value
