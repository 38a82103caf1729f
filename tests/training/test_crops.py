"""Slice windows, whole planes or random crops: what they show, in a user's own loop and in ``train``."""

import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from values import by_name

from evenslice import AugmentationConfig, ConfigError, Reading, SliceWindows, VolumeError, neutralize

OFF = {"flips": False, "rotations": False, "z_flip": False, "intensity": False}
PLAIN = Reading(intensity=(0, 1))


def crops(image, labels=None, *, crop=(16, 16), length=100, slices=3, classes=2, **options):
    """Return random crops of voxels in 0..1."""
    labels = np.zeros(image.shape, np.uint8) if labels is None else labels
    given = {
        "crop": crop,
        "length": length,
        "slices": slices,
        "classes": classes,
        "reading": PLAIN,
        **options,
    }
    return SliceWindows(image, labels, **given)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).random((12, 50, 60), dtype=np.float32)


def of_noise(noise, **options):
    return crops(noise, noise > 0.9, foreground=0.5, **options)


# Planes


def test_whole_planes_are_the_windows_that_segment_sees(noise):
    data = SliceWindows(noise, noise > 0.9, slices=5, reading=Reading(step=2, intensity=(0, 1)))
    assert len(data) == 12
    for z, (window, labels) in enumerate(data[i] for i in range(12)):
        places = np.abs(z + 2 * np.arange(-2, 3))
        places = np.minimum(places, 22 - places)
        assert np.array_equal(window.numpy(), noise[places])
        assert np.array_equal(labels.numpy(), noise[z] > 0.9)


def test_valid_edges_leave_out_windows_that_would_be_filled(noise):
    data = SliceWindows(noise, slices=5, edge="valid", reading=PLAIN)
    assert len(data) == 8
    assert np.array_equal(data[0].numpy(), noise[:5])
    assert np.array_equal(data[7].numpy(), noise[7:])
    depth = np.broadcast_to(np.arange(9)[:, None, None], (9, 20, 20))
    data = crops(depth / 8, depth, slices=5, crop=(8, 8), edge="valid", classes=9, foreground=0.5, length=300)
    assert {int(data[i][1][0, 0]) for i in range(300)} == set(range(2, 7))


def test_volumes_follow_one_another_and_repeat(noise):
    data = SliceWindows([noise[:4], noise[4:7]], reading=PLAIN, length=9)
    assert all(np.array_equal(data[z][1].numpy(), noise[z % 7]) for z in range(9))
    for number in (-1, -9):
        assert torch.equal(data[number], data[9 + number])
    for index in (9, -10):
        with pytest.raises(IndexError, match=f"window {index} of 9"):
            data[index]


def test_windows_are_scaled_as_recorded_on_the_network(noise):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    record = neutralize(network, slices=5, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2])
    plain = SliceWindows(noise, slices=5, reading=PLAIN)
    for given in (network, record):
        data = SliceWindows(noise, reading=PLAIN, model=given)
        assert data.slices == 5
        assert torch.allclose(data[3], (plain[3] - record.mean) / record.std)
    with pytest.raises(ConfigError, match="slices=3: the network takes 5"):
        SliceWindows(noise, slices=3, model=network)


# Crops


def test_crops_are_those_of_earlier_versions():
    """A study can be given more runs years later, and compares them with those that it has."""
    image = np.random.default_rng(0).random((12, 50, 60), dtype=np.float32)
    data = crops(image, image > 0.9, foreground=0.5, augmentation=True, seed=3)
    pixels = [float(data[i][0][1, 2, 3]) for i in range(4)]
    means = [float(data[i][0].double().mean()) for i in range(4)]
    assert pixels == pytest.approx([0.932781, 0.9636964, 0.3578629, 0.3983855], abs=1e-5)
    assert means == pytest.approx([0.479813, 0.5822962, 0.4989308, 0.5531579], abs=1e-5)


