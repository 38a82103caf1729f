"""Ctrl-C at any moment ends the command line quietly, with status 130 and nothing left running."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import members

pytestmark = [pytest.mark.attack, pytest.mark.slow]

# As a terminal does it, but at a module of choice.
CUSTOMIZE = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
"""
AUDIT = ["audit", "--model", "timm:test_resnet", "--weights", "none", "--volume", "volume.npy"]
IMPORTED = {
    "typer": ["--version"],
    "evenslice.volumes.volume": ["info", "volume.npy"],
    "torch.nn": AUDIT,
    "captum": [*AUDIT, "--method", "input_x_gradient"],
}


@pytest.mark.parametrize("module", IMPORTED)
def test_an_interrupt_while_modules_are_imported_is_quiet(tmp_path, module):
    (tmp_path / "sitecustomize.py").write_text(CUSTOMIZE)
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).integers(0, 255, (4, 32, 32), dtype=np.uint8))
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", "from evenslice.cli import main; main()", *IMPORTED[module]],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "INTERRUPT_AT": module},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.split() == ["interrupted"]


WORK = """
import sys, time
from evenslice._core import map_tasks, open_workers

if __name__ == "__main__":
    print("starting", flush=True)
    try:
        with open_workers(workers=2) as client:
            print("working", flush=True)
            for _ in map_tasks(time.sleep, [30] * 4, client):
                pass
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize(("after", "seconds"), [("starting", 0.3), ("working", 1.0)])
def test_an_interrupt_with_workers_is_quiet_and_leaves_none(tmp_path, after, seconds):
    script = tmp_path / "work.py"
    script.write_text(WORK)
    # A session of its own is to the signal what the processes of a command are to Ctrl-C on a terminal.
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.stdout.readline().strip() != after:
            assert process.poll() is None
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert re.fullmatch(r"interrupted\s*", errors), errors
    until = time.monotonic() + 10
    while left := members(process.pid):
        assert time.monotonic() < until, left
        time.sleep(0.1)
