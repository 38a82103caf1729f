"""What it saves to keep the memory that tensors leave, instead of returning it to the system.

    OMP_NUM_THREADS=1 python benchmarks/kept_memory.py [--rounds 3]

The network of the demonstration runs in processes of its own, alternately with the environment variables that say so
(those of ``evenslice._core.machine``, which the command line and its workers need not be given), without them, and
with the one that Dask gives its workers: forward passes of a plane of 768 x 1024 pixels, and passes with a gradient of 8
windows of 256 x 224. Ratios are of the times of the processor to those of the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import torch

from evenslice._core.machine import KEPT
from evenslice.inference.ready_networks import ReadyNetwork
from evenslice.neutralizing.network_files import load_network

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENVIRONMENTS: Mapping[str, Mapping[str, object]] = {
    "kept": KEPT,
    "by default": {},
    "by Dask's default": {"MALLOC_TRIM_THRESHOLD_": 65536},
}
REPEATED = 4


def passes(dtype: str) -> dict[str, Callable[[], object]]:
    """Return the passes, by name."""
    model = load_network(SPEC, "imagenet", slices=3, strategy="pretrained").model
    network = ReadyNetwork(model, slices=3, device="cpu", dtype=dtype)
    network.prepare(3, (256, 256))
    plane, windows = torch.rand(1, 3, 768, 1024), torch.rand(8, 3, 256, 224)

    @torch.no_grad()
    def forward() -> None:
        network(plane)

    def gradient() -> None:
        pixels = windows.clone().requires_grad_()
        torch.autograd.grad(network(pixels).sum(), pixels)

    return {f"{dtype}, forward": forward, f"{dtype}, gradient": gradient}


def seconds(run: Callable[[], object]) -> float:
    """Return the shortest of several times of the processor, after a first call."""
    run()
    found = []
    for _ in range(REPEATED):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def measure(environment: Mapping[str, object]) -> dict[str, float]:
    """Measure all passes in a process with these environment variables."""
    given = {name: value for name, value in os.environ.items() if name not in KEPT}
    done = subprocess.run(
        [sys.executable, __file__, "--here"],
        env=given | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {name: float(value) for name, value in (line.split("\t") for line in done.stdout.splitlines())}


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="print the times in this process")
    options = parser.parse_args()
    if options.here:
        for dtype in ("float32", "bfloat16"):
            for name, run in passes(dtype).items():
                print(f"{name}\t{seconds(run)}", flush=True)
        return
    rounds = [{name: measure(given) for name, given in ENVIRONMENTS.items()} for _ in range(options.rounds)]
    for environment in list(ENVIRONMENTS)[1:]:
        for name in rounds[0]["kept"]:
            ratios = [found[environment][name] / found["kept"][name] for found in rounds]
            print(
                f"{environment} / kept, {name}: median {statistics.median(ratios):.2f} (from {min(ratios):.2f} to "
                f"{max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
