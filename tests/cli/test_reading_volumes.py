"""How a run reads volumes and labels: in commands that are given the run, and in files made from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from values import READING

from evenslice import ConfigError, EvensliceError, Reading, open_segmenter, open_volume
from evenslice.cli.options import LabelledOpening
from evenslice.volumes import write_volume

BEFORE = Path(__file__).parents[1] / "data" / "written-by-0.1.0"
SPEC = "smp:Unet/tu-test_resnet?encoder_depth=2&decoder_channels=[4,4]"


@pytest.fixture
def trained(tmp_path):
    """The folder of a run that says how it reads volumes."""
    folder = Path(shutil.copytree(BEFORE / "run", tmp_path / "run"))
    text = (folder / "config.yaml").read_text().replace("  step: 1", "  step: 2")
    data = "".join(
        f"  {name}: {json.dumps(value)}\n"
        for name, value in READING.items()
        if name not in ("step", "label_values", "intensity", "fill")
    )
    text = text.replace("  label_values: null\n", f"  label_values: [0, 255]\n{data}")
    text = text.replace("  intensity: null", "  intensity: [0, 200]").replace("  fill: null", "  fill: 7")
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.mark.slow
def test_a_symmetrized_run_reads_volumes_as_the_run_does(trained, tmp_path, cli):
    fair = tmp_path / "fair.safetensors"
    cli("symmetrize", "--run", trained, "--out", fair)
    assert open_segmenter(SPEC, str(fair)).reading == Reading(**READING, overlapping=False)
    volume = tmp_path / "volume.npy"
    np.save(volume, np.random.default_rng(0).integers(0, 255, (32, 14, 32), dtype=np.uint8))
    audit = ["audit", "--volume", volume, "--max-windows", 8, "--json"]
    found = json.loads(cli(*audit, "--model", SPEC, "--weights", fair)[1])
    assert found["volumes"][0]["intensity"] == [0, 200]
    assert found["volumes"][0]["shape"] == [14, 32, 32]
    assert found["step"] == 2


@pytest.mark.slow
def test_the_run_does_not_say_what_the_target_labels_ignores(trained, tmp_path, cli):
    labels = np.where(np.random.default_rng(0).random((32, 14, 32)) > 0.5, 255, 0).astype(np.uint8)
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "volume.npy", labels)
    files = ["--volume", tmp_path / "volume.npy", "--labels", tmp_path / "labels.npy"]
    audit = ["audit", "--run", trained, *files, "--target", "labels", "--max-windows", 8, "--json"]
    assert json.loads(cli(*audit)[1])["target"] == "labels"


@pytest.fixture
def turned(tmp_path, monkeypatch):
    """A cube stored x first, which no shape tells from one stored z first, and its labels in several files."""
    monkeypatch.chdir(tmp_path)
    cube = np.random.default_rng(0).integers(0, 2, (8, 8, 8), dtype=np.uint8)
    np.save("stored.npy", cube.T)
    tifffile.imwrite("stored.tif", cube.T)  # which states no axes
    tifffile.imwrite("named.tif", cube.T, imagej=True, metadata={"axes": "ZYX"})  # and wrongly
    for name in ("labels.ome.zarr", "labels.tif", "labels.nii.gz"):
        write_volume(open_volume(cube), Path(name))
    return cube


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ("labels.ome.zarr", {}),
        ("labels.tif", {}),
        ("labels.nii.gz", {}),
        ("stored.npy", {}),
        ("stored.tif", {}),
        ("stored.npy", {"label_axes": "xyz", "axes": None}),
        ("named.tif", {"label_axes": "xyz"}),
    ],
)
def test_the_axes_of_labels_are_those_that_their_file_states_else_those_of_the_volume(
    turned, labels, options
):
    opening = LabelledOpening(**{"axes": "xyz", **options})
    assert np.array_equal(opening.open_labels(labels, "stored.npy")[...], turned)


def test_labels_that_their_writer_may_have_misnamed_like_the_volume_need_a_decision(turned):
    with pytest.raises(ConfigError, match="names its axes ZYX, as .*; say which .* --label-axes zyx or xyz"):
        LabelledOpening(axes="xyz").open_labels("labels.tif", "stored.npy", "named.tif")
    opened = LabelledOpening(axes="zyx").open_labels("labels.tif", "named.tif")
    assert np.array_equal(opened[...], turned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_axes": "zy"}, "labels.tif: --label-axes zy names 2 axes|--label-axes zy: "),
        ({"axes": "xyz", "label_axes": "tzyx"}, "--label-axes tzyx names 4 axes of an array .8, 8, 8."),
        ({}, "four.npy: has 4 dimensions .*; name them, as --label-axes tzyx"),
    ],
)
def test_what_is_wrong_with_the_axes_of_labels_is_said_of_their_option(turned, options, message):
    np.save("four.npy", np.stack([turned, turned]))
    with pytest.raises(EvensliceError, match=message):
        LabelledOpening(**options).open_labels("labels.tif" if options else "four.npy", "stored.npy")


@pytest.mark.parametrize("options", [{}, {"axes": "zyx"}, {"label_axes": "zyx"}])
def test_labels_of_just_what_is_read_of_an_image_are_read_whole(tmp_path, monkeypatch, options):
    """As ``segment`` writes them, of a coarser level or of a region; their files have neither."""
    monkeypatch.chdir(tmp_path)
    write_volume(open_volume(np.zeros((4, 300, 280), np.uint8)), Path("image.ome.zarr"))
    coarse = np.random.default_rng(0).integers(0, 2, (2, 150, 140), dtype=np.uint8)
    for name in ("coarse.tif", "coarse.ome.zarr"):
        write_volume(open_volume(coarse), Path(name))
        opened = LabelledOpening(level=1, **options).open_labels(name, "image.ome.zarr")
        assert np.array_equal(opened[...], coarse)
    part = coarse[:, 10:60, 20:40]
    write_volume(open_volume(part), Path("part.tif"))
    region = (slice(0, 2), slice(10, 60), slice(20, 40))
    opened = LabelledOpening(level=1, region=region, **options).open_labels("part.tif", "image.ome.zarr")
    assert np.array_equal(opened[...], part)
    opened = LabelledOpening(region=region, **options).open_labels("part.tif", "image.ome.zarr")
    assert np.array_equal(opened[...], part)
    with pytest.raises(ConfigError, match="level=1"):  # of an image, as before
        LabelledOpening(level=1).open("coarse.tif")
