"""Boundaries of numbered objects: as scikit-image finds them, slice by slice, whatever part is read."""

import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from skimage.segmentation import find_boundaries

from evenslice import ConfigError, Reading, VolumeError, open_volume
from evenslice.volumes import index_classes

BIG = 2**60  # neighbours of such numbers are equal as float64
OBJECTS = np.kron(np.random.default_rng(0).integers(0, 5, (4, 6, 7)), np.ones((2, 3, 4), int)).astype(
    np.uint64
)


def expected(slices):
    return np.stack([find_boundaries(one, mode="thick") for one in slices]).astype(int)


def boundaries(numbers, kind="sparse", classes=2, **options):
    reading = Reading(**{"instances": kind} | options)
    return reading.class_volume(open_volume(numbers), classes)


def test_boundaries_are_those_of_scikit_image():
    assert np.array_equal(boundaries(OBJECTS)[...], expected(OBJECTS))
    assert np.array_equal(boundaries(OBJECTS, "dense")[...], expected(OBJECTS) | (OBJECTS == 0))
    close = np.array([[[BIG, BIG, BIG + 1, BIG + 1]]], np.uint64)
    assert boundaries(close)[0, 0].tolist() == [0, 1, 1, 0]
    ignoring = boundaries(np.array([[[4, 4, 9, 5, 6, 0]]]), "dense", ignore_label=9)
    assert ignoring[0, 0].tolist() == [0, 0, -100, 1, 1, 1]


@pytest.mark.parametrize(("value", "shown"), [(0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_numbers_of_objects_are_whole(value, shown):
    numbers = OBJECTS.astype(np.float32)
    assert np.array_equal(boundaries(numbers)[...], expected(OBJECTS))
    numbers[2, 3, 4] = value
    with pytest.raises(VolumeError, match=f"<array>: holds {shown}, which is not a label; labels are whole"):
        boundaries(numbers)[2]


@pytest.mark.slow
@given(
    arrays(np.uint8, (2, 5, 6), elements=st.integers(0, 3)),
    st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in (2, 5, 6))),
)
def test_what_is_read_does_not_depend_on_the_part_that_is_read(numbers, ends):
    key = tuple(slice(min(a, b), max(a, b) + (a == b)) for a, b in ends)
    assert np.array_equal(boundaries(numbers)[key], boundaries(numbers)[...][key])


@pytest.mark.parametrize("plane", ["z", "y", "x"])
def test_boundaries_lie_in_the_slices_that_are_read_of_parts_and_copies_too(plane):
    stored = open_volume(OBJECTS, plane=plane)
    found = Reading(instances="sparse").class_volume(stored, 2)
    assert np.array_equal(found[...], expected(stored[...]))
    copied = pickle.loads(pickle.dumps(found))  # noqa: S301  # its own bytes
    part = open_volume(copied, region=[slice(1, 3) if axis == plane else slice(None) for axis in "zyx"])
    assert np.array_equal(part[...], expected(stored[...])[1:3])


class Chunked:
    """An array that counts the chunks from which it is read."""

    dtype, chunks = np.dtype(np.uint8), (1, 1024, 1024)

    def __init__(self, array):
        self.array, self.shape, self.decoded = array, array.shape, 0

    def __getitem__(self, key):
        ends = (
            (part.start // size, (part.stop - 1) // size) for part, size in zip(key, self.chunks, strict=True)
        )
        self.decoded += math.prod(last - first + 1 for first, last in ends)
        return self.array[key]


def test_an_index_of_boundaries_decodes_each_chunk_once():
    """Blocks of a few chunks would decode all chunks around them, too."""
    stored = Chunked(np.zeros((1, 2048, 2048), np.uint8))
    counts, _ = index_classes(boundaries(stored), 2, keep=10)
    assert counts.tolist() == [2048 * 2048, 0]
    assert stored.decoded == 4


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"instances": "dens"}, "dense"),
        ({"label_values": [0, 5]}, "omit label_values"),
        ({"other_labels": "background"}, "omit other_labels"),
        ({"classes": 3}, "2 classes"),
    ],
)
def test_options_that_contradict_numbers_of_objects(options, wrong):
    with pytest.raises(ConfigError, match=f"instances=.*{wrong}"):
        boundaries(OBJECTS, **{"kind": "dense"} | options)
