"""What the sanity checks measure: networks whose parameters are redrawn, and windows whose slices are replaced."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sanity_networks import WAYS, Windows, redraw
from scipy.stats import spearmanr

import evenslice
from evenslice._core import ModelError
from evenslice.auditing.attribution import attribute
from evenslice.inference.ready_networks import ReadyNetwork
from evenslice.networks import predicted_classes
from evenslice.results import Interval, pair_bias, ratio
from evenslice.results.intervals import mean_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sanity_networks import Effort
    from torch import Tensor, nn

    from evenslice.results.verdicts import Asymmetry

    Floats = NDArray[np.float64]

BATCH = 4
STATISTICS_WINDOWS = 16  # from which the running statistics of redrawn batch norms are estimated
MAP_WINDOWS = 6
METHODS = ("gradient", "integrated_gradients", "occlusion")
REPLACEMENTS = {"gray": "mean gray", "stranger": "another place", "middle": "middle slice"}
BETWEEN = ("... and the first third: all but the stem", "the stem alone")  # the stages redrawn in every way
FIGURES = {
    "gradient": (-1.0, 1.0),
    "reliance": (-1.0, 1.0),
    "mismatch": (0.0, 1.0),
    "gradient maps": (-1.0, 1.0),
    "occlusion maps": (-1.0, 1.0),
}


def rank_correlation(left: Sequence[float] | Floats, right: Sequence[float] | Floats) -> float:
    """Return Spearman's rank correlation; NaN where one side is constant.

    Example:
        >>> rank_correlation([1, 2, 3], [1, 4, 9]), rank_correlation([1, 2, 3], [5, 5, 5])
        (1.0, nan)
    """
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    return float(spearmanr(left, right).statistic)


class Randomisation:
    """A network as it was built, and what a stage of redrawing changes of it.

    Args:
        model: for windows of 3 slices.
        volume: whose windows it is shown.
        effort: how much is measured.
    """

    def __init__(self, model: nn.Module, volume: evenslice.Volume, effort: Effort) -> None:
        self.model, self.volume, self.effort = model, volume, effort

    @cached_property
    def windows(self) -> tuple[Tensor, int]:
        """The windows for statistics and maps, and how many the volume has."""
        reader = Windows(self.volume, 3, self.effort.tile)
        return reader.read(max(STATISTICS_WINDOWS, MAP_WINDOWS))[0], len(reader.grid)

    @cached_property
    def built(self) -> dict[str, Floats]:
        """The maps of the network as it was built."""
        return self._maps(self.model)

    def measure(self, stage: str, *, seed: int) -> dict[str, Any]:
        """Audit the network after a stage, and compare its maps with those of the network as built.

        Returns:
            The (estimate, low, high) of each of ``FIGURES``; or the message of the audit if it failed.
        """
        drawn = redraw(self.model, stage, self.windows[0][:STATISTICS_WINDOWS], seed=seed)
        try:
            found = self._audit(drawn)
        except ModelError as error:
            return {"failed": str(error)}
        figures: dict[str, Interval] = {
            "gradient": found.pairs[0],
            "reliance": found.reliance[0],
            "mismatch": found.mirror_mismatch,
        }
        for method, maps in self._maps(drawn).items():
            likeness = [rank_correlation(*pair) for pair in zip(self.built[method], maps, strict=True)]
            figures[f"{method} maps"] = mean_interval(likeness, self.windows[1], bounds=(-1, 1))
        return {name: [item.estimate, item.low, item.high] for name, item in figures.items()}

    def compare_ways(self) -> dict[str, Any]:
        """Return the mean pair bias by gradient of each draw, for the stages of ``BETWEEN`` and every way to redraw.

        Windows and mirrors are few, as draws differ more than windows do.
        """
        windows = self.windows[0][:MAP_WINDOWS]
        return {
            f"{stage}, {way}": [
                self._gradient_bias(redraw(self.model, stage, self.windows[0], seed=seed, way=way), windows)
                for seed in range(2 * self.effort.draws)
            ]
            for stage in BETWEEN
            for way in WAYS
        }

    def _gradient_bias(self, model: nn.Module, windows: Tensor) -> float:
        network = ReadyNetwork(model, slices=3, device="cpu", dtype="float32")
        found = [
            attribute(network, batch) for batch in torch.split(torch.cat([windows, windows.flip(1)]), BATCH)
        ]
        biases = [pair_bias(_attribution_shares(item.attribution)) for item in found]
        return float(np.concatenate(biases).mean())

    def _audit(self, model: nn.Module) -> Asymmetry:
        audit = evenslice.audit(
            model,
            self.volume,
            slices=3,
            sampling=evenslice.Sampling(
                tile=self.effort.tile, min_windows=self.effort.windows, max_windows=self.effort.windows
            ),  # all networks get the same
            compute=evenslice.Compute(device="cpu", progress=False),
        )
        return audit.statistics

    def _maps(self, model: nn.Module) -> dict[str, Floats]:
        """Return the absolute attribution of windows by both methods, each (n, pixels of all slices)."""
        network = ReadyNetwork(model, slices=3, device="cpu", dtype="float32")
        maps = {}
        for method in ("gradient", "occlusion"):
            batches = torch.split(self.windows[0][:MAP_WINDOWS], BATCH)
            found = torch.cat([attribute(network, batch, method=method).attribution for batch in batches])
            maps[method] = found.abs().flatten(1).double().numpy()
        return maps


def measure_replacements(
    model: nn.Module, volume: evenslice.Volume, slices: int, effort: Effort
) -> dict[str, Any]:
    """Attribute windows and their mirrors, and replace each of their slices.

    Returns:
        The number of windows of the volume, ``population``; of windows and then of their mirrors the shares (rows, N) by
        each of ``METHODS``, and for each of ``REPLACEMENTS`` how much the output changes with each slice: the root mean
        square of the change of the logits in ``logits``, and the part of the pixels whose class changes in ``classes``,
        NaN for the middle slice where it replaces itself. Slices are in the order in which the network got them.
    """
    reader = Windows(volume, slices, effort.tile)
    windows, middles = reader.read(effort.replaced)
    strangers = reader.read_strangers(middles)
    network = ReadyNetwork(model, slices=slices, device="cpu", dtype="float32")
    network.prepare(slices, effort.tile)
    rows: dict[str, list[Floats]] = {}
    for given, others in ((windows, strangers), (windows.flip(1), strangers.flip(1))):
        for batch, other in zip(torch.split(given, BATCH), torch.split(others, BATCH), strict=True):
            for name, values in {**_shares(network, batch), **_changes(network, batch, other)}.items():
                rows.setdefault(name, []).append(values)
    return {
        "population": len(reader.grid),
        **{name: np.concatenate(values).tolist() for name, values in rows.items()},
    }


def _shares(network: nn.Module, windows: Tensor) -> dict[str, Floats]:
    shares = {}
    for method in METHODS:
        baseline = (
            "gray" if method == "integrated_gradients" else None
        )  # which the middle slice has a share of
        found = attribute(network, windows, method=method, baseline=baseline)
        shares[method] = _attribution_shares(found.attribution)
    return shares


def _attribution_shares(attribution: Tensor) -> Floats:
    """Return the shares (batch, N) of slices in an attribution (batch, N, y, x)."""
    sums = attribution.abs().double().sum(dim=(2, 3)).cpu().numpy()
    return ratio(sums, sums.sum(axis=1, keepdims=True))


@torch.no_grad()
def _changes(network: nn.Module, windows: Tensor, strangers: Tensor) -> dict[str, Floats]:
    middle = windows.shape[1] // 2
    sources = {
        "gray": windows.mean(dim=(1, 2, 3), keepdim=True).expand_as(windows),
        "stranger": strangers,
        "middle": windows[:, middle : middle + 1].expand_as(windows),
    }
    before = network(windows)
    found: dict[str, Floats] = {}
    for name, source in sources.items():
        logits = np.full(tuple(windows.shape[:2]), np.nan)
        classes = logits.copy()
        for k in range(windows.shape[1]):
            if name == "middle" and k == middle:
                continue
            replaced = windows.clone()
            replaced[:, k] = source[:, k]
            after = network(replaced)
            logits[:, k] = (after - before).square().flatten(1).mean(1).sqrt().numpy()
            classes[:, k] = (
                (predicted_classes(after, dim=1) != predicted_classes(before, dim=1))
                .float()
                .flatten(1)
                .mean(1)
                .numpy()
            )
        found |= {f"{name} logits": logits, f"{name} classes": classes}
    return found


def order_of_slices(found: dict[str, Any], method: str, change: str) -> Interval:
    """Return the mean rank correlation over the slices of a window, of its shares with what replacing each changes."""
    pairs = zip(np.array(found[method]), np.array(found[change]), strict=True)
    values = []
    for shares, changes in pairs:
        valid = ~np.isnan(changes)
        values.append(rank_correlation(shares[valid], changes[valid]))
    return _mean(found, values, bounds=(-1, 1))


def pair_biases(found: dict[str, Any], name: str) -> list[Interval]:
    """Return the mean pair bias B_k, k = 1..K, of shares or changes; windows and mirrors leave the model part."""
    return [_mean(found, values, bounds=(-1, 1)) for values in _biases(found, name).T]


def right_signs(found: dict[str, Any], method: str, change: str) -> Interval:
    """Return how often the slice of a pair with the larger share is the one whose replacement changes more.

    Pairs without a difference are left out.
    """
    product = np.sign(_biases(found, method)) * np.sign(_biases(found, change))
    valid = product != 0
    right = np.where(valid, product > 0, 0).sum(1)
    rates = np.divide(right, valid.sum(1), out=np.full(len(valid), np.nan), where=valid.any(1))
    return _mean(found, rates, bounds=(0, 1))


def _mean(found: dict[str, Any], values: Sequence[float] | Floats, bounds: tuple[float, float]) -> Interval:
    """Return the mean over windows, each with its mirror."""
    pairs = np.reshape(values, (2, -1))
    known = ~np.isnan(pairs)
    both = ratio(np.where(known, pairs, 0).sum(axis=0), known.sum(axis=0))
    return mean_interval(both, found["population"], bounds)


def _biases(found: dict[str, Any], name: str) -> Floats:
    """Return the pair biases (rows, K)."""
    return pair_bias(np.nan_to_num(np.array(found[name], dtype=np.float64)))
