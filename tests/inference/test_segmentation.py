"""Whole volumes segmented to files: the same labels whatever interrupts, tiles or shares the work."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from pretended_workers import PretendedWorkers
from torch import nn
from values import by_name

from evenslice import Compute, Reading, cli, export, load_onnx, segment, symmetrize
from evenslice._core import Terminated, map_ahead, progress_to
from evenslice._core.errors import ConfigError, EvensliceError, ModelError, OutputError, VolumeError
from evenslice.inference import prediction, ready_networks, segmentation, segmentation_blocks
from evenslice.inference.prediction import predict
from evenslice.inference.ready_networks import ReadyNetwork
from evenslice.networks.outputs import predicted_classes
from evenslice.neutralizing.network_files import save_network
from evenslice.neutralizing.neutralization import neutralize
from evenslice.training.run_network import load_segmenter
from evenslice.volumes import fit_scaling
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read.zarr import ZarrSource
from evenslice.volumes.write import files as image_module


def network(classes=3, slices=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(slices, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, classes, 1))
    return model.requires_grad_(False)


def noise(*shape):
    return (np.random.default_rng(0).random(shape) * 250).astype(np.uint8)


def expected(model, image, slices=3, **options):
    volume = open_volume(image)
    ready = ReadyNetwork(model, slices=slices, device="cpu", dtype="float32")
    outputs = predict(ready, volume, scaling=fit_scaling(volume), slices=slices, **options)
    return torch.stack([output for _, output in outputs], dim=1)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, noise(20, 70, 90))
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two slices, of a quarter of the plane."""
    monkeypatch.setattr(segmentation_blocks, "CHUNK", 32)
    monkeypatch.setattr(segmentation_blocks, "LARGEST_REGION", 64)
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 64 * 64)


@pytest.fixture
def stop_after(monkeypatch):
    """Begin a segmentation and stop it after some blocks, as if it were killed."""
    work = segmentation_blocks._segment_blocks

    def stop_after(count, *arguments, **options):
        def first(blocks, job):
            yield from islice(work(blocks, job), count)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(segmentation_blocks, "_segment_blocks", first)
            segment(*arguments, **by_name(segment, **options))

    return stop_after


@pytest.fixture
def watched(monkeypatch):
    """Return a list that gets the blocks that are segmented from now on."""
    work = segmentation_blocks._segment_blocks

    def watched():
        begun = []
        monkeypatch.setattr(
            segmentation_blocks,
            "_segment_blocks",
            lambda blocks, job: begun.extend(blocks) or work(blocks, job),
        )
        return begun

    return watched


def test_labels_are_those_of_the_network(tmp_path, image):
    model = network()
    labels = segment(model, image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    right = predicted_classes(expected(model, np.load(image)), dim=0).numpy()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[...], right)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["image.npy", "labels.npy"]


@pytest.mark.parametrize(("classes", "dtype"), [(1, torch.uint8), (256, torch.uint8), (257, torch.int64)])
def test_classes_leave_the_device_batch_by_batch_in_bytes_if_these_hold_them(
    tmp_path, monkeypatch, classes, dtype
):
    model, volume = network(classes), noise(6, 20, 24)
    if classes > 1:
        model[2].bias[-1] = model[2].bias.max() + 0.2  # which the last class wins somewhere
    copied, convert = [], segmentation_blocks._classes

    def watch(output):
        copied.append(convert(output))
        return copied[-1]

    monkeypatch.setattr(segmentation_blocks, "_classes", watch)
    labels = segment(model, volume, tmp_path / "labels.npy", compute=Compute(batch=4, dtype="float32"))[...]
    assert [(len(part), part.dtype) for part in copied] == [(4, dtype), (2, dtype)]
    right = predicted_classes(expected(model, volume), dim=0).numpy()
    assert right.max() == max(classes - 1, 1)
    np.testing.assert_array_equal(labels, right)


def test_progress_ends_at_its_total_with_resolution_levels_too(tmp_path):
    heard = []
    volume = np.zeros((3, 260, 260), np.uint8)
    with progress_to(heard.append):
        labels = segment(
            network(),
            volume,
            tmp_path / "labels.ome.zarr",
            reading=Reading(intensity=(0, 1)),
            compute=Compute(dtype="float32"),
        )
    assert (tmp_path / "labels.ome.zarr" / "1").is_dir()
    written = [report for report in heard if report.title == "write"]
    assert [report.done for report in written] == sorted(report.done for report in written)
    assert (written[0].done, written[-1].done, written[-1].total) == (0, labels.size, labels.size)


