"""Data sets in nnU-Net's raw format, as they are written in a configuration."""

import json

import pytest
import yaml

from evenslice import ConfigError, TrainConfig, load_config

DESCRIPTION = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Dataset004_Hippocampus"
    for part, cases in (("Tr", ("h_001", "h_002")), ("Ts", ("h_007",))):
        for kind, suffix in (("images", "_0000"), ("labels", "")):
            (folder / f"{kind}{part}").mkdir(parents=True)
            for case in cases:
                (folder / f"{kind}{part}" / f"{case}{suffix}.nii.gz").touch()
    describe(folder)
    return folder


def describe(folder, **changes):
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION | changes))


@pytest.fixture
def configured(tmp_path):
    """Return the options of a data set."""

    def configured(**data):
        (tmp_path / "train.yaml").write_text(json.dumps({"data": data}))
        return load_config(tmp_path / "train.yaml", TrainConfig).data

    return configured


def test_a_folder_is_a_data_set(folder, configured):
    data = configured(nnunet=folder.name)
    assert (data.name, data.classes, data.label_values) == ("Dataset004_Hippocampus", 3, (0, 1, 2))
    assert (data.ignore_label, data.root) == (3, folder)
    for cases, pairs in ((("Tr/h_001", "Tr/h_002"), data.train), (("Ts/h_007",), data.test)):
        expected = [(f"images{case}_0000.nii.gz", f"labels{case}.nii.gz") for case in cases]
        assert [(pair.image.path, pair.labels.path) for pair in pairs] == expected
    assert configured(**data.model_dump(mode="json", exclude_unset=True)) == data


def test_what_the_configuration_says_takes_precedence(folder, configured):
    own = {"label_values": [0, 1], "other_labels": "background"}
    data = configured(nnunet=str(folder), name="mine", **own)
    assert (data.name, data.classes, data.ignore_label) == ("mine", 2, 3)
    objects = configured(nnunet=str(folder), instances="sparse")
    assert (objects.classes, objects.label_values, objects.ignore_label) == (2, None, None)


def test_one_channel_of_several(folder, configured):
    describe(folder, channel_names={"0": "T1", "1": "T2"})
    with pytest.raises(ConfigError, match=r"data.*has the channels 0 \(T1\), 1 \(T2\); choose") as caught:
        configured(nnunet=str(folder))
    proposed = yaml.safe_load(f"{{{str(caught.value).partition('; choose one, as ')[2]}}}")
    assert configured(**proposed).root == folder
    for path in folder.rglob("*_0000.nii.gz"):
        path.rename(path.with_name(path.name.replace("_0000", "_0001")))
    config = configured(nnunet={"path": str(folder), "channel": 1})
    assert config.train[0].image.path == "imagesTr/h_001_0001.nii.gz"
    with pytest.raises(ConfigError, match=r"has no pair of imagesTr/h_001_0000\.nii\.gz"):
        configured(nnunet={"path": str(folder), "channel": 0})


def test_the_first_version_of_nnunet(folder, configured):
    old = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "anterior", "2": "posterior", "3": "rest"},
    }
    (folder / "dataset.json").write_text(json.dumps(old))
    config = configured(nnunet=str(folder))
    assert config.label_values == (0, 1, 2, 3)


def test_a_list_of_one_value_is_no_region_and_what_macos_writes_no_case(folder, configured):
    plain = configured(nnunet=str(folder))
    describe(folder, labels={"background": 0, "anterior": [1], "posterior": 2, "ignore": [3]})
    for name in ("imagesTr/._h_001_0000.nii.gz", "labelsTr/._h_001.nii.gz", "imagesTr/._h_003_0000.nii.gz"):
        (folder / name).write_bytes(b"Mac OS X")
    assert configured(nnunet=str(folder)) == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, r"'whole' has the value \[1, 2\]"),
        ({"labels": None}, "labels for 0 classes"),
        ({"labels": {"blob": 1}}, "labels for 1 classes"),
        ({"file_ending": ".tif"}, r"imagesTr/CASE_0000\.tif"),
    ],
)
def test_what_cannot_be_read(folder, configured, changes, message):
    describe(folder, **changes)
    with pytest.raises(ConfigError, match=rf"data\.nnunet: .*{message}"):
        configured(nnunet=str(folder))


@pytest.mark.parametrize("given", ["nosuch", 4, {"path": "x", "chanel": 0}])
def test_no_such_folder(configured, given):
    with pytest.raises(ConfigError, match=r"data\.nnunet"):
        configured(nnunet=given)


@pytest.mark.parametrize("name", ["imagesTr/h_002_0000.nii.gz", "labelsTr/h_002.nii.gz"])
def test_half_a_case_is_not_dropped(folder, configured, name):
    (folder / "labelsTs" / "h_007.nii.gz").unlink()  # a test image without labels is nothing to test on
    assert configured(nnunet=str(folder)).test == ()
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"data\.nnunet: .*imagesTr/h_002_0000"):
        configured(nnunet=str(folder))
