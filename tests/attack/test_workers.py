"""Worker processes: nobody else reaches them, and they import nothing that somebody left for them."""

import os
import subprocess
import sys
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import psutil
import pytest

from evenslice._core import open_cluster

pytestmark = pytest.mark.attack

PLANTED = """
import pathlib
with (pathlib.Path({folder!r}) / "ran").open("a") as file:
    file.write(__name__ + "\\n")
raise ImportError("planted")
"""
ENTRY = "from evenslice.cli import main\n\nif __name__ == '__main__':\n    main()\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with a volume, the folder "here" to work in, and the command line as an installed script."""
    (tmp_path / "here").mkdir()
    (tmp_path / "evenslice-script.py").write_text(ENTRY)
    volume = np.random.default_rng(0).integers(0, 255, (6, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "here" / "volume.npy", volume)
    return tmp_path


def plant(folder, where, *names):
    where.mkdir(parents=True, exist_ok=True)
    for name in names:
        (where / f"{name}.py").write_text(PLANTED.format(folder=str(folder)))


def run(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=folder / "here",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def segment(folder, **environment):
    network = ["--model", "smp:Unet/resnet18", "--weights", "none", "--tile", "64", "64"]
    files = ["--volume", "volume.npy", "--out", "labels.npy", "--workers", "1"]
    script = str(folder / "evenslice-script.py")
    return run(folder, script, "segment", *network, *files, **environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bokeh", "multiprocessing", "distributed", "yaml"])
def test_workers_import_nothing_from_the_current_directory(folder, name):
    plant(folder, folder / "here", name)
    done = segment(folder)
    assert not (folder / "ran").exists()
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_workers_import_nothing_from_a_scratch_folder_that_others_could_make(folder):
    plant(folder, folder / "temporary" / "dask-scratch-space", "yaml", "tornado", "cloudpickle")
    done = segment(folder, TMPDIR=str(folder / "temporary"))
    assert not (folder / "ran").exists()
    assert done.returncode == 0, done.stderr
    assert not list((folder / "temporary").glob("evenslice-*"))


def test_as_a_module_the_command_line_imports_nothing_from_the_current_directory(folder):
    plant(folder, folder / "here", "numpy", "typer", "torch")
    done = run(folder, "-m", "evenslice", "info", "volume.npy")
    assert not (folder / "ran").exists()
    assert done.returncode == 0, done.stderr


def listening():
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [
        each.laddr for process in processes for each in process.net_connections() if each.status == "LISTEN"
    ]
    return set(found)


@pytest.mark.filterwarnings("ignore")  # of connections that were refused
def test_workers_listen_to_this_machine_and_to_their_own_certificate_alone():
    from distributed import Client
    from distributed.security import Security

    before = listening()
    with open_cluster(workers=2) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert all(worker.startswith("tls://127.0.0.1:") for worker in client.scheduler_info()["workers"])
        ports = listening() - before
        assert {place.ip for place in ports} == {"127.0.0.1"}
        for place in ports:
            for path in ("/status", "/health", "/metrics", "/info/main/workers.html", "/json/counts.json"):
                assert answer(place.port, path) in (None, 404)
        for other in (address.replace("tls:", "tcp:"), address):
            stranger = Security.temporary() if other.startswith("tls:") else None
            with pytest.raises(OSError, match=r"(?i)timed out|handshake|closed|certificate"):
                Client(other, timeout=2, security=stranger)
        assert client.submit(abs, -1).result() == 1
    assert "PYTHONSAFEPATH" not in os.environ


def answer(port, path):
    """Return the status of an answer; None where no HTTP is spoken."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=2)) as connection, suppress(OSError, ValueError):
        connection.request("GET", path)
        return connection.getresponse().status
    return None


def test_a_function_of_the_user_s_own_is_found_by_workers(folder):
    (folder / "here" / "mine.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Conv2d):\n"
        "    def __init__(self):\n        super().__init__(3, 2, 1)\n"
    )
    script = str(folder / "evenslice-script.py")
    done = run(
        folder,
        *(
            script,
            "segment",
            "--model",
            "mine:Net",
            "--weights",
            "none",
            "--tile",
            "64",
            "64",
            "--workers",
            "1",
        ),
        *("--volume", "volume.npy", "--out", "labels.npy"),
    )
    assert done.returncode == 0, done.stderr
    assert np.load(Path(folder, "here", "labels.npy")).shape == (6, 64, 64)
