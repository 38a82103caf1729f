"""Whether workers find the files of an audit, and the same ones, under the paths that the command found them under."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import VolumeError
from evenslice.volumes import fingerprint, modified

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from evenslice.volumes import Volume

_FOUND: dict[tuple[str, str], str | None] = {}
"""What a process has found of each path and stamp: the fingerprint of a file that is another, or a copy."""


@dataclass(frozen=True)
class KnownFiles:
    """The files of an audit as the command found them.

    Attributes:
        stamps: by path, when each was modified; those at addresses and arrays in memory are not among them.
    """

    stamps: Mapping[str, str]

    @classmethod
    def of(cls, volumes: Sequence[Volume]) -> Self:
        """Note when the files of volumes were modified."""
        return cls({volume.path: stamp for volume in volumes if (stamp := modified(volume)) is not None})

    def copies(self, volumes: Sequence[Volume]) -> dict[str, str]:
        """Return, on a worker, the fingerprints of files with other times of modification, by path.

        Raises:
            VolumeError: a file is missing here.
        """
        found = {}
        for volume in volumes:
            stamp = self.stamps.get(volume.path)
            if stamp is None:
                continue
            if (volume.path, stamp) not in _FOUND:
                _FOUND[volume.path, stamp] = _fingerprint_of_copy(volume, stamp)
            if (content := _FOUND[volume.path, stamp]) is not None:
                found[volume.path] = content
        return found


def _fingerprint_of_copy(volume: Volume, stamp: str) -> str | None:
    """Return the fingerprint of a volume on a worker; None if its files are those with this stamp."""
    try:
        return None if modified(volume) == stamp else fingerprint(volume)
    except VolumeError as error:
        raise VolumeError(
            f"{volume.path}: is not there, or cannot be read, on the worker {platform.node()}; all workers must find it under "
            "this path"
        ) from error


def refuse_other_content(volumes: Sequence[Volume], copies: Mapping[str, str], known: dict[str, str]) -> None:
    """Raise VolumeError if what a worker has found under the path of a volume has other content.

    Args:
        volumes: as the command found them.
        copies: what ``KnownFiles.copies`` returned on a worker.
        known: the fingerprints of the volumes that were needed so far, by path; others are added.
    """
    for volume in volumes:
        if volume.path not in copies:
            continue
        if volume.path not in known:
            known[volume.path] = fingerprint(volume)
        if copies[volume.path] != known[volume.path]:
            raise VolumeError(
                f"{volume.path}: has other content on a worker than here; all workers must find the same file under this path"
            )
