"""evenslice train: train a segmentation network."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenslice.cli import options
from evenslice.cli.interrupts import resumable
from evenslice.cli.printing import command_line, quiet, show, tell

if TYPE_CHECKING:
    from evenslice.training import TrainConfig


@options.grouped
def train(
    *,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG.yaml", help="Training configuration (YAML).", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        options.output("Folder for the run: log, checkpoints, network, scores.", metavar="RUN"),
    ] = None,
    resume: Annotated[bool, options.output("Resume the run in the folder.", "--resume")] = False,
    print_config: Annotated[
        bool,
        options.output("Print the configuration with all options and exit.", "--print-config"),
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a segmentation network on slice windows and test it.

    Ctrl-C or SIGTERM finishes the current step and writes a checkpoint; a second one ends at once.
    """
    from evenslice._core import ConfigError, load_config, option, to_yaml
    from evenslice.training import TrainConfig, default_yaml

    if print_config:
        for name, given in {"out": out, "resume": resume, "json": json}.items():
            if given:
                raise ConfigError(f"{option(name)}: has no effect with {option('print_config')}; omit it")
        text = default_yaml() if config is None else to_yaml(load_config(config, TrainConfig))
        typer.echo(text, nl=False)
        return
    if config is None or out is None:
        raise ConfigError(
            f"CONFIG.yaml and {option('out')} are required; evenslice train --print-config prints a configuration to start from"
        )
    settings = load_config(config, TrainConfig)
    from evenslice.cli.tables import run_table
    from evenslice.training import RunFolder, train as run_training

    fresh = resume and not RunFolder(out).config.exists()
    notes = [f"note: nothing to resume in {out}; starting"] if fresh else []
    with quiet(json), resumable(f"resume it with: {command_line('--resume')}"):
        result = run_training(
            settings,
            out,
            resume=resume,
            command=command_line(),
            on_start=lambda lines: tell(*notes, *lines),
        )
    if result:  # of several processes, only the first has one
        show(result, run_table(result, out), *_next_step(settings, out), json=json)


def _next_step(settings: "TrainConfig", out: Path) -> list[str]:
    """Return the line that says how to use the network of a run: a classifier segments nothing."""
    from evenslice.networks import parse_specification

    if settings.training.task == "classification":
        return []
    spec = settings.model.spec
    network = ["--run", str(out), *([] if parse_specification(spec).library else ["--model", spec])]
    return [f"next: evenslice segment {shlex.join(network)} --volume VOLUME --out labels.tif"]
