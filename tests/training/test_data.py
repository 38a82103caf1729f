import pickle

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st

from evenslice._core.errors import ConfigError, EvensliceError, VolumeError
from evenslice.training.config import ModelConfig
from evenslice.training.data import fingerprints, open_data
from evenslice.training.config import DataConfig
from evenslice.volumes.labels import index_classes
from evenslice.volumes.opening import open_volume

SHAPE = (40, 24, 32)


@pytest.fixture
def folder(tmp_path):
    """A folder with an image whose slices are bright as their number, and labels of two classes."""
    random = np.random.default_rng(0)
    image = np.broadcast_to(np.arange(SHAPE[0], dtype=np.uint8)[:, None, None], SHAPE)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", (random.random(SHAPE) < 0.2).astype(np.uint8))
    return tmp_path


@pytest.fixture
def load(folder):
    """Open a data set; sources are given as a range of slices or in full."""

    def load(train, *, model=None, **options):
        def source(given):
            defaults = {"image": "image.npy", "labels": "labels.npy"}
            return defaults | (given if isinstance(given, dict) else {"slices": given})

        splits = {
            "train": train,
            "validation": options.pop("validation", []),
            "test": options.pop("test", []),
        }
        splits = {split: [source(item) for item in items] for split, items in splits.items()}
        config = DataConfig.model_validate({"root": folder, "validation_fraction": 0.1, **splits, **options})
        return open_data(config, ModelConfig(**(model or {})))

    return load


@pytest.fixture
def error(load):
    """The one line that a data set is refused with."""

    def error(*args, **options):
        with pytest.raises(EvensliceError) as caught:
            load(*args, **options)
        assert "\n" not in str(caught.value)
        return type(caught.value), str(caught.value)

    return error


def test_splits_by_range_are_volumes_of_their_own(load, folder):
    data = load([[0, 20]], validation=[[21, 30]], test=[[31, 40]])
    (train,), (validation,), (test,) = data.train, data.validation, data.test
    assert (train.volume.shape[0], validation.volume.shape[0], test.volume.shape[0]) == (20, 9, 9)
    assert test.name == "image.npy[31:40]"
    assert test.volume[0, 0, 0] == 31
    assert test.classes == 2
    assert np.array_equal(test.labels[...], np.load(folder / "labels.npy")[31:])
    assert test.labels.dtype == np.int64


def test_scaling_is_fitted_to_what_trains_of_a_file(load):
    data = load([[0, 20]], validation=[[21, 30]], test=[[31, 40]])
    assert data.train[0].scaling.high <= 19
    assert data.train[0].scaling == data.validation[0].scaling == data.test[0].scaling


def test_the_intensity_range_of_the_configuration_is_for_all(load):
    data = load([[0, 20]], test=[[31, 40]], intensity=[0, 100], fill=5)
    assert {(part.scaling.low, part.scaling.high, part.scaling.fill) for part in data.train + data.test} == {
        (0, 100, 5)
    }


def test_the_last_slices_are_kept_out_for_validation(load):
    data = load([[0, 30]], test=[[32, 40]], model={"slices": 5})
    assert (data.train[0].name, data.validation[0].name) == ("image.npy[0:23]", "image.npy[25:30]")
    assert not load([{}], validation_fraction=0).validation


def test_whole_pairs_are_kept_out_where_there_are_many(load, folder):
    for number in range(5):
        np.save(folder / f"{number}.npy", np.load(folder / "image.npy"))
        np.save(folder / f"labels{number}.npy", np.load(folder / "labels.npy"))
    data = load([{"image": f"{number}.npy", "labels": f"labels{number}.npy"} for number in range(5)])
    assert [part.name for part in data.validation] == ["4.npy"]
    assert [part.name for part in data.train] == [f"{number}.npy" for number in range(4)]
    alike = load([{"image": f"{number}.npy"} for number in range(5)])  # five images of one piece of the world
    assert [part.name for part in alike.validation] == [f"{number}.npy[36:40]" for number in range(5)]


def test_stored_label_values_become_classes(load, folder):
    np.save(folder / "masks.npy", np.load(folder / "labels.npy") * np.uint8(255))
    part = load([{"labels": "masks.npy"}], label_values=[0, 255]).train[0]
    assert np.array_equal(part.labels[...], np.load(folder / "labels.npy")[: part.labels.shape[0]])


def test_options_of_a_file_and_the_spacing(load, folder):
    stack = np.stack([np.zeros(SHAPE, np.uint8), np.load(folder / "image.npy")])
    np.save(folder / "channels.npy", stack)
    image = {"path": "channels.npy", "axes": "czyx", "select": {"c": 1}}
    part = load([{"image": image, "spacing": [5, 4, 4], "unit": "nm"}]).train[0]
    assert part.volume.spacing == (5, 4, 4)
    assert part.volume.unit == "nm"
    assert part.volume[7, 0, 0] == 7


