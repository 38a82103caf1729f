"""The folder of a training run: its files, what they hold, and checks before a run is resumed."""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import TypedDict

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    EvensliceError,
    ModelError,
    OutputError,
    json_text,
    load_config,
    locked_folder,
    needs_extra,
    open_regular,
    option,
    read_json,
    read_log,
    reading,
    remove_leftovers,
    staged_file,
    to_yaml,
)
from evenslice.networks import read_metadata
from evenslice.training.config import SPLITS, TrainConfig

with needs_extra("train", "a training run"):
    from pydantic import TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

FILES = (
    *("config.yaml", "data.json", "metrics.csv", "last.ckpt", "best.safetensors"),
    *("network.safetensors", "result.json"),
)
"""Names of the files of a run that are written beside their final names."""


class DataPart(TypedDict):
    """A part of a data set: its shape (z, y, x), the voxel values of 0 and 1, and the fingerprints of its files."""

    name: str
    shape: list[int]
    intensity: list[float]
    image: str
    labels: str


DataParts: TypeAlias = dict[str, list[DataPart]]


class _Result(TypedDict):
    """What is read back of ``result.json``; ``train`` says what else is in it."""

    validation: dict[str, float] | None
    bias: dict[str, float | None] | None
    steps: int
    seconds: float
    data: DataParts


_RESULT, _DATA = TypeAdapter(_Result), TypeAdapter(DataParts)