def test_blocks_and_regions_change_nothing(tmp_path, image, small_blocks):
    model = network()
    labels = segment(model, image, tmp_path / "labels.npy", tile=(48, 32), compute=Compute(dtype="float32"))
    right = predicted_classes(expected(model, np.load(image), tile=(48, 32)), dim=0).numpy()
    np.testing.assert_array_equal(labels[...], right)


def test_what_was_done_in_blocks_of_another_size_is_gone_on_with(tmp_path, image, monkeypatch, stop_after):
    right = segment(network(), image, tmp_path / "right.npy", compute=Compute(dtype="float32"))[...]
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)
    stop_after(1, network(), image, tmp_path / "labels.npy", dtype="float32")
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 5 * 70 * 90)
    labels = segment(network(), image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    np.testing.assert_array_equal(labels[...], right)


def somewhere(workers, scheduler):
    return nullcontext(PretendedWorkers(2) if workers or scheduler else None)


@pytest.fixture
def here(monkeypatch):
    """Tasks that would go to workers, which are done here in turn."""
    tasks, submit = [], PretendedWorkers.submit

    def noted(self, rest, function, item):
        tasks.append(item)
        return submit(self, rest, function, item)

    monkeypatch.setattr(PretendedWorkers, "submit", noted)
    monkeypatch.setattr(segmentation_blocks, "open_workers", somewhere)
    return tasks


@pytest.fixture
def decoded(monkeypatch):
    """How many times each chunk of a volume is decoded while blocks are segmented."""
    chunks, read, work = Counter(), ZarrSource.read, segmentation.run_blocks

    def counted(self, key):
        ranges = [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(key, self.chunks, strict=True)
        ]
        chunks.update(product(*ranges))
        return read(self, key)

    def counting(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(ZarrSource, "read", counted)
            work(*arguments)

    monkeypatch.setattr(segmentation, "run_blocks", counting)
    return chunks


def stored_deep(path, depth=32):
    """Write a volume with 4 slices in each chunk."""
    zarr.create_array(path, data=noise(depth, 32, 32), chunks=(4, 16, 16))
    return path


@pytest.mark.parametrize("region", [None, np.s_[3:36, :, :]])
@pytest.mark.parametrize(("workers", "times"), [(None, 1), (2, 2)])
def test_chunks_of_many_slices_are_decoded_once_or_by_two_workers(
    tmp_path, monkeypatch, decoded, here, workers, times, region
):
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 32 * 32)
    volume = open_volume(stored_deep(tmp_path / "image.zarr", 36), region=region)
    labels = segment(
        network(), volume, tmp_path / "labels.npy", compute=Compute(dtype="float32", workers=workers)
    )
    assert max(decoded.values()) == times
    assert bool(here) is (workers is not None)
    right = predicted_classes(expected(network(), volume[...]), dim=0).numpy()
    np.testing.assert_array_equal(labels[...], right)


def test_no_more_bytes_of_a_chunk_are_held_than_agreed(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(prediction, "HELD_BYTES", 2 * 32 * 32)
    segment(
        network(),
        stored_deep(tmp_path / "image.zarr"),
        tmp_path / "labels.npy",
        compute=Compute(dtype="float32"),
    )
    assert set(decoded.values()) == {2}


@pytest.mark.parametrize("probabilities", [False, True])
def test_what_was_segmented_along_another_axis_is_decoded_once_for_the_output(
    tmp_path, monkeypatch, probabilities
):
    """The output is written in slabs, each of which needs every chunk of the staging folder."""
    monkeypatch.setattr(image_module, "SLAB_BYTES", 2 * 32 * 32)
    chunks, read, write = Counter(), ZarrSource.read, segmentation._write

    def counted(self, key):
        chunks.update(product(*(range(part.start, part.stop) for part in key[:-2])))
        return read(self, key)

    def counting(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(ZarrSource, "read", counted)
            write(*arguments, **options)

    monkeypatch.setattr(segmentation, "_write", counting)
    volume = open_volume(noise(32, 32, 32), plane="x")
    out = segment(
        network(), volume, tmp_path / "out.npy", compute=Compute(dtype="float32"), probabilities=probabilities
    )
    assert len(chunks) == (3 * 32 if probabilities else 32)
    assert set(chunks.values()) == {1}
    logits = expected(network(), volume)
    right = logits.softmax(0)[-1] if probabilities else predicted_classes(logits, dim=0)
    np.testing.assert_array_equal(out[...], np.moveaxis(right.numpy(), 0, 2))


@pytest.mark.parametrize(
    ("fewest", "starts"),
    [(8, [0, *range(2, 32, 4)]), (16, [0, *range(1, 32, 2)]), (64, list(range(32)))],
)
def test_tasks_meet_within_chunks_and_are_enough_for_all_workers(tmp_path, monkeypatch, here, fewest, starts):
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 32 * 32)
    monkeypatch.setattr(
        segmentation_blocks, "open_workers", lambda *_: nullcontext(PretendedWorkers(fewest // 2))
    )
    volume = stored_deep(tmp_path / "image.zarr")
    segment(network(), volume, tmp_path / "labels.npy", compute=Compute(dtype="float32", workers=2))
    assert [task[0][0].start for task in here] == starts


def test_what_is_left_of_an_unfinished_segmentation_is_divided_among_all_workers():
    job = SimpleNamespace(volume=SimpleNamespace(chunks=(64, 64, 64), chunk_offset=(0, 0, 0)))
    blocks = [(slice(z, z + 1), slice(0, 64), slice(0, 64)) for z in range(928, 1024)]
    tasks = segmentation_blocks._tasks(blocks, job, 32)
    assert len(tasks) >= 32
    assert [block for task in tasks for block in task] == blocks


def test_progress_is_that_of_blocks_within_tasks_too(tmp_path, monkeypatch):
    def looking(function, tasks, _workers, common, meanwhile):
        for task in tasks:
            for block in task:
                function([block], common)
                meanwhile(task)
            yield task, None

    reports = []
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 32 * 32)
    monkeypatch.setattr(segmentation_blocks, "open_workers", somewhere)
    monkeypatch.setattr(segmentation_blocks, "map_as_finished", looking)
    volume = stored_deep(tmp_path / "image.zarr")
    with progress_to(reports.append):
        segment(network(), volume, tmp_path / "labels.npy", compute=Compute(dtype="float32", workers=2))
    done = [report.done for report in reports if report.title == "segment"]
    assert done == sorted(done)
    assert {*done} == {*range(33)}


def test_a_worker_leaves_out_what_another_had_finished(tmp_path, monkeypatch, here):
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 32 * 32)
    volume, done = stored_deep(tmp_path / "image.zarr"), []
    work = segmentation_blocks._segment_blocks

    def dying(blocks, job):
        done.extend(islice(work(blocks, job), 2))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(segmentation_blocks, "_segment_blocks", dying)
        segment(network(), volume, tmp_path / "labels.npy", compute=Compute(dtype="float32", workers=2))
    again = []
    monkeypatch.setattr(
        segmentation_blocks, "_segment_blocks", lambda blocks, job: again.extend(blocks) or work(blocks, job)
    )
    tasks = segmentation_blocks._tasks
    monkeypatch.setattr(segmentation_blocks, "_tasks", lambda _, job, fewest: tasks(job.blocks, job, fewest))
    segment(network(), volume, tmp_path / "labels.npy", compute=Compute(dtype="float32", workers=2))
    assert len(done) == 2
    assert len(again) == 30


@pytest.fixture
def writing_behind(monkeypatch):
    """Write in a thread, as where a GPU computes."""
    monkeypatch.setattr(
        segmentation_blocks,
        "map_ahead",
        lambda *given, **options: map_ahead(*given, **{**options, "ahead": 1}),
    )


def test_blocks_are_marked_as_finished_when_they_are_written(tmp_path, image, monkeypatch, writing_behind):
    right = segment(network(), image, tmp_path / "right.npy", compute=Compute(dtype="float32"))[...]
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)
    write, threads = zarr.Array.__setitem__, set()

    def slowly(array, place, voxels):
        threads.add(threading.current_thread())
        time.sleep(0.005)
        write(array, place, voxels)

    monkeypatch.setattr(zarr.Array, "__setitem__", slowly)
    labels = segment(
        network(), image, tmp_path / "labels.npy", compute=Compute(dtype="float32")
    )  # which compares sizes
    np.testing.assert_array_equal(labels[...], right)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(("patience", "seen"), [(0, False), (5, True)])
def test_blocks_that_other_machines_have_finished_may_be_seen_late(patience, seen, monkeypatch):
    """A network file system may hold for a minute that a file is not there."""
    asked = Counter()

    def is_finished(block):
        asked[block] += 1
        return block != 1 or asked[block] > 2

    monkeypatch.setattr(segmentation_blocks, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(segmentation_blocks, "SEEN_LATE", patience)
    monkeypatch.setattr(segmentation_blocks, "_run", lambda *_: None)
    job = SimpleNamespace(blocks=range(3), is_finished=is_finished, staging="staging")
    with nullcontext() if seen else pytest.raises(OutputError, match="has removed finished blocks"):
        segmentation_blocks.run_blocks(job, None, "tcp://head:8786", None)
    assert asked == ({0: 1, 1: 3, 2: 1} if seen else {0: 1, 1: 1, 2: 1})


def test_what_cannot_be_written_in_a_thread_is_one_clear_error(tmp_path, image, monkeypatch, writing_behind):
    def full(_array, _place, _voxels):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(OutputError, match="No space left"):
        segment(network(), image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))


@pytest.mark.parametrize("name", ["p.npy", "p.tif", "p.nii.gz", "p.ome.zarr", "p.h5:/p", "p.mha", "p.nrrd"])
def test_probabilities_are_those_of_the_network(tmp_path, image, name):
    last = segment(network(), image, tmp_path / name, probabilities=True, compute=Compute(dtype="float32"))
    right = expected(network(), np.load(image)).softmax(0).numpy()
    np.testing.assert_allclose(last[...], right[-1], atol=1e-6)


def test_one_channel_stands_for_two_classes(tmp_path, image):
    model = network(classes=1)
    labels = segment(model, image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    last = segment(model, image, tmp_path / "p.npy", probabilities=True, compute=Compute(dtype="float32"))
    np.testing.assert_allclose(last[...], expected(model, np.load(image))[0].sigmoid().numpy(), atol=1e-6)
    np.testing.assert_array_equal(labels[...], last[...] > 0.5)


@pytest.mark.parametrize(
    "name", ["one.tif", "one.ome.tif", "one.btf", "one.nii", "one.ome.zarr", "one.npy", "one.mha"]
)
def test_probabilities_of_one_slice_can_be_read_again(tmp_path, name):
    options = {"slices": 1, "probabilities": True, "dtype": "float32"}
    last = segment(network(slices=1), noise(1, 20, 30), tmp_path / name, **by_name(segment, **options))
    right = expected(network(slices=1), noise(1, 20, 30), slices=1).softmax(0)
    np.testing.assert_allclose(last[...], right[-1], atol=1e-6)


def test_no_probabilities_follow_from_infinite_logits(tmp_path, image):
    model = network()
    model[2].bias[1] = -torch.inf  # a class that is ruled out
    labels = segment(model, image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    assert 1 not in labels[...]
    segment(model, image, tmp_path / "p.npy", probabilities=True, compute=Compute(dtype="float32"))
    model[2].bias[2] = torch.inf
    with pytest.raises(ModelError, match=r"infinity for slice 0 of .*image.npy, of which no probabilities"):
        segment(model, image, tmp_path / "q.npy", probabilities=True, compute=Compute(dtype="float32"))


def test_labels_get_the_values_asked_for(tmp_path, image):
    labels = segment(
        network(),
        image,
        tmp_path / "labels.npy",
        reading=Reading(label_values=[0, 1000, 7]),
        compute=Compute(dtype="float32"),
    )
    plain = segment(network(), image, tmp_path / "plain.npy", compute=Compute(dtype="float32"))
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels[...], np.array([0, 1000, 7])[plain[...]])
    values = np.array([0, 1000, 7], np.int16)
    again = segment(
        network(),
        image,
        tmp_path / "again.npy",
        reading=Reading(label_values=values),
        compute=Compute(dtype="float32"),
    )
    np.testing.assert_array_equal(again[...], labels[...])
    with pytest.raises(ConfigError, match="for each of the 3 classes"):
        segment(network(), image, tmp_path / "other.npy", reading=Reading(label_values=[0, 1]))
    for values in ([0, 1, -1], [0, 1, 2**32]):
        with pytest.raises(ConfigError, match="segment writes these values as unsigned integers"):
            segment(network(), image, tmp_path / "other.npy", reading=Reading(label_values=values))


def test_a_stopped_run_goes_on_with_the_blocks_that_are_left(tmp_path, image, small_blocks, monkeypatch):
    right = segment(network(), image, tmp_path / "right.npy", compute=Compute(dtype="float32"))[...]
    done = []

    def broken(blocks, job):
        for number, block in enumerate(work(blocks, job)):
            if number == 7:
                raise KeyboardInterrupt
            yield block
            done.append(block)

    work = segmentation_blocks._segment_blocks
    monkeypatch.setattr(segmentation_blocks, "_segment_blocks", broken)
    with pytest.raises(KeyboardInterrupt):
        segment(network(), image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    assert not (tmp_path / "labels.npy").exists()

    rest, reports = [], []
    monkeypatch.setattr(
        segmentation_blocks, "_segment_blocks", lambda blocks, job: rest.extend(blocks) or work(blocks, job)
    )
    with progress_to(reports.append):
        labels = segment(network(), image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    np.testing.assert_array_equal(labels[...], right)
    assert not set(map(str, rest)) & set(map(str, done))
    assert len(rest) + len(done) + 1 == 40  # the eighth was finished as the run was stopped
    assert [report.done for report in reports if report.title == "segment"] == [*range(8, 41)]


def test_the_beginning_of_another_segmentation_is_not_gone_on_with(tmp_path, image, stop_after):
    stop_after(1, network(), image, tmp_path / "labels.npy", dtype="float32")
    other = network()
    other[0].bias.add_(1)
    with pytest.raises(OutputError, match="unfinished segmentation by another network"):
        segment(other, image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    labels = segment(other, image, tmp_path / "labels.npy", compute=Compute(dtype="float32"), force=True)
    right = predicted_classes(expected(other, np.load(image)), dim=0).numpy()
    np.testing.assert_array_equal(labels[...], right)


class Shifted(nn.Module):
    """Its answer depends on a setting that is neither a parameter nor a buffer."""

    def __init__(self, name, value):
        super().__init__()
        self.layer, self.name = network(), name
        setattr(self, name, value)

    def forward(self, windows):
        shift = getattr(self, self.name)
        return self.layer(windows) + torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1) * (
            shift["by"] if isinstance(shift, dict) else shift
        )


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("shift", torch.tensor),
        ("shift", np.float32),
        ("shift", lambda value: {"by": value}),
        ("_shift", float),
    ],
)
def test_nor_is_that_by_a_network_with_another_setting(tmp_path, image, stop_after, name, setting):
    stop_after(1, Shifted(name, setting(0.5)), image, tmp_path / "labels.npy", dtype="float32")
    with pytest.raises(OutputError, match="unfinished segmentation by another network"):
        segment(
            Shifted(name, setting(0.50001)), image, tmp_path / "labels.npy", compute=Compute(dtype="float32")
        )
    segment(Shifted(name, setting(0.5)), image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))


def test_a_setting_that_holds_itself_is_no_obstacle(tmp_path, image):
    model = network()
    model.parts = []
    model.parts.append(model.parts)
    segment(model, image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))


