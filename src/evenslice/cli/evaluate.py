"""evenslice evaluate: compare a network's answers with labels, and measure what disturbed slices cost."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from evenslice.cli import options
from evenslice.cli.printing import command_line, quiet, show

if TYPE_CHECKING:
    from evenslice.inference import Evaluation
    from evenslice.volumes import Volume

ONNX = "onnx"
"""The specification of a network in an ONNX file, as for audits."""


@options.grouped
def evaluate(
    *,
    source: options.Source,
    inputs: options.Input,
    classes: options.Classes = None,
    step: options.Step = None,
    volume: Annotated[str, options.volume(f"Volume to predict: {options.VOLUME_HELP}.", metavar="PATH")],
    labels: Annotated[
        str | None,
        options.volume(
            "Class labels of the volume; without them, --stress compares with the intact answer.",
            metavar="PATH",
        ),
    ] = None,
    values: options.LabelValues,
    plane: options.Plane = None,
    opening: options.Opening,
    scaling: options.Scaling,
    stress: Annotated[
        bool,
        options.measurement(
            "Also predict with neighbouring slices missing, blank, noisy or shifted, and with reversed stacks.",
            "--stress",
        ),
    ] = False,
    stress_slices: Annotated[
        int | None,
        options.measurement(
            "Disturb the windows of at most this many slices; 60 by default.", metavar="N", min=1
        ),
    ] = None,
    no_surfaces: Annotated[
        bool,
        options.measurement(
            "Skip the surface distances, which are measured in volumes of up to 67,108,864 voxels.",
            "--no-surfaces",
        ),
    ] = False,
    seed: options.Seed = 0,
    computing: options.Passes,
    out: Annotated[Path | None, options.output("Folder for result.json.", metavar="DIR")] = None,
    output: options.Output,
) -> None:
    """Compare a network's answers with labels, and measure what lost or damaged slices cost."""
    from evenslice._core import ConfigError, staged_folder
    from evenslice.cli.evaluation_tables import evaluation_tables
    from evenslice.inference import RESULT_FILES

    if labels is None:
        values.refuse()
        if no_surfaces:
            raise ConfigError("--no-surfaces: has no effect without --labels; give both or neither")
    opened = opening.open(volume)
    opened_labels = None if labels is None else opening.open(labels)
    staged = (
        nullcontext()
        if out is None
        else staged_folder(out, RESULT_FILES, documents=RESULT_FILES, force=output.force)
    )
    with quiet(output.json), staged as folder:
        found = _evaluate(
            source,
            opened,
            opened_labels,
            network={"step": step, "classes": classes, **asdict(inputs)},
            read={"plane": plane, **asdict(values), **asdict(scaling)},
            measured={
                "stress": stress,
                "stress_slices": stress_slices,
                "surfaces": not no_surfaces,
                "seed": seed,
                **asdict(computing),
            },
        )
        found = replace(found, command=command_line())
        if folder is not None:
            found.write(folder)
    lines = [] if out is None else [f"result: {out / 'result.json'}"]
    show(found.to_dict(), *evaluation_tables(found), *lines, json=output.json)


def _evaluate(
    source: options.Source,
    volume: "Volume",
    labels: "Volume | None",
    *,
    network: dict[str, Any],
    read: dict[str, Any],
    measured: dict[str, Any],
) -> "Evaluation":
    """Evaluate the network of a run, or of a specification and weights, or of an ONNX file.

    Args:
        source: where the network comes from.
        volume: the volume.
        labels: its labels.
        network: options of the network; None means the default.
        read: options of reading the volume and its labels, likewise.
        measured: options of what is measured, and how.
    """
    from evenslice._core import ConfigError, option
    from evenslice.inference import evaluate as evaluate_function, load_onnx
    from evenslice.neutralizing import symmetrize
    from evenslice.training import load_segmenter, reading_options
    from evenslice.volumes import reslice

    run, spec, weights = source.run, source.model, source.weights
    if run is not None or spec != ONNX or weights is None:
        return load_segmenter(run, spec, weights, **network, **read).evaluate(volume, labels, **measured)
    if network["classes"] is not None:
        raise ConfigError(f"{option('classes')}: an ONNX network states its own; omit the option")
    function: Any = load_onnx(weights, mean=network["mean"], std=network["std"])
    if network["symmetrize"] is not None:
        function = symmetrize(function, network["symmetrize"])
    found = {"slices": network["slices"], **reading_options(None, step=network["step"], **read)}
    sliced = reslice(volume, found.pop("plane", "z"))
    return evaluate_function(function, sliced, labels, **found, **measured)
