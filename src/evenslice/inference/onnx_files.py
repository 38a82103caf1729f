"""Networks written as ONNX files, and compared with what onnxruntime makes of them; or such files made symmetric.

    symmetrize_onnx("network.onnx", "fair.onnx")

A symmetric file runs each window and its mirror in one batch, and averages the answers. All names within its graph begin with
``symmetrized/``.
"""

from __future__ import annotations

import io
import json
import logging
import math
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evenslice._core import (
    ConfigError,
    MissingExtraError,
    ModelError,
    json_text,
    needs_extra,
    option,
    reason,
    staged_file,
)
from evenslice.inference.onnx_networks import SYMMETRIZED, TYPES, load_onnx, open_session
from evenslice.inference.ready_networks import by_slice, frozen_copy, keep_sides
from evenslice.networks import METADATA_KEY, input_sizes, logits

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.inference.model_card import Description
    from evenslice.inference.onnx_networks import OnnxNetwork


TOLERANCE = 1e-4  # of the largest output
SMALLEST_TILE, FIXED_TILE = 64, 256
INPUT, OUTPUT = "windows", "logits"


@dataclass(frozen=True)
class WrittenOnnx:
    """An ONNX file that was written, and how it was checked.

    Attributes:
        tile: the only size (y, x) of windows that it takes; None for every multiple of ``multiple``.
        multiple: of which the size of windows must be a multiple.
        batch: how many windows it takes at once; None for any number.
        shape: of the output for one window of the smallest size that was tried.
        difference: the largest difference between its outputs and the network's, relative to the largest output.
        opset: version of the ONNX operators.
        window: the size (y, x) of the smallest window that it was tried with.
    """

    tile: tuple[int, int] | None
    multiple: int
    batch: int | None
    shape: tuple[int, ...]
    difference: float
    opset: int
    window: tuple[int, int]


