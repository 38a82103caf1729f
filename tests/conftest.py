"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("evenslice", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("evenslice")

SHARED = Path(os.environ.get("EVENSLICE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True)
def _interrupts():
    """A command that was interrupted lets the next interrupt end the process, which here is that of the tests."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def _folder(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {name} beside the repository; set EVENSLICE_SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real volumes."""
    return _folder("data")


@pytest.fixture(scope="session")
def shared_weights():
    """The folder of real pretrained weights."""
    return _folder("weights")


@pytest.fixture
def float64_by_default():
    """As after ``torch.set_default_dtype(torch.float64)``, which some notebooks begin with."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
