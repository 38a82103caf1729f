"""Does a map name the slice that holds the evidence? Networks trained where the answer is planted; docs/planted-evidence.md.

    python benchmarks/planted_evidence.py [--only TEXT] [--picture]

On real backgrounds, a disk is in all three slices of a window. Its class is told by a small mark in the slice before or
in the slice after: of two opposite kinds (class 1 or 2), or absent (class 3). A network learns it; then every method of
attribution is asked which neighbour the class of the disk came from. The right answer is known.

Primary comparison, fixed before the first run: how often the gradient of a network with a pretrained start names the
slice with the mark, less with the mark in z+1 than in z-1 (EfficientNet-Lite0, marks that brighten or darken, electron
microscopy); mean over seeds with Student's interval. The gradient is that of the log-odds of the predicted class, over
the pixels of the disk, its absolute values summed over each slice. Everything else is described, not tested.

Registered on 1 December 2026, before their first runs, with the same comparison for each: "difference", where all slices have a
mark of one random brightness, and one neighbour differs from it, so that no slice alone tells the class; and "five", windows of
five slices with the mark in any of the four neighbours, where chance is a quarter, and both slices before count as z-1. On
4 December 2026, likewise: "unequal", where the other neighbour has a mark, too, a third as strong, brighter or darker at random,
and the stronger one tells the class.

Each training takes about two minutes on one core. Results are appended to planted-evidence.jsonl as they come, seed by
seed; a run that is started again goes on where the file ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from shared import ROOT, SHARED, append_lines, load_family, make_parser, mean, read_lines, table
from torch import nn

import evenslice

# `evenslice.explain` explains one window at a time; here hundreds are, in batches.
from evenslice.auditing.attribution import Explained, Score, attribute
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Volumes = tuple[NDArray[np.float32], NDArray[np.float32]]
    """To train and to test on."""

PICTURE = ROOT / "docs" / "planted-evidence.svg"
RESULTS = Path(__file__).parent / "planted-evidence.jsonl"
SIDE, STEPS, BATCH, TESTED, SEEDS = 64, 300, 8, 48, 5
SIZES = (4, 7, 10)
"""Sides of the square marks that are brighter or darker, in pixels; marks of texture are twice as large."""

LEVEL = 0.25
"""How much brighter or darker all marks of a window may be whose difference tells."""

AMPLITUDE, AMPLITUDES = 0.15, (0.03, 0.06, 0.1, 0.15, 0.25)
"""How much brighter or darker marks are in training, and in the test of what a gradient points at."""

# Of all of it, a training takes an hour.
SMALL_VGG16 = "smp:Unet/vgg16?encoder_depth=3&decoder_channels=[64,32,16]"
ARMS: dict[str, dict[str, Any]] = {
    "pretrained": {},
    "twin": {"strategy": "twin"},
    "encoder": {"symmetrize": "encoder"},
    "uniform": {"strategy": "uniform"},
    "random": {"strategy": "random"},
}
"""How networks start, by the options of ``load_network``. The arm "output" is the pretrained one, symmetrized afterwards."""

METHODS: dict[str, dict[str, Any]] = {
    "gradient": {"method": "gradient"},
    "input x gradient": {"method": "input_x_gradient"},
    "integrated gradients from gray": {"method": "integrated_gradients", "baseline": "gray"},
    "integrated gradients from the middle": {"method": "integrated_gradients", "baseline": "middle"},
    "smoothgrad": {"method": "smoothgrad"},
    "occlusion by gray": {"method": "occlusion", "baseline": "gray"},
    "occlusion by the middle": {"method": "occlusion", "baseline": "middle"},
}

LOOKED_AT = ("gradient", "integrated gradients from the middle")
"""Methods that are also asked in three other ways: at the pixels of the mark alone; by the absolute values of their maps after
smoothing, as pictures show them; and by the signed sum, in which what adds and what takes away cancel."""

SIGNS = {0: "\N{MINUS SIGN}", 2: "+"}

SMOOTHING = 2.0  # pixels, as in reports

PRIMARY = (
    "gradient",
    "integrated gradients from the middle",
    "integrated gradients from the middle, smoothed",
    "occlusion by the middle",
)
"""Methods of the tables on the page."""

KINDS = ("intensity", "texture", "both", "difference", "unequal", "five")
"""Of marks: brighter or darker; shifted or blurred; the first, which tells the class, with one of the second in the other
neighbour; and as registered. The page shows the methods of ``PRIMARY``, by all starts for the first kind, by two for others."""

SHOWN = ("pretrained", "output", "encoder", "twin", "uniform", "random")


@dataclass(frozen=True)
class Cell:
    """One training."""

    marks: str  # one of ``KINDS``
    background: str  # "EM" or "MRI"
    family: str  # a key of ``shared.FAMILIES``
    arm: str  # a key of ``ARMS``
    seed: int  # of the network's random parts and of the training windows


def sides_of(marks: str) -> tuple[int, ...]:
    """Return the offsets of the neighbours in a window."""
    return (-2, -1, 1, 2) if marks == "five" else (-1, 1)


def cells() -> Iterator[Cell]:
    """Yield all trainings, one seed after the other."""
    for seed in range(SEEDS):
        for background, family, arm in product(("EM", "MRI"), ("EfficientNet-Lite0", "MobileNetV1"), ARMS):
            yield Cell("intensity", background, family, arm, seed)
        for marks, arm in product(KINDS[1:], ARMS):
            yield Cell(marks, "EM", "EfficientNet-Lite0", arm, seed)
        for arm in ("pretrained", "encoder", "twin"):
            yield Cell("intensity", "EM", "VGG16", arm, seed)


class Planted(NamedTuple):
    """Windows with planted evidence."""

    windows: Tensor  # (m, N, y, x) in 0..1
    labels: Tensor  # (m, y, x): 0 outside of the disk, else its class
    disks: Tensor  # (m, y, x)
    marked: Tensor  # (m, y, x): where the mark lies
    sides: Tensor  # (m,): the offset of the slice with the mark


class Planter:
    """Draws windows of a volume and plants evidence in them."""

    def __init__(self, volume: NDArray[np.float32], marks: str, amplitude: float = AMPLITUDE) -> None:
        self.volume, self.marks, self.amplitude = volume, marks, amplitude
        self.sides = sides_of(marks)
        self.slices = len(self.sides) + 1

    def draw(self, rng: np.random.Generator, count: int, *, tested: bool = False) -> Planted:
        """Draw windows; tested ones all have a mark, and each comes with it in every neighbour, from the first to the last."""
        found = []
        for number in range(count):
            window, (y, x) = self._background(rng), rng.uniform(18, SIDE - 18, 2)
            rows, columns = np.mgrid[:SIDE, :SIDE]
            radius = rng.uniform(12, 16)
            disk = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            window[:, disk] += 0.12
            size = SIZES[number % len(SIZES)] if tested else int(rng.choice(SIZES))
            size *= 2 if self.marks == "texture" else 1
            reach = max(radius - size / 2**0.5, 0) / 2**0.5
            y, x = (round(place + rng.uniform(-reach, reach) - size / 2) for place in (y, x))
            kind = 1 + number // len(SIZES) % 2 if tested else int(rng.choice((1, 2, 3), p=(0.4, 0.4, 0.2)))
            other: float = (
                rng.uniform(-LEVEL, LEVEL) if self.marks == "difference" else int(rng.choice((1, 2)))
            )
            marked = np.zeros((SIDE, SIDE), bool)
            part = np.s_[max(y, 0) : y + size, max(x, 0) : x + size]
            marked[part] = True
            found += [
                (self._mark(window, part, side, kind, other), disk * kind, disk, marked, side)
                for side in (self.sides if tested else (int(rng.choice(self.sides)),))
            ]
        return Planted(*(torch.from_numpy(np.stack(each)) for each in zip(*found, strict=True)))

    def _background(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return a window (N, y, x) in .25..0.75 that is not mostly empty."""
        sides = (self.slices, SIDE, SIDE)
        while True:
            z, y, x = (int(rng.integers(0, size + 1)) for size in np.subtract(self.volume.shape, sides))
            window = self.volume[z : z + self.slices, y : y + SIDE, x : x + SIDE]
            if (window > 0.05).mean() > 0.9:
                return 0.25 + 0.5 * window

    def _mark(
        self, window: NDArray[np.float32], part: tuple[slice, ...], side: int, kind: int, other: float
    ) -> NDArray[np.float32]:
        """Put a mark of a kind into the neighbour on a side: 1 and 2 are opposites, 3 is none."""
        marked, middle = window.copy(), self.slices // 2
        if self.marks == "texture":
            _texture(marked[middle + side], part, kind)
        elif kind < 3:
            marked[middle + side][part] += self.amplitude if kind == 1 else -self.amplitude
        if self.marks == "both":
            _texture(marked[middle - side], part, other)
        elif self.marks == "unequal":
            marked[middle - side][part] += self.amplitude / 3 * (1 if other == 1 else -1)
        elif self.marks == "difference":
            marked[:, *part] += np.float32(other)
        return marked.clip(0, 1)


