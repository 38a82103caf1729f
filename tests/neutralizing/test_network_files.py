"""Networks to and from files, with the record of what was done to them."""

import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
from planted import difference, run, windows
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from values import READING

from evenslice import (
    ModelError,
    OutputError,
    Reading,
    load_network,
    neutralize,
    open_segmenter,
    record_of,
    save_network,
    symmetrize,
    untie,
)

TINY = "timm:test_resnet"


def saved_record(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["evenslice"])


def rewrite(path, change):
    """Save a file again with its metadata changed."""
    document = saved_record(path)
    change(document)
    save_file(load_file(path), path, {"evenslice": json.dumps(document)})


def write(path, spec=TINY, weights="none", *, reading=None, **options):
    model, record, source = load_network(spec, weights, **options)
    save_network(model, path, source=source, reading=reading, force=True)
    return record


def assert_comes_back(loaded, path, spec, size=64):
    """Save a network, load it again, and return what was loaded."""
    model, record, source = loaded
    if record.strategy in ("uniform", "mirror", "mixer", "twin"):
        assert max(record.mirror_error, record.gray_error) <= 1e-4
    save_network(model, path, source=source)
    again = load_network(spec, str(path))
    images = windows(record.slices, 1, size)
    assert again.record == record == record_of(again.model)
    assert again.model.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(run(again.model, images), run(model, images))
    return again


# Plain weights


def test_pretrained_at_three_slices_is_the_colour_network(tmp_path):
    """What it computes from scaled slices is what the library's network computes from its own scaling."""
    library = timm.create_model("test_resnet").eval()
    save_file(library.state_dict(), tmp_path / "w.safetensors")
    model, record, source = load_network(TINY, str(tmp_path / "w.safetensors"))
    assert (record.strategy, record.slices, source.random) == ("pretrained", 3, ())
    mean, std = (torch.tensor(library.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    image = windows(3, 1, 64)
    got, expected = (
        each.conv1[:2](scaled)[..., 2:-2, 2:-2]
        for each, scaled in ((model, (image - record.mean) / record.std), (library, (image - mean) / std))
    )
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_checkpoint_of_five_slices_is_taken_as_it_stands(tmp_path):
    path = str(tmp_path / "w.ckpt")
    trained = timm.create_model("test_resnet", in_chans=5, num_classes=4)
    torch.save({"state_dict": {f"net.{key}": value for key, value in trained.state_dict().items()}}, path)
    model, record, source = load_network(TINY, path, strategy="uniform")
    assert (record.slices, source.inputs, source.classes) == (5, 5, 4)
    assert record.permutation_error <= 1e-5
    assert run(model, windows(5, 1, 64)).shape == (1, 4)
    assert load_network(TINY, path, slices=7).record.slices == 7


# Round trips


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "mirror", "tie": "mirror"},
        {"strategy": "shuffle", "tie": "mirror"},
        {"strategy": "random"},
        {"strategy": "mixer", "tie": "mirror"},
        {"strategy": "twin"},
        {"strategy": "uniform", "symmetrize": "layer1"},
    ],
)
def test_round_trip(tmp_path, options):
    path = tmp_path / "net.safetensors"
    loaded = load_network(TINY, "none", slices=5, classes=np.int64(3), seed=4, **options)
    source = assert_comes_back(loaded, path, TINY).source
    assert source.classes == 3
    assert source.origin.startswith("sha256:")
    assert all("parametrizations" not in key for key in load_file(path))
    rewrite(path, lambda document: document["record"].pop("check"))  # as version 0.1 wrote it
    assert load_network(TINY, path).record == loaded.record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "slices", "options", "size"),
    [
        ("smp:FPN/vgg11", 5, {"strategy": "mirror"}, 64),  # a bias to fold the normalisation into
        ("timm:test_vit", 3, {"strategy": "mirror"}, 160),
        ("timm:fastvit_t8", 5, {"strategy": "uniform"}, 256),
        ("timm:tresnet_m", 5, {"strategy": "uniform"}, 64),  # space to depth
        ("timm:crossvit_tiny_240", 5, {"strategy": "mirror"}, 240),  # two stems
        ("timm:test_nfnet", 5, {"strategy": "uniform", "tie": "mirror"}, 64),  # a stem that was replaced
        ("timm:test_nfnet", 5, {"strategy": "mixer"}, 64),
    ],
)
def test_round_trip_of_architectures(tmp_path, spec, slices, options, size):
    loaded = load_network(spec, "none", slices=slices, **options)
    assert_comes_back(loaded, tmp_path / "net.safetensors", spec, size)


