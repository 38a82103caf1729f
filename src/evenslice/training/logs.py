"""Logs of a training run: always a CSV file, optionally TensorBoard and MLflow."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, needs_extra, read_log, reading, reporting_write_errors, staged_file

with needs_extra("train", "logging of training"):
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from lightning.pytorch import Trainer

    from evenslice.training.config import TrainConfig
    from evenslice.training.run_folder import RunFolder

__all__ = ["CsvLog", "is_first_process", "log_metrics", "run_loggers"]


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
    becomes the same as without the interruption; so is a row that was cut short.

    Args:
        path: the file; its folder is created.
        columns: the columns besides ``step``; other values are not written.

    Attributes:
        resumed_at: the step at which a run was resumed; the row of this step is kept and added to.
        latest: the step of the last row; None before the first.

    Example:
        >>> import tempfile
        >>> log = CsvLog(Path(tempfile.mkdtemp()) / "metrics.csv", ["loss", "dice"])
        >>> for step, values in (10, {"loss": 0.5}), (10, {"dice": 0.25}), (20, {"loss": 0.125}):
        ...     log.log_metrics(values, step)
        >>> log.path.read_text().split()
        ['step,loss,dice', '10,0.5,0.25', '20,0.125,']
        >>> CsvLog(log.path, ["loss", "dice"]).log_metrics({"loss": 0.75}, 20)
        >>> log.path.read_text().split()
        ['step,loss,dice', '10,0.5,0.25', '20,0.75,']
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self.resumed_at: int | None = None
        self.latest: int | None = None
        self._columns = ["step", *columns]
        self._row: dict[str, Any] | None = None
        self._start = 0  # where the current row begins in the file

    @property
    def name(self) -> str:
        """The name of the log."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: a log has only one version."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration of a run holds its options."""

    def resume(self, step: int, latest: int | None, remedy: str) -> None:
        """Check that the file holds the rows of a run that is resumed, which its result is made from.

        Args:
            step: the step at which it is resumed.
            latest: the step of the last row then; None if there was none, or if that is unknown.
            remedy: what to do if the file is damaged or lacks that row.

        Raises:
            ConfigError: it does.
        """
        self.resumed_at, self.latest = step, latest
        if not self.path.exists():
            if latest is None:
                return
            raise ConfigError(f"{self.path}: is missing; {remedy}")
        with reading(self.path, "a run", remedy):
            steps = {int(row["step"]) for row in read_log(self.path)}
            if latest is not None and latest not in steps:
                raise ValueError(f"it has no row of step {latest}")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values to the row of a step, which must not be before the last row."""
        if self._row is None:
            self._begin(step or 0)
        elif self._row["step"] != step:
            self._start = self.path.stat().st_size
            self._row = {}
        self._row = {**(self._row or {}), "step": step, **metrics}
        self.latest = step
        text = io.StringIO(newline="")
        self._writer(text).writerow(self._row)
        with reporting_write_errors(self.path), self.path.open("r+b") as file:
            file.seek(self._start)
            file.write(text.getvalue().encode())
            file.truncate()

    def _begin(self, step: int) -> None:
        """Rewrite the file with the rows before a step."""
        remedy = "restore it, or delete it to go on without its rows"
        with reading(self.path, "a run", remedy):
            rows = read_log(self.path) if step > 0 and self.path.exists() else []
        with (
            staged_file(self.path, force=True) as beside,
            beside.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) < step)
        self._start = self.path.stat().st_size
        if step == self.resumed_at:
            self._row = next((dict(row) for row in rows if int(row["step"]) == step), None)

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
        loggers.append(_tensorboard_logger(run))
    if config.training.mlflow:
        loggers.append(_mlflow_logger(config, run))
    return loggers


def _tensorboard_logger(run: RunFolder) -> Logger:
    with needs_extra("tensorboard", "a TensorBoard log"):
        import tensorboard  # noqa: F401  # Lightning names its extra, not ours
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run.log, name="tensorboard", version="")


def _mlflow_logger(config: TrainConfig, run: RunFolder) -> Logger:
    """Return a logger to the store of the run; a resumed run continues its record there."""
    with needs_extra("mlflow", "an MLflow log"):
        import alembic  # noqa: F401  # required by the store
        import sqlalchemy  # noqa: F401
        from mlflow import MlflowClient
    from lightning.pytorch.loggers import MLFlowLogger

    run.log.mkdir(parents=True, exist_ok=True)
    store, name = f"sqlite:///{run.log / 'mlflow.db'}", config.data.name
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
