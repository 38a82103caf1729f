"""Run whole commands in processes of their own that do not have to import PyTorch and the rest, which takes seconds.

Each is forked from a server that has imported them: its arguments, folder, environment, streams and exit status are its
own, as are its modules of evenslice. Tests of how a command starts start Python anew, as do those whose training runs
in several processes, which start the command that they are once more.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path

from forking import forked


@dataclass(frozen=True)
class Ended:
    """What a command did.

    Attributes:
        returncode: its exit status.
        stdout: what it wrote.
        stderr: what it wrote to standard error.
        seconds: of processor time.
        memory: the most bytes that it held beyond those of the libraries.
    """

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    memory: int


class Command:
    """A command that is running; what is the same as of ``subprocess.Popen`` has the same name.

    Args:
        arguments: of the command, each turned into a string.
        cwd: its folder.
        own_session: begin a session and a group of processes.
        environment: variables beside those of the tests.
    """

    def __init__(self, *arguments, cwd, own_session=False, **environment):
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._files = [Path(folder, name) for name in ("out", "error", "used")]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._arguments = [*map(str, arguments)]
        self._process = forked(_be_command, self._arguments, str(cwd), variables, self._files, own_session)
        self.pid = self._process.pid

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
            os.kill(self.pid, number)

    def wait(self, timeout=None):
        """Wait until it has ended, and return the exit status."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait until it has ended, and return what it wrote to standard output and to standard error."""
        self.wait(timeout)
        out, error = (path.read_bytes().decode() for path in self._files[:2])
        return out, error

    def used(self):
        """Return the seconds of processor time, and the most bytes beyond those of the libraries, that it took."""
        seconds, memory = self._files[2].read_text().split()
        return float(seconds), int(memory)


def run_command(*arguments, cwd, timeout=240, **environment):
    """Run a command of evenslice with a folder as its current one, and return how it ended.

    Args:
        arguments: of the command, each turned into a string.
        cwd: its folder.
        timeout: seconds after which it is killed, and the test fails.
        environment: variables beside those of the tests.
    """
    command = Command(*arguments, cwd=cwd, **environment)
    try:
        out, error = command.communicate(timeout)
    finally:
        command.send_signal(signal.SIGKILL)
        command.wait()
    return Ended(command.returncode, out, error, *command.used())


def _be_command(arguments, folder, variables, files, own_session):  # what a command has
    before = _largest_memory()
    if own_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    if "PYTHONWARNINGS" in variables:
        warnings.simplefilter(variables["PYTHONWARNINGS"])
    os.chdir(folder)
    for number, path in enumerate(files[:2], start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["evenslice", *arguments]
    from evenslice.cli import main

    try:
        main()
    finally:
        files[2].write_text(f"{time.process_time()} {_largest_memory() - before}")


def _largest_memory():
    """Return the most bytes that this process has held; 0 where they are not known."""
    status = Path("/proc/self/status")
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 if status.exists() else 0
