"""Fixtures that several test files share."""

import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_training
import torch
from commands import call
from hypothesis import settings

settings.register_profile("evenslice", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("evenslice")

SHARED = Path(os.environ.get("EVENSLICE_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_runtest_setup():
    """Seed every test, so that none fails for the weights that it happens to draw."""
    torch.manual_seed(0)


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


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory):
    """A folder with ``image.npy``, ``labels.npy`` and the module ``tiny_networks``, which can be imported."""
    folder = tiny_training.write_inputs(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        importlib.import_module("tiny_networks")  # and stays, whatever becomes of the path
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder like ``tiny_inputs``, for the tests of a module alone; the current one."""
    folder, threads = tiny_training.write_inputs(tmp_path_factory.mktemp("inputs")), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread():
    """As many threads as the run of ``tiny_run`` was trained with: others may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_run(tiny_inputs, tmp_path_factory):
    """A finished run of ``tiny_training.run_options``, for all tests that only read one; its options and its folder."""
    from evenslice import train

    path, options = tmp_path_factory.mktemp("run") / "run", tiny_training.run_options(tiny_inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(options, path, progress=False)
    torch.set_num_threads(before)
    return SimpleNamespace(path=path, options=options, folder=tiny_inputs)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command line within this process, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def command(*arguments):
        status, captured = call(*arguments), capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=captured.out, stderr=captured.err)

    return command