class RunFolder:
    """The files of a run.

    Args:
        path: the folder.

    Attributes:
        config: the configuration, with every option, and paths made absolute.
        data: the parts of the data set, with the fingerprints of their files when the run began.
        log: the folder of logs.
        metrics: loss, validation and slice bias by step; see ``read_metrics``.
        last: the checkpoint from which training is resumed, until the run has ended.
        best: the best network in validation so far, written by ``save_network``.
        network: the trained network, once training has ended: the last or the best in validation, see ``keep``.
        result: the result, once everything has ended.

    Example:
        >>> from pathlib import Path
        >>> RunFolder(Path("run")).network.as_posix()
        'run/network.safetensors'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.data, self.log = path / "config.yaml", path / "data.json", path / "log"
        self.metrics = self.log / "metrics.csv"
        self.last, self.best = (path / "checkpoints" / name for name in ("last.ckpt", "best.safetensors"))
        self.network, self.result = path / "network.safetensors", path / "result.json"

    def begin(self, data: DataParts, config: TrainConfig, *, again: bool = False) -> None:
        """Write ``data.json`` and ``config.yaml``, with which a run begins; hold the lock.

        Args:
            data: the parts of the data set.
            config: the configuration.
            again: whether a run goes on, perhaps with other ``MOVABLE`` options, such as another place of its data.

        Raises:
            ConfigError: a run goes on with other data.
        """
        if again:
            self.check_data(data)
        else:
            _write(self.data, json_text(data))
        if not again or load_config(self.config, TrainConfig) != config:
            _write(self.config, to_yaml(config))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, with which a run ends, and remove the checkpoint, three times the network; hold the lock."""
        _write(self.result, json_text(result))
        self.last.unlink(missing_ok=True)
        with suppress(OSError):  # the best network in validation is there, or something of the user's
            self.last.parent.rmdir()

    def read_result(self) -> dict[str, Any]:
        """Return the content of ``result.json``.

        Raises:
            ConfigError: it is damaged.
        """
        remedy = f"delete it and run train with {option('resume')}, which tests the network again"
        with reading(self.result, "a run", remedy):
            document = read_json(self.result)
            _RESULT.validate_python(document)
        return document

    def tested_data(self) -> list[str]:
        """Return the fingerprints, in order, of the files with which the network was trained and tested.

        Raises:
            ConfigError: it is missing or damaged.
        """
        parts = [part for parts in self.read_result()["data"].values() for part in parts]
        return sorted({part[kind] for part in parts for kind in ("image", "labels")})

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of the log, each with its ``step`` and the values logged there.

        Raises:
            ConfigError: it is damaged or missing.
        """
        remedy = "restore it, or start a new run in another folder"
        with reading(self.metrics, "a run", remedy):
            rows = read_log(self.metrics)
        if not rows:
            raise ConfigError(f"{self.metrics}: has no rows; {remedy}")
        return [{name: float(value) for name, value in row.items() if value} for row in rows]

    def read_data(self) -> DataParts:
        """Return the content of ``data.json``.

        Raises:
            ConfigError: it is damaged.
        """
        with reading(self.data, "a run", "restore it, or start a new run in another folder"):
            parts = _DATA.validate_python(read_json(self.data))
            if parts.keys() != {*SPLITS}:
                raise ValueError(f"it has the parts {', '.join(parts)}")
        return parts

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from training in the folder.

        Raises:
            OutputError: another one does.
        """
        return locked_folder(
            self.path,
            f"{self.path}: another `evenslice train` is at work in it; wait for it, or choose another folder",
        )

    def remove_leftovers(self) -> None:
        """Remove what a process that was killed has left beside the files of the run; hold the lock."""
        for folder in (self.path, self.log, self.last.parent):
            remove_leftovers(folder, FILES)

    def has_begun(self, config: TrainConfig, *, resume: bool) -> bool:
        """Return whether the folder holds a run to resume.

        Args:
            config: the configuration to resume it with.
            resume: whether to resume a run.

        Raises:
            OutputError: there is a run, but ``resume`` is False; there are files of a run without its configuration; or
                files that no run wrote have the names of a run's.
            ConfigError: the run began with other options, and has reached its first checkpoint; or ``config.yaml`` has
                been edited since.
        """
        left = [file for file in (self.result, self.network, self.last, self.best) if file.exists()]
        if not left:
            self._check_own()
            return False
        if not self.config.exists():
            raise OutputError(
                f"{left[0]}: belongs to a run whose config.yaml is missing; remove it, or choose another folder"
            )
        if not resume:
            raise OutputError(
                f"{self.path}: already holds a run; resume it with {option('resume')}, or choose another folder"
            )
        refuse_changed(load_config(self.config, TrainConfig).option_hashes(), config, self.config)
        with suppress(ModelError, *UNREADABLE):  # missing or damaged, or written before 0.3
            stated = dict(json.loads(read_metadata(self.network) or "{}")["run"])
            refuse_changed(stated, config, self.network)  # as config.yaml may have been edited since
        return True

    def check_data(self, now: DataParts) -> None:
        """Check that the data are those with which the run began.

        Raises:
            ConfigError: they differ; the message names the first part that does.
        """
        if not self.data.exists():
            return
        before = self.read_data()
        for split, parts in now.items():
            for old, new in zip_longest(before[split], parts):
                if old != new:
                    raise ConfigError(
                        f"data.{split}: {(new or old)['name']}: the files are not those with which the run in {self.path} began; "
                        "restore them, or start a new run in another folder"
                    )

    def damaged_files(self, others: Mapping[Path, Callable[[Path], object]]) -> set[Path]:
        """Return the files that are there and cannot be read; those that were removed are not damaged.

        Args:
            others: further files in the folder, with functions that read them.
        """
        readers: dict[Path, Callable[[Path], object]] = {
            self.config: lambda file: load_config(file, TrainConfig),
            self.data: lambda _: self.read_data(),
            self.metrics: lambda _: self.read_metrics(),
            self.last: check_archive,
            self.best: read_metadata,
            self.network: read_metadata,
            self.result: lambda _: self.read_result(),
            **others,
        }
        return {file for file, read in readers.items() if file.exists() and _is_damaged(file, read)}

    def _check_own(self) -> None:
        """Check that files, if there are any, were written by a run that had not reached its first checkpoint.

        Such a run writes ``data.json`` first, which says more than its name and suffix.
        """
        found = [file for file in (self.config, self.metrics, self.data) if file.exists()]
        try:
            if found:
                self.read_data()
        except ConfigError as error:
            raise OutputError(
                f"{found[0]}: is not a file of a run, and training here would replace it; choose another folder"
            ) from error


def _is_damaged(file: Path, read: Callable[[Path], object]) -> bool:
    with suppress(EvensliceError, *UNREADABLE):
        read(file)
        return False
    return True


def check_archive(path: Path) -> None:
    """Compare the checksums of an archive of ``torch.save``, which PyTorch itself does not.

    Raises:
        ValueError: a part is damaged.
        zipfile.BadZipFile: it is no archive, or is cut short.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged")


def _write(path: Path, text: str) -> None:
    with staged_file(path, force=True) as beside:
        beside.write_text(text, encoding="utf-8")


def refuse_changed(stated: Mapping[str, str], config: TrainConfig, file: Path) -> None:
    """Raise ConfigError if options are not those with which a run began, as their hashes in a file of it say.

    Those that only one version of evenslice has do not differ.
    """
    now = config.option_hashes()
    if changed := sorted(name for name in stated.keys() & now.keys() if stated[name] != now[name]):
        raise ConfigError(
            f"{', '.join(changed)}: changed since the run began, as {file} says; resume it as it began, or start a new run "
            "in another folder"
        )
