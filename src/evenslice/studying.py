"""Studies: every arm with every architecture on every data set with every seed, trained, tested and audited.

    summary = study(load_config("study.yaml", StudyConfig), "results")

A run is known by a hash of all that its outcome depends on. Its folder below ``runs`` gets the small file ``run.json``
at the end, and a run that has one is never repeated. One that was interrupted goes on from its last checkpoint, and one
that failed is tried again, when the study is started the next time: it may be stopped at will, and be given more arms,
data sets or seeds.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import traceback
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from evenslice.auditing import audit
from evenslice.checkpoints import load_network
from evenslice.config import (
    AugmentationConfig,
    DataConfig,
    ModelConfig,
    Section,
    Slices,
    Source,
    Strategy,
    Tie,
    TrainConfig,
    TrainingConfig,
    Weights,
    check_strategy,
    to_yaml,
)
from evenslice.datasets import open_data
from evenslice.distributing import finished, open_cluster
from evenslice.errors import ConfigError, EvensliceError, needs_extra
from evenslice.inference import ReadyNetwork
from evenslice.outputs import json_text, staged_file
from evenslice.predicting import predict, predicted_classes
from evenslice.results import save_audits
from evenslice.runs import MOVABLE, RunFolder, flat_options
from evenslice.summarizing import FIGURES, summarize_runs
from evenslice.training import train

with needs_extra("train", "a study"):
    from pydantic import (
        AfterValidator,
        Field,
        ValidationInfo,
        field_serializer,
        field_validator,
        model_validator,
    )

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from evenslice.datasets import Part
    from evenslice.results import Audit

    Record = dict[str, Any]

__all__ = [
    "Architecture",
    "Arm",
    "AuditOptions",
    "Run",
    "StudyConfig",
    "StudyData",
    "perform",
    "plan",
    "study",
    "write_results",
]

FORMAT = 1
LABELS = ("dataset", "architecture", "arm", "seed")
EXAMPLE = 256  # pixels along y and x


class Arm(Section):
    """One way to start and to train, which is compared with the others."""

    name: str = Field(min_length=1, description="What the arm is called in results.")
    strategy: Strategy = Field(
        default="uniform", description="How colour kernels become slice kernels, as train takes it."
    )
    tie: Tie = Field(default=None, description="Keep the symmetry while training: mirror or uniform.")
    z_flip: bool | None = Field(
        default=None, description="Reverse the slices of crops at random; by default as in augmentation."
    )
    weights: Weights | None = Field(default=None, description="Weights instead of the architecture's.")


class Architecture(Section):
    """A network to compare the arms with."""

    name: str = Field(min_length=1, description="What the network is called in results.")
    spec: str = Field(min_length=1, description="The network, as train takes it.")
    weights: Weights = Field(default="imagenet", description="Its weights: imagenet, none or a file.")


def _one_device(training: TrainingConfig) -> TrainingConfig:
    if training.devices > 1:
        raise ValueError("a run of a study has one device; run several at once with --workers")
    return training


OneDevice = Annotated[TrainingConfig, AfterValidator(_one_device)]


class StudyData(DataConfig):
    """A data set to compare the arms on."""

    test: tuple[Source, ...] = Field(min_length=1, description="Pairs to test and audit networks on.")
    training: OneDevice = Field(
        default_factory=TrainingConfig,
        description="Options of training that differ for this data set; the others are those of the study.",
    )

    @field_serializer("training")
    def _in_full(self, training: TrainingConfig) -> dict[str, Any]:
        """Keep what is a default, too: it may not be what the study has."""
        return training.model_dump(mode="json")

    def data(self) -> DataConfig:
        """Return the data set as ``train`` takes it."""
        return DataConfig.model_validate(self.model_dump(exclude={"training"}))


class AuditOptions(Section):
    """How trained networks are audited, on the test volumes."""

    method: str = Field(default="gradient", description="Of attribution.")
    precision: float = Field(
        default=0.01, gt=0, description="Half-width of the 95 % intervals of the pair biases to stop at."
    )
    max_windows: int | None = Field(default=400, ge=1, description="Stop after so many windows in any case.")
    batch: int = Field(default=4, ge=1, description="Windows in one pass.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="Precision; in bfloat16 rounding alone makes biases of 0.001."
    )


class StudyConfig(Section):
    """Everything that a study depends on.

    Example:
        >>> pair = {"image": "image.tif", "labels": "labels.tif"}
        >>> config = StudyConfig.model_validate({
        ...     "seeds": [0, 1],
        ...     "training": {"steps": 400, "batch": 4},
        ...     "arms": [{"name": "pretrained", "strategy": "pretrained"}, {"name": "uniform"}],
        ...     "architectures": [{"name": "Lite0", "spec": "smp:Unet/tu-tf_efficientnet_lite0"}],
        ...     "datasets": [{"name": "em", "train": [pair], "test": [pair], "training": {"steps": 300}}],
        ... })
        >>> len(plan(config)), config.datasets[0].training.steps, config.datasets[0].training.batch
        (4, 300, 4)
    """

    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="Each arm is run with each of these seeds."
    )
    slices: Slices = Field(default=3, description="Slices in a window, odd.")
    step: int = Field(default=1, ge=1, description="Distance between the slices of a window.")
    augmentation: AugmentationConfig = Field(
        default=AugmentationConfig(), description="How crops are varied."
    )
    training: OneDevice = Field(default=TrainingConfig(), description="How networks are trained.")
    audit: AuditOptions = Field(default=AuditOptions(), description="How they are audited.")
    arms: tuple[Arm, ...] = Field(min_length=1, description="What is compared.")
    baseline: str = Field(default="pretrained", description="The arm that the others are compared with.")
    margin: float = Field(
        default=0.01, gt=0, lt=1, description="The loss of Dice against the baseline that would matter."
    )
    architectures: tuple[Architecture, ...] = Field(min_length=1, description="The networks.")
    datasets: tuple[StudyData, ...] = Field(min_length=1, description="The data sets.")

    @model_validator(mode="before")
    @classmethod
    def _complete_training(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Give each data set the options of training that it does not change."""
        common, datasets = (values.get(name) for name in ("training", "datasets"))
        if not isinstance(common, dict) or not isinstance(datasets, list):
            return values
        completed = [
            {**data, "training": common | (data.get("training") or {})}
            if isinstance(data, dict) and isinstance(data.get("training"), dict | None)
            else data
            for data in datasets
        ]
        return {**values, "datasets": completed}

    @field_validator("arms", "architectures", "datasets")
    @classmethod
    def _named_apart(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name for item in items]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} stands twice; name each differently")
        return items

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("give different seeds of at least 0")
        return seeds

    @field_validator("arms")
    @classmethod
    def _fit_slices(cls, arms: tuple[Arm, ...], info: ValidationInfo) -> tuple[Arm, ...]:
        for arm in arms if "slices" in info.data else ():
            check_strategy(arm.strategy, info.data["slices"])
        return arms

    @field_validator("baseline")
    @classmethod
    def _is_an_arm(cls, baseline: str, info: ValidationInfo) -> str:
        names = [arm.name for arm in info.data.get("arms", ())]
        if names and baseline not in names:
            raise ValueError(f"no arm has this name; the arms are {', '.join(names)}")
        return baseline


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        dataset: the name of the data set.
        architecture: the name of the architecture.
        arm: the name of the arm.
        seed: of everything that is drawn.
        config: what is trained.
        audit: how it is audited.
    """

    dataset: str
    architecture: str
    arm: str
    seed: int
    config: TrainConfig
    audit: AuditOptions

    @property
    def labels(self) -> Record:
        """What tells the run from others for a reader."""
        return {name: getattr(self, name) for name in LABELS}

    @cached_property
    def key(self) -> str:
        """A hash of all options that the outcome depends on, and of the file of weights if there is one.

        Data are known by the name of their set and their paths, without the folder that these start from.
        """
        options = flat_options(self.config.model_dump(mode="json"))
        options = {name: value for name, value in options.items() if name not in MOVABLE}
        weights = Path(self.config.model.weights)
        if weights.is_file():
            options["model.weights"] = _digest(weights)
        text = json.dumps([FORMAT, options, self.audit.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def folder(self, base: Path) -> Path:
        """Return the run's folder: the one that has its key, whatever its arm was called, else a new one's name."""
        slug = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, self.labels.values())).lower()).strip("-.")
        return next(iter(sorted(base.glob(f"*-{self.key}"))), base / f"{slug}-{self.key}")

    def record(self, base: Path) -> Record | None:
        """Return what the finished run found, under its present names, or None where it is not finished."""
        path = self.folder(base) / "run.json"
        if not path.is_file():
            return None
        try:
            found: Record = json.loads(path.read_text(encoding="utf-8"))
            done = found["status"] == "done"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is not the record of a run ({error}); remove it") from error
        return found | self.labels if done else None


def plan(config: StudyConfig) -> list[Run]:
    """Return the runs of a study, in the order in which they are done: all with the first seed come first.

    Raises:
        ConfigError: two arms or two architectures are the same but for their names.
    """
    runs = [
        _make_run(config, *choice)
        for choice in product(config.seeds, config.datasets, config.architectures, config.arms)
    ]
    known: dict[str, Run] = {}
    for run in runs:
        same = known.setdefault(run.key, run)
        if same is not run:
            names = [f"{item.dataset}, {item.architecture}, {item.arm}" for item in (same, run)]
            raise ConfigError(f"{names[1]}: is the same as {names[0]}; remove one of the two")
    return runs


def _make_run(config: StudyConfig, seed: int, data: StudyData, architecture: Architecture, arm: Arm) -> Run:
    flip = config.augmentation.z_flip if arm.z_flip is None else arm.z_flip
    return Run(
        dataset=data.name,
        architecture=architecture.name,
        arm=arm.name,
        seed=seed,
        config=TrainConfig(
            data=data.data(),
            model=ModelConfig(
                spec=architecture.spec,
                weights=arm.weights or architecture.weights,
                slices=config.slices,
                step=config.step,
                strategy=arm.strategy,
                tie=arm.tie,
            ),
            augmentation=config.augmentation.model_copy(update={"z_flip": flip}),
            training=data.training,
            seed=seed,
        ),
        audit=config.audit,
    )


@cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    and ``predicted`` (y, x) of a test slice) and ``run.json``. The results are written anew after each run.

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
        ConfigError: the data do not suit the configuration, arms are the same, or the scheduler does not answer. What
            goes wrong in a single run is recorded with it, and the others go on.
        VolumeError: a data set cannot be used.
        OutputError: the folder cannot be written.
        MissingExtraError: a package is missing.
    """
    out = Path(out).absolute()
    base = out / "runs"
    runs = plan(config)
    records = {run.key: found for run in runs if (found := run.record(base)) is not None}
    waiting = [run for run in runs if run.key not in records]
    for data in config.datasets:  # all mistakes in the data show before the first run
        if any(run.dataset == data.name for run in waiting):
            open_data(data.data(), ModelConfig(slices=config.slices, step=config.step))
    with staged_file(out / "config.yaml", force=True) as beside:
        beside.write_text(to_yaml(config), encoding="utf-8")
    for run, record in _perform_all(waiting, base, workers, scheduler):
        records[run.key] = record
        write_results(config, records.values(), out)
        if on_finished is not None:
            on_finished(record, len(records), len(runs))
    return write_results(config, records.values(), out)


