"""The sweep over every network of every library: a sample of it, and what it does with the worst."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import evenslice
from evenslice.networks.inputs import input_size
from evenslice.networks.outputs import logits

pytest.importorskip("monai")
pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("transformers")

STUDIES = Path(__file__).parents[2] / "studies"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(STUDIES)
    import sweep
    import sweep_checks
    import sweep_networks
    import sweep_rows
    from sweep_rows import Result, Row

SAMPLE = [
    "timm:test_convnext",
    "timm:test_efficientnet",
    "timm:test_vit",
    "timm:tresnet_m",  # space to depth
    "timm:crossvit_9_240",  # two stems, a fixed size
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:lraspp_mobilenet_v3_large",
    "smp:Unet/mobilenet_v2",
    "smp:FPN/mit_b0",
    "monai:UNet",
    "monai:AttentionUnet",
    "transformers:segformer",
    "transformers:vit",
]


@pytest.fixture(scope="module")
def networks():
    return {f"{network.library}:{network.name}": network for network in sweep_networks.all_networks()}


def check(network, **limits):
    return sweep_checks.check_network(*network, sweep_checks.Limits(**limits))


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
def test_sample_of_the_sweep(networks, name):
    row = check(networks[name])
    assert row.unbuilt == ""
    assert row.parameters > 0
    for slices in sweep_rows.SLICES:
        assert row.results[slices].outcome == "ok", row.results[slices]
        assert row.results[slices].permutation_error <= 1e-5
        assert row.results[slices].gray_error <= 1e-4


def check_by(way, network):
    return sweep_checks.check_network(*network, sweep_checks.Limits(), way)


@pytest.mark.parametrize("way", ["twin", "symmetrize"])
@pytest.mark.parametrize(
    "name", ["timm:test_efficientnet", "timm:test_vit", "torchvision:shufflenet_v2_x0_5"]
)
@pytest.mark.filterwarnings("ignore")
def test_sample_of_the_sweep_by_ways_that_make_networks_symmetric(networks, name, way):
    row = check_by(way, networks[name])
    for slices in sweep_rows.SLICES:
        if (name, way) == ("timm:test_vit", "twin"):
            assert row.results[slices].outcome == "no place"
            assert row.results[slices].error.startswith("no activation follows the layer patch_embed.proj")
        else:
            assert row.results[slices].outcome == "ok", row.results[slices]
            assert row.results[slices].mirror_error <= 1e-5
            assert row.results[slices].gray_error <= 1e-4


class Around(nn.Module):
    """Reads the image beside its stem, so that it can have three slices alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)

    def forward(self, image):
        return self.stem(image).relu() + image


def test_network_that_cannot_have_other_slices_is_symmetrized_as_it_was_built(monkeypatch):
    monkeypatch.setattr(sweep_checks, "_built", lambda _: Around())
    monkeypatch.setattr(sweep_checks, "_smallest", lambda spec: (spec, None))

    def refuse(*_, **__):
        raise evenslice.ModelError("the network reads the image elsewhere too")

    monkeypatch.setattr(evenslice, "neutralize", refuse)
    row = sweep_checks.check_network("made", "up", "made:up", sweep_checks.Limits(), "symmetrize")
    assert row.results[3].outcome == "ok"
    assert (
        row.results[3].note
        == "as it was built, since neutralize says: the network reads the image elsewhere too"
    )
    assert row.results[5].outcome == ""
    assert row.results[5].error.startswith("only for 3 slices, since neutralize says")


class Reusing(nn.Module):
    """Uses one activation after every layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.second, self.relu = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, image):
        return self.relu(self.second(self.relu(self.stem(image))))


def test_network_without_an_activation_of_its_stem_alone_has_no_place_for_twin(monkeypatch):
    monkeypatch.setattr(sweep_checks, "_built", lambda _: Reusing())
    monkeypatch.setattr(sweep_checks, "_smallest", lambda spec: (spec, None))
    row = sweep_checks.check_network("made", "up", "made:up", sweep_checks.Limits(), "twin")
    assert [row.results[slices].outcome for slices in sweep_rows.SLICES] == ["no place", "no place"]
    assert "elsewhere too" in row.results[3].error


def test_broken_promises_are_told_from_other_errors():
    with pytest.raises(evenslice.ModelError) as broken:
        evenslice.neutralize(Around())
    assert sweep_checks._line(broken.value).startswith(sweep_checks.BROKEN)
    with pytest.raises(evenslice.ModelError) as broken:
        evenslice.symmetrize(Leaking(), "stem")
    assert sweep_checks._line(broken.value).startswith(sweep_checks.BROKEN)


class Leaking(nn.Module):
    """Lets the values of the image past its stem, but not their shape."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)

    def forward(self, image):
        features = self.stem(image)
        return features + image[: len(features), :1].mean((1, 2, 3), keepdim=True)


