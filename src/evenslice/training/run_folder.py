"""The folder of a training run: its files, and checks before a run is resumed."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, OutputError, load_config, option
from evenslice.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from evenslice.training.documents import DataPart, TrainResult

__all__ = ["MOVABLE", "RunFolder", "flat_options"]

MOVABLE = {"data.root", *(f"training.{name}" for name in ("accelerator", "workers", "tensorboard", "mlflow"))}
"""Options that may change when a run is resumed: where it runs and what else it logs, not its result."""


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

    def read_result(self) -> TrainResult:
        """Return the content of ``result.json``."""
        result: TrainResult = json.loads(self.result.read_text(encoding="utf-8"))
        return result

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of the log, each with its ``step`` and the values logged there."""
        with self.metrics.open(newline="", encoding="utf-8") as file:
            return [
                {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)
            ]

    def has_begun(self, config: TrainConfig, *, resume: bool) -> bool:
        """Return whether the folder holds a run to resume.

        Args:
            config: the configuration to resume it with.
            resume: whether to resume a run.

        Raises:
            OutputError: there is a run, but ``resume`` is False; or there are files of a run without its configuration.
            ConfigError: the run began with other options, and has reached its first checkpoint.
        """
        left = [file for file in (self.result, self.network, self.last, self.best) if file.exists()]
        if not self.config.exists():
            if left:
                raise OutputError(
                    f"{left[0]}: belongs to a run whose config.yaml is missing; remove it, or choose another folder"
                )
            return False
        if not resume:
            raise OutputError(
                f"{self.path}: already holds a run; resume it with {option('resume')}, or choose another folder"
            )
        if not left:
            return False
        before, now = (
            flat_options(each.model_dump(mode="json"))
            for each in (load_config(self.config, TrainConfig), config)
        )
        for name in sorted(before.keys() | now.keys()):
            if name not in MOVABLE and before.get(name) != now.get(name):
                raise ConfigError(
                    f"{name}: {now.get(name)!r}: the run in {self.path} began with {before.get(name)!r}; resume it with "
                    "that, or start a new run in another folder"
                )
        return True

    def check_data(self, now: Mapping[str, list[DataPart]]) -> None:
        """Check that the data are those with which the run began.

        Raises:
            ConfigError: they differ; the message names the first part that does.
        """
        if not self.data.exists():
            return
        before = json.loads(self.data.read_text(encoding="utf-8"))
        for split, parts in now.items():
            for old, new in zip_longest(before[split], parts):
                if old != new:
                    raise ConfigError(
                        f"data.{split}: {(new or old)['name']}: the files are not those with which the run in {self.path} "
                        "began; restore them, or start a new run in another folder"
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
