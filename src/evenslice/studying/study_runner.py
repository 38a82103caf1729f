"""Run studies: train, test and audit every arm with every architecture, data set, fold and seed.

    summary = study("study.yaml", "results")

A run is identified by a hash of everything that its outcome depends on. At the end its folder in ``runs`` gets the file
``run.json``, after which it is repeated only if a file of it is damaged. When a study is started again, interrupted
runs resume from their last checkpoint and failed runs are retried: a study may be stopped at any time, and extended by
arms, data sets or seeds.

A run that takes the network of another one begins when that is done.
"""

from __future__ import annotations

import math
import platform
import re
import sys
import traceback
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from evenslice._core import (
    ConfigError,
    EvensliceError,
    ModelError,
    OutputError,
    VolumeError,
    errors_at,
    is_locked,
    load_config,
    local_path,
    locked_folder,
    map_tasks,
    open_workers,
    option,
    remove_leftovers,
    spelled_in_configuration,
    staged_file,
    to_yaml,
)
from evenslice.auditing import Sampling, audit
from evenslice.inference import Compute, Predictor, ReadyNetwork
from evenslice.networks import build_model, parse_specification, predicted_classes
from evenslice.neutralizing import load_network, symmetrize
from evenslice.report import html_of, need_report_extra, write_study_report
from evenslice.results import AuditResult, ExampleSlice, StudyResults, run_name
from evenslice.studying.config import StudyConfig
from evenslice.studying.run_outcomes import STRESS_COLUMNS, RunOutcome, repair_run, write_results
from evenslice.studying.runs import plan_runs
from evenslice.training import DataConfig, RunFolder, TrainConfig, open_data, retest, train
from evenslice.volumes import read_in_runs

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from evenslice.studying.runs import Run
    from evenslice.volumes import LabelledVolume


STUDY_FILES = ("config.yaml", "summary.json", "results.csv", "report.html")
"""Names of the files of a study."""

_RUN = re.compile(r".+-[0-9a-f]{12}")

OF_DATA = re.compile(rf"(?<![\w./])data\.(?=(?:{'|'.join(DataConfig.model_fields)})\b)")
"""What stands before an option of a training's data, and not before one of a study's data set."""

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


def study(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    on_start: Callable[[tuple[str, ...]], None] | None = None,
    on_finished: Callable[[RunOutcome, int, int], None] | None = None,
) -> dict[str, Any]:
    """Perform the unfinished runs of a study, and write the results of all runs.

    The folder gets ``config.yaml``, ``results.csv``, ``summary.json`` and, in ``runs``, a folder for each run: the
    files of ``train`` without checkpoints, ``audit.json`` with ``audit.npz``, ``example.npz`` (``image``, ``labels``
    and ``predicted`` (y, x) of a test slice; not for classification) and ``run.json``. The results are updated after
    each run; at the end the report is written, ``report.html`` with the folders ``figures`` and ``tables``, see
    ``write_study_report``.

    Args:
        config: the configuration of the study, a YAML file, or a dict with the options of one; the paths in a dict are
            relative to the working directory.
        out: the folder. On a cluster, all workers must reach it and the data by the same paths.
        workers: worker processes to start on this machine; by default everything runs in this process.
        scheduler: address of a Dask scheduler whose workers to use instead.
        on_start: called before the first run with lines that say which options do not apply to finished runs, if any.
        on_finished: called after each run with its outcome, the number of runs that have finished or failed so far, and
            the total number.

    Returns:
        The content of ``summary.json``; a notebook shows it as tables.

    Raises:
        ConfigError: the data do not fit the configuration, or differ from the data of finished runs; two arms are
            equal; or the scheduler does not answer. An error in a single run is recorded with it, and the others
            continue.
        ModelError: a network cannot be built.
        VolumeError: a data set cannot be used.
        OutputError: the folder cannot be written, another study works in it, or it holds other files of these names; or
            a worker has another folder at its path.
        MissingExtraError: a package is missing; packages for the report are checked before the first run, too.

    Example: two arms, one seed and one step on noise, with a network made for tests.
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
        ...     "seeds": [0],
        ...     "training": {"steps": 1, "batch": 2, "crop": [32, 32], "stress": False},
        ...     "audit": {"max_windows": 8},
        ...     "arms": [{"name": "pretrained", "strategy": "pretrained"}, {"name": "uniform"}],
        ...     "architectures": [{"name": "U-Net", "spec": "smp:Unet/tu-test_resnet", "weights": "none"}],
        ...     "datasets": [{"name": "noise", **data}],
        ... }
        >>> summary = study(config, folder / "study")
        >>> summary["finished"], summary["failed"], (folder / "study" / "report.html").exists()
        (2, [], True)
    """
    config = load_config(config, StudyConfig)
    config = config.model_copy(update={"datasets": tuple(data.with_root() for data in config.datasets)})
    need_report_extra("the report of a study")
    out, runs = local_path(out).absolute(), plan_runs(config)
    base = out / "runs"
    with working_in_study(out):
        outcomes = {run.key: found for run in runs if (found := run.outcome(base)) is not None}
        for run in runs:  # its network may have been removed since its base has finished
            if run.base is None or run.key in outcomes:
                continue
            if not RunFolder(run.base.folder(base)).network.exists():
                outcomes.pop(run.base.key, None)
        waiting = [run for run in runs if run.key not in outcomes]
        data = _check_inputs(config, waiting)
        _check_unchanged(runs, data, base)
        for run in waiting[:1]:
            run.folder(base).mkdir(parents=True, exist_ok=True)  # from now on, it is the folder of a study
        _write_config(config, out)
        if on_start is not None and (lines := _not_applied(runs, outcomes)):
            on_start(lines)
        for run, outcome in _execute_all(waiting, data, base, workers, scheduler):
            outcomes[run.key] = outcome
            write_results(config, outcomes.values(), len(runs), out)
            if on_finished is not None:
                on_finished(outcome, len(outcomes), len(runs))
        for run in waiting:  # of a failed one, a worker that was only thought lost may have finished it since
            if outcomes[run.key].status == "failed" and (found := run.outcome(base)) is not None:
                outcomes[run.key] = found
        summary = write_results(config, outcomes.values(), len(runs), out)
        write_study_report(StudyResults.load(out), out / "report.html")
    return _ShownSummary(summary)


