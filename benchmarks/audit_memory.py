"""Peak memory of auditing a small and a large Zarr volume with the same options.

    python benchmarks/audit_memory.py [--small 64] [--large 4096]

Sizes are in MiB. Each audit runs in its own process; the peak is its largest resident size. The volumes are written
to a temporary folder: random 16-pixel blocks, which compress well, so that 4 GiB need little space.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr

CHUNK = (64, 256, 256)


def make_volume(path: Path, mebibytes: int) -> None:
    """Write a uint8 volume of about this size, with slices of 1024 x 1024 pixels (512 x 512 for small ones)."""
    side = 1024 if mebibytes >= 1024 else 512
    depth = mebibytes * 2**20 // side**2
    array = zarr.create_array(path, shape=(depth, side, side), chunks=CHUNK, dtype="uint8")
    rng = np.random.default_rng(0)
    for z in range(0, depth, CHUNK[0]):
        coarse = rng.integers(0, 255, (min(CHUNK[0], depth - z), side // 16, side // 16), dtype=np.uint8)
        array[z : z + len(coarse)] = coarse.repeat(16, axis=1).repeat(16, axis=2)


def peak_mebibytes(volume: Path) -> float:
    """Audit a volume in a new process and return its peak resident size."""
    command = [sys.executable, "-m", "evenslice", "audit", "--model", "smp:Unet/tu-tf_efficientnet_lite0"]
    command += [
        "--weights",
        "imagenet",
        "--volume",
        str(volume),
        "--max-windows",
        "80",
        "--precision",
        "1e-9",
        "--json",
    ]
    null = os.open(os.devnull, os.O_WRONLY)
    process = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"the audit of {volume} failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Print both peaks and their difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", type=int, default=64)
    parser.add_argument("--large", type=int, default=4096)
    options = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for size in (options.small, options.large):
            volume = Path(folder) / f"{size}.zarr"
            make_volume(volume, size)
            peaks.append(peak_mebibytes(volume))
            print(f"{size:6d} MiB volume: peak {peaks[-1]:.0f} MiB", flush=True)
    print(f"difference: {peaks[1] - peaks[0]:+.0f} MiB")


if __name__ == "__main__":
    main()