def write_onnx(
    model: nn.Module,
    path: Path,
    description: Description,
    *,
    scaled: bool,
    tile: tuple[int, int] | None = None,
) -> WrittenOnnx:
    """Write a network to an ONNX file and run it.

    The batch is free, and so are y and x where the network allows it; else they are fixed.

    Args:
        model: maps (batch, slices, y, x), with the scaling it expects, to logits.
        path: the file.
        description: of the network; it goes into the file's metadata.
        scaled: put the scaling by mean and std into the graph, which then takes slices in 0..1.
        tile: fix the size (y, x) of windows.

    Raises:
        ModelError: the network cannot be exported, or the file computes something else.
        ConfigError: the network takes no windows of this size.
        MissingExtraError: onnxscript or onnxruntime is not installed.
    """
    scaling = (description.mean, description.std) if scaled else ((0.0,), (1.0,))
    reference, multiple, problem = WholeNetwork(model, *scaling), input_sizes(model)[1], ""
    for (y, x), free in _attempts(model, tile, multiple):
        shapes = [(1, description.slices, y, x)]
        if "batch" in free:
            larger = (y + 2 * multiple, x + multiple) if "plane" in free else (y, x)
            shapes.append((3, description.slices, *larger))
        try:
            wanted = _answers(reference, shapes)
            opset = _convert(
                WholeNetwork(model, *scaling), path, shapes[0], free, _metadata(description, scaled)
            )
            difference = _difference(path, wanted)
        except (MissingExtraError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  # the exporter raises anything, and another attempt may do
            problem = f"{type(error).__name__}: {reason(error)}"
            continue
        if difference <= TOLERANCE:
            return WrittenOnnx(
                tile=None if "plane" in free else (y, x),
                multiple=multiple,
                batch=None if "batch" in free else 1,
                shape=tuple(wanted[0][1].shape),
                difference=difference,
                opset=opset,
                window=(y, x),
            )
        problem = f"its outputs differ by {difference:.1e} of the largest"
    raise ModelError(
        f"the network {type(model).__name__} cannot be exported to ONNX for windows of "
        f"{description.slices} slices ({problem}); try another size with {option('tile')}, or "
        f"{option('to', 'huggingface')}"
    )


def _attempts(
    model: nn.Module, tile: tuple[int, int] | None, multiple: int
) -> Iterator[tuple[tuple[int, int], tuple[str, ...]]]:
    """Yield a size (y, x) of windows, and which of "batch" and "plane" stay free, most first."""
    only, _ = input_sizes(model)
    if tile is not None and only is not None and tile != only:
        raise ConfigError(
            f"{option('tile', list(tile))}: give {only[0]} x {only[1]}, the size that the network takes"
        )
    fixed = tile or only
    if fixed is None:
        if not pads_by_size(model):
            side = math.ceil(SMALLEST_TILE / multiple) * multiple
            yield (side, side + multiple), ("batch", "plane")
        side = math.ceil(FIXED_TILE / multiple) * multiple
        fixed = (side, side)
    yield fixed, ("batch",)
    yield fixed, ()


def _answers(network: WholeNetwork, shapes: Sequence[tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
    """Return windows of noise in 0..1 of these shapes, each with what the network makes of it."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes]
    with torch.no_grad():
        return [(windows, network(windows)) for windows in given]


def _convert(
    network: WholeNetwork, path: Path, shape: Sequence[int], free: Sequence[str], metadata: Mapping[str, str]
) -> int:
    """Write an ONNX file with its metadata; return the version of its operators."""
    with needs_extra("export", "writing an ONNX file"):
        import onnxscript  # noqa: F401  # what torch.onnx needs, and says in many lines
    if "plane" in free:
        settle_padding(network)
    auto = torch.export.Dim.AUTO
    axes = {0: "batch", 2: "plane", 3: "plane"}
    dimensions: dict[int, Any] = {axis: auto for axis, name in axes.items() if name in free}
    # A batch of 1 would be taken for fixed.
    windows = torch.zeros((2 if "batch" in free else 1, *shape[1:]), dtype=torch.float32, device="cpu")
    with torch.no_grad(), _silence():
        exported = torch.export.export(network, (windows,), dynamic_shapes=(dimensions,), strict=False)
        program = torch.onnx.export(
            exported, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
        )
        if program is None:
            raise ModelError("torch.onnx returned no program")
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with paths of this machine
        program.model.metadata_props.update(metadata)
        program.save(path, external_data=False)
        return program.model.opset_imports[""]


def _metadata(description: Description, scaled: bool) -> dict[str, str]:
    where = "the graph scales them itself" if scaled else "scale them by mean and std first"
    return {
        METADATA_KEY: json_text(description.to_dict() | {"scaled_in_graph": scaled}),
        "input": f"windows of {description.slices} slices (batch, slices, y, x) in 0..1; {where}",
    }


@contextmanager
def _silence() -> Iterator[None]:
    """Keep to itself what the exporter prints, logs and warns of: it speaks of its own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(path: Path, wanted: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return by how much the outputs of a file differ from those of the network, relative to the largest."""
    session, largest = open_session(path), 0.0
    for windows, output in wanted:
        (given,) = session.run(None, {INPUT: windows.numpy()})
        if given.shape != output.shape:
            raise ModelError(
                f"for windows of shape {tuple(windows.shape)} its output has the shape {given.shape}"
            )
        found = float(np.abs(given - output.numpy()).max()) / max(float(output.abs().max()), 1e-12)
        largest = max(largest, found if math.isfinite(found) else math.inf)
    return largest


SAME_CONVOLUTIONS = ("Conv2dSame", "SameConv2d")  # timm's and our own


class WholeNetwork(nn.Module):
    """A frozen copy of a network in float32 on the CPU; ties are resolved into plain weights.

    Args:
        model: maps (batch, slices, y, x), with the scaling it expects, to anything with logits.
        mean: what it subtracts from slices in 0..1 by itself; one value, or one for each slice.
        std: what it divides them by afterwards, likewise.

    Example:
        >>> network = WholeNetwork(nn.Conv2d(3, 2, 4, stride=4), (0.5,), (0.25,))
        >>> network(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = frozen_copy(model).cpu()
        self.scales = (mean, std) != ((0.0,), (1.0,))
        self.register_buffer("mean", by_slice(mean))
        self.register_buffer("std", by_slice(std))

    def forward(self, windows: Tensor) -> Tensor:
        """Return the logits of windows (batch, slices, y, x); a map gets the size of the windows, as in ``predict``."""
        output = logits(self.network((windows - self.mean) / self.std if self.scales else windows)).float()
        if output.ndim == 4 and output.shape[2:] != windows.shape[2:]:
            output = functional.interpolate(
                output, size=windows.shape[2:], mode="bilinear", align_corners=False
            )
        return output


def settle_padding(network: nn.Module) -> None:
    """Let convolutions with TensorFlow's padding "SAME" pad as they do for sizes that their stride divides, in place.

    Their padding otherwise depends on the size of the image, which takes the exporter very long to follow.

    Example:
        >>> import timm
        >>> network = timm.create_model("tf_efficientnet_lite0").eval()
        >>> image = torch.rand(1, 3, 64, 96)
        >>> before = network(image)
        >>> settle_padding(network)
        >>> torch.equal(network(image), before)
        True
    """
    for module in network.modules():
        if type(module).__name__ in SAME_CONVOLUTIONS and isinstance(module, nn.Conv2d):
            vars(module)["forward"] = _FixedPadding(module)  # its hooks stay


class _FixedPadding:
    """The forward pass of a convolution whose padding is known."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer, self.pads = layer, list[int]()
        for axis in (1, 0):  # torch pads the last axis first
            reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            total = max(reach - layer.stride[axis], 0)
            self.pads += [total // 2, total - total // 2]

    def __call__(self, image: Tensor) -> Tensor:
        layer = self.layer
        padded = functional.pad(image, self.pads)
        return functional.conv2d(
            padded, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups
        )


def pads_by_size(network: Any) -> bool:
    """Say whether other layers than those of ``settle_padding`` pad by the size of the image.

    Example:
        >>> pads_by_size(nn.Conv2d(3, 1, 1))
        False
    """
    names = {type(module).__name__ for module in network.modules()}
    return any(name.endswith("Same") and name not in SAME_CONVOLUTIONS for name in names)


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
    said = _metadata_of(model)
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


def _metadata_of(model: Any) -> dict[str, str]:
    return {item.key: item.value for item in model.metadata_props}


def _record(said: Mapping[str, str]) -> dict[str, Any]:
    """Return what evenslice wrote of what was done to the network; nothing if it did not."""
    return json.loads(said.get(METADATA_KEY, "{}")).get("record") or {}


def _note(model: Any, error: float) -> None:
    """Say in the metadata where the file is averaged, in the record of evenslice too; what was audited is another network."""
    said = _metadata_of(model)
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
    *others, last = (
        random.random((2, network.slices or 3, *keep_sides(network, (side, side))), np.float32)
        for side in SIDES
    )
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
