"""Ctrl-C and SIGTERM leave runs that are resumed to the weights of undisturbed ones; progress in a pipe."""

import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import run_command
from tiny_training import (
    finish,
    start,
    start_anew,
    study_options,
    trained,
    training_options,
    write_inputs,
)

from evenslice.training import RunFolder, TrainConfig, fitting, train, trainer
from evenslice.training.callbacks import Interruption, TrainingInterrupted
from evenslice.training.lightning_module import TrainingModule

STEPS = 80


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of data and of a network to import; its network is found as if the folder were the current one."""
    folder, threads = write_inputs(tmp_path_factory.mktemp("interrupted")), torch.get_num_threads()
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """What a run from beginning to end leaves."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config(inputs), run, progress=False)
    return trained(run)


def config(inputs, **training):
    return TrainConfig.model_validate(training_options(inputs, steps=STEPS, **training))


def wait_for_step(process, run, step):
    """Wait until a run has logged a step."""
    log, until = RunFolder(run).metrics, time.monotonic() + 120
    while not log.exists() or not re.search(rf"^{step},.", log.read_text(), re.MULTILINE):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def ends(inputs, options, run, *arguments):
    """Train to the end and return the exit status; Lightning starts further processes only from a Python of its own."""
    if "devices" not in options["training"]:
        return finish(inputs, "train", options, run, *arguments)
    process = start_anew(inputs, "train", options, run, *arguments)
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_command_that_is_interrupted_says_how_to_resume_it(
    inputs, undisturbed, tmp_path, number, status, word
):
    run = tmp_path / "run"
    process = start(inputs, "train", training_options(inputs, steps=STEPS), run, SLOW="0.1")
    wait_for_step(process, run, 30)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    lines = errors.splitlines()
    assert [line.partition(":")[0] for line in lines[:6]] == [
        "network",
        "slices",
        "scaling",
        "data",
        "training",
        "test",
    ]
    progress = r"train run: \d+/80 steps, loss \d\.\d+, bias [+-]\d\.\d+, validation Dice \d\.\d+, 0:00:\d\d remaining"
    assert re.fullmatch(progress, lines[6])
    said = re.fullmatch(
        rf"{word} at step (\d+) of 80; resume it with: (evenslice train .* --resume)", lines[-1]
    )
    assert said, errors
    assert 30 <= int(said[1]) < 40  # in the middle of an epoch
    assert torch.load(RunFolder(run).last, weights_only=True)["global_step"] == int(said[1])
    again = run_command(*shlex.split(said[2])[1:], "--json", cwd=inputs)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["steps"] == STEPS  # a document, and what is for people elsewhere
    assert again.stderr.startswith("network: ")
    assert trained(run) == undisturbed


@pytest.mark.parametrize("step", [0, 1, 19, 32, 79])
def test_a_run_that_is_interrupted_in_any_step_ends_as_an_undisturbed_one(
    inputs, undisturbed, tmp_path, monkeypatch, step
):
    original = TrainingModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(TrainingInterrupted, match=rf"interrupted at step {step + 1} of 80"):
            train(config(inputs), tmp_path / "run", progress=False)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    train(config(inputs), tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == undisturbed


def test_a_checkpoint_of_version_0_2_which_did_not_say_where_it_averages_is_resumed_with_one_warning(
    inputs, undisturbed, tmp_path, monkeypatch
):
    original = TrainingModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 32:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(TrainingInterrupted):
            train(config(inputs), tmp_path / "run", progress=False)
    last = RunFolder(tmp_path / "run").last
    checkpoint = torch.load(last)
    del checkpoint["state_dict"]["network.1.evenslice_mirror_average"]
    torch.save(checkpoint, last)
    with pytest.warns(UserWarning, match="was written by version 0.2, which did not note") as warned:
        train(config(inputs), tmp_path / "run", resume=True, progress=False)
    assert len(warned) == 1
    assert trained(tmp_path / "run") == undisturbed


@pytest.mark.parametrize(("call", "reached"), [(0, "its start"), (2, "step 40 of 80"), (4, "step 80 of 80")])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_validation_that_is_interrupted_is_done_by_the_resumed_run(
    inputs, tmp_path, monkeypatch, call, reached, keep
):
    original, calls = fitting.validation_score, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == call + 1:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the validation goes on")
        return original(*arguments, **options)

    train(config(inputs, keep=keep), tmp_path / "undisturbed", progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "validation_score", interrupted)
        with pytest.raises(TrainingInterrupted, match=f"terminated at {reached}"):
            train(config(inputs, keep=keep), tmp_path / "run", progress=False)
    train(config(inputs, keep=keep), tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == trained(tmp_path / "undisturbed")


def test_a_test_that_is_interrupted_is_done_by_the_resumed_run(inputs, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "final_scores", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        with pytest.raises(TrainingInterrupted, match="interrupted at its test"):
            train(config(inputs), tmp_path / "run", progress=False)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.yaml", "data.json", "log", "checkpoints", "network.safetensors"),
    }
    train(config(inputs), tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == undisturbed


def test_a_second_interrupt_ends_at_once(inputs, undisturbed, tmp_path, monkeypatch):
    original = TrainingModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 32:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the step goes on")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(TrainingInterrupted, match="interrupted at step 20 of 80"):
            train(config(inputs), tmp_path / "run", progress=False)
    train(config(inputs), tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == undisturbed


def test_a_run_that_is_killed_ends_as_an_undisturbed_one(inputs, undisturbed, tmp_path):
    process = start(inputs, "train", training_options(inputs, steps=STEPS), tmp_path / "run", SLOW="0.1")
    wait_for_step(process, tmp_path / "run", 30)  # in the middle of the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    train(config(inputs), tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == undisturbed


def test_signals_that_have_another_meaning_keep_it():
    def other(*_):
        pass

    before = signal.signal(signal.SIGTERM, other)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGTERM) is other
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize(
    ("options", "number"), [({"workers": 2}, signal.SIGINT), ({"devices": 2}, signal.SIGTERM)]
)
def test_all_processes_of_a_training_stop_at_the_same_step(inputs, undisturbed, tmp_path, options, number):
    chosen, begin = training_options(inputs, steps=STEPS, **options), start
    if "devices" in options:  # which round otherwise than one
        begin = start_anew
        assert ends(inputs, chosen, tmp_path / "undisturbed") == 0
        undisturbed = trained(tmp_path / "undisturbed")
    run = tmp_path / "run"
    process = begin(inputs, "train", chosen, run, SLOW="0.1")
    wait_for_step(process, run, 30)
    os.killpg(process.pid, number)  # as a terminal and SLURM do: to all processes
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert re.search(r"(interrupted|terminated) at step 3\d of 80; resume it", errors.splitlines()[-1]), (
        errors
    )
    assert "Traceback" not in errors
    assert ends(inputs, chosen, run, "--resume") == 0
    assert trained(run)["weights"] == undisturbed["weights"]
    assert Path(run, "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True], ids=["one process", "all processes"])
def test_a_study_with_workers_that_is_terminated_ends_in_order(inputs, tmp_path, everywhere):
    options, out = study_options(inputs), tmp_path / "out"
    process = start(inputs, "study", options, out, "--workers", "2", SLOW="0.1", PYTHONPATH=str(inputs))
    until = time.monotonic() + 120
    while not list(out.glob("runs/*/log/metrics.csv")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    if everywhere:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1] == "terminated; repeat the command to resume the study"
    assert "Traceback" not in errors
