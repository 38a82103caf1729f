"""What do trained networks make of the order of slices? Part of docs/planted-evidence.md and docs/explanation/does-it-matter.md.

    python benchmarks/trained.py [--scratch FOLDER] [--only TEXT] [--study studies/compute]

Trains U-Nets on EfficientNet-Lite0 on four data sets for 300 steps. Each training takes some six minutes on one core; what
is done is kept, in FOLDER and in trained.jsonl.

"neighbour", of pretrained starts: three measures say which neighbour a network leans on over whole test windows: the
gradient, integrated gradients from the middle slice, and replacement by the middle slice (reliance). The test is the Dice
that is lost when that neighbour is missing.

"order", registered on 1 December 2026 before its first run: the test volumes are flipped along z, y and x. The change along
an axis is 1 - IoU of the answers to a volume and to the flipped one, of the foreground class that changes most. Primary
comparison: of pretrained starts, the change along z less the mean of those along y and x; mean over the data sets, whose
seeds are averaged, with Student's interval. Above 0, answers depend on the order of slices more than on a side in the
plane; an interval around 0 leaves it open. Described, not tested: the other starts; the change between two seeds; mean Dice
of the intact volume and of the average over each flip, which takes twice the time along any axis (does an average along z
gain more?); the Dice lost without both neighbours; and networks of Lucchi++ on other tissue (CDeep3M).

"flips", registered on 2 December 2026 before its first row: the same of the networks "pretrained for longer" of a study in
folds, ``studies/compute``, right after their training. Primary comparison: the mean Dice of the averages over y and over x,
less that of the average over z, all for twice the time; mean over the data sets and folds, whose seeds are averaged, with the
correction for overlapping folds. Above 0, a flip in the plane gains more than the symmetry of slices does.

"erased", registered on 1 December 2026 after a trial with six objects: evidence in real sections. A mitochondrion of the test
stack of Lucchi++ is erased from the middle slice and from one neighbour, which take the brightness around it, so that the
other neighbour alone holds it. Methods explain the log-odds of mitochondria over its pixels: which neighbour do they name?
Primary comparison: for the gradient of pretrained starts, the part that is right with the object left in z-1 less that in
z+1; mean over objects, whose seeds are averaged, with Student's interval. Above 0, it names z-1 wherever the object is.
Described, not tested: the other starts and methods, and which part of the object is still answered as mitochondria; and, added
on 1 December 2026 before their first runs, pretrained starts that are symmetrized afterwards ("output") or before training
("encoder"), trained with missing slices, or without reversed windows. Chance is half of the objects. Two seeds; three more were
registered on 3 December 2026, when those were known: the comparison is then that of all five.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, label
from shared import SHARED, SPEC, append_lines, make_parser, mean, read_lines, table

import evenslice
from evenslice.report.tables import difference
from evenslice.results.comparisons import replicate_means
from evenslice.results.intervals import pool_means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from evenslice.results.intervals import Interval

    Array = NDArray[Any]

DATA = SHARED.resolve() / "data"
RESULTS = Path(__file__).parent / "trained.jsonl"
SEEDS = {"neighbour": 2, "order": 2, "erased": 5}
WINDOWS = {"gradient": 200, "integrated_gradients": 40}
"""How many windows are read; integrated gradients take thirty times as long."""
MEASURES = (*WINDOWS, "reliance")
ARMS: dict[str, dict[str, Any]] = {name: {"strategy": name} for name in ("pretrained", "twin", "uniform")}
"""Starts, by options of the model."""

OF_OBJECTS: dict[str, dict[str, Any]] = {
    "pretrained": ARMS["pretrained"],
    "output": ARMS["pretrained"],
    "encoder": ARMS["pretrained"] | {"symmetrize": "encoder"},
    "missing slices": ARMS["pretrained"] | {"missing_slices": 0.2},
    "without z-flip": ARMS["pretrained"] | {"z_flip": False},
    **ARMS,
}
"""The same of networks that are asked about erased objects; "output" is the pretrained one, symmetrized afterwards."""

LONGER, FOLDS = "pretrained for longer", 4
OTHER = "CDeep3M"
"""Other tissue, on which networks of Lucchi++ are tested, too."""

OBJECTS, AREA, CROP, AROUND = 30, (200, 3000), 128, 6
"""How many objects are erased, in pixels of the middle slice; the crop around each; the scale of what is put in their place."""

ASKED: dict[str, dict[str, Any]] = {
    "gradient": {"method": "gradient"},
    "integrated gradients from gray": {"method": "integrated_gradients", "baseline": "gray"},
    "integrated gradients from the middle": {},
    "occlusion by the middle": {"method": "occlusion", "baseline": "middle"},
}

MULTIPLE = 32  # pixels, which the network halves five times
QUIET = evenslice.Compute(progress=False)


def pair(image: Path, labels: Path, *slices: int) -> dict[str, Any]:
    """Return an entry of a configuration."""
    return {"image": str(image), "labels": str(labels)} | ({"slices": list(slices)} if slices else {})


def data_sets() -> dict[str, dict[str, Any]]:
    """Return the data of each configuration: what its README says is for training, and for testing."""
    lucchi, isbi, fib, cdeep = (
        DATA / name for name in ("lucchi_pp", "isbi2012", "fib25_medulla", "cdeep3m_mito")
    )
    images = sorted((DATA / "msd_hippocampus" / "images").glob("*.nii*"))
    hippocampus = [pair(path, DATA / "msd_hippocampus" / "labels" / path.name) for path in images]
    return {
        "Lucchi++": {
            "train": [pair(lucchi / "train_image.tif", lucchi / "train_mito.tif")],
            "test": [pair(lucchi / "test_image.tif", lucchi / "test_mito.tif", 0, 32)],
        },
        "ISBI 2012": {
            "train": [pair(isbi / "image.tif", isbi / "membrane.tif", 0, 24)],
            "test": [pair(isbi / "image.tif", isbi / "membrane.tif", 25, 30)],
        },
        "FIB-25": {
            "train": [pair(fib / "image.tif", fib / "boundary.tif", 0, 180)],
            "test": [pair(fib / "image.tif", fib / "boundary.tif", 190, 222)],
        },
        "hippocampus": {"classes": 3, "train": hippocampus[:45], "test": hippocampus[45:]},
        OTHER: {
            "test": [
                pair(cdeep / f"{part}_image.tif", cdeep / f"{part}_mito.tif") for part in ("train", "val")
            ]
        },
    }


def train(folder: Path, name: str, data: dict[str, Any], arm: str, seed: int) -> None:
    """Train a network in a folder, once."""
    training = {"steps": 300, "batch": 8, "validate_every": 300, "stress": False, "dtype": "float32"}
    given = OF_OBJECTS[arm]
    augmentation = {key: given[key] for key in ("z_flip", "missing_slices") if key in given}
    model = {key: value for key, value in given.items() if key not in augmentation}
    config = {
        "data": {"name": name, **data},
        "model": {"spec": SPEC, "weights": "imagenet", **model},
        "augmentation": augmentation,
        "training": {**training, "crop": [64, 64] if name == "hippocampus" else [128, 128]},
        "seed": seed,
    }
    if not (folder / "result.json").exists():
        evenslice.train(config, out=folder, progress=False)


def open_pairs(pairs: Sequence[dict[str, Any]]) -> tuple[list[evenslice.Volume], list[evenslice.Volume]]:
    """Open images and labels."""
    regions = [(slice(*item.get("slices", (None,))), slice(None), slice(None)) for item in pairs]
    images, labels = (
        [evenslice.open_volume(item[of], region=region) for item, region in zip(pairs, regions, strict=True)]
        for of in ("image", "labels")
    )
    return images, labels


def neighbour(network: Any, test: list[dict[str, Any]]) -> dict[str, Any]:
    """Audit a trained network by both methods, and measure what a missing neighbour costs."""
    volumes, labels = open_pairs(test)
    found: dict[str, Any] = {}
    for method, windows in WINDOWS.items():
        audit = evenslice.audit(
            network,
            volumes,
            method=method,
            labels=labels if method == "gradient" else None,
            sampling=evenslice.Sampling(min_windows=windows, max_windows=windows),
            compute=QUIET,
        )
        found[method] = _interval(audit.saliency[0])
        if audit.stress is not None:
            intact, missing = _missing(audit)
            found["reliance"] = _interval(audit.reliance[0])
            found["dice"] = [intact, missing.before, missing.after]
            found["dearer"] = _interval(missing.asymmetry)
    return found


def _missing(audit: Any) -> tuple[float, Any]:
    """Return the intact Dice, and what missing neighbours of the middle slice make of it."""
    losses = {(loss.kind, loss.offset): loss for loss in audit.stress.losses}
    return audit.stress.intact, losses["missing", 1]


def _interval(figure: Any) -> list[float]:
    return [round(float(value), 4) for value in (figure.estimate, figure.low, figure.high)]


def probabilities(network: Any, volume: evenslice.Volume, scratch: Path) -> Iterator[Array]:
    """Yield the probabilities (class, z, y, x) of a volume, then those of its flips, flipped back.

    All are scaled alike; planes are centred in multiples of what the network takes, so that padding favours no side.
    """
    stack, scaling = volume[...], evenslice.Reading().fit_scaling(volume)
    reading = evenslice.Reading(intensity=(scaling.low, scaling.high))
    extra = [(-side % MULTIPLE) for side in stack.shape[1:]]
    width = [(0, 0), *((n // 2, n - n // 2) for n in extra)]
    place = tuple(slice(low, low + side) for (low, _), side in zip(width, stack.shape, strict=True))
    padded = np.pad(stack, width, "reflect")
    for axis in (None, *range(3)):
        given = padded if axis is None else np.ascontiguousarray(np.flip(padded, axis))
        file = scratch / "probabilities.npy"
        evenslice.segment(
            network, given, file, probabilities=True, force=True, reading=reading, compute=QUIET
        )
        found = np.load(file)
        yield (found if axis is None else np.flip(found, axis + 1))[:, *place]


def flips(network: Any, test: list[dict[str, Any]], scratch: Path) -> tuple[Array, dict[str, Any]]:
    """Return the answers of a trained network; how flips change them, and the Dice of them and of averages over each flip."""
    answers: list[list[Array]] = []  # of each way, a volume each: intact, three flips, three averages
    images, labels = open_pairs(test)
    for volume in images:
        whole, *flipped = probabilities(network, volume, scratch)
        averages = [(whole + other) / 2 for other in flipped]
        answers.append([part.argmax(0).astype(np.uint8) for part in (whole, *flipped, *averages)])
    ways = [np.concatenate([answer.ravel() for answer in way]) for way in zip(*answers, strict=True)]
    truth = np.concatenate([part[...].ravel() for part in labels])
    return ways[0], {
        "change": [_change(ways[0], other) for other in ways[1:4]],
        "dice": [round(float(np.mean(_dice(way, truth))), 4) for way in (ways[0], *ways[4:])],
    }


def order(network: Any, test: list[dict[str, Any]], data: str, folder: Path, first: Path) -> dict[str, Any]:
    """Measure how the answers of a trained network change by flips and from those of the first seed, and what averages gain."""
    whole, found = flips(network, test, folder)
    np.save(folder / f"{data}.npy", whole)
    images, labels = open_pairs(test)
    few = evenslice.Sampling(min_windows=40, max_windows=40)
    intact, missing = _missing(evenslice.audit(network, images, labels=labels, sampling=few, compute=QUIET))
    seeds = _change(whole, np.load(first / f"{data}.npy"))
    return found | {"seeds": seeds, "lost": round(intact - missing.both, 4)}


def measure_study(study: Path, scratch: Path) -> None:
    """Measure flips of the networks "pretrained for longer" that a study has kept and that have no row yet."""
    for file in sorted(study.glob("runs/*/run.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        row = {"measure": "flips", "data": run["dataset"]} | {
            name: run[name] for name in ("arm", "fold", "seed")
        }
        known = [{name: other.get(name) for name in row} for other in read_lines(RESULTS)]
        network = file.parent / "network.safetensors"
        if run["arm"] != LONGER or not network.exists() or row in known:
            continue
        data = evenslice.load_config(file.parent / "config.yaml", evenslice.TrainConfig).data
        root = data.root or Path()
        files = [(root / item.image.path, root / item.labels.path, item.slices or ()) for item in data.test]
        test = [pair(image, labels, *slices) for image, labels, slices in files]
        _, found = flips(evenslice.load_network(str(network)).model, test, scratch)
        append_lines(RESULTS, row | found)


def find_objects(volume: evenslice.Volume, labels: evenslice.Volume) -> Iterator[tuple[Array, Array, Array]]:
    """Yield windows (3, y, x) around an object of each slice, its pixels in the middle one, and those to erase."""
    rng = np.random.default_rng(0)
    for z in rng.permutation(np.arange(1, len(volume) - 1)):
        parts, count = label(np.asarray(labels[z - 1 : z + 2]) == 1)
        for number in rng.permutation(count) + 1:
            part = parts == number
            if not (part.any((1, 2)).all() and AREA[0] <= part[1].sum() <= AREA[1]):
                continue
            y, x = (int(np.median(where)) - CROP // 2 for where in np.nonzero(part[1]))
            inside = np.s_[:, max(y, 0) : y + CROP, max(x, 0) : x + CROP]
            if part[inside].shape[1:] == (CROP, CROP):
                window = np.asarray(volume[z - 1 : z + 2], np.float32)[inside]
                yield window, part[inside][1], binary_dilation(part[inside].any(0), iterations=4)
                break


def erase(plane: Array, place: Array) -> Array:
    """Return a plane in which a place has the brightness around it."""
    known = gaussian_filter((~place).astype(np.float32), AROUND)
    around = gaussian_filter(plane * ~place, AROUND) / np.maximum(known, 1e-6)
    return np.where(place, around, plane)


def erased(network: Any, test: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask methods which neighbour holds an object that is erased from the other one and from the middle slice.

    Returns:
        With the object left in z-1 and then in z+1: for each method one digit an object, whether it is right; and "seen", the
        mean part of the object's pixels that are still answered as objects.
    """
    (volume, *_), (labels, *_) = open_pairs(test)
    scaling = evenslice.Reading().fit_scaling(volume)
    options: dict[str, Any] = {"reading": evenslice.Reading(intensity=(scaling.low, scaling.high))}
    options |= {"target": 1, "compute": QUIET}
    right: dict[str, list[str]] = {name: ["", ""] for name in ASKED}
    seen: tuple[list[float], list[float]] = ([], [])
    for _, (window, inside, place) in zip(range(OBJECTS), find_objects(volume, labels), strict=False):
        gone = np.stack([erase(plane, place) for plane in window])
        for left, given in enumerate(([window[0], *gone[1:]], [*gone[:2], window[2]])):
            for name, method in ASKED.items():
                found = evenslice.explain(network, np.stack(given), 1, region=inside, **options, **method)
                before, _, after = found.shares
                right[name][left] += str(int((after > before) == (left == 1)))
                if name == "gradient" and found.answer is not None:
                    seen[left].append(float((found.answer[inside] == 1).mean()))
    return right | {"seen": [round(float(np.mean(part)), 4) for part in seen]}