def test_a_segmentation_goes_on_where_batch_norms_are_folded_to_other_roundings(
    tmp_path, image, monkeypatch, stop_after, watched
):
    """As on a GPU, to which a segmentation begun on the CPU is moved."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    ).eval()
    nn.init.uniform_(model[1].running_var, 0.5, 1.5)
    fold = ready_networks.fuse_batch_norms
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)

    def fold_elsewhere(module, *arguments):
        assert fold(module, *arguments) == 1
        module[0].weight.copy_(module[0].weight.nextafter(torch.tensor(1.0)))
        return 1

    stop_after(4, model, image, tmp_path / "labels.npy", dtype="float32")
    monkeypatch.setattr(ready_networks, "fuse_batch_norms", fold_elsewhere)
    begun = watched()
    segment(model, image, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    assert len(begun) == 10 - 4


def test_each_slice_is_read_once(tmp_path, image, monkeypatch, small_blocks):
    monkeypatch.setattr(segmentation_blocks, "LARGEST_REGION", 128)
    reads = []
    volume = open_volume(image)
    monkeypatch.setattr(segmentation, "fit_scaling", lambda *_, **__: fit_scaling(open_volume(image)))
    monkeypatch.setattr(segmentation_blocks, "fingerprint", lambda _: "")
    read = type(volume).__getitem__

    def noted(self, key):
        if self is volume:
            reads.append(key[0].start)
        return read(self, key)

    monkeypatch.setattr(type(volume), "__getitem__", noted)
    segment(network(), volume, tmp_path / "labels.npy", compute=Compute(dtype="float32"))
    assert sorted(reads) == list(range(20))


def test_an_input_is_never_written_over(tmp_path, image):
    with pytest.raises(OutputError, match=r"image\.npy"):
        segment(network(), image, image, force=True)
    assert np.load(image).shape == (20, 70, 90)
    with pytest.raises(OutputError, match="cannot write '.png' files"):
        segment(network(), image, tmp_path / "labels.png")


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/../helpers"]
import test_segmentation as t
from evenslice.inference import segmentation_blocks
segmentation_blocks.BLOCK_VOXELS = 2 * 70 * 90
work = segmentation_blocks._segment_blocks
def slow(blocks, job):
    for block in work(blocks, job):
        yield block
        time.sleep(0.2)
segmentation_blocks._segment_blocks = slow
t.segment(t.network(), Path({image!r}), Path({out!r}), compute=t.Compute(dtype="float32"))
"""


