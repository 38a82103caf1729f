"""What users call by public names: configurations as paths, dicts and objects, and audits of a run."""

import json
from pathlib import Path

import pytest

import evenslice
from evenslice import ConfigError, TrainConfig


def test_a_training_is_the_same_from_a_path_a_dict_and_an_object(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.model_validate(tiny_run.options)
    Path("train.yaml").write_text(json.dumps(tiny_run.options))
    assert evenslice.load_config("train.yaml", TrainConfig) == config
    for given in (Path("train.yaml"), "train.yaml", tiny_run.options, config):
        # A finished run is not changed; other options than its own would be an error.
        assert evenslice.train(given, tiny_run.path, resume=True)["steps"] == 80


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        (
            evenslice.train,
            {"training": {"stepps": 4}},
            r"training.stepps: no such option; did you mean 'steps'",
        ),
        (evenslice.train, "no_such.yaml", r"^no_such\.yaml: cannot be read"),
        (evenslice.train, 3, "configuration of type int: give a YAML file, a dict"),
        (evenslice.study, {"datasets": []}, r"^arms: is missing"),
    ],
)
def test_what_is_wrong_in_a_configuration_has_its_place(call, given, message):
    with pytest.raises(ConfigError, match=message):
        call(given, "nowhere")


AUDIT = ("audit", "--max-windows", "8", "--json")
NETWORK = ("--model", "tiny_networks:tiny")


@pytest.mark.parametrize(
    "more",
    [["--step", "1"], ["--slices", "5"], ["--strategy", "uniform"], ["--weights", "none"]],
)
def test_what_a_run_determines_cannot_be_given(tiny_run, command, more):
    done = command(*AUDIT, "--volume", tiny_run.folder / "image.npy", "--run", tiny_run.path, *NETWORK, *more)
    assert done.returncode == 2
    assert f"{more[0]}: the run {tiny_run.path} determines it; omit it, or omit --run" in done.stderr