def test_network_too_large_to_run_is_not_symmetrized(networks):
    row = sweep_checks.check_network(
        *networks["timm:test_convnext"], sweep_checks.Limits(parameters=0.1), "symmetrize"
    )
    assert row.unbuilt.startswith("too large to run here")


def test_the_list_names_every_network_once(networks):
    import timm
    from torchvision import models as zoo

    listed = sweep_networks.all_networks()
    assert len(listed) == len(networks)
    assert {network.name for network in listed if network.library == "timm"} == set(timm.list_models())
    torchvision = {network.name for network in listed if network.library == "torchvision"}
    assert torchvision > set(zoo.list_models(module=zoo.detection)) | set(zoo.list_models(module=zoo))
    assert sum(network.library == "smp" for network in listed) == 12 * len(sweep_networks.ENCODERS)


def test_encoders_are_of_every_family():
    from segmentation_models_pytorch.encoders import encoders

    families = {entry["encoder"] for entry in encoders.values()}
    chosen = {encoders[name]["encoder"] for name in sweep_networks.ENCODERS if name in encoders}
    assert chosen == families


@pytest.mark.filterwarnings("ignore")
def test_images_are_small_where_the_network_can_be_built_for_them(networks):
    spec, sketch = sweep_checks._smallest(networks["timm:vit_tiny_patch16_224"].spec)
    assert spec == "timm:vit_tiny_patch16_224?img_size=64"
    assert input_size(sketch) == (64, 64)
    assert all(parameter.is_meta for parameter in sketch.parameters())
    assert sweep_checks._smallest("timm:resnet18")[0] == "timm:resnet18"


def test_colours_are_unequal_and_zeros_alive():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[2].weight)
    sweep_checks.unequal(network)
    assert network[0].weight[0].flatten().tolist() == pytest.approx([0.5, 2.0, 0.2])
    assert network[1].running_mean.abs().min() > 0
    assert network[2].weight.abs().min() > 0


def test_branches_that_are_scaled_to_almost_nothing_come_alive():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network.gamma = nn.Parameter(torch.full((4,), 1e-5))
    network.layer_scale = nn.Parameter(torch.full((4, 1, 1), 1e-6))
    nn.init.zeros_(network[1].weight)
    weight = network[0].weight[:, 1] * 2.0
    sweep_checks.unequal(network)
    for scale in (network.gamma, network.layer_scale, network[1].weight):
        assert scale.unique().tolist() == [1.0]
    assert network[1].bias.abs().max() == 0
    assert torch.equal(network[0].weight[:, 1], weight)


def test_cheap_draws_are_as_spread_as_real_ones_and_end_with_the_block():
    real = torch.Tensor.normal_
    with sweep_checks._cheap_draws():
        large = nn.Linear(1000, 1000)
        nn.init.trunc_normal_(large.weight, std=0.02)
        wide, small = nn.init.normal_(torch.empty(2_000_000), 1.0, 0.5), torch.empty(10).normal_()
    assert torch.Tensor.normal_ is real
    assert large.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert large.weight.abs().max() <= 2.0
    assert len(set(map(tuple, large.weight.tolist()))) == 1000
    assert (wide.mean().item(), wide.std().item()) == (
        pytest.approx(1.0, abs=0.01),
        pytest.approx(0.5, rel=0.01),
    )
    assert small.unique().numel() == 10


def test_each_attempt_starts_from_the_network_as_it_was_built(networks, monkeypatch):
    network = sweep_checks._Network("monai:UNet?channels=[8,16]&strides=[2]")
    image = torch.rand(1, 3, 16, 16)
    before = logits(network.fresh().eval()(image))
    for slices in (5, 3):
        evenslice.neutralize(network.fresh(), slices)
        torch.testing.assert_close(logits(network.fresh().eval()(image)), before)


