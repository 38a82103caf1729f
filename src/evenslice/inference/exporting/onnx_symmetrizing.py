"""ONNX files made symmetric: a graph that runs each window and its mirror in one batch, and averages the answers.

    symmetrize_onnx("network.onnx", "fair.onnx")

The graph's own operators and weights stay as they are; what is put around them has names that begin with ``symmetrized/``.
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
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from evenslice.inference.onnx_networks import OnnxNetwork

__all__ = ["symmetrize_onnx"]

PREFIX = f"{SYMMETRIZED}/"
IR = 4
"""Since this version of the format, weights need not be inputs too."""

MIRROR_LIMIT, DIFFERENCE_LIMIT = 1e-5, 1e-4  # of the largest output
SIZES = tuple((side, side) for side in (256, 224, 384, 512))
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
    elsewhere = (
        "average its answers where they are used (evenslice.symmetrize, or segment and audit with "
        f"{option('symmetrize', 'output')})"
    )
    if network.batch is not None:
        raise ModelError(
            f"{path}: takes {network.batch} windows at once, never more; export the network with a free batch size, or "
            f"{elsewhere}"
        )
    if not network.scales_evenly:
        raise ModelError(
            f"{path}: its metadata scale opposite slices by different values, in front of the average (mean {network.mean}, "
            f"std {network.std}); neutralize and export the network again, or {elsewhere}"
        )
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
    path, said = network.path, _metadata(model)
    if SYMMETRIZED in said or _record(said).get("symmetrized"):
        raise ModelError(f"{path}: is symmetrized already; use it as it is")
    for name, kind in zip(network.outputs, network.types, strict=True):
        if kind not in TYPES:
            raise ModelError(
                f"{path}: its output {name} is of type {kind}; only scores can be averaged, not classes"
            )


def _average(model: Any, network: OnnxNetwork) -> None:
    """Change a graph in place: it gets windows and their mirrors, and the halves of its outputs are averaged."""
    from onnx.helper import make_node

    graph = model.graph
    weights = {item.name for item in graph.initializer} | {
        item.values.name for item in graph.sparse_initializer
    }
    (window,) = (item.name for item in graph.input if item.name not in weights)
    both = {window: f"{PREFIX}windows"} | {name: f"{PREFIX}outputs/{name}" for name in network.outputs}
    _rename(graph.node, both)
    del graph.value_info[:]  # states the sizes of smaller batches
    model.ir_version = max(model.ir_version, IR)
    zero, one, minus = (f"{PREFIX}{name}" for name in ("zero", "one", "minus-one"))
    lowest, highest, count, mirror = (f"{PREFIX}{name}" for name in ("lowest", "highest", "count", "mirror"))
    values = {zero: 0, one: 1, minus: -1, lowest: INT64.min, highest: INT64.max}
    graph.initializer.extend(_constant(name, [value], np.int64) for name, value in values.items())
    before = [
        make_node("Slice", [window, minus, lowest, one, minus], [mirror]),
        make_node("Concat", [window, mirror], [both[window]], axis=0),
        make_node("Shape", [window], [f"{PREFIX}shape"]),
        make_node("Slice", [f"{PREFIX}shape", zero, one, zero], [count]),
    ]
    after = []
    for name, kind in zip(network.outputs, network.types, strict=True):
        first, last, half = (f"{both[name]}/{part}" for part in ("first", "last", "half"))
        graph.initializer.append(_constant(half, 0.5, TYPES[kind]))
        after += [
            make_node("Slice", [both[name], zero, count, zero], [first]),
            make_node("Slice", [both[name], count, highest, zero], [last]),
            make_node(
                "Mul", [first, half], [f"{first}/half"]
            ),  # before the sum, which may overflow in half precision
            make_node("Mul", [last, half], [f"{last}/half"]),
            make_node("Add", [f"{first}/half", f"{last}/half"], [name]),
        ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)


def _constant(name: str, value: Any, kind: Any) -> Any:
    from onnx.numpy_helper import from_array

    return from_array(np.array(value, kind), name)


def _rename(nodes: Iterable[Any], names: Mapping[str, str]) -> None:
    """Rename values of a graph wherever its nodes use them, in the graphs inside nodes too."""
    for node in nodes:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _rename(graph.node, names)
                for output in graph.output:
                    output.name = names.get(output.name, output.name)


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
    random, slices = np.random.default_rng(0), network.slices or 3
    sizes = dict.fromkeys(keep_sides(network, size) for size in SIZES)
    *others, last = (random.random((2, slices, *size), np.float32) for size in sizes)
    for windows in others:
        with suppress(ModelError):
            network(windows)
            return windows
    return last


def _run(network: OnnxNetwork, windows: NDArray[np.float32]) -> list[NDArray[Any]]:
    found = network(windows)
    return list(found.values()) if isinstance(found, dict) else [found]


def _error(given: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """Return the largest difference of any output, relative to its largest value."""
    pairs = ((one.astype(float), two.astype(float)) for one, two in zip(given, other, strict=True))
    return max(float(np.abs(one - two).max() / max(np.abs(one).max(), TINY)) for one, two in pairs)
