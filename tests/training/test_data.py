"""The data set of a configuration: which slices are trained on, validated and tested, and what is refused."""

import numpy as np
import pytest
import zarr

from evenslice import ConfigError, EvensliceError, TrainConfig, VolumeError
from evenslice.training import open_data

SHAPE = (40, 24, 32)


@pytest.fixture
def folder(tmp_path):
    """A folder with an image whose slices are bright as their number, and labels of two classes."""
    random = np.random.default_rng(0)
    image = np.broadcast_to(np.arange(SHAPE[0], dtype=np.uint8)[:, None, None], SHAPE)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", (random.random(SHAPE) < 0.2).astype(np.uint8))
    return tmp_path


def configured(folder, train, *, model=None, **options):
    """Return a configuration; sources are given as a range of slices or in full."""

    def source(given):
        defaults = {"image": "image.npy", "labels": "labels.npy"}
        return defaults | (given if isinstance(given, dict) else {"slices": given})

    splits = {"train": train, "validation": [], "test": [], **options}
    for split in ("train", "validation", "test"):
        splits[split] = [source(item) for item in splits[split]]
    data = {"root": str(folder), "validation_fraction": 0.1, **splits}
    return TrainConfig.model_validate({"data": data, "model": {"strategy": "uniform", **(model or {})}})


@pytest.fixture
def load(folder):
    return lambda train, **options: open_data(configured(folder, train, **options))


