"""Errors: one line for each reader, who sees an option as they write it."""

import pickle

import numpy as np
import pytest
from torch import nn

import evenslice
from evenslice import (
    Compute,
    ConfigError,
    EvensliceError,
    MissingExtraError,
    ModelError,
    Reading,
    open_volume,
)
from evenslice._core import needs_extra

VOLUME = np.zeros((4, 8, 8), np.float32)


def test_every_error_stands_in_the_documented_tree_under_the_public_name():
    public = [getattr(evenslice, name) for name in evenslice.__all__ if name.endswith("Error")]
    assert set(EvensliceError.__subclasses__()) == set(public) - {EvensliceError}
    assert all(issubclass(item, EvensliceError) and item.__module__ == "evenslice" for item in public)
    assert issubclass(MissingExtraError, ImportError)


def test_the_innermost_of_missing_extras_is_named():
    with pytest.raises(
        MissingExtraError, match=r"^flying needs the package 'no_such_package'.*evenslice\[wings\]"
    ):
        with needs_extra("airport", "travelling"), needs_extra("wings", "flying"):
            import no_such_package  # noqa: F401


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libhdf5.so.310: cannot open shared object file"),
        ImportError("cannot import name 'File' from 'h5py'", name="h5py"),
        ModuleNotFoundError("No module named 'yaml._yaml'", name="yaml._yaml"),
    ],
)
def test_a_damaged_installation_is_not_taken_for_a_missing_package(error):
    with pytest.raises(MissingExtraError, match="^flying fails, because an installed package is damaged"):
        with needs_extra("wings", "flying"):
            raise error


def test_the_reason_of_an_error_is_one_short_line():
    def fails(_windows):
        raise ValueError("\n\tbad \x1b[31m" + 1000 * "x" + "\nsecond line")

    with pytest.raises(ModelError, match=r"ValueError: bad \?\[31mx+") as caught:
        evenslice.segment(fails, VOLUME)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_secrets_are_hidden_in_an_address_that_lost_a_slash_and_nothing_else_is():
    assert str(ConfigError("at s3:/me:pass@b/x.zarr?sig=1, and more")) == "at s3:/***@b/x.zarr?***, and more"
    for path in ("file.h5:/a@b?c", "out.zarr:/a@b?c", "C:/a@b?c"):
        assert str(ConfigError(path)) == path


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (lambda: Compute(batch=np.int64(0)), "batch=0: "),
        (lambda: Reading(intensity=np.array([9.0, 2.0])), "intensity=[9.0, 2.0]: "),
        (lambda: open_volume(VOLUME, spacing=np.array([4.0, 0, 1])), "spacing=[4.0, 0.0, 1.0]: "),
        (lambda: open_volume(VOLUME[None], axes="tzyx", select={"t": 9}), "select={'t': 9}"),
        (lambda: evenslice.segment(nn.Conv2d(3, 2, 1), VOLUME * np.nan), "fill"),
    ],
)
def test_an_option_is_spelled_as_in_python_in_any_process(call, option):
    """The command line spells it --batch 0: see tests/cli/test_failures.py; a configuration by its place."""
    with pytest.raises(EvensliceError) as caught:
        call()
    assert option in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  # our own


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\0b.tif: no such file", "a?b.tif: no such file"), ("\0\x1fnot json\0\x1f", "not json"), ("", "")],
)
def test_a_text_that_holds_the_mark_is_shown_without_it(text, shown):
    assert str(ConfigError(text)) == shown
