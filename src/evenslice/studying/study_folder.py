"""The folder of a study: its lock, its configuration, and that nothing in it is replaced that no study wrote."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    OutputError,
    load_config,
    locked_folder,
    read_bounded,
    remove_leftovers,
    staged_file,
    to_yaml,
)
from evenslice.results import read_comparisons
from evenslice.studying.config import StudyConfig
from evenslice.studying.outcome import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["STUDY_FILES", "working_in_study", "write_config"]

STUDY_FILES = ("config.yaml", "summary.json", "results.csv", "report.html")
"""Names of the files of a study."""

_RUN = re.compile(r".+-[0-9a-f]{12}")


@contextmanager
def working_in_study(out: Path) -> Iterator[None]:
    """Hold the lock of the folder of a study, new or not, without what killed processes left there.

    Raises:
        OutputError: another study works in it; or it holds files of a study's names, but no run of one, so that they
            are not a study's, or their runs are kept elsewhere.
    """
    with locked_folder(
        out,
        f"{out}: another `evenslice study` is at work in it; wait for it, or choose another folder",
    ):
        if not any(_RUN.fullmatch(run.name) for run in (out / "runs").glob("*/")):
            _check_own(out)
        remove_leftovers(out, (*STUDY_FILES, "unfinished"))
        yield


def _check_own(out: Path) -> None:
    """Check that a folder without runs holds no files that a study would overwrite."""
    found = [out / name for name in STUDY_FILES if (out / name).exists()]
    if not found:
        return
    if _has_summary(out):
        raise OutputError(
            f"{out}: holds the summary of a study, but not its runs, which would all be repeated; "
            "restore its folder runs, or choose another folder"
        )
    raise OutputError(
        f"{found[0]}: was not written by a study, which would overwrite it; choose another folder"
    )


def _has_summary(out: Path) -> bool:
    try:
        read_comparisons(json.loads(read_bounded(out / "summary.json", MOST_BYTES)))
    except UNREADABLE:
        return False
    return True


def write_config(config: StudyConfig, out: Path) -> None:
    """Write the configuration of a study to its folder, unless the one there says the same, perhaps with comments."""
    path = out / "config.yaml"
    try:
        if path.exists() and load_config(path, StudyConfig) == config:
            return
    except ConfigError:
        pass  # damaged
    with staged_file(path, force=True) as beside:
        beside.write_text(to_yaml(config), encoding="utf-8")
