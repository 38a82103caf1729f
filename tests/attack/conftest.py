"""What the attacks on trainings and studies share."""

import os
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import write_inputs


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
