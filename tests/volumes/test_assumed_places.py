"""Volumes that do not state where they lie: nothing that is written from them, or said of them, does either."""

import numpy as np
import pytest

from evenslice.volumes import describe_volume, open_volume, write_volume


@pytest.fixture
def unplaced(tmp_path):
    """A NIfTI file with both codes 0, of which readers assume an orientation."""
    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    write_volume(open_volume(voxels, spacing=(2, 3, 4), unit="mm"), tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    assert volume.affine is not None
    assert not volume.placed
    return volume


def test_info_names_no_orientation(unplaced):
    assert describe_volume(unplaced)["orientation"] is None


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.mha", [b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"Offset = 0 0 0", b"ElementSpacing = 4 3 2"]),
        ("a.nrrd", [b"space directions: (4,0,0) (0,3,0) (0,0,2)", b"space origin: (0,0,0)"]),
    ],
)
def test_files_for_itk_are_aligned_with_its_axes(unplaced, tmp_path, name, lines):
    write_volume(unplaced, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert all(line in content.replace(b".0", b"") for line in lines), content[:600]
