"""A folder of volumes and networks, and the command line within this process or in one of its own."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from commands import call

NETWORKS = """
import time

import torch
from torch import nn


def with_inputs(inputs):
    return nn.Conv2d(inputs, 2, 1)


def unequal():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[0].weight *= torch.tensor([1.0, 4.0, 0.2]).view(1, 3, 1, 1)
    return network


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = unequal()

    def forward(self, x):
        print("running", flush=True)
        time.sleep(0.2)
        return self.inner(x)


class Greedy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = unequal()

    def forward(self, x):
        return self.inner(x) + torch.ones(2**30)[0]


def before():
    print("building")
    network = nn.Conv2d(3, 1, 1).requires_grad_(False)
    network.weight.copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    network.bias.fill_(-0.5)
    return network


def in_parts():
    network = nn.Sequential()
    network.add_module("encoder", nn.Conv2d(3, 4, 3, padding=1))
    network.add_module("decoder", nn.Conv2d(4, 2, 1))
    return network


class AlongZ(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.inner(x[:, None]).mean(dim=2)


def one_slice():
    return nn.Conv2d(1, 2, 3, padding=1)


def nothing():
    return 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a network to import and a few volumes, good and bad."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "my_networks.py").write_text(NETWORKS)
    rng = np.random.default_rng(0)
    good = rng.integers(0, 255, (30, 48, 40), dtype=np.uint8)
    tifffile.imwrite(
        folder / "good.tif",
        good,
        imagej=True,
        resolution=(0.25, 0.25),
        metadata={"axes": "ZYX", "spacing": 50, "unit": "nm"},
    )
    tifffile.imwrite(folder / "labels.tif", (good > 128).astype(np.uint8))
    tifffile.imwrite(folder / "short_labels.tif", good[:20])
    np.save(folder / "two.npy", good[0])
    np.save(folder / "four.npy", np.stack([good, good]))
    np.save(folder / "constant.npy", np.full((20, 40, 40), 7, np.uint8))
    broken = good.astype(np.float32)
    broken[3, 4, 5] = np.nan
    np.save(folder / "nan.npy", broken)
    np.save(folder / "thin.npy", good[:2])
    (folder / "text.tif").write_text("not a picture")
    (folder / "cut.tif").write_bytes((folder / "good.tif").read_bytes()[:20000])
    torch.manual_seed(0)
    torch.save(dict.fromkeys(["other.weight"], torch.zeros(2)), folder / "other.pt")
    torch.save(torch.nn.Conv2d(3, 2, 1), folder / "pickled.pt")
    (folder / "junk.pt").write_bytes(b"junk")
    sys.path.insert(0, str(folder))
    import my_networks

    torch.save(my_networks.unequal().state_dict(), folder / "weights.pt")
    whole = my_networks.in_parts().state_dict()
    torch.save(
        {key: value for key, value in whole.items() if key.startswith("encoder")}, folder / "encoder.pt"
    )
    sys.path.remove(str(folder))
    return folder


@pytest.fixture
def cli(capsys):
    """Run the command line within this process; return its status, output and errors."""

    def run(*arguments):
        status, captured = call(*arguments), capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def run(folder, monkeypatch, cli):
    """Likewise, in the folder of volumes."""
    monkeypatch.chdir(folder)
    return cli


@pytest.fixture
def process(folder):
    """Run it in a process of its own, in the folder of volumes."""

    def run(*arguments, cwd=folder, **options):
        command = [sys.executable, "-m", "evenslice", *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.run(command, cwd=cwd, text=True, check=False, timeout=120, **options)

    return run