def test_large_data_sets_stay_in_their_files(load, monkeypatch):
    kept = load([[0, 20]])
    monkeypatch.setattr("evenslice.volumes.volume.IN_MEMORY", 100)
    lazy = load([[0, 20]])
    assert np.array_equal(kept.train[0].volume[...], lazy.train[0].volume[...])
    assert len(pickle.dumps(lazy.train[0].volume)) < 5000 < len(pickle.dumps(kept.train[0].volume))


def test_shapes_that_differ(error, folder):
    np.save(folder / "short.npy", np.zeros((39, 24, 32), np.uint8))
    kind, text = error([{}], validation=[{"labels": "short.npy"}])
    assert kind is VolumeError
    assert text.startswith("data.validation[0]: ")
    assert "(40, 24, 32)" in text
    assert "(39, 24, 32)" in text


def test_slices_that_are_not_there(error):
    kind, text = error([[0, 50]])
    assert kind is ConfigError
    assert text.startswith("data.train[0].slices: [0, 50]: ")
    assert text.endswith("has 40 slices; the range must end at 40 or before")


@pytest.mark.parametrize("split", ["train", "test"])
def test_label_values_of_no_class(error, folder, split):
    labels = np.load(folder / "labels.npy")
    labels[31, 3, 3] = 255
    np.save(folder / "wrong.npy", labels)
    splits = {"train": [[0, 30]], split: [{"labels": "wrong.npy", "slices": [31, 40]}]}
    kind, text = error(splits.pop("train"), validation_fraction=0, **splits)
    assert kind is VolumeError
    assert text.startswith(f"data.{split}[0].labels: ")
    assert "wrong.npy[31:40]: holds the label value 255, but the 2 classes have the values 0, 1" in text


def test_a_class_without_a_pixel_in_training(error, folder):
    labels = np.load(folder / "labels.npy")
    labels[30:, 0, 0] = 2
    np.save(folder / "three.npy", labels)
    three = {"labels": "three.npy", "slices": [0, 25]}
    kind, text = error([three], classes=3)
    assert kind is ConfigError
    assert text.startswith("data.train: has no voxel of class 2 (label value 2) in its slices; ")


def test_a_validation_of_background_alone(error, folder):
    labels = np.load(folder / "labels.npy")
    labels[30:] = 0
    np.save(folder / "empty.npy", labels)
    kind, text = error([{"labels": "empty.npy"}])
    assert kind is ConfigError
    assert text.startswith("data.train[0] (held out for validation): contains only class 0")


def test_a_test_in_which_no_voxel_counts(error, load, folder):
    labels = np.load(folder / "labels.npy")
    labels[30:] = 255
    np.save(folder / "void.npy", labels)
    train, void = ({"labels": "void.npy", "slices": slices} for slices in ([0, 28], [30, 40]))
    kind, text = error([train], test=[void], ignore_label=255)
    assert kind is ConfigError
    assert text == (
        "data.test[0]: contains only voxels with data.ignore_label: 255, so it cannot measure a network; "
        "give slices with other classes as data.test"
    )
    assert load([train], ignore_label=255, test=[{**void, "slices": [29, 40]}]).test


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
    ],
)  # fmt: skip
def test_splits_that_overlap_or_lie_too_close(error, splits, slices, expected):
    splits = dict(splits)
    kind, text = error(splits.pop("train"), model={"slices": slices}, **splits)
    assert kind is ConfigError
    assert expected in text


def test_copies_of_an_image_with_the_same_labels(error, load, folder):
    np.save(folder / "copy.npy", np.load(folder / "image.npy"))
    copy = {"image": "copy.npy", "slices": [10, 30]}
    _, text = error([[0, 20]], test=[copy])
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
    return folder


def of(name, level=0, slices=None):
    """A pair whose image and labels are files of one kind, at a level."""
    return {kind: {"path": f"{kind}{name}", "level": level} for kind in ("image", "labels")} | {
        "slices": slices
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of(".ome.zarr", 0, [24, 40]), of(".ome.zarr", 1, [0, 12])),
        (of(".ome.zarr", 0, [24, 40]), of(".ome.zarr/1", 0, [0, 12])),
        (of(".ome.zarr/0", 0, [24, 40]), of(".ome.zarr/1", 0, [0, 12])),
    ],
)
def test_slices_of_different_levels_of_an_image_are_not_compared(error, pyramids, one, other):
    kind, text = error([one], test=[other])
    assert kind is ConfigError
    assert text.startswith("data.train[0] and data.test[0] both read ")
    assert "at different resolution levels" in text


