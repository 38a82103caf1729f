"""Run whole commands in processes of their own that do not have to import PyTorch and the rest, which takes seconds.

Each is forked from a server that has imported them: its arguments, folder, environment, streams and exit status are its
own, as are its modules of evenslice. Tests of how a command starts start Python anew, as do those whose training runs
in several processes, which start the command that they are once more.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import psutil
from forking import forked


class Ended(NamedTuple):
    """What a command did; in seconds of processor time, with the most bytes that it held beyond those of the libraries."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    memory: int


class Command:
    """A command that is running, in a session of its own; what is as of ``subprocess.Popen`` has the same name.

    It ends without what Python does at its exit, as forked processes do.

    Args:
        arguments: of the command, each turned into a string.
        cwd: its folder.
        environment: variables beside those of the tests.
    """

    def __init__(self, *arguments, cwd, **environment):
        folder = tempfile.mkdtemp()
        self._files = [Path(folder, name) for name in ("out", "error", "used")]
        self._arguments = [*map(str, arguments)]
        self._process = forked(_be_command, self._arguments, str(cwd), environment, self._files)
        self.pid = self._process.pid
        weakref.finalize(self, _remove, self._process, folder)

    @property
    def returncode(self):
        """The exit status; None while it runs."""
        return self._process.exitcode

    def poll(self):
        """Return the exit status, or None while it runs."""
        return self.returncode

    def send_signal(self, number):
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        """Kill it, and wait until all processes that it has started have ended."""
        self.send_signal(signal.SIGKILL)
        self.communicate()

    def wait(self, timeout=None):
        """Wait until it has ended, and return the exit status; kill it after a timeout."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self._arguments, timeout)
        return self.returncode

    def communicate(self, timeout=240):
        """Wait until it and all processes that it has started have ended, and return what they wrote to both streams."""
        self.wait(timeout)
        wait_until(lambda: not members(self.pid), seconds=timeout)
        out, error = (path.read_bytes().decode() for path in self._files[:2])
        return out, error

    def used(self):
        """Return the seconds of processor time, and the most bytes beyond those of the libraries, that it took."""
        seconds, memory = self._files[2].read_text().split()
        return float(seconds), int(memory)


def wait_until(condition, process=None, seconds=300):
    """Wait until a condition holds, while a process runs if one is given."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def _remove(process, folder):
    process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def members(session):
    """Return the command lines of the processes in a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
    return found


def run_command(*arguments, cwd, timeout=240, **environment):
    """Run a command of evenslice to its end, or kill it after a timeout; see ``Command``."""
    command = Command(*arguments, cwd=cwd, **environment)
    out, error = command.communicate(timeout)
    return Ended(command.returncode, out, error, *command.used())


def _be_command(arguments, folder, environment, files):
    before = largest_memory()
    os.setsid()
    for number, path in enumerate(files[:2], start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(environment)
    if "PYTHONWARNINGS" in environment:  # which Python reads when it starts
        warnings.simplefilter(environment["PYTHONWARNINGS"])
    os.chdir(folder)
    sys.argv = ["evenslice", *arguments]
    from evenslice import cli

    try:
        cli.main()
    finally:
        files[2].write_text(f"{time.process_time()} {largest_memory() - before}")


def call(*arguments):
    """Run the command line within this process, and return its exit status.

    It limits the memory of its process, and lets an interrupt end it, which here is that of the tests.
    """
    from evenslice import cli

    before, limits = signal.getsignal(signal.SIGINT), resource.getrlimit(resource.RLIMIT_DATA)
    try:
        with mock.patch.object(sys, "argv", ["evenslice", *map(str, arguments)]):
            cli.main()
    except SystemExit as end:
        return end.code or 0
    finally:
        signal.signal(signal.SIGINT, before)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    raise AssertionError("a command ends by SystemExit")


def largest_memory():
    """Return the most bytes that this process has held; 0 where they are not known."""
    status = Path("/proc/self/status")
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 if status.exists() else 0
