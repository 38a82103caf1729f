"""Networks written as ONNX files, with how their slices are scaled, and compared with what onnxruntime makes of them."""

from __future__ import annotations

import io
import logging
import math
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evenslice._core import ConfigError, MissingExtraError, ModelError, json_text, needs_extra, option, reason
from evenslice.inference.onnx_networks import open_session
from evenslice.inference.ready_networks import by_slice, frozen_copy
from evenslice.networks import METADATA_KEY, input_multiple, input_size, logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from evenslice.inference.description import Description

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
    reference, multiple, problem = WholeNetwork(model, *scaling), input_multiple(model), ""
    for (y, x), free in _attempts(model, tile, multiple):
        shapes = [(1, description.slices, y, x)]
        if "batch" in free:
            larger = (y + 2 * multiple, x + multiple) if "plane" in free else (y, x)
            shapes.append((3, description.slices, *larger))
        try:
            wanted = _run(reference, shapes)
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
    only = input_size(model)
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


def _run(network: WholeNetwork, shapes: Sequence[tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
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
