"""Pictures of the stems' kernels before and after a strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure

from evenslice.report.base.drawing import NARROW, WIDTH, Drawing
from evenslice.report.base.wording import one_line, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from evenslice.results import AuditResult

FILTERS_SHOWN: Final = 8
INPUTS_SHOWN: Final = 48

# All in inches: the side of a kernel, unless a block would be wider than the figure, and what lies around blocks.
KERNEL: Final = 0.38
LEFT, RIGHT, BETWEEN, ABOVE, BELOW, SCALE = 0.65, 0.15, 0.35, 0.45, 0.3, 0.65
CHARACTER: Final = 0.078
NARROWEST: Final = 0.9
"""Room for the title of a block."""


@dataclass(frozen=True)
class _Block:
    """Kernels (filters, inputs, ky, kx) of one network before or after, and the names of their inputs, empty if unknown."""

    titles: tuple[str, ...]
    kernels: NDArray[np.float32]
    inputs: Sequence[str]


@dataclass(frozen=True)
class _Placed:
    """A block with its mosaic in the figure: the kernels shown, and the place of its lower left corner in inches."""

    block: _Block
    chosen: NDArray[np.int64]
    mosaic: NDArray[np.float32]
    left: float
    top: float
    pixel: float

    @property
    def width(self) -> float:
        return self.pixel * int(self.mosaic.shape[1])

    @property
    def bottom(self) -> float:
        return self.top + self.pixel * int(self.mosaic.shape[0])


def kernel_figures(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw the kernels of each stem before and after, one figure for each stem."""
    names = dict.fromkeys(kernels.name for audit in audits for kernels in audit.kernels)
    return [_kernel_figure(audits, name, f"kernels-{number}") for number, name in enumerate(names, start=1)]


def _kernel_figure(audits: Sequence[AuditResult], stem: str, name: str) -> Drawing:
    blocks = _blocks(audits, stem)
    filters = {len(block.kernels) for block in blocks}
    of = f" of {filters.pop()}" if len(filters) == 1 else ""
    shown = len(_choose(blocks)[0])
    return Drawing(
        name,
        f"Kernels of the stem {one_line(stem, 60)}, before and after",
        f"The {shown}{of} filters with the most energy, one row for each filter and one "
        "square for each input, all on "
        "one scale. If slices are treated alike, a row looks the same from either end, except where the network averages "
        "over each window and its mirror (twin, symmetrized). A network whose kernels were not changed, or are known in "
        "one state only, has one picture.",
        *(_draw(blocks, width) for width in (WIDTH, NARROW)),
    )


