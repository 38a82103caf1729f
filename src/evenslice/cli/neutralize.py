"""evenslice neutralize and symmetrize: make a pretrained network fair before training, or any network afterwards."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from evenslice._core import ConfigError, option
from evenslice.cli import options
from evenslice.cli.options import grouped
from evenslice.cli.printing import quiet, show, tell_random

if TYPE_CHECKING:
    from rich.table import Table

    from evenslice.neutralizing import Record


@grouped
def neutralize(
    *,
    network: options.Network,
    strategy: Annotated[
        Any, options.strategy("; uniform is symmetric only until training begins, twin stays symmetric")
    ] = "uniform",
    seed: options.Seed = 0,
    out: Annotated[Path, options.output("File for the fair network (.safetensors).", metavar="FILE")],
    output: options.Output,
) -> None:
    """Rewrite the first layer of a pretrained network before training, so that it favours neither side of a window.

    For a trained network, use symmetrize.
    """
    from evenslice.inference import stated_reading
    from evenslice.neutralizing import neutralize_file

    given = {**asdict(network), "strategy": strategy, "seed": seed}
    with quiet(output.json):
        record = neutralize_file(
            given.pop("spec"),
            given.pop("weights"),
            out,
            given,
            reading=stated_reading(network.spec, network.weights)[0],
            force=output.force,
        )
    show(record.to_dict(), _table(record, out), json=output.json)
    tell_random(out, network.weights)


@grouped
def symmetrize(
    *,
    source: options.Source,
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
    show(record.to_dict(), _table(record, out), json=output.json)
    tell_random(out, network.weights)


def _symmetrize_onnx(weights: str, out: Path, given: dict[str, Any], output: options.Output) -> None:
    from evenslice.cli.tables import facts
    from evenslice.inference import symmetrize_onnx

    for name, value in given.items():
        if value not in (None, options.OUTPUT):
            raise ConfigError(
                f"{option(name)}: an ONNX file is averaged at its output, and keeps all else; omit it"
            )
    error = symmetrize_onnx(weights, out, force=output.force)
    document = {"symmetrized": [""], "mirror_error": error}  # as in a record
    shown = facts(str(out), {"averaged at": "the output", "mirror error": f"{error:.2g}"})
    show(document, shown, json=output.json)


def _table(record: "Record", out: Path) -> "Table":
    """Return the record of a neutralized network, one entry in each row."""
    from evenslice.cli.tables import facts

    # Those of a trained network that is only symmetrized keep their kernels.
    stems = "first layers" if record.strategy == "pretrained" else "layers rewritten"
    rows = {
        "strategy": record.strategy + (f", tied: {record.tie}" if record.tie else ""),
        "slices": str(record.slices),
        stems: ", ".join(map(repr, record.stems)) or None,
        "averaged at": ", ".join(name or "the output" for name in record.symmetrized) or None,
        "scaling of a slice": f"(slice - {record.mean:g}) / {record.std:g}",
        "mirror error": f"{record.mirror_error:.2g}",
        "permutation error": f"{record.permutation_error:.2g}",
        "gray error": f"{record.gray_error:.2g}",
    }
    return facts(str(out), rows)
