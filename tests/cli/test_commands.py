"""What all commands have in common: options in groups, each with a help text; completion; options that are shared."""

import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Annotated, get_args

import numpy as np
import pytest
import typer
from typer.main import get_command

import evenslice
from evenslice.auditing.attribution import METHODS
from evenslice.auditing.surveyor import DRAWS, WINDOWS
from evenslice.cli import main, options
from evenslice.cli.app import app
from evenslice.cli.option_groups import grouped
from evenslice.networks.weight_files import SUFFIXES
from evenslice.neutralizing.averages import OUTPUT
from evenslice.neutralizing.strategies import STRATEGIES
from evenslice.neutralizing.ties import TIES
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
SHARED = {"audit": ["--model", "m:f", "--weights", "none"], "segment": ["--run", "run", "--out", "out.tif"]}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line within this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def complete(*words):
    """Return what a shell would offer for the last word."""
    variables = {
        "_EVENSLICE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["evenslice", *words]),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-m", "evenslice"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_every_command_is_tested_here():
    assert set(COMMANDS) == set(GROUPS)


@pytest.mark.parametrize("command", GROUPS)
@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_help_shows_the_options_in_their_groups(run, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = run(command, "--help")
    assert code == 0
    assert [name for name in re.findall(r"╭─ (\w+) ─", out) if name != "Arguments"] == GROUPS[command]
    assert max(map(len, out.splitlines())) <= int(columns)


@pytest.mark.parametrize("command", GROUPS)
def test_every_option_has_a_help_text_that_is_a_sentence(command):
    for parameter in COMMANDS[command].params:
        assert re.fullmatch(r"[A-Z].*\.", parameter.help), parameter.name
    assert COMMANDS[command].help.endswith(".")


def test_the_help_says_what_a_run_or_a_saved_network_settles():
    named = {parameter.name: parameter.help for parameter in COMMANDS["audit"].params}
    for name in (*options.READ, *options.LABELS):
        assert "of the run or saved network" in named[name], name
    for suffix in SUFFIXES:
        assert suffix in named["weights"]
    assert "exported folder" in named["weights"]
    assert "one for each volume, in the same order" in named["labels"]


def test_the_values_that_are_listed_are_those_of_the_library():
    assert sorted(options.STRATEGIES) == sorted(STRATEGIES)
    assert sorted(options.METHODS) == sorted(METHODS)
    assert options.TIES == TIES
    assert get_args(Plane) == options.PLANES
    assert options.OUTPUT == OUTPUT


def test_the_help_of_survey_says_that_it_takes_several_networks(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run("survey", "--help")
    assert re.search(r"\[OPTIONS\] \{?SPEC\}?\.\.\.\s", out)


@pytest.mark.parametrize("command", ["audit", "evaluate", "export", "segment", "symmetrize"])
def test_the_help_says_which_network_a_command_needs(command):
    named = {parameter.name: parameter.help for parameter in COMMANDS[command].params}
    assert "Give --run, or --model with --weights." in named["run"]
    assert ("onnx" in named["model"]) == (command != "export")
    assert ".onnx" not in named["weights"]


@pytest.mark.parametrize("command", ["audit", "evaluate", "info", "segment"])
def test_options_of_volumes_speak_of_labels_only_where_there_are_some(command):
    named = {parameter.name: parameter.help for parameter in COMMANDS[command].params}
    for name in ("axes", "region"):
        assert ("labels" in named[name]) == ("labels" in named), name


def test_export_refuses_an_unknown_format_before_it_loads_the_network(run):
    code, out, err = run(
        "export", "--model", "timm:test_resnet", "--weights", "none", "--to", "foo", "--out", "out"
    )
    assert (code, out) == (2, "")
    assert err == "error: --to foo: known: bioimageio, huggingface, onnx\n"


def test_survey_has_the_defaults_of_the_library():
    defaults = {parameter.name: parameter.default for parameter in COMMANDS["survey"].params}
    assert (defaults["windows"], defaults["draws"]) == (WINDOWS, DRAWS)


@pytest.mark.parametrize(
    "command", ["audit", "evaluate", "export", "neutralize", "segment", "survey", "symmetrize"]
)
def test_options_have_the_defaults_of_the_function(command):
    defaults = {parameter.name: parameter.default for parameter in COMMANDS[command].params}
    settled = {
        "step",
        "plane",
        "other_labels",
        "slices",
    }  # by a run, a saved network or the network itself, if not given
    shared = 0
    for name, parameter in inspect.signature(getattr(evenslice, command)).parameters.items():
        if name in defaults and parameter.default is not parameter.empty:
            assert defaults[name] == parameter.default or (defaults[name] is None and name in settled), name
            shared += 1
    assert shared >= 1


def test_the_completion_script_is_printed():
    variables = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "evenslice", "--show-completion", "bash"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    assert "complete -o default -F _evenslice_completion evenslice" in done.stdout


def test_completion_is_offered_in_the_help(run):
    _, out, _ = run("--help")
    assert "--install-completion" in out
    assert "--show-completion" in out


def test_the_help_of_the_program_shows_no_values_of_flags(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("--help")
    panel = out.partition("╭─ Options ")[2].partition("╰")[0]
    assert re.findall(r"^│ (--\S+)(?: +-h)? {2,}[A-Z]", panel, re.MULTILINE) == [
        "--debug",
        "--version",
        "--install-completion",
        "--show-completion",
        "--help",
    ]
    assert "<" not in panel


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["aud"], ["audit"]),
        (["audit", "--strategy", "m"], ["mirror", "mixer"]),
        (["audit", "--method", "gradient_"], ["gradient_shap"]),
        (["audit", "--target", "p"], ["predicted"]),
        (["neutralize", "--tie", ""], ["mirror", "uniform"]),
        (["segment", "--dtype", "f"], ["float16", "float32"]),
        (["survey", "--device", "c"], ["cpu", "cuda"]),
        (["report", ""], []),  # the shell offers files
    ],
)
def test_completion_of_values(words, offered):
    assert complete(*words) == offered


def test_the_options_that_audit_and_segment_share_are_declared_alike():
    by_name = {
        command: {parameter.name: parameter for parameter in COMMANDS[command].params} for command in SHARED
    }
    shared = set(by_name["audit"]) & set(by_name["segment"])
    assert shared >= {
        *("slices", "step", "classes", "mean", "std", "axes", "select", "level", "intensity", "fill"),
        *("tile", "batch", "dtype", "device", "workers", "scheduler", "force", "json"),
    }
    # Which say what they are for, or whose default differs.
    for name in shared - {"weights", "volume", "axes", "region", "tile", "dtype", "out"}:
        one, other = (
            {
                key: getattr(by_name[command][name], key)
                for key in ("opts", "default", "help", "rich_help_panel")
            }
            for command in SHARED
        )
        assert one == other


@pytest.mark.parametrize("command", SHARED)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fill", "none"], "Invalid value for '--fill'"),
        (["--mean", "half"], "Invalid value for '--mean': half: numbers are needed"),
        (["--select", "t"], "Invalid value for '--select': t: an axis and a whole number are needed"),
        (["--tile", "32"], "--tile"),
        (["--select", "c=1"], "four.npy: .*--axes"),
        (["--axes", "czyx", "--select", "q=1"], "four.npy: .*q"),
    ],
)
def test_a_shared_option_behaves_alike_in_audit_and_segment(
    run, tmp_path, monkeypatch, command, arguments, message
):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    np.save("four.npy", np.zeros((2, 8, 8, 8), np.uint8))
    code, out, err = run(command, *SHARED[command], "--volume", "four.npy", *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err), err


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_a_seed_out_of_range(run, seed):
    code, _, err = run("demo", "--seed", seed)
    assert code == 2
    assert err == f"error: Invalid value for '--seed': {seed} is not between 0 and 2**63 - 1\n"


