"""Flipped volumes: every voxel keeps its place in the patient, as other libraries read the written files."""

import nibabel
import numpy as np
import pytest
import SimpleITK
from dicom_files import write_series

from evenslice import open_volume
from evenslice.auditing.programs import flip_volume
from evenslice.volumes import write_volume

STACK = np.random.default_rng(0).integers(0, 4000, (6, 40, 32)).astype(np.int16)
OBLIQUE = np.array([[0.5, 0.1, -0.3, 10], [-0.2, 0.7, 0.2, -20], [0.1, -0.1, 3.0, 30], [0, 0, 0, 1]])
NEGATIVE = np.diag([-0.5, -0.7, 3.0, 1.0])


def nifti(folder, affine):
    path = folder / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(STACK.transpose(), affine), path)
    return path


def dicom(folder, orientation):
    write_series(folder / "series", STACK, orientation=orientation)
    return folder / "series"


def by_nibabel(path):
    """Return voxels (x, y, z) and their map to patient space."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def by_itk(path):
    image = SimpleITK.ReadImage(str(path))
    places = [
        image.TransformIndexToPhysicalPoint(index) for index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    origin, *ends = np.array(places) * (-1, -1, 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([*(end - origin for end in ends), origin])
    return SimpleITK.GetArrayFromImage(image).transpose(), affine


@pytest.mark.parametrize(
    ("suffix", "read"), [(".nii.gz", by_nibabel), (".nii.gz", by_itk), (".nrrd", by_itk)]
)
@pytest.mark.parametrize(
    ("make", "how"),
    [
        (nifti, np.diag([0.5, 0.7, 3.0, 1.0])),
        (nifti, NEGATIVE),
        (nifti, OBLIQUE),
        (dicom, (1, 0, 0, 0, 1, 0)),
        (dicom, (0, 1, 0, 0, 0, -1)),
        (dicom, (0.8, 0.6, 0, 0, 0, -1)),
    ],
)
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_every_voxel_keeps_its_place(tmp_path, suffix, read, make, how, axis):
    if suffix == ".nii.gz" and read is by_itk and how is OBLIQUE:
        pytest.skip("SimpleITK reads no sheared NIfTI")
    volume = open_volume(make(tmp_path, how))
    write_volume(flip_volume(volume, axis), tmp_path / f"flipped{suffix}", labels=False)
    voxels, affine = read(tmp_path / f"flipped{suffix}")
    for index in ((0, 0, 0), (31, 0, 0), (0, 39, 0), (3, 20, 5), (30, 2, 1)):
        here = list(index)
        here["xyz".index(axis)] = voxels.shape["xyz".index(axis)] - 1 - here["xyz".index(axis)]
        np.testing.assert_allclose(affine @ [*here, 1], volume.affine @ [*index, 1], atol=1e-4)
        assert voxels[tuple(here)] == volume[index[2], index[1], index[0]]


def test_an_orientation_that_is_ignored_stays_as_it_was(tmp_path):
    volume = open_volume(nifti(tmp_path, NEGATIVE))
    flipped = flip_volume(volume, "y", ignore_orientation=True)
    np.testing.assert_array_equal(flipped.affine, volume.affine)
    np.testing.assert_array_equal(flipped[...], STACK[:, ::-1])