def test_crop_number_i_depends_on_seed_and_i_alone(noise):
    one, other = (of_noise(noise, augmentation=True, seed=3) for _ in range(2))
    forward = [one[i] for i in range(100)]
    for i in np.random.default_rng(1).permutation(100):
        window, labels = other[int(i)]
        assert torch.equal(window, forward[i][0])
        assert torch.equal(labels, forward[i][1])
    different = of_noise(noise, augmentation=AugmentationConfig(), seed=4)
    assert not any(torch.equal(different[i][0], forward[i][0]) for i in range(20))


@pytest.mark.parametrize("crop", [(16, 16), (12, 20), (1, 7)])
def test_image_and_labels_move_together(crop):
    labels = np.random.default_rng(0).integers(0, 2, (9, 40, 40))
    options = {"foreground": 0.5, "augmentation": {"intensity": False}}
    data = crops(labels.astype(np.float32), labels, crop=crop, **options)
    for window, classes in (data[i] for i in range(60)):
        assert tuple(classes.shape) == crop
        assert torch.equal(window[1], classes.float())


@pytest.mark.parametrize(
    ("option", "ways"), [("flips", 4), ("rotations", 4), ("z_flip", 2), ("intensity", 1), (None, 1)]
)
def test_each_augmentation_can_be_switched(option, ways):
    """On a volume whose every window says which way up it is: bright to the right, brighter down, brightest along z."""
    z, y, x = np.indices((16, 32, 32))
    data = crops(
        0.024 * z + 0.013 * y + 0.006 * x, augmentation=OFF | ({option: True} if option else {}), length=200
    )
    found = []
    for window, _ in (data[i] for i in range(200)):
        down, right = window.diff(dim=1).mean(), window.diff(dim=2).mean()
        in_plane = (bool(down > 0), bool(right > 0), bool(abs(down) > abs(right)))
        found.append((bool(window[-1].mean() > window[0].mean()),) if option == "z_flip" else in_plane)
    kinds, counts = np.unique(np.array(found), axis=0, return_counts=True)
    assert len(kinds) == ways
    assert counts.min() > 200 / ways * 0.6


def test_missing_slices_are_replaced_by_the_middle_slice(noise):
    whole = crops(noise, length=300, augmentation=OFF)
    lossy = crops(noise, length=300, augmentation=OFF | {"missing_slices": 0.3})
    lost = []
    for i in range(300):  # all else is as it was: arms that differ in lost slices see the same crops
        (before, labels), (after, kept) = whole[i], lossy[i]
        assert torch.equal(labels, kept)
        assert torch.equal(before[1], after[1])
        for place in (0, 2):
            gone = torch.equal(after[place], before[1])
            assert gone or torch.equal(after[place], before[place])
            lost.append(gone)
    assert 0.23 <= np.mean(lost) <= 0.37  # 600 draws: more than three standard errors


@pytest.mark.slow
def test_crops_around_the_foreground_balance_the_classes():
    labels = np.zeros((10, 64, 64), np.int64)
    labels[2, 5, 7] = 2
    labels[5:9, 30:40, 30:40] = 1
    labels[9, 0, 0] = labels[9, 63, 63] = 3
    data = crops(labels / 3, labels, classes=4, foreground=1.0, length=600)
    shown = [[bool((data[i][1] == number).any()) for number in (1, 2, 3)] for i in range(600)]
    assert all(any(row) for row in shown)
    assert np.abs(np.mean(shown, axis=0) - 1 / 3).max() < 0.08
    single = np.zeros((50, 64, 64), np.int64)
    single[7, 30, 30] = 1
    data = crops(single.astype(float), single, foreground=0.25, length=800)
    assert np.mean([bool(data[i][1].any()) for i in range(800)]) == pytest.approx(0.25, abs=0.06)


def test_one_of_several_volumes_may_have_no_foreground(noise):
    data = crops([noise, noise], [noise > 2, noise > 0.9], crop=(8, 8), foreground=1.0, length=8)
    assert all(data[number][1].any() for number in range(8))
    with pytest.raises(VolumeError, match="holds background alone"):
        crops([noise, noise], [noise > 2] * 2, crop=(8, 8), foreground=0.5)


