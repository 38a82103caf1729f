"""The folder of a training run: its files, and checks before a run is resumed."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, cast

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    ModelError,
    OutputError,
    json_text,
    load_config,
    locked_folder,
    needs_extra,
    option,
    read_json,
    read_log,
    reading,
    remove_leftovers,
    staged_file,
    to_yaml,
    without_secrets,
)
from evenslice.networks import METADATA_KEY, read_metadata
from evenslice.training.config import TrainConfig
from evenslice.training.documents import RESULT_SCORES, DataPart, TrainResult

with needs_extra("train", "a training run"):
    from pydantic import TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["MOVABLE", "RunFolder", "changed_options", "fixed_options", "flat_options", "refuse_changed"]

FILES = (
    *("config.yaml", "data.json", "metrics.csv", "last.ckpt", "best.safetensors"),
    *("network.safetensors", "result.json"),
)
"""Names of the files of a run that are written beside their final names."""

SPLITS = {"train", "validation", "test"}
SHOWN = ("validation", "bias", "steps", "seconds", "data")  # of every result

_RESULT, _DATA = TypeAdapter(TrainResult), TypeAdapter(dict[str, list[DataPart]])

MOVABLE = {
    "data.root",
    *(f"training.{name}" for name in ("accelerator", "workers", "tensorboard", "mlflow", "stress")),
}
"""Options that may change when a run is resumed: where it runs, and what else it logs and tests, not its network."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of the files of a run.

    Attributes:
        path: the folder.

    Example:
        >>> from pathlib import Path
        >>> RunFolder(Path("run")).network.as_posix()
        'run/network.safetensors'
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration, with every option, and paths made absolute."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """The parts of the data set, with the fingerprints of their files when the run began."""
        return self.path / "data.json"

    @property
    def log(self) -> Path:
        """The folder of logs."""
        return self.path / "log"

    @property
    def metrics(self) -> Path:
        """Loss, validation and slice bias by step; see ``read_metrics``."""
        return self.log / "metrics.csv"

    @property
    def last(self) -> Path:
        """The checkpoint from which training is resumed."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The best network in validation so far, written by ``save_network``."""
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def network(self) -> Path:
        """The trained network, once training has ended: the last or the best in validation, see ``keep``."""
        return self.path / "network.safetensors"

    @property
    def result(self) -> Path:
        """The result, once everything has ended."""
        return self.path / "result.json"

    def begin(self, data: Mapping[str, list[DataPart]], config: TrainConfig) -> None:
        """Write ``data.json`` and ``config.yaml``, with which a run begins; hold the lock."""
        for path, text in ((self.data, json_text(data)), (self.config, to_yaml(config))):
            with staged_file(path, force=True) as beside:
                beside.write_text(text, encoding="utf-8")

    def update(self, config: TrainConfig) -> None:
        """Write ``config.yaml`` if a run goes on with other ``MOVABLE`` options, such as another place of its data."""
        if load_config(self.config, TrainConfig) != config:
            with staged_file(self.config, force=True) as beside:
                beside.write_text(to_yaml(config), encoding="utf-8")

    def read_result(self) -> TrainResult:
        """Return the content of ``result.json``.

        Raises:
            ConfigError: it is damaged.
        """
        remedy = f"delete it and run train with {option('resume')}, which tests the network again"
        with reading(self.result, "a run", remedy):
            document = read_json(self.result)
            task = "classification" if "accuracy" in document else "segmentation"
            if missing := [name for name in (*RESULT_SCORES[task], *SHOWN) if name not in document]:
                raise ValueError(f"it has no {missing[0]}")
            _RESULT.validate_python(document)
        return cast(TrainResult, document)

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

    def read_data(self) -> dict[str, list[DataPart]]:
        """Return the content of ``data.json``.

        Raises:
            ConfigError: it is damaged.
        """
        with reading(self.data, "a run", "restore it, or start a new run in another folder"):
            parts = _DATA.validate_python(read_json(self.data))
            if parts.keys() != SPLITS:
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
        if not self.config.exists():
            if left:
                raise OutputError(
                    f"{left[0]}: belongs to a run whose config.yaml is missing; remove it, or choose another folder"
                )
            self._check_own(self.metrics, self.data)
            return False
        if not left:
            self._check_own(self.config, self.data)
        if not resume:
            raise OutputError(
                f"{self.path}: already holds a run; resume it with {option('resume')}, or choose another folder"
            )
        if not left:
            return False
        before, now = (
            flat_options(without_secrets(each.model_dump(mode="json")))  # of which the folder keeps none
            for each in (load_config(self.config, TrainConfig), config)
        )
        other = [
            name
            for name in sorted(before.keys() | now.keys())
            if name not in MOVABLE and before.get(name) != now.get(name)
        ]
        stated = {file: changed_options(options, config) for file, options in self._stated()}
        if other and stated and not any(stated.values()):
            raise ConfigError(
                f"{self.config}: {', '.join(other)}: edited since the run began; put back what was there, which is what the "
                "run is resumed with now, or start a new run in another folder"
            )
        if other:
            raise ConfigError(
                f"{', '.join(f'{name}: {now.get(name)!r}' for name in other)}: the run in {self.path} began with "
                f"{', '.join(repr(before.get(name)) for name in other)}; resume it with that, or start a new run in another "
                "folder"
            )
        for file, changed in stated.items():
            refuse_changed(changed, file)
        return True

    def _stated(self) -> Iterator[tuple[Path, Mapping[str, str]]]:
        """Yield what the files of the run say about the options that it began with, as ``fixed_options`` does."""
        if self.result.exists():
            yield self.result, fixed_options(self.read_result().get("config", {}))
        for file in (self.network, self.best):
            with suppress(
                ModelError, *UNREADABLE
            ):  # of one that is missing or damaged, or was written before 0.3
                yield file, dict(json.loads(read_metadata(file)[METADATA_KEY])["run"])

    def check_test(self, config: TrainConfig) -> None:
        """Check that a finished run was tested as a configuration says.

        Raises:
            ConfigError: it was not.
        """
        before, now = load_config(self.config, TrainConfig).training.stress, config.training.stress
        if before != now:
            raise ConfigError(
                f"training.stress: {str(now).lower()}: the run in {self.path} is finished, and was tested "
                f"{'with' if before else 'without'} it; give training.stress: {str(before).lower()}, or remove {self.result} "
                "to test its network again"
            )

    def check_data(self, now: Mapping[str, list[DataPart]]) -> None:
        """Check that the data are those with which the run began.

        Raises:
            ConfigError: they differ; the message names the first part that does.
        """
        if not self.data.exists():
            return
        before: Mapping[str, list[DataPart]] = self.read_data()
        for split, parts in now.items():
            for old, new in zip_longest(before[split], parts):
                if old != new:
                    raise ConfigError(
                        f"data.{split}: {(new or old)['name']}: the files are not those with which the run "
                        f"in {self.path} "
                        "began; restore them, or start a new run in another folder"
                    )

    def _check_own(self, *files: Path) -> None:
        """Check that files, if there are any, were written by a run that had not reached its first checkpoint.

        Such a run writes ``data.json`` first, which says more than its name and suffix.
        """
        found = [file for file in files if file.exists()]
        if not found:
            return
        try:
            self.read_data()
        except ConfigError as error:
            raise OutputError(
                f"{found[0]}: is not a file of a run, and training here would replace it; choose another folder"
            ) from error


