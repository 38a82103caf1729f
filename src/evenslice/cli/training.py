"""evenslice train and study: train a segmentation network, and compare strategies by training."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenslice.cli import options
from evenslice.cli.options import grouped
from evenslice.cli.printing import command_line, quiet, resumable, show, show_result, tell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.table import Table

    from evenslice import TrainConfig

TEST_SCORES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "dice": "Dice", "iou": "IoU"}
"""Scores of the test that have a value for each class."""


@grouped
def train(
    *,
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.yaml",
            help="Training configuration (YAML); optional only with --resume or --print-config.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        options.computing(
            "Random seed (default: the configuration's).", metavar="N", callback=options.check_seed
        ),
    ] = None,
    out: Annotated[
        Path | None, options.output("Folder for the run: log, checkpoints, network, scores.", metavar="RUN")
    ] = None,
    resume: Annotated[
        bool, options.output("Resume the run in the folder; its configuration may be left out.", "--resume")
    ] = False,
    print_config: Annotated[
        bool, options.output("Print the configuration with all options and exit.", "--print-config")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a network on slice windows, to segment or to classify, and test it.

    Start with evenslice train --print-config > train.yaml, and enter your volumes there.

    Ctrl-C or SIGTERM finishes the current step and writes a checkpoint; a second one ends at once.
    """
    from evenslice import ConfigError, TrainConfig
    from evenslice._core import option, to_yaml
    from evenslice.training import RunFolder

    if print_config:
        text = TrainConfig.template() if config is None else to_yaml(_settings(config, seed))
        typer.echo(text, nl=False)
        return
    if config is None and resume and out is not None:
        config = RunFolder(out).config
        if not config.exists():
            raise ConfigError(f"{out}: holds no run to resume; to start one, give its CONFIG.yaml")
    if config is None or out is None:
        raise ConfigError(
            f"CONFIG.yaml and {option('out')} are required; evenslice train --print-config prints a configuration to start from"
        )
    settings = _settings(config, seed)
    from evenslice import train as run_training

    fresh = resume and not RunFolder(out).config.exists()
    notes = [f"note: nothing to resume in {out}; starting"] if fresh else []
    with quiet(json), resumable(f"resume it with: {command_line('--resume')}"):
        result = run_training(
            settings, out, resume=resume, command=command_line(), on_start=lambda lines: tell(*notes, *lines)
        )
    if result:  # of several processes, only the first has one
        show(result, _run_table(result, out), *_next_step(settings, out), json=json)


def _settings(config: Path, seed: int | None) -> "TrainConfig":
    """Return what a file configures, with another seed if one is given."""
    from evenslice import TrainConfig, load_config

    settings = load_config(config, TrainConfig)
    return settings if seed is None else settings.model_copy(update={"seed": seed})


def _next_step(settings: "TrainConfig", out: Path) -> list[str]:
    """Return the line that says how to use the network of a run: a classifier segments nothing."""
    from evenslice.networks import parse_specification

    if settings.training.task == "classification":
        return []
    spec = settings.model.spec
    network = ["--run", str(out), *([] if parse_specification(spec).library else ["--model", spec])]
    return [f"next: evenslice segment {shlex.join(network)} --volume VOLUME --out labels.tif"]


def _run_table(result: "Mapping[str, Any]", out: Path) -> "Table":
    """Return the result of a run, one entry in each row."""
    from evenslice.cli.tables import facts
    from evenslice.results import TASK_SCORES, score_title

    rows = {"steps": f"{result['steps']} in {result['seconds']:.0f} s"}
    if (found := result["validation"]) is not None:
        score = next(names[0] for names in TASK_SCORES.values() if names[0] in found)
        rows["checkpoint"] = f"step {found['step']}, validation {score_title(score)} {found[score]:.3f}"
    for name in ("accuracy", "adapted_rand_error"):
        if result.get(name) is not None:
            rows[f"test {score_title(name)}"] = f"{result[name]:.3f}"
    if (parts := result.get("variation_of_information")) and parts["split"] is not None:
        rows["test variation of information"] = (
            f"{parts['split']:.3f} by splits, {parts['merge']:.3f} by mergers"
        )
    for name, title in TEST_SCORES.items():
        if result.get(name) is not None:
            mean, *classes = (
                "none" if value is None else f"{value:.3f}"
                for value in (result[name]["mean"], *result[name]["per_class"])
            )
            rows[f"test {title}"] = f"{mean} (classes: {', '.join(classes)})"
    rows |= _stress_rows(result.get("stress"))
    if result["bias"] is not None and result["bias"]["directional_bias"] is not None:
        rows["directional bias D_m"] = f"{result['bias']['directional_bias']:+z.3f}"
    return facts(str(out), rows | {"network": str(out / "network.safetensors")})


def _stress_rows(stress: "Mapping[str, Any] | None") -> "Iterator[tuple[str, str]]":
    """Yield what lost slices, and a reversed stack, leave of the Dice."""
    if stress is None or stress["intact"] is None:
        return
    yield f"Dice of {stress['slices']} test slices", f"{stress['intact']:.3f}"
    for loss in stress["losses"]:
        if loss["kind"] == "missing" and loss["before"] is not None:
            sides = ", ".join(f"{name} {loss[name]:z.3f}" for name in ("before", "after", "both"))
            yield f"  slice ±{loss['offset']} missing", sides
    yield "  stack reversed", f"{stress['reversed']:z.3f}"


@grouped
def study(
    *,
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.yaml",
            help="Strategies, networks, data sets, folds and seeds to combine; optional only with --print-config.",
            show_default=False,
        ),
    ] = None,
    cluster: options.Cluster,
    out: Annotated[Path | None, options.output("Folder for runs, results and report.", metavar="DIR")] = None,
    print_config: Annotated[
        bool, options.output("Print a configuration to start from and exit.", "--print-config")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare strategies on your data: train, test and audit each; skip finished runs.

    Start with evenslice study --print-config > study.yaml, and enter your volumes there.
    """
    from evenslice import ConfigError, StudyConfig, load_config
    from evenslice._core import option

    if print_config:
        typer.echo(StudyConfig.template(), nl=False)
        return
    if config is None or out is None:
        raise ConfigError(
            f"CONFIG.yaml and {option('out')} are required; evenslice study --print-config prints a configuration to start from"
        )
    study_config = load_config(config, StudyConfig)  # before Lightning is imported, which takes seconds
    from evenslice import study as run_study

    folded = [data.name for data in study_config.datasets if data.folds is not None]
    with quiet(json), resumable("repeat the command to resume the study"):
        summary = run_study(
            study_config,
            out,
            workers=cluster.workers,
            scheduler=cluster.scheduler,
            on_start=lambda lines: tell(*lines),
            on_finished=lambda outcome, count, total: tell(
                f"{count}/{total} {outcome.line(folded=outcome.dataset in folded)}"
            ),
        )
    show_result(summary, summary, f"results: {out / 'results.csv'}", out=out, json=json)
    if summary["failed"]:
        raise typer.Exit(1)
