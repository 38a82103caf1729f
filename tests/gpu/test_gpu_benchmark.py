"""benchmarks/gpu.py runs here, with nothing but what a machine with a GPU is said to have, and says where there is none."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import evenslice

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"

# Runs a script as if only some packages and what they need were installed.
ONLY = """
import re, runpy, sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()

there, waiting = set(), ["torch", "timm", "lightning", "h5py", "scipy"]
while waiting:
    name = normal(waiting.pop())
    if name in there:
        continue
    try:
        needed = requires(name) or []
    except PackageNotFoundError:
        continue
    there.add(name)
    waiting += [re.match(r"[\\w.-]+", line)[0] for line in needed if "extra ==" not in line]
there.add("evenslice")
missing = {
    module for module, owners in packages_distributions().items() if not there & set(map(normal, owners))
}

class Only:
    invalidate_caches = PathFinder.invalidate_caches

    @staticmethod
    def find_distributions(*context):
        found = PathFinder.find_distributions(*context)
        return (item for item in found if normal(item.metadata["Name"]) in there)

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in missing else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Only if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = sys.argv[1:]
sys.path.insert(0, str(__import__("pathlib").Path(sys.argv[0]).parent))
sys.modules["__main__"].__dict__.pop("__file__", None)
print("missing:", *sorted(missing & {"captum", "monai", "pydantic", "zarr", "segmentation_models_pytorch"}))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments, folder):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.slow
def test_it_runs_on_a_machine_without_most_packages(tmp_path):
    options = ("--device", "cpu", "--quick", "--encoder", "resnet10t", "--dtypes", "float32")
    done = run("-c", ONLY, SCRIPT, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "missing: captum monai pydantic segmentation_models_pytorch zarr" in done.stdout
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {"captum", "lazy_loader", "monai"} <= set(found["stood_in"])
    assert [row["what"] for row in found["results"]] == ["audit", "predict", "train"]
    for row in found["results"]:
        assert row["share"] > 0
        assert len(row["seconds"]) == len(row["bare_seconds"]) == 1
        assert row["windows"] > 0


def test_steps_of_a_training_are_timed_without_its_start(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", gpu)
    spec.loader.exec_module(gpu)
    opened, passes = gpu.SliceWindows, []

    def open_slowly(*volumes, **options):
        time.sleep(1)
        return opened(*volumes, **options)

    class Counted(nn.Conv2d):
        def forward(self, windows):
            passes.append(len(windows))
            return super().forward(windows)

    monkeypatch.setattr(gpu, "SliceWindows", open_slowly)
    model = Counted(3, 2, 3, padding=1)
    evenslice.neutralize(model, slices=3, mean=0.5, std=0.25)
    passes.clear()
    gpu.write_volume(tmp_path / "volume.h5", gpu.QUICK.shape)
    bench = gpu.Bench(model, torch.device("cpu"), "float32", gpu.QUICK, tmp_path / "volume.h5")
    row = gpu.measure_training(bench)
    assert max(row["seconds"]) < 1
    assert row["windows"] == 3 * 2
    assert passes == [2] * 4 * 2 * 2  # one step and three, of either side, once before and once in a round


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_it_says_that_there_is_no_gpu(tmp_path):
    done = run(SCRIPT, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("no GPU on this machine; give --device cpu to run it on the CPU\n")
    assert not list(tmp_path.iterdir())
