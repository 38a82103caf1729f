"""The training itself: a Lightning trainer with its callbacks, and what comes out of it."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import warnings
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from evenslice._core import (
    ConfigError,
    EvensliceError,
    ModelError,
    OutputError,
    needs_extra,
    reason,
    staged_file,
)
from evenslice.inference import is_device_error, keep_depthwise_exact, out_of_memory, shortage
from evenslice.networks import keep_generators
from evenslice.neutralizing import load_network, save_network
from evenslice.results import MAIN_SCORES
from evenslice.training.callbacks import KeepBest, SaveLast, ShowProgress, Stopped
from evenslice.training.lightning_module import CropData, SynchronizedNorms, TrainingModule
from evenslice.training.monitor import AsymmetryMonitor, bias_columns
from evenslice.training.run_folder import fixed_options
from evenslice.training.run_network import reading_of
from evenslice.training.tasks import validation_score
from evenslice.training.training_files import CheckpointFiles, run_loggers, unusable
from evenslice.volumes import WindowGrid

with needs_extra("train", "training"):
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.utilities.warnings import PossibleUserWarning
    from lightning.pytorch import Callback, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from evenslice.training.callbacks import Interruption
    from evenslice.training.config import ModelConfig
    from evenslice.training.plan import Plan
    from evenslice.training.run_folder import RunFolder
    from evenslice.volumes import LabelledVolume

__all__ = ["fit", "fixed_windows"]

MONITORED = 8  # windows shown to the monitor
PRECISIONS: dict[torch.dtype, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",
    torch.float16: "16-mixed",
}

_VERBOSE = ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic")

_IGNORED: tuple[tuple[str, type[Warning]], ...] = (
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),  # Lightning's use of PyTorch
    (r"", PossibleUserWarning),  # Lightning's advice, such as to use more workers
    (
        r"Total length of `(DataLoader|CombinedLoader)` across ranks is zero",
        UserWarning,
    ),  # a run that has no step left
    # In float16, the first steps may be left out until the scale of the loss suits.
    (r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`", UserWarning),
    (r"Be aware that when using `ckpt_path`", UserWarning),  # a checkpoint of version 0.1 or 0.2
    (r"The ``noload`` loader strategy is deprecated", DeprecationWarning),  # MLflow's use of SQLAlchemy
)


def fixed_windows(
    parts: Sequence[LabelledVolume], model: ModelConfig, size: tuple[int, int], count: int
) -> Tensor:
    """Read the same windows each time, spread evenly over parts.

    Args:
        parts: the volumes to take windows from, in turn.
        model: number and distance of the slices of a window.
        size: in-plane size (y, x).
        count: the largest number of windows.

    Returns:
        Windows (n, slices, y, x) in 0..1.
    """
    grids = [WindowGrid(part.volume, part.scaling, model.slices, size, model.step) for part in parts]
    rounds = zip(*(zip(repeat(grid), grid.visits(), strict=False) for grid in grids), strict=False)
    chosen = islice(chain.from_iterable(rounds), count)
    return torch.from_numpy(np.stack([grid.read(*place) for grid, place in chosen]))


def fit(plan: Plan, run: RunFolder, *, interruption: Interruption, progress: bool | None) -> None:
    """Train a network, from the last checkpoint of its run if there is one, and write the resulting network.

    Args:
        plan: the plan of the run.
        run: its folder.
        interruption: ends the training after a step and its checkpoint.
        progress: show progress: True for a bar, False for nothing, None for a bar on a terminal and lines elsewhere.

    Raises:
        KeyboardInterrupt: the training was interrupted.
        ConfigError: it cannot resume from the checkpoint, or the device fails.
        ModelError: the loss is not finite, or the memory of the device has run out.
    """
    config, network, record = plan.config, plan.network, plan.record
    options, device = config.training, plan.machine.device
    convert_conv2d_weight_memory_format(network.train(), torch.channels_last)
    if device.type == "cpu":
        keep_depthwise_exact(network)
    ignored = config.data.ignore_label is not None
    module = TrainingModule(network, options, classes=config.data.classes, seed=config.seed, ignored=ignored)
    crops = CropData(config, plan.data.train, (record.mean, record.std), pin=device.type == "cuda")
    save = partial(
        save_network,
        record=record,
        source=plan.source,
        reading=reading_of(config),
        run=fixed_options(config.model_dump(mode="json")),
        force=True,
    )
    # All GPUs, whose generators are asked for without starting others; or the CPU.
    of_gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    generators = of_gpus if device.type == "cuda" else [device]
    with interruption.deferred(), _quiet(), keep_generators(generators):
        trainer = _make_trainer(plan, run, module, _callbacks(plan, run, save, interruption, progress))
        _run_trainer(trainer, module, crops, run.last if run.last.exists() else None)
        if trainer.is_global_zero:
            if options.keeps_best and run.best.exists():  # unless no validation had a score
                with staged_file(run.network) as beside:
                    shutil.copyfile(run.best, beside)
            else:
                save(network, run.network)


def _make_trainer(plan: Plan, run: RunFolder, module: TrainingModule, callbacks: list[Callback]) -> Trainer:
    config, machine = plan.config, plan.machine
    several = config.training.devices > 1 and machine.device.type == "cuda"
    validation = f"validation_{MAIN_SCORES[config.training.task]}"
    columns = ("loss", "learning_rate", "seconds", validation, *bias_columns(config.model.slices))
    return Trainer(
        accelerator=machine.device.type,
        devices=machine.devices,
        precision=PRECISIONS[machine.dtype],
        max_epochs=-1,  # the module ends the training; an interrupted epoch is two
        reload_dataloaders_every_n_epochs=1,  # each epoch has its own steps
        use_distributed_sampler=False,
        logger=run_loggers(config, run, columns),
        log_every_n_steps=1,
        callbacks=callbacks,
        # Lightning would resume a job requeued by SLURM in the middle of an epoch; ``resume`` does better.
        plugins=[
            CheckpointFiles(module, config),
            *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else ()),
            *([SynchronizedNorms()] if several else ()),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


def _callbacks(
    plan: Plan,
    run: RunFolder,
    save: Callable[[nn.Module, Path], None],
    interruption: Interruption,
    progress: bool | None,
) -> list[Callback]:
    """Return the callbacks of the trainer, in the order in which they are called; Lightning moves ``SaveLast`` to the end."""
    config, data, record = plan.config, plan.data, plan.record
    options = config.training
    monitor = best = None
    if options.monitor_every is not None:
        windows = fixed_windows(data.validation or data.train, config.model, options.crop, MONITORED)
        monitor = AsymmetryMonitor((windows - record.mean) / record.std, every=options.monitor_every)
    if data.validation:
        best = KeepBest(
            partial(validation_score, parts=data.validation, config=config),
            lambda network: save(network, run.best),
            options.patience,
            interruption,
            MAIN_SCORES[options.task],
            partial(_require_best, run, config.model.spec) if options.keeps_best else lambda: None,
        )
    shown = ShowProgress(f"train {run.path.name}", options.steps, show=progress, monitor=monitor, best=best)
    found = [interruption, shown, monitor, best, SaveLast(run.last, options.steps, interruption)]
    return [callback for callback in found if callback is not None]


def _require_best(run: RunFolder, spec: str) -> None:
    """Raise OutputError if the best network so far is missing or damaged, which training would go on without."""
    try:
        load_network(spec, str(run.best))
    except ModelError as error:
        raise OutputError(
            f"{run.best}: is lost ({str(error).removeprefix(f'{run.best}: ')}), and with it the best network so far; copy it "
            f"back, or remove {run.last} to train anew"
        ) from error


def _run_trainer(trainer: Trainer, module: TrainingModule, crops: CropData, checkpoint: Path | None) -> None:
    """Run a trainer, preserving a keyboard interrupt, at which Lightning would exit the process.

    Raises:
        KeyboardInterrupt: the training was interrupted.
        ConfigError: it cannot resume from the checkpoint, or the device fails.
        ModelError: the memory of the device has run out.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, crops, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
    except Stopped as error:
        raise KeyboardInterrupt from error
    except EvensliceError:
        raise
    except Exception as error:
        if out_of_memory(error):
            half = trainer.precision != PRECISIONS[torch.float32]
            raise ModelError(
                f"{shortage(error)} ({reason(error)}); lower training.batch or training.crop"
                + ("" if half else ", or set training.dtype: bfloat16")
            ) from error
        if is_device_error(error):
            raise ConfigError(
                f"training.accelerator: {trainer.strategy.root_device.type}: fails ({reason(error)}); set "
                "training.accelerator: cpu, or install a PyTorch for this device"
            ) from error
        if checkpoint is None or module.started:
            raise
        raise unusable(checkpoint, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning and the loggers, including warnings about their own internals."""
    logs = [logging.getLogger(name) for name in _VERBOSE]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message, category in _IGNORED:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