def test_a_killed_run_goes_on_to_the_same_labels(tmp_path, image, monkeypatch, watched):
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)
    right = segment(network(), image, tmp_path / "right.npy", compute=Compute(dtype="float32"))[...]
    out = tmp_path / "labels.npy"
    script = KILLED.format(tests=str(Path(__file__).parent), image=str(image), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    root = tmp_path / ".labels.npy.unfinished"
    until = time.monotonic() + 60
    while len(list(root.glob("work/array.zarr/c/*/0/0"))) < 6:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(root.glob("work/array.zarr/c/*/0/0"))) // 2
    assert 3 <= done < 10
    assert not out.exists()

    seen = watched()
    labels = segment(network(), image, out, compute=Compute(dtype="float32"))
    np.testing.assert_array_equal(labels[...], right)
    assert len(seen) == 10 - done


class Dying(nn.Module):
    """Kills the process that runs it, once."""

    def __init__(self, model, flag):
        super().__init__()
        self.model, self.flag, self.parent = model, str(flag), os.getpid()

    def forward(self, x):
        if os.getpid() != self.parent and x.abs().sum() > 0 and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(x)


@pytest.mark.slow
def test_a_killed_worker_ends_the_segmentation_in_one_line_and_it_goes_on(tmp_path, image, monkeypatch):
    """Here of a network whose answers for window and mirror are averaged, as workers have to do, too."""
    right = segment(symmetrize(network()), image, tmp_path / "right.npy", compute=Compute(dtype="float32"))[
        ...
    ]
    assert not np.array_equal(
        right, segment(network(), image, tmp_path / "other.npy", compute=Compute(dtype="float32"))[...]
    )
    flag = tmp_path / "flag"
    dying = Dying(symmetrize(network()), flag)
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)
    with pytest.raises(EvensliceError, match="worker process was killed, .* start the command again"):
        segment(dying, image, tmp_path / "labels.npy", compute=Compute(dtype="float32", workers=2))
    assert flag.exists()
    labels = segment(dying, image, tmp_path / "labels.npy", compute=Compute(dtype="float32", workers=2))
    np.testing.assert_array_equal(labels[...], right)


