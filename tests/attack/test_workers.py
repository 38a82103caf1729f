"""Worker processes: they open no port, and import nothing that somebody left for them."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

from evenslice._core import map_tasks, open_workers

pytestmark = pytest.mark.attack

PLANTED = """
import pathlib
(pathlib.Path({folder!r}) / "ran").touch()
raise ImportError("planted")
"""
ENTRY = "from evenslice.cli import main\n\nif __name__ == '__main__':\n    main()\n"
MINE = """
import torch

class Net(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(3, 2, 1)
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a volume and a network in the folder "here" to work in, and the command line as an installed script."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.py").write_text(MINE)
    (tmp_path / "evenslice-script.py").write_text(ENTRY)
    volume = np.random.default_rng(0).integers(0, 255, (6, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "here" / "volume.npy", volume)
    return tmp_path


def run(folder, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, check=False, cwd=folder / "here", capture_output=True, text=True, timeout=300
    )


def test_as_a_module_the_command_line_imports_nothing_from_the_current_directory(folder):
    for name in ("numpy", "typer", "torch"):
        (folder / "here" / f"{name}.py").write_text(PLANTED.format(folder=str(folder)))
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
        for _ in map_tasks(abs, range(4), workers):
            assert listening() <= before
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("planted", [[], ["multiprocessing", "concurrent", "torch", "zarr"]])
def test_workers_find_the_user_s_function_and_import_nothing_else_from_the_current_directory(folder, planted):
    for name in planted:
        (folder / "here" / f"{name}.py").write_text(PLANTED.format(folder=str(folder)))
    spec = "smp:Unet/tu-test_resnet" if planted else "mine:Net"
    network = ["--model", spec, "--weights", "none", "--tile", 64, 64]
    files = ["--volume", "volume.npy", "--out", "labels.npy", "--workers", 1]
    done = run(folder, folder / "evenslice-script.py", "segment", *network, *files)
    assert not (folder / "ran").exists()
    assert done.returncode == 0, done.stderr
    assert np.load(folder / "here" / "labels.npy").shape == (6, 64, 64)
