"""The action for other people's workflows runs the audit that it is asked for, and fails as the audit does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

ACTION = Path(__file__).parents[2] / "action.yml"
NETWORKS = """
import torch


class Sums(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 1)
        self.layer.weight.data = torch.tensor([weights, [-w for w in weights]])[..., None, None]

    def forward(self, window):
        return self.layer(window)


def fair():
    return Sums([1.0, 1.0, 1.0])


def unfair():
    return Sums([2.0, 1.0, 0.5])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("network", "status"), [("fair", 0), ("unfair", 1), ("missing", 2)])
def test_the_action_fails_as_the_audit_does(tmp_path, network, status):
    (tmp_path / "networks.py").write_text(NETWORKS)
    tifffile.imwrite(tmp_path / "stack.tif", np.random.default_rng(0).random((8, 48, 48), dtype=np.float32))
    action = yaml.safe_load(ACTION.read_text())
    defaults = {name: value.get("default", "") for name, value in action["inputs"].items()}
    given = defaults | {"model": f"networks:{network}", "weights": "none", "volume": "stack.tif"}
    given["arguments"] = "--mean 0.5 --std 0.5 --strategy pretrained"
    step = action["runs"]["steps"][-1]
    env = {name: given[name.lower()] for name in step["env"]}
    beside = {"RUNNER_TEMP": str(tmp_path), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env=os.environ | beside | env | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert summary == f"```\n{done.stdout}```\n"
    assert ("error: " in summary) == (status == 2)
    assert (tmp_path / "audit/report.html").is_file() == (status != 2)
