"""Stress: what disturbed slices cost a network, measured while volumes are predicted.

    found = stress(network, [StressedVolume(volume, scaling, labels)], slices=3)
    found.losses[0].before.loss          # Dice lost with the slice at -1 missing, with its interval

Every slice is read once; each window then goes through the network in all the ways of ``Disturbances``. Each is what happens
to real stacks: a section is missing and its neighbour stands in, a frame is blank, noisy, or out of register with the others;
or the whole stack is upside down. The middle slice, which is to be segmented, stays as it is. ``results.stress`` has the
formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from evenslice._core import ConfigError, option, progress_bar, whole_number
from evenslice.inference.metrics import confusion_matrix
from evenslice.inference.network_outputs import class_map
from evenslice.inference.prediction import SliceRuns, choose_tile, even_slices, predict, try_network
from evenslice.results import Stress, StressCounts, summarize_stress

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.inference.prediction import Network
    from evenslice.volumes import Scaling, Volume

    Plane = NDArray[np.float32]

__all__ = ["KINDS", "MOST_SLICES", "NOISE", "SHIFT", "Disturbances", "StressTest", "StressedVolume", "stress"]

KINDS = ("missing", "blank", "noisy", "shifted")
"""What becomes of a slice: the middle slice in its place; 0, the darkest intensity; noise added; or a translation."""

NOISE = 0.1
"""Standard deviation of the noise of noisy slices, where intensities are scaled to 0..1."""

SHIFT = 8
"""Pixels by which shifted slices are translated along x; their first column is repeated."""


@dataclass(frozen=True)
class Disturbances:
    """The ways in which a window of N slices is shown to a network.

    Attributes:
        slices: N = 2K + 1, at least 3.
        seed: random seed of the noise.

    Example: windows of one pixel, at offsets -1, 0 and 1, as they are, reversed, and with a missing slice.
        >>> window = [np.full((1, 1), value, np.float32) for value in (0.2, 0.5, 0.8)]
        >>> ways = Disturbances(3).windows(window, 0, 0)
        >>> [[round(plane.item(), 2) for plane in next(ways)] for _ in range(5)]
        [[0.2, 0.5, 0.8], [0.8, 0.5, 0.2], [0.5, 0.5, 0.8], [0.2, 0.5, 0.5], [0.5, 0.5, 0.5]]
        >>> len(Disturbances(3)), Disturbances(5).kinds[:2]
        (14, [('missing', 1), ('missing', 2)])
    """

    slices: int
    seed: int = 0

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """The kind and the offset k of each three ways after the first two."""
        return [(kind, k) for kind in KINDS for k in range(1, self.slices // 2 + 1)]

    def __len__(self) -> int:
        """Return the number of ways."""
        return 2 + 3 * len(self.kinds)

    def windows(self, window: Sequence[Plane], volume: int, z: int) -> Iterator[list[Plane]]:
        """Yield the window as it is, reversed, and for each of ``kinds`` with the slice at -k, that at +k, and both.

        Args:
            window: its N slices (y, x), scaled to 0..1.
            volume: number of the volume.
            z: the middle slice. The noise depends on the volume and z, and is the same at -k as at +k; where both are
                noisy, that at +k is another.
        """
        yield list(window)
        yield list(window[::-1])
        middle = self.slices // 2
        random = np.random.default_rng([self.seed, volume, z])
        noise = [NOISE * random.standard_normal(window[middle].shape, dtype=np.float32) for _ in range(2)]
        for kind, k in self.kinds:
            before, after = (self._slice(kind, window, middle + side * k, noise[0]) for side in (-1, 1))
            other = self._slice(kind, window, middle + k, noise[1])
            for changes in ({-k: before}, {k: after}, {-k: before, k: other}):
                yield [changes.get(place - middle, plane) for place, plane in enumerate(window)]

    def _slice(self, kind: str, window: Sequence[Plane], place: int, noise: Plane) -> Plane:
        """Return what stands in the place of a slice."""
        plane = window[place]
        if kind == "missing":
            return window[self.slices // 2]
        if kind == "blank":
            return np.zeros_like(plane)
        if kind == "noisy":
            noisy: Plane = np.clip(plane + noise, 0, 1)  # as the scaling clips voxels
            return noisy
        shift = min(SHIFT, plane.shape[1] - 1)
        return np.pad(plane[:, : plane.shape[1] - shift], [(0, 0), (shift, 0)], mode="edge")


MOST_SLICES = 60
"""Slices whose windows are disturbed, spread evenly over the volumes, unless another number is asked for."""


@dataclass(frozen=True)
class StressedVolume:
    """A volume (z, y, x), its scaling to 0..1, and the class of each of its voxels if that is known."""

    volume: Volume
    scaling: Scaling
    labels: Volume | None = None


class StressTest:
    """Disturbs windows, and compares the answers slice by slice.

    Args:
        slices: N, odd, at least 3.
        classes: C, at least 2.
        seed: random seed of the noise.

    Raises:
        ConfigError: a window of one slice has no neighbours, or the seed is negative.
    """

    def __init__(self, slices: int, classes: int, *, seed: int = 0) -> None:
        if slices < 3:
            raise ConfigError(
                f"{option('slices', slices)}: such a window has no neighbours that could be disturbed"
            )
        self.ways = Disturbances(slices, whole_number("seed", seed, least=0))
        self.classes = classes
        self._rows: list[tuple[int, int, NDArray[np.int64]]] = []
        self._labelled = True

    def windows(
        self, volume: int, chosen: Container[int]
    ) -> Callable[[int, Sequence[Plane]], Iterator[Sequence[Plane]]]:
        """Return what to predict for each window of a volume: as it is, and if it is chosen, disturbed in all ways."""

        def disturb(z: int, window: Sequence[Plane]) -> Iterator[Sequence[Plane]]:
            ways = self.ways.windows(window, volume, z)
            return ways if z in chosen else islice(ways, 1)

        return disturb

    def watch(
        self,
        outputs: Iterable[tuple[int, Tensor]],
        volume: int,
        chosen: Container[int],
        labels: SliceRuns | None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Compare the answers to the windows of a volume, and pass on those to the intact ones.

        Args:
            outputs: z and logits (classes, y, x), for each window in all its ways; see ``windows``.
            volume: number of the volume.
            chosen: the slices whose windows are disturbed.
            labels: the reference; by default the intact answer.
            advance: called with the number of windows that were answered.

        Yields:
            z and the class map (y, x) of each intact window.
        """
        self._labelled = labels is not None
        outputs = iter(outputs)
        for z, output in outputs:
            answer = class_map(output, self.classes)
            advance(1)
            if z in chosen:
                reference = answer if labels is None else labels[z]
                matrices = [confusion_matrix(reference, answer, self.classes)]
                for _, other in islice(outputs, len(self.ways) - 1):
                    matrices.append(confusion_matrix(reference, class_map(other, self.classes), self.classes))
                    advance(1)
                self._add(volume, z, np.array(matrices))
            yield z, answer

    def _add(self, volume: int, z: int, matrices: NDArray[np.int64]) -> None:
        """Keep the hits and the sizes of each class, from matrices (ways, class, answered class)."""
        hits, sizes = matrices.diagonal(axis1=1, axis2=2), matrices.sum(axis=2) + matrices.sum(axis=1)
        self._rows.append((volume, z, np.stack([hits, sizes])))

    def result(self) -> Stress:
        """Return what the disturbances cost."""
        volume, z, counts = (np.array(column) for column in zip(*self._rows, strict=True))
        return summarize_stress(
            StressCounts(volume, z, counts[:, 0], counts[:, 1]),
            self.ways.kinds,
            reference="labels" if self._labelled else "intact answer",
            noise=NOISE,
            shift=SHIFT,
        )


