"""What attacks share: data and networks of trainings, the command line within this process, and small blocks."""

import os
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import write_inputs

from evenslice.cli import main


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of data and networks; the current one."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    sys.path.remove(str(folder))
    os.chdir(before)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line within this process; return its status and its errors, without what a training assumes."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err.splitlines(keepends=True)
        assumed = ("network: ", "slices: ", "scaling: ", "data: ", "training: ", "test: ")
        return end.value.code, "".join(line for line in said if not line.startswith(assumed))

    return command


@pytest.fixture
def small_blocks(monkeypatch):
    """Let segmentations write blocks of two slices of 70 x 90 voxels."""
    monkeypatch.setattr("evenslice.inference.segmentation.BLOCK_VOXELS", 2 * 70 * 90)
