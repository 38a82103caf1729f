"""The data set of a configuration: which slices are trained on, validated and tested, and what is refused."""

import pickle

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st

from evenslice import ConfigError, EvensliceError, TrainConfig, VolumeError, open_volume
from evenslice.training import fingerprints, open_data
from evenslice.volumes import index_classes

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


def test_large_data_sets_stay_in_their_files(load, monkeypatch):
    kept = load([[0, 20]])
    monkeypatch.setattr("evenslice.volumes.volume.IN_MEMORY", 100)
    lazy = load([[0, 20]])
    assert np.array_equal(kept.train[0].volume[...], lazy.train[0].volume[...])
    assert len(pickle.dumps(lazy.train[0].volume)) < 5000 < len(pickle.dumps(kept.train[0].volume))


def test_files_are_known_by_their_fingerprints(folder):
    config = configured(folder, [[0, 20], [30, 40]]).data
    before = fingerprints(config)
    assert len(before) == 2
    np.save(folder / "labels.npy", np.load(folder / "labels.npy") ^ 1)
    assert len(before & fingerprints(config)) == 1


def test_real_volumes(shared_data):
    pairs = [f"hippocampus_{number}.nii.gz" for number in ("001", "003", "004", "006", "007", "008")]
    sources = [{"image": f"images/{name}", "labels": f"labels/{name}"} for name in pairs]
    options = {"classes": 3, "test": sources[4:]}
    data = open_data(configured(shared_data / "msd_hippocampus", sources[:4], **options))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3, 1, 2]
    assert all(part.volume.spacing == (1, 1, 1) for part in data.test)
    assert all(len(found) for part in data.train for found in part.index.positions[1:])


# What is refused


@pytest.mark.parametrize(
    ("splits", "slices", "expected"),
    [
        ({"train": [[0, 20]], "test": [[19, 30]]}, 3, "data.train[0] and data.test[0]"),
        ({"train": [[0, 20]], "test": [[19, 30]]}, 1, "overlap in slices 19 to 19; "),
        ({"train": [[0, 20]], "test": [[20, 30]]}, 3, "0 slices apart; leave at least 1 between them"),
        ({"train": [[0, 20]], "test": [[21, 30]]}, 5, "1 slices apart; leave at least 2 between them"),
        ({"train": [[22, 40]], "test": [[10, 21]]}, 5, "1 slices apart"),
        ({"train": [[0, 20]], "validation": [[20, 30]]}, 3, "data.train[0] and data.validation[0]"),
        ({"train": [[0, 20]], "validation": [[21, 30]], "test": [[25, 40]]}, 3, "data.validation[0] and data.test[0]"),
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


@pytest.mark.parametrize(
    ("change", "splits", "options", "message"),
    [
        (
            labels_with((31, 3, 3), 255),
            {"train": [changed(31, 40)]},
            {"validation_fraction": 0},
            r"^data.train\[0\].labels: .*holds the label value 255, but the 2 classes have the values 0, 1",
        ),
        (
            labels_with((31, 3, 3), 255),
            {"train": [[0, 30]], "test": [changed(31, 40)]},
            {"validation_fraction": 0},
            r"^data.test\[0\].labels: .*changed.npy\[31:40,.*\]: holds the label value 255",
        ),
        (
            labels_with((slice(30, None), 0, 0), 2),
            {"train": [changed(0, 25)]},
            {"classes": 3},
            r"^data.train: has no voxel of class 2 \(label value 2\) in its slices; ",
        ),
        (
            labels_with(slice(30, None), 0),
            {"train": [{"labels": "changed.npy"}]},
            {},
            r"^data.train\[0\] \(held out for validation\): contains only class 0",
        ),
        (
            labels_with(slice(30, None), 255),
            {"train": [changed(0, 28)], "test": [changed(30, 40)]},
            {"ignore_label": 255},
            r"^data.test\[0\]: contains only voxels with data.ignore_label: 255, so it cannot measure a network; ",
        ),
        (
            lambda folder: np.save(folder / "short.npy", np.zeros((39, 24, 32), np.uint8)),
            {"train": [{}], "validation": [{"labels": "short.npy"}]},
            {},
            r"^data.validation\[0\].labels: .*\(39, 24, 32\).*\(40, 24, 32\)",
        ),
        (
            lambda folder: np.save(folder / "image.npy", np.full(SHAPE, 7, np.uint8)),
            {"train": [[0, 20]]},
            {"intensity": [0, 255]},
            "sampled voxels are 7; use a volume with contrast",
        ),
    ],
)
def test_files_that_cannot_be_trained_or_tested_on(load, folder, change, splits, options, message):
    change(folder)
    splits = dict(splits)
    with pytest.raises((ConfigError, VolumeError), match=message):
        load(splits.pop("train"), **splits, **options)


def test_an_image_that_is_not_finite(error, load, folder):
    image = np.load(folder / "image.npy").astype(np.float32)
    image[33, 2, 1] = np.nan
    np.save(folder / "image.npy", image)
    text = error([[0, 20]], test=[[30, 40]])
    assert text.startswith("data.test[0].image: ")
    assert "1 voxels are NaN or infinite, the first at z, y, x = (3, 2, 1); " in text
    load([[0, 20]], test=[[30, 40]], fill=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"spacing": [0, -1, 1]}, "data.train[0].spacing: [0.0, -1.0, 1.0]: "),
        ({"unit": "furlong"}, "data.train[0].unit: furlong: "),
        ({"image": {"path": "image.npy", "axes": "zyq"}}, "data.train[0].image.axes: zyq: "),
        ({"image": "missing.npy"}, "data.train[0].image: "),
    ],
)
def test_a_place_is_named_once(error, source, message):
    text = error([source])
    assert text.startswith(message)
    assert text.count("data.train[0]") == 1


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
@pytest.mark.parametrize(("one", "other", "level"), [("", "", 1), ("", "/1", 0), ("/0", "/1", 0)])
def test_slices_of_different_levels_of_an_image_are_not_compared(error, one, other, level):
    text = error([of(one, 0, 24, 40)], test=[of(other, level, 0, 12)])
    assert text.startswith("data.train[0] and data.test[0] both read ")
    assert "at different resolution levels" in text


