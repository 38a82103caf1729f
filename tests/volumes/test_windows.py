"""Windows of slices, their order, and the scaling of their voxels."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from evenslice import ConfigError, Reading, Scaling, VolumeError, open_volume
from evenslice.auditing.sampling import fit_tile
from evenslice.volumes import WindowGrid

NOISE = np.random.default_rng(0).random((9, 12, 10))


def grid(voxels, slices=3, tile=(8, 8), **options):
    return WindowGrid(open_volume(voxels), Scaling(0, 1), slices, tile, **options)


# Where windows are


@given(z=st.integers(0, 19), slices=st.sampled_from([1, 3, 5, 7, 9]), step=st.integers(1, 2))
def test_reflected_windows_agree_with_numpy(z, slices, step):
    reach = slices // 2 * step
    padded = np.pad(np.arange(20), reach, mode="reflect") if reach else np.arange(20)
    found = grid(np.zeros((20, 1, 1)), slices, step=step, edge="reflect").slices_at(z)
    assert found.tolist() == padded[z : z + 2 * reach + 1 : step].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": 4}, "slices=4: a window has an odd number"),
        ({"step": 0}, "step=0"),
        ({"edge": "reflct"}, "did you mean 'reflect'"),
    ],
)
def test_a_wrong_window_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        grid(NOISE, **change)


@given(
    length=st.integers(1, 60), tile=st.integers(1, 20), overlap=st.integers(0, 19), other=st.integers(1, 60)
)
def test_tiles_cover_the_plane(length, tile, overlap, other):
    overlap = min(overlap, tile - 1)
    tiles = grid(np.zeros((3, length, other), np.uint8), tile=(tile, tile), overlap=(overlap, 0))
    count = np.zeros((length, other), int)
    for number in range(tiles.tiles):
        y, x = tiles.origin(number)
        count[y : y + tile, x : x + tile] += 1
    assert count.min() == 1
    rows = sorted({tiles.origin(number)[0] for number in range(tiles.tiles)})
    assert all(b - a <= tile - overlap for a, b in pairwise(rows))


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_tiles_fit_what_networks_need(height, width):
    y, x = fit_tile((height, width))
    assert y % 32 == x % 32 == 0
    assert 32 <= y <= 256
    assert y <= max(height, 32)
    assert x <= max(width, 32)
    assert (y == 192) if height > 256 else (y > height - 32)


@given(
    depth=st.integers(3, 40), sides=st.tuples(st.integers(1, 20), st.integers(1, 20)), seed=st.integers(0, 99)
)
def test_every_window_is_visited_once(depth, sides, seed):
    windows = grid(np.zeros((depth, *sides), np.uint8), tile=(6, 6))
    visits = list(windows.visits(seed=seed))
    assert len(visits) == len(set(visits)) == len(windows)
    assert {z for z, _, _ in visits} == set(windows.centres)
    assert {place[1:] for place in visits} == {windows.origin(tile) for tile in range(windows.tiles)}
    assert visits == list(windows.visits(seed=seed))


def test_any_beginning_of_the_visits_is_spread_over_depth_and_plane():
    windows = grid(np.broadcast_to(np.uint8(0), (514, 6, 6)), tile=(2, 2))
    visits = np.array(list(islice(windows.visits(seed=3), 90)))
    assert np.histogram(visits[:, 0], bins=9, range=(1, 513))[0].tolist() == pytest.approx([10] * 9, abs=2)
    assert np.bincount(visits[:, 1] // 2 * 3 + visits[:, 2] // 2, minlength=9).min() >= 3


@pytest.mark.parametrize("depth", [64, 512])
@pytest.mark.parametrize("seed", range(4))
def test_which_of_two_neighbours_is_visited_first_is_random(depth, seed):
    """Sections may alternate, and a power of two is no reason to see every other one alone."""
    first = np.array([WindowGrid.spread(number, depth, seed) for number in range(depth // 2)])
    assert sorted(first // 2) == list(range(depth // 2))
    assert abs(np.sum(first % 2) - depth / 4) < 4 * np.sqrt(depth / 8)  # standard deviations


# What they hold


@pytest.mark.parametrize("step", [1, 2])
def test_a_window_holds_the_slices_around_its_centre(step):
    windows = grid(NOISE, tile=(5, 4), step=step)
    z = int(windows.centres[1])
    expected = NOISE[[z - step, z, z + step], 7:12, 4:8]
    np.testing.assert_allclose(windows.read(z, 7, 4), expected, rtol=1e-6)


def test_a_plane_smaller_than_the_tile_is_mirrored():
    window = grid(NOISE[:5, :6, :7]).read(2, 0, 0)
    assert window.shape == (3, 8, 8)
    np.testing.assert_array_equal(window[:, 6:], window[:, 5:3:-1])


def test_labels_belong_to_the_middle_slice():
    labels = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    found = grid(labels, tile=(4, 4)).read_labels(open_volume(labels), 2, 2, 3)
    np.testing.assert_array_equal(found, labels[2, 2:6, 3:7])


def test_windows_of_the_volume_ends_need_an_edge_policy():
    with pytest.raises(VolumeError, match="has 4 slices; a window of 3 in steps of 2 needs 5"):
        grid(NOISE[:4], step=2)
    assert list(grid(NOISE[:5]).centres) == [1, 2, 3]
    mirrored = grid(NOISE[:5], edge="reflect")
    assert list(mirrored.centres) == [0, 1, 2, 3, 4]
    window = mirrored.read(0, 0, 0)
    np.testing.assert_array_equal(window[0], window[2])


# Scaling


def fit(voxels, **reading):
    return Reading(**reading).fit_scaling(open_volume(voxels))


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-2, 1e3))
def test_scaling_maps_the_range_to_one(low, width):
    voxels = np.array([low - 1, low, low + width / 2, low + width, low + 2 * width])
    scaled = Scaling(low, low + width)(voxels)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1], atol=0.02)


def test_scaling_leaves_its_input_alone_and_fills():
    voxels = np.array([0.0, np.nan, np.inf, 4.0], dtype=np.float32)
    np.testing.assert_array_equal(Scaling(0, 4, fill=2)(voxels), [0, 0.5, 0.5, 1])
    np.testing.assert_array_equal(Scaling(0, 4)(voxels), [0, np.nan, 1, 1])
    assert np.isnan(voxels[1])
    narrow = Scaling(np.int16(-32768), np.int16(32767), np.uint8(0))  # in which the width overflows
    assert narrow([-32768, 32767]).tolist() == [0, 1]
    assert {type(value) for value in vars(narrow).values()} == {float}


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint32])
def test_what_float32_would_make_equal_is_scaled_apart(dtype):
    voxels = (np.arange(200) + 1_000_000_000).astype(dtype).reshape(2, 10, 10)
    expected = np.arange(200, dtype=np.float32).reshape(2, 10, 10) / 199
    scaling = fit(voxels, intensity=(1_000_000_000, 1_000_000_199))
    np.testing.assert_allclose(scaling(voxels), expected, atol=1e-6)
    found = fit(voxels)
    assert (found.low, found.high) == pytest.approx((1_000_000_000.995, 1_000_000_198.005), abs=1e-6)
    assert len(np.unique(found(voxels))) >= 198


def test_a_range_beyond_float32_is_that_of_large_values():
    voxels = np.linspace(0, 1e302, 101).reshape(1, 1, 101)
    scaling = fit(voxels, intensity=(0, 1e302))
    np.testing.assert_allclose(scaling(voxels).ravel(), np.arange(101) / np.float32(100), rtol=1e-6)
    assert Scaling(0, 1e-320)(np.array([0, 1], np.uint8)).tolist() == [0, 1]
    np.testing.assert_allclose(fit(voxels)(voxels)[..., 1:-1], voxels[..., 1:-1] / 1e302, atol=0.006)


@pytest.mark.parametrize(
    ("given", "option"),
    [
        (("low", 1), "intensity"),
        ((None, 1), "intensity"),
        ((3, 3), "intensity"),
        ((-1.7e308, 1.7e308), "intensity"),
        ((0, 1, [1]), "fill"),
        ((0, 1, 10**400), "fill"),
        ((0, 1, np.inf), "fill"),
    ],
)
def test_what_is_no_scaling_is_refused(given, option):
    with pytest.raises(ConfigError, match=option):
        Scaling(*given)


@pytest.mark.parametrize(("darkest", "told"), [(0, "almost all voxels"), (3, "<array>: all voxels")])
def test_a_range_that_leaves_no_contrast_is_refused(darkest, told):
    voxels = np.random.default_rng(0).integers(3, 200, (20, 50, 50), np.uint8)
    voxels[3, 4, :5] = darkest
    with pytest.raises(
        ConfigError, match=rf"{told} are equal after scaling by intensity=\[0.0, 1.0\].*to 199"
    ):
        fit(voxels, intensity=(0, 1))
    assert fit(voxels > 100, intensity=(0, 1)) == Scaling(0, 1)


def test_a_range_may_be_for_what_is_rare_or_for_a_blank_volume():
    voxels = np.random.default_rng(0).integers(0, 20, (20, 50, 50))
    voxels[3:5, :, 0] = 150
    assert fit(voxels, intensity=(100, 200)) == Scaling(100, 200)
    voxels[...] = 0
    assert fit(voxels, intensity=(0, 255)) == Scaling(0, 255)
    voxels[0, 0, 0] = 150  # the corner of an empty tile
    assert fit(voxels, intensity=(200, 300)) == Scaling(200, 300)


def test_the_contrast_of_a_sparse_volume_is_that_of_its_extremes_and_a_constant_one_has_none():
    voxels = np.zeros((10, 20, 20), dtype=np.uint8)
    voxels[5, 5, 5] = 9
    assert fit(voxels) == Scaling(0, 9)
    with pytest.raises(VolumeError, match="constant, all 60 sampled voxels are 7.*intensity"):
        fit(np.full((3, 4, 5), 7))


@pytest.mark.parametrize("intensity", [None, (0, 1)])
def test_nonfinite_voxels_are_counted_and_located(intensity):
    voxels = np.random.default_rng(0).random((30, 100, 100)).astype(np.float32)
    voxels[20, 30, 20] = np.nan
    voxels[25, 0, 0] = np.inf
    located = r"2 voxels are NaN or infinite, the first at z, y, x = \(20, 30, 20\).* as fill"
    with pytest.raises(VolumeError, match=located):
        fit(voxels, intensity=intensity)
    assert fit(voxels, intensity=intensity, fill=0).fill == 0
    with pytest.raises(VolumeError, match=located):
        grid(voxels, tile=(40, 40)).read(20, 0, 0)
    filled = WindowGrid(open_volume(voxels), Scaling(0, 1, fill=0.5), 3, (40, 40))
    assert filled.read(20, 0, 0)[1, 30, 20] == 0.5


def test_a_remote_volume_is_not_downloaded_to_search_it_for_nan(monkeypatch):
    monkeypatch.delattr("evenslice.volumes.windows.check_finite")
    voxels = np.random.default_rng(0).random((5, 40, 40))
    voxels[2, 3, 4] = np.nan
    volume = open_volume(voxels)
    volume = replace(volume, origin=replace(volume.origin, location="https://127.0.0.1/cells.zarr"))
    with pytest.raises(VolumeError, match="1 of 8000 voxels of a sample are NaN or infinite"):
        Reading().fit_scaling(volume)
    windows = WindowGrid(volume, Reading(intensity=(0, 1)).fit_scaling(volume), 3, (32, 32))
    with pytest.raises(VolumeError, match=r"1 of 3072 voxels of the window at z, y, x = \(1, 0, 0\) are NaN"):
        windows.read(1, 0, 0)
