"""Open thousands of damaged volumes: each must be read or refused in one line, without a hang, crash or excess of memory.

    python tests/helpers/fuzz_volumes.py                        # 2,000 damaged files of each format
    python tests/helpers/fuzz_volumes.py --format hdf5 --count 500 --seed 7

Each file is made from a small valid one and a number, so that a finding can be made again: --first NUMBER --count 1.
The files are opened in a process of their own that may take 1 GiB beyond what it starts with; one that takes longer
than 5 seconds for a file is ended, and the next file is tried in a new one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import fuzz_seeds

MEMORY = 2**30
SECONDS = 5
PATIENCE = 4  # times as long on the clock: others may use this machine too
START_SECONDS = 120
LARGEST_SLICE = 2**26

_NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    *(2**bits - 1 for bits in (7, 8, 15, 16, 31, 32, 64)),
    *(2**bits for bits in (7, 15, 24, 31, 40, 63)),
]
_TEXTS = b'0 -1 1e999 nan 99999999999999999999 ../../etc/passwd %s%n {} [ " \0 \xff\xfe'.split(b" ")


@dataclass
class Finding:
    """A file that was not handled correctly."""

    format: str
    number: int
    what: str


# Damage


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return content with one to four defects."""
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
        content = chance.choice(_KINDS_OF_DAMAGE)(bytearray(content), chance)
    return content


def _place(content: bytearray, chance: random.Random) -> int:
    """Return a position, more often near the start, where headers are."""
    end = len(content) if chance.random() < 0.5 else min(len(content), 1024)
    return chance.randrange(max(end, 1))


