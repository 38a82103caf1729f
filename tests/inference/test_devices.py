"""Which device a network runs on and in which precision, and that every path takes the device it is given."""

import pickle
import sys
import types
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pretend_gpu import pretend_gpu
from torch import nn

from evenslice import (
    Compute,
    ConfigError,
    ModelError,
    Sampling,
    audit,
    evaluate,
    explain,
    neutralize,
    segment,
    symmetrize,
    untie,
)
from evenslice.inference import ReadyNetwork, to_device

CPU = torch.device("cpu")


def precisions():
    operations = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    return [operation.fp32_precision for operation in operations]


@pytest.fixture
def as_worker(monkeypatch):
    """Let this process be a worker of some name."""

    def be(name):
        module = types.SimpleNamespace(get_worker=lambda: types.SimpleNamespace(name=name))
        monkeypatch.setitem(sys.modules, "distributed", module)

    return be


@pytest.mark.parametrize(
    ("asked", "name", "gpus", "chosen"),
    [
        ("auto", 1, 2, "cuda:1"),
        ("cuda", 2, 2, "cuda:0"),  # more workers than GPUs share them
        ("cuda", "SLURMCluster-0-3", 4, "cuda:3"),
        ("auto", "SLURMCluster-12", 16, "cuda:12"),
        ("auto", "tcp://10.0.0.7:40123", 2, "cuda:0"),  # an address, which ends in a random port
        ("cuda:1", 0, 2, "cuda:1"),  # as asked for
        ("cpu", 1, 2, "cpu"),
        ("auto", 1, 1, "cuda"),
    ],
)
def test_workers_take_a_gpu_each(as_worker, asked, name, gpus, chosen):
    as_worker(name)
    with pretend_gpu(gpus):
        assert str(Compute(device=asked).place()[0]).removesuffix(":0") == chosen.removesuffix(":0")


@pytest.mark.parametrize("before", [0, 2])
def test_a_network_that_is_sent_takes_the_gpu_of_the_worker(as_worker, before):
    """From a machine with two GPUs, or without any; it arrives on the CPU."""
    windows = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    with pretend_gpu(before) if before else nullcontext():
        network = ReadyNetwork(nn.Conv2d(3, 2, 3), slices=3, dtype="float32")
        assert network.mean.device.type == network.device.type == ("cuda" if before else "cpu")
        here = network(to_device(windows, network.device)).cpu()
        sent = pickle.dumps(network)
    with pretend_gpu(2):
        as_worker(1)
        arrived = pickle.loads(sent)  # noqa: S301  # made above
        assert arrived.module.weight.device.type == arrived.mean.device.type == "cpu"
        assert str(arrived.device) == "cuda:1"
        assert torch.equal(here, arrived(to_device(windows, arrived.device)).cpu())
        stays = pickle.loads(pickle.dumps(ReadyNetwork(nn.Conv2d(3, 2, 3), slices=3, device="cpu")))  # noqa: S301
        assert stays.device == CPU


def test_arrays_go_to_a_gpu_from_pinned_memory_without_waiting():
    images, labels = np.zeros((2, 3, 8, 8), np.float32), np.zeros((2, 8, 8), np.int64)
    with pretend_gpu() as gpu:
        moved = to_device(images, torch.device("cuda", 0)), to_device(labels, torch.device("cuda", 0))
        assert (gpu.pinned, gpu.copied) == (2, 2)
        assert [tensor.device.type for tensor in moved] == ["cuda", "cuda"]
        assert moved[0].is_contiguous(memory_format=torch.channels_last)
        assert moved[1].is_contiguous()
    assert to_device(images, CPU).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("work", [segment, explain, audit])
def test_every_pass_of_a_network_computes_float32_in_full(work):
    before, seen = precisions(), []

    class Watch(nn.Sequential):
        def forward(self, windows):
            seen.append(precisions())
            return super().forward(windows)

    network, volume = (
        Watch(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)),
        np.random.default_rng(0).random((4, 32, 32)),
    )
    given = (network, volume, 2) if work is explain else (network, volume)
    with pretend_gpu():
        work(*given, compute=Compute(device="cuda", dtype="float32", progress=False))
    assert seen
    assert all("tf32" not in precision for precision in seen)
    assert precisions() == before


@pytest.mark.parametrize(("capability", "dtype"), [(7, torch.float32), (8, torch.bfloat16)])
def test_bfloat16_is_chosen_for_training_alone_by_the_gpu_that_is_named(capability, dtype, monkeypatch):
    """The current GPU has the other answer. Labels are computed in float32 unless less is asked for."""
    kinds = {"cuda": 15 - capability, "cuda:1": capability}
    with pretend_gpu(2):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda at="cuda": types.SimpleNamespace(major=kinds[str(at)])
        )
        compute = Compute(device="cuda:1")
        assert (compute.place(training=True)[1], compute.place()[1]) == (dtype, torch.float32)


