"""The folder of a training run: its files, what they hold, and checks before a run is resumed."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from itertools import zip_longest
from typing import (
    TYPE_CHECKING,
    Any,
    Required,  # pydantic needs this one before Python 3.12
    cast,
)

from typing_extensions import TypedDict

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

with needs_extra("train", "a training run"):
    from pydantic import TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = [
    "MOVABLE",
    "RESULT_SCORES",
    "DataPart",
    "RunFolder",
    "TrainResult",
    "data_of_result",
    "fixed_options",
    "flat_options",
    "refuse_changed",
]

FILES = (
    *("config.yaml", "data.json", "metrics.csv", "last.ckpt", "best.safetensors"),
    *("network.safetensors", "result.json"),
)
"""Names of the files of a run that are written beside their final names."""

SPLITS = {"train", "validation", "test"}

RESULT_SCORES = {
    "segmentation": ("dice", "iou"),
    "classification": ("accuracy", "balanced_accuracy", "macro_f1"),
}
"""The scores of each task that every ``result.json`` has, None without test volumes."""


class ClassScores(TypedDict):
    """A score by class, and its mean, in segmentations without the background; None where undefined."""

    mean: float | None
    per_class: list[float | None]


class DataPart(TypedDict):
    """A part of the data set: its shape (z, y, x), the voxel values of 0 and 1, and the fingerprints of its files."""

    name: str
    shape: list[int]
    intensity: list[float]
    image: str
    labels: str


class TrainResult(TypedDict, total=False):
    """The content of ``result.json``.

    ``dice`` to ``volumes`` are scores on the test volumes (``evenslice.inference.scoring.Scores``): without test
    volumes, ``dice`` and ``iou`` are None and the others absent. A classification has ``accuracy``,
    ``balanced_accuracy``, the recall of each class, ``macro_f1`` and ``confusion`` in their place
    (``ClassificationScores``). ``stress`` says what disturbed slices cost there (``evenslice.results.StressSummary``),
    None if that was not measured. ``validation`` has the ``step`` and the main score of the kept network, None without
    validation; ``bias`` what ``AsymmetryMonitor`` measured of that network, None if it was not measured at its step.
    ``seconds`` is the time spent training; ``data`` has the parts of each split.
    """

    accuracy: float | None
    balanced_accuracy: ClassScores | None
    macro_f1: ClassScores | None
    dice: ClassScores | None
    iou: ClassScores | None
    hd95: ClassScores
    surface_dice: ClassScores
    surface_dice_3: ClassScores
    adapted_rand_error: float | None
    variation_of_information: dict[str, float | None]
    confusion: list[list[int]]
    volumes: list[dict[str, Any]]
    stress: dict[str, Any] | None
    validation: Required[dict[str, float] | None]
    bias: Required[dict[str, float | None] | None]
    steps: Required[int]
    seconds: Required[float]
    name: str
    seed: int
    config: dict[str, Any]
    data: Required[dict[str, list[DataPart]]]
    network: dict[str, Any]
    record: dict[str, Any]
    command: str | None
    machine: dict[str, Any]
    versions: dict[str, str]
    created: str


def data_of_result(result: Mapping[str, Any]) -> set[str]:
    """Return the fingerprints of the files with which a network was trained and tested, from ``result.json``.

    Example:
        >>> sorted(data_of_result({"data": {"train": [{"image": "a", "labels": "b"}], "test": [{"image": "a", "labels": "c"}]}}))
        ['a', 'b', 'c']
    """
    return {part[kind] for parts in result["data"].values() for part in parts for kind in ("image", "labels")}


_RESULT, _DATA = TypeAdapter(TrainResult), TypeAdapter(dict[str, list[DataPart]])

MOVABLE = {
    "data.root",
    *(f"training.{name}" for name in ("accelerator", "workers", "tensorboard", "mlflow", "stress")),
}
"""Options that may change when a run is resumed: where it runs, and what else it logs and tests, not its network."""


class RunFolder:
    """The files of a run.

    Args:
        path: the folder.

    Attributes:
        config: the configuration, with every option, and paths made absolute.
        data: the parts of the data set, with the fingerprints of their files when the run began.
        log: the folder of logs.
        metrics: loss, validation and slice bias by step; see ``read_metrics``.
        last: the checkpoint from which training is resumed.
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

    def begin(self, data: Mapping[str, list[DataPart]], config: TrainConfig, *, again: bool = False) -> None:
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
        """Write ``result.json``, with which a run ends; hold the lock."""
        _write(self.result, json_text(result))

    def read_result(self) -> TrainResult:
        """Return the content of ``result.json``.

        Raises:
            ConfigError: it is damaged.
        """
        remedy = f"delete it and run train with {option('resume')}, which tests the network again"
        with reading(self.result, "a run", remedy):
            document = read_json(self.result)
            task = "classification" if "accuracy" in document else "segmentation"
            if missing := [name for name in RESULT_SCORES[task] if name not in document]:
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
        for file, stated in self._stated():
            refuse_changed(stated, config, file)
        return True

    def _stated(self) -> Iterator[tuple[Path, Mapping[str, str]]]:
        """Yield what the files of the run say about the options that it began with, as ``fixed_options`` does.

        ``config.yaml`` says all, but may have been edited since.
        """
        yield self.config, fixed_options(load_config(self.config, TrainConfig).model_dump(mode="json"))
        if self.result.exists():
            yield self.result, fixed_options(self.read_result().get("config", {}))
        for file in (self.network, self.best):
            with suppress(ModelError, *UNREADABLE):  # missing or damaged, or written before 0.3
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
        before = self.read_data()
        for split, parts in now.items():
            for old, new in zip_longest(before[split], parts):
                if old != new:
                    raise ConfigError(
                        f"data.{split}: {(new or old)['name']}: the files are not those with which the run in {self.path} began; "
                        "restore them, or start a new run in another folder"
                    )

    def _check_own(self, *files: Path) -> None:
        """Check that files, if there are any, were written by a run that had not reached its first checkpoint.

        Such a run writes ``data.json`` first, which says more than its name and suffix.
        """
        found = [file for file in files if file.exists()]
        try:
            if found:
                self.read_data()
        except ConfigError as error:
            raise OutputError(
                f"{found[0]}: is not a file of a run, and training here would replace it; choose another folder"
            ) from error


def _write(path: Path, text: str) -> None:
    with staged_file(path, force=True) as beside:
        beside.write_text(text, encoding="utf-8")


def fixed_options(values: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of each option that may not change when a run is resumed, by its dotted name.

    Hashes, as a network is given away, and the paths of the machine that it was trained on need not be.

    Args:
        values: a configuration, as plain values.

    Example:
        >>> fixed_options({"seed": 0, "training": {"stress": True}})
        {'seed': '5feceb66'}
    """
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
        for name, value in flat_options(without_secrets(dict(values))).items()
        if name not in MOVABLE
    }


def refuse_changed(stated: Mapping[str, str], config: TrainConfig, file: Path) -> None:
    """Raise ConfigError if options are not those with which a run began, as ``fixed_options`` stated them in a file of it.

    Those that only one version of evenslice has do not differ.
    """
    now = fixed_options(config.model_dump(mode="json"))
    if changed := sorted(name for name in stated.keys() & now.keys() if stated[name] != now[name]):
        raise ConfigError(
            f"{', '.join(changed)}: changed since the run began, as {file} says; resume it as it began, or start a new run "
            "in another folder"
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
