"""evenslice segment: segment a volume."""

from functools import partial
from pathlib import Path
from typing import Annotated

from evenslice.cli import options
from evenslice.cli.ending import resumable
from evenslice.cli.opening import Opening
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import quiet, show, tell_missing_slices


@grouped
def segment(
    *,
    source: options.AnySource,
    inputs: options.LabelledInput,
    volume: Annotated[str, options.volume(f"Volume to segment: {options.VOLUME_HELP}.", metavar="PATH")],
    opening: Opening,
    reading: options.VolumeReading,
    tile: options.Tile = None,
    computing: options.Computing,
    out: Annotated[
        str,
        options.output(
            "File for the labels: .tif, .nii.gz, .ome.zarr (also on s3://), .h5:/path, .mha, .nrrd or .npy.",
            metavar="PATH",
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
    from evenslice.cli.tables import info_table
    from evenslice.volumes import describe_volume

    opened = opening.open(volume)
    tell_missing_slices(opened)
    with quiet(output.json), resumable(partial(_remedy, out, scratch)):
        segmenter = source.load(inputs, **reading)
        written = segmenter.segment(
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


def _remedy(out: str, scratch: Path | None) -> str | None:
    """Return how to go on with an interrupted segmentation; None if nothing of it is finished."""
    from evenslice.inference import unfinished_folder

    folder = unfinished_folder(out, scratch)
    return f"repeat the command to resume; what is finished is in {folder}" if folder.is_dir() else None
