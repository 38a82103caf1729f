"""evenslice neutralize and symmetrize: make a pretrained network fair before training, or any network afterwards."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from evenslice import ConfigError, OutputError
from evenslice._core import option
from evenslice.cli import options
from evenslice.cli.options import grouped
from evenslice.cli.printing import quiet, show, tell_missing, tell_untrained

if TYPE_CHECKING:
    from rich.table import Table

    from evenslice import Reading, Record


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

    reading, _ = stated_reading(network.spec, network.weights)
    _write({**asdict(network), "strategy": strategy, "seed": seed}, reading, out, output)


@grouped
def symmetrize(
    *,
    source: options.Source,
    window: options.Window,
    classes: options.Classes = None,
    at: Annotated[
        str,
        options.network(
            "Average over each window and its mirror after: output (for trained networks), encoder, or a module.",
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
    from evenslice.training import find_network

    network = find_network(source.run, source.model, source.weights)
    if network.spec == ONNX:
        _symmetrize_onnx(network.weights, out, {"at": at, "classes": classes, **asdict(window)}, output)
        return
    given = {"spec": network.spec, "weights": network.weights, "classes": classes, "symmetrize": at}
    _write({**given, **asdict(window)}, network.reading, out, output)


def _write(given: dict[str, Any], reading: "Reading | None", out: Path, output: options.Output) -> None:
    """Load a network, write it into a file, and show what was done to it; its own file stays as it is."""
    from evenslice import load_network, save_network

    weights = Path(given["weights"] or given["spec"])
    if weights.is_file() and out.exists() and out.samefile(weights):
        raise OutputError(f"{out}: is the file of weights to read; write to another file")
    with quiet(output.json):
        model, record, source = load_network(**given)
        save_network(model, out, record=record, source=source, reading=reading, force=output.force)
    show(record.to_dict(), _table(record, out), json=output.json)
    tell_untrained(source)
    tell_missing(source, f"are random in {out}, so train it before using its output")


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
