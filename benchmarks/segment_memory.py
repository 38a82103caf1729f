"""Peak memory and time of segmenting Zarr volumes of growing size, and of auditing the largest.

    python benchmarks/segment_memory.py [--sizes 1 4 16] [--side 2048] [--chunk 16 512 512]

Sizes are in GiB; the seconds summed over cores do not depend on the load of the machine. The volumes are written to a
temporary folder; all but their first slices are constant chunks, which compress to almost nothing. The network is a
small convolution, so that the time is that of evenslice; each call runs in its own process, and the peak is its
largest resident size, without children. Each call also prints how often it decoded a chunk (median); `--chunk 64 64 64`
is what public EM volumes have.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

NETWORK = """
import atexit, itertools, statistics, sys
from collections import Counter

from torch import nn

from evenslice.volumes.read.zarr import ZarrSource

decoded, read = Counter(), ZarrSource.read


def counted(source, key):
    if source.chunks[0] > 1:  # those of unfinished work have one slice
        ranges = (range(part.start // size, -(-part.stop // size)) for part, size in zip(key, source.chunks))
        decoded.update(itertools.product(*ranges))
    return read(source, key)


ZarrSource.read = counted
atexit.register(lambda: print("a chunk decoded", statistics.median(decoded.values()), "times", file=sys.stderr))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
"""


def make_volume(path: Path, gibibytes: int, side: int, chunk: tuple[int, ...]) -> None:
    """Write a uint8 volume of this size: noise in the first chunks, 100 elsewhere."""
    depth = gibibytes * 2**30 // side**2
    array = zarr.create_array(path, shape=(depth, side, side), chunks=chunk, dtype="uint8", fill_value=100)
    array[: chunk[0]] = np.random.default_rng(0).integers(0, 255, (chunk[0], side, side), dtype=np.uint8)


def run(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Run a command of evenslice in a new process; return seconds, seconds of all cores, and peak resident size in MiB."""
    command = [sys.executable, "-m", "evenslice", *arguments, "--model", "benchmark_network:network"]
    command += ["--weights", "none", "--json"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    null = os.open(os.devnull, os.O_WRONLY)
    start = time.perf_counter()
    process = os.posix_spawn(command[0], command, environment, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--side", type=int, default=2048, help="of the planes, in voxels")
    parser.add_argument("--chunk", type=int, nargs=3, default=[16, 512, 512], metavar=("Z", "Y", "X"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "benchmark_network.py").write_text(NETWORK)
        volume = folder / "volume.zarr"
        for size in options.sizes:
            volume = folder / f"{size}.zarr"
            make_volume(volume, size, options.side, tuple(options.chunk))
            out = folder / f"labels{size}.ome.zarr"
            took, cores, peak = run(["segment", "--volume", str(volume), "--out", str(out)], folder)
            print(
                f"segment {size:3d} GiB: {took:.0f} s, of all cores {cores:.0f} s ({cores / size:.1f} s a GiB), "
                f"peak {peak:.0f} MiB",
                flush=True,
            )
        took, _, peak = run(
            ["audit", "--volume", str(volume), "--max-windows", "200", "--precision", "1e-9"], folder
        )
        print(f"audit   {options.sizes[-1]:3d} GiB: {took:.0f} s, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
