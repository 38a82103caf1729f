"""Train a segmenter or a classifier of slice windows, from a configuration to the folder of a run.

    result = train("train.yaml", "run")
    result["dice"]["mean"]

An epoch is the steps to the next validation. At its end the network is validated and a complete checkpoint saved, and
so is one after the step in which a signal asked the run to end. The random numbers of a step depend only on the seed
and the number of the step: an interrupted run resumes from its last checkpoint and gives the same result.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import pickle
import platform
import shutil
import signal
import threading
import warnings
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from evenslice._core import (
    ConfigError,
    EvensliceError,
    ModelError,
    OutputError,
    VolumeError,
    load_config,
    local_path,
    needs_extra,
    package_versions,
    reason,
    spelled_in_configuration,
    staged_file,
    without_secrets,
)
from evenslice.inference import device_error
from evenslice.networks import keep_convolutions_exact, keep_generators, parse_specification
from evenslice.neutralizing import load_network, record_of, save_network
from evenslice.results import TASK_SCORES
from evenslice.training.config import TrainConfig
from evenslice.training.crops import CentredCrops, CropDataset
from evenslice.training.data import open_data
from evenslice.training.lightning_parts import (
    AsymmetryMonitor,
    CsvLog,
    Interruption,
    KeepBest,
    ShowProgress,
    Stopped,
    SynchronizedNorms,
    TrainingInterrupted,
    TrainingModule,
    asked_loggers,
    bias_columns,
    is_first_process,
    kept_validation,
)
from evenslice.training.plan import Plan, at_model, describe_plan, find_machine, resolve
from evenslice.training.run_folder import RunFolder, check_archive
from evenslice.training.tasks import final_scores, validation_score
from evenslice.volumes import WindowGrid

with needs_extra("train", "training"):
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.utilities.warnings import PossibleUserWarning
    from lightning.pytorch import Callback, Trainer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from evenslice.networks import ModelSource
    from evenslice.training.config import ModelConfig
    from evenslice.volumes import LabelledVolume

RESULT_SCORES = {
    "segmentation": ("dice", "iou"),
    "classification": ("accuracy", "balanced_accuracy", "macro_f1"),
}
"""The scores of each task that every ``result.json`` has, None without test volumes."""

PACKAGES = ("evenslice", "torch", "lightning", "monai", "numpy", "timm", "segmentation-models-pytorch")

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
    # of a run that has no step left
    (r"Total length of `(DataLoader|CombinedLoader)` across ranks is zero", UserWarning),
    # In float16, the first steps may be left out until the scale of the loss suits.
    (r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`", UserWarning),
    (r"Be aware that when using `ckpt_path`", UserWarning),  # a checkpoint of version 0.1 or 0.2
    (r"The ``noload`` loader strategy is deprecated", DeprecationWarning),  # MLflow's use of SQLAlchemy
)


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def train(
    config: TrainConfig | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    command: str | None = None,
    progress: bool | None = None,
    on_start: Callable[[tuple[str, ...]], None] | None = None,
) -> dict[str, Any]:
    """Train a network, test it, and write everything to a folder.

    Before anything is written, the data are opened and checked, and the network is built and tested. The folder gets
    ``config.yaml``, ``log/metrics.csv``, ``checkpoints/``, ``network.safetensors`` and, at the end, ``result.json``;
    see ``RunFolder``. On several devices this function runs in each process that Lightning, torchrun or SLURM starts.

    Args:
        config: the configuration of the run, a YAML file, or a dict with the options of one; the paths in a dict are
            relative to the working directory.
        out: the folder of the run.
        resume: continue the run in the folder, or start one if there is none; a finished run is not changed, and its
            result returned. On a CPU, the network is the same as after an uninterrupted run, bit for bit.
        command: the command line, to be recorded in the result.
        progress: show progress on standard error: True for a bar, False for nothing; by default a bar on a terminal,
            and lines elsewhere.
        on_start: called once before the first step, in the first process, with lines on the network, slices, scaling,
            data and precision chosen; or with the line that the run is finished.

    Returns:
        The content of ``result.json``; empty in processes other than the first. Test scores are named as by
        ``evaluate``: ``dice``, ``iou``, ``hd95``, ``surface_dice``, ``confusion`` and so on, or, for a
        classification, ``accuracy``, ``balanced_accuracy``, ``macro_f1`` and ``confusion``; without test volumes, the
        main ones are None and the others absent. ``stress`` has the cost of disturbed slices, None if not measured.
        ``validation`` has the ``step`` and the main score of the kept network, None without validation; ``bias`` the
        figures of ``AsymmetryMonitor`` at that step, None if it did not measure there. ``seconds`` is the time spent
        training in ``steps``; ``data`` has the parts of each split; ``config``, ``machine``, ``versions``,
        ``network``, ``record``, ``command`` and ``created`` say how the run came about.

    Raises:
        OutputError: the folder already holds a run, or cannot be written.
        ConfigError: the options do not fit the data or the machine, or differ from the options of the run to resume.
        VolumeError: the data cannot be used.
        ModelError: the network cannot be built or trained, or the loss is not finite; or the configuration names a
            function of an installed package.
        MissingExtraError: a package is missing.
        KeyboardInterrupt: SIGINT or SIGTERM arrived in the main thread. Training finishes its step or validation, and
            writes a checkpoint first; a second signal ends it at once.

    Example: two steps on noise, with a network made for tests.
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> folder = Path(tempfile.mkdtemp())
        >>> image = np.random.default_rng(0).random((12, 32, 32))
        >>> np.save(folder / "image.npy", image)
        >>> np.save(folder / "labels.npy", (image > 0.5).astype(np.uint8))
        >>> files = {"image": str(folder / "image.npy"), "labels": str(folder / "labels.npy")}
        >>> data = {"train": [{**files, "slices": [0, 8]}], "test": [{**files, "slices": [9, 12]}]}
        >>> config = {
        ...     "data": data,
        ...     "model": {"spec": "smp:Unet/tu-test_resnet", "weights": "none"},
        ...     "training": {"steps": 2, "batch": 2, "crop": [32, 32], "stress": False},
        ... }
        >>> result = train(config, folder / "run", progress=False)
        >>> 0 <= result["dice"]["mean"] <= 1, (folder / "run" / "network.safetensors").exists()
        (True, True)
    """
    config = load_config(config, TrainConfig)
    config = config.model_copy(update={"data": config.data.with_root()})
    with at_model():
        parse_specification(config.model.spec, stated_in_file=True)
    tell = on_start or (lambda _: None)
    run, first = RunFolder(local_path(out).absolute()), is_first_process()
    interrupts = Interruption(run.last, config.training.steps)
    if first and resume and run.result.exists() and run.has_begun(config, resume=True):
        with suppress(OutputError), run.lock():  # the folder need not be writable
            run.remove_leftovers()
        result = _finished(config, run)
        tell((f"note: the run in {run.path} is finished; nothing is trained or tested again",))
        return result
    with run.lock() if first else nullcontext(), interrupts as interruption:
        try:
            began = first and run.has_begun(config, resume=resume)
            if first:
                run.remove_leftovers()
            plan = resolve(config)
            if first:
                run.begin(plan.data.describe(), config, again=began)
                tell(describe_plan(plan))
            if not run.network.exists():
                fit(plan, run, interruption=interruption, progress=progress)
            interruption.reached = "its test"
            if not first:
                return {}  # the first process alone has one
            return _tested(plan, run, run.read_metrics(), command, progress)
        except KeyboardInterrupt as error:
            number = interruption.signal or signal.SIGINT
            raise TrainingInterrupted(number, interruption.reached, told=not first) from error


def _finished(config: TrainConfig, run: RunFolder) -> dict[str, Any]:
    """Return the result of a finished run, after a check that it is one of the configuration and its data as they are now.

    Raises:
        ConfigError: the data have changed.
    """
    with suppress(VolumeError):  # the files are gone, but the results on them remain valid
        if config.data.fingerprints() != run.tested_data():
            raise ConfigError(
                f"data: the files are not those on which the run in {run.path} was trained and tested; restore them, or "
                "start a new run in another folder"
            )
    return run.read_result()


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
    config, network, device = plan.config, plan.network, plan.machine.device
    convert_conv2d_weight_memory_format(network.train(), torch.channels_last)
    if device.type == "cpu":
        keep_convolutions_exact(network)
    kind = CentredCrops if config.training.task == "classification" else CropDataset
    crops = kind(
        plan.data.train,
        slices=config.model.slices,
        step=config.model.step,
        crop=config.training.crop,
        length=config.training.steps * config.training.batch,
        foreground=config.training.foreground,
        augmentation=config.augmentation,
        scaling=(plan.record.mean, plan.record.std),
        seed=config.seed,
    )
    module = TrainingModule(network, config, crops)
    # All GPUs, whose generators are asked for without starting others; or the CPU.
    of_gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    generators = of_gpus if device.type == "cuda" else [device]
    with interruption.deferred(), _quiet(), keep_generators(generators):
        trainer = _make_trainer(plan, run, interruption, progress)
        _run_trainer(trainer, module, run.last if run.last.exists() else None)
        if trainer.is_global_zero:
            if config.training.keeps_best and run.best.exists():  # unless no validation had a score
                with staged_file(run.network) as beside:
                    shutil.copyfile(run.best, beside)
            else:
                _save(plan, network, run.network)


def _save(plan: Plan, network: nn.Module, path: Path) -> None:
    save_network(
        network,
        path,
        record=plan.record,
        source=plan.source,
        reading=plan.config.reading,
        run=plan.config.option_hashes(),
        force=True,
    )


def _make_trainer(plan: Plan, run: RunFolder, interruption: Interruption, progress: bool | None) -> Trainer:
    config, machine = plan.config, plan.machine
    several = config.training.devices > 1 and machine.device.type == "cuda"
    validation = f"validation_{TASK_SCORES[config.training.task][0]}"
    columns = ("loss", "learning_rate", "seconds", validation, *bias_columns(config.model.slices))
    log = CsvLog(run.metrics, columns)
    return Trainer(
        accelerator=machine.device.type,
        devices=machine.devices,
        precision=PRECISIONS[machine.dtype],
        max_epochs=-1,  # the module ends the training; an interrupted epoch is two
        reload_dataloaders_every_n_epochs=1,  # each epoch has its own steps
        use_distributed_sampler=False,
        logger=[log, *asked_loggers(config, run)],
        log_every_n_steps=1,
        callbacks=[*_callbacks(plan, run, log, progress), interruption],
        # Lightning would resume a job requeued by SLURM in the middle of an epoch; ``resume`` does better.
        plugins=[
            *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else ()),
            *([SynchronizedNorms()] if several else ()),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


def _callbacks(plan: Plan, run: RunFolder, log: CsvLog, progress: bool | None) -> Iterator[Callback]:
    """Yield the callbacks of the trainer but ``Interruption``, in the order in which they are called."""
    config, data, record = plan.config, plan.data, plan.record
    options, score = config.training, TASK_SCORES[config.training.task][0]
    yield ShowProgress(f"train {run.path.name}", options.steps, show=progress, log=log, score=score)
    if options.monitor_every is not None:
        windows = fixed_windows(data.validation or data.train, config.model, options.crop, MONITORED)
        yield AsymmetryMonitor((windows - record.mean) / record.std, every=options.monitor_every)
    if data.validation:
        yield KeepBest(
            partial(validation_score, parts=data.validation, config=config),
            lambda network: _save(plan, network, run.best),
            run.best if options.keeps_best else None,
            options.patience,
            log,
            f"validation_{score}",
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


def _run_trainer(trainer: Trainer, module: TrainingModule, checkpoint: Path | None) -> None:
    """Run a trainer, preserving a keyboard interrupt, at which Lightning would exit the process.

    Raises:
        KeyboardInterrupt: the training was interrupted.
        ConfigError: it cannot resume from the checkpoint, or the device fails.
        ModelError: the memory of the device has run out.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        if checkpoint is not None:
            check_archive(checkpoint)
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
    except Stopped as error:
        raise KeyboardInterrupt from error
    except EvensliceError:
        raise
    except Exception as error:
        half = trainer.precision != PRECISIONS[torch.float32]
        advice = "lower training.batch or training.crop" + (
            "" if half else ", or set training.dtype: bfloat16"
        )
        refusal = device_error(error, trainer.strategy.root_device, advice=advice)
        if refusal is not None:
            raise type(refusal)(refusal.render(_spelled)) from error
        if checkpoint is None or module.started:
            raise
        raise _unusable(checkpoint, error) from error


