"""ONNX files made symmetric: a graph that runs each window and its mirror in one batch, and averages the answers.

    symmetrize_onnx("network.onnx", "fair.onnx")

All names within the graph begin with ``symmetrized/``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import (
    ConfigError,
    ModelError,
    json_text,
    needs_extra,
    option,
    staged_file,
)
from evenslice.inference.onnx_networks import SYMMETRIZED, TYPES, load_onnx
from evenslice.inference.ready_networks import keep_sides
from evenslice.networks import METADATA_KEY

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from evenslice.inference.onnx_networks import OnnxNetwork

PREFIX, INNER = f"{SYMMETRIZED}/", f"{SYMMETRIZED}/graph/"
IR = 4
"""Since this version of the format, weights need not be inputs too."""

MIRROR_LIMIT, DIFFERENCE_LIMIT = 1e-5, 1e-4  # of the largest output
SIDES = (256, 224, 384, 512)
TINY = float(np.finfo(np.float32).tiny)
INT64 = np.iinfo(np.int64)


def symmetrize_onnx(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, force: bool = False
) -> float:
    """Write an ONNX file whose answers are the mean of those of another for each window and its mirror.

    It runs both in one batch, so it takes twice the passes, and any program that reads ONNX files can use it. The new file is
    run before it takes its name.

    Args:
        path: a file as ``load_onnx`` takes it, with a free batch size and its weights in it.
        out: the new file, ``.onnx``; it keeps the metadata of the other.
        force: replace an existing file.

    Returns:
        The largest difference between the answers for windows of noise and for their mirrors, relative to the largest answer.

    Raises:
        ModelError: the file takes a fixed number of windows, scales opposite slices differently before its graph, keeps
            weights in other files, returns classes instead of
            scores, uses operators older than version 10, is in onnxruntime's own format, or is symmetrized already; or the
            new file is not symmetric within 1e-5, or not the mean within 1e-4, or twice the rounding error of its outputs if
            that is more, as in half precision.
        ConfigError: the new file has another suffix, or is the other itself.
        OutputError: it exists, or cannot be written.
        MissingExtraError: onnx or onnxruntime is not installed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import evenslice
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Conv2d(3, 2, 3, padding=1).eval()
        >>> _ = evenslice.neutralize(model, strategy="pretrained", mean=0.5, std=0.25)
        >>> _ = evenslice.export(model, f"{folder}/exported", to="onnx")
        >>> error = symmetrize_onnx(f"{folder}/exported/network.onnx", f"{folder}/fair.onnx")
        >>> windows = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
        >>> fair = evenslice.load_onnx(f"{folder}/fair.onnx")
        >>> error < 1e-6, np.allclose(fair(windows), fair(windows[:, ::-1]), atol=1e-6)
        (True, True)
    """
    network = load_onnx(path)
    with needs_extra("export", "writing an ONNX file"):
        import onnx
    if not str(out).endswith(".onnx"):
        raise ConfigError(
            f"{option('out', str(out))}: a network in an ONNX file is written to one; name it .onnx"
        )
    if Path(out).exists() and Path(out).samefile(path):
        raise ConfigError(f"{option('out', str(out))}: is the network itself; name another file")
    try:
        model = onnx.load(network.path, load_external_data=False)
    except Exception as error:  # onnxruntime reads files of its own format, too
        raise ModelError(
            f"{path}: is not in the format of ONNX; name the ONNX file that it was made of"
        ) from error
    _refuse_unfit(model, network)
    _average(model, network)
    with staged_file(out, force=force) as beside:
        beside.write_bytes(model.SerializeToString())
        found = _check(network, beside)
        _note(model, found)
        beside.write_bytes(model.SerializeToString())
    return found


def _refuse_unfit(model: Any, network: OnnxNetwork) -> None:
    """Raise ModelError if a file cannot be averaged within its graph."""
    said = _metadata(model)
    classes = [
        f"{name} of type {kind}"
        for name, kind in zip(network.outputs, network.types, strict=True)
        if kind not in TYPES
    ]
    reasons = {
        f"takes {network.batch} windows at once, never more; export the network with a free batch size": network.batch
        is not None,
        f"scales opposite slices by different values (mean {network.mean}, std {network.std}) before its graph": (
            not network.scales_evenly
        ),
        "is symmetrized already; use it as it is": SYMMETRIZED in said
        or bool(_record(said).get("symmetrized")),
        f"returns classes: {', '.join(classes)}": bool(classes),
    }
    for why, unfit in reasons.items():
        if unfit:
            raise ModelError(
                f"{network.path}: {why}; evenslice.symmetrize averages answers where they are used"
            )


def _average(model: Any, network: OnnxNetwork) -> None:
    """Change a graph in place: it gets windows and their mirrors, and the halves of its outputs are averaged."""
    from onnx.compose import add_prefix_graph
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array

    graph = model.graph
    weights = {item.name for item in graph.initializer} | {
        item.values.name for item in graph.sparse_initializer
    }
    inputs = [item for item in graph.input if item.name not in weights]  # older files name weights there, too
    outputs = [type(item).FromString(item.SerializeToString()) for item in graph.output]
    del graph.input[:], graph.value_info[:]  # which state the sizes of smaller batches
    graph.input.extend(inputs)
    window = type(inputs[0]).FromString(inputs[0].SerializeToString())
    add_prefix_graph(graph, INNER, inplace=True)
    model.ir_version = max(model.ir_version, IR)
    shape, count, mirror = (f"{PREFIX}{name}" for name in ("shape", "count", "mirror"))
    numbers = {"zero": 0, "one": 1, "minus-one": -1, "lowest": INT64.min, "highest": INT64.max}
    zero, one, minus, lowest, highest = (f"{PREFIX}{name}" for name in numbers)
    constants = {f"{PREFIX}{name}": np.array([value], np.int64) for name, value in numbers.items()}
    before = [
        make_node("Slice", [window.name, minus, lowest, one, minus], [mirror]),
        make_node("Concat", [window.name, mirror], [f"{INNER}{window.name}"], axis=0),
        make_node("Shape", [window.name], [shape]),
        make_node("Slice", [shape, zero, one, zero], [count]),
    ]
    after = []
    for output, kind in zip(outputs, network.types, strict=True):
        both = f"{INNER}{output.name}"
        constants[f"{PREFIX}half/{output.name}"] = np.array(0.5, TYPES[kind])
        for part, ends in (("first", (zero, count)), ("last", (count, highest))):
            after += [
                make_node("Slice", [both, *ends, zero], [f"{PREFIX}{part}/{output.name}"]),
                # Before the sum, which may overflow in half precision.
                make_node(
                    "Mul",
                    [f"{PREFIX}{part}/{output.name}", f"{PREFIX}half/{output.name}"],
                    [f"{PREFIX}{part}/half/{output.name}"],
                ),
            ]
        after.append(
            make_node(
                "Add", [f"{PREFIX}{part}/half/{output.name}" for part in ("first", "last")], [output.name]
            )
        )
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(window)
    graph.output.extend(outputs)
    graph.initializer.extend(from_array(value, name) for name, value in constants.items())


def _metadata(model: Any) -> dict[str, str]:
    return {item.key: item.value for item in model.metadata_props}


def _record(said: Mapping[str, str]) -> dict[str, Any]:
    """Return what evenslice wrote of what was done to the network; nothing if it did not."""
    return json.loads(said.get(METADATA_KEY, "{}")).get("record") or {}


def _note(model: Any, error: float) -> None:
    """Say in the metadata where the file is averaged, in the record of evenslice too; what was audited is another network."""
    said = _metadata(model)
    if METADATA_KEY in said:
        stated, record = json.loads(said[METADATA_KEY]), _record(said)
        if record:
            stated["record"] = record | {"symmetrized": [""], "mirror_error": error}
        said[METADATA_KEY] = json_text(stated | {"audits": []})
    said[SYMMETRIZED] = "the mean of the answers for a window and for its mirror"
    del model.metadata_props[:]
    for key, value in said.items():
        model.metadata_props.add(key=key, value=value)


def _check(network: OnnxNetwork, beside: Path) -> float:
    """Return the mirror error of the new file, which must give the mean of the answers of the other."""
    windows = _fitting_windows(network)
    mirrored = np.ascontiguousarray(windows[:, ::-1])
    mean = [
        one / 2 + other / 2
        for one, other in zip(_run(network, windows), _run(network, mirrored), strict=True)
    ]
    try:
        fair = load_onnx(beside)
        given, turned = _run(fair, windows), _run(fair, mirrored)
    except ModelError as failed:
        what = str(failed).removeprefix(f"{beside}: ")
        raise ModelError(f"{network.path}: cannot be symmetrized: the new file {what}") from failed
    error, difference = _error(given, turned), _error(given, mean)
    rounding = max(2 * float(np.finfo(item.dtype).eps) for item in given)
    if not (error <= MIRROR_LIMIT and difference <= max(DIFFERENCE_LIMIT, rounding)):
        raise ModelError(
            f"{network.path}: symmetrized, its answers differ by {error:.1e} from those for reversed windows, and by "
            f"{difference:.1e} from the mean; is the answer for one window independent of the others in its batch?"
        )
    return error


def _fitting_windows(network: OnnxNetwork) -> NDArray[np.float32]:
    """Return two windows of noise of a size that a network takes."""
    random = np.random.default_rng(0)
    for side in SIDES:
        windows = random.random((2, network.slices or 3, *keep_sides(network, (side, side))), np.float32)
        with suppress(ModelError):
            network(windows)
            break
    return windows


def _run(network: OnnxNetwork, windows: NDArray[np.float32]) -> list[NDArray[Any]]:
    found = network(windows)
    return list(found.values()) if isinstance(found, dict) else [found]


def _error(given: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """Return the largest difference of any output, relative to its largest value."""
    pairs = ((one.astype(float), two.astype(float)) for one, two in zip(given, other, strict=True))
    return max(float(np.abs(one - two).max() / max(np.abs(one).max(), TINY)) for one, two in pairs)
