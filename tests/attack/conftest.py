"""What attacks share: the command line within this process, and small blocks."""

import pytest


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
