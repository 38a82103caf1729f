"""Segmentations that are killed, disturbed or started twice never mix, never pass for whole ones, and replace only outputs."""

import os
import threading

import numpy as np
import pytest
from meddling import label

from evenslice import ConfigError, EvensliceError, OutputError, open_volume

pytestmark = [pytest.mark.attack, pytest.mark.usefixtures("small_blocks")]


def stop(path, out, runs=6):
    """Let a segmentation stop after some passes, as if it were killed."""

    def meddle(run):
        if run > runs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(path, out, meddle)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, (np.random.default_rng(0).random((20, 70, 90)) * 250).astype(np.uint8))
    return path


@pytest.fixture
def right(image):
    return np.load(image) > 125


def chunks(out):
    """Return the files of the finished blocks of an unfinished segmentation."""
    found = out.parent.glob(f".{out.name}.unfinished/**/array.zarr/c/**/*")
    return sorted(path for path in found if path.is_file())


@pytest.mark.parametrize("force", [False, True])
def test_a_second_process_on_one_output_is_told_so(tmp_path, image, right, force):
    out, entered, leave, labels = tmp_path / "labels.npy", threading.Event(), threading.Event(), []

    def wait(_):
        entered.set()
        leave.wait(60)

    first = threading.Thread(target=lambda: labels.append(label(image, out, meddle=wait)[...]))
    first.start()
    try:
        assert entered.wait(60)
        with pytest.raises(OutputError, match=r"labels\.npy: another process is writing it; wait"):
            label(image, out, force=force)
    finally:
        leave.set()
        first.join()
    np.testing.assert_array_equal(labels[0], right)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["image.npy", "labels.npy"]


def test_blocks_whose_chunks_are_missing_are_done_again_and_cut_ones_are_no_voxels(tmp_path, image, right):
    out = tmp_path / "labels.npy"
    stop(image, out)
    first, second, third, *_ = chunks(out)
    first.unlink()
    second.write_bytes(b"")
    content = third.read_bytes()
    third.write_bytes(content[:-9])
    with pytest.raises(EvensliceError, match=r"array\.zarr"):
        label(image, out)
    assert not out.exists()
    third.write_bytes(content)
    np.testing.assert_array_equal(label(image, out)[...], right)


def test_chunks_that_disappear_before_the_end_are_no_zeros(tmp_path, image):
    out = tmp_path / "labels.npy"

    def remove(run):
        if run > 6:
            chunks(out)[0].unlink(missing_ok=True)

    with pytest.raises(EvensliceError, match="has lost blocks"):
        label(image, out, meddle=remove)
    assert not out.exists()


def rewritten(path, monkeypatch):
    monkeypatch.setattr("evenslice.volumes.info.WHOLE_BYTES", 1000)
    monkeypatch.setattr("evenslice.volumes.info.END_BYTES", 100)
    stop(path, path.with_name("labels.npy"))
    np.load(path, mmap_mode="r+")[4:6] = 0  # which the fingerprint does not cover
    return open_volume(path)


def another_entry(path, _):
    image = np.load(path)
    np.save(path, np.stack([image, image[::-1]]))
    stop(open_volume(path, axes="czyx", select={"c": 0}), path.with_name("labels.npy"))
    return open_volume(path, axes="czyx", select={"c": 1})


@pytest.mark.parametrize("other", [rewritten, another_entry])
def test_another_volume_does_not_go_on(tmp_path, image, monkeypatch, other):
    volume, out = other(image, monkeypatch), tmp_path / "labels.npy"
    with pytest.raises(OutputError, match="of another volume or with other options"):
        label(volume, out)
    expected = volume[...] > 125
    np.testing.assert_array_equal(label(volume, out, force=True)[...], expected)


def test_what_killed_runs_left_is_removed_and_what_only_looks_so_is_kept(tmp_path, image, right):
    out, root = tmp_path / "labels.npy", tmp_path / ".labels.npy.unfinished"
    stop(image, out)
    left = [root / "work", tmp_path / ".labels.npy.k2_x7a0b"]
    theirs = [tmp_path / ".labels.npy.original", root / "fedcba9876543210", root]
    for folder in (*left, *theirs):
        folder.mkdir(exist_ok=True)
        (folder / "thesis.tex").write_text("mine")
    (left[1] / ".evenslice-staging").touch()
    np.testing.assert_array_equal(label(image, out, force=True)[...], right)
    assert not any(folder.exists() for folder in left)
    assert sum(len(names) for _, _, names in os.walk(tmp_path)) == 2 + len(theirs)


def test_unfinished_work_in_the_output_itself_is_refused(tmp_path, image):
    out = tmp_path / "labels.ome.zarr"
    with pytest.raises(ConfigError, match=r"scratch=.*lies in the output .*; choose another folder"):
        label(image, out, scratch=out / "work/here")
    assert not out.exists()


@pytest.mark.parametrize("link", ["", "0123456789abcdef"])
def test_links_in_place_of_unfinished_work_are_not_followed(tmp_path, image, link):
    theirs, root = tmp_path / "theirs", tmp_path / ".labels.npy.unfinished"
    (theirs / "finished").mkdir(parents=True)
    (theirs / "finished" / "thesis.tex").touch()
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(theirs)
    if link:
        label(image, tmp_path / "labels.npy", force=True)
    else:
        with pytest.raises(OutputError, match="is not a folder of yours"):
            label(image, tmp_path / "labels.npy", force=True)
    assert (theirs / "finished" / "thesis.tex").exists()