def test_trained_weights_come_back(tmp_path):
    """A tied network that has learned keeps its tie and what it learned; one that was untied may have drifted."""
    model, _, source = load_network(TINY, "none", strategy="uniform", tie="mirror")
    with torch.no_grad():
        model.conv1[0].parametrizations.weight.original.add_(torch.rand(3, 1, 1))
    images = windows(3, 1, 64)
    save_network(model, tmp_path / "tied.safetensors", source=source)
    again = load_network(TINY, str(tmp_path / "tied.safetensors"))
    assert again.record.tie == "mirror"
    torch.testing.assert_close(run(again.model, images), run(model, images))
    assert difference(run(again.model, images.flip(1)), run(again.model, images)) <= 1e-5
    untie(model)
    with torch.no_grad():
        model.conv1[0].weight[:, 0] += 1
    save_network(model, tmp_path / "free.safetensors", source=source)
    again = load_network(TINY, str(tmp_path / "free.safetensors"))
    assert again.record.tie is None
    assert torch.equal(again.model.conv1[0].weight, model.conv1[0].weight)


def test_network_without_a_source_or_a_record(tmp_path):
    model, path = timm.create_model("test_resnet", num_classes=3).eval(), tmp_path / "net.safetensors"
    with pytest.raises(ModelError, match="has no record"):
        save_network(model, path)
    neutralize(model, 5)
    save_network(model, path)
    again, record, source = load_network(TINY, str(path), classes=3)
    assert (record.slices, source.classes, source.random) == (5, 3, ())
    assert torch.equal(run(again, windows(5)), run(model, windows(5)))


