"""Kills segmentations at any moment, and lets their disk fill, again and again; each rerun must end as undisturbed.

    python tests/attack/rounds_segment.py --rounds 20

A round segments a volume in a child process and ends it by SIGKILL after a random time, with the folder for temporary
files on another file system if there is one (/dev/shm); or gives it a disk with little room left: a small file system
in memory where the user may mount one, otherwise files of limited size. Then it is run again: the same voxels, and
nothing left beside them. The script prints the rounds that went wrong, and ends with status 1 if there are any.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from evenslice import Compute

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import numpy as np
import torch
from disturbance import finish, in_child, killed, small_disk, starved
from torch import nn

from evenslice import segment
from evenslice.inference import segmentation_blocks
from evenslice.volumes import open_volume

SHAPE = (48, 160, 200)
OUTPUTS = {"labels.npy": False, "labels.ome.zarr": False, "p.h5:/p": True, "p.ome.zarr": True}


def label(image, out, probabilities, force=False):
    """Segment in small blocks, so that a moment can fall into any of them."""
    torch.manual_seed(0)
    segmentation_blocks.BLOCK_VOXELS = 2 * SHAPE[1] * SHAPE[2]
    model = nn.Sequential(nn.Conv2d(3, 8, 7, padding=3), nn.ReLU(), nn.Conv2d(8, 3, 1)).requires_grad_(False)
    segment(
        model,
        image,
        out,
        slices=3,
        compute=Compute(dtype="float32", device="cpu"),
        probabilities=probabilities,
        force=force,
    )


def voxels(out, probabilities):
    """Return all voxels of a result."""
    picks = [{"c": number} for number in range(3)] if probabilities else [None]
    axes = "czyx" if ".h5" in str(out) else None
    return np.stack([open_volume(out, axes=axes, select=pick)[...] for pick in picks])


def rounds(way, count, base, disk, image):
    """Disturb and repeat segmentations; return how the disturbed ones ended, and what went wrong."""
    errors, chance, ended, wrong = base / f"{way}.txt", random.Random(way), Counter(), []
    known = {}
    for name, probabilities in OUTPUTS.items():
        folder = (
            base / f"undisturbed-{way}" / name.partition(".")[0] / name.rpartition(".")[2].replace("/", "")
        )
        folder.mkdir(parents=True)
        out, began = f"{folder}/{name}", time.monotonic()
        assert finish(in_child(partial(label, image, out, probabilities), errors)) == 0, errors.read_text()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        known[name] = voxels(out, probabilities), time.monotonic() - began, size
    for number in range(count):
        name = list(OUTPUTS)[number % len(OUTPUTS)]
        expected, seconds, needed = known[name]
        folder = (disk if way == "full" and disk is not None else base) / f"{way}-{number}"
        folder.mkdir()
        out = f"{folder}/{name}"
        run = partial(label, image, out, OUTPUTS[name])
        # The unfinished work takes about as much room as the result.
        room = int(chance.uniform(0, 2.2 * needed))
        moment = chance.uniform(0, 1.1 * seconds)
        status = killed(run, errors, moment) if way == "kill" else starved(run, errors, room, disk)
        ended[status] += 1
        if status == 70:
            wrong.append((number, "disturbed", errors.read_text()))
        if finish(in_child(partial(run, force=Path(out.partition(":")[0]).exists()), errors)) != 0:
            wrong.append((number, "rerun", errors.read_text()))
        # Blocks that follow others in one batch differ in the last digits.
        elif not np.allclose(voxels(out, OUTPUTS[name]), expected, rtol=0, atol=1e-6):
            wrong.append(
                (number, "differs", f"{(voxels(out, OUTPUTS[name]) != expected).mean():.1%} of {name}")
            )
        left = sorted(item.name for item in folder.iterdir())
        if left != [name.partition(":")[0]]:
            wrong.append((number, "left", str(left)))
        shutil.rmtree(folder)
    return ended, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=["kill", "full"])
    arguments = parser.parse_args()
    other = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="rounds-") as base,
        tempfile.TemporaryDirectory(prefix="rounds-", dir=other) as temporary,
        small_disk(Path(base) / "disk") as disk,
    ):
        image = Path(base) / "image.npy"
        np.save(image, (np.random.default_rng(0).random(SHAPE) * 250).astype(np.uint8))
        tempfile.tempdir = temporary
        for way in ("kill", "full"):
            if arguments.only in {None, way}:
                ended, wrong = rounds(way, arguments.rounds, Path(base), disk, image)
                print(
                    f"segment {way}: {arguments.rounds} rounds, disturbed ended {dict(ended)}, {len(wrong)} wrong"
                )
                for number, what, text in wrong:
                    print(f"  round {number}, {what}: {text.strip().splitlines()[-1][:300]}")
                failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
