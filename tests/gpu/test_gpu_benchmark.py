"""benchmarks/gpu.py runs here, with nothing but what a machine with a GPU is said to have, and says where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_it_says_that_there_is_no_gpu(tmp_path):
    done = run(SCRIPT, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("no GPU on this machine; give --device cpu to run it on the CPU\n")
    assert not list(tmp_path.iterdir())
