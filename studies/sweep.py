"""Neutralize or symmetrize every network of every library, and write down what came of it.

    python studies/sweep.py --jobs 2                # goes on where it was; hours
    python studies/sweep.py --only 'timm:vit_*'     # those alone
    python studies/sweep.py --way twin              # by "twin", or --way symmetrize, or --way engine for OpenVINO

Every network has random weights that are unequal by colour; it is neutralized for 3 and for 5 slices, and held to what
that promises: by the strategy "uniform", or "mixer" where that fails; or by "twin"; or by "pretrained", and then
symmetrized at its output; or converted as it is. Each network has a process of its own, with limits on memory and time, so
that one that crashes or hangs is a row of the results like any other. Each way has a CSV of its own; networks whose rows
are deleted are checked again. They come in random order, so that those which are done are a sample. ``fill_pages.py`` fills
the table of docs/coverage.md.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from fnmatch import fnmatchcase
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study_results import read_rows, write_rows
from sweep_networks import Network, all_networks

if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = dict[str, Any]

SLICES = (3, 5)
FOLDER = Path(__file__).parent / "sweep"
RESULTS = {
    "uniform": FOLDER / "coverage.csv",
    "twin": FOLDER / "twin.csv",
    "symmetrize": FOLDER / "symmetrize.csv",
    "engine": FOLDER / "engine.csv",
}
"""What the sweep does with a network: neutralize it by "uniform" or by "twin", symmetrize it at its output, or convert it."""

RESULT = (
    *("outcome", "mirror_error", "permutation_error", "gray_error", "seconds"),
    *("precision", "error", "mixer", "mixer_error", "note"),
)
"""Columns for each number of slices, as ``outcome_3``.

``outcome`` is "ok" where the promise holds, or OpenVINO answers as PyTorch; "PyTorch" where that alone does; "no place"
where "twin" finds no activation to average behind, "failed" where not, and empty where nothing was tried; errors are those of
the record; ``seconds`` are of one core, with the mixer where that was tried; ``precision`` is that of the numbers in which it
held: "float32"; or "float64" where the network magnifies rounding too much, "float64, settled" where its batch norms needed
the statistics of what they meet; ``mixer`` is the outcome of that strategy after a failure; ``note`` says what was done in
place of what was asked for, or by how much of the largest the answers of OpenVINO differ.
"""

COLUMNS = (
    *("library", "name", "spec", "parameters", "pixels", "unbuilt"),
    *(f"{name}_{slices}" for slices in SLICES for name in RESULT),
)
"""``parameters`` in millions; ``pixels`` along y; ``unbuilt`` says why nothing could be tried."""

CHECKS = Path(__file__).parent / "sweep_checks.py"


def check(network: Network, way: str, timeout: float) -> Row:
    """Check one network in a process of its own; what kills that, or takes too long, is a finding."""
    command = [sys.executable, str(CHECKS), *network, way]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode == 0:
            row: Row = json.loads(done.stdout.splitlines()[-1])
            return row
        reason = f"crashed the process (exit status {done.returncode})"
    except subprocess.TimeoutExpired:
        reason = f"took longer than {timeout:g} seconds"
    failed = {
        f"{name}_{n}": value for n in SLICES for name, value in (("outcome", "failed"), ("error", reason))
    }
    return {**network._asdict(), **failed}


def sweep(networks: Sequence[Network], options: argparse.Namespace) -> None:
    """Check networks in several processes, and add a row for each to the results as it is done."""
    with ThreadPool(options.jobs) as pool:
        rows = pool.imap_unordered(lambda network: check(network, options.way, options.timeout), networks)
        for done, row in enumerate(rows, start=1):
            add_row(options.results, row)
            told = [row.get(name) for name in ("outcome_3", "outcome_5", "unbuilt", "error_3", "error_5")]
            print(f"{done} of {len(networks)}: {row['spec']}", *filter(None, told), flush=True)


def add_row(path: Path, row: Row) -> None:
    """Add the row of a network to the results, which are sorted, in the place of an earlier one."""
    cells = {name: f"{cell:.4g}" if isinstance(cell, float) else cell for name, cell in row.items()}
    found = {(row["library"], row["name"].lower(), row["name"]): row for row in (*read_rows(path), cells)}
    write_rows(path, [row for _, row in sorted(found.items())], COLUMNS)


def _chosen(options: argparse.Namespace) -> list[Network]:
    """Return the networks that are to be checked."""
    done = {(row["library"], row["name"]) for row in read_rows(options.results)}
    chosen = [
        network
        for network in all_networks()
        if (network.library, network.name) not in done
        and any(fnmatchcase(f"{network.library}:{network.name}", pattern) for pattern in options.only or "*")
    ]
    return random.Random(0).sample(chosen, len(chosen))  # noqa: S311  # no secret


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and sweep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--way", choices=RESULTS, default="uniform", help="what is done with each network")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="LIBRARY:NAME, * for any text"
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one network")
    parser.add_argument("--results", type=Path, help="the CSV to go on with, by default that of the way")
    options = parser.parse_args(arguments)
    options.results = options.results or RESULTS[options.way]
    sweep(_chosen(options), options)


if __name__ == "__main__":
    main()
