"""evenslice study: compare strategies by training."""

from pathlib import Path
from typing import Annotated

import typer

from evenslice.cli import options
from evenslice.cli.interrupts import resumable
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import quiet, show_study, tell


@grouped
def study(
    *,
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml", help="Strategies, networks, data sets, folds and seeds to combine."
        ),
    ],
    cluster: options.Cluster,
    out: Annotated[Path, options.output("Folder for runs, results and report.", metavar="DIR")],
    json: options.Json = False,
) -> None:
    """Compare strategies on your data: train, test and audit each; skip finished runs."""
    from evenslice._core import load_config
    from evenslice.studying import StudyConfig

    study_config = load_config(config, StudyConfig)  # before Lightning is imported, which takes seconds
    from evenslice.cli.study_tables import run_line
    from evenslice.studying import study as run_study

    folded = [data.name for data in study_config.datasets if data.folds is not None]
    with quiet(json), resumable("repeat the command to resume the study"):
        summary = run_study(
            study_config,
            out,
            workers=cluster.workers,
            scheduler=cluster.scheduler,
            on_start=lambda lines: tell(*lines),
            on_finished=lambda *progress: tell(run_line(*progress, folded=folded)),
        )
    show_study(summary, out, json=json)
    if summary["failed"]:
        raise typer.Exit(1)
