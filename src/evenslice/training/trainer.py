"""Train a segmenter of slice windows, from a configuration to the folder of a run.

    result = train("train.yaml", "run")
    result["dice"]["mean"]

An epoch is the steps from one validation to the next. At its end the network is validated and a complete checkpoint
saved, and the random numbers of a step depend only on the seed and the number of the step: an interrupted run resumes
from the end of its last epoch and gives the same result.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import threading
import warnings
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from torch.nn.utils import convert_conv2d_weight_memory_format

from evenslice._core import (
    EvensliceError,
    OutputError,
    as_config,
    json_text,
    needs_extra,
    staged_file,
    to_yaml,
)
from evenslice.inference import evaluate_parts, keep_depthwise_exact
from evenslice.networks import check_stated_in_file, parse_specification
from evenslice.neutralizing import load_network, save_network
from evenslice.training.checkpoints import CheckpointFiles, SaveLast, unusable
from evenslice.training.config import TrainConfig
from evenslice.training.crop_batches import CropData
from evenslice.training.data import open_data
from evenslice.training.lightning_module import KeepBest, SegmentationModule, output_channels
from evenslice.training.logs import is_first_process, run_loggers
from evenslice.training.monitor import AsymmetryMonitor, bias_columns
from evenslice.training.preflight import check_network, check_validation, find_device, find_dtype
from evenslice.training.result import collect_result, describe_data
from evenslice.training.run_folder import RunFolder
from evenslice.volumes import WindowGrid

with needs_extra("train", "training"):
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.utilities.warnings import PossibleUserWarning
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import RichProgressBar

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from torch import Tensor, nn

    from evenslice.networks import ModelSource
    from evenslice.neutralizing import Record
    from evenslice.training.config import ModelConfig
    from evenslice.training.data import Data
    from evenslice.training.documents import TrainResult
    from evenslice.volumes import LabelledVolume

__all__ = ["fixed_windows", "train"]

MONITORED = 8  # windows shown to the monitor
VALIDATION_FRACTION = 0.1  # of the pixels trained on between two validations
FEWEST_VALIDATED = 8  # slices

_VERBOSE = ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic")

_IGNORED: tuple[tuple[str, type[Warning]], ...] = (
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),  # Lightning's use of PyTorch
    (r"", PossibleUserWarning),  # Lightning's advice, such as to use more workers
    (r"Be aware that when using `ckpt_path`", UserWarning),  # a checkpoint of version 0.1 or 0.2
    (r"The ``noload`` loader strategy is deprecated", DeprecationWarning),  # MLflow's use of SQLAlchemy
)


def train(
    config: TrainConfig | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    command: str | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Train a network, test it, and write everything to a folder.

    Before anything is written, the data are opened and checked, and the network is built and tested. The folder gets
    ``config.yaml``, ``log/metrics.csv``, ``checkpoints/``, ``network.safetensors`` and, at the end, ``result.json``;
    see ``RunFolder``. On several devices this function runs in each process that Lightning, torchrun or SLURM starts.

    Args:
        config: the configuration of the run, a YAML file, or a dict with the options of one; the paths in a dict are
            relative to the working directory.
        out: the folder of the run.
        resume: continue the run in the folder, or start one if there is none; a finished run is not changed. On a CPU,
            the resulting network is identical to that of an uninterrupted run, bit for bit.
        command: the command line, to be recorded in the result.
        progress: show a progress bar on standard error; by default if that is a terminal.

    Returns:
        The content of ``result.json``, such as ``dice`` and ``iou`` on the test volumes; empty in processes other than
        the first.

    Raises:
        OutputError: the folder already holds a run, or cannot be written.
        ConfigError: the options do not fit the data or the machine, or differ from those of the run to resume.
        VolumeError: the data cannot be used.
        ModelError: the network cannot be built or trained, or the loss is not finite; or the configuration names a
            function of an installed package.
        MissingExtraError: a package is missing.
    """
    config = as_config(config, TrainConfig)
    check_stated_in_file(config.model.spec)
    run, first = RunFolder(Path(out).absolute()), is_first_process()
    if first and resume and run.result.exists() and run.has_begun(config, resume=True):
        with suppress(OutputError), run.lock():  # the folder need not be writable
            run.remove_leftovers()
        return run.read_result()
    with run.lock() if first else nullcontext():
        return _train(config, run, first=first, resume=resume, command=command, progress=progress)


