"""Which neighbour does a trained network miss most, and does a map tell? Part of docs/planted-evidence.md.

    python benchmarks/which_neighbour.py --scratch FOLDER [--shared FOLDER] [--seeds 2] [--docs]

Trains a U-Net on EfficientNet-Lite0 with a pretrained start on each of four data sets, then asks three measures which
neighbour it leans on over whole test windows: the gradient, integrated gradients from the middle slice, and replacement by
the middle slice (reliance). The test is the Dice that is lost when that neighbour is missing. Each training takes some six
minutes on one core; what is done is kept, in FOLDER and in which-neighbour.jsonl.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from shared import ROOT, SHARED, SPEC, insert_tables, make_parser, read_lines, table

import evenslice

PAGE = ROOT / "docs" / "planted-evidence.md"
RESULTS = Path(__file__).parent / "which-neighbour.jsonl"
WINDOWS = {"gradient": 200, "integrated_gradients": 40}
"""How many windows are read; integrated gradients take thirty times as long."""
MEASURES = (*WINDOWS, "reliance")


def data_sets(data: Path) -> dict[str, dict[str, Any]]:
    """Return the data of each configuration: what its README says is for training, and for testing."""
    lucchi, isbi, fib = data / "lucchi_pp", data / "isbi2012", data / "fib25_medulla"
    cases = sorted(path.name for path in (data / "msd_hippocampus" / "images").glob("*.nii*"))

    def pair(image: Path, labels: Path, *slices: int) -> dict[str, Any]:
        return {"image": str(image), "labels": str(labels)} | ({"slices": list(slices)} if slices else {})

    msd = data / "msd_hippocampus"
    hippocampus = [pair(msd / "images" / name, msd / "labels" / name) for name in cases]
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
    }


def measure(folder: Path, test: list[dict[str, Any]]) -> dict[str, Any]:
    """Audit a trained network by both methods, and measure what a missing neighbour costs."""
    network = evenslice.load_network(str(folder / "network.safetensors")).model
    regions = [(slice(*item.get("slices", (None,))), slice(None), slice(None)) for item in test]
    volumes, labels = (
        [evenslice.open_volume(item[of], region=region) for item, region in zip(test, regions, strict=True)]
        for of in ("image", "labels")
    )
    found: dict[str, Any] = {}
    for method, windows in WINDOWS.items():
        audit = evenslice.audit(
            network,
            volumes,
            method=method,
            labels=labels if method == "gradient" else None,
            sampling=evenslice.Sampling(min_windows=windows, max_windows=windows),
            compute=evenslice.Compute(progress=False),
        )
        found[method] = _interval(audit.saliency[0])
        if audit.stress is not None:
            found["reliance"] = _interval(audit.reliance[0])
            (missing,) = (loss for loss in audit.stress.losses if (loss.kind, loss.offset) == ("missing", 1))
            found["dice"] = [audit.stress.intact, missing.before, missing.after]
            found["dearer"] = _interval(missing.asymmetry)
    return found


def _interval(figure: Any) -> list[float]:
    return [round(float(value), 4) for value in (figure.estimate, figure.low, figure.high)]


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the table of the page, and how often each measure names the neighbour whose loss costs more."""
    body, right = [], dict.fromkeys(MEASURES, 0)
    for row in rows:
        intact, before, after = row["dice"]
        for name in MEASURES:
            right[name] += (row[name][0] > 0) == (row["dearer"][0] < 0)
        figures = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*row[name]) for name in MEASURES]
        body.append(
            [f"{row['data']}, {row['seed']}", *figures, f"{intact:.3f}", f"{before:.3f}", f"{after:.3f}"]
        )
    counts = [f"{right[name]} of {len(rows)}" for name in MEASURES]
    body.append(["right about the costlier loss", *counts, "", "", ""])
    asked = ("gradient", "integrated gradients from the middle", "replacement")
    return {"which neighbour": table(["data, seed", *asked, "Dice", "z-1 missing", "z+1 missing"], body)}


def main() -> None:
    """Train and measure what is missing, or write the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with data and weights")
    parser.add_argument("--scratch", type=Path, help="where trained networks are kept")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--docs", action="store_true", help="write the table of the page, train nothing")
    options = parser.parse_args()
    known = read_lines(RESULTS)
    if options.docs:
        insert_tables(PAGE, tables(known))
        return
    if options.scratch is None:
        parser.error("--scratch: say where to keep trained networks")
    data_of = data_sets(options.shared.resolve() / "data")
    done = {(row["data"], row["seed"]) for row in known}
    for seed, (name, data) in product(range(options.seeds), data_of.items()):
        if (name, seed) in done:
            continue
        folder = options.scratch / f"{name}-{seed}".replace(" ", "-")
        training = {"steps": 300, "batch": 8, "validate_every": 300, "stress": False, "dtype": "float32"}
        config = {
            "data": {"name": name, **data},
            "model": {"spec": SPEC, "weights": "imagenet", "strategy": "pretrained"},
            "training": {**training, "crop": [64, 64] if name == "hippocampus" else [128, 128]},
            "seed": seed,
        }
        if not (folder / "result.json").exists():
            evenslice.train(config, out=folder, progress=False)
        row = {"data": name, "seed": seed, **measure(folder, data["test"])}
        with RESULTS.open("a") as file:
            file.write(f"{json.dumps(row)}\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
