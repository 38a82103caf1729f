"""The sweep over every network of every library: a sample of it, and what it does with the worst."""

import csv
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import evenslice
from evenslice.networks.inputs import input_sizes

pytest.importorskip("monai")
pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("transformers")

STUDIES = Path(__file__).parents[2] / "studies"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(STUDIES)
    import sweep
    import sweep_checks
    import sweep_networks

SAMPLE = [
    "timm:test_vit",
    "timm:tresnet_m",  # space to depth
    "timm:crossvit_9_240",  # two stems, a fixed size
    "torchvision:lraspp_mobilenet_v3_large",
    "smp:FPN/mit_b0",
    "monai:AttentionUnet",
    "transformers:segformer",
]
BY_WAY = [
    *((name, "uniform") for name in SAMPLE),
    *(("timm:test_efficientnet", way) for way in ("twin", "symmetrize")),
    *(("timm:test_vit", way) for way in ("twin", "symmetrize")),
]


@pytest.fixture(scope="module")
def networks():
    return {f"{network.library}:{network.name}": network for network in sweep_networks.all_networks()}


@pytest.fixture
def made(monkeypatch):
    """Check a network of ours in a way."""

    def check(model, way="uniform"):
        monkeypatch.setattr(sweep_checks, "_built", lambda _: sweep_checks.unequal(model()))
        monkeypatch.setattr(sweep_checks, "_smallest", lambda spec: (spec, None))
        return sweep_checks.check_network("made", "up", "made:up", sweep_checks.Limits(), way)

    return check


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), BY_WAY)
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
def test_sample_of_the_sweep(networks, name, way):
    row = sweep_checks.check_network(*networks[name], sweep_checks.Limits(), way)
    assert "unbuilt" not in row
    assert row["parameters"] > 0
    for slices in sweep.SLICES:
        if (name, way) == ("timm:test_vit", "twin"):
            assert row[f"outcome_{slices}"] == "no place"
            continue
        assert row[f"outcome_{slices}"] == "ok", row
        assert row[f"{'permutation' if way == 'uniform' else 'mirror'}_error_{slices}"] <= 1e-5
        assert row[f"gray_error_{slices}"] <= 1e-4


class Around(nn.Module):
    """Reads the image beside its stem, so that it can have three slices alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)

    def forward(self, image):
        return self.stem(image).relu() + image


def test_network_that_cannot_have_other_slices_is_symmetrized_as_it_was_built(made, monkeypatch):
    def refuse(*_, **__):
        raise evenslice.ModelError("the network reads the image elsewhere too")

    monkeypatch.setattr(evenslice, "neutralize", refuse)
    row = made(Around, "symmetrize")
    assert (row["outcome_3"], row["outcome_5"]) == ("ok", "")
    assert row["note_3"].startswith("as it was built, since neutralize says")
    assert row["error_5"].startswith("only for 3 slices, since neutralize says")


class Chaotic(nn.Module):
    """Magnifies what its stem gives until rounding shows, in single precision."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return (self.stem(image) * 3000).sin()


