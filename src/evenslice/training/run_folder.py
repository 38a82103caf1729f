"""The folder of a training run: its files, and whether a configuration is that of the run."""

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

__all__ = ["MOVABLE", "RunFolder", "flat_options"]

MOVABLE = {"data.root", *(f"training.{name}" for name in ("accelerator", "workers", "tensorboard", "mlflow"))}
"""Options that may differ when a run is resumed: they say where it runs and what else it writes, not what comes out."""


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run are.

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
        """The configuration, with every option; what it names by a relative path stands there as an absolute one."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """The files of the data, each part with their fingerprints, as they were when the run began."""
        return self.path / "data.json"

    @property
    def log(self) -> Path:
        """The folder of what was logged."""
        return self.path / "log"

    @property
    def metrics(self) -> Path:
        """Loss, validation and slice bias by step; see ``read_metrics``."""
        return self.log / "metrics.csv"

    @property
    def last(self) -> Path:
        """All that training goes on from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The network that was the best in validation so far, as ``save_network`` writes it."""
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def network(self) -> Path:
        """The network that came out, once training has ended: the last, or the best in validation, as ``keep`` says."""
        return self.path / "network.safetensors"

    @property
    def result(self) -> Path:
        """What was found on the test volumes, and all that the run depended on, once everything has ended."""
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any]:
        """Return what ``result.json`` holds."""
        result: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        return result

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of the log, each with its ``step`` and what was logged there."""
        with self.metrics.open(newline="", encoding="utf-8") as file:
            return [
                {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)
            ]

    def has_begun(self, config: TrainConfig, *, resume: bool) -> bool:
        """Say whether the folder holds a run to go on with.

        Args:
            config: what to go on with it by.
            resume: whether that is meant.

        Raises:
            OutputError: there is a run, and none to resume was meant; or there is what a run leaves, without its
                configuration.
            ConfigError: it began with other options, and got as far as its first checkpoint.
        """
        left = [file for file in (self.result, self.network, self.last, self.best) if file.exists()]
        if not self.config.exists():
            if left:
                raise OutputError(
                    f"{left[0]}: is of a run whose config.yaml is not there; remove it, or choose another folder"
                )
            return False
        if not resume:
            raise OutputError(
                f"{self.path}: holds a run; go on with it by {option('resume')}, or choose another folder"
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
                    "that, or begin another one in another folder"
                )
        return True

    def check_data(self, now: Any) -> None:
        """Refuse to go on with data that are not what the run began with.

        Raises:
            ConfigError: they differ; the first part that does is named.
        """
        if not self.data.exists():
            return
        before = json.loads(self.data.read_text(encoding="utf-8"))
        for split, parts in now.items():
            for old, new in zip_longest(before[split], parts):
                if old != new:
                    raise ConfigError(
                        f"data.{split}: {(new or old)['name']}: the files are not those with which the run in {self.path} "
                        "began; bring these back, or begin another one in another folder"
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