def _texture(plane: NDArray[np.float32], part: tuple[slice, ...], kind: float) -> None:
    """Blur (1) or shift (2) a part of a plane, in place."""
    if kind == 1:
        plane[part] = gaussian_filter(plane, 3)[part]
    elif kind == 2:
        plane[part] = np.roll(plane, (9, 9), axis=(0, 1))[part]


def backgrounds() -> dict[str, Volumes]:
    """Return volumes in 0..1, by their kind."""
    paths = [SHARED / "data" / "lucchi_pp" / f"{part}_image.tif" for part in ("train", "test")]
    first, last = (np.asarray(evenslice.open_volume(path)[:], np.float32) / 255 for path in paths)
    mri = np.asarray(mni152()[:], np.float32)
    mri = mri / mri.max()
    return {"EM": (first, last), "MRI": (mri[40:100], mri[110:140])}


def train(cell: Cell, volume: NDArray[np.float32]) -> nn.Module:
    """Train a network on planted evidence."""
    spec = {"VGG16": SMALL_VGG16}.get(cell.family)
    network = load_family(
        cell.family, spec, slices=1 + len(sides_of(cell.marks)), classes=4, seed=cell.seed, **ARMS[cell.arm]
    )
    planter, rng = Planter(volume, cell.marks), np.random.default_rng(cell.seed)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        drawn = planter.draw(rng, BATCH)
        loss = nn.functional.cross_entropy(network(drawn.windows), drawn.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(requires_grad=False)


def draw_tested(volume: NDArray[np.float32], marks: str, amplitude: float = AMPLITUDE) -> Planted:
    """Draw the windows on which all networks are tested."""
    return Planter(volume, marks, amplitude).draw(np.random.default_rng(10_000), TESTED, tested=True)


def point(
    network: nn.Module, tested: Planted, methods: dict[str, dict[str, Any]] = METHODS
) -> dict[str, Any]:
    """Ask methods which neighbour holds the mark.

    Returns:
        "answered": one digit a window, whether most of the disk gets its class; for each method (and at the mark) one
        digit a window, whether it is right, and its mean pair bias with the mark in z-1 and in z+1.
    """
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in torch.split(tested.windows, 16)])
    right = ((answers == tested.labels) & tested.disks).sum((1, 2)) > tested.disks.sum((1, 2)) / 2
    found: dict[str, Any] = {"answered": _digits(right)}
    batches = [*zip(torch.split(tested.windows, 16), torch.split(tested.disks, 16), strict=True)]
    for name, options in methods.items():
        parts = (
            attribute(Score(network, Explained("predicted"), region=disks), part, **options)
            for part, disks in batches
        )
        maps = torch.cat([*parts])
        sums = {name: maps.abs().sum((2, 3))}
        if name in LOOKED_AT:
            smooth = np.abs(gaussian_filter(maps.numpy(), (0, 0, SMOOTHING, SMOOTHING)))
            sums[f"{name}, at the mark"] = (maps.abs() * tested.marked[:, None]).sum((2, 3))
            sums[f"{name}, smoothed"] = torch.from_numpy(smooth.sum((2, 3)))
            sums[f"{name}, net"] = maps.sum((2, 3))
        found |= {way: _named(each, tested.sides) for way, each in sums.items()}
    return found


