"""Train a segmenter of slice windows, from a configuration to the folder of a run.

    result = train("train.yaml", "run")
    result["dice"]["mean"]

An epoch is the steps to the next validation. At its end the network is validated and a complete checkpoint saved, and
so is one after the step in which a signal asked the run to end. The random numbers of a step depend only on the seed
and the number of the step: an interrupted run resumes from its last checkpoint and gives the same result.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from evenslice._core import (
    ConfigError,
    EvensliceError,
    OutputError,
    VolumeError,
    as_config,
    check_callable,
    local_path,
    spelled_in_configuration,
)
from evenslice.networks import check_stated_in_file, parse_specification, with_gradients
from evenslice.neutralizing import load_network
from evenslice.training.assumptions import describe_assumptions
from evenslice.training.config import TrainConfig
from evenslice.training.data import fingerprints, open_data
from evenslice.training.documents import data_of_result
from evenslice.training.fitting import fit
from evenslice.training.interruption import Interruption, TrainingInterrupted
from evenslice.training.lightning_module import output_channels
from evenslice.training.logs import is_first_process
from evenslice.training.preflight import check_data, check_network, check_planes, find_dtype
from evenslice.training.result import describe_data, finish_run
from evenslice.training.run_folder import RunFolder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from torch import nn

    from evenslice.networks import ModelSource
    from evenslice.neutralizing import Record
    from evenslice.training.documents import TrainResult

__all__ = ["train"]


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
    with _at_model():
        check_stated_in_file(config.model.spec)
    run, first = RunFolder(local_path(out).absolute()), is_first_process()
    if first and resume and run.result.exists() and run.has_begun(config, resume=True):
        with suppress(OutputError), run.lock():  # the folder need not be writable
            run.remove_leftovers()
        return _finished(config, run, on_start)
    with run.lock() if first else nullcontext(), Interruption() as interruption:
        try:
            return _train(
                config,
                run,
                first=first,
                resume=resume,
                command=command,
                progress=progress,
                on_start=on_start,
                interruption=interruption,
            )
        except KeyboardInterrupt as error:
            raise TrainingInterrupted(interruption.signal or signal.SIGINT, interruption.reached) from error


def _train(
    config: TrainConfig,
    run: RunFolder,
    *,
    first: bool,
    resume: bool,
    command: str | None,
    progress: bool | None,
    on_start: Callable[[tuple[str, ...]], None] | None,
    interruption: Interruption,
) -> TrainResult:
    began = first and run.has_begun(config, resume=resume)
    if began and run.result.exists():
        return _finished(config, run, on_start)
    if first:
        run.remove_leftovers()
    find_dtype(config.training)  # raises if the device is missing, or does not compute in it
    data = open_data(config.data, config.model, seed=config.seed)
    check_data(config, data)
    network, record, source = _build(config)
    check_planes(network, config, data)
    described = describe_data(data)
    if began:
        run.check_data(described)
        run.update(config)
    elif first:
        run.begin(described, config)
    if first and on_start is not None:
        on_start(describe_assumptions(config, data, record, source))
    if not run.network.exists():
        fit(network, record, source, data, config, run, interruption=interruption, progress=progress)
    interruption.reached = "its test"
    if not first:
        return {}
    return finish_run(
        run,
        data,
        config,
        run.read_metrics(),
        record=record,
        source=source,
        command=command,
        progress=progress,
    )


def _finished(
    config: TrainConfig, run: RunFolder, on_start: Callable[[tuple[str, ...]], None] | None
) -> TrainResult:
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
    if on_start is not None:
        on_start((f"note: the run in {run.path} is finished; nothing is trained or tested again",))
    return result


def _build(config: TrainConfig) -> tuple[nn.Module, Record, ModelSource]:
    """Build the network, in float32 on the CPU, and test it on a blank crop."""
    model, channels = config.model, output_channels(config.training.loss, config.data.classes)
    with _at_model():
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
    # Whatever it was built as: under another default dtype or device of PyTorch's, or by a function.
    network = network.cpu().float()
    check_network(network, config, channels)
    return network, record, source


@contextmanager
def _at_model() -> Iterator[None]:
    """Add the place in the configuration to errors about the network, and spell options as they are written there."""
    try:
        yield
    except EvensliceError as error:
        raise error.within("model", _spelled) from error


def _spelled(name: str, value: Any) -> str:
    """Spell an option of a network as in the configuration."""
    path = {"classes": "data.classes", "seed": "seed"}.get(name, f"model.{name}")
    return spelled_in_configuration(path, value)