def test_failure_is_a_row_with_its_reason(networks, monkeypatch):
    def refuse(model, slices, *, strategy="uniform", **_):
        raise evenslice.ModelError(f"the layer stem (Conv2d) will not, with {slices} slices, by {strategy}")

    monkeypatch.setattr(evenslice, "neutralize", refuse, raising=False)
    monkeypatch.setattr(sweep_checks, "STRATEGIES", ("uniform", "mixer"))
    row = check(networks["monai:UNet"])
    assert row.results[5].outcome == row.results[5].mixer == "failed"
    assert row.results[5].error == "the layer stem (Conv2d) will not, with 5 slices, by uniform"
    assert row.results[5].mixer_error.endswith("by mixer")
    assert check(networks["smp:DPT/resnet18"]).unbuilt.startswith("smp:DPT/resnet18: cannot be built")


def test_promise_kept_only_to_the_rounding_of_the_network_is_a_failure():
    class Record:
        mirror_error, permutation_error, gray_error = 0.0, 2e-5, 0.0

    assert sweep_checks._judged(Record).outcome == "failed"
    assert sweep_checks._judged(Record, "twin").outcome == "ok"  # which promises the mirror alone
    Record.permutation_error = 1e-5
    assert sweep_checks._judged(Record).outcome == "ok"


class Chaotic(nn.Module):
    """Magnifies what its stem gives until rounding shows, in single precision."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return (self.stem(image) * 3000).sin()


def test_network_that_magnifies_rounding_is_checked_in_double_precision(monkeypatch):
    monkeypatch.setattr(sweep_checks, "_built", lambda _: sweep_checks.unequal(Chaotic()))
    result = sweep_checks._result(sweep_checks._Network(""), 3)
    assert (result.outcome, result.precision) == ("ok", "float64")
    assert result.permutation_error <= 1e-5


class Unsettled(nn.Module):
    """Magnifies what its stem gives beyond any precision, unless its batch norm knows how large that is."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, image):
        return self.norm(self.stem(image).tanh() * 1e13).sin()


def test_network_that_is_chaotic_even_so_is_checked_with_batch_norms_as_training_leaves_them(monkeypatch):
    monkeypatch.setattr(sweep_checks, "_built", lambda _: sweep_checks.unequal(Unsettled()))
    result = sweep_checks._result(sweep_checks._Network(""), 3)
    assert (result.outcome, result.precision) == ("ok", "float64, settled")
    assert result.permutation_error <= 1e-5


class Refusing(nn.Module):
    """Runs on no image at all."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return self.stem(image) @ torch.ones(7, 5)


def test_network_that_its_library_cannot_run_is_not_counted(monkeypatch):
    monkeypatch.setattr(sweep_checks, "_built", lambda _: sweep_checks.unequal(Refusing()))
    monkeypatch.setattr(sweep_checks, "_smallest", lambda spec: (spec, None))
    row = sweep_checks.check_network("made", "up", "made:up", sweep_checks.Limits())
    assert row.unbuilt.startswith("the network refuses images of 3 channels at 64x64")
    assert row.results == {}


def test_too_large_a_network_is_checked_at_its_stem(networks):
    row = check(networks["timm:test_convnext"], parameters=0.1)
    assert row.checked == "stem"
    limits = sweep_checks.Limits(parameters=400, work=200)
    assert not limits.exceeded(90, (224, 224))
    assert limits.exceeded(90, (1024, 1024))
    assert not limits.exceeded(390, None)
    assert {result.outcome for result in row.results.values()} == {"ok"}


# The processes


CHILD = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    library, name, spec = request["network"]
    if name == "crash":
        os._exit(7)
    if name == "hang":
        time.sleep(60)
    good = {"outcome": "ok", "note": request["way"], "permutation_error": 1e-7, "gray_error": 0.0, "seconds": 0.5}
    row = {"library": library, "name": name, "spec": spec, "results": {"3": good, "5": good}}
    print(json.dumps({"row": row}), flush=True)
"""


@pytest.fixture
def small_sweep(tmp_path, monkeypatch):
    """A sweep whose networks do as they are called."""
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(sweep, "CHILD", tmp_path / "child.py")
    names = [("a", "crash"), ("a", "good"), ("b", "hang"), ("b", "better"), ("b", "best")]
    listed = [sweep.Network(library, name, f"{library}:{name}") for library, name in names]
    monkeypatch.setattr(sweep, "all_networks", lambda: listed)
    path = tmp_path / "results.csv"

    def run(*arguments):
        sweep.main(["--results", str(path), "--timeout", "2", "--jobs", "2", *arguments])
        return {row.name: row for row in sweep_rows.read_rows(path)}

    return run


