"""Read damaged files by the hundred: each must be read or refused in one line, without a hang, crash or excess of memory.

They are read in a process of their own that may take 1 GiB beyond what it starts with; one that takes too long for a file
is ended, and the next file is tried in a new one. Each damage comes from a number, so that a finding
can be made again.
"""

import copy
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import threading
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forking import forked

from evenslice import EvensliceError

MEMORY = 2**30
PATIENCE = 20  # seconds on the clock: others may use this machine too
START = 120
COUNT = int(os.environ.get("EVENSLICE_FUZZ", "0"))
"""How many damaged files of each kind to read, if not as few as a short run takes."""

NUMBERS = (0, 1, 3, 2**24, *(2**n - d for n in (7, 8, 15, 16, 31, 32, 63, 64) for d in (0, 1)))
TEXTS = b'0 -1 1e999 nan 99999999999999999999 ../../etc/passwd %s%n [ " \0 \xff'.split(b" ")
VALUES = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 2**70, 1e308, float("nan"), "", "x", "../..", "/etc/passwd", "a/../../b", [],
    {}, [[]], [0], [-1, -1, -1], [2**40] * 3, [1] * 9, "gzip", {"name": "gzip", "configuration": {"level": 1}}, "|O",
    "<U9999999999", "float64", {"id": "pickle"}, "0x" + "f" * 64, "\u001b[31m",
)  # fmt: skip


@dataclass
class Seed:
    """A valid file or folder.

    Attributes:
        path: what to read.
        files: what to damage, one file at a time.
        options: what to read it with.
        edit: damages the meaning of a file and keeps its form.
    """

    path: str
    files: list[Path]
    options: dict[str, Any] = field(default_factory=dict)
    edit: Any = None


def damaged(content, chance):
    """Return content with one to four defects, more often near the start, where headers are."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
        end = len(content) if chance.random() < 0.5 else min(len(content), 1024)
        start = chance.randrange(max(end, 1))
        length = chance.choice((1, 2, 4, 8, 64, 512))
        kind = chance.randrange(7)
        if kind == 0 and content:
            content[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            content[start : start + length] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 2:  # most formats align their numbers
            width, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
            start -= start % width
            content[start : start + width] = (chance.choice(NUMBERS) % 256**width).to_bytes(width, order)
        elif kind == 3:
            text = chance.choice(TEXTS)
            content[start : start + (len(text) if chance.random() < 0.5 else 1)] = text
        elif kind == 4:
            del content[start : start + chance.choice((length, len(content)))]
        elif kind == 5:
            content[start:start] = content[start : start + length]
        else:
            content[start : start + length] = bytes(len(content[start : start + length]))
    return bytes(content)


def edit_json(content, chance):
    """Change, remove or repeat one to three values of a JSON document."""
    document = json.loads(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            break
        holder, key = chance.choice(places)
        kind = chance.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(chance.choice(VALUES))
    return json.dumps(document).encode()


def _places(value):
    """Yield the container and key of every value in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def fuzz(make, look, count, seed=0, seconds=PATIENCE):
    """Read damaged files.

    Args:
        make: writes valid files into a folder, and returns them as seeds.
        look: reads a seed.
        count: how many damaged ones.
        seed: of what chance decides.
        seconds: after which a process is ended.

    Returns:
        How many were read and how many refused, and what went wrong: each with the number of the file.
    """
    tally, findings, number = Counter(), [], 0
    while number < count:
        here, there = multiprocessing.Pipe(duplex=False)
        process = forked(_work, there, make, look, seed, range(number, count))
        there.close()
        limit, ready = START, False
        while number < count or not ready:
            try:
                found = here.recv() if here.poll(limit) else f"took longer than {seconds} s"
            except EOFError:
                process.join()
                found = f"ended the process with status {process.exitcode}"
            limit = seconds
            if found == "ready":
                ready = True
                continue
            assert ready, found
            if found in ("read", "refused"):
                tally[found] += 1
            else:
                findings.append(f"{number}: {found}")
            number += 1
            if found.startswith(("took longer", "ended")):
                break
        process.kill()
        process.join()
    return tally, findings


def _work(connection, make, look, seed, numbers):
    """Read damaged files, and send what came of each."""
    warnings.simplefilter("ignore")
    noise = []
    sys.unraisablehook = threading.excepthook = noise.append
    with tempfile.TemporaryDirectory() as folder:
        seeds = make(Path(folder))
        for item in seeds:
            look(item)  # so that all libraries are loaded before memory is counted
        if sys.platform == "linux":
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        connection.send("ready")
        for number in numbers:
            chance = random.Random(f"{seed} {number}")  # noqa: S311
            item = chance.choice(seeds)
            file = chance.choice(item.files)
            content = file.read_bytes()
            edit = item.edit if item.edit is not None and chance.random() < 0.6 else damaged
            file.write_bytes(edit(content, chance))
            found = _outcome(look, item)
            connection.send("printed a traceback" if noise else found)
            noise.clear()
            file.write_bytes(content)


def _outcome(look, item):
    try:
        look(item)
    except EvensliceError as error:
        text, cause = str(error), error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return f"needs more than {MEMORY:,} bytes: {text[:300]}"
            cause = cause.__cause__ or cause.__context__
        return "refused" if text and "\n" not in text and len(text) <= 4000 else f"told {text[:200]!r}"
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is a finding
        return f"raised {type(error).__name__}: {error}"[:300]
    return "read"