def _flip_bit(content, chance):
    if content:
        content[_place(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(content)


def _set_bytes(content, chance):
    start = _place(content, chance)
    content[start : start + chance.randrange(1, 9)] = chance.randbytes(chance.randrange(1, 9))
    return bytes(content)


def _set_number(content, chance):
    width, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
    number = chance.choice(_NUMBERS) % 256**width
    start = _place(content, chance)
    if chance.random() < 0.7:
        start -= start % width  # most formats align their numbers
    content[start : start + width] = number.to_bytes(width, order)
    return bytes(content)


def _set_text(content, chance):
    start = _place(content, chance)
    text = chance.choice(_TEXTS)
    content[start : start + (len(text) if chance.random() < 0.5 else 1)] = text
    return bytes(content)


def _grow_digits(content, chance):
    """Change a number in a text."""
    digits = [position for position in range(min(len(content), 4096)) if chr(content[position]).isdigit()]
    if digits:
        start = chance.choice(digits)
        content[start : start + 1] = chance.choice((b"9" * chance.randrange(1, 12), b"-1", b"0", b"1e9", b""))
    return bytes(content)


def _cut(content, chance):
    start = _place(content, chance)
    del content[start : start + chance.choice((1, 2, 4, 8, 64, len(content)))]
    return bytes(content)


def _repeat(content, chance):
    start, length = _place(content, chance), chance.choice((1, 2, 4, 8, 64, 512))
    content[start:start] = content[start : start + length]
    return bytes(content)


def _swap(content, chance):
    first, second = sorted((_place(content, chance), _place(content, chance)))
    length = chance.choice((1, 2, 4, 8, 16))
    if first + length <= second and second + length <= len(content):
        content[first : first + length], content[second : second + length] = (
            content[second : second + length],
            content[first : first + length],
        )
    return bytes(content)


def _blank(content, chance):
    start = _place(content, chance)
    length = min(chance.choice((1, 4, 16, 256)), len(content) - start)
    content[start : start + length] = bytes(length)
    return bytes(content)


_KINDS_OF_DAMAGE = (
    *(_flip_bit, _set_bytes, _set_number, _set_number, _set_text, _grow_digits, _cut, _repeat, _swap, _blank),
)


# The process that opens them


def work(name: str, seed: int, first: int, count: int) -> None:
    """Open damaged volumes and print one line of JSON for each; the main function of the process."""
    from evenslice.volumes.read import flat_files

    def vary(chance: random.Random) -> None:
        # Half of the small files are read as large ones are.
        flat_files.IN_MEMORY = chance.choice((0, 2**27))

    work_on(name, seed, first, count, fuzz_seeds.make, _look, vary)


def work_on(name, seed, first, count, make, look, vary=lambda _: None) -> None:
    """Open damaged files of any kind: those that ``make`` writes, with ``look``."""
    from evenslice import EvensliceError

    with tempfile.TemporaryDirectory() as folder:
        seeds = make(name, Path(folder))
        for item in seeds:
            look(item)  # so that all libraries are loaded before memory is counted
        limit = (
            MEMORY + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            if sys.platform == "linux"
            else -1
        )
        if limit > 0:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(json.dumps({"ready": True}), flush=True)
        for number in range(first, first + count):
            chance = random.Random(f"{name} {seed} {number}")
            item = chance.choice(seeds)
            vary(chance)
            with item.damaged(lambda content, chance=chance: damaged(content, chance), chance):
                print(json.dumps({"start": number}), flush=True)
                started = time.process_time()
                try:
                    look(item)
                    outcome = "read"
                except EvensliceError as error:
                    outcome = _judge(error)
                except BaseException as error:  # noqa: BLE001  # whatever it is, it is a finding
                    outcome = f"raised {type(error).__name__}: {error}"[:300]
                seconds = time.process_time() - started
            print(json.dumps({"number": number, "outcome": outcome, "seconds": seconds}), flush=True)


def _judge(error: BaseException) -> str:
    """Return whether an error is one that a user should see."""
    text = str(error)
    if "\n" in text or not text or len(text) > 4000:
        return f"message of several lines or none: {text[:200]!r}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"needs more than {MEMORY:,} bytes: {text[:300]}"
        cause = cause.__cause__ or cause.__context__
    return "refused"


def _look(item: fuzz_seeds.Seed) -> None:
    """Open a volume, and read as much of it as fits into memory."""
    from evenslice import open_volume

    volume = open_volume(item.path, **item.options)
    depth, height, width = volume.shape
    volume[depth // 2, : min(height, 64), : min(width, 64)]
    if height * width * volume.dtype.itemsize <= LARGEST_SLICE:
        volume[depth - 1]


# The process that watches


def fuzz(
    name: str, count: int, seed: int = 0, first: int = 0, script: str | None = None
) -> tuple[dict[str, int], list[Finding]]:
    """Open damaged files of a format, in processes that run a script: this one, or one like it.

    Returns:
        How many were read and how many refused, and what went wrong.
    """
    tally: dict[str, int] = {"read": 0, "refused": 0}
    findings: list[Finding] = []
    number, end = first, first + count
    while number < end:
        number = _batch(script or __file__, name, seed, number, end, tally, findings)
    return tally, findings


def _batch(
    script: str,
    name: str,
    seed: int,
    first: int,
    end: int,
    tally: dict[str, int],
    findings: list[Finding],
) -> int:
    """Run one process until it is done or must be replaced; return the next number."""
    command = [sys.executable, script, "--work", "--format", name, "--seed", str(seed), "--first", str(first)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = os.environ | threads | {"PYTHONWARNINGS": "ignore"}
    current, limit = first, time.monotonic() + START_SECONDS
    ready = False
    with tempfile.TemporaryFile() as noise:
        with subprocess.Popen(
            [*command, "--count", str(end - first)], stdout=subprocess.PIPE, stderr=noise, env=environment
        ) as process:
            lines = _Lines(process.stdout.fileno())
            while True:
                line = lines.next(limit)
                if line is None:
                    process.kill()
                    findings.append(Finding(name, current, f"took longer than {SECONDS} s"))
                    return current + 1
                if not line:
                    break
                said = json.loads(line)
                limit = time.monotonic() + PATIENCE * SECONDS
                ready = True
                if "start" in said:
                    current = said["start"]
                elif "number" in said:
                    current = said["number"] + 1
                    if current == end:  # what is left is to remove the folder, and to end
                        limit += START_SECONDS
                    _count(name, said, tally, findings)
            status = process.wait()
        if status:
            noise.seek(0)
            last = noise.read()[-300:].decode("utf-8", "replace")
            if not ready:
                raise RuntimeError(f"the valid volumes of {name} cannot be read: {last}")
            findings.append(Finding(name, current, f"ended the process with status {status}: {last}"))
            return current + 1
        noise.seek(0)
        if b"Traceback" in noise.read():
            findings.append(Finding(name, first, "printed a traceback"))
    return end


def _count(name: str, said: dict, tally: dict[str, int], findings: list[Finding]) -> None:
    if said["outcome"] not in tally:
        findings.append(Finding(name, said["number"], said["outcome"]))
    elif said["seconds"] > SECONDS:
        findings.append(Finding(name, said["number"], f"took {said['seconds']:.1f} s"))
    else:
        tally[said["outcome"]] += 1


class _Lines:
    """Lines of a pipe, with a time limit for each."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""

    def next(self, limit: float) -> bytes | None:
        """Return the next line, "" at the end, None after the time limit."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._descriptor], [], [], max(limit - time.monotonic(), 0))
            if not ready:
                return None
            piece = os.read(self._descriptor, 2**16)
            if not piece:
                return b""
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def main() -> None:
    """Fuzz volumes."""
    run(__doc__, tuple(fuzz_seeds.FORMATS), 2000, work, __file__)


def run(about, formats, count, work, script) -> None:
    """Fuzz the given formats, print the results, and exit with status 1 if anything was found."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--format", action="append", choices=formats, help="by default all of them")
    parser.add_argument("--count", type=int, default=count, help="damaged files of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.format[0], options.seed, options.first, options.count)
        return
    found: list[Finding] = []
    for name in options.format or formats:
        started = time.monotonic()
        tally, findings = fuzz(name, options.count, options.seed, options.first, script)
        found += findings
        print(
            f"{name}: {tally['read']} read, {tally['refused']} refused, {len(findings)} wrong, "
            f"{time.monotonic() - started:.0f} s"
        )
        for finding in findings[:20]:
            print(f"  number {finding.number}: {finding.what}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
