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

from evenslice import ConfigError, Reading, SliceWindows, VolumeError, neutralize
from evenslice.training.config import AugmentationConfig


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).random((12, 50, 60), dtype=np.float32)


def test_whole_planes_are_the_windows_that_segment_sees(image):
    data = SliceWindows(image, image > 0.9, slices=5, reading=Reading(step=2, intensity=(0, 1)))
    assert len(data) == 12
    for z, (window, labels) in enumerate(data[i] for i in range(12)):
        places = np.abs(z + 2 * np.arange(-2, 3))
        places = np.minimum(places, 22 - places)
        assert np.array_equal(window.numpy(), image[places])
        assert np.array_equal(labels.numpy(), image[z] > 0.9)


def test_valid_edges_leave_out_windows_that_would_be_filled(image):
    data = SliceWindows(image, slices=5, edge="valid", reading=Reading(intensity=(0, 1)))
    assert len(data) == 8
    assert np.array_equal(data[0].numpy(), image[:5])
    assert np.array_equal(data[7].numpy(), image[7:])


def test_crops_with_valid_edges_stay_away_from_the_ends():
    depth = np.broadcast_to(np.arange(9)[:, None, None], (9, 20, 20))
    data = SliceWindows(
        depth / 8, depth, slices=5, crop=(8, 8), edge="valid", classes=9, foreground=0.5, length=300
    )
    seen = {int(data[i][1][0, 0]) for i in range(300)}
    assert seen == set(range(2, 7))


def test_volumes_follow_one_another_and_repeat(image):
    data = SliceWindows([image[:4], image[4:7]], reading=Reading(intensity=(0, 1)), length=9)
    middle = [data[i][1].numpy() for i in range(9)]
    assert all(np.array_equal(plane, image[z % 7]) for z, plane in enumerate(middle))


def test_windows_are_scaled_as_recorded_on_the_network(image):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    record = neutralize(network, slices=5, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2])
    plain = SliceWindows(image, slices=5, reading=Reading(intensity=(0, 1)))
    for given in ({"model": network}, {"model": record}):
        data = SliceWindows(image, **by_name(SliceWindows, reading=Reading(intensity=(0, 1)), **given))
        assert data.slices == 5
        assert torch.allclose(data[3], (plain[3] - record.mean) / record.std)


def test_crops_are_those_of_train(image):
    options = {"crop": (16, 24), "length": 20, "foreground": 0.5, "seed": 3}
    given = SliceWindows(
        image,
        image > 0.9,
        **by_name(SliceWindows, augmentation=AugmentationConfig(rotations=False), **options),
    )
    named = SliceWindows(
        image, image > 0.9, **by_name(SliceWindows, augmentation={"rotations": False}, **options)
    )
    plain = SliceWindows(image, image > 0.9, **by_name(SliceWindows, **options))
    assert all(torch.equal(given[i][0], named[i][0]) for i in range(20))
    assert not all(torch.equal(given[i][0], plain[i][0]) for i in range(20))


def test_planes_that_are_not_square_turn_by_half_turns_alone(image):
    labels = (image > 0.5).astype(np.uint8)
    data = SliceWindows(labels.astype(float), labels, augmentation={"intensity": False}, length=40)
    for window, classes in (data[i] for i in range(40)):
        assert window.shape == (3, 50, 60)
        assert torch.equal(window[1], classes.float())
    square = SliceWindows(labels[:, :, :50].astype(float), augmentation=True)
    assert square[0].shape == (3, 50, 50)


def test_it_travels_to_workers_as_its_files(tmp_path, image):
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", (image > 0.9).astype(np.uint8) * 255)
    data = SliceWindows(
        tmp_path / "image.npy",
        tmp_path / "labels.npy",
        reading=Reading(label_values=[0, 255]),
        crop=(16, 16),
        length=8,
    )
    again = pickle.loads(pickle.dumps(data))  # noqa: S301  # our own
    assert torch.equal(again[5][0], data[5][0])
    windows, labels = zip(*DataLoader(data, batch_size=4, num_workers=1), strict=True)
    assert torch.equal(torch.cat(windows), torch.stack([data[i][0] for i in range(8)]))
    assert torch.equal(torch.cat(labels), torch.stack([data[i][1] for i in range(8)]))