def _named(sums: Tensor, sides: Tensor) -> dict[str, Any]:
    """Say in which windows the slice of the mark has the largest sum of all neighbours, and the mean pair bias for each side."""
    middle = sums.shape[1] // 2
    before, after = sums[:, :middle].sum(1), sums[:, middle + 1 :].sum(1)
    bias = (after - before) / (after.abs() + before.abs()).clamp(min=1e-30)
    biases = [round(float(bias[sides == side].numpy().mean()), 4) for side in np.unique(sides)]
    rows, others = torch.arange(len(sums)), sums.clone()
    others[:, middle] = others[rows, middle + sides] = -torch.inf
    return {"right": _digits(sums[rows, middle + sides] > others.amax(1)), "bias": biases}


def _digits(flags: Tensor) -> str:
    return "".join(map(str, flags.int().tolist()))


def part_of(digits: str) -> float:
    """Return the part of digits that are 1."""
    return float(np.mean([*map(int, digits)]))


def saturate(network: nn.Module, volume: NDArray[np.float32]) -> dict[str, list[float]]:
    """Ask the gradient about marks that are fainter and stronger than in training.

    Returns:
        For each amplitude the part of the disks that are answered right, and how often the gradient names the slice of the
        mark, over the window and at the mark.
    """
    found = {}
    for amplitude in AMPLITUDES:
        tested = draw_tested(volume, "intensity", amplitude)
        told = point(network, tested, {"gradient": METHODS["gradient"]})
        parts = (told["answered"], told["gradient"]["right"], told["gradient, at the mark"]["right"])
        found[str(amplitude)] = [round(part_of(digits), 4) for digits in parts]
    return found


