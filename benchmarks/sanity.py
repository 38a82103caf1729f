"""Sanity checks of attribution on pretrained networks; docs/calibration.md says what follows.

    python benchmarks/sanity.py [--results FILE] [--docs]

1. Parameter randomisation from the top down (Adebayo et al. 2018, arXiv 1810.03292). The parameters of a U-Net are
   redrawn cumulatively, from the output layer down to the stem, and those of the stem alone. How do the pair bias, the
   mirror mismatch and the saliency maps react? Redrawing permutes the values of each parameter, which keeps their
   distribution. A redrawn batch norm whose running statistics came from training gets those of its new input, because
   the old ones describe the activations of another network; all other statistics stay.
2. Faithfulness. Each slice of a window is replaced by something else. Do the shares of the attribution tell which
   replacement changes the output most?

It is a report and not a test: the exit status is 0 whatever it finds.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr
from shared import FAMILIES, Cache, load_family, make_parser, mean, table, write_csvs
from torch import nn

import evenslice
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]
    Network = Callable[[Tensor], Tensor]

MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"
NOISE = 0.01  # of the range of the template, like that of a scan
WINDOWS, DRAWS, REPLACED = 32, 4, 32  # of each audit; of each stage; windows with replaced slices
TILE = 96  # pixels
BATCH, STATISTICS, MAPS = 4, 16, 6  # windows at a time; for batch norms; whose maps are compared
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
BETWEEN = ("... and the first third: all but the stem", "the stem alone")  # the stages of more draws


def scaled(model: nn.Module) -> Network:
    """Return a network that takes windows in 0..1, as its record says."""
    record = evenslice.record_of(model)
    center, std = (0.0, 1.0) if record is None else (record.mean, record.std)
    return lambda windows: model((windows - center) / std)


def draw_windows(volume: evenslice.Volume, slices: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw windows in 0..1, (count, N, y, x), and as many slices each from elsewhere along z."""
    rng, half = np.random.default_rng(0), slices // 2
    voxels = np.asarray(volume[:], np.float32)
    low, high = np.percentile(voxels, (0.5, 99.5))
    voxels = ((voxels - low) / (high - low)).clip(0, 1).astype(np.float32)
    room = np.subtract(voxels.shape[1:], TILE - 1)
    found, strangers = [], []
    for _ in range(count):
        z = int(rng.integers(half, len(voxels) - half))
        elsewhere = [k for k in range(len(voxels)) if abs(k - z) > half]
        places = [(k, *rng.integers(0, room)) for k in rng.choice(elsewhere, slices)]
        y, x = rng.integers(0, room)
        found.append(voxels[z - half : z + half + 1, y : y + TILE, x : x + TILE])
        strangers.append(np.stack([voxels[k, v : v + TILE, u : u + TILE] for k, v, u in places]))
    return torch.from_numpy(np.stack(found)), torch.from_numpy(np.stack(strangers))


def attribution(model: nn.Module, windows: Tensor, method: str) -> Floats:
    """Return what each pixel does to the log-odds of the predicted classes, (batch, N, y, x)."""
    options: dict[str, Any] = {} if method == "gradient" else {"baseline": "gray"}
    options |= {"reading": evenslice.Reading(intensity=(0, 1)), "compute": evenslice.Compute(device="cpu")}
    middle = windows.shape[1] // 2
    found = (evenslice.explain(model, window, middle, method=method, **options) for window in windows.numpy())
    return np.stack([each.maps for each in found]).astype(np.float64)


def shares(maps: Floats) -> Floats:
    """Return the shares (batch, N) of slices in an attribution."""
    sums = np.abs(maps).sum(axis=(2, 3))
    return np.asarray(sums / np.maximum(sums.sum(axis=1, keepdims=True), 1e-300))


def pair_bias(values: Floats) -> Floats:
    """Return (s_k - s_-k) / (s_k + s_-k) of values (rows, N), NaN taken for 0: (rows, K)."""
    values, half = np.nan_to_num(values), values.shape[1] // 2
    after, before = values[:, half + 1 :], values[:, :half][:, ::-1]
    return np.asarray((after - before) / np.maximum(after + before, 1e-300))


