"""Every path keeps to the device it is given: on a pretended GPU, which refuses tensors of the CPU, all results are equal.

The pretended GPU computes on the CPU, so results are the same numbers; what only a real one can show is in ``test_cuda``.
"""

import copy
import json

import numpy as np
import pytest
import torch
from pretend_gpu import Far, pretend_gpu
from torch import nn
from values import by_name

from evenslice import Compute, TrainConfig, audit, evaluate, explain, neutralize, segment, symmetrize

pytestmark = pytest.mark.slow

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


def audited(device, **options):
    given = {**OPTIONS, "device": device, "batch": 4, "max_windows": 8, **options}
    return figures(audit(small(), VOLUME, **by_name(audit, **given)))


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
    on_cpu, on_gpu, _ = both(lambda device: audited(device, **options))
    assert_alike(on_gpu, on_cpu)


@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_segment_evaluate_and_explain(tile):
    def work(device):
        options = {**OPTIONS, "device": device, "tile": tile}
        stress = {"stress": True, "stress_slices": 2, "surfaces": False}
        labels = segment(small(), VOLUME, **by_name(segment, **options))[:]
        scores = evaluate(small(), VOLUME, LABELS, **by_name(evaluate, **stress, **options)).to_dict()
        found = explain(small(), VOLUME, 4, compute=Compute(device=device))
        return labels, [scores["dice"], scores["stress"]], found.maps

    on_cpu, on_gpu, gpu = both(work)
    assert np.array_equal(on_cpu[0], on_gpu[0])
    assert_alike(on_gpu[1], on_cpu[1])
    assert np.allclose(on_cpu[2], on_gpu[2], rtol=1e-4, atol=1e-6)
    assert gpu.pinned == gpu.copied > 0


def neutralized(strategy, tie=None):
    return lambda model: (neutralize(model, slices=3, strategy=strategy, tie=tie), model)[1]


@pytest.mark.parametrize(
    "change",
    [
        *(neutralized(strategy) for strategy in ("uniform", "twin", "mixer")),
        neutralized("mirror", "mirror"),
        symmetrize,
        lambda model: symmetrize(model, at="1"),
    ],
)
def test_a_change_leaves_a_network_on_its_device(change):
    windows = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    built = small().eval()

    def work(device):
        model = change(copy.deepcopy(built).to(device))
        assert {parameter.device.type for parameter in model.parameters()} == {device}
        return model(windows.to(device)).detach().cpu()

    on_cpu, on_gpu, _ = both(work)
    assert torch.allclose(on_cpu, on_gpu, rtol=1e-4, atol=1e-5)


def test_a_training_step_and_the_monitor():
    from evenslice.training.lightning_parts import TrainingModule, measure_bias

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


@pytest.mark.parametrize("name", ["audit", "segment", "evaluate"])
def test_the_command_line_passes_its_device_on(tmp_path, command, name):
    (tmp_path / "device_networks.py").write_text(NETWORKS)
    np.save(tmp_path / "image.npy", VOLUME)
    np.save(tmp_path / "labels.npy", LABELS)
    network = ("--model", "device_networks:unequal", "--weights", "none", "--volume", "image.npy")
    more = {
        "audit": ["--max-windows", "4", "--json"],
        "segment": ["--out", "out.npy"],
        "evaluate": ["--labels", "labels.npy", "--no-surfaces", "--json"],
    }
    with pretend_gpu() as gpu:
        done = command(name, *network, "--dtype", "float32", "--device", "cuda", *more[name])
    assert done.returncode == 0, done.stderr
    if name == "segment":
        assert gpu.copied
    else:
        found = json.loads(done.stdout)
        assert (found["model"] if name == "evaluate" else found)["device"].startswith("cuda")
