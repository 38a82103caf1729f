"""Ctrl-C and SIGTERM leave runs that are resumed to the weights of undisturbed ones; progress in a pipe."""

import json
import os
import re
import shlex
import signal

import pytest
import torch
from commands import run_command, wait_until
from tiny_training import RunFiles, finish, run_options, start, start_anew, study_options, trained

import evenslice
from evenslice import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def undisturbed(tiny_run):
    """What a run from beginning to end leaves."""
    return trained(tiny_run.path)


@pytest.fixture
def config(tiny_run):
    return TrainConfig.model_validate(tiny_run.options)


def wait_for_step(process, run, step):
    """Wait until a run has logged a step."""
    log = RunFiles(run).metrics
    logged = re.compile(rf"^{step},.", re.MULTILINE)
    wait_until(lambda: log.exists() and logged.search(log.read_text()), process)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_command_that_is_interrupted_says_how_to_resume_it(
    tiny_inputs, undisturbed, tmp_path, number, status, word
):
    run = tmp_path / "run"
    process = start(tiny_inputs, "train", run_options(tiny_inputs), run, SLOW="0.1")
    wait_for_step(process, run, 30)
    process.send_signal(number)
    out, errors = process.communicate(timeout=200)
    assert (process.returncode, out) == (status, "")
    lines = errors.splitlines()
    assumed = ["network", "slices", "scaling", "data", "training"]
    assert [line.partition(":")[0] for line in lines[:5]] == assumed
    progress = r"train run: \d+/80 steps, loss \d\.\d+, bias [+-]\d\.\d+, validation Dice \d\.\d+, 0:00:\d\d remaining"
    assert re.fullmatch(progress, lines[5])
    said = re.fullmatch(
        rf"{word} at step (\d+) of 80; resume it with: (evenslice train .* --resume)", lines[-1]
    )
    assert said, errors
    assert 30 <= int(said[1]) < 40  # in the middle of an epoch
    assert torch.load(RunFiles(run).last, weights_only=True)["global_step"] == int(said[1])
    again = run_command(*shlex.split(said[2])[1:], "--json", cwd=tiny_inputs)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["steps"] == 80  # a document, and what is for people elsewhere
    assert again.stderr.startswith("network: ")
    assert trained(run) == undisturbed


@pytest.mark.parametrize(
    ("step", "times", "reached"),
    [
        *(pytest.param(step, 1, step + 1, marks=pytest.mark.attack) for step in (0, 1, 19, 79)),
        pytest.param(32, 2, 20, marks=pytest.mark.attack),  # a second signal ends it at once
        (32, 1, 33),
    ],
)
def test_a_run_that_is_interrupted_in_any_step_ends_as_an_undisturbed_one(
    config, undisturbed, tmp_path, monkeypatch, step, times, reached
):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched:
        patched.setenv("INTERRUPT_AT", f"{step + 1} {times}")
        with pytest.raises(KeyboardInterrupt, match=rf"interrupted at step {reached} of 80"):
            evenslice.train(config, tmp_path / "run", progress=False)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    if step == 1:  # as version 0.2 wrote it
        last = RunFiles(tmp_path / "run").last
        checkpoint = torch.load(last)
        del checkpoint["state_dict"]["network.1.evenslice_mirror_average"], checkpoint["evenslice"]["log"]
        torch.save(checkpoint, last)
    evenslice.train(config, tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == undisturbed


@pytest.mark.attack
@pytest.mark.parametrize(("call", "step"), [(0, 1), (2, 41), (4, 80)])
def test_a_validation_that_is_interrupted_ends_first(config, undisturbed, tmp_path, monkeypatch, call, step):
    from evenslice.training import trainer

    original, calls = trainer.validation_score, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == call + 1:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "validation_score", interrupted)
        with pytest.raises(KeyboardInterrupt, match=f"terminated at step {step} of 80"):
            evenslice.train(config, tmp_path / "run", progress=False)
    evenslice.train(config, tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == undisturbed


@pytest.mark.attack
def test_a_test_that_is_interrupted_is_done_by_the_resumed_run(config, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(
            "evenslice.training.trainer.final_scores", lambda *_, **__: signal.raise_signal(signal.SIGINT)
        )
        with pytest.raises(KeyboardInterrupt, match="interrupted at its test"):
            evenslice.train(config, tmp_path / "run", progress=False)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.yaml", "data.json", "log", "checkpoints", "network.safetensors")
    }
    evenslice.train(config, tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == undisturbed


@pytest.mark.attack
def test_a_run_that_is_killed_ends_as_an_undisturbed_one(tiny_inputs, config, undisturbed, tmp_path):
    process = start(tiny_inputs, "train", run_options(tiny_inputs), tmp_path / "run", SLOW="0.1")
    wait_for_step(process, tmp_path / "run", 30)  # in the middle of the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=200)
    evenslice.train(config, tmp_path / "run", resume=True, progress=False)
    assert trained(tmp_path / "run") == undisturbed


@pytest.mark.attack
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize(
    ("more", "number", "begin"),
    [({"workers": 2}, signal.SIGINT, start), ({"devices": 2}, signal.SIGTERM, start_anew)],
)
def test_all_processes_of_a_training_stop_at_the_same_step(
    tiny_inputs, undisturbed, tmp_path, more, number, begin
):
    def ends(run, *arguments):
        """Train to the end; Lightning starts further processes only from a Python of its own."""
        if begin is start:
            return finish(tiny_inputs, "train", options, run, *arguments)
        process = start_anew(tiny_inputs, "train", options, run, *arguments)
        process.communicate(timeout=300)
        return process.returncode

    options, run = run_options(tiny_inputs, **more), tmp_path / "run"
    if begin is start_anew:  # several devices round otherwise than one
        assert ends(tmp_path / "undisturbed") == 0
        undisturbed = trained(tmp_path / "undisturbed")
    process = begin(tiny_inputs, "train", options, run, SLOW="0.1")
    wait_for_step(process, run, 30)
    os.killpg(process.pid, number)  # as a terminal and SLURM do: to all processes
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 128 + number, errors
    assert re.search(r"(interrupted|terminated) at step 3\d of 80; resume it", errors.splitlines()[-1]), (
        errors
    )
    assert "Traceback" not in errors
    assert ends(run, "--resume") == 0
    assert trained(run)["weights"] == undisturbed["weights"]
    assert RunFiles(run).result.exists()


@pytest.mark.attack
def test_a_study_with_workers_that_is_terminated_ends_in_order(tiny_inputs, tmp_path):
    options, out = study_options(tiny_inputs), tmp_path / "out"
    environment = {"SLOW": "0.1", "PYTHONPATH": str(tiny_inputs)}
    process = start(tiny_inputs, "study", options, out, "--workers", "2", **environment)
    wait_until(lambda: list(out.glob("runs/*/log/metrics.csv")), process)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1] == "terminated; repeat the command to resume the study"
    assert "Traceback" not in errors
