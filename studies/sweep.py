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
import json
import os
import queue
import random
import select
import subprocess
import sys
import threading
import time
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep_networks import Network, all_networks
from sweep_rows import RESULTS, SLICES, WAYS, Result, Row, append, read_rows, write_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

CHILD = Path(__file__).parent / "sweep_checks.py"
NETWORKS_A_CHILD = 60  # after which a child makes room for a new one


class Child:
    """A process that checks one network after another.

    Args:
        memory: GiB that it may use.
        timeout: seconds that it may take for one network.
        way: what is done with each network, one of `sweep_rows.WAYS`.
    """

    def __init__(self, memory: int, timeout: float, way: str = "uniform") -> None:
        self.memory = memory
        self.timeout = timeout
        self.way = way
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
            return _row(json.loads(answer)["row"])
        self.stop()
        reason = (
            f"took longer than {self.timeout:g} seconds"
            if answer is None
            else f"crashed the process (exit status {process.returncode})"
        )
        return Row(*network, results=dict.fromkeys(SLICES, Result("failed", error=reason)))

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

    def kill(self) -> None:
        """Let the check end at once; its row says nothing then."""
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _row(values: dict[str, Any]) -> Row:
    results = {int(slices): Result(**found) for slices, found in values["results"].items()}
    return Row(**{**values, "results": results})


def sweep(networks: Sequence[Network], options: argparse.Namespace) -> None:
    """Check networks in several processes, and append a row for each to the results as it is done.

    Those that were being checked when Ctrl-C was pressed get no row.
    """
    waiting: queue.SimpleQueue[Network] = queue.SimpleQueue()
    for network in networks:
        waiting.put(network)
    lock, started, done = threading.Lock(), time.monotonic(), 0
    stopping = threading.Event()
    children = [Child(options.memory, options.timeout, options.way) for _ in range(options.jobs)]

    def work(child: Child) -> None:
        nonlocal done
        try:
            while True:
                network = waiting.get_nowait()
                row = child.check(network, (options.largest, options.work))
                with lock:
                    if stopping.is_set():
                        return
                    append(row, options.results)
                    done += 1
                    pace = (time.monotonic() - started) / done
                    print(f"[{done}/{len(networks)}, {pace:.1f} s each] {_said(row)}", flush=True)
        except queue.Empty:
            pass
        finally:
            child.stop()

    _run([threading.Thread(target=work, args=(child,)) for child in children], children, stopping)


def _run(threads: Sequence[threading.Thread], children: Sequence[Child], stopping: threading.Event) -> None:
    """Run the threads to their end, or to Ctrl-C."""
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stopping.set()
        while any(thread.is_alive() for thread in threads):
            for child in children:
                child.kill()  # again, for one that was about to start
            time.sleep(0.1)
        raise


def _said(row: Row) -> str:
    outcomes = [
        f"{slices}: {found.outcome or 'not tried'}{f', mixer {found.mixer}' if found.mixer else ''}"
        for slices, found in sorted(row.results.items())
    ]
    why = next(
        (found.error or found.note for found in row.results.values() if found.error or found.note),
        row.unbuilt,
    )
    stem = " (stem)" if row.checked == "stem" else ""
    return f"{row.library}:{row.name}{stem} {'; '.join(outcomes) or 'not built'}{f' -- {why}' if why else ''}"


def _chosen(options: argparse.Namespace) -> list[Network]:
    """Return the networks that are to be checked; the smallest first of those that are checked again."""
    rows = {(row.library, row.name): row for row in read_rows(options.results)}
    done = {name for name, row in rows.items() if not options.retry or _is_final(row, options.largest)}
    networks = [network for network in all_networks() if _matches(network, options.only)]
    if options.sample is not None:
        networks = _sample(networks, options.sample, options.seed)
    waiting = [network for network in networks if (network.library, network.name) not in done]

    def size(network: Network) -> float:
        row = rows.get((network.library, network.name))
        return 0.0 if row is None else row.parameters or 0.0

    return sorted(waiting, key=size)


def _is_final(row: Row, largest: float) -> bool:
    """Say whether nothing better can be found out about a network that is no larger than so many million parameters."""
    if row.unbuilt or any(row.results[slices].outcome == "failed" for slices in SLICES):
        return False
    return row.checked == "network" or (row.parameters or 0.0) > largest


def _matches(item: Network | Row, patterns: Sequence[str]) -> bool:
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
