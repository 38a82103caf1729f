"""evenslice info, segment and evaluate: describe a volume, label it, and compare labels with a network's answers."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenslice.cli import options
from evenslice.cli.options import grouped
from evenslice.cli.printing import command_line, quiet, resumable, show, tell_missing_slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table


SCORES = {
    "dice": "Dice",
    "iou": "IoU",
    "surface_dice": "surface Dice\n1 voxel",
    "surface_dice_3": "3 voxels",
    "hd95": "HD95",
}
"""The figures for each class, and the headings of their columns."""


@grouped
def info(
    *,
    path: Annotated[str, typer.Argument(metavar="PATH", help=f"Volume: {options.VOLUME_HELP}.")],
    opening: options.Opening,
    json: options.Json = False,
) -> None:
    """Describe a volume: format, shape, spacing, orientation, size, intensities, classes."""
    from evenslice.cli.tables import info_table
    from evenslice.volumes import describe_volume

    described = describe_volume(opening.open(path))
    show(described, info_table(described), json=json)


@dataclass(frozen=True, kw_only=True)
class PlacedOpening(options.Opening):
    """How to read the axes of a volume, and the size of its voxels."""

    spacing: Annotated[
        tuple[float, float, float] | None,
        options.volume("Voxel size along z, y and x (default: as the file states).", metavar="Z Y X"),
    ] = None
    unit: Annotated[
        str | None,
        options.volume("Unit of the voxel size, such as nm, um or mm (default: the file's).", metavar="UNIT"),
    ] = None


@grouped
def segment(
    *,
    source: options.Source,
    inputs: options.Input,
    volume: Annotated[str, options.volume(f"Volume to segment: {options.VOLUME_HELP}.", metavar="PATH")],
    opening: PlacedOpening,
    reading: options.VolumeReading,
    tile: options.Tile = None,
    computing: options.WholeVolumes,
    out: Annotated[
        str,
        options.output(
            "File for the labels: .tif, .nii.gz, .ome.zarr, .h5:/path, .mha, .nrrd or .npy.", metavar="PATH"
        ),
    ],
    probabilities: Annotated[
        bool, options.output("Write class probabilities instead of labels.", "--probabilities")
    ] = False,
    scratch: Annotated[
        Path | None, options.output("Folder for unfinished work (default: beside --out).", metavar="DIR")
    ] = None,
    output: options.Output,
) -> None:
    """Segment a volume, also one larger than memory; an interrupted run resumes when the command is repeated."""
    from evenslice import segment as write_labels
    from evenslice.cli.tables import info_table
    from evenslice.volumes import describe_volume

    opened = opening.open(volume, spacing=opening.spacing, unit=opening.unit)
    tell_missing_slices(opened)
    with quiet(output.json), resumable(None):
        segmenter = source.load(inputs, reading)
        written = write_labels(
            segmenter,
            opened,
            out,
            probabilities=probabilities,
            scratch=scratch,
            force=output.force,
            tile=tile,
            compute=computing,
        )
    described = describe_volume(written)
    show(described, info_table(described), json=output.json)


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
            "Skip surface distances (measured in volumes of up to 67,108,864 voxels).", "--no-surfaces"
        ),
    ] = False
    seed: options.Seed = 0


@grouped
def evaluate(
    *,
    source: options.Source,
    inputs: options.Input,
    volume: Annotated[str, options.volume(f"Volume to evaluate: {options.VOLUME_HELP}.", metavar="PATH")],
    labels: Annotated[
        str | None,
        options.volume(
            "Class labels of the volume (default, with --stress: the intact answer).", metavar="PATH"
        ),
    ] = None,
    reading: options.LabelledReading,
    opening: options.LabelledOpening,
    measured: Measured,
    tile: options.Tile = None,
    computing: options.Passes,
    out: Annotated[Path | None, options.output("Folder for result.json.", metavar="DIR")] = None,
    output: options.Output,
) -> None:
    """Compare a network's answers with labels, and measure the cost of disturbed slices."""
    from evenslice import evaluate as measure

    if labels is None:
        opening.refuse(reading, no_surfaces=measured.no_surfaces or None)
    opened = opening.open(volume)
    tell_missing_slices(opened)
    opened_labels = None if labels is None else opening.open_labels(labels, volume)
    with quiet(output.json), output.staged(out, ["result.json"], ["result.json"]) as folder:
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
    show(found.to_dict(), *_tables(found), *lines, json=output.json)


def _tables(found: Any) -> "Iterator[Table]":
    """Yield a table of the scores by class, of objects, and of the cost of disturbed slices, as far as they were measured."""
    from evenslice.cli.tables import new_table, rich_table
    from evenslice.report import tables_of

    if found.scores is not None:
        document = found.to_dict()
        yield _scores_table(document)
        error, information = document["adapted_rand_error"], document["variation_of_information"]
        if not math.isnan(error):
            columns = ("adapted\nRand error", "variation of information\nby splits", "by mergers")
            cells = map(_score, (error, information["split"], information["merge"]))
            yield new_table("objects between the boundaries", columns, [*cells])
    if found.stress is not None:
        yield from (rich_table(table, breaks=False) for table in tables_of(found.stress.summary()))


def _scores_table(document: dict[str, Any]) -> "Table":
    """Return one row for each class, and one for the mean."""
    from evenslice.cli.tables import new_table

    unit = document["volumes"][0]["unit"]
    rows = [
        [str(number), *(_score(document[name]["per_class"][number]) for name in SCORES)]
        for number in range(len(document["dice"]["per_class"]))
    ]
    columns = ["class", *SCORES.values()]
    columns[-1] += f"\n({unit})" if unit else ""
    table = new_table("agreement with the labels", columns, *rows)
    table.add_section()
    table.add_row("mean without 0", *(_score(document[name]["mean"]) for name in SCORES))
    return table


def _score(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3f}".removeprefix("0")
