"""The folder of a study: its lock, its configuration, and that nothing in it is replaced that no study wrote."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from evenslice._core import (
    ConfigError,
    OutputError,
    load_config,
    locked_folder,
    remove_leftovers,
    staged_file,
    to_yaml,
)
from evenslice.studying.config import StudyConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["study_folder", "write_config"]

FILES = ("config.yaml", "summary.json", "results.csv", "report.html")
"""Names of the files of a study."""

_RUN = re.compile(r".+-[0-9a-f]{12}")


@contextmanager
def study_folder(out: Path) -> Iterator[None]:
    """Hold the lock of the folder of a study, new or not, without what killed processes left there.

    Raises:
        OutputError: another study works in it; or it holds files of a study's names, but no run of one.
    """
    with locked_folder(
        out,
        f"{out}: another `evenslice study` is at work in it; wait for it, or choose another folder",
    ):
        if not any(_RUN.fullmatch(run.name) for run in (out / "runs").glob("*/")):
            for name in FILES:
                if (out / name).exists():
                    raise OutputError(
                        f"{out / name}: is no file of a study, and one here would replace it; choose another folder"
                    )
        remove_leftovers(out, (*FILES, "unfinished"))
        yield


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
