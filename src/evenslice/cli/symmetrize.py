"""evenslice symmetrize: make any network treat a window of slices and its mirror alike."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from evenslice._core import ConfigError, option
from evenslice.cli import options
from evenslice.cli.option_groups import grouped
from evenslice.cli.printing import quiet, show, tell_random


@grouped
def symmetrize(
    *,
    source: options.AnySource,
    window: options.Window,
    classes: options.Classes = None,
    at: Annotated[
        str,
        options.network(
            "Where to average over each window and its mirror: output (right for a trained network), encoder, or the name "
            "of a module.",
            metavar="AT",
            autocompletion=lambda: options.CUTS,
        ),
    ] = options.OUTPUT,
    out: Annotated[
        Path,
        options.output(
            "File for the symmetric network (.safetensors; .onnx for --model onnx).", metavar="FILE"
        ),
    ],
    output: options.Output,
) -> None:
    """Average a network over each window and its mirror: exactly symmetric, trained or not, without retraining."""
    from evenslice.cli.tables import record_table
    from evenslice.inference import ONNX
    from evenslice.neutralizing import neutralize_file
    from evenslice.training import find_network

    network = find_network(source.run, source.model, source.weights)
    if network.spec == ONNX:
        _symmetrize_onnx(network.weights, out, {"at": at, "classes": classes, **asdict(window)}, output)
        return
    with quiet(output.json):
        record = neutralize_file(
            network.spec,
            network.weights,
            out,
            {"strategy": "pretrained", "classes": classes, "symmetrize": at, **asdict(window)},
            reading=network.reading,
            force=output.force,
        )
    show(record.to_dict(), record_table(record, out), json=output.json)
    tell_random(out, network.weights)


def _symmetrize_onnx(weights: str, out: Path, given: dict[str, Any], output: options.Output) -> None:
    from evenslice.cli.tables import symmetrized_onnx_table
    from evenslice.inference import symmetrize_onnx

    for name, value in given.items():
        if value not in (None, options.OUTPUT):
            raise ConfigError(
                f"{option(name)}: an ONNX file is averaged at its output, and keeps all else; omit it"
            )
    error = symmetrize_onnx(weights, out, force=output.force)
    document = {"symmetrized": [""], "mirror_error": error}  # as in a record
    show(document, symmetrized_onnx_table(error, out), json=output.json)