MEASURED: dict[str, Callable[..., dict[str, Any]]] = {"neighbour": neighbour, "erased": erased}


def _dice(one: Array, other: Array) -> list[float]:
    """Return the Dice of each class but 0."""
    classes = range(1, int(max(one.max(), other.max())) + 1)
    sizes = [((one == n).sum() + (other == n).sum(), ((one == n) & (other == n)).sum()) for n in classes]
    return [2 * float(both) / float(total) for total, both in sizes if total]


def _change(one: Array, other: Array) -> float:
    """Return 1 - IoU of the class that differs most."""
    return round(1 - min(dice / (2 - dice) for dice in _dice(one, other)), 4)


def tables() -> dict[str, str]:
    """Return the tables of the pages."""
    rows, measures = read_lines(RESULTS), ("neighbour", "order", "erased", "flips")
    of = {name: [row for row in rows if row["measure"] == name] for name in measures}
    return {
        "which neighbour": neighbour_table(of["neighbour"]),
        "erased objects": erased_table(of["erased"]),
        "order of slices": order_table(of["order"], of["flips"]),
    }


def neighbour_table(rows: list[dict[str, Any]]) -> str:
    """Return which neighbour each measure names, and how often it is the one whose loss costs more."""
    body = []
    for data in dict.fromkeys(row["data"] for row in rows):
        of = [row for row in rows if row["data"] == data]
        leans = [f"{np.mean([row[name][0] for row in of]):+.3f}" for name in MEASURES]
        body.append([data, *leans, *(f"{part:.3f}" for part in np.mean([row["dice"] for row in of], axis=0))])
    right = [sum((row[name][0] > 0) == (row["dearer"][0] < 0) for row in rows) for name in MEASURES]
    body.append(["right about the costlier loss", *(f"{n} of {len(rows)}" for n in right), "", "", ""])
    asked = ("gradient", "integrated gradients from the middle", "replacement")
    return table(["data", *asked, "Dice", "z-1 missing", "z+1 missing"], body)