def _blocks(audits: Sequence[AuditResult], stem: str) -> list[_Block]:
    """Collect the stem's kernels: each distinct "before" once, followed by what became of it in every audit.

    An audit whose kernels are the same before and after, because its strategy changes nothing or because the network
    was read from a file, has one block under its name; its inputs are slices.
    """
    found = [(audit, kernels) for audit in audits for kernels in audit.kernels if kernels.name == stem]
    groups: list[list[int]] = []
    for index, (_, kernels) in enumerate(found):
        same = (group for group in groups if np.array_equal(kernels.before, found[group[0]][1].before))
        group = next(same, None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    blocks = []
    for group in groups:
        before = found[group[0]][1].before
        kept = [found[i][0] for i in group if np.array_equal(found[i][1].after, before)]
        if kept:
            names = [audit.name for audit in kept]
            titles = (*(["before ="] if len(group) > len(kept) else []), ", ".join(names))
            blocks.append(_Block(titles, before, _inputs(kept[0], before)))
        else:
            names = [found[i][0].name for i in group]
            titles = ("before",) if len(groups) == 1 else (", ".join(names), "before")
            blocks.append(_Block(titles, before, "RGB" if before.shape[1] == 3 else ""))
        for i in group:
            audit, kernels = found[i]
            if audit not in kept:
                blocks.append(_Block((audit.name, "after"), kernels.after, _inputs(audit, kernels.after)))
    return blocks


def _inputs(audit: AuditResult, kernels: NDArray[np.float32]) -> Sequence[str]:
    offsets = [signed(k) for k in audit.offsets]
    return offsets if kernels.shape[1] == len(offsets) else ""


def _choose(blocks: Sequence[_Block]) -> list[NDArray[np.int64]]:
    """Choose the filters to show: the same ones of all networks with the same number of them."""
    chosen: dict[int, NDArray[np.int64]] = {}
    for block in blocks:
        count = len(block.kernels)
        if count not in chosen:
            energy = np.square(block.kernels.astype(np.float64)).sum(axis=(1, 2, 3))
            chosen[count] = np.sort(np.argsort(-energy, kind="stable")[:FILTERS_SHOWN])
    return [chosen[len(block.kernels)] for block in blocks]


def _draw(blocks: Sequence[_Block], width: float) -> Figure:
    """Draw blocks from left to right and, where a row is full, in further rows, above a scale."""
    placed, height = _place(blocks, width)
    height += SCALE
    scale = max(float(np.nanquantile(np.abs(one.mosaic), 0.99)) for one in placed) or 1.0
    figure = Figure(figsize=(width, height))
    image = None
    for one in placed:
        box = (one.left / width, 1 - one.bottom / height, one.width / width, (one.bottom - one.top) / height)
        axes = figure.add_axes(box)
        image = axes.imshow(
            one.mosaic, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="none", aspect="auto"
        )
        longest = int(max(one.width, NARROWEST) / CHARACTER)
        axes.set_title("\n".join(one_line(title, longest) for title in one.block.titles), fontsize=9)
        _label_mosaic(axes, one)
    bar = figure.add_axes((LEFT / width, 0.45 / height, min(3.0, width - LEFT - 1) / width, 0.1 / height))
    if image is not None:
        figure.colorbar(image, cax=bar, orientation="horizontal", label="weight", extend="both")
    return figure


def _place(blocks: Sequence[_Block], width: float) -> tuple[list[_Placed], float]:
    """Return the blocks with their places, and the height that they take."""
    placed: list[_Placed] = []
    left, top, bottom = LEFT, ABOVE, ABOVE
    for block, chosen in zip(blocks, _choose(blocks), strict=True):
        mosaic = _mosaic(block.kernels[chosen, :INPUTS_SHOWN])
        pixel = min(KERNEL / max(block.kernels.shape[2:]), (width - LEFT - RIGHT) / mosaic.shape[1])
        room = max(pixel * mosaic.shape[1], NARROWEST)
        if left > LEFT and left + room > width - RIGHT:
            left, top = LEFT, bottom + BELOW + ABOVE
        placed.append(_Placed(block, chosen, mosaic, left, top, pixel))
        bottom = max(bottom, placed[-1].bottom)
        left += room + BETWEEN
    return placed, bottom + BELOW


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


def _label_mosaic(axes: Axes, one: _Placed) -> None:
    """Label the filters on the left and the inputs below a mosaic, or give their number if space is short."""
    total, (ky, kx) = one.block.kernels.shape[1], one.block.kernels.shape[2:]
    count = min(total, INPUTS_SHOWN)
    height, width = ky + _gap(ky), kx + _gap(kx)
    if one.block.inputs and one.pixel * width > 0.2:
        axes.set_xticks([i * width + (kx - 1) / 2 for i in range(count)], one.block.inputs, fontsize=8)
    else:
        label = f"{total} inputs" if total == count else f"first {count} of {total} inputs"
        axes.set_xticks([(count * width - 1) / 2], [label], fontsize=8)
    places = [f * height + (ky - 1) / 2 for f in range(len(one.chosen))]
    first = one.left == LEFT
    axes.set_yticks(places, map(str, one.chosen) if first else [""] * len(places), fontsize=8)
    if first:
        axes.set_ylabel("filter")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
