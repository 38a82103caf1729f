"""The folder of an unfinished segmentation: what is being done, what is done so far, and nobody else at work.

    .labels.tif.unfinished/
        .evenslice-lock       held while a process works on the output
        5c2a41d0e7b39f86/     one segmentation, named after the hash of its plan
            plan.json         everything that the result depends on
            array.zarr        labels (z, y, x), or probabilities (class, z, y, x)
            finished          a note for each finished block, with the sizes of its chunks

Only folders with evenslice's marker are ever removed from it. Two segmentations never share one, and a segmentation that was
killed, or whose disk was full, goes on from what is whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import (
    ConfigError,
    OutputError,
    is_staging,
    local_path,
    locked,
    option,
    remove_leftovers,
    reporting_write_errors,
)
from evenslice.volumes import output_location

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["clear", "other_work", "unfinished_folder", "working_in"]

_LOCK, _NOTES = ".evenslice-lock", "finished"
_LONGEST = 200
"""Longest name, in bytes, that is used whole in that of the folder: file systems allow 255."""


def unfinished_folder(
    out: str | os.PathLike[str], scratch: str | os.PathLike[str] | None, *, shared: bool = False
) -> Path:
    """Return the folder for unfinished work on an output, the same for each run.

    Args:
        out: the output.
        scratch: where the folder is to be; None for beside the output, or the system's folder for temporary files.
        shared: whether other machines work in it.

    Raises:
        ConfigError: other machines would not see the folder, or it is to be at an address, or in the output itself.
    """
    target = output_location(out)
    if scratch is None and isinstance(target, Path):
        return target.parent / f".{_short(target.name)}.unfinished"
    if scratch is None and shared:
        raise ConfigError(
            f"{out}: is an address, beside which workers cannot keep unfinished work; with {option('scheduler')}, choose "
            f"a folder that this machine and all workers share with {option('scratch')}"
        )
    name = re.sub(r"[^A-Za-z0-9._]+", "-", str(target))[-100:]
    folder = local_path(tempfile.gettempdir() if scratch is None else scratch, ConfigError).absolute()
    if isinstance(target, Path) and folder.resolve().is_relative_to(target.resolve()):
        raise ConfigError(
            f"{option('scratch', scratch)}: lies in the output {out}, in whose place the result is to be; choose another folder"
        )
    return folder / f"evenslice-{name}-{_digest(str(target))}.unfinished"


def _short(name: str) -> str:
    raw = os.fsencode(name)
    return name if len(raw) <= _LONGEST else f"{os.fsdecode(raw[:150])}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


@contextmanager
def working_in(root: Path, out: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from the output while the block runs, and remove what killed ones left beside it.

    Raises:
        OutputError: another process is at work there; or the folder cannot be made, or is not the user's.
    """
    busy = f"{out}: another process is writing it; wait until that ends, or choose another output"
    with reporting_write_errors(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir()
        try:
            found = root.lstat()
        except FileNotFoundError:  # the other process has just ended and removed it
            raise OutputError(busy) from None
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        raise OutputError(
            f"{root}: is not a folder of yours; remove it, or choose another one with {option('scratch')}"
        )
    try:
        with locked(root / _LOCK, busy):
            target = output_location(out)
            if isinstance(target, Path):
                remove_leftovers(target.parent, [target.name])
            yield
    finally:
        with suppress(OSError):  # it is kept if anything is left in it
            root.rmdir()


def other_work(root: Path, staging: Path) -> bool:
    """Return whether the folder holds finished blocks of another segmentation than that of a staging folder."""
    return any(_has_notes(folder) for folder in _others(root, staging))


def _has_notes(folder: Path) -> bool:
    try:
        return any((folder / _NOTES).iterdir())
    except OSError:
        return False


def clear(root: Path, keep: Path | None = None) -> None:
    """Remove all staging folders but the one to keep; what the user may have put beside them stays."""
    for item in _others(root, keep):
        shutil.rmtree(item, ignore_errors=True)


def _others(root: Path, staging: Path | None) -> list[Path]:
    return [item for item in root.iterdir() if is_staging(item) and item != staging]
