"""The package: its names, its version, and what importing it brings along."""

import subprocess
import sys
from importlib import metadata

import pytest

import evenslice


def test_public_names_are_sorted_and_there():
    assert evenslice.__all__ == sorted(evenslice.__all__)
    for name in evenslice.__all__:
        assert getattr(evenslice, name).__name__ == name
    assert evenslice.__version__ == metadata.version("evenslice")
    with pytest.raises(AttributeError, match="has no attribute 'colour'"):
        _ = evenslice.colour


EARLY = """
import sys
from evenslice.cli.app import run
status = run(["study", "study.yaml", "--out", "out"])
print(status, *(name for name in ("lightning", "monai") if name in sys.modules))
"""
HEAVY = ["torch", "numpy", "scipy", "matplotlib", "timm", "zarr"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "printed"),
    [
        *(
            (f"import sys; import {name}; print(*[m for m in {HEAVY} if m in sys.modules])", "")
            for name in ("evenslice", "evenslice.cli.app", "evenslice._core.errors")
        ),
        (EARLY, "2"),  # a mistake in a study is told before the libraries of training are imported
    ],
)
def test_import_brings_nothing_heavy(code, printed, tmp_path):
    (tmp_path / "study.yaml").write_text("nothing: 1")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == printed, done.stderr


PLAIN = """
import sys
for name in ("yaml", "lightning", "monai", "timm", "segmentation_models_pytorch", "zarr", "nilearn"):
    sys.modules[name] = None
import numpy as np
from evenslice.cli.app import run
np.save("stack.npy", np.random.default_rng(0).random((8, 32, 32)))
open("own.py", "w").write("import torch\\ndef own(): return torch.nn.Conv2d(3, 2, 1)")
own, volume = ["--model", "own:own", "--weights", "none"], ["--volume", "stack.npy"]
done = [run(["audit", *own, *volume]), run(["evaluate", *own, *volume, "--stress"])]
print(*done, run(["audit", "--model", "smp:Unet/resnet18", "--weights", "none", *volume]), run(["demo"]))
"""


@pytest.mark.slow
def test_an_own_network_on_an_array_needs_no_extra(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.endswith("0 0 2 2\n"), done.stderr
    assert all(f"evenslice[{extra}]" in done.stderr for extra in ("models", "demo"))