def _spelled(name: str, value: Any) -> str:
    """Return an option of ``device_error`` as a configuration has it."""
    return spelled_in_configuration(f"training.{'accelerator' if name == 'device' else name}", value)


def _unusable(path: Path, error: BaseException) -> ConfigError:
    """Return the error that says why a checkpoint cannot be used, and what to do."""
    cause = (
        "it holds more than tensors and plain values"
        if isinstance(error, pickle.UnpicklingError)
        else reason(error)
    )
    return ConfigError(f"{path}: cannot be resumed from ({cause}); delete it to train from the start again")


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


def _tested(
    plan: Plan, run: RunFolder, log: Sequence[Mapping[str, float]], command: str | None, progress: bool | None
) -> dict[str, Any]:
    """Test the network of a run, as it is in its file, and write the result of the run.

    Raises:
        ModelError: the file of the network is damaged.
    """
    config, machine, tested = plan.config, plan.machine, plan.data.test
    network = load_network(config.model.spec, str(run.network)).model
    scores = {**dict.fromkeys(RESULT_SCORES[config.training.task]), "stress": None}
    if tested:
        scores = final_scores(network, tested, config, device=machine.device.type, progress=progress)
    run.finish(
        {
            **scores,
            **_summarize_log(log, config),
            "name": config.data.name,
            "seed": config.seed,
            "config": without_secrets(config.model_dump(mode="json")),
            "data": plan.data.describe(),
            "machine": {
                "platform": platform.platform(),
                "device": machine.device.type,
                "devices": config.training.devices,
                "dtype": str(machine.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
            },
            "versions": package_versions(PACKAGES),
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            "network": plan.source.to_dict(),
            "record": plan.record.to_dict(),
            "command": command,
        }
    )
    return run.read_result()


def _summarize_log(rows: Sequence[Mapping[str, float]], config: TrainConfig) -> dict[str, Any]:
    score = TASK_SCORES[config.training.task][0]
    column = f"validation_{score}"
    validated = [row for row in rows if row["step"] > 0 and not math.isnan(row.get(column, math.nan))]
    kept = (
        kept_validation(validated, column) if config.training.keeps_best else next(reversed(validated), None)
    )
    columns = bias_columns(config.model.slices)
    network = kept if config.training.keeps_best and kept else rows[-1]
    bias = {name: network[name] for name in columns} if "directional_bias" in network else None
    return {
        "validation": kept and {"step": int(kept["step"]), score: kept[column]},
        "bias": bias,
        "steps": int(rows[-1]["step"]),
        "seconds": max(row.get("seconds", 0) for row in rows),
    }


def retest(
    network: nn.Module,
    source: ModelSource,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    trained: RunFolder,
    progress: bool | None = False,
) -> dict[str, Any]:
    """Test a network that was changed after its training, and write everything to a folder.

    The folder gets the files of ``train`` but its log and checkpoints: ``config.yaml``, ``data.json``,
    ``network.safetensors`` and ``result.json``, with 0 as ``steps`` and ``seconds``. A finished run is not changed.

    Args:
        network: the network, with the record that ``neutralize`` or ``symmetrize`` left on it.
        source: what it was built from.
        config: the configuration that describes the network as it is now, with its data.
        out: the folder.
        trained: the run that trained the network.
        progress: show the progress of the test: True for a bar, False for nothing, None for a bar on a terminal and
            lines elsewhere.

    Returns:
        The content of ``result.json``.

    Raises:
        OutputError: another process works in the folder, or it cannot be written.
        ConfigError: the options do not fit the data or the machine, or differ from those of the run in the folder; or
            the data are not those that the network was trained on.
        VolumeError: the data cannot be used.
        ModelError: the network has no record.

    Example: a trained network, made fair afterwards.
        >>> from evenslice.neutralizing import load_network, symmetrize
        >>> from evenslice.training import RunFolder, TrainConfig, retest
        >>> def test_symmetrized(config: TrainConfig, base: RunFolder, out: str) -> float | None:
        ...     model, _, source = load_network(config.model.spec, str(base.network))
        ...     return retest(symmetrize(model), source, config, out, trained=base)["dice"]["mean"]
    """
    run, record = RunFolder(Path(out).absolute()), record_of(network)
    if record is None:
        raise ModelError("the network has no record; load it with load_network, or call neutralize on it")
    with run.lock():
        if run.has_begun(config, resume=True) and run.result.exists():
            return run.read_result()
        run.remove_leftovers()
        data = open_data(config)
        trained.check_data(data.describe())
        run.begin(data.describe(), config)
        plan = Plan(config, find_machine(config.training), data, network, record, source)
        _save(plan, network, run.network)
        return _tested(plan, run, [{"step": 0.0, "seconds": 0.0}], None, progress)