class Unsettled(nn.Module):
    """Magnifies what its stem gives beyond any precision, unless its batch norm knows how large that is."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, image):
        return self.norm(self.stem(image).tanh() * 1e13).sin()


@pytest.mark.parametrize(("model", "precision"), [(Chaotic, "float64"), (Unsettled, "float64, settled")])
def test_network_that_magnifies_rounding_is_checked_more_precisely(made, model, precision):
    row = made(model)
    assert (row["outcome_3"], row["precision_3"]) == ("ok", precision)
    assert row["permutation_error_3"] <= 1e-5


def test_promise_kept_only_to_the_rounding_of_the_network_is_a_failure():
    class Record:
        mirror_error, permutation_error, gray_error = 0.0, 2e-5, 0.0

    assert sweep_checks._judged(Record)["outcome"] == "failed"
    assert sweep_checks._judged(Record, "twin")["outcome"] == "ok"  # which promises the mirror alone
    Record.permutation_error = 1e-5
    assert sweep_checks._judged(Record)["outcome"] == "ok"


def test_failure_is_a_row_with_its_reason(networks, made, monkeypatch):
    def refuse(model, slices, *, strategy="uniform", **_):
        raise evenslice.ModelError(f"the layer stem (Conv2d) will not, with {slices} slices, by {strategy}")

    unbuilt = sweep_checks.check_network(*networks["smp:DPT/resnet18"], sweep_checks.Limits())
    assert unbuilt["unbuilt"].startswith("smp:DPT/resnet18: cannot be built")
    monkeypatch.setattr(evenslice, "neutralize", refuse)
    row = made(Chaotic)
    assert row["outcome_5"] == row["mixer_5"] == "failed"
    assert row["error_5"] == "the layer stem (Conv2d) will not, with 5 slices, by uniform"
    assert row["mixer_error_5"].endswith("by mixer")


@pytest.mark.slow
def test_too_large_a_network_is_checked_at_its_stem(networks):
    few = sweep_checks.Limits(parameters=0.1)
    row = sweep_checks.check_network(*networks["timm:test_convnext"], few)
    assert (row["checked"], row["outcome_3"], row["outcome_5"]) == ("stem", "ok", "ok")
    row = sweep_checks.check_network(*networks["timm:test_convnext"], few, "symmetrize")
    assert row["unbuilt"].startswith("too large to run here")
    limits = sweep_checks.Limits(parameters=400, work=200)
    assert not limits.exceeded(90, (224, 224))
    assert limits.exceeded(90, (1024, 1024))
    assert not limits.exceeded(390, None)


def test_the_list_names_every_network_once(networks):
    import timm
    from torchvision import models as zoo

    listed = sweep_networks.all_networks()
    assert len(listed) == len(networks)
    assert {network.name for network in listed if network.library == "timm"} == set(timm.list_models())
    torchvision = {network.name for network in listed if network.library == "torchvision"}
    assert torchvision > set(zoo.list_models(module=zoo.detection)) | set(zoo.list_models(module=zoo))


@pytest.mark.filterwarnings("ignore")
def test_images_are_small_where_the_network_can_be_built_for_them():
    spec, sketch = sweep_checks._smallest("timm:vit_tiny_patch16_224")
    assert spec == "timm:vit_tiny_patch16_224?img_size=64"
    assert input_sizes(sketch)[0] == (64, 64)
    assert all(parameter.is_meta for parameter in sketch.parameters())


def test_colours_are_unequal_and_zeros_alive():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    network.gamma = nn.Parameter(torch.full((4,), 1e-5))
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[2].weight)
    sweep_checks.unequal(network)
    assert network[0].weight[0].flatten().tolist() == pytest.approx([0.5, 2.0, 0.2])
    assert network[1].running_mean.abs().min() > 0
    assert network[2].weight.abs().min() > 0
    assert network.gamma.unique().tolist() == [1.0]


# The processes.


CHILD = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    library, name, spec = request["network"]
    if name == "crash":
        os._exit(7)
    if name == "hang":
        time.sleep(60)
    row = {"library": library, "name": name, "spec": spec, "checked": "network"}
    row |= {"outcome_3": "ok", "outcome_5": "ok", "note_5": request["way"], "gray_error_3": 1e-7}
    print(json.dumps(row), flush=True)
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
        return {row["name"]: row for row in sweep.read_rows(path)}

    return run


@pytest.mark.slow
def test_crash_and_hang_are_rows_and_the_rest_goes_on(small_sweep, capsys):
    rows = small_sweep("--way", "twin")
    assert rows["crash"]["error_3"] == "crashed the process (exit status 7)"
    assert rows["hang"]["error_5"] == "took longer than 2 seconds"
    assert {name for name, row in rows.items() if row["outcome_3"] == "ok"} == {"good", "better", "best"}
    assert [rows["good"][name] for name in ("note_5", "gray_error_3", "error_3")] == ["twin", "1e-07", ""]
    assert "[5/5" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["in the work", "before all are submitted"])
def test_ctrl_c_blames_no_network_and_leaves_no_child(where, small_sweep, tmp_path, monkeypatch):
    check, start, submit = sweep.Child.check, sweep.Child._start, sweep.ThreadPoolExecutor.submit
    began, processes = threading.Event(), []

    def interrupted(child, network, limits):
        if network.name == "better" and where == "in the work":
            os.kill(os.getpid(), signal.SIGINT)
        return check(child, network, limits)

    def started(child):
        processes.append(start(child))
        began.set()
        return processes[-1]

    def submitted(pool, check, network):
        if network.name == "better" and where != "in the work":
            assert began.wait(60)
            raise KeyboardInterrupt
        return submit(pool, check, network)

    monkeypatch.setattr(sweep.Child, "check", interrupted)
    monkeypatch.setattr(sweep.Child, "_start", started)
    monkeypatch.setattr(sweep.ThreadPoolExecutor, "submit", submitted)
    with pytest.raises(KeyboardInterrupt):
        small_sweep("--only", "b:*", "--timeout", "60")  # of which one hangs
    assert "hang" not in {row["name"] for row in sweep.read_rows(tmp_path / "results.csv")}
    assert all(process.returncode is not None for process in processes)


@pytest.mark.slow
def test_finished_networks_are_not_checked_again_unless_they_failed(small_sweep, capsys):
    assert list(small_sweep("--only", "b:be*")) == ["best", "better"]
    assert len(small_sweep()) == 5
    assert "[3/3" in capsys.readouterr().out
    assert len(small_sweep()) == 5
    assert capsys.readouterr().out == ""
    assert len(small_sweep("--retry", "--only", "a:*")) == 5
    assert "[1/1" in capsys.readouterr().out


def test_networks_checked_at_their_stem_are_checked_whole_where_the_limit_allows(small_sweep, tmp_path):
    for name, parameters in (("best", 90.0), ("better", 80.0)):
        good = {"library": "b", "name": name, "spec": "", "outcome_3": "ok", "outcome_5": "no place"}
        sweep.append({**good, "parameters": parameters, "checked": "stem"}, tmp_path / "results.csv")
    assert small_sweep("--only", "b:be*")["best"]["checked"] == "stem"
    rows = small_sweep("--retry", "--only", "b:be*", "--largest", "85")
    assert [rows[name]["checked"] for name in ("better", "best")] == ["network", "stem"]


def test_sample_takes_as_many_of_every_library(small_sweep):
    assert {row["library"] for row in small_sweep("--sample", "2", "--seed", "1").values()} == {"a", "b"}


@pytest.mark.parametrize("path", sweep.RESULTS.values(), ids=lambda path: path.name)
def test_the_results_that_are_kept_have_the_columns_of_today(path):
    with path.open(newline="") as file:
        assert tuple(next(csv.reader(file))) == sweep.COLUMNS
    assert len(sweep.read_rows(path)) > 50
