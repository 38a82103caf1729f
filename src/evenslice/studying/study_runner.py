"""Run studies: train, test and audit every arm with every architecture, data set, fold and seed.

    summary = study("study.yaml", "results")

A run is identified by a hash of everything that its outcome depends on. At the end its folder in ``runs`` gets the file
``run.json``, after which it is repeated only if a file of it is damaged. When a study is started again, interrupted
runs resume from their last checkpoint and failed runs are retried: a study may be stopped at any time, and extended by
arms, data sets or seeds.

A run that takes the network of another one begins when that is done.
"""

from __future__ import annotations

import csv
import json
import re
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evenslice._core import (
    ConfigError,
    EvensliceError,
    OutputError,
    VolumeError,
    as_config,
    json_text,
    load_config,
    local_path,
    locked_folder,
    map_tasks,
    open_workers,
    remove_leftovers,
    spelled_in_configuration,
    staged_file,
    to_yaml,
)
from evenslice.report import need_report_extra, study_html, write_study_report
from evenslice.results import (
    DEFINITIONS,
    FORMAT,
    MAIN_SCORES,
    METRICS,
    TASK_SCORES,
    Primary,
    load_study,
    pool_runs,
    run_name,
    summarize_runs,
)
from evenslice.studying.config import StudyConfig
from evenslice.studying.run_execution import DataFiles, execute, execute_at_worker, record_failure
from evenslice.studying.run_outcomes import STRESS_COLUMNS
from evenslice.studying.runs import LABELS, count_runs, plan_runs
from evenslice.training import DataConfig, RunFolder, fingerprints, open_data

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from evenslice.results import StudySummary
    from evenslice.studying.run_outcomes import RunOutcome
    from evenslice.studying.runs import Run


STUDY_FILES = ("config.yaml", "summary.json", "results.csv", "report.html")
"""Names of the files of a study."""

_RUN = re.compile(r".+-[0-9a-f]{12}")

OF_DATA = re.compile(rf"(?<![\w./])data\.(?=(?:{'|'.join(DataConfig.model_fields)})\b)")
"""What stands before an option of a training's data, and not before one of a study's data set."""

SHOWN = 3
"""How many runs are named in a line about several."""


def study(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    on_start: Callable[[tuple[str, ...]], None] | None = None,
    on_finished: Callable[[RunOutcome, int, int], None] | None = None,
) -> StudySummary:
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
        ConfigError: the data do not fit the configuration, or differ from those of finished runs; two arms are equal;
            or the scheduler does not answer. An error in a single run is recorded with it, and the others continue.
        VolumeError: a data set cannot be used.
        OutputError: the folder cannot be written, another study works in it, or it holds other files of these names; or
            a worker has another folder at its path.
        MissingExtraError: a package is missing; those of the report are checked before the first run, too.

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
    config = as_config(config, StudyConfig)
    config = config.model_copy(update={"datasets": tuple(data.with_root() for data in config.datasets)})
    need_report_extra("the report of a study")
    out, runs = local_path(out).absolute(), plan_runs(config)
    base = out / "runs"
    with working_in_study(out):
        outcomes = {run.key: found for run in runs if (found := run.outcome(base)) is not None}
        for key in _networks_to_restore(runs, outcomes, base):
            del outcomes[key]
        waiting = [run for run in runs if run.key not in outcomes]
        data = _check_data(config, waiting)
        _check_unchanged(runs, data, base)
        for run in waiting[:1]:
            run.folder(base).mkdir(parents=True, exist_ok=True)  # from now on, it is the folder of a study
        _write_config(config, out)
        if on_start is not None and (lines := _not_applied(runs, outcomes)):
            on_start(lines)
        for run, outcome in _execute_all(waiting, data, base, workers, scheduler):
            outcomes[run.key] = outcome
            write_results(config, outcomes.values(), out)
            if on_finished is not None:
                on_finished(outcome, len(outcomes), len(runs))
        for run in waiting:  # of a failed one, a worker that was only thought lost may have finished it since
            if outcomes[run.key].status == "failed" and (found := run.outcome(base)) is not None:
                outcomes[run.key] = found
        summary = write_results(config, outcomes.values(), out)
        write_study_report(load_study(out), out / "report.html")
    return cast("StudySummary", _ShownSummary(summary))


def _networks_to_restore(runs: Iterable[Run], outcomes: Mapping[str, RunOutcome], base: Path) -> set[str]:
    """Return the keys of the finished runs whose networks unfinished runs need, and which were removed since."""
    return {
        run.base.key  # several arms may need the network of one run
        for run in runs
        if run.base is not None
        and run.key not in outcomes
        and run.base.key in outcomes
        and not RunFolder(run.base.folder(base)).network.exists()
    }


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
    older = [run for run, outcome in finished if outcome.definitions < DEFINITIONS]
    if 0 < len(older) < len(runs):
        lines.append(
            "audit: these finished runs were audited by version 0.2, and have no figures that stand beside the others' (to "
            f"audit them again, remove their run.json): {_some(older)}"
        )
    return tuple(lines)


