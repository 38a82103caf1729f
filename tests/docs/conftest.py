"""The site, built once for the tests of all processes, and one headless Chromium for each."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import open_browser
from filelock import FileLock

ROOT = Path(__file__).parents[2]


def build_site(folder):
    """Build the site from a copy of its sources, with warnings as errors, as ``make docs`` does."""
    pytest.importorskip("sphinx", reason="no sphinx; install the group docs")
    source = folder / "source"
    generated = shutil.ignore_patterns("_build", "__pycache__")
    shutil.copytree(ROOT / "docs", source / "docs", ignore=generated)
    shutil.rmtree(source / "docs" / "reference" / "api", ignore_errors=True)
    shutil.copy(ROOT / "CHANGELOG.md", source)  # which is a page, too
    for name in ("studies", "benchmarks"):  # from which pages offer files
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-E", "-W", "--keep-going", "-q"]
    done = subprocess.run(
        [*command, "docs", str(folder / "html")],
        cwd=source,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    (folder / "log").write_text(done.stdout + done.stderr)
    return done.returncode


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """The folder of the built site."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "documentation"
    with FileLock(f"{folder}.lock"):
        if not (folder / "status").exists():
            folder.mkdir()
            (folder / "status").write_text(str(build_site(folder)))
    assert (folder / "status").read_text() == "0", (folder / "log").read_text()[-4000:]
    return folder / "html"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome
