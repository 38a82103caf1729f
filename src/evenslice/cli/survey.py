"""evenslice survey: compare networks."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from evenslice.cli import options
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import command_line, quiet, show_survey


@grouped
def survey(
    *,
    specs: Annotated[
        list[str],
        typer.Argument(metavar="SPEC", help="Networks, as for --model of evenslice audit, except onnx."),
    ],
    weights: Annotated[
        str,
        options.network(
            "Weights of all networks: imagenet, none (random), or, for a single network, a file.", metavar="W"
        ),
    ] = "imagenet",
    inputs: options.Window,
    volume: Annotated[
        str | None,
        options.volume(f"Volume: {options.VOLUME_HELP} (default: an MRI template).", metavar="PATH"),
    ] = None,
    windows: Annotated[int, options.measurement("Windows to measure per network.", metavar="N")] = 60,
    draws: Annotated[
        int,
        options.measurement(
            "Draws of a network's random parts, such as a decoder, to average over.", metavar="N"
        ),
    ] = 3,
    seed: options.Seed = 0,
    computing: options.DeviceAlone,
    out: Annotated[
        Path | None, options.output("Folder for survey.json, survey.csv and the report.", metavar="DIR")
    ] = None,
    output: options.Output,
) -> None:
    """Compare networks: how their first layers weight colours, and how that biases them towards some slices.

    The exit status is 1 if a network failed.
    """
    from evenslice.auditing import survey as compare_networks
    from evenslice.report import need_report_extra
    from evenslice.results import SURVEY_FILES

    if out is not None:
        need_report_extra("the report of a survey")
    with quiet(output.json), output.staged(out, SURVEY_FILES, ("survey.json",)) as folder:
        found = compare_networks(
            specs,
            weights=weights,
            volume=volume,
            windows=windows,
            draws=draws,
            seed=seed,
            compute=computing,
            command=command_line(),
            **asdict(inputs),
        )
        if folder is not None:
            found.write(folder)
    show_survey(found, out, json=output.json)
    if found.failed:
        raise typer.Exit(1)
