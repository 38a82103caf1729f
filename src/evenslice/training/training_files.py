"""What a training writes while it runs: its log as a CSV file, TensorBoard and MLflow if asked for, and its checkpoint.

A checkpoint may come from anyone, and is read without running any code in it.
"""

from __future__ import annotations

import csv
import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evenslice._core import (
    ConfigError,
    needs_extra,
    open_regular,
    read_log,
    reading,
    reason,
    reporting_write_errors,
    staged_file,
)
from evenslice.networks import is_mark

with needs_extra("train", "training"):
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from lightning.pytorch import LightningModule, Trainer

    from evenslice.training.config import TrainConfig
    from evenslice.training.run_folder import RunFolder

__all__ = [
    "CheckpointFiles",
    "CsvLog",
    "check_archive",
    "is_first_process",
    "log_metrics",
    "run_loggers",
    "unusable",
]

OPTIONS = "evenslice_options"  # with which the run began


def is_first_process() -> bool:
    """Return whether this is the first of several processes that train together, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


def log_metrics(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Log values with every logger of a trainer, at the current optimizer step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)


class CsvLog(Logger):
    """A Lightning logger that writes one CSV file, with a row for each step at which something was logged.

    Rows are on disk immediately. If a run is resumed at an earlier step, the later rows are dropped, so that the file
    becomes the same as without the interruption; so is a row that was cut short. Lightning's own logger does neither.

    Args:
        path: the file; its folder is created.
        columns: the columns besides ``step``; other values are not written.

    Attributes:
        latest: the step of the last row; None before the first.

    Example:
        >>> import tempfile
        >>> log = CsvLog(Path(tempfile.mkdtemp()) / "metrics.csv", ["loss", "dice"])
        >>> for step, values in (10, {"loss": 0.5}), (10, {"dice": 0.25}), (20, {"loss": 0.125}):
        ...     log.log_metrics(values, step)
        >>> log.path.read_text().split()
        ['step,loss,dice', '10,0.5,0.25', '20,0.125,']
        >>> again = CsvLog(log.path, ["loss", "dice"])
        >>> again.resume(10, 10, remedy="restore it")
        >>> again.log_metrics({"loss": 0.75}, 20)
        >>> log.path.read_text().split()
        ['step,loss,dice', '10,0.5,0.25', '20,0.75,']
    """

    name, version = "csv", ""

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self.latest: int | None = None
        self._columns = ["step", *columns]
        self._before: list[dict[str, str]] = []
        self._row: dict[str, Any] = {}
        self._start: int | None = None  # where the current row begins in the file

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration of a run holds its options."""

    def resume(self, step: int, latest: int | None, remedy: str) -> None:
        """Keep the rows of a run that is resumed, which its result is made from.

        Args:
            step: the step at which it is resumed.
            latest: the step of the last row then; None if there was none, or if that is unknown.
            remedy: what to do if the file is damaged or lacks that row.

        Raises:
            ConfigError: it does.
        """
        self.latest = latest
        if latest is None and not self.path.exists():
            return
        with reading(self.path, "a run", remedy):
            self._before = [row for row in read_log(self.path) if int(row["step"]) <= step]
            if latest is not None and latest not in {int(row["step"]) for row in self._before}:
                raise ValueError(f"it has no row of step {latest}")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values to the row of a step, which must not be before the last row."""
        step = step or 0
        if self._start is None:
            self._begin(step)
        elif self._row["step"] != step:
            self._start, self._row = self.path.stat().st_size, {}
        self._row = {**self._row, "step": step, **metrics}
        self.latest = step
        text = io.StringIO(newline="")
        self._writer(text).writerow(self._row)
        with reporting_write_errors(self.path), self.path.open("r+b") as file:
            file.seek(self._start or 0)
            file.write(text.getvalue().encode())
            file.truncate()

    def _begin(self, step: int) -> None:
        """Write the file with the rows before a step."""
        with (
            staged_file(self.path, force=True) as beside,
            beside.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(row for row in self._before if int(row["step"]) < step)
        self._start = self.path.stat().st_size
        self._row = next((dict(row) for row in self._before if int(row["step"]) == step), {})

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, extrasaction="ignore", lineterminator="\n")


def run_loggers(config: TrainConfig, run: RunFolder, columns: Sequence[str]) -> list[Logger]:
    """Return the loggers of a training run: always the CSV file, TensorBoard and MLflow if configured.

    Args:
        config: the configuration of the run.
        run: its folder, for all logs.
        columns: columns of the CSV file.

    Raises:
        MissingExtraError: the package of a logger is missing.
    """
    loggers: list[Logger] = [CsvLog(run.metrics, columns)]
    if config.training.tensorboard:
        with needs_extra("tensorboard", "a TensorBoard log"):
            import tensorboard  # noqa: F401  # Lightning names its extra, not ours
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(run.log, name="tensorboard", version=""))
    if config.training.mlflow:
        loggers.append(_mlflow_logger(config.data.name, run))
    return loggers


def _mlflow_logger(name: str, run: RunFolder) -> Logger:
    """Return a logger to the store of the run; a resumed run continues its record there."""
    with needs_extra("mlflow", "an MLflow log"):
        import alembic  # noqa: F401  # required by the store
        import sqlalchemy  # noqa: F401
        from mlflow import MlflowClient
    from lightning.pytorch.loggers import MLFlowLogger

    run.log.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{run.log / 'mlflow.db'}"
    began: Sequence[Any] = ()
    if (run.log / "mlflow.db").exists() and is_first_process():
        client = MlflowClient(store)
        experiment = client.get_experiment_by_name(name)
        began = client.search_runs([experiment.experiment_id]) if experiment else ()
    return MLFlowLogger(
        name,
        run_name=run.path.name,
        tracking_uri=store,
        artifact_location=(run.log / "mlflow").as_uri(),
        run_id=began[0].info.run_id if began else None,
    )


class CheckpointFiles(TorchCheckpointIO):
    """Writes and reads the checkpoints of a module; a killed process or a full disk leaves the previous one.

    Lightning's own way copies from the folder for temporary files, if that is on another file system.

    Args:
        module: what is trained.
        config: the configuration of the run.
    """

    def __init__(self, module: LightningModule, config: TrainConfig) -> None:
        super().__init__()
        self.module, self.config = module, config

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint beside its name and rename it.

        Raises:
            OutputError: it cannot be written.
        """
        del storage_options  # of remote stores
        buffer = io.BytesIO()
        from evenslice.training.run_folder import fixed_options

        torch.save(checkpoint | {OPTIONS: fixed_options(self.config.model_dump(mode="json"))}, buffer)
        with staged_file(path, force=True) as beside:
            beside.write_bytes(buffer.getbuffer())

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint; only plain values and tensors are, whatever ``weights_only`` says.

        Raises:
            ConfigError: it is damaged, or one of a run with other options.
        """
        del weights_only
        path = Path(path)
        try:
            check_archive(path)
            found: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
            stated = found.get(OPTIONS, {})
            self._add_marks(found["state_dict"], path)
        except Exception as error:  # what is unpickled may raise anything
            raise unusable(path, error) from error
        from evenslice.training.run_folder import refuse_changed

        refuse_changed(stated, self.config, path)
        return found

    def _add_marks(self, state: dict[str, Any], path: Path) -> None:
        """Complete a state dict of version 0.2, which did not say where the network averages or is tied."""
        marks = {key: mark for key, mark in self.module.state_dict().items() if is_mark(key)}
        lacking = marks.keys() - state.keys()
        state.update({key: marks[key] for key in lacking})
        if lacking and self.module.trainer.is_global_zero:
            warnings.warn(
                f"{path}: was written by version 0.2, which did not note in the weights where the network averages over a "
                "window and its mirror, or is tied; it goes on as the configuration says",
                stacklevel=2,
            )


def unusable(path: Path, error: BaseException) -> ConfigError:
    """Return the error that says why a checkpoint cannot be used, and what to do."""
    cause = (
        "it holds more than tensors and plain values"
        if isinstance(error, pickle.UnpicklingError)
        else reason(error)
    )
    return ConfigError(f"{path}: cannot be resumed from ({cause}); delete it to train from the start again")


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