def test_an_image_and_the_array_of_its_finest_level_are_one(error, load, pyramids):
    name, inner = ".ome.zarr", ".ome.zarr/0"
    assert "overlap in slices 10 to 19" in error([of(name, 0, [0, 20])], test=[of(inner, 0, [10, 30])])[1]
    assert len(load([of(name, 0, [0, 20])], test=[of(inner, 0, [25, 40])]).test) == 1


def test_links_to_a_dataset_are_that_dataset(error, folder):
    with h5py.File(folder / "all.h5", "w") as file:
        for name in ("image", "labels"):
            file[name] = np.load(folder / f"{name}.npy")
            file[f"hard/{name}"], file[f"soft/{name}"] = file[name], h5py.SoftLink(f"/{name}")
    pairs = [
        {"image": f"all.h5:{at}/image", "labels": f"all.h5:{at}/labels", "slices": slices}
        for at, slices in (("", [0, 20]), ("/hard", [10, 30]), ("/soft", [15, 40]))
    ]
    assert "overlap in slices 10 to 19" in error(pairs[:1], test=pairs[1:2])[1]
    assert "overlap in slices 15 to 19" in error(pairs[:1], test=pairs[2:])[1]


def test_a_blank_image_cannot_be_trained_on_whatever_the_range(error, folder):
    np.save(folder / "image.npy", np.full(SHAPE, 7, np.uint8))
    text = error([[0, 20]], intensity=[0, 255])[1]
    assert "sampled voxels are 7; use a volume with contrast" in text
    assert "intensity" not in text


def test_files_are_known_by_their_fingerprints(load, folder):
    source = {"image": "image.npy", "labels": "labels.npy"}
    config = DataConfig.model_validate(
        {"root": folder, "train": [{**source, "slices": [0, 20]}, {**source, "slices": [30, 40]}]}
    )
    before = fingerprints(config)
    assert len(before) == 2
    np.save(folder / "labels.npy", np.load(folder / "labels.npy") ^ 1)
    assert len(before & fingerprints(config)) == 1


def test_a_split_shorter_than_a_window(error):
    kind, text = error([[0, 20]], test=[[30, 34]], model={"slices": 3, "step": 2})
    assert kind is ConfigError
    assert text.startswith("data.test[0]: has 4 slices; a window of 3 in steps of 2 needs 5")


def test_too_few_slices_to_keep_some_out(error):
    kind, text = error([[0, 6]])
    assert kind is ConfigError
    assert text.startswith("data.train[0]: its 6 slices are too few to hold out 3 of them for validation; ")


def test_an_image_that_is_not_finite(error, load, folder):
    image = np.load(folder / "image.npy").astype(np.float32)
    image[33, 2, 1] = np.nan
    np.save(folder / "image.npy", image)
    kind, text = error([[0, 20]], test=[[30, 40]])
    assert kind is VolumeError
    assert text.startswith("data.test[0].image: ")
    assert "1 voxels are NaN or infinite, the first at z, y, x = (3, 2, 1); " in text
    assert text.endswith("set data.fill to the voxel value that replaces them")
    load([[0, 20]], test=[[30, 40]], fill=0)


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
    assert times.sum() == 6000
    # Each voxel is drawn 60 times with chance 1/4; a slab of 100 differs from 1500 by less than 5 standard deviations.
    assert np.abs(times.reshape(4, 100).sum(axis=1) - 1500).max() < 5 * np.sqrt(6000 / 4 * 0.75)
    assert times.max() < 60


def test_real_volumes(shared_data):
    pairs = [f"hippocampus_{number}.nii.gz" for number in ("001", "003", "004", "006", "007", "008")]
    sources = [{"image": f"images/{name}", "labels": f"labels/{name}"} for name in pairs]
    config = DataConfig.model_validate(
        {
            "root": shared_data / "msd_hippocampus",
            "classes": 3,
            "validation_fraction": 0.1,
            "train": sources[:4],
            "test": sources[4:],
        }
    )
    data = open_data(config, ModelConfig())
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3, 1, 2]
    assert all(part.volume.spacing == (1, 1, 1) for part in data.test)
    assert all(len(found) for part in data.train for found in part.index.positions[1:])


def test_two_datasets_of_a_file_are_two_images(load, error, folder):
    image, labels = np.load(folder / "image.npy"), np.load(folder / "labels.npy")
    with h5py.File(folder / "all.h5", "w") as file:
        file["a/raw"], file["b/raw"] = image, 100.0 * image
        file["a/labels"], file["b/labels"] = labels, labels[::-1]
    one, other = ({"image": f"all.h5:/{name}/raw", "labels": f"all.h5:/{name}/labels"} for name in "ab")
    found = load([one], test=[other])
    assert found.train[0].scaling != found.test[0].scaling
    assert "overlap" in error([one], test=[one])[1]


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
    _, text = error([source])
    assert text.startswith(message)
    assert text.count("data.train[0]") == 1