def test_workers_that_do_not_see_the_staging_folder_are_one_clear_error(tmp_path, image, monkeypatch):
    @contextmanager
    def sharing(self, common):
        yield partial(self.submit, (replace(common, root=tmp_path / "not" / "here"),))

    monkeypatch.setattr(PretendedWorkers, "sharing", sharing)
    monkeypatch.setattr(segmentation_blocks, "open_workers", somewhere)
    with pytest.raises(OutputError, match="not/here: is missing on the worker .*share with scratch"):
        segment(
            network(),
            image,
            tmp_path / "labels.npy",
            compute=Compute(dtype="float32", scheduler="tcp://head:1"),
        )


def test_a_cluster_needs_a_shared_folder_for_an_output_at_an_address(image):
    with pytest.raises(
        ConfigError, match="choose a folder that this machine and all workers share with scratch"
    ):
        segment(
            network(),
            image,
            "s3://bucket/labels.ome.zarr",
            compute=Compute(dtype="float32", scheduler="tcp://head:1"),
        )


def test_a_full_disk_is_one_clear_error(tmp_path, image):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(OutputError, match="No space left"):
            segment(
                network(), image, small / "labels.npy", compute=Compute(dtype="float32"), probabilities=True
            )
        assert not (small / "labels.npy").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_command_segments_with_a_network_in_a_file(tmp_path, image, monkeypatch, capsys):
    model = smp_network()
    record = neutralize(model, 3)
    save_network(model, tmp_path / "network.safetensors", record=record)
    arguments = [
        "segment",
        "--model",
        "smp:Unet/resnet18",
        "--weights",
        str(tmp_path / "network.safetensors"),
    ]
    arguments += ["--volume", str(image), "--out", str(tmp_path / "labels.tif"), "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["evenslice", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    assert "labels.tif" in capsys.readouterr().out.replace("\n", "")  # long paths are wrapped
    right = segment(model, image, tmp_path / "right.npy", compute=Compute(dtype="float32"))
    np.testing.assert_array_equal(open_volume(tmp_path / "labels.tif")[...], right[...])


@pytest.mark.parametrize(
    ("finished", "error"), [(4, KeyboardInterrupt), (4, Terminated), (0, KeyboardInterrupt)]
)
def test_an_interrupted_command_says_how_to_go_on_if_anything_is_finished(
    tmp_path, image, monkeypatch, capsys, finished, error
):
    model, weights = smp_network(), str(tmp_path / "network.safetensors")
    save_network(model, weights, record=neutralize(model, 3))
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)
    work = segmentation_blocks._segment_blocks

    def first(blocks, job):
        yield from islice(work(blocks, job), finished)
        raise error

    monkeypatch.setattr(segmentation_blocks, "_segment_blocks", first)
    out = tmp_path / "labels.tif"
    arguments = [
        "--model",
        "smp:Unet/resnet18",
        "--weights",
        weights,
        "--volume",
        str(image),
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["evenslice", "segment", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    said = capsys.readouterr().err
    what, status = ("terminated", 143) if error is Terminated else ("interrupted", 130)
    assert exit_.value.code == status
    kept = tmp_path / ".labels.tif.unfinished"
    if finished:
        assert f"{what}; repeat the command to resume; what is finished is in" in said
        assert str(kept) in said.replace("\n", "")
    else:
        assert said.endswith("interrupted\n")
    assert kept.is_dir() == bool(finished)


def smp_network():
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    return smp.Unet("resnet18", encoder_weights=None, classes=2).eval()


def test_a_run_and_a_network_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="give run, or model and weights"):
        load_segmenter()
    with pytest.raises(ConfigError, match="step: the run .* determines it"):
        load_segmenter(tmp_path, step=2)
    for arguments in ((tmp_path, "smp:Unet/resnet18"), (tmp_path,)):
        with pytest.raises(ConfigError, match="holds no run of `evenslice train`"):
            load_segmenter(*arguments)


@pytest.mark.parametrize("slices", [0, -1, 2])
def test_a_window_without_a_middle_is_refused(tmp_path, image, slices):
    for model in (network(), lambda windows: windows[:, :1]):
        with pytest.raises(ConfigError, match=f"slices={slices}: a window has an odd number of slices"):
            segment(model, image, tmp_path / "labels.npy", slices=slices)


def test_bounds_that_numpy_gives_are_plain_numbers(tmp_path, image):
    low, high = np.int16(-32768), np.int16(32767)
    by_numpy = segment(network(), image, tmp_path / "numpy.npy", reading=Reading(intensity=(low, high)))
    plain = segment(network(), image, tmp_path / "plain.npy", reading=Reading(intensity=(-32768, 32767)))
    np.testing.assert_array_equal(by_numpy[...], plain[...])


@pytest.mark.parametrize(
    ("shape", "options", "error"),
    [((6, 40, 40), {"batch": 0}, ConfigError), ((2, 40, 40), {}, VolumeError)],
)
def test_what_is_refused_leaves_nothing_beside_the_output(tmp_path, shape, options, error):
    with pytest.raises(error):
        segment(network(), noise(*shape), tmp_path / "labels.tif", **by_name(segment, **options))
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_is_told_before_any_work(tmp_path, image, monkeypatch):
    monkeypatch.setattr(segmentation, "make_ready", None)  # which copies the network
    with pytest.raises(OutputError, match="labels.tof"):
        segment(network(), image, tmp_path / "labels.tof")


def test_too_few_slices_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="2 slices; a window of 3 needs 3"):
        segment(network(), noise(2, 40, 40), tmp_path / "labels.npy")


