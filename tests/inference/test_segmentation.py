"""Whole volumes segmented to files: the same labels whatever interrupts, tiles or shares the work."""

import os
import signal
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from pretended_workers import PretendedWorkers
from torch import nn
from values import by_name

from evenslice import (
    Compute,
    ConfigError,
    EvensliceError,
    ModelError,
    OutputError,
    Reading,
    VolumeError,
    neutralize,
    open_volume,
    save_network,
    segment,
    symmetrize,
)
from evenslice._core import progress_to
from evenslice.inference import segmentation
from evenslice.volumes.read.chunked import ZarrSource


def network(classes=3, slices=3, kernel=1):
    torch.manual_seed(classes)
    first = nn.Conv2d(slices, 8, kernel, padding=kernel // 2)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, classes, 1)).requires_grad_(False)


def noise(*shape):
    return (np.random.default_rng(0).random(shape) * 250).astype(np.uint8)


def expected(model, image, slices=3):
    """The logits (classes, z, y, x) of a network of single pixels, for windows that are reflected at the ends."""
    volume = open_volume(image)
    reach, scaled = slices // 2, Reading().fit_scaling(volume)(volume[...])
    padded = np.pad(scaled, [(reach, reach), (0, 0), (0, 0)], "reflect")
    return model(torch.from_numpy(padded).unfold(0, slices, 1).movedim(-1, 1)).movedim(1, 0)


def expected_labels(model, image):
    logits = expected(model, image)
    return (logits[0] > 0 if len(logits) == 1 else logits.argmax(0)).numpy()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, noise(20, 70, 90))
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two slices, of a quarter of the plane."""
    monkeypatch.setattr(segmentation, "CHUNK", 32)
    monkeypatch.setattr(segmentation, "LARGEST_REGION", 64)
    monkeypatch.setattr(segmentation, "BLOCK_VOXELS", 2 * 64 * 64)


@pytest.fixture
def stop_after(monkeypatch):
    """Begin a segmentation and stop it after some blocks, as if it were killed."""
    work = segmentation._segment_blocks

    def stop_after(count, *arguments, **options):
        def first(blocks, job):
            yield from islice(work(blocks, job), count)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(segmentation, "_segment_blocks", first)
            segment(*arguments, **by_name(segment, **options))

    return stop_after


@pytest.fixture
def watched(monkeypatch):
    """Return a list that gets the blocks that are segmented from now on."""
    work = segmentation._segment_blocks

    def watched():
        begun = []
        monkeypatch.setattr(
            segmentation, "_segment_blocks", lambda blocks, job: begun.extend(blocks) or work(blocks, job)
        )
        return begun

    return watched


def test_labels_are_those_of_the_network(tmp_path, image):
    model = network()
    labels = segment(model, image, tmp_path / "labels.npy")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected_labels(model, np.load(image)))
    held = segment(model, image)
    assert type(held) is np.ndarray
    np.testing.assert_array_equal(held, labels)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["image.npy", "labels.npy"]
    with pytest.raises(ConfigError, match="probabilities: are written to a file; give out"):
        segment(model, image, probabilities=True)


@pytest.mark.parametrize("classes", [1, 257])
def test_few_and_many_classes(classes):
    model, volume = network(classes), noise(6, 20, 24)
    if classes > 1:
        model[2].bias[-1] = model[2].bias.max() + 0.4  # which the last class wins somewhere
    labels = segment(model, volume, compute=Compute(batch=4))
    right = expected_labels(model, volume)
    assert right.max() == max(classes - 1, 1)
    np.testing.assert_array_equal(labels, right)


def test_progress_ends_at_its_total_with_resolution_levels_too(tmp_path):
    heard = []
    volume = np.zeros((3, 260, 260), np.uint8)
    with progress_to(lambda *report: heard.append(report)):
        labels = segment(network(), volume, tmp_path / "labels.ome.zarr", reading=Reading(intensity=(0, 1)))
    assert (tmp_path / "labels.ome.zarr" / "1").is_dir()
    written = [(done, total) for title, done, total, _ in heard if title == "write"]
    assert written == sorted(written)
    assert (written[0][0], written[-1]) == (0, (labels.size, labels.size))


@pytest.mark.slow
def test_blocks_and_regions_change_nothing(image, request):
    model = network(kernel=5)
    right = segment(model, image, tile=(48, 32))
    request.getfixturevalue("small_blocks")
    np.testing.assert_array_equal(segment(model, image, tile=(48, 32)), right)


def somewhere(workers, scheduler):
    return nullcontext(PretendedWorkers(2) if workers or scheduler else None)


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


@pytest.mark.slow
@pytest.mark.parametrize("region", [None, np.s_[3:36, :, :]])
@pytest.mark.parametrize(("workers", "times"), [(None, 1), (2, 2)])
def test_chunks_of_many_slices_are_decoded_once_or_by_two_workers(
    tmp_path, monkeypatch, decoded, workers, times, region
):
    monkeypatch.setattr(segmentation, "BLOCK_VOXELS", 32 * 32)
    monkeypatch.setattr(segmentation, "open_workers", somewhere)  # whose tasks are done here in turn
    zarr.create_array(tmp_path / "image.zarr", data=noise(36, 32, 32), chunks=(4, 16, 16))
    volume = open_volume(tmp_path / "image.zarr", region=region)
    labels = segment(network(), volume, compute=Compute(workers=workers))
    assert max(decoded.values()) == times
    np.testing.assert_array_equal(labels[...], expected_labels(network(), volume[...]))


@pytest.mark.parametrize("probabilities", [False, True])
def test_what_was_segmented_along_another_axis_is_in_the_order_of_the_file(tmp_path, probabilities):
    volume = open_volume(noise(8, 32, 32), plane="x")
    out = segment(network(), volume, tmp_path / "out.npy", probabilities=probabilities)
    logits = expected(network(), volume)
    right = logits.softmax(0)[-1] if probabilities else logits.argmax(0)
    np.testing.assert_allclose(out[...], np.moveaxis(right.numpy(), 0, 2), atol=1e-6)


FORMATS = ["p.npy", "p.tif", "p.ome.tif", "p.nii.gz", "p.ome.zarr", "p.h5:/p", "p.mha", "p.nrrd"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("slices", [1, 3])
def test_probabilities_are_those_of_the_network(tmp_path, name, slices):
    image = noise(slices, 20, 30)
    last = segment(network(slices=slices), image, tmp_path / name, slices=slices, probabilities=True)
    right = expected(network(slices=slices), image, slices).softmax(0)
    np.testing.assert_allclose(last[...], right[-1], atol=1e-6)


def test_one_channel_stands_for_two_classes(tmp_path, image):
    last = segment(network(1), image, tmp_path / "p.npy", probabilities=True)
    np.testing.assert_allclose(last[...], expected(network(1), np.load(image))[0].sigmoid(), atol=1e-6)
    np.testing.assert_array_equal(segment(network(1), image)[...], last[...] > 0.5)


def test_no_probabilities_follow_from_infinite_logits(tmp_path, image):
    model = network()
    model[2].bias[1] = -torch.inf  # a class that is ruled out
    labels = segment(model, image, tmp_path / "labels.npy")
    assert 1 not in labels[...]
    segment(model, image, tmp_path / "p.npy", probabilities=True)
    model[2].bias[2] = torch.inf
    with pytest.raises(ModelError, match=r"infinity for slice 0 of .*image.npy, of which no probabilities"):
        segment(model, image, tmp_path / "q.npy", probabilities=True)


def test_labels_get_the_values_asked_for(image):
    labels = segment(network(), image, reading=Reading(label_values=[0, 1000, 7]))
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, np.array([0, 1000, 7])[segment(network(), image)[...]])
    for values, message in (
        ([0, 1], "for each of the 3 classes"),
        ([0, 1, -1], "segment writes 0 to"),
        ([0, 1, 2**32], "segment writes 0 to"),
    ):
        with pytest.raises(ConfigError, match=message):
            segment(network(), image, reading=Reading(label_values=values))


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_blocks_that_are_left(
    tmp_path, image, small_blocks, stop_after, watched
):
    right = segment(network(), image)
    stop_after(8, network(), image, tmp_path / "labels.npy")
    assert not (tmp_path / "labels.npy").exists()
    begun, reports = watched(), []
    with progress_to(lambda *report: reports.append(report)):
        labels = segment(network(), image, tmp_path / "labels.npy")
    np.testing.assert_array_equal(labels, right)
    assert len(begun) == 32
    assert [done for title, done, *_ in reports if title == "segment"] == [*range(8, 41)]


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("shift", torch.tensor),
        ("shift", np.float32),
        ("shift", lambda value: {"by": value}),
        ("_shift", float),
    ],
)
def test_a_network_with_another_setting_does_not_go_on(
    tmp_path, small_blocks, image, stop_after, name, setting
):
    out = tmp_path / "labels.npy"
    stop_after(1, Shifted(name, setting(0.5)), image, out)
    other = Shifted(name, setting(0.50001))
    with pytest.raises(OutputError, match="unfinished segmentation by another network"):
        segment(other, image, out)
    np.testing.assert_array_equal(segment(other, image, out, force=True), segment(other, image))


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
    right = segment(symmetrize(network()), image)
    assert not np.array_equal(right, segment(network(), image))
    flag, compute = tmp_path / "flag", Compute(workers=2)
    dying = Dying(symmetrize(network()), flag)
    monkeypatch.setattr(segmentation, "BLOCK_VOXELS", 2 * 70 * 90)
    with pytest.raises(EvensliceError, match="worker process was killed, .* start the command again"):
        segment(dying, image, tmp_path / "labels.npy", compute=compute)
    assert flag.exists()
    np.testing.assert_array_equal(segment(dying, image, tmp_path / "labels.npy", compute=compute), right)


def test_a_cluster_needs_a_folder_that_all_see(tmp_path, image, monkeypatch):
    @contextmanager
    def sharing(self, shared):
        yield partial(self.submit, (replace(shared.load(), root=tmp_path / "not" / "here"),))

    compute = Compute(scheduler="tcp://head:1")
    monkeypatch.setattr(PretendedWorkers, "sharing", sharing)
    monkeypatch.setattr(segmentation, "open_workers", somewhere)
    with pytest.raises(OutputError, match="not/here: is missing on the worker .*share with scratch"):
        segment(network(), image, tmp_path / "labels.npy", compute=compute)


@pytest.mark.parametrize("finished", [4, 0])
def test_an_interrupted_command_says_how_to_go_on_if_anything_is_finished(
    tmp_path, image, monkeypatch, command, finished
):
    model, weights, out = nn.Conv2d(3, 2, 1), tmp_path / "network.safetensors", tmp_path / "labels.tif"
    (tmp_path / "layers.py").write_text("from torch import nn\ndef net():\n    return nn.Conv2d(3, 2, 1)\n")
    neutralize(model, 3, mean=0, std=1)
    save_network(model, weights)
    monkeypatch.setattr(segmentation, "BLOCK_VOXELS", 2 * 70 * 90)
    work = segmentation._segment_blocks

    def first(blocks, job):
        yield from islice(work(blocks, job), finished)
        raise KeyboardInterrupt

    monkeypatch.setattr(segmentation, "_segment_blocks", first)
    done = command("segment", "--model", "layers:net", "--weights", weights, "--volume", image, "--out", out)
    assert done.returncode == 130
    kept = tmp_path / ".labels.tif.unfinished"
    assert ("interrupted; repeat the command to resume" in done.stderr) == bool(finished)
    assert (str(kept) in done.stderr.replace("\n", "")) == bool(finished)
    assert kept.is_dir() == bool(finished)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (lambda windows: windows[:, :1], {"slices": 2}, ConfigError, "slices=2: a window has an odd number"),
        (network(), {"batch": 0}, ConfigError, "batch"),
        (network(), {"volume": noise(2, 40, 40)}, VolumeError, "2 slices; a window of 3 needs 3"),
        (lambda windows: windows[:, :1], {"dtype": "float32"}, ConfigError, "has no effect"),
        (lambda windows: windows[:, :1].astype(int), {}, ModelError, "returns int64, such as class numbers"),
        (lambda windows: windows[:, 0], {}, ModelError, r"must return \(batch, classes, y, x\)"),
    ],
)
def test_what_is_refused_leaves_nothing_beside_the_output(tmp_path, model, options, error, message):
    given = {"volume": noise(6, 40, 40), "out": tmp_path / "labels.tif"} | options
    with pytest.raises(error, match=message):
        segment(model, **by_name(segment, **given))
    assert not list(tmp_path.iterdir())


class Predicting(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def predict(self, windows):
        return self.factor.numpy() * windows[:, :2]


class Scaled:
    __slots__ = ("_by", "_calls")

    def __init__(self, factor):
        self._by, self._calls = factor, 0

    def __call__(self, windows):
        self._calls += 1
        return self._by * windows[:, :2]


def enclosed(factor):
    return lambda windows: factor * windows[:, :2]


def keyword(factor):
    return lambda windows, *, by=factor: by * windows[:, :2]


def filled(factor):
    return partial(lambda by, windows: by * windows[:, :2], factor)


@pytest.mark.parametrize(
    "scaling", [enclosed, keyword, filled, Scaled, lambda factor: Predicting(factor).predict]
)
def test_the_segmentation_of_a_function_is_resumed_by_the_same_function_alone(
    tmp_path, image, monkeypatch, stop_after, watched, scaling
):
    monkeypatch.setattr(segmentation, "BLOCK_VOXELS", 2 * 70 * 90)
    stop_after(4, scaling(1.0), image, tmp_path / "labels.npy")
    with pytest.raises(OutputError, match="unfinished segmentation by another network"):
        segment(scaling(1.001), image, tmp_path / "labels.npy")
    begun = watched()
    labels = segment(scaling(1.0), image, tmp_path / "labels.npy")
    assert len(begun) == 10 - 4
    monkeypatch.undo()
    np.testing.assert_array_equal(labels[...], segment(scaling(1.0), image, tmp_path / "right.npy")[...])
