"""Labels that lie elsewhere than their image are refused, unless their file states no place or the user knows better."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

import evenslice
from evenslice import Sampling, SliceWindows, TrainConfig, VolumeError, audit, open_volume
from evenslice.volumes import write_volume

RAS = np.array([[1.0, 0, 0, -9], [0, 1.5, 0, 4], [0, 0, 2, 7], [0, 0, 0, 1]])
REGION = np.s_[1:12, 2:9, 3:]
LABELS = (np.random.default_rng(0).random((10, 12, 14)) < 0.5).astype(np.uint8)
regions = pytest.mark.parametrize("region", [None, REGION])


def save(path, voxels, affine):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def opened(labels, image):
    """Return the classes of an image, read with its labels."""
    return np.stack([classes for _, classes in SliceWindows(image, labels)])


@pytest.fixture
def image(tmp_path):
    return save(tmp_path / "image.nii", LABELS.astype(np.float32), RAS)


def reoriented(voxels, affine, codes):
    """Return an image reoriented by nibabel."""
    axes = nib.orientations.axcodes2ornt
    return nib.Nifti1Image(voxels, affine).as_reoriented(
        nib.orientations.ornt_transform(axes("RAS"), axes(codes))
    )


def moved(distance, affine=RAS):
    shifted = affine.copy()
    shifted[0, 3] += distance
    return shifted


def test_labels_in_another_orientation_are_refused_with_both(image, tmp_path):
    path = tmp_path / "labels.nii"
    nib.save(reoriented(LABELS, RAS, "LPS"), path)
    for plane in "zy":
        with pytest.raises(
            VolumeError, match=r"labels\.nii.*: .* run to LPS, those of .*image\.nii.* to RAS; .*axes='xyz'"
        ):
            opened(path, open_volume(image, plane=plane))


def test_half_a_voxel_is_allowed(image, tmp_path):
    assert opened(save(tmp_path / "near.nii", LABELS, moved(0.5)), open_volume(image)).size
    far_corner = RAS @ np.diag([1, 1, 1.1, 1])
    for distance, affine in (("0.6", moved(0.6)), ("500", moved(500)), ("2.6", far_corner)):
        path = save(tmp_path / "far.nii", LABELS, affine)
        with pytest.raises(VolumeError, match="lies up to"):
            opened(open_volume(path, region=REGION), open_volume(image, plane="x", region=REGION))
        with pytest.raises(VolumeError, match=rf"far\.nii: lies up to {distance} mm from .*image\.nii"):
            opened(path, open_volume(image))


@pytest.mark.parametrize("plane", ["z", "x"])
@regions
@pytest.mark.parametrize("writer", ["nibabel", "SimpleITK", "a.nii.gz", "a.mha", "a.nrrd"])
def test_labels_that_state_no_place_are_taken_as_stored(image, tmp_path, writer, plane, region):
    path = tmp_path / (writer if "." in writer else "labels.nii")
    if writer == "nibabel":
        save(path, LABELS, np.eye(4))
    elif writer == "SimpleITK":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(LABELS.T), str(path))
    else:  # of an image that had none
        write_volume(open_volume(LABELS.T, spacing=(2, 1.5, 1), unit="mm"), path)
    volume = open_volume(image, plane=plane, region=region)
    assert np.array_equal(opened(open_volume(path, region=region), volume)[...], volume[...])


def test_axes_that_the_user_gives_to_labels_say_that_voxels_correspond(image, tmp_path):
    path = save(tmp_path / "labels.nii", LABELS, moved(500))
    volume = open_volume(image)
    assert np.array_equal(opened(open_volume(path, axes="xyz"), volume)[...], volume[...])
    assert np.array_equal(opened(open_volume(path)[...], volume)[...], volume[...])
    with pytest.raises(VolumeError, match="500 mm"):
        opened(path, open_volume(image, axes="xyz"))


def test_labels_written_for_an_image_whose_spacing_the_user_corrected_fit_it(image, tmp_path):
    for options in ({"spacing": (5, 4, 3)}, {"unit": "um"}):
        volume = open_volume(image, **options)
        write_volume(open_volume(LABELS.T), tmp_path / "labels.nii", like=volume, force=True)
        assert opened(tmp_path / "labels.nii", volume).size
    assert opened(save(tmp_path / "as-stored.nii", LABELS, RAS), volume).size


@pytest.mark.slow
def test_training_and_audits_refuse_labels_elsewhere(image, tmp_path):
    path = save(tmp_path / "labels.nii", LABELS, moved(500))
    with pytest.raises(VolumeError, match="500 mm"):
        SliceWindows(image, path, crop=(8, 8))
    with pytest.raises(VolumeError, match="500 mm"):
        audit(
            lambda windows: windows[:, :1],
            image,
            labels=path,
            target="labels",
            sampling=Sampling(tile=(8, 8)),
        )
    data = {"train": [{"image": str(image), "labels": str(path)}]}
    with pytest.raises(VolumeError, match=r"^data\.train\[0\]\.labels: .* 500 mm "):
        evenslice.train(TrainConfig.model_validate({"data": data}), out=tmp_path / "run")


def test_a_nifti_file_without_a_stated_place_is_not_compared(image, tmp_path):
    unplaced = nib.Nifti1Image(LABELS, None)
    unplaced.header.set_zooms((1, 1.5, 2))
    nib.save(unplaced, tmp_path / "unplaced.nii")
    assert opened(tmp_path / "unplaced.nii", open_volume(image)).size
    assert opened(image, open_volume(tmp_path / "unplaced.nii")).size


@regions
@pytest.mark.parametrize("codes", ["LAS", "LPI", "SPR"])
def test_labels_at_the_origin_of_an_image_in_another_orientation_are_refused(tmp_path, codes, region):
    cube, affine = np.arange(12**3, dtype=np.int16).reshape(12, 12, 12), np.diag([2, 2, 2, 1])
    nib.save(reoriented(cube, affine, codes), tmp_path / "image.nii")
    labels = open_volume(save(tmp_path / "labels.nii", cube, affine), region=region)
    with pytest.raises(VolumeError, match=rf"run to RAS, those of .* to {codes}"):
        opened(labels, open_volume(tmp_path / "image.nii", region=region))