def _not_applied(runs: Sequence[Run], outcomes: Mapping[str, RunOutcome]) -> tuple[str, ...]:
    """Return lines on the finished runs that are not what others will be.

    ``training.stress`` is no part of the key of a run, as it changes nothing about its network; nor are the definitions of
    its audit.
    """
    finished = [(run, outcomes[run.key]) for run in runs if run.key in outcomes]
    unstressed = [
        run
        for run, outcome in finished
        if run.config.training.stress
        and run.config.model.slices > 1  # a window of one slice has no neighbours to disturb
        and "stress_intact" not in outcome.model_fields_set
    ]
    lines = []
    if unstressed:
        lines.append(
            f"training.stress: these finished runs were tested without it, and stay so: {_some(unstressed)}"
        )
    older = [run for run, outcome in finished if outcome.definitions < AuditResult.definitions]
    if 0 < len(older) < len(runs):
        lines.append(
            "audit: these finished runs were audited by version 0.2, and have no figures that stand beside the others' (to "
            f"audit them again, remove their run.json): {_some(older)}"
        )
    return tuple(lines)


def _some(runs: Sequence[Run]) -> str:
    shown = [run_name(run.labels, folded=True) for run in runs[:3]]
    return "; ".join([*shown, f"and {len(runs) - 3} more"] if len(runs) > 3 else shown)


class _ShownSummary(dict[str, Any]):
    """A summary that a notebook shows as tables."""

    _repr_html_ = html_of


def _check_inputs(config: StudyConfig, runs: Sequence[Run]) -> DataFiles:
    """Report errors in the networks and files of runs, or options that do not fit them, before the first of them.

    Returns:
        The fingerprints of the data, by the name of the data set and the fold.
    """
    for run in runs:  # in a study of days, the run that needs a file may be the last
        weights = run.config.model.weights
        if weights not in {"imagenet", "none"} and not Path(weights).exists():
            raise ConfigError(
                f"{run_name(run.labels, folded=False)}: weights: {weights}: no such weights file; check the path"
            )
    for spec, name in {run.config.model.spec: run.architecture for run in runs}.items():
        with errors_at(f"architectures: {name!r}"):
            parse_specification(spec, stated_in_file=True)
            build_model(spec, "none")
    folded = {data.name for data in config.datasets if data.folds is not None}
    found = {}
    for (name, fold), group in _by_data(runs).items():
        first = group[0].config
        try:
            open_data(first)
        except EvensliceError as error:
            place = f"{name!r}: fold {fold}" if name in folded else repr(name)
            text = OF_DATA.sub("", error.render(spelled_in_configuration))
            raise type(error)(f"datasets: {place}: {text}") from error
        found[name, fold] = first.data.fingerprints()
    return found


