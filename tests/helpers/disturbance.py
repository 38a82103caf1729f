"""Tasks in child processes that are killed, or whose disk fills."""

import os
import resource
import shutil
import signal
import subprocess
import time
import traceback
import warnings
from contextlib import contextmanager

import torch

from evenslice._core import EvensliceError

DISK = 64 * 2**20
"""Size in bytes of a small disk."""


def in_child(task, errors, limit=None):
    """Run a task in a child process, with files of limited size; return its process id.

    It ends with 0, with 2 after an error in one line, and with 70 after any other, which it writes to a file.
    """
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        task()
        status = 0
    except EvensliceError as error:
        status = 2 if "\n" not in str(error) else 70
        errors.write_text(str(error))
    except BaseException:  # noqa: BLE001  # the child must not go on as its parent
        errors.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def finish(child):
    """Wait for a child and return its exit status; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(task, errors, seconds):
    """Start a task, kill it after some seconds, and return how it ended."""
    child = in_child(task, errors)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return finish(child)


def starved(task, errors, room, disk):
    """Run a task with some bytes left on a disk, or else with files of limited size, and return how it ended."""
    if disk is None:
        return finish(in_child(task, errors, limit=max(room // 8, 1)))
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(b"\1" * max(shutil.disk_usage(disk).free - room, 0))
    status = finish(in_child(task, errors))
    ballast.unlink()
    return status


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