def split_layers(model: nn.Module, window: Tensor) -> dict[str, list[nn.Module]]:
    """Split the layers of a neutralized network into the parts that ``STAGES`` names, each in the order in which they run.

    A batch norm belongs to the layer before it; without an ``encoder``, the last layer is the decoder.
    """
    names = {module: name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    order: dict[nn.Module, None] = {}
    hooks = [module.register_forward_pre_hook(lambda layer, _: order.setdefault(layer)) for module in names]
    with torch.no_grad():
        model.eval()(window)
    for hook in hooks:
        hook.remove()
    units: list[list[nn.Module]] = []
    for layer in order:
        follows = isinstance(layer, nn.BatchNorm2d) and units
        units = [*units[:-1], [*units[-1], layer]] if follows else [*units, [layer]]
    record = evenslice.record_of(model)
    stem = [unit for unit in units if record and names[unit[0]] in record.stems]
    body = [unit for unit in units if unit not in stem]
    top = [unit for unit in body if not names[unit[0]].startswith("encoder.")]
    top = top if hasattr(model, "encoder") else body[-1:]
    inner = [unit for unit in body if unit not in top]
    thirds = [[inner[i] for i in part] for part in np.array_split(np.arange(len(inner)), 3)]
    parts = dict(zip(("stem", "decoder", "first", "middle", "last"), (stem, top, *thirds), strict=True))
    return {name: [layer for unit in part for layer in unit] for name, part in parts.items()}


def redraw(model: nn.Module, stage: str, windows: Tensor, *, seed: int) -> nn.Module:
    """Return a copy of a network in which the parameters of a stage are redrawn.

    The layers are redrawn from the top down, so a seed means the same parameters in every cumulative stage.
    """
    model = copy.deepcopy(model).eval()
    parts = split_layers(model, windows[:1])
    layers = [layer for part in STAGES[stage] for layer in reversed(parts[part])]
    generator = torch.Generator().manual_seed(seed)
    norms: list[Any] = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    norms = [norm for norm in norms if norm.running_mean.any()]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the plain mean over all batches
            norm.reset_running_stats()
            norm.train()
        for given in (windows, windows.flip(1)) if norms else ():  # which favour no direction
            scaled(model)(given)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def measure_stage(model: nn.Module, volume: evenslice.Volume, stage: str, seed: int) -> dict[str, Any]:
    """Audit a network after a stage, and compare its maps with those of the network as built."""
    windows, _ = draw_windows(volume, 3, STATISTICS)
    drawn = redraw(model, stage, windows, seed=seed)
    sampling = evenslice.Sampling(tile=(TILE, TILE), min_windows=WINDOWS, max_windows=WINDOWS)
    compute = evenslice.Compute(device="cpu", progress=False)
    found = evenslice.audit(drawn, volume, slices=3, sampling=sampling, compute=compute)
    figures = {"gradient": found.saliency[0], "reliance": found.reliance[0], "mismatch": found.mismatch}
    rows = {name: [item.estimate, item.low, item.high] for name, item in figures.items()}
    for method in ("gradient", "occlusion"):
        maps = (np.abs(attribution(one, windows[:MAPS], method)) for one in (model, drawn))
        likeness = [spearmanr(one, other, axis=None).statistic for one, other in zip(*maps, strict=True)]
        rows[f"{method} maps"] = list(mean(likeness))
    return rows


def draw_more(model: nn.Module, volume: evenslice.Volume) -> dict[str, list[float]]:
    """Return the mean pair bias by gradient of each of twice as many draws, for the stages of ``BETWEEN``."""
    windows, _ = draw_windows(volume, 3, STATISTICS)
    both = torch.cat([windows[:MAPS], windows[:MAPS].flip(1)])

    def bias(stage: str, seed: int) -> float:
        drawn = redraw(model, stage, windows, seed=seed)
        return float(pair_bias(shares(attribution(drawn, both, "gradient"))).mean())

    return {stage: [bias(stage, seed) for seed in range(2 * DRAWS)] for stage in BETWEEN}


def measure_replacements(
    model: nn.Module, volume: evenslice.Volume, slices: int
) -> dict[str, list[list[float]]]:
    """Return, for windows and then for their mirrors, the shares by each method and what replacing each slice changes.

    The change is the root mean square of that of the logits; NaN for the middle slice where it replaces itself.
    """
    windows, strangers = draw_windows(volume, slices, REPLACED)
    network, rows = scaled(model.eval()), dict[str, list[Any]]()
    for given, others in ((windows, strangers), (windows.flip(1), strangers.flip(1))):
        for batch, other in zip(torch.split(given, BATCH), torch.split(others, BATCH), strict=True):
            for method in METHODS:
                rows.setdefault(method, []).extend(shares(attribution(model, batch, method)).tolist())
            for name, values in _changes(network, batch, other).items():
                rows.setdefault(name, []).extend(values.T.tolist())
    return rows


@torch.no_grad()
def _changes(network: Network, windows: Tensor, strangers: Tensor) -> dict[str, Floats]:
    middle, before = windows.shape[1] // 2, network(windows)
    gray = windows.mean(dim=(1, 2, 3), keepdim=True)
    found: dict[str, Floats] = {}
    sources = {"gray": gray, "stranger": strangers, "middle": windows[:, middle : middle + 1]}
    for name, source in sources.items():
        changes = []
        for k in range(windows.shape[1]):
            replaced = windows.clone()
            replaced[:, k] = source.expand_as(windows)[:, k]
            changes.append((network(replaced) - before).square().flatten(1).mean(1).sqrt())
        found[name] = torch.stack(changes).numpy().astype(np.float64)
    found["middle"][middle] = np.nan
    return found


def _each_pair(values: Sequence[float] | Floats) -> Floats:
    """Return the means over each window and its mirror, which stand in two halves."""
    first, second = np.reshape(np.asarray(values, np.float64), (2, -1))
    return np.where(np.isnan(first), second, np.where(np.isnan(second), first, (first + second) / 2))


def right_signs(found: dict[str, Any], method: str, kind: str) -> tuple[float, float, float]:
    """Return how often the slice of a pair with the larger share is the one whose replacement changes more."""
    product = np.sign(pair_bias(np.array(found[method]))) * np.sign(pair_bias(np.array(found[kind])))
    rates = [row[row != 0].clip(0).mean() if row.any() else np.nan for row in product]
    return mean(_each_pair(rates), (0, 1))


def cell(value: Sequence[float]) -> str:
    """Format an estimate and its interval with two decimals."""
    if np.isnan(value[0]):
        return NOTHING
    estimate, low, high = map(_number, value)
    return f"{estimate} [{low}, {high}]"


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)