@pytest.fixture
def error(load):
    """The one line that a data set is refused with."""

    def error(*args, **options):
        with pytest.raises(EvensliceError) as caught:
            load(*args, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return error


# Splits


def test_splits_by_range_are_volumes_of_their_own(load, folder):
    data = load([[0, 20]], validation=[[21, 30]], test=[[31, 40]])
    (train,), (validation,), (test,) = data.train, data.validation, data.test
    assert (train.volume.shape[0], validation.volume.shape[0], test.volume.shape[0]) == (20, 9, 9)
    assert (test.name, test.volume[0, 0, 0], test.classes) == ("image.npy[31:40]", 31, 2)
    assert np.array_equal(test.labels[...], np.load(folder / "labels.npy")[31:])
    assert test.labels.dtype == np.int64
    assert train.scaling.high <= 19  # fitted to what trains of a file
    assert train.scaling == validation.scaling == test.scaling
    data = load([[0, 20]], test=[[31, 40]], intensity=[0, 100], fill=5)
    assert {(part.scaling.low, part.scaling.high, part.scaling.fill) for part in data.train + data.test} == {
        (0, 100, 5)
    }


def test_slices_are_held_out_for_validation_or_whole_pairs_where_there_are_many(load, folder):
    data = load([[0, 30]], test=[[32, 40]], model={"slices": 5})
    assert (data.train[0].name, data.validation[0].name) == ("image.npy[0:23]", "image.npy[25:30]")
    assert not load([{}], validation_fraction=0).validation
    for number in range(5):
        np.save(folder / f"{number}.npy", np.load(folder / "image.npy"))
        np.save(folder / f"labels{number}.npy", np.load(folder / "labels.npy"))
    data = load([{"image": f"{number}.npy", "labels": f"labels{number}.npy"} for number in range(5)])
    assert [part.name for part in data.validation] == ["4.npy"]
    assert [part.name for part in data.train] == [f"{number}.npy" for number in range(4)]
    alike = load([{"image": f"{number}.npy"} for number in range(5)])  # five images of one piece of the world
    assert [part.name for part in alike.validation] == [f"{number}.npy[36:40]" for number in range(5)]


def test_options_of_a_file_and_the_spacing(load, folder):
    stack = np.stack([np.zeros(SHAPE, np.uint8), np.load(folder / "image.npy")])
    np.save(folder / "channels.npy", stack)
    np.save(folder / "masks.npy", np.load(folder / "labels.npy") * np.uint8(255))
    image = {"path": "channels.npy", "axes": "czyx", "select": {"c": 1}}
    source = {"image": image, "spacing": [5, 4, 4], "unit": "nm", "labels": "masks.npy"}
    part = load([source], label_values=[0, 255]).train[0]
    assert (part.volume.spacing, part.volume.unit, part.volume[7, 0, 0]) == ((5, 4, 4), "nm", 7)
    assert np.array_equal(part.labels[...], np.load(folder / "labels.npy")[: part.labels.shape[0]])


# What is refused


@pytest.mark.parametrize(
    ("splits", "slices", "expected"),
    [
        ({"train": [[0, 20]], "test": [[19, 30]]}, 1, "overlap in slices 19 to 19; "),
        ({"train": [[0, 20]], "test": [[20, 30]]}, 3, "0 slices apart; leave at least 1 between them"),
        ({"train": [[0, 20]], "test": [[21, 30]]}, 5, "1 slices apart; leave at least 2 between them"),
        ({"train": [[0, 20], [10, 30]]}, 3, "data.train[0] and data.train[1]"),
        ({"train": [[0, 20], [20, 40]]}, 3, "data.train[0] (held out for validation)"),
        ({"train": [[0, 50]]}, 3, "data.train[0].slices: [0, 50]: "),
        ({"train": [[0, 6]]}, 3, "data.train[0]: its 6 slices are too few to hold out 3 of them for validation; "),
    ],
)  # fmt: skip
def test_splits_that_overlap_or_lie_too_close(error, splits, slices, expected):
    splits = dict(splits)
    assert expected in error(splits.pop("train"), model={"slices": slices}, **splits)


def test_a_split_shorter_than_a_window(error):
    text = error([[0, 20]], test=[[30, 34]], model={"slices": 3, "step": 2})
    assert text.startswith("data.test[0]: has 4 slices; a window of 3 in steps of 2 needs 5")


def labels_with(place, value):
    def change(folder):
        labels = np.load(folder / "labels.npy")
        labels[place] = value
        np.save(folder / "changed.npy", labels)

    return change


def changed(*slices):
    return {"labels": "changed.npy", "slices": slices}


LAST = slice(30, None)
SHORT = np.zeros((39, 24, 32), np.uint8)


@pytest.mark.parametrize(
    ("change", "splits", "options", "message"),
    [
        (
            labels_with((31, 3, 3), 255),
            {"test": [changed(31, 40)]},
            {},
            r"test\[0\].labels: .*holds the label value 255",
        ),
        (
            labels_with((LAST, 0, 0), 2),
            {},
            {"classes": 3},
            "^data.train: has no voxel of class 2 .label value 2",
        ),
        (labels_with(LAST, 0), {"test": [changed(30, 40)]}, {}, r"^data.test\[0\]: contains no class but 0"),
        (
            lambda folder: np.save(folder / "changed.npy", SHORT),
            {"test": [changed(31, 40)]},
            {},
            r"\(39, 24, 32\)",
        ),
        (
            lambda folder: np.save(folder / "image.npy", np.full(SHAPE, 7)),
            {},
            {"intensity": [0, 255]},
            "voxels are 7;",
        ),
    ],
)
def test_files_that_cannot_be_trained_or_tested_on(load, folder, change, splits, options, message):
    change(folder)
    with pytest.raises((ConfigError, VolumeError), match=message):
        load([[0, 25]], validation_fraction=0, **splits, **options)


def test_an_image_that_is_not_finite(error, load, folder):
    image = np.load(folder / "image.npy").astype(np.float32)
    image[33, 2, 1] = np.nan
    np.save(folder / "image.npy", image)
    text = error([[0, 20]], test=[[30, 40]])
    assert text.startswith("data.test[0].image: ")
    assert "1 voxels are NaN or infinite, the first at z, y, x = (3, 2, 1); " in text
    load([[0, 20]], test=[[30, 40]], fill=0)


# What is one image


def test_copies_of_an_image_with_the_same_labels(error, load, folder):
    np.save(folder / "copy.npy", np.load(folder / "image.npy"))
    copy = {"image": "copy.npy", "slices": [10, 30]}
    text = error([[0, 20]], test=[copy])
    assert text.startswith("data.train[0] and data.test[0] both read ")
    assert "labels.npy, and overlap in slices 10 to 19" in text
    assert len(load([[0, 20], copy], validation_fraction=0).train) == 2  # two images of one piece to train on


@pytest.fixture
def pyramids(folder):
    """The image and its labels as OME-Zarr, each with a second level of half as many slices."""
    for name in ("image", "labels"):
        levels = [np.load(folder / f"{name}.npy"), np.load(folder / f"{name}.npy")[::2, ::2, ::2]]
        group = zarr.open_group(folder / f"{name}.ome.zarr", mode="w")
        for number, voxels in enumerate(levels):
            group[str(number)] = voxels
        datasets = [{"path": str(number)} for number in range(2)]
        group.attrs["multiscales"] = [{"axes": ["z", "y", "x"], "datasets": datasets}]


def of(name, level, *slices):
    """A pair whose image and labels are files of one kind, at a level."""
    return {kind: {"path": f"{kind}.ome.zarr{name}", "level": level} for kind in ("image", "labels")} | {
        "slices": slices
    }


@pytest.mark.usefixtures("pyramids")
@pytest.mark.parametrize(("one", "other", "level"), [("", "", 1), ("/0", "/1", 0)])
def test_slices_of_different_levels_of_an_image_are_not_compared(error, one, other, level):
    text = error([of(one, 0, 24, 40)], test=[of(other, level, 0, 12)])
    assert text.startswith("data.train[0] and data.test[0] both read ")
    assert "at different resolution levels" in text
