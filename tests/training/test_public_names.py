"""What users call by public names: configurations as paths, dicts and objects, and audits of a run."""

import json
import os
import sys
from pathlib import Path

import pytest
import tiny_training

import evenslice
from evenslice import ConfigError, TrainConfig, cli
from evenslice._core import to_yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of data and of networks to import; the current one."""
    folder = tiny_training.write_inputs(tmp_path_factory.mktemp("names"))
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("tiny_networks", None)
    os.chdir(before)


@pytest.fixture(scope="module")
def options(folder):
    made = tiny_training.training_options(folder, steps=4, validate_every=4, monitor_every=None, stress=False)
    made["model"]["step"] = 2
    made["data"] |= {"validation_fraction": 0, "train": [{**tiny_training.PAIR, "slices": [0, 15]}]}
    made["data"] |= {"test": [{**tiny_training.PAIR, "slices": [17, 24]}]}
    made["data"] |= {"intensity": [0, 200], "label_values": [0, 1]}
    return made


@pytest.fixture(scope="module")
def trained(folder, options):
    evenslice.train(options, folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line within this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def test_a_training_is_the_same_from_a_path_a_dict_and_an_object(folder, options, trained):
    config = TrainConfig.model_validate(options)
    (folder / "train.yaml").write_text(to_yaml(config))
    assert evenslice.load_config("train.yaml", TrainConfig) == config
    for given in (Path("train.yaml"), "train.yaml", config):
        # A finished run is not changed; other options than its own would be an error.
        assert evenslice.train(given, trained, resume=True)["steps"] == 4


def test_what_is_wrong_in_a_dict_has_its_place(options):
    wrong = {**options, "training": {"stepps": 4}}
    with pytest.raises(ConfigError, match=r"^training.stepps: no such option; did you mean 'steps'"):
        evenslice.train(wrong, "nowhere")
    with pytest.raises(ConfigError, match=r"^no_such\.yaml: cannot be read"):
        evenslice.train("no_such.yaml", "nowhere")
    with pytest.raises(ConfigError, match="configuration of type int: give a YAML file, a dict"):
        evenslice.train(3, "nowhere")
    with pytest.raises(ConfigError, match=r"^arms: is missing"):
        evenslice.study({"datasets": []}, "nowhere")


AUDIT = ("audit", "--volume", "image.npy", "--max-windows", "8", "--json")


def test_an_audit_of_a_run_reads_as_the_run_did(trained, run):
    network = ("--run", trained, "--model", "tiny_networks:tiny")
    code, out, err = run(*AUDIT, *network)
    assert code == 0, err
    by_run = json.loads(out)
    weights = ("--model", "tiny_networks:tiny", "--weights", trained / "network.safetensors")
    code, out, err = run(*AUDIT, *weights, "--step", "2", "--intensity", "0", "200")
    by_hand = json.loads(out)
    code, out, err = run(*AUDIT, *weights)
    by_file = json.loads(out)
    assert by_run["shares"] == by_hand["shares"] == by_file["shares"]
    assert by_run["step"] == by_file["step"] == 2
    code, out, err = run(*AUDIT, *network, "--intensity", "0", "255")
    assert json.loads(out)["shares"] != by_hand["shares"]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["--step", "1"], "--step"),
        (["--slices", "5"], "--slices"),
        (["--strategy", "uniform"], "--strategy"),
        (["--tie", "mirror"], "--tie"),
        (["--classes", "2"], "--classes"),
        (["--weights", "none"], "--weights"),
    ],
)
def test_what_a_run_determines_cannot_be_given(trained, run, more, name):
    code, _, err = run(*AUDIT, "--run", trained, "--model", "tiny_networks:tiny", *more)
    assert code == 2
    assert f"{name}: the run {trained} determines it; omit it, or omit --run" in err


def test_an_audit_needs_a_network(run):
    code, _, err = run(*AUDIT)
    assert (code, err.strip()) == (2, "error: no network given; give --run, or --model and --weights")
