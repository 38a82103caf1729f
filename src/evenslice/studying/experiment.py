"""Studies: every arm with every architecture on every data set with every seed, trained, tested and audited.

    summary = study(load_config("study.yaml", StudyConfig), "results")

A run is known by a hash of all that its outcome depends on. Its folder below ``runs`` gets the small file ``run.json``
at the end, and a run that has one is never repeated. One that was interrupted goes on from its last checkpoint, and one
that failed is tried again, when the study is started the next time: it may be stopped at will, and be given more arms,
data sets or seeds.
"""

from __future__ import annotations

import csv
import json
import shutil
import traceback
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import (
    ConfigError,
    EvensliceError,
    VolumeError,
    finished,
    json_text,
    open_cluster,
    staged_file,
    to_yaml,
)
from evenslice.auditing import audit
from evenslice.inference import ReadyNetwork, predict
from evenslice.networks import predicted_classes
from evenslice.neutralizing import load_network
from evenslice.report import need_drawing, write_study_report
from evenslice.results import (
    EXAMPLE,
    FIGURES,
    STUDY_FORMAT,
    load_study,
    saliency_percentiles,
    save_audits,
    summarize_runs,
)
from evenslice.studying.plan import LABELS, plan
from evenslice.training import ModelConfig, RunFolder, TrainConfig, fingerprints, open_data, train

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from evenslice.results import AuditResult
    from evenslice.studying.config import StudyConfig, StudyData
    from evenslice.studying.plan import Run
    from evenslice.volumes import LabelledVolume

    Record = dict[str, Any]

__all__ = ["perform", "study", "write_results"]


def study(
    config: StudyConfig,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    on_finished: Callable[[Record, int, int], None] | None = None,
) -> dict[str, Any]:
    """Do the runs of a study that are not finished yet, and write what all of them found.

    The folder gets ``config.yaml``, ``results.csv``, ``summary.json`` and, below ``runs``, a folder for each run: what
    ``train`` writes, without the checkpoints, ``audit.json`` with ``audit.npz``, ``example.npz`` (``image``, ``labels``
    and ``predicted`` (y, x) of a test slice) and ``run.json``. The results are written anew after each run, and at the
    end the page of the study, ``report.html``, with the folders ``figures`` and ``tables``; see ``write_study_report``.

    Args:
        config: everything that the study depends on.
        out: the folder. On a cluster, it and the data must be found under the same paths by all workers.
        workers: processes to start on this machine; by default this one does all.
        scheduler: address of a Dask scheduler whose workers to use instead.
        on_finished: called after each run with its record (what ``run.json`` holds), the number of runs that are
            finished or failed so far, and the number of all.

    Returns:
        What ``summary.json`` holds; see ``write_results``.

    Raises:
        ConfigError: the data do not suit the configuration or are not those of the runs that are finished, arms are the
            same, or the scheduler does not answer. What goes wrong in a single run is recorded with it, and the others
            go on.
        VolumeError: a data set cannot be used.
        OutputError: the folder cannot be written.
        MissingExtraError: a package is missing, that of the page included: this shows before the first run.
    """
    need_drawing("the page of a study")
    out = Path(out).absolute()
    base = out / "runs"
    runs = plan(config)
    records = {run.key: found for run in runs if (found := run.record(base)) is not None}
    waiting = [run for run in runs if run.key not in records]
    for data in config.datasets:  # all mistakes in the data show before the first run
        if any(run.dataset == data.name for run in waiting):
            open_data(data.data(), ModelConfig(slices=config.slices, step=config.step))
        _check_unchanged(data, [run for run in runs if run.key in records], records, base)
    with staged_file(out / "config.yaml", force=True) as beside:
        beside.write_text(to_yaml(config), encoding="utf-8")
    for run, record in _perform_all(waiting, base, workers, scheduler):
        records[run.key] = record
        write_results(config, records.values(), out)
        if on_finished is not None:
            on_finished(record, len(records), len(runs))
    summary = write_results(config, records.values(), out)
    write_study_report(load_study(out), out / "report.html")
    return summary