def stress(  # all but three arguments have defaults and names
    network: Network,
    volumes: Sequence[StressedVolume],
    *,
    slices: int,
    step: int = 1,
    classes: int | None = None,
    most_slices: int | None = MOST_SLICES,
    tile: tuple[int, int] | None = None,
    batch: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Stress:
    """Measure what disturbed slices cost a network.

    Args:
        network: a network or a function, ready to run.
        volumes: one or more, all with labels or all without.
        slices: N, odd, at least 3.
        step: distance between neighbouring slices of a window.
        classes: C; by default as many as the network returns, at least 2.
        most_slices: disturb the windows of at most this many slices, spread evenly over the volumes; None for all.
        tile: size (y, x) of the in-plane tiles, see ``predict``.
        batch: windows per forward pass.
        seed: random seed of the noise.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.

    Raises:
        VolumeError: a volume cannot be read, or has fewer slices than a window.
        ModelError: the network rejects the windows, or returns no map of logits.
        ConfigError: an option is out of range, or a window has no neighbours.

    Example: a network that reads the slice before the middle, and no other.
        >>> import torch
        >>> from evenslice.inference import ReadyNetwork
        >>> from evenslice.volumes import Scaling, open_volume
        >>> reader = torch.nn.Conv2d(3, 1, 1)
        >>> _ = reader.weight.requires_grad_(False).copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
        >>> _ = reader.bias.requires_grad_(False).fill_(-0.5)
        >>> network = ReadyNetwork(reader, slices=3, device="cpu", dtype="float32")
        >>> noise = open_volume(np.random.default_rng(0).random((20, 32, 32)))
        >>> missing = stress(network, [StressedVolume(noise, Scaling(0, 1))], slices=3).losses[0]
        >>> missing.kind, missing.before.loss.estimate > 0.4, missing.after.loss.estimate, missing.after.dice
        ('missing', True, 0.0, 1.0)
    """
    if not volumes:
        raise ConfigError("no volume to stress; give at least one")
    if len({item.labels is None for item in volumes}) > 1:
        raise ConfigError("some volumes have labels and some have none; give labels for all, or for none")
    if classes is None:
        classes = try_network(network, slices, tile or choose_tile(network, volumes[0].volume.shape[1:]))
    test = StressTest(slices, classes, seed=seed)
    chosen = even_slices([len(item.volume) for item in volumes], most_slices)
    total = len(test.ways) * sum(map(len, chosen))
    with progress_bar("stress", total, "windows", show=progress) as advance:
        for index, (item, centres) in enumerate(zip(volumes, chosen, strict=True)):
            outputs = predict(
                network,
                item.volume,
                scaling=item.scaling,
                slices=slices,
                step=step,
                centres=centres,
                tile=tile,
                batch=batch,
                shown=test.windows(index, centres),
            )
            labels = None if item.labels is None else SliceRuns(item.labels)
            for _ in test.watch(outputs, index, centres, labels, advance):
                pass
    return test.result()
