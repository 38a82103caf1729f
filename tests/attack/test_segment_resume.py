"""Segmentations that are killed, disturbed or started twice never mix, and never pass for whole ones."""

import os
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from values import by_name

from evenslice import Compute, Reading, segment
from evenslice._core import ConfigError, EvensliceError, OutputError, mark_staging
from evenslice.inference import segmentation, segmentation_blocks
from evenslice.volumes import info, open_volume, write_volume

pytestmark = pytest.mark.attack


class Network(nn.Module):
    """Labels bright voxels, or dark ones; the class, weights and printed form are the same."""

    def __init__(self, sign=1):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        self.layer.weight.data[:] = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
        self.layer.bias.data[:] = -0.5
        self.how = lambda x: sign * x

    def forward(self, x):
        return self.how(self.layer(x))

    def __deepcopy__(self, memo):
        return self


def label(path, out, network=None, **options):
    return segment(
        network or Network(),
        path,
        out,
        **by_name(
            segment,
            slices=3,
            reading=Reading(intensity=(0, 250)),
            compute=Compute(dtype="float32", device="cpu"),
            **options,
        ),
    )


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, (np.random.default_rng(0).random((20, 70, 90)) * 250).astype(np.uint8))
    return path


@pytest.fixture
def right(image):
    return np.load(image) > 125


@pytest.fixture
def stop_after(monkeypatch):
    """Let a segmentation stop after some blocks of two slices, as if it were killed."""
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)
    work = segmentation_blocks._segment_blocks

    def stop_after(count, *arguments, **options):
        def first(blocks, job):
            yield from islice(work(blocks, job), count)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(segmentation_blocks, "_segment_blocks", first)
            label(*arguments, **options)

    return stop_after


def staging(out):
    """Return the folder with the array of an unfinished segmentation."""
    return next(iter(out.parent.glob(f".{out.name}.unfinished/**/array.zarr"))).parent


@pytest.mark.parametrize("force", [False, True])
def test_a_second_process_on_one_output_is_told_so(tmp_path, image, right, force):
    out, entered, leave, labels = tmp_path / "labels.npy", threading.Event(), threading.Event(), []

    class Waiting(Network):
        def forward(self, x):
            if len(x) > 1:
                entered.set()
                leave.wait(60)
            return super().forward(x)

    first = threading.Thread(target=lambda: labels.append(label(image, out, Waiting())[...]))
    first.start()
    try:
        assert entered.wait(60)
        for network in (Network(), Network(-1)):
            with pytest.raises(
                OutputError, match=r"labels\.npy: another process is writing it; wait"
            ) as caught:
                label(image, out, network, force=force)
            assert "\n" not in str(caught.value)
    finally:
        leave.set()
        first.join()
    np.testing.assert_array_equal(labels[0], right)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["image.npy", "labels.npy"]


def test_a_process_that_ends_as_a_second_one_begins(tmp_path, image, monkeypatch):
    lstat, root = Path.lstat, tmp_path / ".labels.npy.unfinished"

    def removed(self):
        if self == root:
            root.rmdir()  # by the first process, at its end
        return lstat(self)

    root.mkdir()
    monkeypatch.setattr(Path, "lstat", removed)
    with pytest.raises(OutputError, match=r"labels\.npy: another process is writing it; wait"):
        label(image, tmp_path / "labels.npy", Network())


@pytest.mark.parametrize("harm", ["removed", "emptied", "all removed"])
def test_blocks_whose_chunks_are_missing_are_done_again(tmp_path, image, right, stop_after, harm):
    out = tmp_path / "labels.npy"
    stop_after(4, image, out)
    chunks = sorted(path for path in staging(out).glob("array.zarr/c/**/*") if path.is_file())
    assert len(chunks) == 8
    for chunk in chunks if harm == "all removed" else chunks[:1]:
        chunk.unlink()
        if harm == "emptied":
            chunk.touch()
    np.testing.assert_array_equal(label(image, out)[...], right)