BUILD = """
from torch import nn

def bias_free():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))

def nested():
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 2, 1))
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "own_builders.py").write_text(BUILD)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("wrap", [partial(torch.compile, backend="eager"), nn.DataParallel, AveragedModel])
def test_a_wrapped_network_is_saved_without_the_wrapper(functions, wrap):
    """Tied, and with the bias that a stem gets for the folded normalization."""
    options = {"mean": [0.1, 0.5, 0.9], "std": [0.2, 0.3, 0.4], "strategy": "mirror", "tie": "mirror"}
    model, record, _ = load_network("own_builders:bias_free", "none", **options)
    save_network(wrap(model), "net.safetensors")
    again, loaded, _ = load_network("own_builders:bias_free", "net.safetensors")
    assert loaded == record
    assert torch.equal(run(again, windows()), run(model, windows()))
    with pytest.raises(ModelError, match="a function sets its own classes"):
        load_network("own_builders:bias_free", "net.safetensors", classes=6)


def test_what_a_network_has_beside_its_neutralized_part_is_saved(functions):
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 2, 1)).eval()
    neutralize(network[0])
    save_network(network, "net.safetensors")
    again, record, _ = load_network("own_builders:nested", "net.safetensors")
    assert record.stems == ("0.0",)
    assert torch.equal(run(again, windows()), run(network, windows()))


@pytest.mark.parametrize("saved", [0, 1])
def test_a_network_that_is_symmetrized_in_a_wrapper_loads_again(tmp_path, saved):
    network, _, _ = load_network(TINY, "none")
    wrapper = symmetrize(nn.DataParallel(network), "module.layer1")
    save_network((network, wrapper)[saved], tmp_path / "net.safetensors")
    again, record, _ = load_network(TINY, str(tmp_path / "net.safetensors"))
    assert record.symmetrized == ("layer1",)
    assert torch.equal(run(again, windows()), run(again, windows().flip(1)))


@pytest.mark.parametrize("inputs", [3, 4])
def test_a_network_whose_mixer_was_changed_again_comes_back(tmp_path, inputs):
    """Before weights of other inputs, too."""
    save_file(timm.create_model("test_resnet", in_chans=inputs).state_dict(), tmp_path / "w.safetensors")
    model, _, source = load_network(TINY, tmp_path / "w.safetensors", slices=3, strategy="mixer")
    record = neutralize(model, 5, strategy="mixer")
    assert_comes_back((model, record, source), tmp_path / "fair.safetensors", TINY)


# The command


@pytest.mark.slow
def test_neutralize_leaves_files_alone(tmp_path, command):
    path, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    before = path.read_bytes()
    out.write_text("mine")
    for spec, to, force, message in (
        (TINY, path, ["--force"], "is the file of weights to read"),
        (TINY, tmp_path / "out.pt", [], "written as .safetensors"),
        (TINY, out, [], "exists"),
        ("timm:resnet18", out, ["--force"], "does not fit"),
    ):
        done = command("neutralize", "--model", spec, "--weights", path, "--out", to, *force)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert out.read_text() == "mine"
    assert path.read_bytes() == before
    assert command("neutralize", "--model", TINY, "--weights", path, "--out", out, "--force").returncode == 0
    assert saved_record(out)["source"]["spec"] == TINY
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.safetensors", "w.safetensors"]


# Files that say something else


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    write(path, classes=3, strategy="shuffle", seed=2)
    return path


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (TINY, {"slices": 5}, "was saved with slices 3, not 5; leave out slices"),
        (TINY, {"strategy": "center"}, "was saved with strategy shuffle, not center"),
        (TINY, {"strategy": "shuffle", "seed": 1}, "was saved with seed 2, not 1"),
        (TINY, {"classes": 2}, "was saved with classes 3, not 2"),
        (TINY, {"tie": "mirror"}, "was saved with tie none, not mirror"),
        (TINY, {"mean": 0.5}, "states its own mean and std"),
        ("timm:test_resnet?drop_rate=0.1", {}, "was saved as timm:test_resnet, not timm:test_"),
    ],
)
def test_asking_for_other_than_was_saved(saved, spec, options, message):
    with pytest.raises(ModelError, match=message):
        load_network(spec, str(saved), **options)


def test_asking_for_what_was_saved(saved):
    for options in ({"strategy": "shuffle", "seed": 2}, {"seed": 1}, {"slices": 3.0, "classes": 3}):
        assert load_network(TINY, str(saved), **options).record.seed == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(format=2), "format 2, this version reads 1"),
        (lambda document: document.pop("record"), "cannot be read"),
        *(
            (lambda document, b=bad: document["record"].update(b), "cannot be read")
            for bad in ({"std": 0}, {"more": 1})
        ),
        (lambda document: document["record"].update(stems=["gone"]), "was saved with the stems gone"),
        (lambda document: document["record"].update(slices=5), "does not fit"),
        (lambda document: document["record"].update(symmetrized=["gone"]), "'gone', which the network lacks"),
        # Which would take 2.5 GB
        (
            lambda document: document["source"].update(spec="torchvision:vit_h_14"),
            "has more than .* parameters",
        ),
    ],
)
def test_file_whose_record_is_broken(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_network(*((str(saved),) if "more than" in message else (TINY, str(saved))))
    assert "\n" not in str(caught.value)


def test_file_that_lacks_a_part(saved):
    text = {"evenslice": json.dumps(saved_record(saved))}
    save_file(
        {key: value for key, value in load_file(saved).items() if not key.startswith("fc.")}, saved, text
    )
    with pytest.raises(ModelError, match="lacks the network's fc"):
        load_network(TINY, str(saved))


# How a network reads volumes


@pytest.mark.slow
def test_how_a_network_reads_volumes_comes_back(tmp_path, saved, command):
    path, again, reading = tmp_path / "model.safetensors", tmp_path / "again.safetensors", Reading(**READING)
    write(path, reading=Reading(**READING | {"step": np.int64(2)}))
    for spec, weights in ((str(path), None), (TINY, str(tmp_path))):  # the folder
        assert open_segmenter(spec, weights).reading == reading
    for change in (["symmetrize"], ["neutralize", "--strategy", "pretrained"]):
        command(*change, "--model", TINY, "--weights", path, "--out", again, "--force")
        assert open_segmenter(TINY, str(again)).reading == reading
    assert open_segmenter(TINY, str(saved)).reading == Reading()


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(OutputError, match="written as .safetensors"):
        write(tmp_path / "net.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reading", [{"step": 0}, {"intensity": [1]}, {"other_labels": "ignore"}, [2]])
def test_damaged_words_about_volumes_are_refused(saved, reading):
    rewrite(saved, lambda document: document.update(reading=reading))
    with pytest.raises(ModelError, match="its description of how it reads volumes is damaged") as caught:
        open_segmenter(TINY, str(saved))
    assert "\n" not in str(caught.value)
    load_network(TINY, str(saved))  # which does not ask
