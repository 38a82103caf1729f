import numpy as np
import pytest
import torch

from evenslice import ConfigError, Scaling, SliceWindows
from evenslice._core import as_config
from evenslice.training.config import AugmentationConfig, TrainConfig, TrainingConfig
from evenslice.training.crops import CropDataset
from evenslice.training.data_config import DataConfig
from evenslice.training.lightning_module import CropData, StepSampler
from evenslice.volumes.labels import LabelledVolume, index_classes
from evenslice.volumes.opening import open_volume
from evenslice.volumes.volume import take_slices

OFF = AugmentationConfig(flips=False, rotations=False, z_flip=False, intensity=False)


def make_part(image, labels=None, classes=2):
    labels = np.zeros(np.shape(image), np.int64) if labels is None else labels
    stored = open_volume(labels)
    return LabelledVolume(
        "part", open_volume(image), stored, Scaling(0, 1), index_classes(stored, classes, keep=10_000)
    )


@pytest.fixture(scope="module")
def noise():
    random = np.random.default_rng(0)
    image = random.random((12, 50, 60), dtype=np.float32)
    return make_part(image, (image > 0.9).astype(np.int64))


def crops(parts, *, crop=(16, 16), length=100, slices=3, **options):
    return CropDataset(parts, crop=crop, length=length, slices=slices, **options)


def test_crop_number_i_depends_on_seed_and_i_alone(noise):
    one, other = (crops([noise], foreground=0.5, augmentation=AugmentationConfig(), seed=3) for _ in range(2))
    order = np.random.default_rng(1).permutation(100)
    forward = [one[i] for i in range(100)]
    for i in order:
        window, labels = other[int(i)]
        assert torch.equal(window, forward[i][0])
        assert torch.equal(labels, forward[i][1])
    different = crops([noise], foreground=0.5, augmentation=AugmentationConfig(), seed=4)
    assert not any(torch.equal(different[i][0], forward[i][0]) for i in range(20))


def test_windows_hold_the_slices_around_the_middle():
    depth = 20
    image = np.broadcast_to(np.arange(depth, dtype=np.float32)[:, None, None] / depth, (depth, 20, 20))
    labels = np.broadcast_to(np.arange(depth)[:, None, None], (depth, 20, 20))
    part = make_part(image, labels, classes=depth)
    for window, classes in (crops([part], slices=5, step=2)[i] for i in range(50)):
        z = int(classes[0, 0])
        expected = np.abs(z + 2 * np.arange(-2, 3))
        expected = np.minimum(expected, 2 * (depth - 1) - expected)
        assert np.allclose(window[:, 3, 4].numpy() * depth, expected, atol=1e-4)


def test_no_window_leaves_its_part():
    image = np.zeros((30, 20, 20), np.float32)
    image[:10] = image[20:] = 1
    whole = open_volume(image)
    volume = take_slices(whole, 10, 20)
    labels = open_volume(np.zeros((10, 20, 20), np.int64))
    part = LabelledVolume("middle", volume, labels, Scaling(0, 1), index_classes(labels, 2, keep=1))
    data = crops([part], slices=7, augmentation=OFF)
    assert all(float(data[i][0].max()) == 0 for i in range(100))


@pytest.mark.parametrize("crop", [(16, 16), (12, 20), (1, 1), (1, 7), (7, 1)])
def test_image_and_labels_move_together(crop):
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (9, 40, 40))
    part = make_part(labels.astype(np.float32), labels)
    data = crops([part], crop=crop, foreground=0.5, augmentation=OFF.model_copy(update={"flips": True, "rotations": True, "z_flip": True}))  # fmt: skip
    for window, classes in (data[i] for i in range(60)):
        assert tuple(classes.shape) == crop
        assert torch.equal(window[1], classes.float())


def oriented():
    """A part whose every window says which way up it is: bright to the right, brighter down, brightest along z."""
    z, y, x = np.indices((16, 32, 32))
    return make_part(0.024 * z + 0.013 * y + 0.006 * x)


@pytest.mark.parametrize(
    ("option", "ways"), [("flips", 4), ("rotations", 4), ("z_flip", 2), ("intensity", 1), (None, 1)]
)
def test_each_augmentation_can_be_switched(option, ways):
    augmentation = OFF.model_copy(update={option: True} if option else {})
    data = crops([oriented()], augmentation=augmentation, length=200)
    found = []
    for window, _ in (data[i] for i in range(200)):
        down, right = window.diff(dim=1).mean(), window.diff(dim=2).mean()
        middle_up = float(window[-1].mean() - window[0].mean())
        found.append((bool(down > 0), bool(right > 0), bool(abs(down) > abs(right)), middle_up > 0))
    if option == "z_flip":
        found = [(True, True, True, up) for *_, up in found]
    if option in {"flips", "rotations", "intensity", None}:
        found = [(*rest, True) for *rest, _ in found]
    kinds, counts = np.unique(np.array(found), axis=0, return_counts=True)
    assert len(kinds) == ways
    assert counts.min() > 200 / ways * 0.6


def test_a_window_of_one_slice_has_no_neighbours_to_lose():
    files = {"train": [{"image": "image.npy", "labels": "labels.npy"}]}
    options = {"data": files, "model": {"slices": 1}, "augmentation": {"missing_slices": 0.2}}
    for refused in (
        lambda: as_config(options, TrainConfig),
        lambda: SliceWindows(np.eye(8)[None], slices=1, augmentation={"missing_slices": 0.2}),
    ):
        with pytest.raises(ConfigError, match="a window of one slice has no neighbours"):
            refused()