@pytest.mark.parametrize("command", ["train", "study"])
def test_what_a_library_prints_stays_out_of_the_json(run, monkeypatch, tmp_path, command):
    room = {"train": "training", "study": "studying"}[command]

    def talk(*_, **__):
        sys.stdout.write("a library talks\n")
        return {"failed": []}

    monkeypatch.setattr(f"evenslice.{room}.{command}", talk)
    config = SimpleNamespace(datasets=(), training=SimpleNamespace(task="classification"))
    monkeypatch.setattr("evenslice._core.load_config", lambda *_: config)
    monkeypatch.setattr("evenslice.cli.tables.run_table", lambda *_: "")
    monkeypatch.setattr("evenslice.report.tables_of_study", lambda *_: ())
    code, out, err = run(command, "some.yaml", "--json", "--out", str(tmp_path / "out"))
    assert (code, json.loads(out)) == (0, {"failed": []}), err
    assert "a library talks" in err


@pytest.mark.parametrize("command", ["audit", "survey", "demo"])
def test_what_the_report_needs_is_checked_before_anything_is_audited(run, monkeypatch, tmp_path, command):
    """Without ``--out`` there is no report, and nothing is missing."""
    started = []
    for name in (
        "evenslice.auditing.audit",
        "evenslice.auditing.survey",
        "evenslice.cli.demonstration.run_demo",
    ):
        monkeypatch.setattr(name, lambda *_, **__: started.append(1) or [])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    np.save(tmp_path / "volume.npy", np.zeros((9, 32, 32), np.uint8))
    volume = ["--volume", str(tmp_path / "volume.npy")]
    network = ["--model", "smp:Unet/tu-test_resnet", "--weights", "none", *volume]
    arguments = {"audit": network, "survey": ["timm:test_resnet"], "demo": []}[command]
    code, _, err = run(command, *arguments, "--out", str(tmp_path / "out"))
    assert (code, started) == (2, []), err
    assert "needs the package 'jinja2'" in err
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True, kw_only=True)
class Pair:
    first: Annotated[int, typer.Option(help="One.")] = 1
    second: Annotated[str, typer.Option(help="Two.")]


def test_a_group_becomes_one_option_for_each_field():
    taken = []
    small = typer.Typer(add_completion=False)

    @small.command()
    @grouped
    def command(*, pair: Pair, third: Annotated[float, typer.Option(help="Three.")] = 3.0) -> None:
        taken.append((asdict(pair), third))

    assert [parameter.name for parameter in get_command(small).params] == ["second", "first", "third"]
    small(["--second", "b", "--first", "7"], standalone_mode=False)
    assert taken == [({"first": 7, "second": "b"}, 3.0)]


def test_two_options_of_one_name_are_refused():
    with pytest.raises(ValueError, match="duplicate parameter name: 'first'"):

        @grouped
        def command(*, pair: Pair, first: int = 0) -> None: ...
