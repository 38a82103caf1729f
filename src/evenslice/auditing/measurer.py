"""Everything that is needed to measure windows: they are read, and explained together with their mirrors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import map_ahead
from evenslice.auditing.attribution import Gradients, Mirrored, attribute
from evenslice.auditing.methods import Attributed
from evenslice.auditing.targets import classes_for_mirrors
from evenslice.inference import ReadyNetwork, to_device
from evenslice.results import measure_shares, measure_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.auditing.batches import WindowBatch
    from evenslice.auditing.targets import Target
    from evenslice.inference import BlackBox
    from evenslice.results import MethodNames
    from evenslice.volumes import Volume, WindowGrid

    Network = ReadyNetwork | BlackBox

__all__ = ["Explained", "Measurer", "Network", "ReadBatch"]

ALIKE = ("gradient", "occlusion")
"""Methods that treat each window of a batch as if it were alone: others draw samples, which depend on the place in it."""


@dataclass(frozen=True)
class Explained:
    """The attributions of windows and of their mirrors; both in the order of the windows' slices."""

    given: Attributed
    mirrored: Attributed

    def rows(self, *, classes: bool) -> dict[str, NDArray[np.float64]]:
        """Return the fields of ``Measurements``."""
        given, mirrored = self.given, self.mirrored
        return measure_windows(
            given.attribution,
            mirrored.attribution.flip(1),
            given.output,
            mirrored.output,
            classes=classes,
        )

    def shares(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the shares of the windows and of their mirrors, each in the order in which the network saw the slices."""
        given, mirrored = self.given, self.mirrored
        return (
            measure_shares(given.attribution, given.output),
            measure_shares(mirrored.attribution.flip(1), mirrored.output),
        )

    def less(self, other: Explained) -> Explained:
        """Return what is left of the attributions without those of another score."""
        return Explained(
            *(
                Attributed(mine.attribution - theirs.attribution, mine.output)
                for mine, theirs in ((self.given, other.given), (self.mirrored, other.mirrored))
            )
        )

    def at(self, rows: NDArray[np.int64]) -> Explained:
        """Return those of some windows."""
        return Explained(self.given.at(rows), self.mirrored.at(rows))


@dataclass(frozen=True)
class ReadBatch:
    """Windows as they were read, in memory.

    Attributes:
        batch: which windows.
        windows: (batch, N, y, x) in 0..1.
        labels: (batch, y, x) of their middle slices, for the target "labels".
    """

    batch: WindowBatch
    windows: NDArray[np.float32]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Measurer:
    """Everything needed to measure a batch.

    Attributes:
        network: ready to run.
        grids: the windows of each volume.
        labels: the label map of each volume, for the target "labels".
        target: what is explained.
        methods: of attribution.
        crop: size (y, x) of the part of a window that is measured in the subset; None for all of it.
        seed: random seed of the methods.
    """

    network: Network
    grids: list[WindowGrid]
    labels: list[Volume] | None
    target: Target
    methods: MethodNames
    crop: tuple[int, int] | None
    seed: int

    @property
    def classes(self) -> bool:
        """Whether the output has classes."""
        return self.target != "sum"

    @property
    def volumes(self) -> list[Volume]:
        """All volumes that are read, of labels too."""
        return [*(grid.volume for grid in self.grids), *(self.labels or [])]

    def in_precision(self, dtype: torch.dtype) -> Measurer:
        """Return what measures in another precision; functions go on as before."""
        network = self.network
        return (
            replace(self, network=network.in_precision(dtype)) if isinstance(network, ReadyNetwork) else self
        )

    def read(self, batch: WindowBatch) -> ReadBatch:
        """Read the windows of a batch, several at once if a server sends them; safe in any thread."""
        threads = min(len(batch.places), *(grid.reads_at_once for grid in self.grids))
        ahead = threads if threads > 1 else 0
        read = list(map_ahead(self._read_one, batch.places.tolist(), threads=threads, ahead=ahead))
        maps = [found for _, found in read if found is not None]
        return ReadBatch(batch, np.stack([window for window, _ in read]), np.stack(maps) if maps else None)

    def _read_one(self, place: list[int]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Read a window (N, y, x), and the label map (y, x) of its middle slice."""
        volume, z, y, x = place
        grid, labels = self.grids[volume], self.labels
        return grid.read(z, y, x), None if labels is None else grid.read_labels(labels[volume], z, y, x)

    def place(self, read: ReadBatch) -> tuple[Tensor, Tensor | None]:
        """Return windows (batch, N, y, x) and label maps (batch, y, x) on the device of the network."""
        device = self.network.device
        labels = None if read.labels is None else to_device(read.labels, device)
        return to_device(read.windows, device), labels

    def explain(
        self,
        windows: Tensor,
        labels: Tensor | None,
        *,
        method: str | None = None,
        only: int | Tensor | None = None,
        known: Tensor | None = None,
        predicted: Tensor | None = None,
        mirrored: bool = False,
    ) -> Attributed:
        """Explain windows or their mirrors by a method, by default the first; see ``attribute`` for the options."""
        return attribute(
            Mirrored(self.network) if mirrored else self.network,
            windows,
            method=method or self.methods.first,
            target=self.target,
            labels=labels,
            only=only,
            known=known,
            predicted=predicted,
            seed=self.seed,
        )

    def explain_both(
        self,
        windows: Tensor,
        labels: Tensor | None,
        *,
        method: str | None = None,
        only: int | Tensor | None = None,
        found: Explained | None = None,
    ) -> Explained:
        """Explain windows, and their mirrors for the same classes; parts of windows in one pass, where that can be.

        Args:
            windows: (m, N, y, x); parts of windows if the measurer has a ``crop``.
            labels: (m, y, x) for the target "labels".
            method: by default the first.
            only: a class, or one for each window; see ``attribute``.
            found: what another method found for the same windows, if the network need not run again for their outputs.
        """
        known, mirrored = (None, None) if found is None else (found.given.output, found.mirrored.output)
        if self.crop is not None and method in ALIKE and known is not None and mirrored is not None:
            pairs, maps = _pair(windows, labels)
            outputs, classes = torch.cat([known, mirrored]), _twice(classes_for_mirrors(self.target, known))
            return _unpair(
                self.explain(pairs, maps, method=method, only=_twice(only), known=outputs, predicted=classes)
            )
        given = self.explain(windows, labels, method=method, only=only, known=known)
        return self.with_mirrors(windows, labels, given, method=method, only=only, known=mirrored)

    def with_mirrors(
        self,
        windows: Tensor,
        labels: Tensor | None,
        given: Attributed,
        *,
        method: str | None = None,
        only: int | Tensor | None = None,
        known: Tensor | None = None,
    ) -> Explained:
        """Explain the mirrors of windows for the same classes, and return that beside what was found for the windows."""
        classes = classes_for_mirrors(self.target, given.output)
        return Explained(
            given,
            self.explain(
                windows, labels, method=method, only=only, known=known, predicted=classes, mirrored=True
            ),
        )

    def explainer(self, windows: Tensor, labels: Tensor | None) -> Callable[[int | Tensor | None], Explained]:
        """Return what explains windows and their mirrors by the first method: all of the output, or a class of each.

        The gradients of parts of windows share a forward pass. To keep the passes of whole windows and of their mirrors
        would take more memory than the rest of an audit.
        """
        if self.crop is None or self.methods.first != "gradient":
            return lambda only: self.explain_both(windows, labels, only=only)
        pairs, maps = _pair(windows, labels)
        gradients = Gradients(
            self.network, pairs, target=self.target, labels=maps, seed=self.seed, paired=True
        )
        return lambda only: _unpair(gradients.explain(_twice(only)))


def _pair(windows: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return windows, then their mirrors, with their labels."""
    return torch.cat([windows, windows.flip(1)]), None if labels is None else torch.cat([labels, labels])


def _twice(classes: int | Tensor | None) -> Any:
    """Return the classes of windows for these, then for their mirrors."""
    return torch.cat([classes, classes]) if isinstance(classes, torch.Tensor) else classes


def _unpair(found: Attributed) -> Explained:
    """Return what was found for windows and then for their mirrors, in the order of the windows' slices."""
    count = len(found.output) // 2
    given, mirrored = found.at(slice(count)), found.at(slice(count, None))
    return Explained(given, Attributed(mirrored.attribution.flip(1), mirrored.output))
