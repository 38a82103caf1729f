"""Checks that the tests of all volume formats share."""

import re

import numpy as np
import pytest

from evenslice._core import errors
from evenslice.volumes.opening import open_volume


def same(volume, array):
    """Check shape, data type, all voxels, and a window in the middle."""
    assert volume.shape == array.shape
    assert volume.dtype == array.dtype.newbyteorder("=")
    whole = volume[...]
    assert whole.dtype == volume.dtype
    assert whole.dtype.isnative
    np.testing.assert_array_equal(whole, array)
    np.testing.assert_array_equal(volume[1:5:2, 3:17, 20:31:3], array[1:5:2, 3:17, 20:31:3])
    return True


def fails(path, pattern, error=errors.VolumeError, **options):
    """Check that opening or reading raises a one-line error that starts with the path."""
    with pytest.raises(error) as caught:
        open_volume(path, **options)[...]
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert re.search(pattern, message), message
    if error is errors.VolumeError and isinstance(path, str) and path:
        shown = path.replace("\0", "?")
        assert message.startswith(f"{shown}: ")
