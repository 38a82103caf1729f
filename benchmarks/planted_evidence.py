"""Does a map name the slice that holds the evidence? Networks trained where the answer is planted; docs/planted-evidence.md.

    python benchmarks/planted_evidence.py --shared FOLDER [--seeds 5] [--only TEXT] [--docs]

On real backgrounds, a disk is in all three slices of a window. Its class is told by a small mark in the slice before or
in the slice after: of two opposite kinds (class 1 or 2), or absent (class 3). A network learns it; then every method of
attribution is asked which neighbour the class of the disk came from. The right answer is known.

Primary comparison, fixed before the first run: how often the gradient of a network with a pretrained start names the
slice with the mark, less with the mark in z+1 than in z-1 (EfficientNet-Lite0, marks that brighten or darken, electron
microscopy); mean over seeds with Student's interval. The gradient is that of the log-odds of the predicted class, over
the pixels of the disk, its absolute values summed over each slice. Everything else is described, not tested.

Each training takes about two minutes on one core. Results are appended to planted-evidence.jsonl as they come, seed by
seed; a run that is started again goes on where the file ends.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from shared import ROOT, SPEC, insert_tables, make_parser, read_lines, table
from torch import nn

import evenslice
from evenslice.auditing.attribution import Explained, Score, attribute
from evenslice.results import student_interval
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.results import Interval

PAGE = ROOT / "docs" / "planted-evidence.md"
PICTURE = PAGE.with_suffix(".svg")
RESULTS = Path(__file__).parent / "planted-evidence.jsonl"
SIDE, STEPS, BATCH, TESTED = 64, 300, 8, 48
SIZES = (4, 7, 10)
"""Sides of the square marks that are brighter or darker, in pixels; marks of texture are twice as large."""

AMPLITUDE, AMPLITUDES = 0.15, (0.03, 0.06, 0.1, 0.15, 0.25)
"""How much brighter or darker marks are in training, and in the test of what a gradient points at."""

FAMILIES = {
    "EfficientNet-Lite0": (SPEC, "imagenet"),
    "MobileNetV1": ("smp:Unet/tu-mobilenetv1_100?pad_type=same&bn_eps=1e-3", "mobilenetv1_100.safetensors"),
    "VGG16": (
        "smp:Unet/vgg16?encoder_depth=3&decoder_channels=[64,32,16]",  # of all of it, a training takes an hour
        "vgg16_features.safetensors",
    ),
}
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

SMOOTHING = 2.0
"""Standard deviation in pixels, as in reports."""

PRIMARY = (
    "gradient",
    "integrated gradients from the middle",
    "integrated gradients from the middle, smoothed",
    "occlusion by the middle",
)
"""Methods of the table that compares families and backgrounds."""

SHOWN = ("pretrained", "output", "encoder", "twin", "uniform", "random")


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        marks: "intensity" (brighter or darker), "texture" (shifted or blurred), or "both": intensity tells the class, and
            a mark of texture lies in the other neighbour.
        background: "EM" or "MRI".
        family: a key of ``FAMILIES``.
        arm: a key of ``ARMS``.
        seed: of the network's random parts and of the training windows.
    """

    marks: str
    background: str
    family: str
    arm: str
    seed: int


def cells(seeds: int) -> Iterator[Cell]:
    """Yield all trainings, one seed after the other."""
    for seed in range(seeds):
        for background, family, arm in product(("EM", "MRI"), ("EfficientNet-Lite0", "MobileNetV1"), ARMS):
            yield Cell("intensity", background, family, arm, seed)
        for marks, arm in product(("texture", "both"), ARMS):
            yield Cell(marks, "EM", "EfficientNet-Lite0", arm, seed)
        for arm in ("pretrained", "encoder", "twin"):
            yield Cell("intensity", "EM", "VGG16", arm, seed)


@dataclass(frozen=True)
class Planted:
    """Windows with planted evidence.

    Attributes:
        windows: (m, 3, y, x) in 0..1.
        labels: (m, y, x): 0 outside of the disk, else its class.
        disks: (m, y, x) the disk.
        marked: (m, y, x) where the mark lies.
        sides: (m,) -1 or 1, the slice of the mark.
        sizes: (m,) side of the mark.
    """

    windows: Tensor
    labels: Tensor
    disks: Tensor
    marked: Tensor
    sides: NDArray[np.int64]
    sizes: NDArray[np.int64]