def _check_unchanged(data: StudyData, runs: Iterable[Run], records: Mapping[str, Record], base: Path) -> None:
    """Refuse to count runs on files that have changed since."""
    finished = [run for run in runs if run.dataset == data.name and "data" in records[run.key]]
    if not finished:
        return
    try:
        now = sorted(fingerprints(data.data()))
    except VolumeError:
        return  # gone altogether: what was found on them can still be read
    for run in finished:
        if records[run.key]["data"] != now:
            raise ConfigError(
                f"datasets: {data.name!r}: its files are not what {run.folder(base)} was trained and tested on; bring those "
                "back, or do the study in another folder"
            )


def _perform_all(
    runs: Sequence[Run], base: Path, workers: int | None, scheduler: str | None
) -> Iterator[tuple[Run, Record]]:
    if not runs:
        return
    with open_cluster(workers, scheduler) as client:
        for run, outcome in finished(
            partial(perform, base=base, progress=None if client is None else False), runs, client
        ):
            if isinstance(outcome, Exception):  # several workers died with the run
                yield run, _write_record(run, base, _failure(outcome))
            else:
                yield run, outcome


def perform(run: Run, base: Path, progress: bool | None = False) -> Record:
    """Train, test and audit one run, or go on with it where it was interrupted, and record what came of it.

    Args:
        run: what to do.
        base: the folder in which the run has, or gets, its own.
        progress: show progress bars on standard error; with None, where that is a terminal.

    Returns:
        What ``run.json`` then holds: the labels of the run, ``key``, ``status`` ("done" or "failed"), ``error``
        (one line, or None), ``audit`` (its options) and, where it is done, ``shares``, those of ``summarizing.FIGURES``,
        ``saliency`` (see ``summarizing.saliency_percentiles``), ``verdict``, ``windows``, ``steps`` and ``seconds`` of
        training, and ``data`` (the fingerprints of the files).
    """
    try:
        outcome = {"status": "done", "error": None, **_figures(run, run.folder(base), progress)}
    except Exception as error:  # noqa: BLE001  # whatever breaks a run, the others go on
        outcome = _failure(error)
    return _write_record(run, base, outcome)


def _failure(error: Exception) -> Record:
    text = " ".join(str(error).split())
    return {
        "status": "failed",
        "error": text if isinstance(error, EvensliceError) else f"{type(error).__name__}: {text}",
        "traceback": "".join(traceback.format_exception(error)),
    }