def _some(runs: Sequence[Run]) -> str:
    names = [run_name(run.labels, folded=True) for run in runs]
    return "; ".join(names[:SHOWN]) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


class _ShownSummary(dict[str, Any]):
    """A summary that a notebook shows as tables."""

    def _repr_html_(self) -> str:
        return study_html(cast("StudySummary", self))


def _check_data(config: StudyConfig, runs: Sequence[Run]) -> DataFiles:
    """Report errors in the files of runs, or options that do not fit them, before the first of them.

    Returns:
        The fingerprints of the data, by the name of the data set and the fold.
    """
    for run in runs:  # in a study of days, the run that needs a file may be the last
        weights = run.config.model.weights
        if weights not in {"imagenet", "none"} and not Path(weights).exists():
            raise ConfigError(
                f"{run_name(run.labels, folded=False)}: weights: {weights}: no such weights file; check the path"
            )
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
        found[name, fold] = sorted(fingerprints(first.data))
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
            now = data[place] if place in data else sorted(fingerprints(group[0].config.data))
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
        out,
        f"{out}: another `evenslice study` is at work in it; wait for it, or choose another folder",
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


def write_results(config: StudyConfig, outcomes: Iterable[RunOutcome], out: Path) -> StudySummary:
    """Write the results of a study so far: ``results.csv`` and ``summary.json``.

    Args:
        config: the configuration of the study.
        outcomes: those of all finished or failed runs.
        out: the folder of the study.

    Returns:
        The content of ``summary.json``.
    """
    names = ([item.name for item in items] for items in (config.architectures, config.arms))
    cells = list(product(*names))
    places = [
        (data.name, *cell, fold, seed)
        for data in config.datasets
        for cell, fold, seed in product(cells, range(data.fold_count), config.seeds)
    ]
    by_labels = {tuple(getattr(outcome, name) for name in LABELS): outcome for outcome in outcomes}
    ordered = [by_labels[labels] for labels in places if labels in by_labels]
    extra = {item.name: {"folds": item.fold_count, "classes": item.classes} for item in config.datasets}
    done = [
        {**outcome.model_dump(exclude_unset=True), **extra[outcome.dataset]}
        for outcome in ordered
        if outcome.status == "done"
    ]
    failed = [outcome for outcome in ordered if outcome.status == "failed"]
    score, chosen = MAIN_SCORES[config.task], config.primary
    primary = None
    if chosen is not None:
        network = chosen.architecture or config.architectures[0].name
        primary = Primary(chosen.arm, network, chosen.margin)
    compared: dict[str, Any] = {"baseline": config.baseline, "margin": config.margin, "score": score}
    pooled = pool_runs(
        done,
        **compared,
        primary=primary,
        datasets=[data.name for data in config.datasets],
        architectures=[item.name for item in config.architectures],
        arms=[arm.name for arm in config.arms],
    )
    summary = {
        "format": FORMAT,
        "planned": count_runs(config),
        "finished": len(done),
        "failed": [outcome.model_dump(include={*LABELS, "error"}) for outcome in failed],
        "baseline": config.baseline,
        "score": score,
        "definitions": max((item.definitions for item in ordered if item.verdict), default=DEFINITIONS),
        "comparisons": [item.to_dict() for item in summarize_runs(done, **compared)],
        "pooled": [item.to_dict() for item in pooled],
    }
    text = json_text(summary)
    with staged_file(out / "summary.json", force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    _write_table(ordered, config, out / "results.csv")
    written: StudySummary = json.loads(text)
    return written


def _write_table(outcomes: Sequence[RunOutcome], config: StudyConfig, path: Path) -> None:
    """Write one row for each run; undefined values are left empty."""
    half = config.slices // 2
    shares = [f"share_{offset}" for offset in range(-half, half + 1)]
    scores = TASK_SCORES[config.task]
    other_task = {name for names in TASK_SCORES.values() for name in names} - {*scores}
    first = (*LABELS, *scores[:2], "directional_bias", "asymmetry", "imbalance", *shares, "seconds")
    measured = any(
        "stress_intact" in outcome.model_dump(exclude_unset=True) for outcome in outcomes
    )  # not by earlier versions
    others = (
        "verdict",
        *(name for name in METRICS if name not in {*first, *other_task}),
        "answer_of",
        *(STRESS_COLUMNS if measured else ()),
        "definitions",
        "windows",
        "steps",
    )
    with staged_file(path, force=True) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, (*first, *others, "key", "status", "error"), extrasaction="ignore")
        table.writeheader()
        for outcome in outcomes:
            record = outcome.model_dump(exclude_unset=True) | dict(
                zip(shares, outcome.shares or (), strict=False)
            )
            if outcome.status == "done":
                record["definitions"] = outcome.definitions
            table.writerow(record)
