"""OpenVINO: the labels of PyTorch, faster; used where it is asked for or worth it, and PyTorch where it fails."""

import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from evenslice import (
    Compute,
    ConfigError,
    MissingExtraError,
    audit,
    evaluate,
    load_network,
    segment,
    symmetrize,
)
from evenslice.inference import engine, prediction
from evenslice.inference.engine import is_convolutional

pytest.importorskip("openvino")
QUICK = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def image():
    return (np.random.default_rng(0).random((9, 70, 90)) * 250).astype(np.uint8)


@pytest.fixture
def compiled(monkeypatch):
    """The precision and threads of every network that is compiled."""
    import openvino

    found, compile_model = [], openvino.Core.compile_model

    def noted(core, model, device, options):
        found.append((options["INFERENCE_PRECISION_HINT"], options["INFERENCE_NUM_THREADS"]))
        return compile_model(core, model, device, options)

    monkeypatch.setattr(openvino.Core, "compile_model", noted)
    return found


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    model[1].running_var.uniform_(0.5, 1.5)
    return model


class Named(nn.Module):
    """Returns a mapping of half the size, as torchvision's networks do, and depends on the order of slices by a hook."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return {"aux": x, "out": self.inner(x)[..., ::2, ::2]}


@pytest.mark.slow
@pytest.mark.parametrize("model", [network(), symmetrize(network()), Named(network())])
def test_it_gives_the_labels_and_scores_of_pytorch(model, image, compiled):
    found = {
        name: segment(model, image, compute=Compute(engine=name, progress=False, **QUICK))
        for name in ("torch", "openvino")
    }
    np.testing.assert_array_equal(found["openvino"], found["torch"])
    assert len(np.unique(found["torch"])) > 1
    assert compiled == [("f32", torch.get_num_threads())]
    scores = evaluate(
        model, image, found["torch"], surfaces=False, compute=Compute(engine="openvino", **QUICK)
    )
    assert scores.dice == 1
    assert scores.model["engine"] == "openvino"


def test_tiles_and_batches_that_are_not_full_are_the_same(image, tmp_path):
    for number, name in enumerate(("torch", "openvino")):
        compute = Compute(engine=name, batch=4, progress=False, **QUICK)
        out = tmp_path / f"{number}.npy"
        segment(network(), image, out, probabilities=True, tile=(32, 64), compute=compute)
    one, other = (np.load(tmp_path / f"{number}.npy") for number in range(2))
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_workers_get_the_converted_network_and_give_the_same_labels(image, monkeypatch):
    sent = engine.EngineNetwork.__getstate__
    kept = []
    monkeypatch.setattr(engine.EngineNetwork, "__getstate__", lambda own: kept.append(own) or sent(own))
    compute = Compute(engine="openvino", workers=2, progress=False, **QUICK)
    labels = segment(network(), image, compute=compute)
    assert kept
    assert not any(isinstance(part, nn.Conv2d) for part in kept[0].modules())
    np.testing.assert_array_equal(labels, segment(network(), image, compute=Compute(engine="torch", **QUICK)))


def test_bfloat16_is_used_if_asked_for_and_its_cost_is_said(image, compiled, capsys):
    segment(network(), image, compute=Compute(engine="openvino", device="cpu", dtype="bfloat16"))
    assert [precision for precision, _ in compiled] == ["f32", "bf16", "f32"]
    assert "bfloat16: labels differ from float32 in" in capsys.readouterr().err


def test_by_default_it_takes_work_that_is_worth_the_conversion_and_convolutions(image, monkeypatch, compiled):
    def chosen(model, **options):
        labels = np.zeros(image.shape, int)
        found = evaluate(model, image, labels, surfaces=False, compute=Compute(**options), **more)
        return found.model["engine"]

    more = {}
    assert chosen(network()) == "torch"
    monkeypatch.setattr(engine, "WORTH", image.size)
    assert chosen(network()) == "openvino"
    assert chosen(network(), engine="torch") == "torch"
    assert chosen(lambda windows: windows) == "function"
    monkeypatch.setattr(engine, "WORTH", image.size + 1)
    assert chosen(network()) == "torch"
    more = {"stress": True, "stress_slices": 1}
    assert chosen(network()) == "openvino"
    assert not is_convolutional(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 8), nn.Linear(8, 4)))


class Refusing(nn.Module):
    """Cannot be traced."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        if torch.jit.is_tracing():
            raise ValueError("not here")
        return self.inner(x)


