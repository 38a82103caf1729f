"""Folds: every part is tested once, and training keeps its distance from the test."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as some
from pydantic import ValidationError

from evenslice import ConfigError, VolumeError
from evenslice.studying.config import StudyData
from evenslice.studying.runs import fold_data


def pair(name="a", slices=None, **more):
    return {"image": f"{name}.npy", "labels": f"{name}_labels.npy", "slices": slices, **more}


def data(*pairs, **options):
    return StudyData.model_validate({"name": "em", "pairs": pairs, **options})


def folds(*pairs, guard=1, **options):
    """The files and slices of each fold: training, test."""
    return [
        tuple([(item.image.path[0], item.slices) for item in split] for split in (each.train, each.test))
        for each in fold_data(data(*pairs, **options), guard)
    ]


def test_one_volume_in_blocks():
    assert folds(pair(slices=[0, 40]), blocks=4, folds=4) == [
        ([("a", (12, 40))], [("a", (0, 10))]),
        ([("a", (0, 8)), ("a", (22, 40))], [("a", (10, 20))]),
        ([("a", (0, 18)), ("a", (32, 40))], [("a", (20, 30))]),
        ([("a", (0, 28))], [("a", (30, 40))]),
    ]


def test_cases_are_tested_in_turn_and_not_opened():
    found = folds(*(pair(name) for name in "abcde"), folds=2)
    assert found == [
        ([("b", None), ("d", None)], [("a", None), ("c", None), ("e", None)]),
        ([("a", None), ("c", None), ("e", None)], [("b", None), ("d", None)]),
    ]


def test_images_with_the_same_labels_keep_their_distance_too():
    other = {**pair("b", [10, 20]), "labels": "a_labels.npy"}
    assert folds(pair("a", [0, 10]), other, folds=2)[0] == ([("b", (12, 20))], [("a", (0, 10))])
    assert folds(pair("a", [0, 10]), pair("b", [10, 20]), folds=2)[0][0] == [("b", (10, 20))]


@given(
    lengths=some.lists(some.integers(20, 60), min_size=1, max_size=3),
    blocks=some.integers(1, 4),
    k=some.integers(2, 4),
    guard=some.sampled_from([0, 1, 2, 4]),
)
@settings(max_examples=60, deadline=None)
def test_each_slice_is_tested_once_and_is_never_near_those_trained_on(lengths, blocks, k, guard):
    if len(lengths) * blocks < k or min(lengths) // blocks <= 2 * guard:
        return
    pairs = [pair("abc"[i], [0, length]) for i, length in enumerate(lengths)]
    try:
        found = folds(*pairs, blocks=blocks, folds=k, guard=guard)
    except ConfigError:  # too few slices to train on: a test of its own
        return
    tested = sorted((name, z) for _, test in found for name, ends in test for z in range(*ends))
    assert tested == [("abc"[i], z) for i, length in enumerate(lengths) for z in range(length)]
    for train, test in found:
        for name, (first, last) in train:
            assert last - first > 2 * guard
            for other, (start, stop) in test:
                if other == name:
                    assert max(start - last, first - stop) > guard


def test_the_number_of_slices_is_that_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.integers(0, 255, (20, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "a_labels.npy", rng.integers(0, 2, (20, 8, 8), dtype=np.uint8))
    config = data(pair(), blocks=2, folds=2, root=str(tmp_path))
    first, second = fold_data(config, 1)
    assert (first.test[0].slices, first.train[0].slices) == ((0, 10), (12, 20))
    for one, other in combinations((first, second), 2):
        assert one.name == other.name == "em"
    (tmp_path / "a.npy").unlink()
    with pytest.raises(VolumeError, match=r"datasets: 'em': pairs\[0\].image: .*a\.npy: no such file"):
        fold_data(config, 1)


def test_what_cannot_be_folded_is_told_in_the_words_of_the_configuration():
    with pytest.raises(ConfigError, match=r"datasets: 'em': blocks: 8: cuts pairs\[0\] into blocks of 2"):
        fold_data(data(pair(slices=[0, 16]), blocks=8, folds=2), 1)
    with pytest.raises(ConfigError, match="datasets: 'em': fold 0 has no slices to train on"):
        fold_data(data(pair(slices=[0, 9]), blocks=3, folds=2), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [pair()], "folds": 4, "blocks": 2}, r"folds: 4: more than there are parts, 2 \(pairs"),
        ({"pairs": [pair()]}, "folds\n  Field required"),
        ({"train": [pair()], "test": [pair()], "blocks": 2}, "pairs\n  Field required"),
        ({"pairs": [pair()], "folds": 2, "blocks": 2, "test": [pair("b")]}, "test: cannot stand beside"),
        ({"train": [pair()], "test": []}, "at least 1 item"),
    ],
)
def test_wrong_folds_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        StudyData.model_validate({"name": "em", **options})


@pytest.mark.parametrize("tested", [False, True])
def test_the_cases_of_an_nnunet_folder_are_folded(tmp_path, tested):
    described = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".npy"}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    parts = {"Tr": "abc", "Ts": "d" if tested else ""}
    for part, cases in parts.items():
        for kind, suffix in (("images", "_0000"), ("labels", "")):
            (tmp_path / f"{kind}{part}").mkdir()
            for case in cases:
                (tmp_path / f"{kind}{part}" / f"{case}{suffix}.npy").touch()
    found = StudyData.model_validate({"nnunet": str(tmp_path), "folds": 3})
    assert [part.image.path for part in found.pairs] == [f"imagesTr/{case}_0000.npy" for case in "abc"]
    assert (found.train, found.test, found.label_values) == ((), (), (0, 1))
    assert StudyData.model_validate(found.model_dump(mode="json", exclude_defaults=True)) == found
    with pytest.raises(ValidationError, match="train: cannot stand beside pairs"):
        StudyData.model_validate({"nnunet": str(tmp_path), "folds": 3, "train": [pair()]})