class Planter:
    """Draws windows of a volume and plants evidence in them."""

    def __init__(self, volume: NDArray[np.float32], marks: str, amplitude: float = AMPLITUDE) -> None:
        self.volume, self.marks, self.amplitude = volume, marks, amplitude

    def draw(self, rng: np.random.Generator, count: int, *, tested: bool = False) -> Planted:
        """Draw windows; tested ones all have a mark, and each comes twice: with its mark in z-1, then in z+1."""
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
            other = int(rng.choice((1, 2)))
            for side in (-1, 1) if tested else (int(rng.choice((-1, 1))),):
                part = np.s_[max(y, 0) : y + size, max(x, 0) : x + size]
                found.append((self._mark(window, part, side, kind, other), kind, disk, part, side, size))
        marked = np.zeros((len(found), SIDE, SIDE), bool)
        for mask, item in zip(marked, found, strict=True):
            mask[item[3]] = True
        disks = np.stack([item[2] for item in found])
        kinds = np.array([item[1] for item in found])
        return Planted(
            torch.from_numpy(np.stack([item[0] for item in found])),
            torch.from_numpy(disks * kinds[:, None, None]),
            torch.from_numpy(disks),
            torch.from_numpy(marked),
            np.array([item[4] for item in found]),
            np.array([item[5] for item in found]),
        )

    def _background(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return a window (3, y, x) in .25..0.75 that is not mostly empty."""
        while True:
            z, y, x = (
                int(rng.integers(0, size)) for size in np.subtract(self.volume.shape, (2, SIDE - 1, SIDE - 1))
            )
            window = self.volume[z : z + 3, y : y + SIDE, x : x + SIDE]
            if (window > 0.05).mean() > 0.9:
                return 0.25 + 0.5 * window

    def _mark(
        self, window: NDArray[np.float32], part: tuple[slice, ...], side: int, kind: int, other: int
    ) -> NDArray[np.float32]:
        """Put a mark of a kind into the neighbour on a side: 1 and 2 are opposites, 3 is none."""
        marked = window.copy()
        if self.marks == "texture":
            _texture(marked[1 + side], part, kind)
        elif kind < 3:
            marked[1 + side][part] += self.amplitude if kind == 1 else -self.amplitude
        if self.marks == "both":
            _texture(marked[1 - side], part, other)
        return marked.clip(0, 1)


def _texture(plane: NDArray[np.float32], part: tuple[slice, ...], kind: int) -> None:
    """Blur (1) or shift (2) a part of a plane, in place."""
    if kind == 1:
        plane[part] = gaussian_filter(plane, 3)[part]
    elif kind == 2:
        plane[part] = np.roll(plane, (9, 9), axis=(0, 1))[part]


def backgrounds(shared: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return volumes in 0..1 to train and to test on."""
    em = [
        evenslice.open_volume(shared / "data" / "lucchi_pp" / f"{part}_image.tif")
        for part in ("train", "test")
    ]
    first, last = (np.asarray(volume[:], np.float32) / 255 for volume in em)
    mri = np.asarray(mni152()[:], np.float32)
    mri = mri / mri.max()
    return {"EM": (first, last), "MRI": (mri[40:100], mri[110:140])}


def train(cell: Cell, shared: Path, volume: NDArray[np.float32]) -> nn.Module:
    """Train a network on planted evidence."""
    spec, weights = FAMILIES[cell.family]
    weights = weights if weights == "imagenet" else str(shared / "weights" / weights)
    network, *_ = evenslice.load_network(spec, weights, slices=3, classes=4, seed=cell.seed, **ARMS[cell.arm])
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
    found: dict[str, Any] = {"answered": _digits(right.numpy())}
    for name, options in methods.items():
        parts = [
            attribute(Score(network, Explained("predicted"), region=disks), windows, **options).attribution
            for windows, disks in zip(
                torch.split(tested.windows, 16), torch.split(tested.disks, 16), strict=True
            )
        ]
        maps = torch.cat(parts)
        size = maps.abs()
        found[name] = _named(size.sum((2, 3)).numpy(), tested.sides)
        if name in LOOKED_AT:
            smooth = np.abs(gaussian_filter(maps.numpy(), (0, 0, SMOOTHING, SMOOTHING)))
            found[f"{name}, at the mark"] = _named(
                (size * tested.marked[:, None]).sum((2, 3)).numpy(), tested.sides
            )
            found[f"{name}, smoothed"] = _named(smooth.sum((2, 3)), tested.sides)
            found[f"{name}, net"] = _named(maps.sum((2, 3)).numpy(), tested.sides)
    return found


def saturate(network: nn.Module, volume: NDArray[np.float32]) -> dict[str, list[float]]:
    """Ask the gradient about marks that are fainter and stronger than in training.

    Returns:
        For each amplitude the part of the disks that are answered right, and how often the gradient names the slice of the
        mark, over the window and at the mark.
    """
    found = {}
    for amplitude in AMPLITUDES:
        rng = np.random.default_rng(10_000)
        tested = Planter(volume, "intensity", amplitude).draw(rng, TESTED, tested=True)
        told = point(network, tested, {"gradient": METHODS["gradient"]})
        parts = (told["answered"], told["gradient"]["right"], told["gradient, at the mark"]["right"])
        found[str(amplitude)] = [round(_part_of(digits), 4) for digits in parts]
    return found


def _part_of(digits: str) -> float:
    return float(np.mean([*map(int, digits)]))


def _named(sums: NDArray[np.float32], sides: NDArray[np.int64]) -> dict[str, Any]:
    before, after = sums[:, 0], sums[:, 2]
    bias = (after - before) / np.maximum(np.abs(after) + np.abs(before), 1e-30)
    return {
        "right": _digits(bias * sides > 0),
        "bias": [round(float(bias[sides == side].mean()), 4) for side in (-1, 1)],
    }


def _digits(flags: NDArray[np.bool_]) -> str:
    return "".join(map(str, flags.astype(int).tolist()))


def run(
    cell: Cell, shared: Path, volumes: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> list[dict[str, Any]]:
    """Train a network and ask all methods; of a pretrained start, symmetrized at its output afterwards, too."""
    started = time.process_time()
    network = train(cell, shared, volumes[0])
    trained = time.process_time()
    tested = Planter(volumes[1], cell.marks).draw(np.random.default_rng(10_000), TESTED, tested=True)
    rows = [asdict(cell) | {"seconds": [round(trained - started)]} | point(network, tested)]
    rows[0]["seconds"].append(round(time.process_time() - trained))
    if cell.arm in ("twin", "encoder") and cell.marks == "intensity":
        rows[0]["amplitudes"] = saturate(network, volumes[1])
    if cell.arm == "pretrained" and cell.family != "VGG16":
        rows.append(asdict(cell) | {"arm": "output"} | point(evenslice.symmetrize(network), tested))
    return rows


def draw(shared: Path) -> None:
    """Draw the first tested window with a large mark in z+1, and what two networks' maps say of it."""
    import matplotlib.pyplot as plt

    volumes = backgrounds(shared)["EM"]
    tested = Planter(volumes[1], "intensity").draw(np.random.default_rng(10_000), len(SIZES), tested=True)
    window, region, mark = (part[-1].numpy() for part in (tested.windows, tested.disks, tested.marked))
    pretrained, twin = (
        train(Cell("intensity", "EM", "EfficientNet-Lite0", arm, 0), shared, volumes[0])
        for arm in ("pretrained", "twin")
    )
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
    shown[0].set_title("two of three\nslices", fontsize=10)
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
        text = f"names z{SIGNS[rows[named]]}1\n({shares[named]:.0%})"
        column[1].set_xlabel(text, fontsize=10, weight="bold", color="#1a7f37" if named else "#c62828")
    for axis in axes[1]:
        axis.contour(mark, levels=[0.5], colors="#39d0ff", linewidths=1)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(PICTURE, metadata={"Date": None})


def pointing(rows: Sequence[dict[str, Any]], method: str) -> tuple[Interval, Interval, Interval]:
    """Return how often a method is right with the mark in z-1, in z+1, and the first less the second; means over seeds."""
    right = np.array([[*map(int, row[method]["right"])] for row in rows])
    before, after = right[:, ::2].mean(1), right[:, 1::2].mean(1)
    parts = (student_interval(part, (-1, 1)) for part in (before, after, before - after))
    return next(parts), next(parts), next(parts)


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the tables of the page."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["marks"], row["background"], row["family"], row["arm"]), []).append(row)
    main = [(marks, "EM", "EfficientNet-Lite0") for marks in ("intensity", "texture", "both")]
    ways = ("at the mark", "smoothed", "net")
    asked = [*METHODS, *(f"{method}, {way}" for method in LOOKED_AT for way in ways)]
    found = {}
    for key in main:
        arms = [arm for arm in SHOWN if (*key, arm) in groups]
        body = [["disks answered right", *(f"{_answered(groups[*key, arm]):.2f}" for arm in arms)]]
        body += [[name, *(_sides(groups[*key, arm], name) for arm in arms)] for name in asked]
        found[f"planted {key[0]}"] = table(["method", *arms], body) if arms else "(not trained yet)"
    found["planted sizes"] = _by_size(groups.get((*main[0], "pretrained"), []))
    primary = [
        [
            ", ".join((key[2], key[1])),
            str(len(group)),
            f"{_answered(group):.2f}",
            *(_difference(group, name) for name in PRIMARY),
        ]
        for key, group in groups.items()
        if (key[0], key[3]) == ("intensity", "pretrained")
    ]
    tried = [
        row["amplitudes"]
        for row in rows
        if "amplitudes" in row and (row["background"], row["family"]) == main[0][1:]
    ]
    means = {name: np.mean([item[name] for item in tried], axis=0) for name in map(str, AMPLITUDES) if tried}
    found["planted amplitudes"] = table(
        ["amplitude of the mark", "disks answered right", "gradient", "gradient, at the mark"],
        [[name, *(f"{value:.2f}" for value in values)] for name, values in means.items()],
    )
    found["planted families"] = table(["network, background", "seeds", "answered right", *PRIMARY], primary)
    return found


def _by_size(rows: Sequence[dict[str, Any]]) -> str:
    """Return how often methods are right by the size of the mark; tested windows take the sizes in turn."""
    body = []
    for number, size in enumerate(SIZES):
        cells = []
        for name in PRIMARY:
            right = np.array([[*map(int, row[name]["right"])] for row in rows]).reshape(-1, TESTED, 2)
            before, after = right[:, number :: len(SIZES)].mean((0, 1))
            cells.append(f"{before:.2f} / {after:.2f}")
        body.append([f"{size} x {size}", *cells])
    return table(["mark", *PRIMARY], body)


def _answered(rows: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([_part_of(row["answered"]) for row in rows]))


def _sides(rows: Sequence[dict[str, Any]], method: str) -> str:
    before, after, _ = pointing(rows, method)
    return f"{before.estimate:.2f} / {after.estimate:.2f}"


def _difference(rows: Sequence[dict[str, Any]], method: str) -> str:
    *_, less = pointing(rows, method)
    interval = f" [{less.low:.2f}, {less.high:.2f}]" if len(rows) > 1 else ""
    return f"{_sides(rows, method)}; {less.estimate:.2f}{interval}"


def main() -> None:
    """Train what is missing, or write the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and weights")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="cells whose description contains this")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", action="store_true", help="draw the picture of the page")
    parser.add_argument("--docs", action="store_true", help="write the tables of the page, train nothing")
    options = parser.parse_args()
    if options.picture:
        torch.set_num_threads(1)
        draw(options.shared)
        return
    if options.docs:
        insert_tables(PAGE, tables(read_lines(options.results)))
        return
    torch.set_num_threads(1)
    done = {Cell(**{name: row[name] for name in Cell.__annotations__}) for row in read_lines(options.results)}
    volumes = backgrounds(options.shared)
    for cell in cells(options.seeds):
        if cell in done or options.only not in " ".join(map(str, asdict(cell).values())):
            continue
        rows = run(cell, options.shared, volumes[cell.background])
        with options.results.open("a") as file:
            file.write("".join(f"{json.dumps(row)}\n" for row in rows))
        print(*asdict(cell).values(), _summary(rows[0]), flush=True)


def _summary(row: dict[str, Any]) -> str:
    """Return how often the answer and the methods are right, by side."""
    parts = [f"answered {_part_of(row['answered']):.2f}"]
    for name, found in row.items():
        if isinstance(found, dict) and "right" in found:
            right = np.array([*map(int, found["right"])])
            parts.append(f"{name} {right[::2].mean():.2f}/{right[1::2].mean():.2f}")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
