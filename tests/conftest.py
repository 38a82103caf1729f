"""Fixtures that several test files share."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("evenslice", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("evenslice")

SHARED = Path(os.environ.get("EVENSLICE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True)
def _as_before():
    """A command limits the memory of its process, and lets an interrupt end it, which here is that of the tests."""
    before, limits = signal.getsignal(signal.SIGINT), resource.getrlimit(resource.RLIMIT_DATA)
    yield
    signal.signal(signal.SIGINT, before)
    resource.setrlimit(resource.RLIMIT_DATA, limits)


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