def test_crash_and_hang_are_rows_and_the_rest_goes_on(small_sweep, capsys):
    rows = small_sweep()
    assert rows["crash"].results[3].error == "crashed the process (exit status 7)"
    assert rows["hang"].results[5].error == "took longer than 2 seconds"
    assert {name for name, row in rows.items() if row.results[3].outcome == "ok"} == {
        "good",
        "better",
        "best",
    }
    expected = Result("ok", permutation_error=1e-7, gray_error=0.0, seconds=0.5, note="uniform")
    assert rows["good"].results[3] == expected
    assert "[5/5" in capsys.readouterr().out


def test_ctrl_c_blames_no_network(small_sweep, tmp_path, monkeypatch):
    check = sweep.Child.check

    def interrupted(child, network, limits):
        if network.name == "better":
            os.kill(os.getpid(), signal.SIGINT)
        return check(child, network, limits)

    monkeypatch.setattr(sweep.Child, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_sweep("--only", "b:*", "--timeout", "60")  # of which one hangs
    assert "hang" not in {row.name for row in sweep_rows.read_rows(tmp_path / "results.csv")}


def test_finished_networks_are_not_checked_again_unless_they_failed(small_sweep, capsys):
    assert list(small_sweep("--only", "b:be*")) == ["best", "better"]
    assert len(small_sweep()) == 5
    assert "[3/3" in capsys.readouterr().out
    assert len(small_sweep()) == 5
    assert capsys.readouterr().out == ""
    assert len(small_sweep("--retry", "--only", "a:*")) == 5
    assert "[1/1" in capsys.readouterr().out


def test_networks_checked_at_their_stem_are_checked_whole_where_the_limit_allows(
    small_sweep, tmp_path, capsys
):
    good = Result("ok", permutation_error=1e-7)
    for name, parameters in (("best", 90.0), ("better", 80.0), ("huge", 2000.0)):
        row = Row("b", name, f"b:{name}", parameters, checked="stem", results={3: good, 5: good})
        sweep_rows.append(row, tmp_path / "results.csv")
    assert small_sweep("--only", "b:*e*t*")["best"].checked == "stem"
    rows = small_sweep("--retry", "--only", "b:*e*t*", "--largest", "85")
    assert [rows[name].checked for name in ("better", "best", "huge")] == ["network", "stem", "stem"]
    small_sweep("--retry", "--only", "b:*e*t*", "--largest", "400", "--jobs", "1")
    assert "[1/1" in capsys.readouterr().out.splitlines()[-1]


def test_sample_takes_as_many_of_every_library(small_sweep):
    first = small_sweep("--sample", "2", "--seed", "1")
    assert {row.library for row in first.values()} == {"a", "b"}
    assert len(first) == 2


def test_each_way_has_a_file_of_its_own(small_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "RESULTS", {way: tmp_path / f"{way}.csv" for way in sweep_rows.WAYS})
    sweep.main(["--way", "twin", "--only", "b:be*"])
    assert not (tmp_path / "uniform.csv").exists()
    (best, better) = sweep_rows.read_rows(tmp_path / "twin.csv")
    assert (best.name, better.name, best.results[5].note) == ("best", "better", "twin")
    assert sweep_rows.RESULTS["uniform"].name == "coverage.csv"
    for path in sweep_rows.RESULTS.values():
        sweep_rows.read_rows(path)


def test_network_without_a_place_is_not_checked_again(small_sweep, tmp_path, capsys):
    nowhere = Result("no place", error="no activation follows")
    sweep_rows.append(Row("b", "best", "b:best", results={3: nowhere, 5: nowhere}), tmp_path / "results.csv")
    assert small_sweep("--retry", "--only", "b:best")["best"].results[3] == nowhere
    assert capsys.readouterr().out == ""


def test_rows_survive_the_file(tmp_path):
    row = Row(
        "timm",
        "a,b",
        'timm:"a"',
        12.5,
        64,
        results={3: Result("ok", 1e-8, 1e-7, 0.0, 1.25, note="a, note"), 5: Result("failed", mixer="ok")},
    )
    other = Row("smp", "x", "smp:x", unbuilt="no")
    sweep_rows.write_rows([row, other], tmp_path / "rows.csv")
    assert sweep_rows.read_rows(tmp_path / "rows.csv")[1] == row
    assert sweep_rows.read_rows(tmp_path / "gone.csv") == []
