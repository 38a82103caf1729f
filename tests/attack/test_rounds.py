"""Segmentations, trainings and studies that are killed, or whose disk fills, end as undisturbed ones when run again.

    EVENSLICE_ROUNDS=20 pytest tests/attack/test_rounds.py -m attack

A round ends one by SIGKILL after a random time, or gives it a disk with little room left: a small file system in memory
where the user may mount one, otherwise files of limited size. Then it is run again.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from forking import forked
from tiny_training import studied, study_options, trained, training_options
from torch import nn

import evenslice

pytestmark = [
    pytest.mark.attack,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="mounts"),
]

ROUNDS = int(os.environ.get("EVENSLICE_ROUNDS", "2"))
DISK = 96 * 2**20
"""Size in bytes of a small disk."""


def segment(inputs, out, *, name, probabilities):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    image = np.random.default_rng(0).integers(0, 250, (16, 400, 400), np.uint8)  # in several blocks
    np.save(inputs / "large.npy", image)
    out.mkdir(exist_ok=True)
    evenslice.segment(
        model.requires_grad_(False),
        inputs / "large.npy",
        f"{out}/{name}",
        slices=3,
        compute=evenslice.Compute(dtype="float32", device="cpu"),
        probabilities=probabilities,
        force=(out / name.partition(":")[0]).exists(),
    )


def segmented(out, *, name, probabilities):
    assert [item.name for item in out.iterdir()] == [name.partition(":")[0]]
    picks = [{"c": number} for number in range(3)] if probabilities else [None]
    axes = "czyx" if probabilities else None
    found = [evenslice.open_volume(f"{out}/{name}", axes=axes, select=pick)[...] for pick in picks]
    return np.round(found, 5).tobytes()  # blocks that follow others in one batch differ in the last digits


def train(inputs, out):
    evenslice.train(training_options(inputs), out, resume=True)


def study(inputs, out):
    evenslice.study(study_options(inputs), out)


TASKS = {"train": (train, trained), "study": (study, studied)}
for _name, _probabilities in {"labels.npy": False, "labels.ome.zarr": False, "p.h5:/p": True}.items():
    _given = {"name": _name, "probabilities": _probabilities}
    TASKS[_name] = partial(segment, **_given), partial(segmented, **_given)


def attempt(run, inputs, out, largest_file):
    """Run a task in a child process; it ends with 0, with 2 after an error in one line, and with 1 after any other."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        run(inputs, out)
    except evenslice.EvensliceError as error:
        sys.exit(2 if "\n" not in str(error) else 1)


def ended(run, inputs, out, *, seconds=None, largest_file=None):
    process = forked(attempt, run, inputs, out, largest_file)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


@contextmanager
def small_disk(folder):
    """Mount a small file system in memory, or yield None where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def starved(run, inputs, out, room, disk):
    if disk is None:
        return ended(run, inputs, out, largest_file=max(room // 8, 1))
    (disk / "ballast").write_bytes(b"\1" * max(shutil.disk_usage(disk).free - room, 0))
    try:
        return ended(run, inputs, out)
    finally:
        (disk / "ballast").unlink()


@pytest.mark.parametrize("way", ["killed", "full disk"])
@pytest.mark.parametrize("name", TASKS)
def test_disturbed_ones_end_as_undisturbed_ones(inputs, tmp_path, name, way):
    run, read = TASKS[name]
    chance = np.random.default_rng([*f"{name} {way}".encode()])
    undisturbed, began = tmp_path / "undisturbed", time.monotonic()
    assert ended(run, inputs, undisturbed) == 0
    seconds, expected = time.monotonic() - began, read(undisturbed)
    needed = sum(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file())
    with small_disk(tmp_path / "disk") as disk:
        for number in range(ROUNDS):
            if way == "killed":
                out = tmp_path / str(number)
                status = ended(run, inputs, out, seconds=chance.uniform(0, 1.1 * seconds))
            else:  # unfinished work of a segmentation takes about as much room as its result
                out = (disk or tmp_path) / str(number)
                status = starved(run, inputs, out, int(chance.uniform(0, 2.2 * needed)), disk)
            assert status in {0, 2, -9}
            assert ended(run, inputs, out) == 0
            assert read(out) == expected
            shutil.rmtree(out)
