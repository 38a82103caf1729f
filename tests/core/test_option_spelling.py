"""An option named in an error reads as each reader writes it: in Python, on the command line, in a configuration."""

import pickle

import numpy as np
import pytest

import evenslice
from evenslice._core.errors import ConfigError, VolumeError, option, spelled_on_command_line

CASES = [
    ("fill", None, "fill", "--fill"),
    ("batch", np.int64(0), "batch=0", "--batch 0"),
    ("max_windows", 5, "max_windows=5", "--max-windows 5"),
    ("axes", "tzyx", "axes='tzyx'", "--axes tzyx"),
    ("tile", [64, 96], "tile=[64, 96]", "--tile 64 96"),
    ("label_values", [0, 255], "label_values=[0, 255]", "--label-values 0,255"),
    ("select", {"t": 0, "c": 1}, "select={'t': 0, 'c': 1}", "--select t=0 --select c=1"),
]


@pytest.mark.parametrize(("name", "value", "python", "shell"), CASES)
def test_each_reader_sees_their_own_spelling(name, value, python, shell):
    error = ConfigError(f"before {option(name, value)} and {option(name, value)} after")
    assert str(error) == f"before {python} and {python} after"
    assert error.render(spelled_on_command_line) == f"before {shell} and {shell} after"


def test_a_place_in_a_configuration_names_its_options():
    error = VolumeError(f"a.tif: holds NaN; give {option('fill')}")
    placed = error.within("data.train[0].image", lambda name, _: f"data.{name}")
    assert type(placed) is VolumeError
    assert str(placed) == "data.train[0].image: a.tif: holds NaN; give data.fill"


def test_errors_travel_between_processes_with_their_options():
    error = pickle.loads(pickle.dumps(ConfigError(f"give {option('workers')}")))  # noqa: S301  # our own
    assert error.render(spelled_on_command_line) == "give --workers"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\0b.tif: no such file", "a?b.tif: no such file"),
        ("\0\x1fnot json\0\x1f", "not json"),
        ("\0\x1f[1]\0\x1f", "[1]"),
        ("", ""),
        ("\0", "?"),
    ],
)
def test_a_text_that_holds_the_mark_is_shown_without_it(text, shown):
    assert str(ConfigError(text)) == shown


def test_tracebacks_name_the_public_home():
    assert f"{VolumeError.__module__}.{VolumeError.__qualname__}" == "evenslice.VolumeError"
    assert evenslice.VolumeError is VolumeError