# Files and workers


def test_it_travels_to_workers_as_its_files(tmp_path, noise, monkeypatch):
    np.save(tmp_path / "image.npy", noise)
    np.save(tmp_path / "labels.npy", (noise > 0.9).astype(np.uint8) * 255)
    files = tmp_path / "image.npy", tmp_path / "labels.npy"
    held = SliceWindows(*files, reading=Reading(label_values=[0, 255]), crop=(16, 16), length=8)
    again = pickle.loads(pickle.dumps(held))  # noqa: S301  # our own
    assert torch.equal(again[5][0], held[5][0])
    windows, labels = zip(*DataLoader(held, batch_size=4, num_workers=1), strict=True)
    assert torch.equal(torch.cat(windows), torch.stack([held[i][0] for i in range(8)]))
    assert torch.equal(torch.cat(labels), torch.stack([held[i][1] for i in range(8)]))
    monkeypatch.setattr("evenslice.volumes.volume.IN_MEMORY", 0)  # read piece by piece
    lazy = SliceWindows(*files, reading=Reading(label_values=[0, 255]), crop=(16, 16), length=8)
    assert all(torch.equal(held[i][0], lazy[i][0]) for i in range(8))
    assert len(pickle.dumps(lazy)) < 10_000 < len(pickle.dumps(held))


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foreground": 0.5}, r"foreground=0.5: has no effect without crop=\[192, 192\]"),
        ({"foreground": 2, "crop": (8, 8)}, "foreground=2: is a fraction"),
        ({"crop": (0, 8)}, r"crop=0: must be at least 1"),
        ({"length": 0}, "^length=0: must be at least 1"),
        ({"edge": "mirror"}, "edge='mirror': did you mean|edge='mirror': known"),
        ({"classes": 1}, "classes=1: at least 2"),
        ({"model": nn.Conv2d(3, 1, 1)}, "model: has no record"),
        ({"augmentation": {"flip": True}}, "flip: no such option; did you mean 'flips'"),
        ({"augmentation": "flips"}, "^augmentation"),
        ({"slices": 1, "augmentation": {"missing_slices": 0.2}}, "a window of one slice has no neighbours"),
    ],
)
def test_what_is_wrong_is_said_at_once(noise, options, message):
    with pytest.raises(ConfigError, match=message):
        SliceWindows(noise, noise > 0.9, **by_name(SliceWindows, **options))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (lambda image: image[1:] > 0.9, {}, r"labels of shape \(11, 50, 60\) do not fit"),
        (lambda image: [image, image], {}, "2 label volumes for 1 volume;"),
        (lambda _: None, {"classes": 2}, "classes: has no effect without labels"),
        (lambda image: image > 2, {"crop": (8, 8), "foreground": 0.5}, "holds background alone"),
        (lambda image: image.astype(int) + 2, {"crop": (8, 8), "foreground": 0.5}, "holds the label value 2"),
        (lambda image: (image > 0.9) * 255, {}, "holds the label value 255"),  # found when it is read
    ],
)
def test_labels_that_do_not_fit(noise, labels, options, message):
    with pytest.raises((ConfigError, VolumeError), match=message):
        SliceWindows(noise, labels(noise), **options)[0]


@pytest.mark.slow
def test_plain_use_needs_no_extra():
    code = """
        import sys
        for name in ("pydantic", "yaml", "lightning", "monai"):
            sys.modules[name] = None
        import numpy as np
        import evenslice
        image = np.random.default_rng(0).random((8, 32, 32))
        window, labels = evenslice.SliceWindows(image, image > 0.5, crop=(16, 16), foreground=0.5)[3]
        print(tuple(window.shape), tuple(labels.shape))
        try:
            evenslice.SliceWindows(image, augmentation=True)
        except evenslice.MissingExtraError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    shapes, error = done.stdout.splitlines()
    assert shapes == "(3, 16, 16) (16, 16)"
    assert "evenslice[train]" in error
