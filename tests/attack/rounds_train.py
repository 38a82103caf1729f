"""Kills trainings and studies at any moment, and lets their disk fill, again and again; each rerun must end as undisturbed.

    python tests/attack/rounds_train.py --rounds 20

A round starts a training or a study in a child process and ends it by SIGKILL after a random time, with the folder for
temporary files on another file system if there is one (/dev/shm); or gives it a disk with little room left: a small
file system in memory where the user may mount one, otherwise files of limited size. Then it is run again. The script
prints the rounds that went wrong, and ends with status 1 if there are any.
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

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from disturbance import finish, in_child, killed, small_disk, starved
from tiny_training import studied, study_options, trained, training_options, write_inputs

from evenslice.studying import StudyConfig, study
from evenslice.training import TrainConfig, train


def run_train(inputs, out):
    train(TrainConfig.model_validate(training_options(inputs)), out, resume=True)


def run_study(inputs, out):
    study(StudyConfig.model_validate(study_options(inputs)), out)


KINDS = {"train": (run_train, trained), "study": (run_study, studied)}


def rounds(kind, way, count, base, disk):
    """Disturb and repeat a task; return how the disturbed and the repeated ones ended, and what went wrong."""
    inputs, errors, chance = base / "inputs", base / f"{kind}-{way}.txt", random.Random(f"{kind} {way}")
    task, read = KINDS[kind]
    place = disk if way == "full" and disk is not None else base
    undisturbed = base / f"undisturbed-{kind}"
    began = time.monotonic()
    if not undisturbed.exists():
        assert finish(in_child(partial(task, inputs, undisturbed), errors)) == 0, errors.read_text()
        (base / f"{kind}.seconds").write_text(str(time.monotonic() - began))
    seconds = float((base / f"{kind}.seconds").read_text())
    needed = sum(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file())
    expected, ended, wrong = read(undisturbed), Counter(), []
    for number in range(count):
        out = place / f"{kind}-{way}-{number}"
        run = partial(task, inputs, out)
        status = (
            killed(run, errors, chance.uniform(0, 1.1 * seconds))
            if way == "kill"
            else starved(run, errors, int(chance.uniform(0, 1.2 * needed)), disk)
        )
        ended[status] += 1
        if status == 70:
            wrong.append((number, "disturbed", errors.read_text()))
        if finish(in_child(run, errors)) != 0:
            wrong.append((number, "rerun", errors.read_text()))
        else:
            try:
                found = read(out)
            except (OSError, KeyError, ValueError) as error:
                wrong.append((number, "unreadable", f"{type(error).__name__}: {error}"))
            else:
                differing = [name for name in expected if found[name] != expected[name]]
                wrong += [(number, "differs", ", ".join(differing))] if differing else []
        shutil.rmtree(out, ignore_errors=True)
    return ended, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=[f"{kind}-{way}" for kind in KINDS for way in ("kill", "full")])
    arguments = parser.parse_args()
    other = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="rounds-") as base,
        tempfile.TemporaryDirectory(prefix="rounds-", dir=other) as temporary,
        small_disk(Path(base) / "disk") as disk,
    ):
        inputs = write_inputs(Path(base) / "inputs")
        sys.path.insert(0, str(inputs))
        tempfile.tempdir = temporary
        for kind in KINDS:
            for way in ("kill", "full"):
                if arguments.only in {None, f"{kind}-{way}"}:
                    ended, wrong = rounds(kind, way, arguments.rounds, Path(base), disk)
                    print(
                        f"{kind} {way}: {arguments.rounds} rounds, disturbed ended {dict(ended)}, {len(wrong)} wrong"
                    )
                    for number, what, text in wrong:
                        print(f"  round {number}, {what}: {text.strip().splitlines()[-1][:300]}")
                    failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
