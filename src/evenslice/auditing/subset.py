"""What takes further passes of the network, and is therefore measured on a subset of the windows only.

That is the second opinion, attribution by another method, and the attention of each class by itself: the score adds up
the pixels explained by that class, and no others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from evenslice.auditing.batches import PLACES
from evenslice.auditing.methods import Attributed, resize_to
from evenslice.auditing.targets import Score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.measurer import Explained, Measurer

    Floats = NDArray[np.float64]
    Explainer = Callable[[int | Tensor | None], Explained]

__all__ = ["cut", "measure_subset"]

MOST_CLASSES = 3
"""Classes of a window that are explained; of more, each window takes others."""

LARGEST_CLASS = 255
"""Classes beyond are not looked at by themselves: numbers so large are those of objects."""

GOLDEN = 0.618
"""Part of the classes by which each window goes on: unlike a whole number, it has no period in common with the visit."""

SMALLEST_PART = 0.001
"""Part of the pixels of a window below which a class of it is not worth further passes."""


def cut(parts: Tensor, size: tuple[int, int] | None, counts: NDArray[np.int64]) -> Tensor:
    """Cut a part (..., y, x) of a size out of each window, from its four corners and its middle in turn.

    Args:
        parts: windows (m, N, y, x) or maps (m, y, x).
        size: (y, x) of the parts; None for all.
        counts: (m,) how many windows of its volume came before each, which decides the place.

    Example:
        >>> import torch
        >>> cut(torch.arange(18).view(2, 3, 3), (1, 1), np.array([0, 9])).flatten().tolist()
        [0, 13]
    """
    if size is None:
        return parts
    free = parts.shape[-2] - size[0], parts.shape[-1] - size[1]
    places = [PLACES[count % len(PLACES)] for count in counts.tolist()]
    origins = [(y * free[0] // 2, x * free[1] // 2) for y, x in places]
    return torch.stack(
        [part[..., y : y + size[0], x : x + size[1]] for part, (y, x) in zip(parts, origins, strict=True)]
    )


def measure_subset(
    measurer: Measurer,
    labels: Tensor | None,
    first: Explained,
    second: Explained | None,
    explain: Explainer,
    *,
    turns: NDArray[np.int64],
) -> dict[str, Floats]:
    """Measure windows by the second method and for each class.

    Args:
        measurer: of the audit; its network computes in float32.
        labels: (m, y, x) for the target "labels".
        first: what the first method found for the m windows, in float32.
        second: what the second method found; None if there is none.
        explain: explains one class of each window's output by the first method.
        turns: (m,) number of each window in the subset, which decides which of many classes are explained.

    Returns:
        The fields of ``SubsetMeasurements`` but the windows' numbers; C = 0 for an output without classes.
    """
    first_shares = first.shares()
    unknown = np.full_like(first_shares[0], np.nan)
    shares = (unknown, unknown) if second is None else second.shares()
    return {
        "first_shares": first_shares[0],
        "mirrored_first_shares": first_shares[1],
        "second_shares": shares[0],
        "mirrored_second_shares": shares[1],
        **_measure_classes(measurer, labels, first, explain, turns),
    }


def _measure_classes(
    measurer: Measurer,
    labels: Tensor | None,
    first: Explained,
    explain: Explainer,
    turns: NDArray[np.int64],
) -> dict[str, Floats]:
    explained = _class_map(measurer, first, labels)
    count = 0 if explained is None else _count_classes(first.given.output, explained)
    windows, slices = first.given.attribution.shape[:2]
    unknown = np.full((windows, count, slices), np.nan)
    rows = {
        "class_pixels": np.zeros((windows, count)),
        "class_shares": unknown,
        "mirrored_class_shares": unknown.copy(),
    }
    if explained is None:
        return rows
    for number in range(count):
        rows["class_pixels"][:, number] = (explained == number).float().flatten(1).mean(1).cpu().numpy()
    for numbers, found in _explain_classes(
        measurer.methods.first, first, explain, explained, rows["class_pixels"], turns
    ):
        some = np.flatnonzero(numbers >= 0)
        # NaN where no slice matters to the class: 0, which tells it from a class that was not explained.
        for name, shares in zip(("class_shares", "mirrored_class_shares"), found.shares(), strict=True):
            rows[name][some, numbers[some]] = np.nan_to_num(shares[some])
    return rows


def _class_map(measurer: Measurer, first: Explained, labels: Tensor | None) -> Tensor | None:
    """Return the explained class of each pixel of the windows, and of their mirrors; None if there is no choice."""
    output = first.given.output
    if measurer.target not in ("predicted", "labels") or output.ndim < 3:
        return None
    return Score(measurer.network, measurer.target, labels).classes(output)


def _count_classes(output: Tensor, explained: Tensor) -> int:
    if output.is_floating_point():
        return min(max(output.shape[1], 2), LARGEST_CLASS + 1)
    known = explained[(explained >= 0) & (explained <= LARGEST_CLASS)]
    return 1 + (int(known.max()) if len(known) else -1)


def _explain_classes(
    method: str,
    first: Explained,
    explain: Explainer,
    explained: Tensor,
    pixels: Floats,
    turns: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], Explained]]:
    """Yield a class of each window, or -1, and what the first method finds for the pixels of that class alone.

    Which classes of a window are explained depends on this window alone, not on the others of its batch.

    Args:
        method: the first method.
        first: what it found for the m windows.
        explain: explains one class of each window.
        explained: (m, y, x) the class of each pixel.
        pixels: (m, C) the part of the pixels of each window that has each class.
        turns: (m,) number of each window in the subset.
    """
    if method == "occlusion":
        for number in np.flatnonzero((pixels >= SMALLEST_PART).any(axis=0)).tolist():
            yield np.where(pixels[:, number] >= SMALLEST_PART, number, -1), _mask(first, explained, number)
        return
    chosen = [_choose_classes(*window) for window in zip(pixels, turns.tolist(), strict=True)]
    # The gradient of a sum is that of its parts, so the last class needs no passes where the classes are all there is. One
    # that is alone needs none by any method.
    beyond = (explained > LARGEST_CLASS).flatten(1).any(1).tolist()
    spared = [
        not others
        and len(numbers) == np.count_nonzero(part)
        and (len(numbers) == 1 or (method == "gradient" and len(numbers) > 0))
        for numbers, part, others in zip(chosen, pixels, beyond, strict=True)
    ]
    passes = [numbers[:-1] if last else numbers for numbers, last in zip(chosen, spared, strict=True)]
    rest = first
    for turn in range(max(map(len, passes), default=0)):
        classes = np.array([numbers[turn] if turn < len(numbers) else -1 for numbers in passes])
        found = explain(torch.from_numpy(classes))
        rest = rest.less(found)
        yield classes, found
    if any(spared):
        yield (
            np.array([numbers[-1] if last else -1 for numbers, last in zip(chosen, spared, strict=True)]),
            rest,
        )


def _choose_classes(pixels: Floats, turn: int) -> list[int]:
    """Return the classes of a window to explain, from their parts of its pixels (C,): the rarest first, or some of many.

    Example:
        >>> _choose_classes(np.array([0.6, 0.0, 0.4]), turn=0), _choose_classes(np.full(8, 0.125), turn=1)
        ([2, 0], [4, 5, 6])
    """
    present = [number for number in np.argsort(pixels).tolist() if pixels[number] >= SMALLEST_PART]
    if len(present) <= MOST_CLASSES:
        return present
    start, in_order = int(turn * GOLDEN % 1 * len(present)), sorted(present)
    return (in_order + in_order)[start : start + MOST_CLASSES]


def _mask(first: Explained, explained: Tensor, number: int) -> Explained:
    """Keep the attribution at the pixels of one class; occlusion says for each pixel how its own score changes."""
    there = (resize_to(explained, first.given.attribution.shape[2:]) == number)[:, None]
    given, mirrored = (
        Attributed(item.attribution * there, item.output) for item in (first.given, first.mirrored)
    )
    return replace(first, given=given, mirrored=mirrored)
