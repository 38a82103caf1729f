"""Networks to and from files, with the record of what was done to them."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from evenslice._core.errors import ConfigError, ModelError, OutputError
from evenslice.inference import stated_reading
from evenslice.networks import models
from evenslice.networks.outputs import logits
from evenslice.neutralizing import network_files as checkpoints
from evenslice.neutralizing.network_files import save_network
from evenslice.neutralizing.neutralization import neutralize, untie
from evenslice.neutralizing.record import record_of
from evenslice.neutralizing.symmetrization import symmetrize
from evenslice.training import find_network
from evenslice.volumes import Reading

smp = pytest.importorskip("segmentation_models_pytorch")
timm = pytest.importorskip("timm")
pytest.importorskip("torchvision")

SMALL = "smp:Unet/resnet18?encoder_depth=3&decoder_channels=[16,8,8]"
LITE = "smp:Unet/tu-tf_efficientnet_lite0"


def load_network(*arguments, **options) -> tuple[Any, checkpoints.Record, models.ModelSource]:
    return checkpoints.load_network(*arguments, **options)


def neutralize_file(spec, weights, out, *, reading=None, force=False, **options):
    return checkpoints.neutralize_file(spec, weights, out, options, reading=reading, force=force)


def build_model(*arguments, **options) -> tuple[Any, models.ModelSource]:
    return models.build_model(*arguments, **options)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scores(model, window):
    with torch.inference_mode():
        return logits(model(window))


def window(slices, size=64):
    return torch.rand(1, slices, size, size, generator=torch.Generator().manual_seed(1))


def saved_record(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["evenslice"])


def rewrite(path, change):
    """Save a file again with its metadata changed."""
    document = saved_record(path)
    change(document)
    save_file(load_file(path), path, {"evenslice": json.dumps(document)})


# Plain weights


@pytest.mark.parametrize("slices", [None, 1, 5])
def test_pretrained_network_takes_slices_on_one_scale(slices):
    model, record, source = load_network(LITE, "imagenet", slices=slices)
    assert record.strategy == "pretrained"
    assert record.slices == (slices or 3)
    assert (record.mean, record.std) == (0.5, 0.5)
    assert record_of(model) == record
    assert source.weights == "imagenet"
    assert scores(model, window(record.slices)).shape == (1, 2, 64, 64)


def test_pretrained_at_three_slices_is_the_colour_network():
    """What it computes from scaled slices is what the library's network computes from ImageNet's scaling."""
    spec = "smp:Unet/resnet18"
    model, record, _ = load_network(spec, "none", seed=2)
    library, _ = build_model(spec, "none", seed=2)
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    image = window(3, 128)
    got = model.encoder.relu(model.encoder.bn1(model.encoder.conv1((image - record.mean) / record.std)))
    expected = library.encoder.relu(library.encoder.bn1(library.encoder.conv1((image - mean) / std)))
    assert torch.allclose(got[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], atol=1e-4)


def test_checkpoint_of_five_slices_is_taken_as_it_stands(tmp_path):
    trained = smp.Unet("resnet18", encoder_weights=None, in_channels=5, classes=4)
    torch.save(
        {"state_dict": {f"net.{key}": value for key, value in trained.state_dict().items()}},
        tmp_path / "w.ckpt",
    )
    model, record, source = load_network("smp:Unet/resnet18", str(tmp_path / "w.ckpt"), strategy="uniform")
    assert (record.slices, source.inputs, source.classes) == (5, 5, 4)
    assert record.permutation_error <= 1e-5
    assert scores(model, window(5)).shape == (1, 4, 64, 64)
    assert load_network("smp:Unet/resnet18", str(tmp_path / "w.ckpt"), slices=7)[1].slices == 7


def test_function_decides_its_inputs(tmp_path, monkeypatch):
    (tmp_path / "seven_inputs.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Conv2d(7, 2, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    model, record, source = load_network("seven_inputs:build", "none", strategy="uniform")
    assert (record.slices, source.inputs) == (7, 7)
    save_network(model, "seven.safetensors", source=source)
    again, _, _ = load_network("seven_inputs:build", "seven.safetensors")
    assert torch.equal(again.weight, model.weight)


# Round trips


def test_other_classes_than_those_of_a_saved_network_are_refused_where_the_library_chose_them(tmp_path):
    path = tmp_path / "net.safetensors"
    model, _, source = load_network("timm:test_resnet", "none")
    assert source.classes is None
    save_network(model, path, source=source)
    with pytest.raises(
        ModelError,
        match=r"net.safetensors does not fit timm:test_resnet with 3 classes: .*fc.weight is \(1000, 96\), not \(3, 96\)",
    ):
        load_network("timm:test_resnet", path, classes=3)
    again, _, _ = load_network("timm:test_resnet", path, classes=1000)
    assert torch.equal(again.fc.weight, model.fc.weight)


@pytest.mark.parametrize("strategy", ["mirror", "pretrained", "shuffle", "random"])
@pytest.mark.parametrize("tie", [None, "mirror"])
def test_round_trip(tmp_path, strategy, tie):
    path = tmp_path / "net.safetensors"
    model, record, source = load_network(
        SMALL, "none", slices=5, strategy=strategy, tie=tie, classes=3, seed=4
    )
    save_network(model, path, source=source)
    again, loaded, origin = load_network(SMALL, str(path))
    assert loaded == record == record_of(again)
    assert origin.classes == 3
    assert origin.origin.startswith("sha256:")
    assert torch.equal(scores(again, window(5)), scores(model, window(5)))
    assert all("parametrizations" not in key for key in load_file(path))
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("slices", [3, 5])
@pytest.mark.parametrize(
    "spec",
    [
        "smp:FPN/vgg11",  # a bias to fold the normalisation into
        "smp:Unet/resnet18",  # a batch norm
        "timm:test_convnext",
        "timm:test_vit",
        "timm:crossvit_tiny_240",  # two stems
        "torchvision:googlenet?transform_input=true&init_weights=false&aux_logits=false",
        "torchvision:lraspp_mobilenet_v3_large",
    ],
)
def test_round_trip_of_architectures(tmp_path, spec, slices):
    path = tmp_path / "net.safetensors"
    model, record, source = load_network(spec, "none", slices=slices, strategy="mirror")
    save_network(model, path, source=source)
    again, loaded, _ = load_network(spec, str(path))
    size = 240 if "240" in spec else 160 if "vit" in spec else 64
    assert loaded == record
    assert torch.equal(scores(again, window(slices, size)), scores(model, window(slices, size)))


def test_trained_weights_come_back(tmp_path):
    """A tied network that has learned keeps its tie and what it learned; one that was untied may have drifted."""
    model, _, source = load_network(SMALL, "none", strategy="uniform", tie="mirror")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model.train()(window(3)) * torch.linspace(-1, 1, 64)).mean().backward()
        optimizer.step()
    save_network(model.eval(), tmp_path / "tied.safetensors", source=source)
    again, record, _ = load_network(SMALL, str(tmp_path / "tied.safetensors"))
    assert record.tie == "mirror"
    assert torch.allclose(scores(again, window(3)), scores(model, window(3)), atol=1e-6)
    assert torch.allclose(scores(again, window(3).flip(1)), scores(again, window(3)), atol=1e-5)
    untie(model)
    with torch.no_grad():
        model.encoder.conv1.weight[:, 0] += 1
    save_network(model, tmp_path / "free.safetensors", source=source)
    again, record, _ = load_network(SMALL, str(tmp_path / "free.safetensors"))
    assert record.tie is None
    assert torch.equal(again.encoder.conv1.weight, model.encoder.conv1.weight)


def test_network_without_a_source(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3).eval()
    neutralize(model, 5)
    save_network(model, tmp_path / "net.safetensors")
    again, record, source = load_network("timm:test_resnet", str(tmp_path / "net.safetensors"), classes=3)
    assert (record.slices, source.classes, source.random) == (5, 3, ())
    assert torch.equal(scores(again, window(5)), scores(model, window(5)))


@pytest.mark.parametrize(
    "wrap", [partial(torch.compile, backend="eager"), nn.DataParallel, nn.Sequential, AveragedModel]
)
def test_a_wrapped_network_is_saved_without_the_wrapper(tmp_path, monkeypatch, wrap):
    """Tied, and with the bias that a stem gets for the folded normalization."""
    (tmp_path / "bias_free.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = {"mean": [0.1, 0.5, 0.9], "std": [0.2, 0.3, 0.4]}
    model, record, _ = load_network("bias_free:build", "none", strategy="mirror", tie="mirror", **options)
    save_network(wrap(model), "net.safetensors")
    again, loaded, _ = load_network("bias_free:build", "net.safetensors")
    assert loaded == record
    assert torch.equal(scores(again, window(3)), scores(model, window(3)))
    with pytest.raises(ModelError, match="a function sets its own classes"):
        load_network("bias_free:build", "net.safetensors", classes=6)


def test_what_a_network_has_beside_its_neutralized_part_is_saved(tmp_path, monkeypatch):
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 2, 1)).eval()
    neutralize(network[0])
    save_network(network, tmp_path / "net.safetensors")
    assert set(load_file(tmp_path / "net.safetensors")) == set(network.state_dict())
    (tmp_path / "partly.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 2, 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    again, record, _ = load_network("partly:build", "net.safetensors")
    assert record.stems == ("0.0",)
    assert torch.equal(again(window(3)), network(window(3)))


@pytest.mark.parametrize("saved", [0, 1])
def test_a_network_that_is_symmetrized_in_a_wrapper_loads_again(tmp_path, saved):
    network, _, _ = load_network("timm:test_resnet", "none")
    wrapper = symmetrize(nn.DataParallel(network), "module.layer1")
    save_network((network, wrapper)[saved], tmp_path / "net.safetensors")
    again, record, _ = load_network("timm:test_resnet", str(tmp_path / "net.safetensors"))
    assert record.symmetrized == ("layer1",)
    assert torch.equal(again(window(3)), again(window(3).flip(1)))


# The command


@pytest.mark.parametrize("weights", ["vgg16_features.safetensors", "mobilenetv1_100.safetensors"])
def test_neutralize_shared_weights(shared_weights, tmp_path, weights):
    spec = {
        "vgg16_features.safetensors": "smp:FPN/vgg16",
        "mobilenetv1_100.safetensors": "smp:FPN/tu-mobilenetv1_100?pad_type=same&bn_eps=1e-3",
    }[weights]
    out = tmp_path / "deep" / "fair.safetensors"
    record = neutralize_file(spec, str(shared_weights / weights), out, slices=5)
    assert (record.strategy, record.slices) == ("uniform", 5)
    assert record.permutation_error <= 1e-5
    assert record.gray_error <= 1e-4
    model, loaded, source = load_network(spec, str(out))
    assert loaded == record
    assert source.random == ("decoder", "segmentation_head")
    one = scores(model, window(5))
    assert torch.allclose(
        one, scores(model, window(5)[:, [3, 1, 4, 0, 2]]), atol=1e-4 * float(one.abs().max())
    )
    assert np.isfinite(one.numpy()).all()


def test_neutralize_leaves_files_alone(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is the file of weights to read"):
        neutralize_file("timm:test_resnet", str(path), path, force=True)
    with pytest.raises(OutputError, match="written as .safetensors"):
        neutralize_file("timm:test_resnet", str(path), tmp_path / "out.pt")
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        neutralize_file("timm:test_resnet", str(path), out)
    with pytest.raises(ModelError, match="does not fit"):
        neutralize_file("timm:resnet18", str(path), out, force=True)
    assert out.read_text() == "mine"
    assert path.read_bytes() == before
    neutralize_file("timm:test_resnet", str(path), out, force=True)
    assert saved_record(out)["source"]["spec"] == "timm:test_resnet"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.safetensors", "w.safetensors"]


def test_network_without_a_record_is_not_saved(tmp_path):
    with pytest.raises(ModelError, match="has no record; call evenslice.neutralize"):
        save_network(nn.Conv2d(3, 2, 3), tmp_path / "net.safetensors")


# Files that say something else


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    neutralize_file("timm:test_resnet", "none", path, classes=3)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slices": 5}, "was saved with slices 3, not 5; leave out slices,"),
        (
            {"strategy": "center"},
            "was saved with strategy uniform, not center; leave out strategy, give",
        ),
        ({"classes": 2}, "was saved with classes 3, not 2"),
        ({"tie": "mirror"}, "was saved untied"),
    ],
)
def test_asking_for_other_than_was_saved(saved, options, message):
    with pytest.raises(ModelError, match=message):
        load_network("timm:test_resnet", str(saved), **options)


def test_asking_for_another_seed_than_was_saved(tmp_path):
    path = tmp_path / "net.safetensors"
    neutralize_file("timm:test_resnet", "none", path, strategy="shuffle", seed=2)
    with pytest.raises(ModelError, match="was saved with seed 2, not 1; leave out seed, give seed=2"):
        load_network("timm:test_resnet", str(path), strategy="shuffle", seed=1)
    for options in ({"strategy": "shuffle", "seed": 2}, {"strategy": "shuffle"}, {"seed": 1}):
        assert load_network("timm:test_resnet", str(path), **options)[1].seed == 2


def test_a_network_with_a_number_of_classes_of_numpy_is_saved(tmp_path):
    model, record, source = load_network("timm:test_resnet", "none", classes=np.int64(3))
    save_network(model, tmp_path / "net.safetensors", source=source)
    again = load_network("timm:test_resnet", str(tmp_path / "net.safetensors"))
    assert (again.source.classes, again.record) == (3, record)


def test_a_small_file_that_names_a_large_network(saved, monkeypatch):
    rewrite(saved, lambda document: document["source"].update(spec="torchvision:vit_h_14"))
    monkeypatch.setattr(checkpoints, "build_model", None)  # which would take 2.5 GB
    with pytest.raises(ModelError, match="is too small for its network"):
        load_network(str(saved))


@pytest.mark.parametrize("spec", ["timm:test_resnet?drop_rate=0.1", "timm:test_efficientnet"])
def test_other_specification_than_was_saved(saved, spec):
    with pytest.raises(ModelError, match=r"was saved as timm:test_resnet, not timm:test_"):
        load_network(spec, str(saved))


def test_saved_network_does_not_pass_for_plain_weights(saved):
    with pytest.raises(ModelError, match="read it with evenslice.load_network"):
        build_model("timm:test_resnet", str(saved))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(format=2), "format 2, this version reads 1"),
        (lambda document: document.pop("record"), "cannot be read"),
        (lambda document: document["record"].update(std=0), "cannot be read"),
        (lambda document: document["record"].pop("mean"), "cannot be read"),
        (lambda document: document.update(source="timm"), "cannot be read"),
        (lambda document: document["source"].pop("spec"), "cannot be read"),
        (lambda document: document["record"].update(stems=["gone"]), "has no weights for 3 slices in 'gone'"),
        (lambda document: document["record"].update(slices=5), "has no weights for 5 slices"),
    ],
)
def test_file_whose_record_is_broken(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_network("timm:test_resnet", str(saved))
    assert "\n" not in str(caught.value)


# How a network reads volumes

READING = {
    "step": 2,
    "plane": "y",
    "intensity": (0.0, 200.0),
    "fill": 7.0,
    "label_values": (0, 255),
    "other_labels": "background",
    "ignore_label": 9,
}


def test_how_a_network_reads_volumes_comes_back(tmp_path):
    path = tmp_path / "model.safetensors"
    record = neutralize_file("timm:test_resnet", "none", path, reading=READING)
    assert load_network("timm:test_resnet", str(path))[1] == record
    reading = Reading(**READING)
    assert stated_reading("timm:test_resnet", str(path)) == (reading, None)
    assert stated_reading(str(path), None) == (reading, None)
    assert stated_reading("timm:test_resnet", str(tmp_path)) == (reading, None)  # the folder
    found = find_network(None, "timm:test_resnet", str(path), reading={"step": 1, "fill": 0.0}).reading
    assert found == Reading(**READING | {"step": 1, "fill": 0.0})
    again = tmp_path / "again.safetensors"
    neutralize_file("timm:test_resnet", str(path), again, strategy="pretrained", reading=reading)
    assert stated_reading("timm:test_resnet", str(again)) == (reading, None)


def test_file_that_says_nothing_of_volumes(saved):
    assert "reading" not in saved_record(saved)
    assert stated_reading("timm:test_resnet", str(saved)) == (None, None)


@pytest.mark.parametrize(
    "reading",
    [
        {"step": 0},
        {"steps": 2},
        {"label_values": [0, 1], "ignore_label": 1},
    ],
)
def test_words_about_volumes_that_cannot_be_right_are_not_written(tmp_path, reading):
    path = tmp_path / "net.safetensors"
    with pytest.raises(ConfigError, match="|".join(reading)):
        neutralize_file("timm:test_resnet", "none", path, reading=reading)
    assert not path.exists()


def test_words_about_volumes_may_be_numpys(tmp_path):
    path = tmp_path / "net.safetensors"
    given = {"step": np.int64(2), "intensity": (np.float32(0), np.uint8(255)), "fill": None}
    neutralize_file("timm:test_resnet", "none", path, reading=given)
    assert stated_reading("timm:test_resnet", str(path))[0] == Reading(step=2, intensity=(0, 255))


@pytest.mark.parametrize(
    "reading",
    [
        {"step": 0},
        {"intensity": [1]},
        {"other_labels": "ignore"},
        [2],
    ],
)
def test_damaged_words_about_volumes_are_refused(saved, reading):
    rewrite(saved, lambda document: document.update(reading=reading))
    with pytest.raises(ModelError, match="its description of how it reads volumes is damaged") as caught:
        stated_reading("timm:test_resnet", str(saved))
    assert "\n" not in str(caught.value)
    load_network("timm:test_resnet", str(saved))  # which does not ask


def test_file_that_lacks_a_part(saved):
    document = saved_record(saved)
    state = {key: value for key, value in load_file(saved).items() if not key.startswith("fc.")}
    save_file(state, saved, {"evenslice": json.dumps(document)})
    with pytest.raises(ModelError, match="lacks the network's fc"):
        load_network("timm:test_resnet", str(saved))


def test_saved_network_is_not_neutralized_again(saved, monkeypatch):
    monkeypatch.setattr(checkpoints, "neutralize", None)
    loaded = checkpoints.load_network("timm:test_resnet", str(saved))
    assert loaded.record == record_of(loaded.model)
    assert loaded.source.classes == 3


# Stems that were replaced, and the mixer


@pytest.mark.parametrize("tie", [None, "mirror"])
@pytest.mark.parametrize(
    ("spec", "strategy"), [("timm:test_nfnet", "uniform"), ("timm:test_nfnet", "mixer"), (SMALL, "mixer")]
)
def test_baked_and_mixed_networks_come_back(tmp_path, spec, strategy, tie):
    model, record, source = load_network(spec, "none", slices=5, strategy=strategy, tie=tie)
    save_network(model, tmp_path / "fair.safetensors", source=source)
    again, loaded, _ = load_network(spec, tmp_path / "fair.safetensors")
    assert loaded == record
    assert torch.equal(scores(again, window(5)), scores(model, window(5)))


@pytest.mark.parametrize("strategy", ["center", "mixer"])
def test_a_network_whose_mixer_was_changed_again_comes_back(tmp_path, strategy):
    model, _, source = load_network(SMALL, "none", slices=3, strategy="mixer")
    record = neutralize(model, 5, strategy=strategy)
    save_network(model, tmp_path / "fair.safetensors", source=source)
    again, loaded, _ = load_network(SMALL, tmp_path / "fair.safetensors")
    assert loaded == record
    assert torch.equal(scores(again, window(5)), scores(model, window(5)))


def test_a_record_without_a_check_is_of_the_whole_network(tmp_path):
    model, record, source = load_network(SMALL, "none", strategy="uniform")
    save_network(model, tmp_path / "fair.safetensors", source=source)
    rewrite(tmp_path / "fair.safetensors", lambda document: document["record"].pop("check"))
    assert load_network(SMALL, tmp_path / "fair.safetensors")[1] == record


def test_a_mixer_before_weights_of_other_inputs_comes_back(tmp_path):
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", in_chans=4).state_dict(), tmp_path / "four.safetensors")
    built = load_network("timm:test_resnet", tmp_path / "four.safetensors", slices=5, strategy="mixer")
    save_network(built.model, tmp_path / "fair.safetensors", source=built.source)
    again = load_network("timm:test_resnet", tmp_path / "fair.safetensors")
    assert again.record == built.record
    assert torch.equal(scores(again.model, window(5)), scores(built.model, window(5)))


def test_a_saved_network_is_asked_for_in_other_types(tmp_path):
    model, _, source = load_network(SMALL, "none", slices=3, strategy=(0.25, 0.5, 0.25))
    save_network(model, tmp_path / "network.safetensors", source=source)
    path = str(tmp_path / "network.safetensors")
    assert load_network(SMALL, path, strategy=np.array([0.25, 0.5, 0.25]), slices=3.0)[1].slices == 3
    with pytest.raises(ModelError, match=r"was saved with slices 3, not 5\.0"):
        load_network(SMALL, path, slices=5.0)
