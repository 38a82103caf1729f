"""Train a segmenter or a classifier of slice windows, from a configuration to the folder of a run.

    result = train("train.yaml", "run")
    result["dice"]["mean"]

An epoch is the steps to the next validation. At its end the network is validated and a complete checkpoint saved, and
so is one after the step in which a signal asked the run to end. The random numbers of a step depend only on the seed
and the number of the step: an interrupted run resumes from its last checkpoint and gives the same result.
"""

from __future__ import annotations

import datetime as dt
import math
import platform
import signal
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evenslice._core import (
    ConfigError,
    ModelError,
    OutputError,
    VolumeError,
    as_config,
    check_callable,
    local_path,
    package_versions,
    without_secrets,
)
from evenslice.networks import check_stated_in_file, with_gradients
from evenslice.neutralizing import load_network, record_of, save_network
from evenslice.results import MAIN_SCORES
from evenslice.training.callbacks import Interruption, TrainingInterrupted, kept_validation
from evenslice.training.config import TrainConfig
from evenslice.training.data import fingerprints, open_data
from evenslice.training.fitting import fit
from evenslice.training.monitor import bias_columns
from evenslice.training.plan import Plan, at_model, describe_plan, find_machine, resolve
from evenslice.training.run_folder import RESULT_SCORES, RunFolder, data_of_result, fixed_options
from evenslice.training.run_network import reading_of
from evenslice.training.tasks import final_scores
from evenslice.training.training_files import is_first_process
from evenslice.volumes import fingerprint

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from evenslice.networks import ModelSource
    from evenslice.training.data import Data
    from evenslice.training.run_folder import DataPart, TrainResult

__all__ = ["retest", "train"]

PACKAGES = ("evenslice", "torch", "lightning", "monai", "numpy", "timm", "segmentation-models-pytorch")


@with_gradients
def train(
    config: TrainConfig | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    command: str | None = None,
    progress: bool | None = None,
    on_start: Callable[[tuple[str, ...]], None] | None = None,
) -> TrainResult:
    """Train a network, test it, and write everything to a folder.

    Before anything is written, the data are opened and checked, and the network is built and tested. The folder gets
    ``config.yaml``, ``log/metrics.csv``, ``checkpoints/``, ``network.safetensors`` and, at the end, ``result.json``;
    see ``RunFolder``. On several devices this function runs in each process that Lightning, torchrun or SLURM starts.

    Args:
        config: the configuration of the run, a YAML file, or a dict with the options of one; the paths in a dict are
            relative to the working directory.
        out: the folder of the run.
        resume: continue the run in the folder, or start one if there is none; a finished run is not changed, and its
            result returned. On a CPU, the resulting network is identical to that of an uninterrupted run, bit for bit.
        command: the command line, to be recorded in the result.
        progress: show progress on standard error: True for a bar, False for nothing; by default a bar on a terminal,
            and lines elsewhere.
        on_start: called once before the first step, in the first process, with lines that say what was chosen: network,
            slices, scaling, data, precision; or that the run is finished.

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
        KeyboardInterrupt: SIGINT or SIGTERM arrived in the main thread. Training finishes its step and writes a
            checkpoint first; a second signal ends it at once.

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
    check_callable("on_start", on_start)
    config = as_config(config, TrainConfig)
    config = config.model_copy(update={"data": config.data.with_root()})
    with at_model():
        check_stated_in_file(config.model.spec)
    tell = on_start or (lambda _: None)
    run, first = RunFolder(local_path(out).absolute()), is_first_process()
    if first and resume and run.result.exists() and run.has_begun(config, resume=True):
        with suppress(OutputError), run.lock():  # the folder need not be writable
            run.remove_leftovers()
        result = _finished(config, run)
        tell((f"note: the run in {run.path} is finished; nothing is trained or tested again",))
        return result
    with run.lock() if first else nullcontext(), Interruption() as interruption:
        try:
            began = first and run.has_begun(config, resume=resume)
            if first:
                run.remove_leftovers()
            plan = resolve(config, find_machine(config.training))
            if first:
                run.begin(_describe_data(plan.data), config, again=began)
                tell(describe_plan(plan))
            if not run.network.exists():
                fit(plan, run, interruption=interruption, progress=progress)
            interruption.reached = "its test"
            if not first:
                return {}  # type: ignore[typeddict-item]  # the first process alone has one
            return _tested(plan, run, run.read_metrics(), command, progress)
        except KeyboardInterrupt as error:
            raise TrainingInterrupted(interruption.signal or signal.SIGINT, interruption.reached) from error


def _finished(config: TrainConfig, run: RunFolder) -> TrainResult:
    """Return the result of a finished run, after a check that it is one of the configuration and its data as they are now.

    Raises:
        ConfigError: another test was asked for, or the data have changed.
    """
    result = run.read_result()
    run.check_test(config)
    with suppress(VolumeError):  # the files are gone, but the results on them remain valid
        if fingerprints(config.data) != data_of_result(result):
            raise ConfigError(
                f"data: the files are not those on which the run in {run.path} was trained and tested; restore them, or "
                "start a new run in another folder"
            )
    return result


def _tested(
    plan: Plan, run: RunFolder, log: Sequence[Mapping[str, float]], command: str | None, progress: bool | None
) -> TrainResult:
    """Test the network of a run, as it is in its file, and write the result of the run.

    Raises:
        ModelError: the file of the network is damaged.
    """
    try:
        network = load_network(plan.config.model.spec, str(run.network)).model
    except ModelError as error:
        raise ModelError(
            f"{error}; restore it, or delete it and resume the run, which writes it again from its checkpoint"
        ) from error
    run.finish({**_describe_run(replace(plan, network=network), log, progress), "command": command})
    return run.read_result()


def _describe_run(plan: Plan, log: Sequence[Mapping[str, float]], progress: bool | None) -> dict[str, Any]:
    """Test the network of a plan, and return what is known about it and its run, as ``result.json`` holds it."""
    config, machine, tested = plan.config, plan.machine, plan.data.test
    scores = {**dict.fromkeys(RESULT_SCORES[config.training.task]), "stress": None}
    if tested:
        scores = final_scores(plan.network, tested, config, device=machine.device.type, progress=progress)
    return {
        **scores,
        **_summarize_log(log, config),
        "name": config.data.name,
        "seed": config.seed,
        "config": without_secrets(config.model_dump(mode="json")),
        "data": _describe_data(plan.data),
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
    }


def _describe_data(data: Data) -> dict[str, list[DataPart]]:
    """Return the parts of a data set by split."""
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


def _summarize_log(rows: Sequence[Mapping[str, float]], config: TrainConfig) -> dict[str, Any]:
    score = MAIN_SCORES[config.training.task]
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
) -> TrainResult:
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
        machine = find_machine(config.training)
        data = open_data(config.data, config.model, seed=config.seed)
        trained.check_data(_describe_data(data))
        run.begin(_describe_data(data), config)
        began = fixed_options(config.model_dump(mode="json"))
        reading = reading_of(config)
        save_network(
            network, run.network, record=record, source=source, reading=reading, run=began, force=True
        )
        plan = Plan(config, machine, data, network, record, source)
        return _tested(plan, run, [{"step": 0.0, "seconds": 0.0}], None, progress)
