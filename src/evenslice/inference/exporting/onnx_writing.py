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

from evenslice._core import ConfigError, MissingExtraError, ModelError, json_text, needs_extra, option, reason
from evenslice.inference.exporting.whole_network import WholeNetwork, pads_by_size, settle_padding
from evenslice.inference.onnx_networks import open_session
from evenslice.networks import METADATA_KEY, input_multiple, input_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from evenslice.inference.exporting.description import Description

__all__ = ["WrittenOnnx", "write_onnx"]

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


@dataclass(frozen=True)
class _Attempt:
    """Which dimensions of the windows stay free."""

    tile: tuple[int, int]
    free_plane: bool
    free_batch: bool

    def shapes(self, slices: int, multiple: int) -> list[tuple[int, int, int, int]]:
        """Return the shapes of windows to try."""
        y, x = self.tile
        larger = (y + 2 * multiple, x + multiple) if self.free_plane else (y, x)
        return [(1, slices, y, x), *([(3, slices, *larger)] if self.free_batch else [])]


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
    for attempt in _attempts(model, tile, multiple):
        shapes = attempt.shapes(description.slices, multiple)
        try:
            wanted = _run(reference, shapes)
            opset = _convert(WholeNetwork(model, *scaling), path, attempt, description, scaled=scaled)
            difference = _difference(path, wanted)
        except (MissingExtraError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  # the exporter raises anything, and another attempt may do
            problem = f"{type(error).__name__}: {reason(error)}"
            continue
        if difference <= TOLERANCE:
            return WrittenOnnx(
                tile=None if attempt.free_plane else attempt.tile,
                multiple=multiple,
                batch=None if attempt.free_batch else 1,
                shape=tuple(wanted[0][1].shape),
                difference=difference,
                opset=opset,
                window=attempt.tile,
            )
        problem = f"its outputs differ by {difference:.1e} of the largest"
    raise ModelError(
        f"the network {type(model).__name__} cannot be exported to ONNX for windows of "
        f"{description.slices} slices ({problem}); try another size with {option('tile')}, or "
        f"{option('to', 'huggingface')}"
    )


def _attempts(model: nn.Module, tile: tuple[int, int] | None, multiple: int) -> Iterator[_Attempt]:
    """Yield what to leave free, most first."""
    only = input_size(model)
    if tile is not None and only is not None and tile != only:
        raise ConfigError(
            f"{option('tile', list(tile))}: give {only[0]} x {only[1]}, the size that the network takes"
        )
    fixed = tile or only
    if fixed is None:
        if not pads_by_size(model):
            side = math.ceil(SMALLEST_TILE / multiple) * multiple
            yield _Attempt((side, side + multiple), free_plane=True, free_batch=True)
        side = math.ceil(FIXED_TILE / multiple) * multiple
        fixed = (side, side)
    yield _Attempt(fixed, free_plane=False, free_batch=True)
    yield _Attempt(fixed, free_plane=False, free_batch=False)


def _run(network: WholeNetwork, shapes: Sequence[tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
    """Return windows of noise in 0..1 of these shapes, each with what the network makes of it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return [
            (windows, network(windows))
            for windows in (
                torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes
            )
        ]


def _convert(
    network: WholeNetwork, path: Path, attempt: _Attempt, description: Description, *, scaled: bool
) -> int:
    """Write an ONNX file with its metadata; return the version of its operators."""
    with needs_extra("export", "writing an ONNX file"):
        import onnxscript  # noqa: F401  # what torch.onnx needs, and says in many lines
    if attempt.free_plane:
        settle_padding(network)
    auto = torch.export.Dim.AUTO
    free: dict[int, Any] = {0: auto} if attempt.free_batch else {}
    if attempt.free_plane:
        free |= {2: auto, 3: auto}
    shape = (2 if attempt.free_batch else 1, description.slices, *attempt.tile)
    windows = torch.zeros(shape, dtype=torch.float32, device="cpu")
    with torch.no_grad(), _silence():
        exported = torch.export.export(network, (windows,), dynamic_shapes=(free,), strict=False)
        program = torch.onnx.export(
            exported, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
        )
        if program is None:
            raise ModelError("torch.onnx returned no program")
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with paths of this machine
        for name, value in _metadata(description, scaled=scaled).items():
            program.model.metadata_props[name] = value
        program.save(path, external_data=False)
        return program.model.opset_imports[""]


def _metadata(description: Description, *, scaled: bool) -> Mapping[str, str]:
    where = "the graph scales them itself" if scaled else "scale them by mean and std first"
    return {
        METADATA_KEY: json_text(description.to_dict(scaled_in_graph=scaled)),
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