def fixed_options(values: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of each option that may not change when a run is resumed, by its dotted name.

    Hashes, as a network is given away, and the paths of the machine that it was trained on need not be.

    Args:
        values: a configuration, as plain values.

    Example:
        >>> fixed_options({"seed": 0, "training": {"stress": True}})
        {'seed': '5feceb66'}
    """
    named: dict[str, Any] = {}
    for name, value in without_secrets(dict(values)).items():
        parts = {f"{name}.{part}": item for part, item in value.items()} if isinstance(value, dict) else {}
        named |= parts or {name: value}
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
        for name, value in named.items()
        if name not in MOVABLE
    }


def changed_options(stated: Mapping[str, str], config: TrainConfig) -> list[str]:
    """Return the names of options that differ from what ``fixed_options`` stated; of those of other versions none do."""
    now = fixed_options(config.model_dump(mode="json"))
    return sorted(name for name in stated.keys() & now.keys() if stated[name] != now[name])


def refuse_changed(changed: Sequence[str], file: Path) -> None:
    """Raise ConfigError if options are not those with which a run began, as a file of it says."""
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: changed since the run began, as {file} says; put back what config.yaml said, or start a "
            "new run in another folder"
        )


def flat_options(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested options by their dotted names.

    Example:
        >>> flat_options({"seed": 0, "training": {"steps": 5}})
        {'seed': 0, 'training.steps': 5}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            flat_options(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
        )
    return flat
