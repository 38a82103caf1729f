"""The job script on the page about clusters segments a volume, with a stand-in for SLURM."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evenslice

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
NETWORK = """
from torch import nn


def network():
    return nn.Conv2d(3, 2, 1)
"""
TOOLS = {
    # As SLURM does it: a step has the cores that it asks for, whatever the job asked for.
    "srun": 'case $1 in --cpus-per-task=*) echo "cores ${1#*=}" >>seen; shift ;; esac\nexec "$@"',
    "hostname": "echo 127.0.0.1",
    "dask": f'exec {sys.executable} -m dask "$@"',
    "evenslice": f'stat -c "%a %n" .tls.* .tls.*/key.pem >>seen\nexec {sys.executable} -m evenslice "$@"',
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_job_script_segments_a_volume_behind_a_certificate(tmp_path):
    pytest.importorskip("distributed")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl, with which the script makes a certificate")
    (script,) = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "small_network.py").write_text(NETWORK)
    np.save(tmp_path / "brain.npy", np.random.default_rng(0).integers(0, 255, (12, 64, 64), dtype=np.uint8))
    asked = "--run run --volume brain.ome.zarr"
    assert asked in script
    script = script.replace(asked, "--model small_network:network --weights none --volume brain.npy")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, lines in TOOLS.items():
        (tools / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_ID": str(os.getpid()),
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "Start worker at:      tls://127.0.0.1" in done.stderr  # rather than the command working alone
    assert done.returncode == 0, done.stderr[-4000:]
    assert evenslice.open_volume(tmp_path / "labels.ome.zarr").shape == (12, 64, 64)
    cores, folder, key = (tmp_path / "seen").read_text().splitlines()
    assert cores == "cores 1"
    assert folder.startswith("700 ")
    assert key.startswith("600 ")
    assert not [*tmp_path.glob(".labels*"), *tmp_path.glob(".tls*")]