class Constant(Refusing):
    """Computes something else in a graph."""

    def forward(self, x):
        return self.inner(x + torch.jit.is_tracing())


@pytest.mark.parametrize(
    ("model", "why"), [(Refusing(), "TorchScript"), (Constant(), "it would answer otherwise")]
)
def test_a_network_that_it_cannot_run_runs_in_pytorch_and_a_line_says_so(image, capsys, model, why):
    labels = segment(model, image, compute=Compute(engine="openvino", **QUICK))
    np.testing.assert_array_equal(labels, segment(network(), image, compute=Compute(engine="torch", **QUICK)))
    said = [line for line in capsys.readouterr().err.splitlines() if "OpenVINO" in line]
    assert len(said) == 1
    assert re.search(f"^{type(model).__name__}: runs in PyTorch, not in OpenVINO: .*{why}", said[0])


def test_without_the_package_it_is_an_error_if_asked_for_and_else_a_line(image, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"evenslice\[openvino\]"):
        segment(network(), image, compute=Compute(engine="openvino", **QUICK))
    monkeypatch.setattr(engine, "WORTH", 1)
    segment(network(), image, compute=Compute(**QUICK))
    assert "evenslice[openvino]" in capsys.readouterr().err


def test_what_it_does_not_run_is_refused(image):
    with pytest.raises(ConfigError, match="engine"):
        Compute(engine="tensorrt")
    with pytest.raises(ConfigError, match="networks on a CPU"):
        segment(lambda windows: windows - 0.5, image, compute=Compute(engine="openvino"))
    with pytest.raises(ConfigError, match="has no effect here"):
        audit(network(), image, compute=Compute(engine="openvino"))


def test_nothing_is_reported_to_the_vendor(image, monkeypatch):
    """As `openvino.convert_model` does, unless it is told otherwise in a file of the user's."""
    telemetry = pytest.importorskip("openvino_telemetry")
    monkeypatch.setattr(telemetry, "Telemetry", None)
    monkeypatch.setattr(telemetry.main.Telemetry, "__init__", None)
    segment(network(), image, compute=Compute(engine="openvino", progress=False, **QUICK))


@pytest.mark.slow
def test_a_segmentation_goes_on_only_with_the_engine_that_began_it(image, tmp_path, monkeypatch):
    real, calls = prediction._predict_planes, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments)

    out = tmp_path / "labels.npy"
    monkeypatch.setattr("evenslice.inference.segmentation.BLOCK_VOXELS", 70 * 90)
    monkeypatch.setattr(prediction, "_predict_planes", stopped)
    with pytest.raises(KeyboardInterrupt):
        segment(network(), image, out, compute=Compute(engine="openvino", batch=1, **QUICK))
    monkeypatch.setattr(prediction, "_predict_planes", real)
    with pytest.raises(Exception, match="unfinished segmentation by another network"):
        segment(network(), image, out, compute=Compute(engine="torch", batch=1, **QUICK))
    segment(network(), image, out, compute=Compute(engine="openvino", batch=1, **QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["smp:Unet/tu-tf_efficientnet_lite0", "smp:DeepLabV3Plus/resnet18"])
def test_real_networks_answer_as_in_pytorch(spec):
    model = load_network(spec, "none", slices=3, strategy="uniform").model.eval()
    image = np.random.default_rng(0).random((3, 100, 128))
    labels = [segment(model, image, compute=Compute(engine=name, **QUICK)) for name in ("torch", "openvino")]
    assert np.mean(labels[0] != labels[1]) < 1e-3


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_windows_come_in_the_layout_that_it_reads(image, monkeypatch, tile):
    found, forward = [], engine.EngineNetwork.forward

    def noted(network, windows):
        found.append(windows.is_contiguous())
        return forward(network, windows)

    monkeypatch.setattr(engine.EngineNetwork, "forward", noted)
    segment(network(), image, tile=tile, compute=Compute(engine="openvino", progress=False, **QUICK))
    assert len(found) > 2
    assert all(found)
