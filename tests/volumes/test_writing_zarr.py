"""OME-Zarr: resolution levels, and metadata that the field's validator accepts."""

from collections import Counter

import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from evenslice import open_volume
from evenslice.volumes import write_volume
from evenslice.volumes.write.files import halve

arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.int16, np.uint64]),
    st.tuples(*[st.integers(1, 5)] * 3),
    elements=st.integers(0, 3) | st.integers(120, 127),
)
steps_of = st.tuples(*[st.integers(1, 2)] * 3)


def boxes(array, steps):
    """Yield the index of each box, and its voxels in C order."""
    for index in np.ndindex(*(-(-length // step) for length, step in zip(array.shape, steps, strict=True))):
        part = tuple(slice(i * step, (i + 1) * step) for i, step in zip(index, steps, strict=True))
        yield index, array[part].ravel().tolist()


@given(arrays, steps_of)
def test_labels_become_the_most_frequent_of_a_box_and_whole_numbers_the_mean(array, steps):
    most, mean = (halve(array, steps, labels=labels) for labels in (True, False))
    assert most.dtype == mean.dtype == array.dtype
    for index, values in boxes(array, steps):
        counts = Counter(values)
        assert counts[most[index]] == max(counts.values())
        if len(values) == np.prod(steps):  # what a border cuts is counted with repeats, in another order
            assert most[index] == counts.most_common(1)[0][0]
        assert abs(int(mean[index]) - sum(values) / len(values)) <= 0.5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_mean_of_real_numbers(dtype):
    array = np.array([[[1.0, 2.0], [4.0, 8.0]]], dtype)
    assert halve(array, (1, 2, 2), labels=False).tolist() == [[[3.75]]]
    largest = np.full((2, 2, 2), np.finfo(dtype).max, dtype)
    assert halve(largest, (2, 2, 2), labels=False).item() == np.finfo(dtype).max


@pytest.mark.parametrize(
    ("spacing", "factors"),
    [
        ((50.0, 4.0, 4.0), [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 16, 16)]),
        ((40.0, 8.0, 8.0), [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16)]),
        ((1.0, 0.98, 0.98), [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)]),
        ((1.0, 4.0, 4.0), [(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 2, 2), (16, 4, 4), (32, 8, 8), (64, 16, 16)]),
    ],
)
def test_thick_slices_are_halved_when_the_pixels_have_caught_up(spacing, factors, tmp_path, monkeypatch):
    monkeypatch.setattr("evenslice.volumes.write.files.SMALLEST", 16)
    write_volume(open_volume(np.zeros((40, 188, 125), np.uint8), spacing=spacing), tmp_path / "a.zarr")
    datasets = zarr.open_group(tmp_path / "a.zarr").attrs["ome"]["multiscales"][0]["datasets"]
    scales = [dataset["coordinateTransformations"][0]["scale"] for dataset in datasets]
    assert (np.array(scales) / spacing).astype(int).tolist() == [list(factor) for factor in factors]


SHAPE = (5, 700, 530)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).choice([0, 3, 9], SHAPE).astype(np.uint16)


def test_levels_hold_what_the_metadata_say(labels, tmp_path, monkeypatch):
    monkeypatch.setattr("evenslice.volumes.write.files.SLAB_BYTES", 2**19)
    told = []
    volume = open_volume(labels, spacing=(16, 8, 8), unit="nm")
    write_volume(volume, tmp_path / "a.ome.zarr", progress=lambda *state: told.append(state))
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    ome = group.attrs["ome"]
    expected = labels
    for number, scale in enumerate([(16, 8, 8), (16, 16, 16), (32, 32, 32)]):
        dataset = ome["multiscales"][0]["datasets"][number]
        found = group[dataset["path"]][...]
        if number:
            expected = halve(expected, (number, 2, 2), labels=True)
            shift = [0, 4, 4] if number == 1 else [8, 12, 12]
            assert dataset["coordinateTransformations"][1] == {"type": "translation", "translation": shift}
        np.testing.assert_array_equal(found, expected)
        assert set(np.unique(found)) <= {0, 3, 9}
        assert dataset["coordinateTransformations"][0] == {"type": "scale", "scale": list(scale)}
        assert open_volume(tmp_path / "a.ome.zarr", level=number).spacing == scale
    assert len(ome["multiscales"][0]["datasets"]) == 3
    assert told[-1] == (sum(group[name].size for name in "012"),) * 2


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["nm", "inch", None])
def test_the_metadata_are_valid(unit, labels, tmp_path):
    write_volume(open_volume(labels, spacing=(30, 8, 8), unit=unit), tmp_path / "labels.ome.zarr")
    group = yaozarrs.validate_zarr_store(str(tmp_path / "labels.ome.zarr"))
    image = group.ome_metadata()
    assert isinstance(image, yaozarrs.v05.LabelImage)
    assert image.multiscales[0].ndim == 3
    picture = open_volume(labels.astype(np.float32))
    write_volume([picture, picture], tmp_path / "picture.ome.zarr")
    image = yaozarrs.validate_zarr_store(str(tmp_path / "picture.ome.zarr")).ome_metadata()
    assert not isinstance(image, yaozarrs.v05.LabelImage)
    assert [axis.name for axis in image.multiscales[0].axes] == ["c", "z", "y", "x"]