def test_files_too_large_for_memory_are_read_piece_by_piece(tmp_path, image, monkeypatch):
    np.save(tmp_path / "image.npy", image)
    held = SliceWindows(tmp_path / "image.npy", crop=(16, 16))
    monkeypatch.setattr("evenslice.volumes.volume.IN_MEMORY", 0)
    lazy = SliceWindows(tmp_path / "image.npy", crop=(16, 16))
    assert all(torch.equal(held[i], lazy[i]) for i in range(len(held)))
    assert len(pickle.dumps(lazy)) < 10_000 < len(pickle.dumps(held))


def test_it_counts_from_the_end_as_a_list_does(image):
    data = SliceWindows(image, crop=np.array([8, 16]), length=np.int64(20))
    assert len(data) == 20
    assert torch.equal(data[-1], data[19])
    assert torch.equal(data[-20], data[0])
    for index in (20, -21):
        with pytest.raises(IndexError, match=f"window {index} of 20"):
            data[index]


def test_a_label_of_no_class_is_found_when_labels_are_read(image):
    labels = (image > 0.9) * 255
    with pytest.raises(VolumeError, match="holds the label value 255"):
        SliceWindows(image, labels)[0]
    with pytest.raises(VolumeError, match="holds the label value 255"):
        SliceWindows(image, labels, crop=(8, 8), foreground=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foreground": 0.5}, r"foreground=0.5: has no effect without crop=\[192, 192\]"),
        ({"foreground": 2, "crop": (8, 8)}, "foreground=2: is a fraction"),
        ({"step": 1.5}, "step: is 1.5, not a whole number"),
        ({"slices": 3.0}, "slices: is 3.0, not a whole number"),
        ({"seed": -1}, "^seed=-1: must be at least 0"),
        ({"crop": (0, 8)}, r"crop=0: must be at least 1"),
        ({"crop": 64}, "^crop=64"),
        ({"length": 0}, "^length=0: must be at least 1"),
        ({"length": 1.5}, "^length: is 1.5, not a whole number"),
        ({"foreground": "half", "crop": (8, 8)}, "foreground='half': is a fraction of the crops, 0 to 1"),
        ({"intensity": (0, 1, 2)}, r"intensity=\[0, 1, 2\]: give two numbers, the voxel values that become"),
        ({"slices": 4}, "a window has an odd number of slices"),
        ({"edge": "mirror"}, "edge='mirror': did you mean|edge='mirror': known"),
        ({"classes": 1}, "classes=1: at least 2"),
        ({"label_values": [0, 0]}, "give a different value for each"),
        ({"reading": [Reading()] * 2}, "reading: 2 for 1 volume;"),
        ({"model": nn.Conv2d(3, 1, 1)}, "model: has no record"),
        ({"augmentation": {"flip": True}}, "flip: no such option; did you mean 'flips'"),
        ({"augmentation": "flips"}, "^augmentation"),
        ({"fill": "x"}, "fill: 'x' is not a number"),
        ({"classes": "2"}, "classes: is '2', not a whole number"),
        ({"label_values": 5}, r"label_values=5: give the value of each class"),
    ],
)
def test_what_is_wrong_is_said_at_once(image, options, message):
    with pytest.raises(ConfigError, match=message):
        SliceWindows(image, image > 0.9, **by_name(SliceWindows, **options))


def test_labels_that_do_not_fit(image):
    with pytest.raises(VolumeError, match=r"labels of shape \(11, 50, 60\) do not fit"):
        SliceWindows(image, image[1:] > 0.9)
    with pytest.raises(ConfigError, match="2 label volumes for 1 volume;"):
        SliceWindows(image, [image, image])
    with pytest.raises(ConfigError, match="classes: has no effect without labels"):
        SliceWindows(image, classes=2)
    with pytest.raises(VolumeError, match="holds background alone"):
        SliceWindows(image, image > 2, crop=(8, 8), foreground=0.5)
    with pytest.raises(VolumeError, match="holds the label value 2"):
        SliceWindows(image, image.astype(int) + 2, crop=(8, 8), foreground=0.5)


def test_a_network_and_slices_that_it_does_not_take(image):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    neutralize(network, slices=5, mean=0.5, std=0.5)
    with pytest.raises(ConfigError, match="slices=3: the network takes 5"):
        SliceWindows(image, slices=3, model=network)


def test_plain_use_needs_no_extra(tmp_path):
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


def test_one_of_several_volumes_may_have_no_foreground(image):
    labels = [image > 2, image > 0.9]
    data = SliceWindows([image, image], labels, crop=(8, 8), foreground=1.0, length=8)
    assert all(data[number][1].any() for number in range(8))
    with pytest.raises(VolumeError, match="holds background alone"):
        SliceWindows([image, image], [image > 2] * 2, crop=(8, 8), foreground=0.5)