def test_labels_are_those_of_float32_and_what_less_would_cost_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 2, 1)).requires_grad_(False)
    volume = np.random.default_rng(0).random((4, 64, 64))
    default, exact, half = (
        segment(model, volume, compute=Compute(device="cpu", dtype=dtype))[...]
        for dtype in ("auto", "float32", "bfloat16")
    )
    np.testing.assert_array_equal(default, exact)
    changed, foreground = (half != exact)[:2].sum(), (half | exact)[:2].sum()
    assert changed
    said = (
        f"bfloat16: labels differ from float32 in {100 * changed / 8192:.3g} % of the voxels of the first 2 planes, "
        f"{100 * changed / foreground:.3g} % of the foreground\n"
    )
    assert capsys.readouterr().err == said
    compute = Compute(device="cpu", dtype="bfloat16")
    scores = evaluate(model, volume, volume > 0.5, compute=compute, surfaces=False)
    assert scores.model["dtype"] == "bfloat16"
    assert capsys.readouterr().err == said


class ByNumpy(nn.Conv2d):
    def forward(self, windows):
        return torch.from_numpy(super().forward(windows).numpy())


class Failing(nn.Conv2d):
    def __init__(self, error):
        super().__init__(3, 2, 1)
        self.error = error

    def forward(self, _windows):
        raise self.error


NO_KERNEL = RuntimeError(
    "CUDA error: no kernel image is available for execution on the device\nSearch for ..."
)


@pytest.mark.parametrize(
    ("model", "dtype", "error", "message"),
    [
        (Failing(NO_KERNEL), "float32", ConfigError, "no kernel image.*choose device='cpu'"),
        (Failing(KeyError("mask")), "float32", ModelError, "Failing: rejects windows .*KeyError: .*mask"),
        (ByNumpy(3, 2, 1), "bfloat16", ModelError, "BFloat16.* dtype"),
    ],
)
def test_what_a_network_cannot_do_is_one_line_that_says_what_to_do(model, dtype, error, message):
    with pytest.raises(error, match=message) as caught:
        segment(model, np.zeros((4, 8, 8)), compute=Compute(device="cpu", dtype=dtype))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"device": "hpu"}, "device='hpu': is not available"),
        ({"device": "cpu", "dtype": "float16"}, "float16.*on a CPU choose bfloat16, float32 or auto"),
    ],
)
def test_a_device_or_a_precision_that_is_not_there_is_refused(compute, message):
    with pytest.raises(ConfigError, match=message):
        segment(nn.Conv2d(3, 2, 1), np.zeros((4, 8, 8)), compute=Compute(**compute))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_default_device_changes_nothing(device):
    """As after ``torch.set_default_device``, with the network on that device or not."""
    volume = np.random.default_rng(0).random((6, 16, 16), np.float32)
    compute = Compute(device=device, progress=False)
    with pretend_gpu():
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval().to(device)
        with torch.device("cuda"):
            for strategy, tie in (("shuffle", None), ("mirror", "mirror"), ("mixer", None)):
                neutralize(model, 5, strategy=strategy, tie=tie, mean=0.5)
                untie(model)
            symmetrize(model)
            sampling = Sampling(tile=(16, 16), max_windows=4)
            found = audit(model, volume, sampling=sampling, compute=compute)
            assert found.mismatch.estimate < 1e-5
            segment(model, volume, tile=(8, 8), compute=compute)


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_a_default_dtype_changes_nothing(method, request):
    volume = np.random.default_rng(0).random((8, 16, 16), np.float32)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    neutralize(model, 3, strategy="pretrained", mean=0.5)
    compute, sampling = Compute(progress=False), Sampling(tile=(16, 16), max_windows=4)

    def found():
        one = audit(model, volume, method=method, sampling=sampling, compute=compute)
        tiled = segment(model, volume, tile=(8, 8), compute=compute)[...]
        return [share.estimate for share in one.shares], tiled.tolist()

    wanted = found()
    request.getfixturevalue("float64_by_default")
    assert found() == wanted


class Overflow(nn.Module):
    """A network whose sums are too large for float16, and whose output is not."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.up.weight.fill_(50_000)
            self.up.bias.zero_()
            self.down.weight.copy_(torch.linspace(-1e-4, 1e-4, 8).view(2, 4, 1, 1))

    def forward(self, windows):
        return self.down(self.up(windows))


def test_what_overflows_in_float16_is_computed_again_in_float32():
    windows = torch.rand(2, 3, 16, 16)
    exact = ReadyNetwork(Overflow(), slices=3, device="cpu")
    network = exact.in_precision(torch.float16)  # which a user is not let do on the CPU
    assert not network._run(windows, torch.float16).isfinite().all()
    assert torch.equal(network(windows), exact(windows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_another_precision_leaves_a_network_as_it_is(dtype):
    network = ReadyNetwork(nn.Conv2d(3, 2, 3), slices=3, device="cpu", dtype="bfloat16")
    before = pickle.dumps(network)
    other = network.in_precision(dtype)
    found = other(torch.rand(1, 3, 8, 8, dtype=dtype))
    assert pickle.dumps(network) == before
    assert (found.dtype, other.dtype, network.dtype) == (dtype, dtype, torch.bfloat16)


def test_a_network_of_torchscript_is_refused_with_what_works():
    volume = np.random.default_rng(0).random((6, 64, 64), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        network = torch.jit.trace(nn.Conv2d(3, 2, 1), torch.rand(1, 3, 64, 64))
    with pytest.raises(ModelError, match="is a module of TorchScript; give .* or a function that calls it"):
        audit(network, volume)
    labels = segment(lambda windows: network(torch.from_numpy(windows)).numpy(), volume)
    assert labels.shape == volume.shape
