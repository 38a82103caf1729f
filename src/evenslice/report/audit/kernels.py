"""Pictures of the stems' kernels before and after a strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure

from evenslice.report.base.drawing import WIDTH, Drawing
from evenslice.report.base.wording import one_line, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import AuditResult

FILTERS_SHOWN: Final = 8
INPUTS_SHOWN: Final = 48


@dataclass(frozen=True)
class _Block:
    """One column of the figure: kernels (filters, inputs, ky, kx) and the names of their inputs, empty if unknown."""

    title: str
    kernels: NDArray[np.float32]
    inputs: Sequence[str]


def kernel_figures(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw the kernels of each stem before and after, one figure for each stem."""
    names = dict.fromkeys(kernels.name for audit in audits for kernels in audit.kernels)
    return [_kernel_figure(audits, name, f"kernels-{number}") for number, name in enumerate(names, start=1)]


def _kernel_figure(audits: Sequence[AuditResult], stem: str, name: str) -> Drawing:
    blocks = _blocks(audits, stem)
    before = blocks[0].kernels
    energy = np.square(before.astype(np.float64)).sum(axis=(1, 2, 3))
    chosen = np.sort(np.argsort(-energy, kind="stable")[:FILTERS_SHOWN])
    shown = [block.kernels[chosen[chosen < len(block.kernels)], :INPUTS_SHOWN] for block in blocks]
    scale = max(float(np.quantile(np.abs(kernels), 0.99)) for kernels in shown) or 1.0
    mosaics = [_mosaic(kernels) for kernels in shown]
    widths = [mosaic.shape[1] for mosaic in mosaics]
    inches = min(0.55 / (before.shape[-1] + 1), (WIDTH - 1.6 - 0.2 * len(shown)) / sum(widths))
    figure = Figure(figsize=(WIDTH, max(1.8, 0.8 + inches * mosaics[0].shape[0])))
    figure.set_layout_engine("compressed", w_pad=0.1)
    grid = figure.subplots(1, len(shown), width_ratios=widths, squeeze=False)
    for axes, block, kernels, mosaic in zip(grid[0], blocks, shown, mosaics, strict=True):
        axes.imshow(mosaic, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="none")
        axes.set_title(one_line(block.title, max(4, int(inches * mosaic.shape[1] / 0.085))), fontsize=9)
        _label_mosaic(axes, block, kernels, inches)
    grid[0, 0].set_yticklabels([str(f) for f in chosen])
    grid[0, 0].set_ylabel("filter")
    figure.colorbar(
        grid[0, 0].images[0], ax=list(grid[0]), label="weight", aspect=30, pad=0.01, extend="both"
    )
    return Drawing(
        name,
        f"Kernels of the stem {one_line(stem, 60)}, before and after",
        f"The {len(chosen)} of {len(before)} filters with the most energy, one row for each filter and one "
        "square for each input, all on "
        "one scale. If slices are treated alike, a row looks the same from either end.",
        figure,
    )


def _blocks(audits: Sequence[AuditResult], stem: str) -> list[_Block]:
    """Collect the stem's kernels: each distinct "before" once, then the "after" of every audit."""
    found = [(audit, kernels) for audit in audits for kernels in audit.kernels if kernels.name == stem]
    before: list[NDArray[np.float32]] = []
    for _, kernels in found:
        if not any(np.array_equal(kernels.before, other) for other in before):
            before.append(kernels.before)
    blocks = [_Block("before", kernels, "RGB" if kernels.shape[1] == 3 else "") for kernels in before]
    for audit, kernels in found:
        offsets = [signed(k) for k in audit.offsets]
        blocks.append(
            _Block(audit.name, kernels.after, offsets if kernels.after.shape[1] == len(offsets) else "")
        )
    return blocks


def _mosaic(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Arrange kernels (filters, inputs, ky, kx) as one picture, one row for each filter, with gaps of NaN between them."""
    filters, inputs, ky, kx = kernels.shape
    gap_y, gap_x = _gap(ky), _gap(kx)
    picture = np.full((filters, inputs, ky + gap_y, kx + gap_x), np.nan, dtype=np.float32)
    picture[:, :, :ky, :kx] = kernels
    rows = picture.transpose(0, 2, 1, 3).reshape(filters * (ky + gap_y), inputs * (kx + gap_x))
    return rows[: rows.shape[0] - gap_y, : rows.shape[1] - gap_x]


def _gap(size: int) -> int:
    return max(1, size // 8)


def _label_mosaic(axes: Axes, block: _Block, kernels: NDArray[np.float32], inches: float) -> None:
    """Label the inputs below a mosaic, or give their number if space is short; put a tick at the middle of each row."""
    filters, count, ky, kx = kernels.shape
    height, width = ky + _gap(ky), kx + _gap(kx)
    if block.inputs and inches * width > 0.2:
        axes.set_xticks([i * width + (kx - 1) / 2 for i in range(count)], block.inputs, fontsize=8)
    else:
        total = block.kernels.shape[1]
        label = f"{total} inputs" if total == count else f"first {count} of {total} inputs"
        axes.set_xticks([(count * width - 1) / 2], [label], fontsize=8)
    axes.set_yticks([f * height + (ky - 1) / 2 for f in range(filters)], [""] * filters)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