def _by_data(runs: Iterable[Run]) -> dict[tuple[str, int], list[Run]]:
    """Return runs by the name of their data set and their fold, in order."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.fold), []).append(run)
    return groups


def _check_unchanged(runs: Sequence[Run], data: DataFiles, base: Path) -> None:
    """Check that the files of data sets are those on which runs were tested, of which some may still be audited.

    Args:
        runs: all runs.
        data: the fingerprints of the files of unfinished ones.
        base: the folder that holds the folders of runs.
    """
    tested = {run.key: known for run in runs if (known := run.tested_data(base)) is not None}
    for place, group in _by_data(run for run in runs if run.key in tested).items():
        try:
            now = data[place] if place in data else group[0].config.data.fingerprints()
        except VolumeError:
            continue  # the files are gone, but the results on them remain valid
        for run in group:
            if tested[run.key] != now:
                raise ConfigError(
                    f"datasets: {place[0]!r}: its files are not those on which {run.folder(base)} was trained and tested; "
                    "restore them, or run the study in another folder"
                )


def _execute_all(
    runs: Sequence[Run], data: DataFiles, base: Path, workers: int | None, scheduler: str | None
) -> Iterator[tuple[Run, RunOutcome]]:
    if not runs:
        return
    with open_workers(workers, scheduler) as client:
        run_one = partial(execute, progress=None) if client is None else execute_at_worker
        for run, outcome in map_tasks(
            partial(run_one, base=base, data=data), runs, client, needs=lambda run: run.base
        ):
            if isinstance(outcome, OutputError):  # nor could the others be recorded
                raise outcome
            if isinstance(outcome, Exception):  # the run killed several workers
                yield run, record_failure(run, base, outcome)
            else:
                yield run, outcome


@contextmanager
def working_in_study(out: Path) -> Iterator[None]:
    """Hold the lock of the folder of a study, new or not, without what killed processes left there.

    Raises:
        OutputError: another study works in it; or it holds files of a study's names, but no run of one, so that they
            are not a study's, or their runs are kept elsewhere.
    """
    with locked_folder(
        out, f"{out}: another `evenslice study` is at work in it; wait for it, or choose another folder"
    ):
        runs = [run for run in (out / "runs").glob("*/") if _RUN.fullmatch(run.name)]
        found = [out / name for name in STUDY_FILES if (out / name).exists()]
        if found and not runs:
            raise OutputError(
                f"{found[0]}: was not written by a study, or its runs are elsewhere; restore its folder runs, or choose another "
                "folder"
            )
        remove_leftovers(out, (*STUDY_FILES, "unfinished"))
        yield


def _write_config(config: StudyConfig, out: Path) -> None:
    """Write the configuration of a study to its folder, unless the one there says the same, perhaps with comments."""
    path = out / "config.yaml"
    with suppress(ConfigError):  # damaged
        if path.exists() and load_config(path, StudyConfig) == config:
            return
    with staged_file(path, force=True) as beside:
        beside.write_text(to_yaml(config), encoding="utf-8")


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
        if data is not None and run.config.data.fingerprints() != data[run.dataset, run.fold]:
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
    return train(run.config, folder, resume=True, progress=progress)


def _examined(run: Run, files: RunFolder, result: Mapping[str, Any], progress: bool | None) -> dict[str, Any]:
    """Audit a trained network, and return the fields of the outcome of its run."""
    config, folder = run.config, files.path
    data = files.tested_data()
    if config.data.fingerprints() != data:  # the scores are those of the files as they were
        raise ConfigError(
            f"datasets: {run.dataset!r}: its files have changed since {folder} was tested on them; restore them, or run "
            "the study in another folder"
        )
    tested = open_data(config).test
    network = load_network(config.model.spec, str(files.network)).model
    found = _audit(network, tested, run, progress)
    found.save(folder / "audit.json")
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
    with errors_at(f"symmetrize: {at}"):
        network = symmetrize(loaded.model, at=at)
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
        "absolute_bias": abs(statistics.directional_bias.estimate),
        **{name: getattr(statistics, name).estimate for name in ESTIMATES},
        "answer_of": found.answer.of,
        "windows": found.windows,
    }


def _largest(pairs: Sequence[Any]) -> float:
    """Return the largest absolute bias of the judged pairs: that of others is noise; NaN if it was not asked for."""
    known = [pair for pair in pairs if not math.isnan(pair.estimate)]
    return max((abs(pair.estimate) for pair in known if pair.judged), default=0.0 if known else math.nan)


def _audit(
    network: nn.Module, parts: Sequence[LabelledVolume], run: Run, progress: bool | None
) -> AuditResult:
    options, chosen = run.config.training, run.audit
    reading = run.config.reading.without_labels()
    with errors_at("audit"):
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
    return replace(found, name=run.arm)


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
    """Return a part (y, x) of a slice of at most ``ExampleSlice.LARGEST`` pixels a side, around the middle of its foreground."""
    starts = []
    for where, length in zip(np.nonzero(labels), labels.shape, strict=True):
        middle = (where.min() + where.max() + 1) // 2 if len(where) else length // 2
        starts.append(
            int(min(max(0, middle - ExampleSlice.LARGEST // 2), max(0, length - ExampleSlice.LARGEST)))
        )
    return slice(starts[0], starts[0] + ExampleSlice.LARGEST), slice(
        starts[1], starts[1] + ExampleSlice.LARGEST
    )
