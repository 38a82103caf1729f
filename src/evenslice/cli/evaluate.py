"""evenslice evaluate: compare a network's answers with labels, and measure what disturbed slices cost."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from evenslice.cli import options
from evenslice.cli.opening import LabelledOpening
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import command_line, quiet, show, tell_missing_slices


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured besides the scores."""

    stress: Annotated[
        bool,
        options.measurement(
            "Also predict with neighbouring slices missing, blank, noisy or shifted, and with reversed stacks.",
            "--stress",
        ),
    ] = False
    stress_slices: Annotated[
        int | None,
        options.measurement(
            "Disturb the windows of at most this many slices (default: 60).", metavar="N", min=1
        ),
    ] = None
    no_surfaces: Annotated[
        bool,
        options.measurement(
            "Skip the surface distances, which are measured in volumes of up to 67,108,864 voxels.",
            "--no-surfaces",
        ),
    ] = False
    seed: options.Seed = 0


@grouped
def evaluate(
    *,
    source: options.AnySource,
    inputs: options.LabelledInput,
    volume: Annotated[str, options.volume(f"Volume to evaluate: {options.VOLUME_HELP}.", metavar="PATH")],
    labels: Annotated[
        str | None,
        options.volume(
            "Class labels of the volume; required unless --stress is given, which then compares with the intact answer.",
            metavar="PATH",
        ),
    ] = None,
    reading: options.LabelledReading,
    opening: LabelledOpening,
    measured: Measured,
    tile: options.Tile = None,
    computing: options.Passes,
    out: Annotated[Path | None, options.output("Folder for result.json.", metavar="DIR")] = None,
    output: options.Output,
) -> None:
    """Compare a network's answers with labels, and measure what disturbed slices cost."""
    from evenslice._core import ConfigError
    from evenslice.cli.evaluation_tables import evaluation_tables
    from evenslice.inference import RESULT_FILES, evaluate as measure

    if labels is None:
        options.refuse_labels(reading)
        opening.refuse()
        if measured.no_surfaces:
            raise ConfigError("--no-surfaces: has no effect without --labels; give both or neither")
    opened = opening.open(volume)
    tell_missing_slices(opened)
    opened_labels = None if labels is None else opening.open_labels(labels, volume)
    with quiet(output.json), output.staged(out, RESULT_FILES, RESULT_FILES) as folder:
        network = source.load(inputs, reading)
        found = measure(
            network,
            opened,
            opened_labels,
            stress=measured.stress,
            stress_slices=measured.stress_slices,
            surfaces=not measured.no_surfaces,
            seed=measured.seed,
            tile=tile,
            compute=computing,
        )
        found = replace(found, command=command_line())
        if folder is not None:
            found.write(folder)
    lines = [] if out is None else [f"result: {out / 'result.json'}"]
    show(found.to_dict(), *evaluation_tables(found), *lines, json=output.json)
