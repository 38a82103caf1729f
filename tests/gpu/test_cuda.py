"""On a real GPU: results equal those of the CPU within stated bounds, in each precision, and memory is used as it should be.

    python -m pytest -m cuda tests

Bounds: in float32 1e-4 of the largest value for what a network puts out, 1e-4 for shares; in half precision 0.02 for shares,
0.05 for biases, and labels that are equal on at least 99.9 % of the voxels.
"""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from scipy import ndimage
from tiny_training import dice_of_trainings
from torch import nn
from values import by_name

from evenslice import Compute, Reading, Scaling, audit, evaluate, neutralize, open_volume, segment, symmetrize
from evenslice.inference import Predictor, ReadyNetwork, to_device

pytestmark = pytest.mark.cuda

HALVES = ["bfloat16", "float16"]
INTENSITY = (-3, 3)
"""The voxel values that become 0 and 1, in the training of the network as in all that is done with it."""


def needs(dtype):
    """Skip where a GPU does not compute in a precision."""
    if dtype == "bfloat16" and Compute(device="cuda").place(training=True)[1] != torch.bfloat16:
        pytest.skip("this GPU has no bfloat16")


@pytest.fixture(scope="module")
def volume():
    """Blobs with noise."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((40, 128, 128)), (1, 8, 8))
    return (np.sign(blobs) + 0.2 * rng.standard_normal(blobs.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def unet(volume):
    """A U-Net that was trained for a moment to find the blobs: the logits of random weights lie so close that any rounding
    changes labels."""
    torch.manual_seed(0)
    model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=2)
    record = neutralize(model, slices=3, strategy="pretrained", mean=0.5, std=0.25)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    model.train().to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    image = ((torch.from_numpy(Scaling(*INTENSITY)(volume)) - record.mean) / record.std).cuda()
    right = torch.from_numpy(ndimage.gaussian_filter(volume, (0, 2, 2)) > 0).long().cuda()
    rng = np.random.default_rng(0)
    for _ in range(200):
        places = rng.integers((1, 0, 0), (39, 64, 64), (4, 3)).tolist()
        windows = torch.stack([image[z - 1 : z + 2, y : y + 64, x : x + 64] for z, y, x in places])
        labels = torch.stack([right[z, y : y + 64, x : x + 64] for z, y, x in places])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(windows), labels).backward()
        optimizer.step()
    return model.eval().cpu()


def audited(model, volume, **options):
    given = {"intensity": INTENSITY, "max_windows": 24, "tile": (64, 64), "batch": 4, "progress": False}
    return audit(model, volume, **by_name(audit, **given, **options))


def biases(audit):
    return np.array([pair.estimate for pair in audit.saliency])


def shares(audit):
    return np.array([share.estimate for share in audit.shares])


@pytest.mark.parametrize("method", ["gradient", "occlusion", "integrated_gradients", "input_x_gradient"])
def test_audit_in_float32(unet, volume, method):
    right, found = (
        audited(unet, volume, method=method, device=device, dtype="float32") for device in ("cpu", "cuda")
    )
    assert found.run.device.startswith("cuda")
    assert np.abs(shares(found) - shares(right)).max() < 1e-4
    assert found.verdict == right.verdict
    assert found.answer.estimate == pytest.approx(right.answer.estimate, abs=1e-3)


@pytest.mark.parametrize("dtype", HALVES)
def test_audit_in_half_precision(unet, volume, dtype):
    needs(dtype)
    right = audited(unet, volume, device="cpu", dtype="float32")
    found = audited(unet, volume, device="cuda", dtype=dtype)
    assert np.abs(shares(found) - shares(right)).max() < 0.02
    assert np.abs(biases(found) - biases(right)).max() < 0.05  # which may lie on both sides of a tolerance


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_symmetrize_on_the_gpu(unet, volume, dtype):
    needs(dtype)
    model = symmetrize(copy.deepcopy(unet).to("cuda"))
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    network = ReadyNetwork(model, slices=3, device="cuda", dtype=dtype)
    windows = to_device(np.stack([volume[:3], volume[2::-1]]), network.device)
    with torch.no_grad():
        given, mirrored = network(windows)
    bound = 1e-4 if dtype == "float32" else 1e-2
    assert (given - mirrored).abs().max() <= bound * given.abs().max()


def outputs(model, volume, device, *, batch=None, tile=None):
    """Return the logits in float32, and the network that computed them."""
    network = ReadyNetwork(model, slices=3, device=device)
    network.prepare(3, (64, 64))
    found = Predictor(network, 3, tile=tile, batch=batch).predict(open_volume(volume), Scaling(*INTENSITY))
    return torch.stack([output.cpu() for _, output in found]), network


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_predictions_in_float32_are_those_of_the_cpu(unet, volume, tile):
    right, found = (outputs(unet, volume[:8], device, tile=tile)[0] for device in ("cpu", "cuda"))
    assert (found - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_segment_gives_the_same_labels(unet, volume, tmp_path, dtype):
    needs(dtype)
    right, found = (
        segment(
            unet,
            volume,
            tmp_path / f"{device}.npy",
            reading=Reading(intensity=INTENSITY),
            compute=Compute(device=device, dtype=precision, progress=False),
        )[:]
        for device, precision in (("cpu", "float32"), ("cuda", dtype))
    )
    assert (right == found).mean() >= 0.999


def test_a_segmentation_begun_on_the_cpu_goes_on_on_the_gpu(unet, volume, tmp_path):
    class Stops(nn.Module):
        left = 9  # three passes prepare the network, and four finish the first of three blocks

        def __init__(self):
            super().__init__()
            self.model = unet

        def forward(self, windows):
            type(self).left -= 1
            if type(self).left == 0:
                raise KeyboardInterrupt
            return self.model(windows)

    large = np.concatenate([volume] * 4)

    def segmented(name, device):
        options = {
            "intensity": INTENSITY,
            "batch": 16,
            "dtype": "float32",
            "progress": False,
            "device": device,
        }
        return segment(Stops(), large, tmp_path / name, **by_name(segment, **options))[:]

    with pytest.raises(KeyboardInterrupt):
        segmented("labels.npy", "cpu")
    Stops.left = -1
    found = segmented("labels.npy", "cuda")
    assert Stops.left == -1 - 3 - 7  # the first block is not computed again
    assert (found == segmented("right.npy", "cuda")).mean() >= 0.999


def test_evaluate_with_stress(unet, volume):
    labels = (volume > 0.8).astype(np.uint8)
    right, found = (
        evaluate(
            unet,
            volume,
            labels,
            reading=Reading(intensity=INTENSITY),
            stress=True,
            compute=Compute(device=device, dtype="float32", progress=False),
            surfaces=False,
        )
        for device in ("cpu", "cuda")
    )
    assert found.dice == pytest.approx(right.dice, abs=1e-3)
    for one, other in zip(found.stress.losses, right.stress.losses, strict=True):
        assert one.before.loss.estimate == pytest.approx(other.before.loss.estimate, abs=1e-2)


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_train(tmp_path, dtype):
    needs(dtype)
    right, found = dice_of_trainings(
        tmp_path, {"accelerator": "cpu", "dtype": "float32"}, {"accelerator": "gpu", "dtype": dtype}
    )
    assert found == pytest.approx(right, abs=0.02)


@contextmanager
def memory_of(free):
    """Let this process take so many bytes more than it has, as on a GPU on which no more are free."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + free
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        yield allowed
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_memory_that_runs_out_halves_the_batch(unet, volume):
    """The process may take four times what the pass of one window takes, and is asked for sixteen at once."""
    large = np.tile(volume[:16], (1, 4, 4))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    right, _ = outputs(unet, large, "cuda", batch=1)
    each = torch.cuda.max_memory_allocated() - before
    with memory_of(4 * each):
        found, network = outputs(unet, large, "cuda", batch=16)
    assert max(network.batches._most.values()) < 16
    assert (found - right).abs().max() <= 1e-4 * right.abs().max()


def test_workers_share_a_gpu(unet, volume):
    alone, shared = (
        audited(unet, volume, device="cuda", dtype="float32", workers=number) for number in (None, 2)
    )
    assert np.abs(shares(alone) - shares(shared)).max() < 1e-5
