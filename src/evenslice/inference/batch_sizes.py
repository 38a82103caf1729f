"""How many windows go through a network at once: as many as fit into the memory, and fewer where it runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from evenslice.inference.device_errors import SMALLER, memory_error, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["BatchSizes"]

Result = TypeVar("Result")

USED = 0.5
"""Part of the free memory of a GPU that a batch may take: other programs, and other batches, want some."""


class BatchSizes:
    """How many windows at once a network can take on its device, for each kind of work.

    A kind of work is whatever tells it from others that take other memory: what is computed, in which precision, on
    windows of which size.
    """

    def __init__(self) -> None:
        self._most: dict[Hashable, int] = {}
        self._fitting: dict[Hashable, int] = {}

    def run(self, compute: Callable[[slice], Result], count: int, kind: Hashable) -> list[Result]:
        """Compute on a batch of windows; where memory runs out, on halves of it, and from then on on no more at once.

        Args:
            compute: computes on some windows of the batch.
            count: number of windows in the batch.
            kind: of work.

        Returns:
            The results of the parts of the batch, in order; usually there is one.

        Raises:
            ModelError: memory runs out for a single window.

        Example: memory for two windows.
            >>> def compute(part):
            ...     if part.stop - part.start > 2:
            ...         raise torch.OutOfMemoryError
            ...     return list(range(5)[part])
            >>> BatchSizes().run(compute, 5, "example")
            [[0, 1], [2, 3], [4]]
        """
        results: list[Result] = []
        size, start = min(self._most.get(kind, count), count), 0
        while start < count:
            part = slice(start, min(start + size, count))
            try:
                results.append(compute(part))
            except (RuntimeError, MemoryError) as error:  # the latter of a function, by NumPy
                if not out_of_memory(error):
                    raise
                refusal = memory_error(error, "a single window does not fit into it", SMALLER)
            else:
                start = part.stop
                continue
            # Only here is the exception gone, and with it the tensors that it held.
            if part.stop - part.start == 1:
                raise refusal
            size = self._most[kind] = (part.stop - part.start) // 2
            _release()
        return results

    def fitting(
        self, compute: Callable[[int], object], device: torch.device, *, most: int, kind: Hashable
    ) -> int:
        """Return the largest power of two of windows, at most ``most``, that take up half of the free memory of a GPU.

        Args:
            compute: computes on this number of windows; called once for each kind of work, with two.
            device: the GPU.
            most: the largest number.
            kind: of work.
        """
        if kind not in self._fitting:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            compute(2)
            each = max(1, (torch.cuda.max_memory_allocated(device) - before) // 2)
            # What PyTorch has reserved and does not use is as good as free.
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + unused
            fit = int(max(1, min(free * USED // each, most)))
            self._fitting[kind] = 2 ** (fit.bit_length() - 1)
        return min(self._fitting[kind], most)


def _release() -> None:
    """Give memory that is reserved in pieces back, so that whole ones can be reserved."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