def _write_record(run: Run, base: Path, outcome: Record) -> Record:
    text = json_text(run.labels | {"key": run.key} | outcome | {"audit": run.audit.model_dump(mode="json")})
    with staged_file(run.folder(base) / "run.json", force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    record: Record = json.loads(text)
    return record


def _figures(run: Run, folder: Path, progress: bool | None) -> Record:
    """Train, test and audit a network, and return its figures."""
    config, files = run.config, RunFolder(folder)
    result = train(config, folder, resume=True, progress=progress)
    tested = open_data(config.data, config.model, seed=config.seed).test
    network, _, _ = load_network(config.model.spec, str(files.network))
    found = _audit(network, tested, run, progress)
    save_audits([found], folder)
    _save_example(network, tested[0], config, folder / "example.npz")
    shutil.rmtree(files.last.parent, ignore_errors=True)
    files_used = {
        part[kind] for parts in result["data"].values() for part in parts for kind in ("image", "labels")
    }
    return {
        **_tested(result),
        **_audited(found),
        "steps": result["steps"],
        "seconds": result["seconds"],
        "data": sorted(files_used),
    }


def _tested(result: Mapping[str, Any]) -> Record:
    information = result["variation_of_information"]
    known = None not in information.values()
    return {
        **{name: result[name]["mean"] for name in ("dice", "iou", "hd95", "surface_dice")},
        "adapted_rand_error": result["adapted_rand_error"],
        "variation_of_information": information["split"] + information["merge"] if known else None,
    }


def _audited(found: AuditResult) -> Record:
    statistics = found.statistics
    return {
        "verdict": found.verdict,
        "shares": [share.estimate for share in statistics.shares],
        "directional_bias": statistics.directional_bias.estimate,
        "absolute_bias": abs(statistics.directional_bias.estimate),
        "asymmetry": statistics.asymmetry.estimate,
        "imbalance": statistics.imbalance.estimate,
        "mirror_error": statistics.mirror_error.estimate,
        "mirror_disagreement": statistics.mirror_disagreement.estimate,
        "saliency": saliency_percentiles(found.examples.saliency),
        "windows": len(found.measurements.volume),
    }


def _audit(
    network: nn.Module, parts: Sequence[LabelledVolume], run: Run, progress: bool | None
) -> AuditResult:
    found = audit(
        network,
        [part.volume for part in parts],
        step=run.config.model.step,
        scalings=[part.scaling for part in parts],
        seed=run.seed,
        device=_device(run.config),
        progress=progress,
        **run.audit.model_dump(),
    )
    return found.renamed(run.arm)


def _save_example(network: nn.Module, part: LabelledVolume, config: TrainConfig, path: Path) -> None:
    """Write the middle of the slice with the most foreground: the image, its classes and the predicted classes."""
    z = max(range(len(part.labels)), key=lambda z: np.count_nonzero(part.labels[z]))
    model = config.model
    ready = ReadyNetwork(network, slices=model.slices, device=_device(config), dtype=config.training.dtype)
    _, output = next(
        predict(ready, part.volume, scaling=part.scaling, slices=model.slices, step=model.step, centres=[z])
    )
    height, width = part.volume.shape[1:]
    middle = tuple(
        slice(max(0, (length - EXAMPLE) // 2), (length + EXAMPLE) // 2) for length in (height, width)
    )
    with staged_file(path, force=True) as beside:
        np.savez_compressed(
            beside,
            image=np.rint(part.scaling(part.volume[z]) * 255).astype(np.uint8)[middle],
            labels=part.labels[z].astype(np.uint8)[middle],
            predicted=predicted_classes(output, dim=0).cpu().numpy().astype(np.uint8)[middle],
        )


def _device(config: TrainConfig) -> str:
    accelerator = config.training.accelerator
    return {"gpu": "cuda"}.get(accelerator, accelerator)


def write_results(config: StudyConfig, records: Iterable[Record], out: Path) -> dict[str, Any]:
    """Write what the runs of a study found so far: ``results.csv`` and ``summary.json``.

    Args:
        config: the study.
        records: what ``run.json`` holds, of each run that is finished or failed.
        out: the folder of the study.

    Returns:
        What ``summary.json`` holds: ``planned`` and ``finished`` numbers of runs, ``failed`` (their labels and
        errors), ``baseline``, and ``comparisons`` as ``summarize_runs`` gives them.
    """
    names = ([item.name for item in items] for items in (config.datasets, config.architectures, config.arms))
    by_labels = {tuple(record[name] for name in LABELS): record for record in records}
    ordered = [by_labels[labels] for labels in product(*names, config.seeds) if labels in by_labels]
    done = [record for record in ordered if record["status"] == "done"]
    failed = [record for record in ordered if record["status"] == "failed"]
    summary = {
        "format": STUDY_FORMAT,
        "planned": len(plan(config)),
        "finished": len(done),
        "failed": [{name: record[name] for name in (*LABELS, "error")} for record in failed],
        "baseline": config.baseline,
        "comparisons": summarize_runs(done, baseline=config.baseline, margin=config.margin),
    }
    text = json_text(summary)
    with staged_file(out / "summary.json", force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    _write_table(ordered, config.slices, out / "results.csv")
    written: dict[str, Any] = json.loads(text)
    return written


def _write_table(records: Sequence[Record], slices: int, path: Path) -> None:
    """Write one row for each run; what does not exist is left empty."""
    half = slices // 2
    shares = [f"share_{offset}" for offset in range(-half, half + 1)]
    first = (*LABELS, "dice", "iou", "directional_bias", "asymmetry", "imbalance", *shares, "seconds")
    others = ("verdict", *(name for name in FIGURES if name not in first), "windows", "steps")
    with staged_file(path, force=True) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, (*first, *others, "key", "status", "error"), extrasaction="ignore")
        table.writeheader()
        for record in records:
            table.writerow(record | dict(zip(shares, record.get("shares", ()), strict=False)))
