"""An audit of a volume of 106 TB at an address, compared with that of a volume of 1 GiB on this machine.

    python benchmarks/large_volume_audit.py [--rounds 3] [--delay 20] [--chunk 64 128 128]

Both are Zarr volumes of 8-bit voxels with the same content: the large one repeats the small one along all axes. It is
sparse: a server on this machine answers each request for one of its chunks, after a delay in milliseconds, with that chunk of
the small volume which it repeats. Audits alternate, each in a process of its own, with the network of the demonstration and all
options at their defaults. The time is that of `evenslice.audit`, from the name of the volume to the verdict; the peak is the
largest resident size of the process.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy.ndimage import gaussian_filter
from shared import SPEC, make_parser, show

SMALL = (1024, 1024, 1024)
LARGE = (96 * 1024, 32 * 1024, 32 * 1024)
PATTERN = (256, 512, 512)  # is repeated; every window of both volumes shows a part of it

AUDIT = """
import json, resource, sys, time
import evenslice
network = evenslice.load_network(sys.argv[1], "imagenet", strategy="pretrained").model
started = time.perf_counter()
found = evenslice.audit(network, sys.argv[2], compute=evenslice.Compute(progress=False))
print(json.dumps({"seconds": time.perf_counter() - started, "windows": found.windows, "verdict": found.verdict,
                  "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def write_small(path: Path, chunk: tuple[int, ...]) -> None:
    """Write the small volume: smooth noise, which is different in every window of the pattern."""
    noise = np.random.default_rng(0).standard_normal(PATTERN, dtype=np.float32)
    smooth = gaussian_filter(noise, (1, 3, 3), mode="wrap")
    pattern = np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    array = zarr.create_array(path, shape=SMALL, chunks=chunk, dtype="uint8")
    for z in range(0, SMALL[0], PATTERN[0]):
        array[z : z + PATTERN[0]] = np.tile(pattern, (1, SMALL[1] // PATTERN[1], SMALL[2] // PATTERN[2]))


class Answers(SimpleHTTPRequestHandler):
    """Answers requests for the large volume, and counts them."""

    protocol_version = "HTTP/1.1"
    folder, chunk, delay = Path(), (1, 1, 1), 0.0
    requests, sent = 0, 0

    def translate_path(self, path: str) -> str:
        """Return the file of the small volume that holds what a chunk of the large one repeats."""
        name = path.partition(".zarr/")[2]
        if not name.startswith("c/"):
            return str(self.folder / "large.zarr" / name)
        grid = [length // part for length, part in zip(SMALL, self.chunk, strict=True)]
        index = [int(at) % count for at, count in zip(name.split("/")[1:], grid, strict=True)]
        return str(self.folder.joinpath("small.zarr", "c", *map(str, index)))

    def send_head(self) -> Any:
        """Begin an answer, after the delay."""
        time.sleep(self.delay)
        found = super().send_head()
        Answers.requests += 1
        Answers.sent += os.fstat(found.fileno()).st_size if found else 0
        return found

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def audit(volume: str) -> dict[str, Any]:
    """Audit a volume in a process of its own."""
    command = [sys.executable, "-c", AUDIT, SPEC, volume]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Audit both volumes alternately; print times, peaks and what was sent."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=20, help="of each answer, in ms")
    parser.add_argument("--chunk", type=int, nargs=3, default=(64, 128, 128))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Answers.folder, Answers.chunk, Answers.delay = (
            Path(folder),
            tuple(options.chunk),
            options.delay / 1000,
        )
        small, large = Path(folder, "small.zarr"), Path(folder, "large.zarr")
        write_small(small, Answers.chunk)
        large.mkdir()
        metadata = json.loads((small / "zarr.json").read_text()) | {"shape": LARGE}
        (large / "zarr.json").write_text(json.dumps(metadata))
        with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/large.zarr"
            rounds = [(audit(str(small)), audit(address)) for _ in range(options.rounds)]
            server.shutdown()
    print(*(found for both in rounds for found in both), sep="\n")
    show(
        f"{math.prod(LARGE) / 1e12:.0f} TB at {options.delay:g} ms a request / {math.prod(SMALL) / 2**30:.0f} GiB here",
        [remote["seconds"] / local["seconds"] for local, remote in rounds],
    )
    print(
        f"an audit sent {Answers.requests / len(rounds):.0f} requests for {Answers.sent / len(rounds) / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
