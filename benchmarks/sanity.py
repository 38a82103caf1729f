"""Sanity checks of attribution, on networks as built and trained ones; docs/calibration.md says what follows.

    python benchmarks/sanity.py --scratch FOLDER [--keep]    # FOLDER as in trained.py, whose networks it holds

1. Parameter randomisation from the top down (Adebayo et al. 2018, arXiv 1810.03292). The parameters of a U-Net are
   redrawn cumulatively, from the output layer down to the stem, and those of the stem alone. How do the pair bias, the
   mirror mismatch and the saliency maps react? Redrawing permutes the values of each parameter, which keeps their
   distribution. A redrawn batch norm whose running statistics came from training gets those of its new input, because
   the old ones describe the activations of another network; all other statistics stay.
2. Faithfulness. Each neighbour in a window is replaced by something else. Do the shares of the attribution tell which
   replacement changes the output more?

Networks as built see the MNI152 template with noise; U-Nets of trained.py (seed 0), the first volume of their test.
Trained networks that are not there are left out. Results are kept in FOLDER, and a second run goes on there. Hippocampi,
and the starts `twin` and `uniform`, were added on 4 December 2026, before their first run, to be described.
"""

from __future__ import annotations

import copy
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from planted_evidence import SMALL_VGG16
from scipy.stats import spearmanr
from shared import FAMILIES, load_family, make_parser, mean, remember, table, write_csvs
from torch import nn
from trained import ARMS, data_sets, open_pairs

import evenslice
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]
    Network = Callable[[Tensor], Tensor]
    Case = tuple[nn.Module, evenslice.Volume]
    """A network for three slices, and the volume that it is shown."""

MINUS = "\N{MINUS SIGN}"
NOISE = 0.01  # of the range of the template, like that of a scan
WINDOWS, DRAWS, REPLACED = 16, 4, 32  # of each audit; of each stage; windows with replaced slices
TILE = 96  # pixels, or the side of a smaller plane
STATISTICS, MAPS = 16, 6  # windows for batch norms; whose maps are compared
FIGURES = ("B of the gradient", "B of the reliance", "E", "gradient maps")
METHODS = ("gradient", "integrated_gradients", "occlusion")
REPLACEMENTS = {"middle": "middle slice", "gray": "mean gray", "stranger": "another place"}
STAGES: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "output layer and decoder": ("decoder",),
    "and the last third of the encoder": ("decoder", "last"),
    "and the middle third": ("decoder", "last", "middle"),
    "and the first third: all but the stem": ("decoder", "last", "middle", "first"),
    "everything": ("decoder", "last", "middle", "first", "stem"),
    "the stem alone": ("stem",),
}

BETWEEN = ("and the first third: all but the stem", "the stem alone")
"""Stages that are drawn twice as often: does the bias come from the stem?"""


def find_cases(scratch: Path) -> dict[str, Case]:
    """Return what is checked, by name."""
    voxels = mni152()[:].astype(np.float32)
    voxels += np.random.default_rng(0).normal(0, NOISE * voxels.max(), voxels.shape)
    template, sets = evenslice.open_volume(voxels), data_sets()
    found: dict[str, Case] = {}
    for arm, name in product(ARMS, sets):
        file = scratch / f"{name}-{arm}-0".replace(" ", "-") / "network.safetensors"
        if file.exists():
            network = evenslice.load_network(str(file)).model.eval()
            start = "" if arm == "pretrained" else f"{arm}, "
            found[f"{start}trained on {name}"] = network, open_pairs(sets[name]["test"][:1])[0][0]
    for name in FAMILIES:
        found[name] = load_family(name, SMALL_VGG16 if name == "VGG16" else None), template
    return found


def scaled(model: nn.Module) -> Network:
    """Return a network that takes windows in 0..1, as its record says."""
    record = evenslice.record_of(model)
    center, std = (0.0, 1.0) if record is None else (record.mean, record.std)
    return lambda windows: model((windows - center) / std)


def draw_windows(volume: evenslice.Volume, count: int) -> tuple[Tensor, Tensor]:
    """Draw windows in 0..1, (count, 3, y, x), and as many slices each from elsewhere along z."""
    rng = np.random.default_rng(0)
    voxels = np.asarray(volume[:], np.float32)
    low, high = np.percentile(voxels, (0.5, 99.5))
    voxels = ((voxels - low) / (high - low)).clip(0, 1).astype(np.float32)
    tile = min(TILE, *voxels.shape[1:])
    room = np.subtract(voxels.shape[1:], tile - 1)
    found, strangers = [], []
    for _ in range(count):
        z = int(rng.integers(1, len(voxels) - 1))
        elsewhere = [k for k in range(len(voxels)) if abs(k - z) > 1]
        places = [(k, *rng.integers(0, room)) for k in rng.choice(elsewhere, 3)]
        y, x = rng.integers(0, room)
        found.append(voxels[z - 1 : z + 2, y : y + tile, x : x + tile])
        strangers.append(np.stack([voxels[k, v : v + tile, u : u + tile] for k, v, u in places]))
    return torch.from_numpy(np.stack(found)), torch.from_numpy(np.stack(strangers))


def attribution(model: nn.Module, windows: Tensor, method: str) -> Floats:
    """Return what each pixel does to the log-odds of the predicted classes, (batch, N, y, x)."""
    options: dict[str, Any] = {} if method == "gradient" else {"baseline": "gray"}
    options |= {"reading": evenslice.Reading(intensity=(0, 1)), "compute": evenslice.Compute(device="cpu")}
    found = (evenslice.explain(model, window, 1, method=method, **options) for window in windows.numpy())
    return np.stack([each.maps for each in found]).astype(np.float64)


