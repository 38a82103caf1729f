"""A short run of what ``make fuzz`` does at length, and that it finds what it looks for."""

import random
import re
from pathlib import Path

import fuzz_seeds
import fuzz_volumes
import numpy as np
import pytest

from evenslice import open_volume

COUNT = 40
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", fuzz_seeds.FORMATS)
def test_damaged_volumes_open_or_are_refused(name):
    tally, findings = fuzz_volumes.fuzz(name, COUNT, seed=11)
    assert findings == []
    assert tally["read"] + tally["refused"] == COUNT
    assert tally["refused"] > 0


@pytest.mark.parametrize("name", fuzz_seeds.FORMATS)
def test_the_seeds_are_valid_and_whole_again_after_damage(name, tmp_path):
    chance = random.Random(0)
    for item in fuzz_seeds.make(name, tmp_path):
        before = {file: file.read_bytes() for file in item.files}
        whole = open_volume(item.path, **item.options)[...]
        with item.damaged(lambda content: fuzz_volumes.damaged(content, chance), chance):
            pass
        assert {file: file.read_bytes() for file in item.files} == before
        np.testing.assert_array_equal(open_volume(item.path, **item.options)[...], whole)


SABOTAGE = {
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hang": "import time; time.sleep(60)",
    "traceback": "raise KeyError('axis')",
    "hoard": "held = bytearray(2**31)",
    "noise": "import sys; print('Traceback (most recent call last):', file=sys.stderr)",
}


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("crash", "ended the process with status -11"),
        ("hang", "took longer than 1 s"),
        ("traceback", "raised KeyError: 'axis'"),
        ("hoard", "needs more than|raised MemoryError"),
        ("noise", "printed a traceback"),
    ],
)
def test_what_goes_wrong_is_found(kind, pattern, tmp_path, monkeypatch):
    """Run the fuzzer on a reader that goes wrong once its seeds were read."""
    script = tmp_path / "sabotaged.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(fuzz_volumes.__file__).parent)!r})\n"
        "import fuzz_volumes\n"
        "look, seen = fuzz_volumes._look, []\n"
        "def wrong(item):\n"
        "    seen.append(item)\n"
        "    if len(seen) <= 3: return look(item)\n"
        "    if len(seen) == 5:\n"
        f"        {SABOTAGE[kind]}\n"
        "fuzz_volumes._look = wrong\n"
        "fuzz_volumes.main()\n"
    )
    monkeypatch.setattr(fuzz_volumes, "__file__", str(script))
    monkeypatch.setattr(fuzz_volumes, "SECONDS", 1)
    tally, findings = fuzz_volumes.fuzz("npy", 2)
    assert tally["read"] >= 1
    assert len(findings) == 1
    assert re.search(pattern, findings[0].what)
