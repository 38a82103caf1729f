"""Run whole commands in processes of their own that do not have to import PyTorch and the rest, which takes seconds.

Each is forked from a server that has imported them: its arguments, folder, environment, streams and exit status are its
own, as are its modules of evenslice. Tests of how a command starts, or of what a signal does to it, start Python anew.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# What commands import, but for evenslice: its own modules see the environment of each command.
LIBRARIES = (
    "captum.attr",
    "distributed",
    "h5py",
    "jinja2",
    "lightning.pytorch",
    "monai.inferers",
    "monai.losses",
    "monai.metrics",
    "monai.transforms",
    "nibabel",
    "onnxruntime",
    "pydantic",
    "rich.console",
    "scipy.stats",
    "segmentation_models_pytorch",
    "tifffile",
    "timm",
    "torch",
    "torchvision",
    "typer",
    "zarr",
)


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


def run_command(*arguments, cwd, timeout=240, **environment):
    """Run a command of evenslice with a folder as its current one, and return how it ended.

    Args:
        arguments: of the command, each turned into a string.
        cwd: its folder.
        timeout: seconds after which it is killed, and the test fails.
        environment: variables beside those of the tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    arguments = [*map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "error", "used")]
        process = context.Process(target=_be_command, args=(arguments, str(cwd), variables, files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        out, error, used = (path.read_bytes().decode() for path in files)
    seconds, memory = used.split()
    return Ended(process.exitcode, out, error, float(seconds), int(memory))


def _be_command(arguments, folder, variables, files):
    before = _largest_memory()
    multiprocessing.set_start_method(None, force=True)  # that of a Python of its own
    os.environ.clear()
    os.environ.update(variables)
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
