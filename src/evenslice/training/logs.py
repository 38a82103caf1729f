"""Where the figures of a training run go: a CSV file always, TensorBoard and MLflow too where they are asked for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import needs_extra

with needs_extra("train", "logging how a network trains"):
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
    """Say whether this is the first of several processes that train together, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


def log_metrics(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Give figures to every logger of a trainer, under the number of optimizer steps done."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)


class CsvLog(Logger):
    """A Lightning logger that writes one CSV file, a row for each step at which something was logged.

    What is logged lies on disk at once. A run that is resumed at an earlier step goes on from there: the rows after it
    are dropped, and the file becomes what it would have been without the interruption.

    Args:
        path: the file; its folder is made.
        columns: what it has columns for beside ``step``; anything else is left out.

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
        self._columns = ["step", *columns]
        self._row: dict[str, Any] | None = None
        self._start = 0  # where the row at hand begins in the file

    @property
    def name(self) -> str:
        """The name of the log."""
        return "csv"

    @property
    def version(self) -> str:
        """A log has one version."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a run's options stand in its configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write figures to the row of a step, which is never before that of the last ones."""
        if self._row is None:
            self._begin(step or 0)
        elif self._row["step"] != step:
            self._start = self.path.stat().st_size
            self._row = {}
        self._row = {**(self._row or {}), "step": step, **metrics}
        with self.path.open("r+", newline="") as file:
            file.seek(self._start)
            file.truncate()
            self._writer(file).writerow(self._row)

    def _begin(self, step: int) -> None:
        """Write the file anew with the rows before a step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        with self.path.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)
        self._start = self.path.stat().st_size

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, extrasaction="ignore", lineterminator="\n")


def run_loggers(config: TrainConfig, run: RunFolder, columns: Sequence[str]) -> list[Logger]:
    """Return the loggers of a training run: the CSV file always, TensorBoard and MLflow where they are asked for.

    Args:
        config: of the run.
        run: its folder, where all of them write.
        columns: of the CSV file.

    Raises:
        MissingExtraError: the package of one of them is missing.
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
    """Return a logger to the run's own store; a resumed run goes on with the one that it began there."""
    with needs_extra("mlflow", "an MLflow log"):
        import alembic  # noqa: F401  # what the store is made with
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