def erased_table(rows: list[dict[str, Any]]) -> str:
    """Return how often methods name the neighbour that holds the object, by start, and below all the primary comparison."""
    groups = {arm: [row for row in rows if row["arm"] == arm] for arm in OF_OBJECTS}

    def right(name: str, arm: str) -> Array:
        """Return (seeds, sides, objects)."""
        return np.array([[[*map(int, part)] for part in row[name]] for row in groups[arm]])

    sides = "{:.2f} / {:.2f}".format
    body = [[name, *(sides(*right(name, arm).mean((0, 2))) for arm in groups)] for name in ASKED]
    seen = (np.mean([row["seen"] for row in group], axis=0) for group in groups.values())
    before, after = right("gradient", "pretrained").mean(0)
    primary = "{:.2f} [{:.2f}, {:.2f}]".format(*mean(before - after))
    body += [
        ["object still found", *(sides(*part) for part in seen)],
        ["gradient, z-1 less z+1", primary, *[""] * (len(groups) - 1)],
    ]
    return table(["method", *groups], body)


def order_table(rows: list[dict[str, Any]], in_study: list[dict[str, Any]]) -> str:
    """Return the changes of each start and of the networks of a study, means over data sets, and the primary comparisons."""
    means, along = dict[tuple[str, str], list[list[float]]](), list[float]()
    for arm, data in dict.fromkeys((row["arm"], row["data"]) for row in rows):
        group = [row for row in rows if (row["arm"], row["data"]) == (arm, data)]
        figures = np.mean([in_plane(row) for row in group], axis=0)
        others = [
            float(np.mean([row[name] for row in group if row["seed"] or name == "lost"]))
            for name in ("seeds", "lost")
        ]
        means.setdefault((data if data == OTHER else "four data sets", arm), []).append([*figures, *others])
        if (arm, data == OTHER) == ("pretrained", False):
            along.append(figures[0] - figures[1])
    body = [
        [f"{of}, {arm}", *(f"{value:.3f}" for value in np.mean(values, axis=0))]
        for (of, arm), values in sorted(means.items(), key=lambda item: item[0][0] == OTHER)
    ]
    body.append(["pretrained, z less y and x", "{:.3f} [{:.3f}, {:.3f}]".format(*mean(along)), *[""] * 6])
    found = np.mean([in_plane(row) for row in in_study], axis=0)
    body.append([f"in folds, {LONGER}", *(f"{value:.3f}" for value in found), "", ""])
    body.append(["averaged over y or x, less z", *[""] * 4, difference(in_folds(in_study)), "", ""])
    flips, averages = ([f"{way} {axis}" for axis in ("z", "y or x")] for way in ("flip of", "averaged over"))
    return table(["data, start", *flips, "Dice", *averages, "seed", "lost"], body)


