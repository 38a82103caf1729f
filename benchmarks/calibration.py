"""How often the intervals and verdicts of an audit are right, in audits drawn from censuses of real networks.

    python benchmarks/calibration.py --censuses FOLDER           # reads all windows of each network once (an hour a core)
    python benchmarks/calibration.py --censuses FOLDER --keep    # then draws audits, and writes their tables

A census reads every window of a volume, so its figures are exact. Audits are then drawn from it as audits draw windows, two
thousand times each: how often does a 95 % interval hold the census's figure, and how often is a verdict wrong? Networks
of which ``--runs`` holds the run folders were trained; the others are as built. Volumes and trained networks that are not
at hand are left out. Interrupted, it goes on where it was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from shared import SHARED, load_family, make_parser, remember, table, write_csvs

import evenslice

# No public name asks the questions of an audit again, of other windows, without reading these.
from evenslice.auditing.sampling import next_look
from evenslice.results import Measurements, ask, intervals
from evenslice.volumes import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from evenslice.results.verdicts import Decision, Questions

SIZES = (40, 80, 160)
MOST, MOST_AT_TOLERANCE = 2000, 250  # windows of an audit, and of one whose tolerance is what the census says
FACTORS = {"biased": 1 + 1e-6, "fair": 1 - 1e-6, "found": 0.5}
"""What is counted, and the tolerance by which that is done, as a multiple of the figure of the census."""

EDGES = tuple(f"{question} {word}" for question in ("saliency", "reliance", "answer") for word in FACTORS)


class Cell(NamedTuple):
    """A network on a volume."""

    name: str
    network: str  # a key of ``shared.FAMILIES``, or "run:NAME" for one that was trained
    volume: str  # path under the folder of shared data
    region: tuple[int, int] | None = None  # slices (z) that are read
    how: Mapping[str, Any] = {}  # options of ``load_network``


LITE, AT_ENCODER = "EfficientNet-Lite0", {"symmetrize": "encoder"}
LUCCHI, ISBI = "lucchi_pp/test_image.tif", "isbi2012/image.tif"
FIB, CDEEP = "fib25_medulla/image.tif", "cdeep3m_mito/train_image.tif"
CELLS = (
    Cell("trained on Lucchi++, Lucchi++", "run:a_lucchi_pretrained", LUCCHI, (40, 72)),
    Cell("trained on ISBI 2012, ISBI 2012", "run:c_isbi_pretrained", ISBI),
    Cell("as built, FIB-25", LITE, FIB, (0, 70)),
    Cell("trained on hippocampi, hippocampi", "run:f_msd_pretrained", "msd_hippocampus"),
    Cell("trained uniform, ISBI 2012", "run:d_isbi_uniform", ISBI),
    Cell("as built, MobileNet, CDeep3M", "MobileNetV1", CDEEP),
    Cell("trained MobileNet, Lucchi++", "run:e_lucchi_mobilenet", LUCCHI, (0, 32)),
    Cell("as built, mirror, ISBI 2012", LITE, ISBI, (0, 20), {"strategy": "mirror"}),
    Cell("trained on Lucchi++, CDeep3M", "run:a_lucchi_pretrained", CDEEP),
    Cell("trained twin, Lucchi++", "run:b_lucchi_twin", LUCCHI, (0, 16)),
    Cell("trained on ISBI 2012, FIB-25", "run:c_isbi_pretrained", FIB, (0, 70)),
    Cell("as built, random, Lucchi++", LITE, LUCCHI, (0, 24), {"weights": "none"}),
    Cell("symmetrized at the encoder, CDeep3M", "run:a_lucchi_pretrained", CDEEP, (0, 16), AT_ENCODER),
    Cell("as built, VGG-16, CDeep3M", "VGG16", CDEEP, (0, 12)),
)


def take_census(cell: Cell, folder: Path, runs: Path | None) -> Path | None:
    """Read all windows of a cell once, and keep their measurements; None without its files."""
    path = folder / f"{cell.name.replace(' ', '-').replace(',', '').replace('/', '-')}.npz"
    if path.exists():
        return path
    source = SHARED / "data" / cell.volume
    volumes = sorted(source.glob("images/*.nii.gz"))[-15:] if source.is_dir() else [source]
    trained = cell.network.startswith("run:")
    file = (runs or Path()) / cell.network.removeprefix("run:") / "network.safetensors"
    needed = [*volumes, *([file] if trained else [])]
    if (trained and runs is None) or not volumes or not all(item.exists() for item in needed):
        return None
    model = (
        evenslice.load_network(str(file), **cell.how).model
        if trained
        else load_family(cell.network, **cell.how)
    )
    opened = [evenslice.open_volume(item) for item in volumes]
    if cell.region:
        whole = opened[0].shape
        opened = [evenslice.open_volume(volumes[0], region=[slice(*cell.region), *map(slice, whole[1:])])]
    found = evenslice.audit(
        model,
        opened,
        sampling=evenslice.Sampling(min_windows=10**6, max_windows=10**6),
        compute=evenslice.Compute(device="cpu"),
    )
    arrays = {entry.name: getattr(found.measurements, entry.name) for entry in fields(Measurements)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    print(f"{cell.name}: {found}", flush=True)
    return path


@dataclass(frozen=True)
class Census:
    """The measurements of all windows, in the order of the volumes, with the exact figures."""

    measured: Measurements
    truth: Questions

    @classmethod
    def load(cls, path: Path) -> Census:
        """Read what ``take_census`` kept."""
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        measured = Measurements(**arrays)
        order = np.lexsort((*measured.position.T[::-1], measured.volume))
        measured = measured.at(order)
        return cls(measured, ask(measured, len(measured), evenslice.Tolerances()))

    @cached_property
    def figures(self) -> dict[tuple[str, Decision], float]:
        """The exact figures that are judged."""
        return {
            (item.question, key): float(value)
            for item in self.truth.evidence
            for key, value, judged in zip(item.keys, item.estimate, item.judged, strict=True)
            if judged
        }

    def ask(self, count: int, seed: int) -> Questions:
        """Ask the first windows of an audit."""
        windows = _order(len(self.measured), seed)[:count]
        return ask(self.measured.at(windows), len(self.measured), evenslice.Tolerances())

    def hold(self, found: Questions) -> Iterator[tuple[tuple[str, Decision], bool, bool]]:
        """Yield each figure that is judged, whether its interval was found above it, and whether that holds it."""
        for item in found.evidence:
            for key, low, high in zip(item.keys, *item.bounds(), strict=True):
                if (exact := self.figures.get((item.question, key))) is not None:
                    yield (item.question, key), low > exact, low - 1e-12 <= exact <= high + 1e-12


@lru_cache(maxsize=8)
def _order(total: int, seed: int) -> NDArray[np.int64]:
    most = min(total, MOST)
    return np.array([WindowGrid.spread(number, total, seed) for number in range(most)], dtype=np.int64)


def coverage(census: Census, audits: int) -> dict[str, Any]:
    """Return how often 95 % intervals hold the figures of the census, by question and number of windows."""
    rates = {}
    for size in SIZES:
        if size >= len(census.measured):
            continue
        found: dict[tuple[str, Decision], list[tuple[bool, bool]]] = defaultdict(list)
        for seed in range(audits):
            for name, above, held in census.hold(census.ask(size, seed)):
                found[name].append((above, held))
        for (question, key), rows in found.items():
            truth, (above, covered) = census.figures[question, key], np.mean(rows, axis=0).tolist()
            rates[f"{question} {_name(key)} at {size}"] = {"truth": truth, "covered": covered, "above": above}
    return rates


def verdicts(census: Census, audits: int) -> dict[str, Any]:
    """Return the verdicts of whole audits, how many are wrong, how many windows they read, and their coverage at the end."""
    right, total, most = census.truth.decision[0], len(census.measured), min(len(census.measured), MOST)
    words, windows = Counter[str](), []
    held: dict[str, list[bool]] = defaultdict(list)
    for seed in range(audits):
        read = min(next_look(0), total)
        while not (found := census.ask(read, seed)).settled() and read < most:
            read = min(next_look(read), total)
        words[found.decision[0]] += 1
        windows.append(read)
        for (question, _), _, holds in census.hold(found) if found.different is None else ():
            held[question].append(bool(holds))
    wrong = {"balanced", "symmetric"} if right == "biased" else {"biased"}
    return {
        "right": right,
        "words": dict(words),
        "wrong": sum(words[word] for word in wrong) / audits,
        "windows": float(np.median(windows)),
        "most": float(np.quantile(windows, 0.9)),
        "covered": {question: float(np.mean(found)) for question, found in held.items()},
    }


def at_tolerance(census: Census, audits: int) -> dict[str, Any]:
    """Return how often audits err whose tolerance is just what the census says, and how often they find twice a tolerance.

    The first is the hardest case of all: with the tolerance a trace above the figure, "biased" is wrong, and with one a trace
    below it every other word.
    """
    if census.truth.different is not None:
        return {}
    total, looks = len(census.measured), [next_look(0)]
    while looks[-1] < min(total, MOST_AT_TOLERANCE):
        looks.append(min(next_look(looks[-1]), total))
    exact = {
        item.question: float(np.nanmax(np.abs(np.where(item.judged & item.decides, item.estimate, np.nan))))
        for item in census.truth.evidence
        if item.question != "use" and (item.judged & item.decides).any()
    }
    cases = {
        f"{question} {word}": (question, factor * value, word == "fair")
        for question, value in exact.items()
        if value > 0
        for word, factor in FACTORS.items()
    }
    counts = dict.fromkeys(cases, 0)
    for seed in range(audits):
        left = dict(cases)
        for read in looks:
            found = census.ask(read, seed)
            for name, (question, edge, fair) in list(left.items()):
                moved = tuple(
                    replace(item, tolerance=edge if item.question == question else np.inf)
                    for item in found.evidence
                    if item.question != "use"
                )
                word = replace(found, evidence=tuple(moved)).decision[0]
                if word != "inconclusive":
                    counts[name] += (word != "biased") == fair
                    del left[name]
    return {name: count / audits for name, count in counts.items()}


def _name(key: Decision) -> str:
    of = "all" if key.class_number is None else f"class {key.class_number}"
    return of if key.offset is None else f"{of}, pair {key.offset}"


# An audit needs the bootstrap samples of each number of windows once; thousands of audits need them again and again.
intervals.resamples = lru_cache(maxsize=32)(intervals.resamples.__wrapped__)


def summarize(censuses: dict[str, Census], audits: int, known: Path) -> dict[str, str]:
    """Draw audits from every census and return the tables."""
    failed, rows, hardest = [], [], []
    by_question: dict[str, list[float]] = defaultdict(list)
    stopped: dict[str, list[float]] = defaultdict(list)
    for name, census in censuses.items():
        key = f"{name}, {audits} audits"
        rates = remember(known, f"coverage: {key}", partial(coverage, census, audits))
        found = remember(known, f"whole audits: {key}", partial(verdicts, census, audits))
        edge = remember(
            known, f"at the tolerance and half of it: {key}", partial(at_tolerance, census, audits)
        )
        hardest.append([name, *(f"{edge[column]:.1%}" if column in edge else "" for column in EDGES)])
        for figure, rate in rates.items():
            by_question[figure.split()[0]].append(rate["covered"])
            if rate["covered"] < 0.93:
                parts = (f"{rate[part]:.3f}" for part in ("truth", "covered", "above"))
                failed.append([name, figure, *parts])
        for question, rate in found["covered"].items():
            stopped[question].append(rate)
        words = ", ".join(f"{word} {count / audits:.1%}" for word, count in sorted(found["words"].items()))
        read = [f"{found[part]:.0f}" for part in ("windows", "most")]
        total = str(len(census.measured))
        rows.append([name, total, found["right"], words, f"{found['wrong']:.1%}", *read])
    covered = []
    for name, part in by_question.items():
        cells = (f"{rate:.3f}" for group in (part, stopped[name]) for rate in (np.mean(group), min(group)))
        covered.append([name, str(len(part)), *cells])
    of = "network, volume"
    said = [of, "windows", "census", "audits say", "wrong", "windows read", "nine of ten within"]
    held = ["question", "figures", "covered on average", "least", "where audits stop", "least there"]
    return {
        "coverage": table(held, covered),
        "cells": table([of, "figure", "census", "covered", "too high"], failed),
        "verdicts": table(said, rows),
        "tolerance": table([of, *EDGES], hardest),
    }


def main() -> None:
    """Take censuses, draw audits, print the tables, and write them to benchmarks/results."""
    parser = make_parser(__doc__)
    parser.add_argument("--censuses", type=Path, required=True, help="folder of censuses and results")
    parser.add_argument("--runs", type=Path, help="folder of run folders")
    parser.add_argument("--audits", type=int, default=2000)
    parser.add_argument("--keep", action="store_true", help="write the tables to benchmarks/results")
    options = parser.parse_args()
    paths = {cell.name: take_census(cell, options.censuses, options.runs) for cell in CELLS}
    censuses = {name: Census.load(path) for name, path in paths.items() if path is not None}
    tables = summarize(censuses, options.audits, options.censuses / "results.jsonl")
    for name, text in tables.items():
        print(f"\n{name}\n\n{text}")
    if options.keep:
        write_csvs("calibration", tables)


if __name__ == "__main__":
    main()
