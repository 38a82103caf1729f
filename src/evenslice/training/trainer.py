"""Trains a segmenter of slice windows, from a configuration to a folder that holds all that came of it.

    result = train(load_config("train.yaml", TrainConfig), "run")
    result["dice"]["mean"]

An epoch is the steps from one validation to the next. At its end the network is validated and everything that training
depends on is saved, and what a step draws at random depends on the seed and the number of the step alone: a run that
was interrupted goes on from its last epoch's end as if nothing had happened.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import platform
import shutil
import signal
import threading
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from torch.nn.utils import convert_conv2d_weight_memory_format

from evenslice._core import ConfigError, json_text, needs_extra, staged_file, to_yaml
from evenslice.inference import choose_device, choose_dtype, evaluate, keep_depthwise_exact
from evenslice.networks import parse_specification
from evenslice.neutralizing import load_network, save_network
from evenslice.training.crops import CropData
from evenslice.training.data import open_data
from evenslice.training.lightning_module import KeepBest, SegmentationModule, kept_validation, output_channels
from evenslice.training.logs import is_first_process, run_loggers
from evenslice.training.monitor import AsymmetryMonitor, bias_columns
from evenslice.training.preflight import check_network
from evenslice.training.run_folder import RunFolder
from evenslice.volumes import WindowGrid, fingerprint

with needs_extra("train", "training"):
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.utilities.warnings import PossibleUserWarning
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from evenslice.networks import ModelSource
    from evenslice.neutralizing import Record
    from evenslice.training.config import ModelConfig, TrainConfig, TrainingConfig
    from evenslice.training.data import Data
    from evenslice.volumes import LabelledVolume

__all__ = ["fixed_windows", "train"]

MONITORED = 8  # windows
VALIDATION_SHARE = (
    0.1  # of the pixels that are trained on between two validations, but at least so many slices:
)
LEAST_VALIDATED = 8

_TALKATIVE = ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic")

_IGNORED: tuple[tuple[str, type[Warning]], ...] = (
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),  # Lightning's use of PyTorch
    (r"Checkpoint directory .* exists and is not empty", UserWarning),  # of a run that is resumed
    (r"", PossibleUserWarning),  # Lightning's advice, as to use more workers
    (r"The dirpath has changed from", UserWarning),  # of one that was moved; what is lost there is not used
    (r"The ``noload`` loader strategy is deprecated", DeprecationWarning),  # MLflow's use of SQLAlchemy
)

PACKAGES = ("evenslice", "torch", "lightning", "monai", "numpy", "timm", "segmentation-models-pytorch")


def train(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    command: str | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train a network, test it, and write everything to a folder.

    The data are opened and checked, the network built and tried, before anything is written. The folder then holds
    ``config.yaml``, ``log/metrics.csv``, ``checkpoints/``, ``network.safetensors`` and, at the end, ``result.json``;
    see ``RunFolder``. On several devices this is called in each of the processes that Lightning starts, or that torchrun
    or SLURM have started.

    Args:
        config: everything that the run depends on.
        out: the folder of the run.
        resume: go on with the run that the folder holds; where there is none, begin one. A finished one is left alone.
            On a CPU, the network comes out as that of an undisturbed run, bit for bit.
        command: what the user typed, for the result.
        progress: show a progress bar on standard error; by default where that is a terminal.

    Returns:
        What ``result.json`` holds: ``dice`` and ``iou`` (``mean`` and ``per_class``) and further scores on the test
        volumes, None where there are none; ``validation``, ``bias``, ``config``, ``data``, ``network``, ``record`` and
        the circumstances. In processes other than the first, nothing.

    Raises:
        OutputError: the folder holds a run already, or cannot be written.
        ConfigError: the options do not suit the data or the machine, or are not those of the run to resume.
        VolumeError: the data cannot be used.
        ModelError: the network cannot be built or used for this, or its loss is no longer finite.
        MissingExtraError: a package is missing.
    """
    run, first = RunFolder(Path(out).absolute()), is_first_process()
    began = first and run.has_begun(config, resume=resume)
    if began and run.result.exists():
        return run.read_result()
    _device(config.training)  # is it there?
    data = open_data(config.data, config.model, seed=config.seed)
    _check_validation(config, data)
    network, record, source = _build(config)
    described = _describe(data)
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
    network, _, _ = load_network(config.model.spec, str(run.network))
    scores = _scores(network, data.test, config)
    result = {
        **scores,
        **_summary(run.read_metrics(), config),
        "name": config.data.name,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "data": described,
        "network": source.to_dict(),
        "record": record.to_dict(),
        "command": command,
        "machine": _machine(config.training),
        "versions": _versions(),
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
    }
    with staged_file(run.result) as beside:
        beside.write_text(json_text(result), encoding="utf-8")
    return run.read_result()


