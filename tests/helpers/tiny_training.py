"""A network, data and configurations so small that a training takes seconds, for tests that disturb trainings."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import torch
from commands import Command, run_command
from safetensors.torch import load_file
from scipy import ndimage

NETWORKS = """
import os
import signal
import time

import torch
from torch import nn


class Disturbed(nn.Module):
    "In training, takes its time, and stops or is interrupted in some step, as the environment says."

    steps = 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            time.sleep(float(os.environ.get("SLOW", 0)))
            self.steps += 1
            if self.steps == int(os.environ.get("STOP_AT", 0)):
                raise RuntimeError("stopped here")
            step, times = map(int, os.environ.get("INTERRUPT_AT", "0 0").split())
            for _ in range(times if self.steps == step else 0):
                signal.raise_signal(signal.SIGINT)
        return x


def tiny():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1), Disturbed())
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.rand_like(weight) - 0.5)
    return network


def unequal():
    network = tiny()
    with torch.no_grad():
        network[0].weight.copy_((torch.rand(8, 3, 3, 3) - 0.4) * torch.tensor([1.0, 4.0, 0.2]).view(3, 1, 1))
    return network


class Crashing(nn.Module):
    def forward(self, x):
        if self.training:
            raise RuntimeError("no luck,\\ntoday")
        return x


def crashing():
    return nn.Sequential(tiny(), Crashing()).eval()
"""

PAIR = {"image": "image.npy", "labels": "labels.npy"}


class RunFiles:
    """The files of a run of ``train``, and what they hold."""

    def __init__(self, path):
        self.path, self.log = path, path / "log"
        self.config, self.data, self.metrics = (
            path / "config.yaml",
            path / "data.json",
            self.log / "metrics.csv",
        )
        self.last, self.best = (path / "checkpoints" / name for name in ("last.ckpt", "best.safetensors"))
        self.network, self.result = path / "network.safetensors", path / "result.json"

    def read_result(self):
        return json.loads(self.result.read_text())

    def read_metrics(self):
        with self.metrics.open(newline="") as file:
            return [
                {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)
            ]

    def read_weights(self):
        return load_file(self.network)


def same(one, other):
    """Say whether two state dicts are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def write_inputs(folder, shape=(24, 48, 48)):
    """Write blobs under noise and a module of networks into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny_networks.py").write_text(NETWORKS)
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal(shape), (1, 3, 3))
    blobs /= blobs.std()
    image = np.clip(100 + 30 * blobs + 20 * rng.standard_normal(blobs.shape), 0, 255).astype(np.uint8)
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", (blobs > 0.8).astype(np.uint8))
    return folder


def training_options(folder, **training):
    """Return the options of a training of 60 steps, validated every 20 and measured every 30."""
    data = {"name": "blobs", "root": str(folder), "validation_fraction": 0.2}
    own = {"steps": 60, "batch": 2, "crop": [32, 32], "learning_rate": 0.01, "validate_every": 20}
    own |= {"monitor_every": 30, "dtype": "float32", "accelerator": "cpu"}
    return {
        "data": {**data, "train": [{**PAIR, "slices": [0, 18]}], "test": [{**PAIR, "slices": [20, 24]}]},
        "model": {"spec": "tiny_networks:tiny", "weights": "none", "slices": 3},
        "training": {**own, **training},
    }


def run_options(folder, **training):
    """Return those of the run that the tests share: of 80 steps, with windows and intensities that are no defaults."""
    options = training_options(folder, **{"steps": 80, "stress": False, **training})
    options["model"]["step"] = 2
    options["data"] |= {"intensity": [0, 200], "label_values": [0, 1]}
    options["data"] |= {"train": [{**PAIR, "slices": [0, 15]}], "test": [{**PAIR, "slices": [17, 24]}]}
    return options


def study_options(folder, **changes):
    """Return the options of a study of two arms."""
    options = training_options(folder, steps=8, validate_every=4, monitor_every=3)
    return {
        "seeds": [0],
        "training": options["training"],
        "audit": {"max_windows": 8},
        "arms": [{"name": "pretrained", "strategy": "pretrained"}, {"name": "uniform"}],
        "architectures": [{"name": "tiny", "spec": "tiny_networks:tiny", "weights": "none"}],
        "datasets": [options["data"]],
        **changes,
    }


def start(folder, command, options, out, *arguments, **environment):
    """Start ``evenslice train`` or ``evenslice study`` with a configuration beside its inputs."""
    return Command(*_arguments(folder, command, options, out), *arguments, cwd=folder, **environment)


def start_anew(folder, command, options, out, *arguments, **environment):
    """Do the same in a Python of its own, as Lightning needs it to start further processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "evenslice", *_arguments(folder, command, options, out), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder, command, options, out, *arguments):
    """Run what ``start`` starts to its end, and return its exit status; not for several processes."""
    return run_command(*_arguments(folder, command, options, out), *arguments, cwd=folder).returncode


def dice_of_trainings(folder, *options):
    """Train on the same data with each of several options of ``training``, and return the mean Dice of each."""
    write_inputs(folder)
    scores = []
    for number, chosen in enumerate(options):
        out = folder / str(number)
        run = start(folder, "train", training_options(folder, **chosen), out)
        _, errors = run.communicate(timeout=500)
        assert run.returncode == 0, errors
        scores.append(json.loads((out / "result.json").read_text())["dice"]["mean"])
    return scores


def _arguments(folder, command, options, out):
    config = folder / f"{command}.yaml"
    config.write_text(json.dumps(options))
    return [command, str(config), "--out", str(out)]


def trained(run):
    """Return what a training left that does not depend on time: its weights, its scores and its log."""
    result = json.loads((run / "result.json").read_text())
    weights = load_file(run / "network.safetensors")
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        "log": _timeless_rows(run / "log" / "metrics.csv"),
        "files": tree(run),
        **{name: result[name] for name in ("dice", "iou", "bias", "validation", "steps")},
    }


def studied(out):
    """Return what a study left that does not depend on time."""
    runs = {}
    for run in sorted((out / "runs").iterdir()):
        outcome = json.loads((run / "run.json").read_text())
        del outcome["seconds"]
        runs[run.name] = (outcome, trained(run))
    summary = json.loads((out / "summary.json").read_text())
    return {"runs": runs, "summary": summary, "rows": _timeless_rows(out / "results.csv"), "files": tree(out)}


def _timeless_rows(path):
    with path.open(newline="") as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


def tree(folder):
    """Return the names of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
