"""A volume and checks that the tests of all volume formats share."""

import re

import numpy as np
import pytest

from evenslice import VolumeError, open_volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(1200)


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


def fails(path, pattern="", error=VolumeError, **options):
    """Check that opening or reading raises a one-line error that starts with the path."""
    with pytest.raises(error) as caught:
        open_volume(path, **options)[...]
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert re.search(pattern, message), message
    if error is VolumeError and isinstance(path, str) and path:
        assert message.startswith(f"{path.replace(chr(0), '?')}: ")
