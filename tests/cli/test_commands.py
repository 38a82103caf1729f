"""What all commands have in common: options in groups, each with a help text; completion; options that are shared."""

import inspect
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from typer.main import get_command

import evenslice
from evenslice.cli import options
from evenslice.cli.app import app
from evenslice.neutralizing.strategies import STRATEGIES
from evenslice.volumes.volume import Plane

COMMANDS = get_command(app).commands
GROUPS = {
    "demo": ["Computing", "Output"],
    "info": ["Volume", "Output"],
    "audit": ["Network", "Volume", "Measurement", "Computing", "Output"],
    "neutralize": ["Network", "Computing", "Output"],
    "symmetrize": ["Network", "Output"],
    "survey": ["Network", "Volume", "Measurement", "Computing", "Output"],
    "train": ["Computing", "Output"],
    "segment": ["Network", "Volume", "Computing", "Output"],
    "evaluate": ["Network", "Volume", "Measurement", "Computing", "Output"],
    "study": ["Computing", "Output"],
    "export": ["Network", "Volume", "Output"],
    "report": ["Output"],
}
NAMED = {
    command: {parameter.name: parameter for parameter in found.params} for command, found in COMMANDS.items()
}


@pytest.mark.parametrize("command", GROUPS)
def test_the_help_shows_the_options_in_their_groups_each_with_a_sentence(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert [name for name in re.findall(r"╭─ (\w+) ─", out) if name != "Arguments"] == GROUPS[command]
    assert max(map(len, out.splitlines())) <= 80
    for parameter in NAMED[command].values():
        assert re.fullmatch(r"[A-Z].*\.", parameter.help), parameter.name
    assert COMMANDS[command].help.endswith(".")


def test_the_values_that_are_listed_are_those_of_the_library():
    assert sorted(options.STRATEGIES) == sorted(STRATEGIES)
    assert get_args(Plane) == options.PLANES


@pytest.mark.parametrize(
    "command", ["audit", "evaluate", "export", "neutralize", "segment", "survey", "symmetrize"]
)
def test_options_have_the_defaults_of_the_function(command):
    settled = {"step", "plane", "other_labels", "slices"}  # by a run, a saved network or the network itself
    shared = 0
    for name, parameter in inspect.signature(getattr(evenslice, command)).parameters.items():
        if name in NAMED[command] and parameter.default is not parameter.empty:
            default = NAMED[command][name].default
            assert default == parameter.default or (default is None and name in settled), name
            shared += 1
    assert shared >= 1


def test_the_help_of_the_program_shows_no_values_of_flags(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = cli("--help")
    assert all(command in out for command in GROUPS)
    panel = out.partition("╭─ Options ")[2].partition("╰")[0]
    assert {"--debug", "--version", "--install-completion", "--help"} <= set(re.findall(r"--[a-z-]+", panel))
    assert "<" not in panel


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["aud"], ["audit"]),
        (["audit", "--strategy", "m"], ["mirror", "mixer"]),
        (["segment", "--dtype", "f"], ["float16", "float32"]),
        (["report", ""], []),  # the shell offers files
    ],
)
def test_completion_of_values(words, offered):
    variables = {
        "_EVENSLICE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["evenslice", *words]),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-m", "evenslice"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


@pytest.mark.parametrize("command", ["train", "study"])
def test_what_a_library_prints_stays_out_of_the_json(cli, monkeypatch, tmp_path, command):
    result = {"failed": [], "comparisons": [], "steps": 1, "seconds": 1, "validation": None, "bias": None}

    def talk(*_, **__):
        sys.stdout.write("a library talks\n")
        return result

    monkeypatch.setattr(f"evenslice.{command}", talk)
    config = SimpleNamespace(datasets=(), training=SimpleNamespace(task="classification"))
    monkeypatch.setattr("evenslice.load_config", lambda *_: config)
    monkeypatch.setattr("evenslice.report.tables_of", lambda _: ())
    code, out, err = cli(command, "some.yaml", "--json", "--out", tmp_path / "out")
    assert (code, json.loads(out)) == (0, result), err
    assert "a library talks" in err


@pytest.mark.parametrize("command", ["audit", "survey", "demo"])
def test_what_the_report_needs_is_checked_before_anything_is_audited(cli, monkeypatch, tmp_path, command):
    started = []
    for name in ("evenslice.audit", "evenslice.survey", "evenslice.cli.demo._audits"):
        monkeypatch.setattr(name, lambda *_, **__: started.append(1) or [])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    np.save(tmp_path / "volume.npy", np.zeros((9, 32, 32), np.uint8))
    source = ["--model", "smp:Unet/tu-test_resnet", "--weights", "none", "--volume", tmp_path / "volume.npy"]
    arguments = {"audit": source, "survey": ["timm:test_resnet"], "demo": []}[command]
    code, _, err = cli(command, *arguments, "--out", tmp_path / "out")
    assert (code, started) == (2, []), err
    assert "needs the package 'jinja2'" in err
    assert not (tmp_path / "out").exists()
