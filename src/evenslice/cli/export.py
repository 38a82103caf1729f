"""evenslice export: hand a network on to other programs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from evenslice.cli import options
from evenslice.cli.options import grouped
from evenslice.cli.printing import quiet, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from evenslice import Audit


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a file cannot know about a network."""

    name: Annotated[str | None, options.output("Name of the network.", metavar="NAME")] = None
    description: Annotated[str | None, options.output("Purpose of the network.", metavar="TEXT")] = None
    authors: Annotated[
        list[str] | None, options.output("Author; repeat for more.", "--author", metavar="NAME")
    ] = None
    license: Annotated[
        str | None, options.output("License, as an SPDX identifier such as CC-BY-4.0.", metavar="ID")
    ] = None
    cite: Annotated[
        list[str] | None,
        options.output("Reference with a DOI or an address; repeat for more.", metavar="TEXT"),
    ] = None


@grouped
def export(
    *,
    source: options.Source,
    inputs: options.Input,
    reading: options.LabelledReading,
    to: Annotated[
        str,
        options.output(
            "Format: onnx, bioimageio or huggingface.",
            metavar="FORMAT",
            autocompletion=lambda: ("onnx", "bioimageio", "huggingface"),
        ),
    ],
    out: Annotated[Path, options.output("Folder for the exported network.", metavar="DIR")],
    tile: Annotated[
        tuple[int, int] | None,
        options.output(
            "Fix the size of windows in pixels (default: a classifier's crops, else free where possible).",
            metavar="Y X",
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        options.output(
            "Folder with audits of the network (default: the run's, unless --symmetrize changes the network).",
            metavar="DIR",
        ),
    ] = None,
    card: Card,
    output: options.Output,
) -> None:
    """Write a network as an ONNX file, a model for bioimage.io or a folder for Hugging Face.

    The export records how to read volumes and labels: from the options, else from the run or the file of weights.
    """
    from evenslice import ModelCard, export as write_network

    with quiet(output.json):
        audits = _audits(source.run, audit, symmetrized=inputs.symmetrize is not None)
        segmenter = source.load(inputs, reading)
        written = write_network(
            segmenter,
            out,
            to=to,
            tile=tile,
            card=ModelCard(**asdict(card)),
            audits=audits,
            force=output.force,
        )
    show(written.to_dict(), _table(written), json=output.json)


def _audits(run: Path | None, folder: Path | None, *, symmetrized: bool) -> "Sequence[Audit]":
    """Read the audits of a folder, or those that a run may hold beside its network.

    Those say nothing about a network that is symmetrized now. Folders within the run may hold audits of anything.
    """
    from evenslice import Audit, load_audits
    from evenslice.cli.comparison import AUDITS

    if folder is not None:
        return load_audits(folder)
    if run is None or symmetrized:
        return ()
    files = (path for pattern in AUDITS if pattern.endswith(".json") for path in sorted(run.glob(pattern)))
    return [Audit.load(path) for path in files]


def _table(written: Any) -> "Table":
    """Return what was exported, one entry in each row."""
    from evenslice.cli.tables import facts

    mean, std = (", ".join(f"{value:g}" for value in values) for values in (written.mean, written.std))
    rows = {
        "files": ", ".join(written.files),
        "slices": str(written.slices),
        "scaling of a slice": f"(slice - {mean}) / {std}",
    }
    if written.difference is None:
        return facts(str(written.folder), rows | {"weights": "bit-identical"})
    free = f"multiples of {written.multiple}"
    size = free if written.tile is None else "only {} x {}".format(*written.tile)
    rows["windows"] = f"{size} pixels"
    rows["largest difference"] = f"{written.difference:.1e} of the largest output, in onnxruntime"
    return facts(str(written.folder), rows)
