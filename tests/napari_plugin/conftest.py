"""A real viewer of napari, on a screen that nobody sees.

pytest-qt and napari's own fixtures would load Qt into every process of the tests, so these few lines stand in for them.
"""

import os
import shutil
import subprocess
import time

import pytest

SECONDS = 60


@pytest.fixture(scope="session")
def display():
    """A display: that of the environment, or an Xvfb of these tests' own."""
    if os.environ.get("DISPLAY"):
        yield os.environ["DISPLAY"]
        return
    if shutil.which("Xvfb") is None:
        pytest.skip("no display, and no Xvfb to make one: apt-get install xvfb")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1600x1000x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        number = pipe.readline().strip()
    if not number:
        pytest.skip("Xvfb does not start")
    yield f":{number}"
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def application(display, tmp_path_factory):
    """Qt's application, with napari's settings in a folder of the tests."""
    for module in ("napari", "qtpy"):
        pytest.importorskip(module, reason="napari, or a binding to Qt, is not installed", exc_type=Exception)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", display)
        patch.setenv("QT_QPA_PLATFORM", "xcb")
        patch.setenv("NAPARI_CONFIG", str(tmp_path_factory.mktemp("napari") / "settings.yaml"))
        from napari.qt import get_qapp

        yield get_qapp()


@pytest.fixture
def wait_for(application):
    """Let Qt work until a condition holds."""

    def wait(condition):
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, "nothing happened"
            application.processEvents()
            time.sleep(0.005)

    return wait


@pytest.fixture
def viewer(application):
    import napari

    opened = napari.Viewer(show=False, show_welcome_screen=False)
    yield opened
    opened.close()
    application.processEvents()
