"""Neutralize or symmetrize every network of every library, and write down what came of it.

    python studies/sweep.py --jobs 2                # goes on where it was; hours
    python studies/sweep.py --only 'timm:vit_*'     # those alone
    python studies/sweep.py --sample 60             # some of each library
    python studies/sweep.py --retry                 # those again that failed, crashed or were not built, or of which
                                                    # the stem alone was checked and that are not too large now
    python studies/sweep.py --way twin --sample 60  # by "twin", or --way symmetrize

Every network has random weights that are unequal by colour; it is neutralized for 3 and for 5 slices, and held to what
that promises: by the strategy "uniform", or "mixer" where that fails; or by "twin"; or by "pretrained", and then
symmetrized at its output. Networks work in child processes, with limits on memory and time, so that one that crashes
or hangs is a row of the results like any other. Each way has a CSV of its own; ``fill_pages.py`` fills the
table of docs/coverage.md from them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import queue
import random
import select
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep_networks import Network, all_networks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Row = dict[str, Any]

WAYS = ("uniform", "twin", "symmetrize")
"""What the sweep does with a network: neutralize it by "uniform" or by "twin", or symmetrize it at its output."""

FOLDER = Path(__file__).parent / "sweep"
RESULTS = {way: FOLDER / f"{'coverage' if way == 'uniform' else way}.csv" for way in WAYS}
SLICES = (3, 5)
RESULT = (
    *("outcome", "mirror_error", "permutation_error", "gray_error", "seconds"),
    *("precision", "error", "mixer", "mixer_error", "note"),
)
"""Columns for each number of slices, as ``outcome_3``.

``outcome`` is "ok" where the promise holds, "no place" where "twin" finds no activation to average behind, "failed" where not,
and empty where nothing was tried; errors are those of the record; ``seconds`` are of one core, with the mixer where that was
tried; ``precision`` is that of the numbers in which it held: "float32"; or "float64" where the network magnifies rounding
too much, "float64, settled" where its batch norms needed the statistics of what they meet; ``mixer`` is the outcome of that
strategy after a failure; ``note`` says what was done in place of what was asked for.
"""

COLUMNS = (
    *("library", "name", "spec", "parameters", "pixels", "checked", "unbuilt"),
    *(f"{name}_{slices}" for slices in SLICES for name in RESULT),
)
"""``parameters`` in millions; ``pixels`` along y; ``checked`` is "network", or "stem" where that is too large to run;
``unbuilt`` says why the library cannot build or run the network, so that nothing could be tried."""

CHILD = Path(__file__).parent / "sweep_checks.py"
NETWORKS_A_CHILD = 60  # after which a child makes room for a new one


class Child:
    """A process that checks one network after another.

    Args:
        memory: GiB that it may use.
        timeout: seconds that it may take for one network.
        way: what is done with each network, one of ``WAYS``.
    """

    def __init__(self, memory: int, timeout: float, way: str) -> None:
        self.memory, self.timeout, self.way = memory, timeout, way
        self._process: subprocess.Popen[str] | None = None
        self._checked = 0

    def check(self, network: Network, limits: Sequence[float]) -> Row:
        """Check one network; what kills the process, or takes too long, is a finding."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  # pipes, as asked for
        request = {"network": list(network), "limits": list(limits), "way": self.way}
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], self.timeout)
            answer = process.stdout.readline() if ready else None
        except BrokenPipeError:
            answer = ""
        if answer:
            self._checked += 1
            if self._checked >= NETWORKS_A_CHILD:
                self.stop()
            row: Row = json.loads(answer)
            return row
        self.stop()
        reason = f"crashed the process (exit status {process.returncode})"
        if answer is None:
            reason = f"took longer than {self.timeout:g} seconds"
        failed = {
            f"{name}_{n}": value for n in SLICES for name, value in (("outcome", "failed"), ("error", reason))
        }
        return {**network._asdict(), "checked": "network", **failed}

    def _start(self) -> subprocess.Popen[str]:
        self._checked = 0
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter, a file of ours
            [sys.executable, str(CHILD), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is not the network's fault
        )
        return self._process

    def stop(self) -> None:
        """End the process, and with it what it was checking."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def sweep(networks: Sequence[Network], options: argparse.Namespace) -> None:
    """Check networks in several processes, and append a row for each to the results as it is done.

    Those that were being checked when Ctrl-C was pressed get no row.
    """
    children = [Child(options.memory, options.timeout, options.way) for _ in range(options.jobs)]
    idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
    for child in children:
        idle.put(child)

    def check(network: Network) -> Row:
        child = idle.get()
        try:
            return child.check(network, (options.largest, options.work))
        finally:
            idle.put(child)

    started, pool = time.monotonic(), ThreadPoolExecutor(options.jobs)
    try:
        waiting = [pool.submit(check, network) for network in networks]
        for done, future in enumerate(as_completed(waiting), start=1):
            append(future.result(), options.results)
            pace = (time.monotonic() - started) / done
            print(f"[{done}/{len(networks)}, {pace:.1f} s each] {_said(future.result())}", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while idle.qsize() < len(children):  # one may begin while the others are stopped
            for child in children:
                child.stop()
            time.sleep(0.01)
        pool.shutdown()
        for child in children:
            child.stop()


def _said(row: Row) -> str:
    outcomes = [f"{n}: {row.get(f'outcome_{n}') or 'not tried'}" for n in SLICES]
    reasons = (row.get(f"{name}_{n}") for n in SLICES for name in ("error", "note"))
    why = row.get("unbuilt") or next(filter(None, reasons), "")
    stem = " (stem)" if row["checked"] == "stem" else ""
    return f"{row['library']}:{row['name']}{stem} {'; '.join(outcomes)}{why and f' -- {why}'}"


def read_rows(path: Path) -> list[Row]:
    """Read the rows that there are, none where there is no file; of a network that is there twice, the later."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list({(row["library"], row["name"]): row for row in csv.DictReader(file)}.values())


