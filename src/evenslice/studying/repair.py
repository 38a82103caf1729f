"""Damaged files of a run of a study: which there are, and what has to go so that the run is repeated as far as needed."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from evenslice._core import UNREADABLE, EvensliceError, load_config, open_regular, remove_leftovers
from evenslice.networks import read_metadata
from evenslice.results import AuditResult, read_example
from evenslice.training import RunFolder, TrainConfig, check_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["damaged_files", "repair_run"]

FILES = ("run.json", "audit.json", "audit.npz", "example.npz")
"""Names of the files that a study adds to a run."""


def damaged_files(folder: Path) -> set[Path]:
    """Return the files of a run that are there and cannot be read; those that were removed are not damaged."""
    return {file for file, check in _checks(RunFolder(folder)) if file.exists() and not _passes(check)}


def repair_run(folder: Path) -> None:
    """Remove the damaged files of a run and what depends on them, so that it can be resumed; the rest is kept.

    Args:
        folder: the folder of the run; it may be missing.

    Raises:
        OutputError: another process works in it.
    """
    if folder.exists():
        with RunFolder(folder).lock():
            _repair(RunFolder(folder))


def _repair(run: RunFolder) -> None:
    """Do so; hold the lock."""
    damaged = damaged_files(run.path)
    remove_leftovers(run.path, FILES)
    checkpoints = {run.last, run.best}
    untested = run.network.exists() and (run.result in damaged or not run.result.exists())
    # Of a finished run, results may have been kept without what a training goes on from.
    bare = (run.path / "run.json").exists() and not run.config.exists()
    lost = damaged & {run.config, run.data, run.metrics, run.network}
    if lost or bare or (untested and not run.metrics.exists()):
        damaged |= {run.config, run.data, run.metrics, run.network, run.result, *checkpoints}
    elif damaged & checkpoints or not run.metrics.exists():
        damaged |= checkpoints
    if run.network in damaged or not run.network.exists():
        damaged.add(run.result)
    for file in damaged:
        _remove(file)


def _checks(run: RunFolder) -> Iterator[tuple[Path, Callable[[], object]]]:
    """Yield files of a run with functions that raise if they are damaged."""
    audit, example = run.path / "audit.json", run.path / "example.npz"
    yield run.config, lambda: load_config(run.config, TrainConfig)
    yield run.data, run.read_data
    yield run.metrics, run.read_metrics
    yield run.last, lambda: _check_archive(run.last)
    yield run.best, lambda: read_metadata(run.best)
    yield run.network, lambda: read_metadata(run.network)
    yield run.result, run.read_result
    yield audit, lambda: AuditResult.load(audit)
    yield example, lambda: read_example(example)


def _check_archive(path: Path) -> None:
    with open_regular(path) as file:
        check_archive(file)


def _passes(check: Callable[[], object]) -> bool:
    try:
        check()
    except EvensliceError:
        return False
    except UNREADABLE:
        return False
    return True


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
