"""evenslice symmetrize: make any network treat a window of slices and its mirror alike."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from evenslice.cli import options
from evenslice.cli.printing import quiet, show


@options.grouped
def symmetrize(
    *,
    source: options.Source,
    window: options.Window,
    classes: options.Classes = None,
    at: Annotated[
        str,
        options.network(
            "Where to average: at the output (right for a trained network), after the encoder, or after the module of "
            "this name.",
            metavar="AT",
            autocompletion=lambda: options.CUTS,
        ),
    ] = "output",
    out: Annotated[Path, options.output("File for the symmetric network (.safetensors).", metavar="FILE")],
    output: options.Output,
) -> None:
    """Average a network over each window and its mirror: exactly symmetric, trained or not, without retraining."""
    from evenslice.cli.tables import record_table
    from evenslice.inference import stated_reading
    from evenslice.neutralizing import neutralize_file
    from evenslice.training import locate_network, reading_options

    with quiet(output.json):
        spec, weights = locate_network(source.run, source.model, source.weights)
        run = source.run
        record = neutralize_file(
            spec,
            weights,
            out,
            strategy="pretrained",
            classes=classes,
            symmetrize=at,
            reading=stated_reading(spec, weights) if run is None else reading_options(run, spec, weights),
            force=output.force,
            **asdict(window),
        )
    show(record.to_dict(), record_table(record, out), json=output.json)