@pytest.mark.usefixtures("pyramids")
def test_an_image_and_the_array_of_its_finest_level_are_one(error, load):
    assert "overlap in slices 10 to 19" in error([of("", 0, 0, 20)], test=[of("/0", 0, 10, 30)])
    assert len(load([of("", 0, 0, 20)], test=[of("/0", 0, 25, 40)]).test) == 1


def test_links_to_a_dataset_are_that_dataset_and_others_are_others(error, load, folder):
    with h5py.File(folder / "all.h5", "w") as file:
        for name in ("image", "labels"):
            file[name] = np.load(folder / f"{name}.npy")
            file[f"hard/{name}"], file[f"soft/{name}"] = file[name], h5py.SoftLink(f"/{name}")
        file["other/image"], file["other/labels"] = 100.0 * file["image"][...], file["labels"][...][::-1]
    whole, hard, soft, other = (
        {"image": f"all.h5:{at}/image", "labels": f"all.h5:{at}/labels", "slices": slices}
        for at, slices in (("", [0, 20]), ("/hard", [10, 30]), ("/soft", [15, 40]), ("/other", None))
    )
    assert "overlap in slices 10 to 19" in error([whole], test=[hard])
    assert "overlap in slices 15 to 19" in error([whole], test=[soft])
    found = load([whole], test=[other])
    assert found.train[0].scaling != found.test[0].scaling


# Where the classes are


@given(
    labels=st.lists(st.integers(0, 3), min_size=24, max_size=24),
    keep=st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_the_index_counts_all_and_remembers_some(labels, keep, seed):
    array = np.array(labels).reshape(4, 3, 2)
    index = index_classes(open_volume(array), 4, keep=keep, seed=seed)
    assert index.counts.tolist() == [labels.count(number) for number in range(4)]
    assert len(index.positions[0]) == 0
    for number in (1, 2, 3):
        found = index.positions[number]
        assert len(set(found)) == len(found) == min(keep, labels.count(number))
        assert (array.ravel()[found] == number).all()


def test_every_voxel_has_the_same_chance_to_be_remembered(monkeypatch):
    monkeypatch.setattr("evenslice.volumes.labels._BLOCK_BYTES", 8 * 40)  # many blocks
    volume = open_volume(np.ones((4, 10, 10), np.int64))
    found = [index_classes(volume, 2, keep=100, seed=seed).positions[1] for seed in range(60)]
    times = np.bincount(np.concatenate(found), minlength=400)
    # Each voxel is drawn 60 times with chance 1/4; a slab of 100 differs from 1500 by less than 5 standard deviations.
    assert np.abs(times.reshape(4, 100).sum(axis=1) - 1500).max() < 5 * np.sqrt(6000 / 4 * 0.75)
    assert times.max() < 60
