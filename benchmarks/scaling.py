"""Speed of two workers with one thread each, compared with one such worker.

    python benchmarks/scaling.py [--volume PATH] [--slices N] [--windows N] [--rounds 3] [--only bare|segment|audit|defaults]
        [--dtype float32]

The network of the demonstration segments and audits a volume on a local Dask cluster of one and two workers, each with
one thread; the ratios are of alternating measurements within one run. An audit has as many windows as the volume has
slices, or ``--windows``; with ``--dtype auto``, one worker checks the precision on the first of them. A small
segmentation before each measurement makes the workers import their modules. The same ratio for bare forward passes, in
equal parts on the workers, says what the machine allows: two cores share their caches, their memory and their clock.
The workers keep the memory that they free, and Dask hardly watches them, as docs/cluster.md sets them. The
last ratio says how much longer two workers take with Dask's defaults.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import dask
import torch
from distributed import Client, LocalCluster

import evenslice
from evenslice._core.machine import KEPT
from evenslice._core.workers import THREADS
from evenslice.neutralizing.network_files import load_network
from evenslice.volumes import mni152

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PASSES = 192  # of a window of 256 x 256, by all workers together
SETTINGS = {
    "distributed.nanny.pre-spawn-environ": {**dict.fromkeys(THREADS, 1), **KEPT},
    # Dask interrupts its workers a hundred times a second, for its dashboard alone.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
}


@contextmanager
def scheduler(workers: int, *, defaults: bool) -> Iterator[str]:
    """Start workers with one thread each and yield the address of their scheduler."""
    with (
        # Dask leaves what it gives its workers in this environment, where the next ones would find it.
        mock.patch.dict(os.environ),
        dask.config.set({} if defaults else SETTINGS),  # Dask's have one thread, too
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=None
        ) as cluster,
    ):
        yield cluster.scheduler_address


def passes(count: int) -> None:
    """Run the network on batches of 4 windows, as a task of a worker."""
    network = load_network(SPEC, "imagenet", slices=3, strategy="pretrained").model.eval()
    windows = torch.rand(4, 3, 256, 256)
    with torch.inference_mode():
        for _ in range(count // 4):
            network(windows)


def bare(address: str) -> None:
    """Run bare passes in equal parts on all workers."""
    with Client(address) as client:
        workers = list(client.scheduler_info()["workers"])
        share = PASSES // len(workers)
        client.gather([client.submit(passes, share, workers=[name], pure=False) for name in workers])


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volume", help="a volume; by default the MNI152 template")
    parser.add_argument(
        "--slices", type=int, help="number of slices from the middle of the volume; by default all"
    )
    parser.add_argument("--windows", type=int, help="number of windows of an audit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dtype", default="float32", help="precision of what is measured, but for bare passes"
    )
    parser.add_argument("--only", choices=["bare", "segment", "audit", "defaults"], help="measure this alone")
    options = parser.parse_args()
    volume = evenslice.open_volume(options.volume) if options.volume else mni152()
    count = min(options.slices or len(volume), len(volume))
    first = (len(volume) - count) // 2
    volume = evenslice.open_volume(volume[first : first + count])
    model = load_network(SPEC, "imagenet", slices=3, strategy="pretrained").model

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "labels.npy"

        def segment(address: str, image: evenslice.Volume = volume) -> None:
            evenslice.segment(
                model,
                image,
                out,
                compute=evenslice.Compute(scheduler=address, dtype=options.dtype, progress=False),
                force=True,
            )

        def audit(address: str) -> None:
            number = options.windows or count
            evenslice.audit(
                model,
                volume,
                compute=evenslice.Compute(scheduler=address, dtype=options.dtype, progress=False),
                sampling=evenslice.Sampling(min_windows=number, max_windows=number),
            )

        def seconds(run: Callable[[str], None], workers: int, *, defaults: bool = False) -> float:
            with scheduler(workers, defaults=defaults) as address:
                segment(address, evenslice.open_volume(volume[: 8 * workers]))
                start = time.perf_counter()
                run(address)
                return time.perf_counter() - start

        for run in (bare, segment, audit):
            if options.only in (None, run.__name__):
                show(
                    f"{run.__name__}, one worker / two",
                    [seconds(run, 1) / seconds(run, 2) for _ in range(options.rounds)],
                )
        if options.only in (None, "defaults"):
            show(
                "segment, two workers with Dask's defaults / two",
                [seconds(segment, 2, defaults=True) / seconds(segment, 2) for _ in range(options.rounds)],
            )


def show(what: str, ratios: Sequence[float]) -> None:
    """Print a ratio that was measured in several rounds."""
    print(
        f"{what}: median {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
