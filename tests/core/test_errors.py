"""Errors: one line for each reader, who sees an option as they write it."""

import pickle

import numpy as np
import pytest

import evenslice
from evenslice import ConfigError, EvensliceError, MissingExtraError, VolumeError
from evenslice._core import did_you_mean, errors, needs_extra, option, reason, spelled_on_command_line


def test_every_error_stands_in_the_documented_tree_under_the_public_name():
    kinds = {ConfigError, EvensliceError, MissingExtraError, VolumeError}
    kinds |= {evenslice.ModelError, evenslice.OutputError}
    assert kinds == {item for item in vars(errors).values() if isinstance(item, type)} & kinds
    assert all(issubclass(item, EvensliceError) and item.__module__ == "evenslice" for item in kinds)
    assert all(item.__name__ in errors.__doc__ for item in kinds)
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


def test_suggestions_and_reasons_are_one_short_line():
    text = did_you_mean("unifrm", [*(f"network_{i}" for i in range(100)), "uniform"])
    assert text.startswith("did you mean 'uniform'?")
    assert text.endswith("(101 in all)")
    assert len(text) < 200
    assert reason(ValueError("\n\tbad \x1b[31m\nsecond line")) == "bad ?[31m"
    assert len(reason(ValueError("x" * 1000))) == 300


def test_secrets_are_hidden_in_an_address_that_lost_a_slash_and_nothing_else_is():
    assert str(ConfigError("at s3:/me:pass@b/x.zarr?sig=1, and more")) == "at s3:/***@b/x.zarr?***, and more"
    for path in ("file.h5:/a@b?c", "out.zarr:/a@b?c", "C:/a@b?c"):
        assert str(ConfigError(path)) == path


@pytest.mark.parametrize(
    ("name", "value", "python", "shell"),
    [
        ("fill", None, "fill", "--fill"),
        ("batch", np.int64(0), "batch=0", "--batch 0"),
        ("max_windows", 5, "max_windows=5", "--max-windows 5"),
        ("spacing", np.array([4.0, 1.0]), "spacing=[4.0, 1.0]", "--spacing 4.0 1.0"),
        ("label_values", [0, 255], "label_values=[0, 255]", "--label-values 0,255"),
        ("select", {"t": 0, "c": 1}, "select={'t': 0, 'c': 1}", "--select t=0 --select c=1"),
    ],
)
def test_each_reader_sees_their_own_spelling_in_any_process(name, value, python, shell):
    error = ConfigError(f"before {option(name, value)} and {option(name, value)} after")
    for found in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301  # our own
        assert str(found) == f"before {python} and {python} after"
        assert found.render(spelled_on_command_line) == f"before {shell} and {shell} after"


def test_a_place_in_a_configuration_names_its_options():
    error = VolumeError(f"a.tif: holds NaN; give {option('fill')}")
    placed = error.within("data.train[0].image", lambda name, _: f"data.{name}")
    assert type(placed) is VolumeError
    assert str(placed) == "data.train[0].image: a.tif: holds NaN; give data.fill"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\0b.tif: no such file", "a?b.tif: no such file"), ("\0\x1fnot json\0\x1f", "not json"), ("", "")],
)
def test_a_text_that_holds_the_mark_is_shown_without_it(text, shown):
    assert str(ConfigError(text)) == shown