def test_a_function_is_segmented_like_the_network_that_it_calls(tmp_path, image):
    model = network()

    def function(windows):
        return model(torch.from_numpy(windows)).numpy()

    right = segment(model, image, tmp_path / "right.npy", tile=(64, 32), compute=Compute(dtype="float32"))
    labels = segment(function, image, tmp_path / "labels.npy", tile=(64, 32))
    np.testing.assert_array_equal(labels[...], right[...])
    with pytest.raises(ConfigError, match="dtype='float32' has no effect on a function"):
        segment(function, image, tmp_path / "no.npy", compute=Compute(dtype="float32"))
    with pytest.raises(ModelError, match="returns int64, such as class numbers; it must return logits"):
        segment(lambda windows: windows[:, :1].astype(int), image, tmp_path / "no.npy")
    with pytest.raises(ModelError, match=r"must return \(batch, classes, y, x\)"):
        segment(lambda windows: windows[:, 0], image, tmp_path / "no.npy")


def test_the_segmentation_of_a_function_is_resumed_by_the_same_function_alone(
    tmp_path, image, monkeypatch, stop_after, watched
):
    def scaling(factor):
        def scaled(windows):
            return factor * windows[:, :2]

        return scaled

    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)
    stop_after(4, scaling(1.0), image, tmp_path / "labels.npy")
    with pytest.raises(OutputError, match="unfinished segmentation by another network"):
        segment(scaling(1.001), image, tmp_path / "labels.npy")
    begun = watched()
    labels = segment(scaling(1.0), image, tmp_path / "labels.npy")
    assert len(begun) == 10 - 4
    monkeypatch.undo()
    np.testing.assert_array_equal(labels[...], segment(scaling(1.0), image, tmp_path / "right.npy")[...])