def run(cell: Cell, volumes: Volumes) -> list[dict[str, Any]]:
    """Train a network and ask all methods; of a pretrained start, symmetrized at its output afterwards, too."""
    network, tested = train(cell, volumes[0]), draw_tested(volumes[1], cell.marks)
    rows = [asdict(cell) | point(network, tested)]
    if cell.arm in ("twin", "encoder") and cell.marks == "intensity":
        rows[0]["amplitudes"] = saturate(network, volumes[1])
    if cell.arm == "pretrained" and cell.family != "VGG16":
        rows.append(asdict(replace(cell, arm="output")) | point(evenslice.symmetrize(network), tested))
    return rows


def draw() -> None:
    """Draw the tested window with a large mark in z+1 whose gradient is the median one, and what two networks' maps say of it."""
    import matplotlib.pyplot as plt

    volumes = backgrounds()["EM"]
    pretrained, twin = (
        train(Cell("intensity", "EM", "EfficientNet-Lite0", arm, 0), volumes[0])
        for arm in ("pretrained", "twin")
    )
    tested = draw_tested(volumes[1], "intensity")
    large = (tested.sides == 1) & (tested.marked.sum((1, 2)) == SIZES[-1] ** 2)
    windows, disks, marks = (part[large] for part in (tested.windows, tested.disks, tested.marked))
    gradient = attribute(Score(pretrained, Explained("predicted"), region=disks), windows)
    sums = gradient.abs().sum((2, 3))
    median = int((sums[:, 0] / sums[:, 2]).argsort()[len(sums) // 2])
    window, region, mark = (part[median].numpy() for part in (windows, disks, marks))
    columns = {
        "gradient,\npretrained start": (pretrained, "gradient"),
        "explain,\npretrained start": (pretrained, None),
        "explain,\nfair start (twin)": (twin, None),
    }
    plt.rcParams["svg.hashsalt"] = "planted evidence"
    figure, axes = plt.subplots(2, 4, figsize=(5.6, 3.5), layout="constrained")
    rows, shown = (0, 2), axes[:, 0]
    for axis, k in zip(shown, rows, strict=True):
        axis.imshow(window[k], cmap="gray", vmin=0.2, vmax=0.8)
        axis.set_ylabel(f"slice z{SIGNS[k]}1", fontsize=10)
    shown[0].set_title("the two\nneighbours", fontsize=10)
    shown[1].set_xlabel("evidence: the\nsquare in z+1", fontsize=10)
    for column, (name, (network, method)) in zip(axes.T[1:], columns.items(), strict=True):
        maps = evenslice.explain(
            network, window, 1, method=method, region=region, reading=evenslice.Reading(intensity=(0, 1))
        ).maps
        size = gaussian_filter(np.abs(maps) if method else maps, (0, SMOOTHING, SMOOTHING))
        size = np.abs(size[list(rows)])
        shares = size.sum((1, 2)) / size.sum()
        for axis, heat in zip(column, size, strict=True):
            axis.imshow(heat, cmap="inferno", vmin=0, vmax=size.max())
        column[0].set_title(name, fontsize=10)
        named = int(shares.argmax())
        text = f"z{SIGNS[rows[named]]}1 gets {shares[named]:.0%}:\n{'right' if named else 'wrong'}"
        column[1].set_xlabel(text, fontsize=10, weight="bold", color="#1a7f37" if named else "#c62828")
    for axis in axes[1]:
        axis.contour(mark, levels=[0.5], colors="#39d0ff", linewidths=1)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(PICTURE, metadata={"Date": None})


def pointing(rows: Sequence[dict[str, Any]], method: str) -> tuple[list[float], tuple[float, float, float]]:
    """Return how often a method is right with the mark before and after, and before less after with its interval, over seeds."""
    each = _right(rows, method).mean(1)
    return each.mean(0).tolist(), mean(each[:, 0] - each[:, 1])


def _right(rows: Sequence[dict[str, Any]], method: str) -> NDArray[np.float64]:
    """Return in which part of the places a method is right: (rows, windows, 2), with the mark before and after the middle."""
    sides = len(sides_of(rows[0]["marks"]))
    right = np.array([[*map(int, row[method]["right"])] for row in rows], float)
    return np.asarray(right.reshape(len(rows), -1, 2, sides // 2).mean(-1))


MAIN = [(marks, "EM", "EfficientNet-Lite0") for marks in KINDS]
"""Marks, background and family of the trainings of every start."""


def tables() -> dict[str, str]:
    """Return the tables of the page."""
    groups = _groups()
    asked = (*LOOKED_AT, PRIMARY[-1])
    others = {f"{key[0]}: {arm}": groups[*key, arm] for key, arm in product(MAIN[1:], ("pretrained", "twin"))}
    kinds = [
        [name, _answered(group), *(_sides(group, way) for way in asked)] for name, group in others.items()
    ]
    families = []
    for (marks, background, family, arm), group in sorted(groups.items(), key=lambda item: item[0][-1]):
        if marks == "intensity" and arm in ("pretrained", "twin"):
            parts = (_difference(group, asked[0]), _sides(group, asked[1]))
            families.append([f"{family}, {background}: {arm}", _answered(group), *parts])
    tried = [row["amplitudes"] for arm in ("twin", "encoder") for row in groups[*MAIN[0], arm]]
    means = {name: np.mean([item[name] for item in tried], axis=0) for name in map(str, AMPLITUDES)}
    return {
        "planted intensity": _by_start(groups, MAIN[0], PRIMARY),
        "planted families": table(["network, background", "answered right", *LOOKED_AT], families),
        "planted kinds": table(["marks: start", "answered right", *asked], kinds),
        "planted amplitudes": table(
            ["amplitude of the mark", "disks answered right", "gradient", "gradient, at the mark"],
            [[name, *(f"{value:.2f}" for value in values)] for name, values in means.items()],
        ),
    }


def whole_tables() -> dict[str, str]:
    """Return the tables of all methods, which become CSV files."""
    groups, ways = _groups(), ("at the mark", "smoothed", "net")
    asked = [*METHODS, *(f"{method}, {way}" for method in LOOKED_AT for way in ways)]
    found = {f"all {key[0]}": _by_start(groups, key, asked) for key in MAIN}
    return found | {"all sizes": _by_size(groups[*MAIN[0], "pretrained"])}


def _groups() -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Return the results of all seeds, by marks, background, family and start."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in read_lines(RESULTS):
        groups.setdefault((row["marks"], row["background"], row["family"], row["arm"]), []).append(row)
    return groups


def _by_start(
    groups: dict[tuple[str, ...], list[dict[str, Any]]], key: tuple[str, ...], asked: Sequence[str]
) -> str:
    """Return how often methods are right, by start."""
    starts = [groups[*key, arm] for arm in SHOWN]
    body = [["disks answered right", *map(_answered, starts)]]
    body += [[name, *(_sides(group, name) for group in starts)] for name in asked]
    return table(["method", *SHOWN], body)


def _by_size(rows: Sequence[dict[str, Any]]) -> str:
    """Return how often methods are right by the size of the mark; tested windows take the sizes in turn."""
    body = []
    for number, size in enumerate(SIZES):
        cells = []
        for name in PRIMARY:
            before, after = _right(rows, name)[:, number :: len(SIZES)].mean((0, 1))
            cells.append(f"{before:.2f} / {after:.2f}")
        body.append([f"{size} x {size}", *cells])
    return table(["mark", *PRIMARY], body)


def _answered(rows: Sequence[dict[str, Any]]) -> str:
    return f"{np.mean([part_of(row['answered']) for row in rows]):.2f}"


def _sides(rows: Sequence[dict[str, Any]], method: str) -> str:
    return " / ".join(f"{part:.2f}" for part in pointing(rows, method)[0])


def _difference(rows: Sequence[dict[str, Any]], method: str) -> str:
    _, (less, low, high) = pointing(rows, method)
    interval = f" [{low:.2f}, {high:.2f}]" if len(rows) > 1 else ""
    return f"{_sides(rows, method)}; {less:.2f}{interval}"


def main() -> None:
    """Train what is missing, or draw the picture."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", default="", help="cells whose description contains this")
    parser.add_argument("--picture", action="store_true", help="draw the picture of the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.picture:
        draw()
        return
    done = {Cell(**{name: row[name] for name in Cell.__annotations__}) for row in read_lines(RESULTS)}
    volumes = backgrounds()
    for cell in cells():
        if cell in done or options.only not in " ".join(map(str, asdict(cell).values())):
            continue
        append_lines(RESULTS, *run(cell, volumes[cell.background]))


if __name__ == "__main__":
    main()