def test_missing_slices_are_replaced_by_the_middle_slice(noise):
    same = {"flips": False, "rotations": False, "z_flip": False, "intensity": False}
    whole = crops([noise], length=300, augmentation=AugmentationConfig(**same))
    lossy = crops([noise], length=300, augmentation=AugmentationConfig(**same, missing_slices=0.3))
    lost = []
    for i in range(300):
        (before, labels), (after, kept) = whole[i], lossy[i]
        assert torch.equal(labels, kept)
        assert torch.equal(before[1], after[1])
        for place in (0, 2):
            gone = torch.equal(after[place], before[1])
            assert gone or torch.equal(after[place], before[place])
            lost.append(gone)
    assert 0.23 <= np.mean(lost) <= 0.37  # 600 draws: more than three standard errors


def test_lost_slices_change_nothing_else_of_a_crop(noise):
    """Arms of a study that differ in their lost slices alone see the same crops otherwise."""
    whole, lossy = (
        crops([noise], foreground=0.5, augmentation=AugmentationConfig(missing_slices=missing))
        for missing in (0, 0.3)
    )
    for i in range(100):
        (before, labels), (after, kept) = whole[i], lossy[i]
        assert torch.equal(labels, kept)
        assert torch.allclose(before[1], after[1], atol=1e-6)  # powers round by the layout of an array
    assert any(not torch.equal(whole[i][0], lossy[i][0]) for i in range(10))


def test_crops_are_those_of_earlier_versions(noise):
    """A study can be given more runs years later, and compares them with those that it has."""
    data = crops([noise], foreground=0.5, augmentation=AugmentationConfig(), seed=3)
    pixels = [float(data[i][0][1, 2, 3]) for i in range(4)]
    means = [float(data[i][0].double().mean()) for i in range(4)]
    assert pixels == pytest.approx([0.932781, 0.9636964, 0.3578629, 0.3983855], abs=1e-5)
    assert means == pytest.approx([0.479813, 0.5822962, 0.4989308, 0.5531579], abs=1e-5)


def test_changes_of_intensity_are_alike_in_all_slices():
    data = crops([make_part(np.full((9, 32, 32), 0.3))], augmentation=OFF.model_copy(update={"intensity": True}), length=200)  # fmt: skip
    windows = torch.stack([data[i][0] for i in range(200)])
    plain = windows.std(dim=(1, 2, 3)) == 0
    assert 0.6 < plain.float().mean() < 0.9
    untouched = windows[:, 1, 0, 0] == np.float32(0.3)
    assert 0.35 < untouched.float().mean() < 0.65
    means = windows.mean(dim=(2, 3))
    assert (means - means[:, 1:2]).abs().max() < 0.02  # noise alone tells slices apart
    assert windows.min() > -0.2
    assert windows.max() < 0.8


def test_crops_around_the_foreground_balance_the_classes():
    labels = np.zeros((10, 64, 64), np.int64)
    labels[2, 5, 7] = 2
    labels[5:9, 30:40, 30:40] = 1
    labels[9, 0, 0] = labels[9, 63, 63] = 3
    part = make_part(np.zeros(labels.shape), labels, classes=4)
    data = crops([part], foreground=1.0, length=600)
    shown = [[bool((data[i][1] == number).any()) for number in (1, 2, 3)] for i in range(600)]
    assert all(any(row) for row in shown)
    assert np.abs(np.mean(shown, axis=0) - 1 / 3).max() < 0.08


def test_the_share_of_crops_around_the_foreground():
    labels = np.zeros((50, 64, 64), np.int64)
    labels[7, 30, 30] = 1
    data = crops([make_part(np.zeros(labels.shape), labels)], foreground=0.25, length=800)
    assert np.mean([bool(data[i][1].any()) for i in range(800)]) == pytest.approx(0.25, abs=0.06)


def test_a_part_without_foreground_is_no_obstacle():
    empty, full = (
        make_part(np.zeros((5, 24, 24))),
        make_part(np.ones((5, 24, 24)), np.ones((5, 24, 24), np.int64)),
    )
    data = crops([empty, full], foreground=1.0)
    assert all(float(data[i][0].min()) == 1 for i in range(50))


def test_the_sampler_gives_each_process_its_share():
    whole = list(StepSampler(range(2, 5), batch=6))
    assert whole == [list(range(12, 18)), list(range(18, 24)), list(range(24, 30))]
    shares = [list(StepSampler(range(2, 5), batch=6, rank=rank, world=3)) for rank in range(3)]
    assert [sorted(a + b + c) for a, b, c in zip(*shares, strict=True)] == whole
    assert len(StepSampler(range(2, 5), batch=6)) == 3


class Trainer:
    global_step, global_rank, world_size = 10, 1, 2


def test_an_epoch_lasts_from_one_validation_to_the_next(noise):
    config = TrainConfig(
        data=DataConfig.model_validate({"train": [{"image": "a", "labels": "b"}]}),
        training=TrainingConfig(steps=11, batch=4, crop=(16, 24), validate_every=5),
        seed=9,
    )
    data = CropData(config, [noise], (0.5, 0.5))
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 5
    windows, classes = batches[1]
    assert tuple(windows.shape) == (4, 3, 16, 24)
    assert tuple(classes.shape) == (4, 16, 24)

    data.trainer = Trainer()  # the third epoch has one step left; this process is the second of two
    (last,) = data.train_dataloader()
    assert tuple(last[0].shape) == (2, 3, 16, 24)
    data.trainer = None
    expected = crops([noise], crop=(16, 24), length=44, foreground=0.5, augmentation=AugmentationConfig(), scaling=(0.5, 0.5), seed=9)  # fmt: skip
    assert torch.equal(last[0], torch.stack([expected[41][0], expected[43][0]]))
    assert torch.equal(windows[2], expected[6][0])