def pair_bias(sizes: Sequence[Floats] | Floats) -> Floats:
    """Return (after - before) / (after + before) of sizes (windows, 3)."""
    before, _, after = np.asarray(sizes, np.float64).T
    return np.asarray((after - before) / np.maximum(after + before, 1e-300))


def split_layers(model: nn.Module, window: Tensor) -> dict[str, list[nn.Module]]:
    """Split the layers of a neutralized network into the parts that ``STAGES`` names, each in the order in which they run.

    A batch norm belongs to the layer before it.
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
        for norm in norms:
            norm.momentum = None  # the plain mean over all batches
            norm.reset_running_stats()
            norm.train()
        for given in (windows, windows.flip(1)) if norms else ():  # which favour no direction
            scaled(model)(given)
    return model.eval()


def measure_stage(case: Case, stage: str, seed: int) -> dict[str, list[float]]:
    """Audit a network after a stage, and compare its maps with those of the network before."""
    model, volume = case
    windows, _ = draw_windows(volume, STATISTICS)
    drawn = redraw(model, stage, windows, seed=seed)
    sampling = evenslice.Sampling(
        tile=(windows.shape[2], windows.shape[3]), min_windows=WINDOWS, max_windows=WINDOWS
    )
    compute = evenslice.Compute(device="cpu", progress=False)
    found = evenslice.audit(drawn, volume, slices=3, sampling=sampling, compute=compute)
    figures = zip(FIGURES[:3], (found.saliency[0], found.reliance[0], found.mismatch), strict=True)
    rows = {name: [item.estimate, item.low, item.high] for name, item in figures}
    maps = (np.abs(attribution(one, windows[:MAPS], "gradient")) for one in (model, drawn))
    likeness = [spearmanr(one, other, axis=None).statistic for one, other in zip(*maps, strict=True)]
    return rows | {"gradient maps": list(mean(likeness))}


def measure_replacements(case: Case) -> dict[str, list[list[float]]]:
    """Return, for windows and then for their mirrors, the sums of each attribution, and what replacing each slice changes.

    The change is the root mean square of that of the logits.
    """
    model, volume = case
    windows, strangers = draw_windows(volume, REPLACED)
    network, rows = scaled(model), dict[str, list[Any]]()
    for given, others in ((windows, strangers), (windows.flip(1), strangers.flip(1))):
        sums = {method: np.abs(attribution(model, given, method)).sum((2, 3)) for method in METHODS}
        for name, values in (sums | _changes(network, given, others)).items():
            rows.setdefault(name, []).extend(values.tolist())
    return rows


@torch.no_grad()
def _changes(network: Network, windows: Tensor, strangers: Tensor) -> dict[str, Tensor]:
    before, gray = network(windows), windows.mean(dim=(1, 2, 3), keepdim=True)
    found: dict[str, Tensor] = {}
    for name, source in {"middle": windows[:, 1:2], "gray": gray, "stranger": strangers}.items():
        changes = []
        for k in range(3):
            replaced = windows.clone()
            replaced[:, k] = source.expand_as(windows)[:, k]
            changes.append((network(replaced) - before).square().flatten(1).mean(1).sqrt())
        found[name] = torch.stack(changes, dim=1)
    return found


def cell(value: Sequence[float]) -> str:
    """Write an estimate and its interval."""
    estimate, low, high = value
    return f"{estimate:z.2f} [{low:z.2f}, {high:z.2f}]".replace("-", MINUS)


def measure_all(cases: Mapping[str, Case], kept: Path) -> dict[str, str]:
    """Measure every case, and return all tables."""
    staged, signs = list[list[str]](), list[list[str]]()
    for name, case in cases.items():
        for stage, parts in STAGES.items():
            draws = [
                remember(kept, f"{name}, {stage}, {seed}", partial(measure_stage, case, stage, seed))
                for seed in range(DRAWS * (1 + (stage in BETWEEN)) if parts else 1)
            ]
            figures = [
                mean(draw[figure][0] for draw in draws) if parts else draws[0][figure] for figure in FIGURES
            ]
            each = " ".join(f"{draw[FIGURES[0]][0]:z.2f}" for draw in draws).replace("-", MINUS)
            staged.append([name, stage, *map(cell, figures), each])
        found = remember(kept, f"{name}, replaced slices", partial(measure_replacements, case))
        leans = {column: pair_bias(values) for column, values in found.items()}
        for kind, title in REPLACEMENTS.items():
            agree = ((leans[method] * leans[kind] > 0).reshape(2, -1) for method in METHODS)
            right = (cell(mean(pairs.mean(0), (0, 1))) for pairs in agree)  # of a window and its mirror
            signs.append([name, title, *right])
    methods = [method.replace("_", " ") for method in METHODS]
    return {
        "stages": table(["network", "redrawn", *FIGURES, "gradient, each draw"], staged),
        "signs": table(["network", "replaced by", *methods], signs),
    }


def main() -> None:
    """Print the tables, and write them to benchmarks/results."""
    parser = make_parser(__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="folder of trained networks and results")
    parser.add_argument("--keep", action="store_true", help="write the tables to benchmarks/results")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    cases = find_cases(options.scratch)
    tables = measure_all(cases, options.scratch / "sanity.jsonl")
    for name, text in tables.items():
        print(f"\n{name}\n\n{text}")
    if options.keep:
        write_csvs("sanity", tables)


if __name__ == "__main__":
    main()
