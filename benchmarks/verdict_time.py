"""Processor time and windows until a default audit is settled, on real volumes.

    python benchmarks/verdict_time.py [--data FOLDER] [--volumes NAME ...] [--runs FOLDER ...]

Networks are the demonstration's U-Net as it is built, with the strategies "pretrained", "uniform" and "twin", or those of
run folders of `evenslice train`. Volumes are the images in the folder of real volumes, of a set of cases the first one. The
time is that of the processor, on one thread; that of importing and of a first small audit is apart. With another
version of evenslice in PYTHONPATH, the table is that version's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"
BEGUN = time.process_time()

import numpy as np  # noqa: E402  # importing is timed

import evenslice  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

ROOT = Path(__file__).parents[1]
SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
STRATEGIES = ("pretrained", "uniform", "twin")


def find_volumes(folder: Path) -> list[Path]:
    """Return the images in a folder of real volumes."""
    sets = sorted(path for path in folder.iterdir() if path.is_dir())
    images = [path for part in sets for path in sorted(part.glob("*image.tif"))]
    return images + [path for part in sets for path in sorted(part.glob("images/*"))[:1]]


def find_networks(runs: list[Path]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks by name."""
    for run in runs:
        yield run.name, evenslice.load_network(str(run / "network.safetensors"))[0]
    for strategy in () if runs else STRATEGIES:
        yield strategy, evenslice.load_network(SPEC, "imagenet", slices=3, strategy=strategy, seed=0)[0]


def measure(network: nn.Module, volume: Any, **options: Any) -> tuple[float, int, str]:
    """Return the seconds, the windows and the verdict of an audit."""
    begun = time.process_time()
    found = evenslice.audit(
        network, volume, compute=evenslice.Compute(device="cpu", progress=False), **options
    )
    spent = time.process_time() - begun
    measured: Any = found.measurements
    return spent, len(measured.volume) if hasattr(measured, "volume") else found.windows, found.verdict


def main() -> None:
    """Print the table."""
    shared = Path(os.environ.get("EVENSLICE_SHARED", ROOT.parent / "shared"))
    parser = argparse.ArgumentParser(description="Processor time until a default audit is settled.")
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder of real volumes")
    parser.add_argument("--volumes", nargs="+", default=[""], help="parts of the paths of those to audit")
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="run folders of trained networks")
    options = parser.parse_args()
    known = [(path, path.relative_to(options.data).as_posix()) for path in find_volumes(options.data)]
    volumes = [(path, name) for path, name in known if any(part in name for part in options.volumes)]
    spent = []
    for number, (name, network) in enumerate(find_networks(options.runs)):
        if number == 0:
            measure(
                network,
                np.random.default_rng(0).random((16, 64, 64)),
                sampling=evenslice.Sampling(max_windows=8),
            )
            print(f"importing and a first small audit: {time.process_time() - BEGUN:.1f} s\n")
            print("| network | volume | verdict | windows | seconds |\n| --- | --- | --- | --- | --- |")
        for path, place in volumes:
            seconds, windows, verdict = measure(network, path)
            spent.append(seconds)
            print(f"| {name} | {place} | {verdict} | {windows} | {seconds:.1f} |", flush=True)
    print(f"\nmedian {statistics.median(spent):.1f} s, longest {max(spent):.1f} s")


if __name__ == "__main__":
    main()
