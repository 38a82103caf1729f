"""evenslice study: compare strategies by training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenslice.cli import options
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import quiet, resumable, show_study, tell

if TYPE_CHECKING:
    from evenslice.studying import RunOutcome


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
        bool,
        options.output("Print a configuration to start from and exit.", "--print-config"),
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare strategies on your data: train, test and audit each; skip finished runs.

    Start with evenslice study --print-config > study.yaml, and enter your volumes there.
    """
    from evenslice._core import ConfigError, load_config, option
    from evenslice.studying import STUDY_TEMPLATE, StudyConfig

    if print_config:
        given = {"CONFIG.yaml": config, option("out"): out, option("json"): json or None}
        given |= {option(name): getattr(cluster, name) for name in ("workers", "scheduler")}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}: has no effect with {option('print_config')}; omit it")
        typer.echo(STUDY_TEMPLATE.read_text(encoding="utf-8"), nl=False)
        return
    if config is None or out is None:
        raise ConfigError(
            f"CONFIG.yaml and {option('out')} are required; evenslice study --print-config prints a configuration to start from"
        )
    study_config = load_config(config, StudyConfig)  # before Lightning is imported, which takes seconds
    from evenslice.studying import study as run_study

    folded = [data.name for data in study_config.datasets if data.folds is not None]
    with quiet(json), resumable("repeat the command to resume the study"):
        summary = run_study(
            study_config,
            out,
            workers=cluster.workers,
            scheduler=cluster.scheduler,
            on_start=lambda lines: tell(*lines),
            on_finished=lambda *progress: tell(_line(*progress, folded=folded)),
        )
    show_study(summary, out, json=json)
    if summary["failed"]:
        raise typer.Exit(1)


def _line(outcome: "RunOutcome", count: int, total: int, *, folded: list[str]) -> str:
    """Return the result of a run of a study in one line, with its fold if its data set is among those that have any."""
    from evenslice.results import MAIN_SCORES, run_name, score_title

    place = f"{count}/{total} {run_name(vars(outcome), folded=outcome.dataset in folded)}"
    if outcome.status == "failed":
        return f"{place}: failed: {outcome.error}"
    scores = [(getattr(outcome, name), score_title(name), ".3f") for name in MAIN_SCORES.values()]
    figures = " ".join(
        f"{title} {value:{form}}"
        for value, title, form in (*scores, (outcome.directional_bias, "D_m", "+z.4f"))
        if value is not None
    )
    return f"{place}: {figures}, trained in {outcome.seconds:.0f} s"
