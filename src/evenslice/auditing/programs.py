"""Programs that read a volume from a file and write their answer to another, run on intact and on flipped volumes.

Inputs, answers and what a program printed stay in a folder, one for each volume it is asked about, so that a repeated call
computes nothing twice:

    intact/input/volume.nii.gz    intact/output/answer.nii.gz    intact/log.txt    intact/plan.json
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    ModelError,
    json_text,
    local_path,
    option,
    printable,
    progress_bar,
    reporting_write_errors,
    without_secrets,
)
from evenslice.volumes import Destination, open_volume, write_volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.volumes import Volume

PLAN, LOG = "plan.json", "log.txt"
INPUTS, OUTPUTS = ("{input}", "{input_folder}"), ("{output}", "{output_folder}")
LAST = 10  # lines of a failed program that are shown
MOST_BYTES = 2**16  # of its output that are read for them


@dataclass(frozen=True)
class Program:
    """A program and where its answers are kept.

    Attributes:
        words: the program and its arguments, in which {input}, {output}, {input_folder} and {output_folder} stand for the
            paths of both files and of their folders.
        folder: where inputs and answers are kept.
        input_name: name of the file that the program reads; its suffix is its format.
        output_name: name of the file that the program writes.
        force: replace answers of other programs, or to other volumes.
    """

    words: tuple[str, ...]
    folder: Path
    input_name: str
    output_name: str
    force: bool = False

    @classmethod
    def parse(
        cls, command: str, folder: Path, input_name: str, output_name: str, *, force: bool = False
    ) -> Program:
        """Split a command as a shell would, without running one.

        Raises:
            ConfigError: it names no input or no output, or quotes do not match.
            OutputError: the name of the input has no suffix of a format that can be written.
        """
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise ConfigError(
                f"{option('command', command)}: cannot be split into words ({error})"
            ) from error
        for names in (INPUTS, OUTPUTS):
            if not any(name in word for word in words for name in names):
                raise ConfigError(
                    f"{option('command', command)}: names no {names[0]}, nor {names[1]}; say where it goes"
                )
        for name in (input_name, output_name):
            if not name or Path(name).name != name:
                raise ConfigError(f"{name!r}: is not the name of a file, as volume.nii.gz is")
        Destination.of(input_name)
        return cls(words, local_path(folder).absolute(), input_name, output_name, force)

    def answer(self, name: str, volume: Volume) -> Path:
        """Return the file of the program's answer to a volume, and run it unless that is there.

        Args:
            name: of the folder for this volume, such as "intact".
            volume: the volume.

        Raises:
            ModelError: the program fails, or writes no answer; its last lines are the notes of the error.
            ConfigError: the folder holds something else.
            OutputError: a file cannot be written.
        """
        place = self.folder / name
        plan = json_text({"command": list(self.words), "input": self.input_name, "volume": _digest(volume)})
        output = place / "output" / self.output_name
        if place.exists():
            if not self._may_replace(place, plan):
                raise ConfigError(
                    f"{place}: holds the answer to another volume or command; choose another {option('out')}, or "
                    f"replace it with {option('force')}"
                )
            if output.exists() and (place / PLAN).read_text(encoding="utf-8") == plan:
                return output
        with reporting_write_errors(place):
            for part in ("input", "output", "unfinished"):
                shutil.rmtree(place / part, ignore_errors=True)
            (place / "unfinished").mkdir(parents=True)
            (place / PLAN).write_text(plan, encoding="utf-8")
        write_volume(volume, place / "input" / self.input_name, labels=False, force=True)
        self._run(place, name)
        (place / "unfinished").rename(place / "output")
        return output

    def answer_all(
        self, volume: Volume, axes: Sequence[str], *, repeat: bool, ignore_orientation: bool
    ) -> tuple[str, str | None, dict[str, str]]:
        """Return the files of the answers to a volume, to it again, and to it flipped along each axis; see ``answer``."""
        names = ["intact", *["again"] * repeat, *(f"flipped-{axis}" for axis in axes)]
        found = {}
        with progress_bar("flip", len(names), "runs", show=None) as advance:
            for name in names:
                _, flipped, axis = name.partition("flipped-")
                turned = (
                    flip_volume(volume, axis, ignore_orientation=ignore_orientation) if flipped else volume
                )
                found[name] = str(self.answer(name, turned))
                advance(1)
        return found["intact"], found.get("again"), {axis: found[f"flipped-{axis}"] for axis in axes}

    def _may_replace(self, place: Path, plan: str) -> bool:
        """Return whether a folder is one of ours, without an answer or with that of this plan, or of any if forced."""
        try:
            found = (place / PLAN).read_text(encoding="utf-8")
            ours = set(json.loads(found)) == set(json.loads(plan))
            return ours and (found == plan or self.force or not (place / "output").exists())
        except UNREADABLE:
            return False

    def _run(self, place: Path, name: str) -> None:
        """Run the program on the input in a folder."""
        inside, written = place / "input" / self.input_name, place / "unfinished" / self.output_name
        paths = dict(zip((*INPUTS, *OUTPUTS), (inside, inside.parent, written, written.parent), strict=True))
        words = [_filled(word, paths) for word in self.words]
        with (place / LOG).open("wb") as log:
            try:
                done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)  # noqa: S603  # the user's
            except OSError as error:
                raise ConfigError(
                    f"{option('command', words[0])}: cannot be run ({error.strerror})"
                ) from error
        if done.returncode or not written.exists():
            wrong = (
                f"ends with status {done.returncode}" if done.returncode else f"writes no {self.output_name}"
            )
            failed = ModelError(f"{words[0]}: {wrong} on the volume {name}; see {place / LOG}")
            for line in (
                (place / LOG).read_bytes()[-MOST_BYTES:].decode(errors="replace").splitlines()[-LAST:]
            ):
                failed.add_note(printable(without_secrets(line)))
            raise failed


def _filled(word: str, paths: dict[str, Path]) -> str:
    for name, path in paths.items():
        word = word.replace(name, str(path))
    return word


def _digest(volume: Volume) -> str:
    """Return a digest of all voxels and of where they lie."""
    found = hashlib.sha256(volume[...].tobytes())
    found.update(repr((volume.shape, volume.dtype.str, volume.spacing, volume.unit)).encode())
    found.update(b"" if volume.affine is None else volume.affine.tobytes())
    return found.hexdigest()


def flip_volume(volume: Volume, axis: str, *, ignore_orientation: bool = False) -> Volume:
    """Read a volume into memory with the voxels along one axis in reversed order.

    Args:
        volume: the volume.
        axis: "z", "y" or "x".
        ignore_orientation: keep the affine as it is, which then places voxels wrongly, as a conversion that loses the
            orientation does; by default it follows, so that every voxel keeps its place in the patient.

    Raises:
        VolumeError: the volume cannot be read.

    Example:
        >>> volume = open_volume(np.arange(6).reshape(3, 1, 2))
        >>> flip_volume(volume, "z")[...].tolist()
        [[[4, 5]], [[2, 3]], [[0, 1]]]
    """
    place = "zyx".index(axis)
    flipped = open_volume(np.flip(volume[...], place), spacing=volume.spacing, unit=volume.unit)
    affine = volume.affine
    if affine is not None and not ignore_orientation:
        reversing = np.eye(4)  # from the index of a voxel here to its index there; columns are x, y, z
        reversing[2 - place, [2 - place, 3]] = -1, volume.shape[place] - 1
        affine = affine @ reversing
    return replace(flipped, affine=affine)