def fixed_windows(
    parts: Sequence[LabelledVolume], model: ModelConfig, size: tuple[int, int], count: int
) -> Tensor:
    """Read windows that are spread evenly over parts, always the same ones.

    Args:
        parts: where to take them from, in turn.
        model: how many slices a window has, and how far apart they are.
        size: in-plane size (y, x).
        count: how many, at most.

    Returns:
        Windows (n, slices, y, x) in 0..1.
    """
    grids = [WindowGrid(part.volume, part.scaling, model.slices, size, model.step) for part in parts]
    rounds = zip(*(zip(repeat(grid), grid.visits(), strict=False) for grid in grids), strict=False)
    chosen = islice(chain.from_iterable(rounds), count)
    return torch.from_numpy(np.stack([grid.read(*place) for grid, place in chosen]))


def _check_validation(config: TrainConfig, data: Data) -> None:
    for name, asks in (("patience", config.training.patience), ("keep", config.training.keep == "best")):
        if asks and not data.validation:
            raise ConfigError(
                f"training.{name}: {getattr(config.training, name)}: there is nothing to validate on; give data.validation, "
                f"set data.validation_fraction above 0, or leave {name} out"
            )


def _build(config: TrainConfig) -> tuple[nn.Module, Record, ModelSource]:
    """Build the network and try it on a blank crop."""
    model, channels = config.model, output_channels(config.training.loss, config.data.classes)
    network, record, source = load_network(
        model.spec,
        model.weights,
        slices=model.slices,
        strategy=model.strategy,
        tie=model.tie,
        # A function of the user's has a number of classes of its own.
        classes=channels if parse_specification(model.spec).library else None,
        seed=config.seed,
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
    """Train the network, from the last checkpoint if there is one, until the run's network stands in its folder."""
    options = config.training
    convert_conv2d_weight_memory_format(network.train(), torch.channels_last)
    device = _device(options)
    if device.type == "cpu":
        keep_depthwise_exact(network)
    module = SegmentationModule(network, options, classes=config.data.classes, seed=config.seed)
    save = partial(save_network, record=record, source=source, force=True)
    callbacks: list[Callback] = [
        ModelCheckpoint(
            run.last.parent,
            filename=run.last.stem,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
    ]
    if options.monitor_every is not None:
        windows = fixed_windows(data.validation or data.train, config.model, options.crop, MONITORED)
        callbacks.append(AsymmetryMonitor((windows - record.mean) / record.std, every=options.monitor_every))
    if data.validation:
        score = partial(_validate, parts=data.validation, config=config)
        callbacks.append(KeepBest(score, lambda network: save(network, run.best), options.patience))
    columns = ("loss", "learning_rate", "seconds", "validation_dice", *bias_columns(config.model.slices))
    shows = Console(stderr=True).is_terminal if progress is None else progress
    if shows:
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    with _quiet(), torch.random.fork_rng(range(torch.cuda.device_count())):
        trainer = Trainer(
            accelerator=device.type,
            devices=options.devices,
            sync_batchnorm=options.devices > 1 and device.type == "cuda",
            precision="bf16-mixed" if _dtype(options) == torch.bfloat16 else "32-true",
            max_epochs=math.ceil(options.steps / options.validate_every),
            reload_dataloaders_every_n_epochs=1,  # each epoch has steps of its own
            use_distributed_sampler=False,
            logger=run_loggers(config, run, columns),
            log_every_n_steps=1,
            callbacks=callbacks,
            # Lightning would resume a job that SLURM starts again in the middle of an epoch; --resume does better.
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
            enable_progress_bar=shows,
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
    """Run a trainer; an interruption by the keyboard, at which Lightning ends the process, stays one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, crops, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


def _validate(network: nn.Module, *, parts: Sequence[LabelledVolume], config: TrainConfig) -> float:
    options = config.training
    trained = options.validate_every * options.batch * math.prod(options.crop)
    plane = max(math.prod(part.volume.shape[1:]) for part in parts)
    return evaluate(
        network,
        parts,
        classes=config.data.classes,
        step=config.model.step,
        surfaces=False,
        device=str(next(network.parameters()).device),
        dtype=options.dtype,
        most_slices=max(LEAST_VALIDATED, round(VALIDATION_SHARE * trained / plane)),
    ).mean_dice


def _scores(network: nn.Module, parts: Sequence[LabelledVolume], config: TrainConfig) -> dict[str, Any]:
    if not parts:
        return {"dice": None, "iou": None}
    return evaluate(
        network,
        parts,
        classes=config.data.classes,
        step=config.model.step,
        boundaries=config.data.boundaries,
        device=_device(config.training).type,
        dtype=config.training.dtype,
    ).to_dict()


def _device(options: TrainingConfig) -> torch.device:
    """Return the kind of device to train on.

    Raises:
        ConfigError: there is none, or not as many.
    """
    if ":" in options.accelerator:
        raise ConfigError(
            f"training.accelerator: {options.accelerator}: name the kind alone; CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
    try:
        device = choose_device({"gpu": "cuda"}.get(options.accelerator, options.accelerator))
    except ConfigError as error:
        raise ConfigError(f"training.accelerator: {error}; known: auto, cpu, gpu, cuda, mps") from error
    if device.type == "cuda" and torch.cuda.device_count() < options.devices:
        raise ConfigError(
            f"training.devices: {options.devices}: this machine has {torch.cuda.device_count()} GPUs; ask for no more"
        )
    return torch.device(device.type)


def _dtype(options: TrainingConfig) -> torch.dtype:
    return choose_dtype(options.dtype, _device(options))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning and the stores of logs from announcing what they do, and from warning of what is their own."""
    logs = [logging.getLogger(name) for name in _TALKATIVE]
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


def _summary(rows: Sequence[Mapping[str, float]], config: TrainConfig) -> dict[str, Any]:
    """Return what the log says of the run as a whole."""
    validated = [
        row for row in rows if row["step"] > 0 and not math.isnan(row.get("validation_dice", math.nan))
    ]
    kept = kept_validation(validated) if config.training.keeps_best else next(reversed(validated), None)
    columns = bias_columns(config.model.slices)
    measured = [{name: row[name] for name in columns} for row in rows if "directional_bias" in row]
    return {
        "validation": kept and {"step": int(kept["step"]), "dice": kept["validation_dice"]},
        "bias": measured[-1] if measured else None,
        "steps": int(rows[-1]["step"]),
        "seconds": max(row.get("seconds", 0) for row in rows),
    }


def _describe(data: Data) -> dict[str, list[dict[str, Any]]]:
    return {
        split: [
            {
                "name": part.name,
                "shape": list(part.volume.shape),
                "intensity": [part.scaling.low, part.scaling.high],
                "image": fingerprint(part.volume),
                "labels": fingerprint(part.labels),
            }
            for part in getattr(data, split)
        ]
        for split in ("train", "validation", "test")
    }


def _machine(options: TrainingConfig) -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "device": _device(options).type,
        "devices": options.devices,
        "dtype": str(_dtype(options)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
