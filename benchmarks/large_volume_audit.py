"""An audit of a volume of 106 TB at an address, compared with that of a volume of 1 GiB on this machine.

    python benchmarks/large_volume_audit.py [--rounds 3] [--delay 20] [--chunk 64 128 128]

Both are Zarr volumes of 8-bit voxels with the same content: the large one repeats the small one along all axes. It is
sparse: a server on this machine answers each request for one of its chunks, after a delay in milliseconds, with that chunk of
the small volume which it repeats. Audits alternate, each in a process of its own, with the network of the demonstration and all
options at their defaults. The time is that of `evenslice.audit`, from the name of the volume to the verdict; on a machine that
others use too, that without the time in which the main thread was ready and had no processor (Linux only) varies less.
The peak is the largest resident size of the process. What the server sends is compared with the voxels of the windows:
whatever else shares their chunks is sent too, and the sample for the intensity range.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from scipy.ndimage import gaussian_filter

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SMALL = (1024, 1024, 1024)
LARGE = (96 * 1024, 32 * 1024, 32 * 1024)
PATTERN = (256, 512, 512)  # is repeated; every window of both volumes shows a part of it

AUDIT = """
import json, pathlib, resource, sys, time
import evenslice
from evenslice.neutralizing import load_network

def queued():
    scheduled = pathlib.Path("/proc/thread-self/schedstat")
    return int(scheduled.read_text().split()[1]) / 1e9 if scheduled.exists() else 0.0

network = load_network(SPEC, weights="imagenet").model
started, waited = time.perf_counter(), queued()
found = evenslice.audit(network, sys.argv[1], compute=evenslice.Compute(progress=False))
seconds, waited = time.perf_counter() - started, queued() - waited
print(json.dumps({
    "seconds": seconds, "undisturbed": seconds - waited, "verdict": found.verdict, "stopped": found.run.stopped,
    "windows": len(found.measurements.volume),
    "asked": len(found.measurements.volume) * found.run.slices * found.run.tile[0] * found.run.tile[1],
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


@dataclass(frozen=True)
class Run:
    """One audit: times in s, the peak in MiB, the voxels of its windows, and what the server sent."""

    seconds: float
    undisturbed: float
    verdict: str
    stopped: str
    windows: int
    asked: int
    peak: float
    requests: int = 0
    sent: int = 0


def write_small(folder: Path, chunk: tuple[int, ...]) -> Path:
    """Write the small volume: smooth noise, which is different in every window of the pattern."""
    noise = np.random.default_rng(0).standard_normal(PATTERN, dtype=np.float32)
    smooth = gaussian_filter(noise, (1, 3, 3), mode="wrap")
    pattern = np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    repeats = [-(-length // part) for length, part in zip(SMALL[1:], PATTERN[1:], strict=True)]
    array = zarr.create_array(folder / "small.zarr", shape=SMALL, chunks=chunk, dtype="uint8")
    for z in range(0, SMALL[0], PATTERN[0]):
        array[z : z + PATTERN[0]] = np.tile(pattern, (1, *repeats))
    return folder / "small.zarr"


class Server:
    """Answers requests for the large volume, and counts them."""

    def __init__(self, small: Path, chunk: tuple[int, ...], delay: float) -> None:
        self.delay, self.requests, self.sent = delay, 0, 0
        metadata = json.loads((small / "zarr.json").read_text())
        self.metadata = json.dumps(metadata | {"shape": LARGE}).encode()
        self.grid = [length // part for length, part in zip(SMALL, chunk, strict=True)]
        self.small = small

    def content(self, name: str) -> bytes | None:
        """Return a file of the large volume; None if there is none."""
        if name == "zarr.json":
            return self.metadata
        if not name.startswith("c/"):
            return None
        index = zip(map(int, name.split("/")[1:]), self.grid, strict=True)
        place = "/".join(str(number % count) for number, count in index)
        return (self.small / "c" / place).read_bytes()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            content = self.content(head.split(b" ", 2)[1].decode().partition(".zarr/")[2])
            await asyncio.sleep(self.delay)
            status = "404 Not Found" if content is None else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(content or b'')}\r\n\r\n".encode())
            writer.write(content or b"")
            await writer.drain()
            self.requests += 1
            self.sent += len(content or b"")
        writer.close()


def serve(pipe: Connection, small: Path, chunk: tuple[int, ...], delay: float) -> None:
    """Serve the large volume; tell the port, and the counts since the last time whenever asked."""

    async def run() -> None:
        server = Server(small, chunk, delay)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await server.answer(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        listening = await asyncio.start_server(connected, "127.0.0.1", 0)
        pipe.send(listening.sockets[0].getsockname()[1])
        while await asyncio.to_thread(pipe.recv):
            pipe.send((server.requests, server.sent))
            server.requests = server.sent = 0
        os._exit(0)

    asyncio.run(run())


def audit(volume: str) -> Run:
    """Audit a volume in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, volume], stdout=subprocess.PIPE, text=True, check=True
    )
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def spread(values: list[float]) -> str:
    """Return the least, the median and the most."""
    return f"{min(values):.2f} {statistics.median(values):.2f} {max(values):.2f}"


def show(small: list[Run], large: list[Run], delay: float) -> None:
    """Print the ratios of the times, the peaks, and what was sent for the windows."""
    pairs = list(zip(large, small, strict=True))
    print(
        f"{math.prod(LARGE) / 1e12:.0f} TB at {delay:g} ms a request / {math.prod(SMALL) / 2**30:.0f} GiB here:"
    )
    print("  time                    ", spread([one.seconds / other.seconds for one, other in pairs]))
    print("  without others' programs", spread([one.undisturbed / other.undisturbed for one, other in pairs]))
    print("  windows                 ", spread([one.windows / other.windows for one, other in pairs]))
    print("peaks in MiB:", spread([run.peak for run in large]), "/", spread([run.peak for run in small]))
    run = large[0]
    print(
        f"{run.requests} requests sent {run.sent / 2**20:.0f} MiB for {run.windows} windows of {run.asked / 2**20:.1f} MiB"
    )


def main() -> None:
    """Audit both volumes alternately; print times, peaks and what was sent."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=20, help="of each answer, in ms")
    parser.add_argument("--chunk", type=int, nargs=3, default=(64, 128, 128))
    options = parser.parse_args()
    chunk = tuple(options.chunk)
    small_runs, large_runs = [], []
    with tempfile.TemporaryDirectory() as folder:
        small = write_small(Path(folder), chunk)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        server = context.Process(target=serve, args=(theirs, small, chunk, options.delay / 1000), daemon=True)
        server.start()
        address = f"http://127.0.0.1:{ours.recv()}/large.zarr"
        for _ in range(options.rounds):
            small_runs.append(audit(str(small)))
            ours.send(True)
            ours.recv()
            run = audit(address)
            ours.send(True)
            requests, sent = ours.recv()
            large_runs.append(Run(**{**vars(run), "requests": requests, "sent": sent}))
            print(small_runs[-1], large_runs[-1], sep="\n", flush=True)
        ours.send(False)
        server.join()
    show(small_runs, large_runs, options.delay)


if __name__ == "__main__":
    main()
