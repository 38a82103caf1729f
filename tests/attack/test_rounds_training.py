"""Trainings and studies that are killed, or whose disk fills, end as undisturbed ones when they are run again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = os.environ.get("EVENSLICE_ROUNDS", "2")


@pytest.mark.attack
@pytest.mark.slow
@pytest.mark.parametrize("what", ["train-kill", "train-full", "study-kill", "study-full"])
def test_disturbed_ones_end_as_undisturbed_ones(what):
    script = Path(__file__).with_name("rounds_train.py")
    command = [sys.executable, str(script), "--rounds", ROUNDS, "--only", what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
