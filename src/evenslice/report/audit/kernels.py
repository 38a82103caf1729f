"""Pictures of the stems' kernels before and after a strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure

from evenslice.report.base.drawing import MEDIUM, Drawing
from evenslice.report.base.wording import one_line, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

    from evenslice.results import AuditResult

FILTERS_SHOWN: Final = 8
INPUTS_SHOWN: Final = 24
IN_A_ROW: Final = 4
HEIGHT: Final = 2.6  # of a row, in inches


@dataclass(frozen=True)
class _Block:
    """Kernels (filters, inputs, ky, kx) of one network before or after, and the names of their inputs, empty if unknown."""

    title: str
    kernels: NDArray[np.float32]
    inputs: Sequence[str]


def kernel_figures(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw the kernels of each stem before and after, one figure for each stem."""
    names = dict.fromkeys(kernels.name for audit in audits for kernels in audit.kernels)
    return [
        Drawing(
            f"kernels-{number}",
            f"Kernels of the stem {one_line(name, 60)}",
            f"The {FILTERS_SHOWN} filters with the most energy, one row for each filter and one square for each input. If "
            "slices are treated alike, a row looks the same from either end, except where the network averages over each "
            "window and its mirror (twin, symmetrized).",
            _draw(_blocks(audits, name)),
        )
        for number, name in enumerate(names, start=1)
    ]


def _blocks(audits: Sequence[AuditResult], stem: str) -> list[_Block]:
    """Collect the stem's kernels: what they were before, each state once, and what became of them in every audit.

    Where nothing changed, or the state before is not known, there is one block under the name of the audit.
    """
    found = [(audit, kernels) for audit in audits for kernels in audit.kernels if kernels.name == stem]
    blocks: list[_Block] = []
    for audit, kernels in found:
        same = np.array_equal(kernels.before, kernels.after)
        if not same and not any(np.array_equal(kernels.before, block.kernels) for block in blocks):
            blocks.append(_Block("before", kernels.before, "RGB" if kernels.before.shape[1] == 3 else ""))
        offsets = [signed(k) for k in audit.offsets]
        inputs = offsets if kernels.after.shape[1] == len(offsets) else ""
        blocks.append(_Block(audit.name, kernels.after, inputs))
    return blocks


def _draw(blocks: Sequence[_Block]) -> Figure:
    """Draw blocks from left to right and, where a row is full, in further rows, all on one scale."""
    rows, columns = -(-len(blocks) // IN_A_ROW), min(len(blocks), IN_A_ROW)
    figure = Figure(figsize=(MEDIUM, HEIGHT * rows + 0.6), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places:
        axes.set_axis_off()
    scale = max(float(np.quantile(np.abs(block.kernels), 0.99)) for block in blocks) or 1.0
    chosen: dict[int, NDArray[np.int64]] = {}  # the same filters of all networks with the same number of them
    for block in blocks:
        energy = np.square(block.kernels.astype(np.float64)).sum(axis=(1, 2, 3))
        largest = np.argsort(-energy, kind="stable")[:FILTERS_SHOWN]
        chosen.setdefault(len(block.kernels), np.sort(largest))
    images = [
        _draw_block(axes, block, chosen[len(block.kernels)], scale)
        for axes, block in zip(places, blocks, strict=False)
    ]
    figure.colorbar(
        images[0],
        ax=places.tolist(),
        location="bottom",
        shrink=0.4,
        aspect=30,
        label="weight",
        extend="both",
    )
    return figure


def _draw_block(axes: Axes, block: _Block, chosen: NDArray[np.int64], scale: float) -> AxesImage:
    """Draw the chosen filters as one picture, one row for each, with gaps of NaN between kernels."""
    kernels = block.kernels[chosen, :INPUTS_SHOWN]
    filters, inputs, ky, kx = kernels.shape
    gap = max(1, min(ky, kx) // 8)
    picture = np.full((filters, inputs, ky + gap, kx + gap), np.nan, dtype=np.float32)
    picture[:, :, :ky, :kx] = kernels
    mosaic = picture.transpose(0, 2, 1, 3).reshape(filters * (ky + gap), inputs * (kx + gap))
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="none")
    axes.set_axis_on()
    axes.set_title(one_line(block.title, 20), fontsize=9)
    places = [i * (kx + gap) + (kx - 1) / 2 for i in range(inputs)]
    total = block.kernels.shape[1]
    if block.inputs and total <= IN_A_ROW + 3:
        axes.set_xticks(places, block.inputs, fontsize=8)
    else:
        label = f"{total} inputs" if total == inputs else f"first {inputs} of {total} inputs"
        axes.set_xticks([float(np.mean(places))], [label], fontsize=8)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image
