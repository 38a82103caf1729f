"""evenslice info: describe a volume."""

from typing import Annotated

import typer

from evenslice.cli import options
from evenslice.cli.opening import Opening
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import show


@grouped
def info(
    *,
    path: Annotated[str, typer.Argument(metavar="PATH", help=f"Volume: {options.VOLUME_HELP}.")],
    opening: Opening,
    json: options.Json = False,
) -> None:
    """Describe a volume: format, shape, spacing, orientation, size, intensities, classes."""
    from evenslice.cli.tables import info_table
    from evenslice.volumes import describe_volume

    described = describe_volume(opening.open(path))
    show(described, info_table(described), json=json)