def test_a_chunk_that_is_cut_is_no_voxels(tmp_path, image, right, stop_after):
    out = tmp_path / "labels.npy"
    stop_after(4, image, out)
    chunk = next(path for path in staging(out).glob("array.zarr/c/**/*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(EvensliceError, match=r"array\.zarr") as caught:
        label(image, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    chunk.unlink()
    np.testing.assert_array_equal(label(image, out)[...], right)


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        (segmentation_blocks, "_run", "has removed finished blocks"),
        (segmentation, "run_blocks", "c/0/0/0' is missing"),
    ],
)
def test_chunks_that_disappear_before_the_end_are_no_zeros(tmp_path, image, monkeypatch, place, name, said):
    out, work = tmp_path / "labels.npy", getattr(place, name)

    def removing(job, *arguments):
        work(job, *arguments)
        Path(next(job.chunks(job.blocks[0]))).unlink()

    monkeypatch.setattr(place, name, removing)
    with pytest.raises(EvensliceError, match=said) as caught:
        label(image, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_large_volume_that_was_rewritten_meanwhile_does_not_go_on(
    tmp_path, image, right, stop_after, monkeypatch
):
    monkeypatch.setattr(info, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(info, "END_BYTES", 100)
    out = tmp_path / "labels.npy"
    stop_after(4, image, out)
    stop_after(1, image, out)
    np.load(image, mmap_mode="r+")[4:6] = 0  # which the fingerprint does not cover
    with pytest.raises(OutputError, match="of another volume or with other options"):
        label(image, out)
    right[4:6] = False
    np.testing.assert_array_equal(label(image, out, force=True)[...], right)


def test_another_entry_of_the_same_file_does_not_go_on(tmp_path, image, right, stop_after):
    path, out = tmp_path / "series.npy", tmp_path / "labels.npy"
    both = np.load(image)
    np.save(path, np.stack([[both, both[::-1]]] * 2))

    def entry(axes, **select):
        return open_volume(path, axes=axes, select=select)

    stop_after(4, entry("tczyx", t=0, c=0), out)
    for other in (entry("tczyx", t=0, c=1), entry("tczxy", t=0, c=0)):
        with pytest.raises(OutputError, match="of another volume or with other options"):
            label(other, out)
    np.testing.assert_array_equal(label(entry("ctzyx", t=0, c=0), out)[...], right)


def test_another_level_of_the_same_image_does_not_go_on(tmp_path, image, stop_after):
    path, out = tmp_path / "image.ome.zarr", tmp_path / "labels.npy"
    write_volume(open_volume(image), path)
    group = zarr.open_group(path)
    group["1"] = np.load(image)[::-1]  # of the same shape, as levels should not be
    ome = group.attrs["ome"]
    ome["multiscales"][0]["datasets"].append({**ome["multiscales"][0]["datasets"][0], "path": "1"})
    group.attrs["ome"] = ome
    stop_after(1, open_volume(path), out)
    with pytest.raises(OutputError, match="of another volume or with other options"):
        label(open_volume(path, level=1), out)


def test_an_image_of_zeros_is_resumed_too(tmp_path, image, stop_after):
    np.save(image, np.zeros((20, 70, 90), np.uint8))
    out = tmp_path / "labels.npy"
    stop_after(4, image, out)
    assert len(list(staging(out).glob("array.zarr/c/*/0/0"))) == 8
    assert not label(image, out)[...].any()


def test_another_network_of_the_same_class_and_weights_does_not_go_on(tmp_path, image, right, stop_after):
    out = tmp_path / "labels.npy"
    stop_after(4, image, out)
    with pytest.raises(OutputError, match="unfinished segmentation by another network"):
        label(image, out, Network(-1))
    np.testing.assert_array_equal(label(image, out, Network(-1), force=True)[...], np.load(image) < 125)


def test_another_specification_of_the_same_class_and_weights_does_not_go_on(tmp_path, image, stop_after):
    def network(dilation):
        model = nn.Conv2d(3, 1, 3, padding=dilation, dilation=dilation).requires_grad_(False)
        model.weight[:], model.bias[:] = 0, -0.5
        return model

    out = tmp_path / "labels.npy"
    stop_after(4, image, out, network(1))
    with pytest.raises(OutputError, match="unfinished segmentation by another network"):
        label(image, out, network(2))
    stop_after(1, image, out, network(1))


def test_what_killed_runs_left_is_removed(tmp_path, image, right, stop_after):
    out = tmp_path / "labels.npy"
    stop_after(4, image, out)
    for name in (
        ".labels.npy.unfinished/0123456789abcdef",  # killed at its beginning
        ".labels.npy.k2_x7a0b",  # killed while it wrote the output
    ):
        (tmp_path / name).mkdir()
        mark_staging(tmp_path / name)
        (tmp_path / name / "labels.npy").write_bytes(bytes(1000))
    np.testing.assert_array_equal(label(image, out)[...], right)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["image.npy", "labels.npy"]


def test_what_only_looks_left_by_a_killed_run_is_kept(tmp_path, image, right, stop_after):
    out, root = tmp_path / "labels.npy", tmp_path / ".labels.npy.unfinished"
    stop_after(4, image, out)
    theirs = [
        tmp_path / ".labels.npy.original",
        tmp_path / ".labels.npy.snapshot",
        root / "0123456789abcdef",
        root,
    ]
    for folder in theirs:
        folder.mkdir(exist_ok=True)
        for name in ("thesis.tex", "lock", "plan.json"):
            (folder / name).write_text("{}")
    np.testing.assert_array_equal(label(image, out, force=True)[...], right)
    assert all((folder / "lock").read_text() == "{}" for folder in theirs)
    assert sum(len(names) for _, _, names in os.walk(tmp_path)) == 2 + 3 * len(theirs)


@pytest.mark.parametrize("inside", ["", "work/here"])
def test_unfinished_work_in_the_output_itself_is_refused(tmp_path, image, inside):
    out = tmp_path / "labels.ome.zarr"
    with pytest.raises(ConfigError, match=r"scratch=.*lies in the output .*; choose another folder"):
        label(image, out, scratch=out / inside)
    assert not out.exists()


def test_a_folder_for_unfinished_work_that_leads_elsewhere_is_refused(tmp_path, image):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").touch()
    (tmp_path / ".labels.npy.unfinished").symlink_to(theirs)
    with pytest.raises(OutputError, match="is not a folder of yours"):
        label(image, tmp_path / "labels.npy", force=True)
    assert [item.name for item in theirs.iterdir()] == ["thesis.tex"]


def test_links_in_the_folder_for_unfinished_work_are_not_followed(tmp_path, image, right):
    theirs = tmp_path / "theirs"
    (theirs / "finished").mkdir(parents=True)
    (theirs / "finished" / "thesis.tex").touch()
    root = tmp_path / ".labels.npy.unfinished"
    root.mkdir()
    (root / "0123456789abcdef").symlink_to(theirs)
    np.testing.assert_array_equal(label(image, tmp_path / "labels.npy", force=True)[...], right)
    assert (theirs / "finished" / "thesis.tex").exists()


def test_outputs_whose_addresses_end_alike_have_folders_of_their_own(tmp_path):
    from evenslice.inference.segmentation_blocks import unfinished_folder

    names = [f"s3://{bucket}/{'x' * 120}/labels.ome.zarr" for bucket in ("a", "b")]
    assert len({unfinished_folder(name, tmp_path) for name in names}) == 2
    assert unfinished_folder(tmp_path / "p.h5:/a/b", None) == tmp_path / ".p.h5.unfinished"
    longest = tmp_path / ("y" * 240 + ".npy")
    unfinished_folder(longest, None).mkdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_folder_for_unfinished_work_of_another_user_is_refused(tmp_path, image):
    root = tmp_path / ".labels.npy.unfinished"
    root.mkdir()
    os.chown(root, 65534, 65534)
    with pytest.raises(OutputError, match="is not a folder of yours"):
        label(image, tmp_path / "labels.npy")
