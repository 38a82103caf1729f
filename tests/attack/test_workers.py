"""Worker processes: they open no port, and import nothing that somebody left for them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from evenslice._core import map_in_order, open_workers

pytestmark = pytest.mark.attack

PLANTED = """
import pathlib
with (pathlib.Path({folder!r}) / "ran").open("a") as file:
    file.write(__name__ + "\\n")
raise ImportError("planted")
"""
ENTRY = "from evenslice.cli import main\n\nif __name__ == '__main__':\n    main()\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with a volume, the folder "here" to work in, and the command line as an installed script."""
    (tmp_path / "here").mkdir()
    (tmp_path / "evenslice-script.py").write_text(ENTRY)
    volume = np.random.default_rng(0).integers(0, 255, (6, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "here" / "volume.npy", volume)
    return tmp_path


def plant(folder, where, *names):
    where.mkdir(parents=True, exist_ok=True)
    for name in names:
        (where / f"{name}.py").write_text(PLANTED.format(folder=str(folder)))


def run(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=folder / "here",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def segment(folder, **environment):
    network = ["--model", "smp:Unet/resnet18", "--weights", "none", "--tile", "64", "64"]
    files = ["--volume", "volume.npy", "--out", "labels.npy", "--workers", "1"]
    script = str(folder / "evenslice-script.py")
    return run(folder, script, "segment", *network, *files, **environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multiprocessing", "concurrent", "torch", "zarr"])
def test_workers_import_nothing_from_the_current_directory(folder, name):
    plant(folder, folder / "here", name)
    done = segment(folder)
    assert not (folder / "ran").exists()
    assert done.returncode == 0, done.stderr


def test_as_a_module_the_command_line_imports_nothing_from_the_current_directory(folder):
    plant(folder, folder / "here", "numpy", "typer", "torch")
    done = run(folder, "-m", "evenslice", "info", "volume.npy")
    assert not (folder / "ran").exists()
    assert done.returncode == 0, done.stderr


def listening():
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    connections = [each for process in processes for each in process.net_connections("inet")]
    return {each.laddr for each in connections if each.status == "LISTEN"}


def test_workers_open_no_port():
    before = listening()
    with open_workers(workers=2) as workers:
        for _ in map_in_order(abs, range(4), workers):
            assert listening() <= before
    assert "PYTHONSAFEPATH" not in os.environ


def test_a_function_of_the_user_s_own_is_found_by_workers(folder):
    (folder / "here" / "mine.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Conv2d):\n"
        "    def __init__(self):\n        super().__init__(3, 2, 1)\n"
    )
    script = str(folder / "evenslice-script.py")
    done = run(
        folder,
        *(
            script,
            "segment",
            "--model",
            "mine:Net",
            "--weights",
            "none",
            "--tile",
            "64",
            "64",
            "--workers",
            "1",
        ),
        *("--volume", "volume.npy", "--out", "labels.npy"),
    )
    assert done.returncode == 0, done.stderr
    assert np.load(Path(folder, "here", "labels.npy")).shape == (6, 64, 64)
