"""Every path keeps to the device it is given: on a pretended GPU, which refuses tensors of the CPU, all results are equal.

The pretended GPU computes on the CPU, so results are the same numbers; what only a real one can show is in ``test_cuda``.
"""

import copy
import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from pretend_gpu import Far, pretend_gpu
from torch import nn
from values import by_name

import evenslice
from evenslice import TrainConfig
from evenslice.cli.app import run
from evenslice.training.lightning_parts import TrainingModule, measure_bias

VOLUME = np.random.default_rng(0).random((10, 64, 64), np.float32)
LABELS = (VOLUME > 0.5).astype(np.uint8)
OPTIONS = {"dtype": "float32", "progress": False}

NETWORKS = """
import torch
from torch import nn

def unequal():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[0].weight *= torch.tensor([1.0, 4.0, 0.2]).view(1, 3, 1, 1)
    return network
"""


def unet():
    torch.manual_seed(0)
    return smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=2)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)
    )


def both(work):
    """Return what work gives on the CPU and on the pretended GPU."""
    on_cpu = work("cpu")
    with pretend_gpu() as gpu:
        return on_cpu, work("cuda"), gpu


def figures(audit):
    """Return what an audit found, without when and where."""
    found = json.loads(audit.to_json())
    for name in ("created", "seconds", "device", "batch"):
        found.pop(name, None)
    return found


def assert_alike(found, right, where=""):
    """Check that two documents are equal but for the rounding of their numbers."""
    if isinstance(right, dict):
        assert found.keys() == right.keys()
        for name, value in right.items():
            assert_alike(found[name], value, f"{where}/{name}")
    elif isinstance(right, list):
        assert len(found) == len(right)
        for number, (one, other) in enumerate(zip(found, right, strict=True)):
            assert_alike(one, other, f"{where}/{number}")
    else:
        assert found == (pytest.approx(right, rel=1e-4, abs=1e-6) if isinstance(right, float) else right), (
            where
        )


def audited(model, **options):
    return lambda device: figures(
        evenslice.audit(
            model,
            VOLUME,
            **by_name(
                evenslice.audit,
                compute=evenslice.Compute(device=device, batch=4),
                sampling=evenslice.Sampling(max_windows=8),
                **OPTIONS,
                **options,
            ),
        )
    )


def test_the_pretended_gpu_refuses_tensors_of_the_cpu():
    with pretend_gpu(2):
        there = torch.ones(2, 2).to("cuda")
        assert type(there) is Far
        assert str(there.device) == "cuda:0"
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2, 2)
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2, 2, device="cuda:1")
        with pytest.raises(RuntimeError):
            there.numpy()
        assert (there.cpu() + torch.ones(2, 2)).numpy().sum() == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": LABELS, "target": "labels"},
        {"labels": LABELS},  # and what a lost slice costs
        {"target": "sum"},
        {"method": "input_x_gradient"},
        {"method": "integrated_gradients"},
        {"method": "smoothgrad"},
        {"method": "gradient_shap"},
        {"method": "occlusion"},
    ],
    ids=str,
)
def test_audit(options):
    on_cpu, on_gpu, _ = both(audited(small(), **options))
    assert_alike(on_gpu, on_cpu)


@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_segment(tmp_path, tile):
    def work(device):
        labels = evenslice.segment(
            small(),
            VOLUME,
            tmp_path / f"{device}.npy",
            **by_name(evenslice.segment, compute=evenslice.Compute(device=device), tile=tile, **OPTIONS),
        )
        return labels[:]

    on_cpu, on_gpu, gpu = both(work)
    assert np.array_equal(on_cpu, on_gpu)
    assert gpu.pinned == gpu.copied > 0


def test_evaluate_with_stress():
    def work(device):
        found = evenslice.evaluate(
            small(),
            VOLUME,
            LABELS,
            **by_name(evenslice.evaluate, stress=True, compute=evenslice.Compute(device=device), **OPTIONS),
        ).to_dict()
        return [found["dice"], found["stress"]]

    on_cpu, on_gpu, gpu = both(work)
    assert_alike(on_gpu, on_cpu)
    assert gpu.pinned == gpu.copied > 0


def test_a_slice_explained():
    on_cpu, on_gpu, _ = both(
        lambda device: evenslice.explain(small(), VOLUME, 4, compute=evenslice.Compute(device=device))
    )
    assert np.allclose(on_cpu.maps, on_gpu.maps, rtol=1e-4, atol=1e-6)
    assert np.array_equal(on_cpu.change, on_gpu.change)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["uniform", "mirror", "twin", "mixer"])
@pytest.mark.parametrize("tie", [None, "mirror"])
def test_neutralize_leaves_a_network_on_its_device(strategy, tie):
    if tie and strategy in ("twin", "mixer"):
        pytest.skip("has no kernels to tie")
    windows = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    built = unet().eval()

    def work(device):
        model = copy.deepcopy(built).to(device)
        record = evenslice.neutralize(model, slices=3, strategy=strategy, tie=tie)
        assert {parameter.device.type for parameter in model.parameters()} == {device}
        return model(windows.to(device)).detach().cpu(), record.to_dict()

    on_cpu, on_gpu, _ = both(work)
    assert torch.allclose(on_cpu[0], on_gpu[0], rtol=1e-4, atol=1e-5)
    assert_alike(on_gpu[1], on_cpu[1])


@pytest.mark.slow
@pytest.mark.parametrize("at", ["output", "encoder"])
def test_symmetrize_leaves_a_network_on_its_device(at):
    windows = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    built = unet().eval()

    def work(device):
        model = evenslice.symmetrize(copy.deepcopy(built).to(device), at=at)
        found = model(windows.to(device))
        assert torch.allclose(found, model(windows.flip(1).to(device)), atol=1e-5)
        return found.detach().cpu()

    on_cpu, on_gpu, _ = both(work)
    assert torch.allclose(on_cpu, on_gpu, rtol=1e-4, atol=1e-5)


def test_a_training_step_and_the_monitor():
    windows = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = (windows[:, 1] > 0.5).long()
    config = TrainConfig.model_validate({"data": {"train": [{"image": "image.npy", "labels": "labels.npy"}]}})

    def work(device):
        module = TrainingModule(small(), config, None).to(device)
        loss = module.training_step((windows.to(device), labels.to(device)), 0)
        loss.backward()
        gradients = [parameter.grad.cpu().flatten().tolist() for parameter in module.parameters()]
        return [loss.item(), gradients, measure_bias(module, windows)]

    on_cpu, on_gpu, _ = both(work)
    assert_alike(on_gpu, on_cpu)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["audit", "segment", "evaluate"])
def test_the_command_line_passes_its_device_on(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "device_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    np.save(tmp_path / "image.npy", VOLUME)
    np.save(tmp_path / "labels.npy", LABELS)
    common = [
        *("--model", "device_networks:unequal", "--weights", "none", "--volume", str(tmp_path / "image.npy")),
        *("--dtype", "float32", "--device", "cuda"),
    ]
    more = {
        "audit": ["--max-windows", "4", "--json"],
        "segment": ["--out", str(tmp_path / "out.npy")],
        "evaluate": ["--labels", str(tmp_path / "labels.npy"), "--no-surfaces", "--json"],
    }
    with pretend_gpu() as gpu:
        assert run([command, *common, *more[command]]) == 0
    printed = capsys.readouterr().out
    if command == "segment":
        assert gpu.copied
    else:
        found = json.loads(printed)
        assert (found["model"] if command == "evaluate" else found)["device"].startswith("cuda")
