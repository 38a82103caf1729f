"""An option named in an error reads as each reader writes it: in Python, on the command line, in a configuration."""

import pickle

import numpy as np
import pytest
import torch

import evenslice
from evenslice._core.errors import ConfigError, EvensliceError, VolumeError, option, spelled_on_command_line
from evenslice.auditing.attribution import check_method_of
from evenslice.auditing.targets import parse_target, resolve_target
from evenslice.inference.devices import choose_device, choose_dtype
from evenslice.inference.onnx_networks import load_onnx
from evenslice.inference.prediction import class_map
from evenslice.neutralizing.network_files import load_network
from evenslice.neutralizing.strategies import check_tie, find_strategy
from evenslice.volumes.scaling import Scaling

CASES = [
    ("fill", None, "fill", "--fill"),
    ("batch", np.int64(0), "batch=0", "--batch 0"),
    ("max_windows", 5, "max_windows=5", "--max-windows 5"),
    ("axes", "tzyx", "axes='tzyx'", "--axes tzyx"),
    ("spacing", np.array([4.0, 1.0]), "spacing=[4.0, 1.0]", "--spacing 4.0 1.0"),
    ("tile", [64, 96], "tile=[64, 96]", "--tile 64 96"),
    ("strategy", (0.2, 0.6, 0.2), "strategy=[0.2, 0.6, 0.2]", "--strategy 0.2,0.6,0.2"),
    ("label_values", [0, 255], "label_values=[0, 255]", "--label-values 0,255"),
    ("select", {"t": 0, "c": 1}, "select={'t': 0, 'c': 1}", "--select t=0 --select c=1"),
]


@pytest.mark.parametrize(("name", "value", "python", "shell"), CASES)
def test_each_reader_sees_their_own_spelling(name, value, python, shell):
    error = ConfigError(f"before {option(name, value)} and {option(name, value)} after")
    assert str(error) == f"before {python} and {python} after"
    assert error.render(spelled_on_command_line) == f"before {shell} and {shell} after"


@pytest.mark.parametrize(
    ("call", "shell"),
    [
        (lambda: check_method_of(np.asarray, "gradient"), "--method gradient: needs gradients"),
        (lambda: parse_target("foo"), "--target foo: known"),
        (lambda: resolve_target("predicted", torch.zeros(1, 8, 8)), "--target predicted: needs logits"),
        (
            lambda: choose_dtype("float8", torch.device("cpu")),
            "--dtype float8: did you mean 'float32'? known",
        ),
        (lambda: choose_dtype("float16", torch.device("cpu")), "--dtype float16: is for GPUs"),
        (lambda: choose_device("toaster"), "--device toaster: is not available here"),
        (lambda: find_strategy("foo", 3), "--strategy foo: known"),
        (lambda: check_tie("foo"), "--tie foo: known: mirror, uniform; omit it to leave the slices free"),
        (lambda: Scaling(3, 1), "--intensity 3.0 1.0: the first must be below the second"),
        (lambda: evenslice.open_volume(np.zeros((2, 2, 2)), axes="xyq"), "--axes xyq: give one letter"),
        (
            lambda: evenslice.open_volume(np.zeros((2, 2, 2)), level=2),
            "has only one resolution level; omit --level 2",
        ),
        (lambda: load_onnx("none.onnx", std=0), "--std 0.0: give finite numbers"),
        (lambda: class_map(torch.zeros(2, 4, 4), 3), "build it with --classes 3"),
        (
            lambda: load_network("timm:vit_tiny_patch16_224", "none", strategy="twin"),
            "or symmetrize the network instead (--symmetrize output)",
        ),
    ],
)
def test_errors_about_an_option_name_it_as_the_command_line_does(call, shell):
    with pytest.raises(EvensliceError) as raised:
        call()
    assert shell in raised.value.render(spelled_on_command_line)


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