def _perform_all(
    runs: Sequence[Run], base: Path, workers: int | None, scheduler: str | None
) -> Iterator[tuple[Run, Record]]:
    if not runs:
        return
    with open_cluster(workers, scheduler) as client:
        for run, outcome in finished(partial(perform, base=base), runs, client):
            if isinstance(outcome, Exception):  # several workers died with the run
                yield run, _write_record(run, base, _failure(outcome))
            else:
                yield run, outcome


def perform(run: Run, base: Path) -> Record:
    """Train, test and audit one run, or go on with it where it was interrupted, and record what came of it.

    Args:
        run: what to do.
        base: the folder in which the run has, or gets, its own.

    Returns:
        What ``run.json`` then holds: the labels of the run, ``key``, ``status`` ("done" or "failed"), ``error``
        (one line, or None) and, where it is done, ``shares``, those of ``summarizing.FIGURES``, ``verdict``,
        ``windows``, ``steps`` and ``seconds`` of training.
    """
    try:
        outcome = {"status": "done", "error": None, **_figures(run, run.folder(base))}
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
    text = json_text(run.labels | {"key": run.key} | outcome)
    with staged_file(run.folder(base) / "run.json", force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    record: Record = json.loads(text)
    return record


def _figures(run: Run, folder: Path) -> Record:
    """Train, test and audit a network, and return its figures."""
    config, files = run.config, RunFolder(folder)
    result = train(config, folder, resume=True, progress=False)
    tested = open_data(config.data, config.model, seed=config.seed).test
    network, _, _ = load_network(config.model.spec, str(files.network))
    found = _audit(network, tested, run)
    save_audits([found], folder)
    _save_example(network, tested[0], config, folder / "example.npz")
    shutil.rmtree(files.last.parent, ignore_errors=True)
    return _tested(result) | _audited(found) | {"steps": result["steps"], "seconds": result["seconds"]}


def _tested(result: Mapping[str, Any]) -> Record:
    information = result["variation_of_information"]
    known = None not in information.values()
    return {
        **{name: result[name]["mean"] for name in ("dice", "iou", "hd95", "surface_dice")},
        "adapted_rand_error": result["adapted_rand_error"],
        "variation_of_information": information["split"] + information["merge"] if known else None,
    }


def _audited(found: Audit) -> Record:
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
        "windows": len(found.measurements.volume),
    }


def _audit(network: nn.Module, parts: Sequence[Part], run: Run) -> Audit:
    found = audit(
        network,
        [part.volume for part in parts],
        step=run.config.model.step,
        scalings=[part.scaling for part in parts],
        seed=run.seed,
        device=_device(run.config),
        progress=False,
        **run.audit.model_dump(),
    )
    return found.renamed(run.arm)


def _save_example(network: nn.Module, part: Part, config: TrainConfig, path: Path) -> None:
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
            predicted=predicted_classes(output).cpu().numpy().astype(np.uint8)[middle],
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
        "format": FORMAT,
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
    # The page of the study, report.html, will be written here, from these two files and the runs' folders.
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
