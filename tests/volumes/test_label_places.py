"""Labels that lie elsewhere than their image are refused, unless their file states no place or the user knows better."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from evenslice import Sampling, SliceWindows, TrainConfig, VolumeError, audit, open_volume
from evenslice.training.data import open_data
from evenslice.volumes import write_volume
from evenslice.volumes.labels import open_labels

RAS = np.array([[1.0, 0, 0, -9], [0, 1.5, 0, 4], [0, 0, 2, 7], [0, 0, 0, 1]])
REGION = np.s_[1:12, 2:9, 3:]
LABELS = (np.random.default_rng(0).random((10, 12, 14)) < 0.5).astype(np.uint8)


def save(path, voxels, affine):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def image(tmp_path):
    return save(tmp_path / "image.nii", LABELS.astype(np.float32), RAS)


def turned(codes):
    """Return labels reoriented by nibabel, and their affine."""
    axes = nib.orientations.axcodes2ornt
    given = nib.Nifti1Image(LABELS, RAS)
    found = given.as_reoriented(nib.orientations.ornt_transform(axes("RAS"), axes(codes)))
    return np.asarray(found.dataobj), found.affine


def moved(distance, affine=RAS):
    shifted = affine.copy()
    shifted[0, 3] += distance
    return shifted


def test_labels_in_another_orientation_are_refused_with_both(image, tmp_path):
    path = save(tmp_path / "labels.nii", *turned("LPS"))
    with pytest.raises(
        VolumeError,
        match=r"labels\.nii: its axes x, y, z run to LPS, those of .*image\.nii to RAS; .* open it with axes='xyz'",
    ):
        open_labels(path, open_volume(image))
    with pytest.raises(VolumeError, match="to LPS, those of .* to RAS"):
        open_labels(path, open_volume(image, plane="y"))


def test_half_a_voxel_is_allowed(image, tmp_path):
    assert open_labels(save(tmp_path / "near.nii", LABELS, moved(0.5)), open_volume(image)).size
    for distance, affine in (
        ("0.6", moved(0.6)),
        ("500", moved(500)),
        ("2.6", RAS @ np.diag([1, 1, 1.1, 1])),  # at the far corner
    ):
        path = save(tmp_path / "far.nii", LABELS, affine)
        for region in (None, REGION):
            with pytest.raises(VolumeError, match="lies up to"):
                open_labels(open_volume(path, region=region), open_volume(image, plane="x", region=region))
        with pytest.raises(VolumeError, match=rf"far\.nii: lies up to {distance} mm from .*image\.nii"):
            open_labels(path, open_volume(image))


@pytest.mark.parametrize("plane", ["z", "y", "x"])
@pytest.mark.parametrize("region", [None, REGION])
@pytest.mark.parametrize("writer", ["nibabel", "SimpleITK"])
def test_labels_that_state_no_place_are_taken_as_stored(image, tmp_path, writer, plane, region):
    path = tmp_path / "labels.nii"
    if writer == "nibabel":
        save(path, LABELS, np.eye(4))
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(LABELS.T), str(path))
    volume = open_volume(image, plane=plane, region=region)
    labels = open_volume(path, region=region)
    assert np.array_equal(open_labels(labels, volume)[...], volume[...])


def test_axes_that_the_user_gives_to_labels_say_that_voxels_correspond(image, tmp_path):
    path = save(tmp_path / "labels.nii", LABELS, moved(500))
    volume = open_volume(image)
    assert np.array_equal(open_labels(open_volume(path, axes="xyz"), volume)[...], volume[...])
    assert np.array_equal(open_labels(open_volume(path)[...], volume)[...], volume[...])
    with pytest.raises(VolumeError, match="500 mm"):
        open_labels(path, open_volume(image, axes="xyz"))


def test_labels_written_for_an_image_whose_spacing_the_user_corrected_fit_it(image, tmp_path):
    for options in ({"spacing": (5, 4, 3)}, {"unit": "um"}):
        volume = open_volume(image, **options)
        write_volume(open_volume(LABELS.T), tmp_path / "labels.nii", like=volume, force=True)
        assert open_labels(tmp_path / "labels.nii", volume).size
    assert open_labels(save(tmp_path / "as-stored.nii", LABELS, RAS), volume).size


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


def test_a_configuration_names_its_own_way_out(image, tmp_path):
    path = save(tmp_path / "labels.nii", LABELS, moved(500))

    def opened(labels):
        pair = {"image": str(image), "labels": labels}
        return open_data(TrainConfig.model_validate({"data": {"train": [pair]}}))

    with pytest.raises(
        VolumeError,
        match=r"^data\.train\[0\]\.labels: .* 500 mm .* open it with data\.train\[0\]\.labels\.axes: xyz$",
    ):
        opened(str(path))
    assert opened({"path": str(path), "axes": "xyz"}).train


def test_a_nifti_file_without_a_stated_place_is_not_compared(image, tmp_path):
    unplaced = nib.Nifti1Image(LABELS, None)
    unplaced.header.set_zooms((1, 1.5, 2))
    nib.save(unplaced, tmp_path / "unplaced.nii")
    assert nib.load(tmp_path / "unplaced.nii").header["sform_code"] == 0
    assert open_labels(tmp_path / "unplaced.nii", open_volume(image)).size
    assert open_labels(image, open_volume(tmp_path / "unplaced.nii")).size


@pytest.mark.parametrize("region", [None, REGION])
@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.mha", "labels.nrrd"])
def test_labels_of_an_image_that_states_no_place_fit_it_once_it_has_one(image, tmp_path, name, region):
    write_volume(open_volume(LABELS.T, spacing=(2, 1.5, 1), unit="mm"), tmp_path / name)
    volume = open_volume(image, plane="x", region=region)
    labels = open_volume(tmp_path / name, region=region)
    assert np.array_equal(open_labels(labels, volume)[...], volume[...])


@pytest.mark.parametrize("region", [None, REGION])
@pytest.mark.parametrize("codes", ["LAS", "LPI", "SPR"])
def test_labels_at_the_origin_of_an_image_in_another_orientation_are_refused(tmp_path, codes, region):
    cube = np.arange(12**3, dtype=np.int16).reshape(12, 12, 12)
    at_origin = nib.Nifti1Image(cube, np.diag([2, 2, 2, 1]))
    axes = nib.orientations.axcodes2ornt
    nib.save(at_origin, tmp_path / "labels.nii")
    nib.save(
        at_origin.as_reoriented(nib.orientations.ornt_transform(axes("RAS"), axes(codes))),
        tmp_path / "image.nii",
    )
    volume = open_volume(tmp_path / "image.nii", region=region)
    with pytest.raises(VolumeError, match=rf"run to RAS, those of .* to {codes}"):
        open_labels(open_volume(tmp_path / "labels.nii", region=region), volume)
