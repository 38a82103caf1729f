"""Execute one run of a study: train a network, or take that of another run, test it, audit it, and record the outcome."""

from __future__ import annotations

import math
import platform
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from evenslice._core import (
    ConfigError,
    EvensliceError,
    ModelError,
    OutputError,
    is_locked,
    load_config,
    option,
    spelled_in_configuration,
    staged_file,
)
from evenslice.auditing import Sampling, audit
from evenslice.inference import Compute, Predictor, ReadyNetwork
from evenslice.networks import predicted_classes
from evenslice.neutralizing import load_network, symmetrize
from evenslice.results import EXAMPLE_SIZE, save_audits
from evenslice.studying.run_outcomes import STRESS_COLUMNS, RunOutcome, repair_run
from evenslice.training import (
    RunFolder,
    TrainConfig,
    fingerprints,
    open_data,
    reading_of,
    retest,
    train,
)
from evenslice.volumes import read_in_runs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from evenslice.results import AuditResult, Figure
    from evenslice.studying.runs import Run
    from evenslice.volumes import LabelledVolume


DataFiles: TypeAlias = "Mapping[tuple[str, int], list[str]]"
"""The fingerprints of the files of data sets, in order, by the name of the data set and the fold."""

HELD_BYTES = 2**26  # of labels that are read at once if their slices are stored together
ESTIMATES = (
    "directional_bias",
    "asymmetry",
    "imbalance",
    "mirror_error",
    "mirror_disagreement",
    "answer_change",
    "mirror_mismatch",
)


def execute(run: Run, base: Path, data: DataFiles | None = None, progress: bool | None = False) -> RunOutcome:
    """Train or derive, test and audit one run, resuming it if it was interrupted, and write its outcome.

    Args:
        run: the run.
        base: the folder that holds the folders of runs.
        data: what the data sets have to be, as they were when the study was started; None for anything.
        progress: show progress bars on standard error; with None, if that is a terminal.
    """
    try:
        files = RunFolder(run.folder(base))
        if data is not None and sorted(fingerprints(run.config.data)) != data[run.dataset, run.fold]:
            raise ConfigError(
                f"datasets: {run.dataset!r}: its files are not those with which the study was started; restore them, or run "
                "the study in another folder"
            )
        if replace(run).key != run.key:  # computed anew
            raise ConfigError(
                f"weights: {run.config.model.weights}, or a file that the network is built from, has changed "
                "since the study was started; restore it, or repeat the command to train with what it is now"
            )
        repair_run(files.path)
        result = _trained(run, files.path, progress)
        with files.lock():  # a worker that is only thought lost may be at work on the same run
            return _save(run, base, status="done", error=None, **_examined(run, files, result, progress))
    except Exception as error:  # noqa: BLE001  # a failed run must not stop the others
        return record_failure(run, base, error)


def execute_at_worker(run: Run, base: Path, data: DataFiles | None = None) -> RunOutcome:
    """Do so on a worker, which may be on another machine.

    Raises:
        OutputError: what this worker has at the path of the study is not the folder of the study, or cannot be written.
    """
    if not is_locked(base.parent):
        raise OutputError(
            f"{base.parent}: is another folder for the worker on {platform.node()}, so that the study would not find its "
            f"results; choose a folder ({option('out')}) that this machine and all workers share"
        )
    return execute(run, base, data)


def record_failure(run: Run, base: Path, error: Exception) -> RunOutcome:
    """Write the outcome of a run that failed."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return _save(
        run,
        base,
        status="failed",
        error=error.render(spelled_in_configuration) if isinstance(error, EvensliceError) else text,
        traceback="".join(traceback.format_exception(error)),
    )


def _save(run: Run, base: Path, **fields: Any) -> RunOutcome:
    outcome = RunOutcome(**run.labels, key=run.key, audit=run.audit.model_dump(mode="json"), **fields)
    return outcome.save(run.folder(base) / "run.json")


def _trained(run: Run, folder: Path, progress: bool | None) -> Mapping[str, Any]:
    """Train or derive and test a network, and return the content of its ``result.json``."""
    if run.base is not None:
        return _derive(run, run.base, folder, progress)
    config, files = run.config, RunFolder(folder)
    if files.result.exists() and files.config.exists():  # it stays as it was tested: the key does not know
        tested = load_config(files.config, TrainConfig).training.stress
        config = config.model_copy(update={"training": config.training.model_copy(update={"stress": tested})})
    return train(config, folder, resume=True, progress=progress)


def _examined(run: Run, files: RunFolder, result: Mapping[str, Any], progress: bool | None) -> dict[str, Any]:
    """Audit a trained network, and return the fields of the outcome of its run."""
    config, folder = run.config, files.path
    data = sorted(files.tested_data())
    if sorted(fingerprints(config.data)) != data:  # the scores are those of the files as they were
        raise ConfigError(
            f"datasets: {run.dataset!r}: its files have changed since {folder} was tested on them; restore them, or run "
            "the study in another folder"
        )
    tested = open_data(config).test
    network = load_network(config.model.spec, str(files.network)).model
    found = _audit(network, tested, run, progress)
    save_audits([found], folder)
    if config.training.task == "segmentation":
        _save_example(network, tested[0], config, folder / "example.npz")
    for file in (files.last, files.best):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # somebody else has put a file there
        files.last.parent.rmdir()
    return {
        **_test_scores(result),
        **_stress(result.get("stress")),
        **_audit_results(found),
        "steps": result["steps"],
        "seconds": result["seconds"],
        "data": data,
    }


def _derive(run: Run, base: Run, folder: Path, progress: bool | None) -> Mapping[str, Any]:
    """Symmetrize the network of another run, and test it.

    Raises:
        ModelError: that run has failed or is not finished, or its network cannot be symmetrized there.
    """
    trained = base.folder(folder.parent)
    if base.outcome(folder.parent) is None:
        found = RunOutcome.load(trained / "run.json")
        why = f"failed ({found.error})" if found is not None and found.error else "is not finished"
        raise ModelError(f"its network is that of {base.arm}, whose run {trained.name} {why}")
    files = RunFolder(trained)
    loaded = load_network(run.config.model.spec, str(files.network))
    at = run.config.model.symmetrize or "output"
    try:
        network = symmetrize(loaded.model, at=at)
    except EvensliceError as error:
        raise error.within(f"symmetrize: {at}", spelled_in_configuration) from error
    return retest(network, loaded.source, run.config, folder, trained=files, progress=progress)


def _test_scores(result: Mapping[str, Any]) -> dict[str, Any]:
    if "accuracy" in result:
        means = {name: result[name]["mean"] for name in ("balanced_accuracy", "macro_f1")}
        return {**means, "accuracy": result["accuracy"]}
    information = result["variation_of_information"].values()
    return {
        **{name: result[name]["mean"] for name in ("dice", "iou", "hd95", "surface_dice")},
        "adapted_rand_error": result["adapted_rand_error"],
        "variation_of_information": None if None in information else sum(information),
    }


def _stress(summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields about a missing neighbour, from the short form in ``result.json``; none if it is missing."""
    if summary is None:
        return {}
    missing = next(loss for loss in summary["losses"] if (loss["kind"], loss["offset"]) == ("missing", 1))
    found = {**missing, **{name: summary[name] for name in ("intact", "reversed")}}
    return {name: found[name.removeprefix("stress_")] for name in STRESS_COLUMNS}