def _train(
    config: TrainConfig,
    run: RunFolder,
    *,
    first: bool,
    resume: bool,
    command: str | None,
    progress: bool | None,
) -> TrainResult:
    began = first and run.has_begun(config, resume=resume)
    if began and run.result.exists():
        return run.read_result()
    if first:
        run.remove_leftovers()
    find_device(config.training)  # raises if it is missing
    data = open_data(config.data, config.model, seed=config.seed)
    check_validation(config, data)
    network, record, source = _build(config)
    described = describe_data(data)
    if began:
        run.check_data(described)
    elif first:
        for path, text in ((run.data, json_text(described)), (run.config, to_yaml(config))):
            with staged_file(path, force=True) as beside:
                beside.write_text(text, encoding="utf-8")
    if not run.network.exists():
        _fit(network, record, source, data, config, run, progress)
    if not first:
        return {}
    network = load_network(config.model.spec, str(run.network)).model
    result = {
        **collect_result(network, data, config, run.read_metrics()),
        "network": source.to_dict(),
        "record": record.to_dict(),
        "command": command,
    }
    with staged_file(run.result) as beside:
        beside.write_text(json_text(result), encoding="utf-8")
    return run.read_result()


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


def _build(config: TrainConfig) -> tuple[nn.Module, Record, ModelSource]:
    """Build the network and test it on a blank crop."""
    model, channels = config.model, output_channels(config.training.loss, config.data.classes)
    network, record, source = load_network(
        model.spec,
        model.weights,
        slices=model.slices,
        strategy=model.strategy,
        tie=model.tie,
        # An imported function determines the number of classes itself.
        classes=channels if parse_specification(model.spec).library else None,
        seed=config.seed,
        symmetrize=model.symmetrize,
    )
    check_network(network, config, channels)
    return network, record, source


def _fit(
    network: nn.Module,
    record: Record,
    source: ModelSource,
    data: Data,
    config: TrainConfig,
    run: RunFolder,
    progress: bool | None,
) -> None:
    """Train the network, from the last checkpoint if there is one, and write the resulting network."""
    options = config.training
    convert_conv2d_weight_memory_format(network.train(), torch.channels_last)
    device = find_device(options)
    if device.type == "cpu":
        keep_depthwise_exact(network)
    module = SegmentationModule(network, options, classes=config.data.classes, seed=config.seed)
    save = partial(save_network, record=record, source=source, force=True)
    callbacks: list[Callback] = [SaveLast(run.last)]
    if options.monitor_every is not None:
        windows = fixed_windows(data.validation or data.train, config.model, options.crop, MONITORED)
        callbacks.append(AsymmetryMonitor((windows - record.mean) / record.std, every=options.monitor_every))
    if data.validation:
        score = partial(_validate, parts=data.validation, config=config)
        callbacks.append(KeepBest(score, lambda network: save(network, run.best), options.patience))
    columns = ("loss", "learning_rate", "seconds", "validation_dice", *bias_columns(config.model.slices))
    show = Console(stderr=True).is_terminal if progress is None else progress
    if show:
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    with _quiet(), torch.random.fork_rng(range(torch.cuda.device_count())):
        trainer = Trainer(
            accelerator=device.type,
            devices=options.devices,
            sync_batchnorm=options.devices > 1 and device.type == "cuda",
            precision="bf16-mixed" if find_dtype(options) == torch.bfloat16 else "32-true",
            max_epochs=math.ceil(options.steps / options.validate_every),
            reload_dataloaders_every_n_epochs=1,  # each epoch has its own steps
            use_distributed_sampler=False,
            logger=run_loggers(config, run, columns),
            log_every_n_steps=1,
            callbacks=callbacks,
            # Lightning would resume a job requeued by SLURM in the middle of an epoch; ``resume`` does better.
            plugins=[
                CheckpointFiles(module),
                *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else ()),
            ],
            enable_progress_bar=show,
            enable_model_summary=False,
            default_root_dir=run.path,
        )
        crops = CropData(config, data, (record.mean, record.std))
        _run_trainer(trainer, module, crops, run.last if run.last.exists() else None)
    if trainer.is_global_zero:
        if options.keeps_best and run.best.exists():
            with staged_file(run.network) as beside:
                shutil.copyfile(run.best, beside)
        else:
            save(network, run.network)


def _run_trainer(
    trainer: Trainer, module: SegmentationModule, crops: CropData, checkpoint: Path | None
) -> None:
    """Run a trainer, preserving a keyboard interrupt, at which Lightning would exit the process.

    Raises:
        ConfigError: it cannot resume from the checkpoint.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, crops, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
    except (EvensliceError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if checkpoint is None or module.started:
            raise
        raise unusable(checkpoint, error) from error


def _validate(network: nn.Module, *, parts: Sequence[LabelledVolume], config: TrainConfig) -> float:
    options = config.training
    trained = options.validate_every * options.batch * math.prod(options.crop)
    plane = max(math.prod(part.volume.shape[1:]) for part in parts)
    return evaluate_parts(
        network,
        parts,
        classes=config.data.classes,
        step=config.model.step,
        surfaces=False,
        device=str(next(network.parameters()).device),
        dtype=options.dtype,
        most_slices=max(FEWEST_VALIDATED, round(VALIDATION_FRACTION * trained / plane)),
    ).mean_dice


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