@pytest.mark.slow
def test_workers_segment_by_an_onnx_file_that_is_symmetrized(tmp_path, image):
    pytest.importorskip("onnxruntime")
    model = network().eval()
    neutralize(model, 3, strategy="pretrained", mean=0, std=1)
    export(model, tmp_path / "exported", to="onnx")
    function = symmetrize(load_onnx(tmp_path / "exported" / "network.onnx"))
    right = segment(function, image, tmp_path / "right.npy")
    labels = segment(function, image, tmp_path / "labels.npy", compute=Compute(workers=1))
    np.testing.assert_array_equal(labels[...], right[...])
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent to workers"):
        segment(
            lambda windows: windows[:, :2] if lock else None,
            image,
            tmp_path / "no.npy",
            compute=Compute(workers=1),
        )


def test_the_number_of_blocks_limits_a_volume(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(
        segmentation, "run_blocks", lambda job, *_: begun.append(job.blocks) or pytest.fail("enough")
    )
    path = tmp_path / "claims.zarr"

    def begin(*shape):
        zarr.create_array(path, shape=shape, chunks=(64, 64, 64), dtype=np.uint8, overwrite=True)
        segment(network(), path, out=tmp_path / "labels.zarr", reading=Reading(intensity=(0, 255)))

    with pytest.raises(pytest.fail.Exception, match="enough"):
        begin(13000, 13000, 13000)  # two terabytes
    assert len(begun[0]) == 13000 * 16
    with pytest.raises(
        VolumeError, match=r"4,294,967,296 blocks, and at most 2,097,152 .* a part \(region\)"
    ):
        begin(2**40, 64, 64)
