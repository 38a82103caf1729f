"""The sweep over every network of every library: a sample of it, and what it does with the worst."""

from types import SimpleNamespace

import pytest
import sweep
import sweep_checks
import sweep_networks
from planted import Wired
from torch import nn

import evenslice

SAMPLE = [
    ("timm:tresnet_m", "uniform"),  # space to depth
    ("timm:crossvit_9_240", "uniform"),  # two stems, a fixed size
    *((name, "uniform") for name in ("torchvision:lraspp_mobilenet_v3_large", "smp:FPN/mit_b0")),
    *((name, "uniform") for name in ("monai:AttentionUnet", "transformers:segformer")),
    *((f"timm:test_{name}", way) for name in ("efficientnet", "vit") for way in ("twin", "symmetrize")),
]


@pytest.fixture(scope="module")
def networks():
    for library in ("monai", "segmentation_models_pytorch", "transformers"):
        pytest.importorskip(library)
    return {f"{network.library}:{network.name}": network for network in sweep_networks.all_networks()}


@pytest.fixture
def made(monkeypatch):
    """Check a network of ours in a way."""

    def check(model, way="uniform"):
        monkeypatch.setattr(sweep_checks, "_built", lambda _: sweep_checks.unequal(model()))
        monkeypatch.setattr(sweep_checks, "_smallest", lambda spec: (spec, None))
        return sweep_checks.check_network("made", "up", "made:up", way)

    return check


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), SAMPLE)
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
def test_sample_of_the_sweep(networks, name, way):
    row = sweep_checks.check_network(*networks[name], way)
    assert "unbuilt" not in row
    assert row["parameters"] > 0
    expected = "no place" if (name, way) == ("timm:test_vit", "twin") else "ok"
    for slices in sweep.SLICES:
        assert row[f"outcome_{slices}"] == expected, row
        if expected == "ok":
            assert row[f"{'permutation' if way == 'uniform' else 'mirror'}_error_{slices}"] <= 1e-5
            assert row[f"gray_error_{slices}"] <= 1e-4


def around():
    """Reads the image beside its stem, so that it can have three slices alone."""
    return Wired(lambda net, image: net.stem(image).relu() + image, stem=nn.Conv2d(3, 3, 1))


def chaotic():
    """Magnifies what its stem gives until rounding shows, in single precision."""
    return Wired(lambda net, image: (net.stem(image) * 3000).sin(), stem=nn.Conv2d(3, 4, 1))


def unsettled():
    """Magnifies what its stem gives beyond any precision, unless its batch norm knows how large that is."""
    parts = {"stem": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4)}
    return Wired(lambda net, image: net.norm(net.stem(image).tanh() * 1e13).sin(), **parts)


def test_network_that_cannot_have_other_slices_is_symmetrized_as_it_was_built(made, monkeypatch):
    def refuse(*_, **__):
        raise evenslice.ModelError("the network reads the image elsewhere too")

    monkeypatch.setattr(evenslice, "neutralize", refuse)
    row = made(around, "symmetrize")
    assert (row["outcome_3"], row["outcome_5"]) == ("ok", "")
    assert row["note_3"].startswith("as it was built, since neutralize says")
    assert row["error_5"].startswith("only for 3 slices, since neutralize says")


@pytest.mark.parametrize(("model", "precision"), [(chaotic, "float64"), (unsettled, "float64, settled")])
def test_network_that_magnifies_rounding_is_checked_more_precisely(made, model, precision):
    row = made(model)
    assert (row["outcome_3"], row["precision_3"]) == ("ok", precision)
    assert row["permutation_error_3"] <= 1e-5


@pytest.mark.parametrize(
    ("way", "error", "outcome"), [("uniform", 2e-5, "failed"), ("twin", 2e-5, "ok"), ("uniform", 1e-5, "ok")]
)
def test_promise_kept_only_to_the_rounding_of_the_network_is_a_failure(
    made, monkeypatch, way, error, outcome
):
    """By twin, the promise is about the mirror alone."""
    record = SimpleNamespace(mirror_error=0.0, permutation_error=error, gray_error=0.0)
    monkeypatch.setattr(evenslice, "neutralize", lambda *_, **__: record)
    assert made(chaotic, way)["outcome_3"] == outcome


@pytest.mark.slow
def test_failure_is_a_row_with_its_reason(networks, made, monkeypatch):
    def refuse(model, slices, *, strategy="uniform", **_):
        raise evenslice.ModelError(f"the layer stem (Conv2d) will not, with {slices} slices, by {strategy}")

    unbuilt = sweep_checks.check_network(*networks["smp:DPT/resnet18"])
    assert unbuilt["unbuilt"].startswith("smp:DPT/resnet18: cannot be built")
    monkeypatch.setattr(evenslice, "neutralize", refuse)
    row = made(chaotic)
    assert row["outcome_5"] == row["mixer_5"] == "failed"
    assert row["error_5"] == "the layer stem (Conv2d) will not, with 5 slices, by uniform"
    assert row["mixer_error_5"].endswith("by mixer")


@pytest.mark.slow
def test_too_large_a_network_is_not_tried(networks, monkeypatch):
    monkeypatch.setattr(sweep_checks, "LARGEST", 0.1)
    row = sweep_checks.check_network(*networks["timm:test_convnext"])
    assert row["unbuilt"].startswith("too large to run here")


@pytest.mark.slow
def test_the_list_names_every_network_once(networks):
    import timm
    from torchvision import models as zoo

    assert len(sweep_networks.all_networks()) == len(networks)
    known = {f"timm:{name}" for name in timm.list_models()}
    known |= {f"torchvision:{name}" for part in (zoo, zoo.detection) for name in zoo.list_models(module=part)}
    assert known < networks.keys()


# The processes.


@pytest.mark.slow
def test_what_kills_a_process_or_takes_too_long_is_a_row(networks, monkeypatch, tmp_path):
    network = networks["timm:test_vit"]
    row = sweep.check(network, "twin", 120)
    assert (row["name"], row["outcome_3"]) == ("test_vit", "no place")
    assert sweep.check(network, "twin", 0.1)["error_5"] == "took longer than 0.1 seconds"
    (tmp_path / "checks.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.setattr(sweep, "CHECKS", tmp_path / "checks.py")
    assert sweep.check(network, "twin", 120)["error_3"] == "crashed the process (exit status 7)"


@pytest.mark.parametrize("path", sweep.RESULTS.values(), ids=lambda path: path.name)
def test_a_sweep_goes_on_from_the_results_that_are_kept(path, tmp_path):
    first, *others = sweep.read_rows(path)
    assert len(others) > 10
    sweep.write_rows(tmp_path / "again.csv", others[::-1], sweep.COLUMNS)
    sweep.add_row(tmp_path / "again.csv", first)
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
