"""Peak memory and time of segmenting Zarr volumes of growing size.

    python benchmarks/segment_memory.py [--sizes 1 4 16] [--side 2048] [--chunk 16 512 512]

Sizes are in GiB; the seconds summed over cores do not depend on the load of the machine. The volumes are written to a
temporary folder; all but their first slices are constant chunks, which compress to almost nothing. The network is a
small convolution, so that the time is that of evenslice; each call runs in its own process, and the peak is its
largest resident size, without children. `--chunk 64 64 64` is what public EM volumes have.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr
from shared import make_parser

NETWORK = """
from torch import nn

def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
"""


def segment(volume: Path, folder: Path) -> tuple[float, float]:
    """Segment a volume in a new process; return the seconds of all cores, and the peak resident size in MiB."""
    command = [sys.executable, "-m", "evenslice", "segment", "--volume", str(volume), "--json"]
    command += ["--out", f"{volume.with_suffix('')}-labels.ome.zarr"]
    command += ["--model", "benchmark_network:network", "--weights", "none"]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the segmentation of {volume} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Print a line for each size."""
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--side", type=int, default=2048, help="of the planes, in voxels")
    parser.add_argument("--chunk", type=int, nargs=3, default=[16, 512, 512], metavar=("Z", "Y", "X"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "benchmark_network.py").write_text(NETWORK)
        for size in options.sizes:
            volume, side, chunk = folder / f"{size}.zarr", options.side, tuple(options.chunk)
            shape = (size * 2**30 // side**2, side, side)
            array = zarr.create_array(volume, shape=shape, chunks=chunk, dtype="uint8", fill_value=100)
            array[: chunk[0]] = np.random.default_rng(0).integers(0, 255, (chunk[0], side, side), np.uint8)
            cores, peak = segment(volume, folder)
            print(f"{size:3d} GiB: {cores / size:.1f} s of all cores a GiB, peak {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