def stage_rows(name: str, stages: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Return the rows of one network, each the means over the draws of a stage."""
    rows = []
    for stage, draws in stages.items():
        cells = [
            cell(mean(draw[figure][0] for draw in draws) if len(draws) > 1 else draws[0][figure])
            for figure in ("gradient", "reliance", "mismatch", "gradient maps", "occlusion maps")
        ]
        each = [" ".join(_number(draw[figure][0]) for draw in draws) for figure in ("gradient", "reliance")]
        rows.append([name, stage, *cells, *each])
    return rows


def measure_all(
    load: Callable[..., nn.Module], names: Sequence[str], volume: evenslice.Volume, cache: Cache
) -> dict[str, str]:
    """Measure every network, which ``load`` returns for a name and a number of slices, and return all tables."""
    staged: list[list[str]] = []
    draws: list[list[str]] = []
    replacements: dict[tuple[str, int], dict[str, Any]] = {}
    for name in names:
        model = load(name, slices=3)
        measure = partial(measure_stage, model, volume)
        stages = {
            stage: [
                cache.get(f"{name}, {stage}, {seed}", partial(measure, stage, seed))
                for seed in range(DRAWS if parts else 1)
            ]
            for stage, parts in STAGES.items()
        }
        staged += stage_rows(name, stages)
        for stage, values in cache.get(f"{name}, more draws", partial(draw_more, model, volume)).items():
            each = " ".join(map(_number, sorted(values)))
            draws.append([name, stage.rpartition(": ")[2], cell(mean(values)), each])
        for slices in (3, 5):
            of = partial(measure_replacements, load(name, slices=slices), volume, slices)
            replacements[name, slices] = cache.get(f"{name}, replaced slices of {slices}", of)
    biases = ["B of the gradient", "B of the reliance", "E", "gradient maps", "occlusion maps"]
    header = ["network", "redrawn", *biases, "gradient, each draw", "reliance, each draw"]
    return {
        "stages": table(header, staged),
        "draws": table(["network", "redrawn", "B by gradient", "each draw"], draws),
        **replacement_tables(replacements),
    }


def replacement_tables(found: dict[tuple[str, int], dict[str, Any]]) -> dict[str, str]:
    """Return the tables of faithfulness of ``measure_replacements`` of each network and number of slices."""
    methods, biases = [method.replace("_", " ") for method in METHODS], []
    signs = [
        [name, str(slices), title, *(cell(right_signs(rows, method, kind)) for method in METHODS)]
        for (name, slices), rows in found.items()
        for kind, title in REPLACEMENTS.items()
    ]
    for (name, slices), rows in found.items():
        columns = [pair_bias(np.array(rows[column])).T for column in (*METHODS, *REPLACEMENTS)]
        for k, cells in enumerate(zip(*columns, strict=True), start=1):
            biases.append([name, str(slices), f"±{k}", *(cell(mean(_each_pair(values))) for values in cells)])
    return {
        "signs": table(["network", "slices", "replaced by", *methods], signs),
        "biases": table(["network", "slices", "pair", *methods, *REPLACEMENTS.values()], biases),
    }


def main() -> None:
    """Print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, help="JSON file; a second run goes on there")
    parser.add_argument("--docs", action="store_true", help="write the tables to benchmarks/results")
    options = parser.parse_args()
    voxels = mni152()[:].astype(np.float32)
    voxels += np.random.default_rng(0).normal(0, NOISE * voxels.max(), voxels.shape)
    volume = evenslice.open_volume(voxels)
    tables = measure_all(load_family, list(FAMILIES), volume, Cache(options.results))
    for name, lines in tables.items():
        print(f"\n{name}\n\n{lines}")
    if options.docs:
        write_csvs("sanity", tables)


if __name__ == "__main__":
    main()
