"""What attacks share: data and networks of trainings, the command line within this process, and small blocks."""

import pytest
import torch
from tiny_training import write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of data and networks; the current one."""
    folder, threads = write_inputs(tmp_path_factory.mktemp("inputs")), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def command(command):
    """Run the command line within this process; return its status and its errors, without what a training assumes."""

    def run(*arguments):
        done = command(*arguments)
        assumed = ("network: ", "slices: ", "scaling: ", "data: ", "training: ", "test: ")
        lines = done.stderr.splitlines(keepends=True)
        return done.returncode, "".join(line for line in lines if not line.startswith(assumed))

    return run


@pytest.fixture
def small_blocks(monkeypatch):
    """Let segmentations write blocks of two slices of 70 x 90 voxels."""
    monkeypatch.setattr("evenslice.inference.segmentation.BLOCK_VOXELS", 2 * 70 * 90)