def append(row: Row, path: Path) -> None:
    """Add one row to the file, which is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(
            {name: f"{cell:.4g}" if isinstance(cell, float) else cell for name, cell in row.items()}
        )


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write the file anew, sorted."""
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    for row in sorted(rows, key=lambda row: (row["library"], row["name"].lower(), row["name"])):
        append(row, beside)
    if beside.exists():
        beside.replace(path)


def _chosen(options: argparse.Namespace) -> list[Network]:
    """Return the networks that are to be checked; the smallest first of those that are checked again."""
    rows = {(row["library"], row["name"]): row for row in read_rows(options.results)}
    done = {name for name, row in rows.items() if not options.retry or _is_final(row, options.largest)}
    networks = [network for network in all_networks() if _matches(network, options.only)]
    if options.sample is not None:
        networks = _sample(networks, options.sample, options.seed)
    waiting = [network for network in networks if (network.library, network.name) not in done]

    def size(network: Network) -> float:
        row = rows.get((network.library, network.name))
        return 0.0 if row is None else _parameters(row)

    return sorted(waiting, key=size)


def _is_final(row: Row, largest: float) -> bool:
    """Say whether nothing better can be found out about a network that is no larger than so many million parameters."""
    if row["unbuilt"] or any(row[f"outcome_{slices}"] == "failed" for slices in SLICES):
        return False
    return bool(row["checked"] == "network" or _parameters(row) > largest)


def _parameters(row: Row) -> float:
    return float(row["parameters"] or 0)


def _matches(item: Network, patterns: Sequence[str]) -> bool:
    name = f"{item.library}:{item.name}"
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _sample(networks: Sequence[Network], number: int, seed: int) -> list[Network]:
    """Draw about a number of networks, an equal part of every library as far as it goes."""
    generator = random.Random(seed)  # noqa: S311  # no secret
    groups = [list(group) for _, group in groupby(networks, key=lambda network: network.library)]
    share = -(-number // max(1, len(groups)))
    return [network for group in groups for network in generator.sample(group, min(share, len(group)))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, sweep, and leave the results sorted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--way",
        choices=WAYS,
        default="uniform",
        help="neutralize by uniform or by twin, or symmetrize the output",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="LIBRARY:NAME, * for any text"
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="about N networks, an equal part of every library"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--retry",
        action="store_true",
        help="again what failed, was not built, or was checked at its stem for want of time",
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one network")
    parser.add_argument("--memory", type=int, default=10, help="GiB of address space for one process")
    parser.add_argument(
        "--largest", type=float, default=400.0, help="million parameters, above which the stem alone"
    )
    parser.add_argument(
        "--work", type=float, default=200.0, help="million parameters times (pixels / 224 x 224), likewise"
    )
    parser.add_argument("--results", type=Path, help="the CSV to go on with, by default that of the way")
    options = parser.parse_args(arguments)
    options.results = options.results or RESULTS[options.way]
    networks = _chosen(options)
    try:
        sweep(networks, options)
    finally:
        write_rows(read_rows(options.results), options.results)


if __name__ == "__main__":
    main()