def in_plane(row: dict[str, Any]) -> list[float]:
    """Return the changes by a flip of z and of y or x; the Dice intact, averaged over z, and over y or x."""
    change, dice = row["change"], row["dice"]
    return [change[0], np.mean(change[1:]), *dice[:2], np.mean(dice[2:])]


def in_folds(rows: list[dict[str, Any]]) -> Interval:
    """Return what averages over y and x gain beside that over z; mean over data sets and folds."""
    groups = []
    for data in dict.fromkeys(row["data"] for row in rows):
        of = [row for row in rows if row["data"] == data]
        gains = [np.mean(row["dice"][2:]) - row["dice"][1] for row in of]
        groups.append(replicate_means(of, gains, "fold"))
    return pool_means(groups, [FOLDS] * len(groups)).interval()


def main() -> None:
    """Train and measure what is missing."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--scratch", type=Path, default=Path("runs/trained"), help="where trained networks are kept"
    )
    parser.add_argument("--only", default="", help="what the description of a measure contains")
    parser.add_argument("--study", type=Path, help="measure flips of the networks of this study alone")
    options = parser.parse_args()
    if options.study is not None:
        measure_study(options.study, options.scratch)
        return
    sets = data_sets()
    done = {
        tuple(row.get(name) for name in ("measure", "data", "arm", "seed")) for row in read_lines(RESULTS)
    }
    trained_on = [name for name in sets if name != OTHER]
    for seed, arm, name in product(range(max(SEEDS.values())), OF_OBJECTS, trained_on):
        start = "pretrained" if arm == "output" else arm
        first, folder = (options.scratch / f"{name}-{start}-{n}".replace(" ", "-") for n in (0, seed))
        asked = [("order", of) for of in (name, *([OTHER] if name == "Lucchi++" else [])) if arm in ARMS]
        asked += [("neighbour", name)] if arm == "pretrained" else []
        asked += [("erased", name)] if name == "Lucchi++" else []
        for measure, of in asked:
            known = (measure, of, arm, seed) in done or seed >= SEEDS[measure]
            if known or options.only not in f"{measure} {of} {arm} {seed}":
                continue
            train(folder, name, sets[name], start, seed)
            network = evenslice.load_network(str(folder / "network.safetensors")).model
            network = evenslice.symmetrize(network) if arm == "output" else network
            compared = partial(order, data=of, folder=folder, first=first)
            found = MEASURED.get(measure, compared)(network, sets[of]["test"])
            append_lines(RESULTS, {"measure": measure, "data": of, "arm": arm, "seed": seed, **found})


if __name__ == "__main__":
    main()