def _audit_results(found: AuditResult) -> dict[str, Any]:
    statistics = found.statistics
    return {
        "verdict": found.verdict,
        "definitions": found.definitions,
        "shares": [share.estimate for share in found.shares],
        "largest_bias": _largest(found.saliency),
        "reliance": _largest(found.reliance),
        "absolute_bias": abs(found.directional_bias.estimate),
        **{name: getattr(statistics, name).estimate for name in ESTIMATES},
        "answer_of": found.answer.of,
        "saliency": found.examples.saliency_percentiles(),
        "windows": found.windows,
    }


def _largest(pairs: Sequence[Figure]) -> float:
    """Return the largest absolute bias of the judged pairs: that of others is noise; NaN if it was not asked for."""
    known = [pair for pair in pairs if not math.isnan(pair.estimate)]
    return max((abs(pair.estimate) for pair in known if pair.judged), default=0.0 if known else math.nan)


def _audit(
    network: nn.Module, parts: Sequence[LabelledVolume], run: Run, progress: bool | None
) -> AuditResult:
    options, chosen = run.config.training, run.audit
    reading = reading_of(run.config).without_labels()
    try:
        found = audit(
            network,
            [part.volume for part in parts],
            method=chosen.method,
            reading=[
                replace(
                    reading,
                    intensity=(part.scaling.low, part.scaling.high),
                    fill=part.scaling.fill,
                    plane="z",
                )
                for part in parts
            ],
            sampling=Sampling(
                precision=chosen.precision,
                max_windows=chosen.max_windows or sys.maxsize,
                tile=options.asked_size,
                seed=run.seed,
            ),
            compute=Compute(device=options.device, dtype=chosen.dtype, batch=chosen.batch, progress=progress),
        )
    except EvensliceError as error:
        raise error.within("audit", spelled_in_configuration) from error
    return found.renamed(run.arm)


def _save_example(network: nn.Module, part: LabelledVolume, config: TrainConfig, path: Path) -> None:
    """Write the slice with the most foreground, or a part around that: the image, its classes, the predicted classes."""
    stored = read_in_runs(part.labels, len(part.labels), HELD_BYTES)
    z = max(range(len(stored)), key=lambda z: np.count_nonzero(stored[z] > 0))
    model = config.model
    ready = ReadyNetwork(network, slices=model.slices, device=config.training.device)
    predictor = Predictor(ready, model.slices, model.step)
    _, output = next(predictor.predict(part.volume, part.scaling, centres=[z]))
    # Those that do not count are shown as background, those above 255 as one.
    labels, predicted = (
        np.clip(classes, 0, 255).astype(np.uint8)
        for classes in (part.labels[z], predicted_classes(output, dim=0).cpu().numpy())
    )
    shown = _around_foreground(labels)
    with staged_file(path, force=True) as beside:
        np.savez_compressed(
            beside,
            image=np.rint(part.scaling(part.volume[z]) * 255).astype(np.uint8)[shown],
            labels=labels[shown],
            predicted=predicted[shown],
        )


def _around_foreground(labels: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return a part (y, x) of a slice of at most ``EXAMPLE_SIZE`` pixels a side, around the middle of its foreground."""
    starts = []
    for where, length in zip(np.nonzero(labels), labels.shape, strict=True):
        middle = (where.min() + where.max() + 1) // 2 if len(where) else length // 2
        starts.append(int(min(max(0, middle - EXAMPLE_SIZE // 2), max(0, length - EXAMPLE_SIZE))))
    return slice(starts[0], starts[0] + EXAMPLE_SIZE), slice(starts[1], starts[1] + EXAMPLE_SIZE)
