"""The manifest is what npe2 wants, and every command in it can be imported."""

import subprocess
import sys
from pathlib import Path

import pytest

import evenslice

MANIFEST = Path(evenslice.__file__).parent / "napari_plugin" / "napari.yaml"


def test_npe2_validates_the_manifest():
    pytest.importorskip("npe2")
    done = subprocess.run(
        [sys.executable, "-m", "npe2", "validate", "--imports", str(MANIFEST)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout
