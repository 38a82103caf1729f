"""Networks of MONAI and transformers from their specifications."""

import json
import shutil
import socket

import pytest
import torch
import transformers
from planted import run
from safetensors.torch import load_file, save_file

from evenslice import ModelError
from evenslice.networks import build_model, input_sizes, normalization
from evenslice.networks.libraries import NETWORKS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
TINY = "hidden_sizes=[8,8,8,8]&depths=[1,1,1,1]&decoder_hidden_size=8"
SEGFORMER = f"transformers:segformer?{TINY}"
VIT = "hidden_size=8&num_hidden_layers=1&num_attention_heads=1&intermediate_size=8&image_size=32&patch_size=8"
VIT4 = VIT.replace("num_hidden_layers=1", "num_hidden_layers=4")
SAM = {"image_size": 32, "num_hidden_layers": 1, "global_attn_indexes": [0], "hidden_size": 8}
SAM |= {"num_attention_heads": 1, "output_channels": 8}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def scores(spec, size):
    return run(build_model(spec, "none").model, torch.rand(1, 3, *size))


# MONAI


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_monai_builds_from_its_name(name):
    deferred = name != "SwinUNETR"  # which computes with its own values as it is built
    with torch.device("meta" if deferred else "cpu"):
        model, source = build_model(f"monai:{name}", "none")
    assert source.inputs == (1 if name == "VNet" else 3)
    assert next(p for p in model.parameters() if p.ndim == 4).shape[1] in (source.inputs, 768)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "size", "shape"),
    [
        ("monai:UNet?channels=[8,16]&strides=[2]", (32, 32), (1, 2, 32, 32)),
        ("monai:basicunet?features=[8,8,8,8,8,8]", (32, 32), (1, 2, 32, 32)),
        ("monai:BasicUNetPlusPlus?features=[8,8,8,8,8,8]&deep_supervision=true", (32, 32), (1, 2, 32, 32)),
        ("monai:UNETR?img_size=32&hidden_size=12&num_heads=1&mlp_dim=8", (32, 32), (1, 2, 32, 32)),
        ("monai:ViT?img_size=32&hidden_size=8&num_layers=1&num_heads=1&mlp_dim=8", (32, 32), (1, 2)),
        ("monai:EfficientNetBN/efficientnet-b0", (64, 64), (1, 2)),
        ("monai:Classifier?in_shape=64", (64, 64), (1, 2)),
    ],
)
def test_networks_of_monai_compute(spec, size, shape):
    assert scores(spec, size).shape == shape


# transformers, without any weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        (f"segformer?{TINY}", (32, 32), (1, 2, 8, 8)),
        (f"segformer?task=image-classification&{TINY}", (32, 32), (1, 2)),
        (f"vit?{VIT}", (32, 32), (1, 2)),
        (f"vit?task=feature-extraction&{VIT}", (32, 32), (1, 17, 8)),
        (f"beit?{VIT4}&out_indices=[1,2,3,4]", (32, 32), (1, 2, 16, 16)),
        ("swin?image_size=64&embed_dim=8&depths=[1,1]&num_heads=[1,1]&window_size=4", (64, 64), (1, 2)),
        ("convnext?hidden_sizes=[8,8,8,8]&depths=[1,1,1,1]", (32, 32), (1, 2)),
        (f"sam?vision_config={SAM}", (32, 32), (1, 8, 2, 2)),
        ("depth_anything?task=depth-estimation", (28, 28), (1, 28, 28)),
    ],
)
def test_networks_of_transformers_compute(name, size, shape):
    assert scores(f"transformers:{name}", size).shape == shape


@pytest.mark.slow
def test_queries_of_mask2former_agree_with_its_own_processor():
    spec = "transformers:mask2former?num_queries=6&decoder_layers=2&encoder_layers=1&hidden_dim=32&feature_size=32"
    backbone = "{'model_type':'swin','depths':[1,1,1,1],'embed_dim':24,'out_features':['stage1','stage2','stage3','stage4']}"
    sizes = "mask_feature_size=32&dim_feedforward=32&encoder_feedforward_dim=32&num_attention_heads=2"
    model, _ = build_model(f"{spec}&{sizes}&backbone_config={backbone}", "none", classes=4)
    with torch.inference_mode():
        output = model(torch.rand(1, 3, 64, 64))
    assert run(lambda _: output, None).shape == (1, 4, 16, 16)
    expected = transformers.Mask2FormerImageProcessor().post_process_semantic_segmentation(output)[0]
    resized = torch.nn.functional.interpolate(output.masks_queries_logits, size=(384, 384), mode="bilinear")
    output.masks_queries_logits = resized
    assert torch.equal(run(lambda _: output, None)[0].argmax(0), expected)


def test_classes_and_inputs_of_a_file(tmp_path):
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "decoder_hidden_size": 8}
    config = transformers.SegformerConfig(num_labels=5, num_channels=7, **sizes)
    torch.save(transformers.SegformerForSemanticSegmentation(config).state_dict(), tmp_path / "w.pt")
    model, source = build_model(SEGFORMER, str(tmp_path / "w.pt"))
    assert (source.classes, source.inputs, source.random) == (5, 7, ())
    assert run(model, torch.rand(1, 7, 32, 32)).shape == (1, 5, 8, 8)


def test_size_and_scaling_follow_the_model_type():
    with torch.device("meta"):
        vit = build_model(f"transformers:vit?{VIT}", "none")[0]
        mask2former = build_model("transformers:mask2former", "none")[0]
    own = transformers.ViTForImageClassification(vit.config)  # of the user's own making
    for model, size, scaling in ((vit, (32, 32), HALF), (mask2former, None, IMAGENET), (own, (32, 32), HALF)):
        assert (input_sizes(model)[0], normalization(model)) == (size, scaling)


# transformers, from a folder


@pytest.fixture
def folder(tmp_path):
    model = build_model(SEGFORMER, "none", classes=4, seed=9)[0]
    model.save_pretrained(tmp_path / "net")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_normalize": True}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "net", model.state_dict()


def test_folder_gives_configuration_weights_and_scaling(folder):
    path, state = folder
    model, source = build_model(f"transformers:{path}", "imagenet")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert (source.random, source.weights) == ((), "imagenet")
    assert normalization(model) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    drawn, source = build_model(f"transformers:{path}", "none")
    assert not torch.equal(drawn.decode_head.classifier.weight, state["decode_head.classifier.weight"])
    assert source.random == ("*",)
    other, source = build_model(f"transformers:{path}", "imagenet", classes=7)
    kept = other.state_dict()
    assert (source.random, len(kept["decode_head.classifier.weight"])) == (("decode_head",), 7)
    assert all(torch.equal(kept[key], state[key]) for key in state if "classifier" not in key)
    alone, _ = build_model(f"transformers:{path / 'config.json'}", "none")
    assert alone.state_dict().keys() == state.keys()
    assert normalization(alone) == IMAGENET


def test_no_other_folder_and_no_hub_is_asked_for_the_backbone_of_a_folder(folder, tmp_path, monkeypatch):
    path, _ = folder
    (tmp_path / "own").mkdir()
    shutil.copytree(path, tmp_path / "own" / "net")
    config = {
        "model_type": "upernet",
        "backbone": "own/net",
        "architectures": ["UperNetForSemanticSegmentation"],
    }
    (path / "config.json").write_text(json.dumps(config))
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *place, **_: asked.append(place) or [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="names a backbone that is another network on the hub; put"):
        build_model(f"transformers:{path}", "none")
    assert asked == []


def test_image_encoder_of_sam_from_a_folder(tmp_path):
    sam = transformers.SamModel(transformers.SamConfig(vision_config=SAM))
    sam.save_pretrained(tmp_path)
    model, _ = build_model(f"transformers:{tmp_path}", "imagenet")
    loaded, state = model.state_dict(), sam.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_weights_that_are_not_the_networks_own_are_refused(folder):
    path, state = folder
    config = path / "config.json"
    text = json.loads(config.read_text())
    config.write_text(json.dumps({**text, "depths": [1, 1, 2, 1]}))
    with pytest.raises(
        ModelError, match=r"its weights lack segformer\.\S*; they are not those of a Segformer"
    ):
        build_model(f"transformers:{path}", "imagenet")
    config.write_text(json.dumps(text))
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"evenslice does not open pickled ones"):
        build_model(f"transformers:{path}", "imagenet")


@pytest.mark.parametrize("name", [f"segformer?{TINY}", f"vit?{VIT}"])
def test_a_file_of_transformers_names_some_layers_as_in_older_versions(name, tmp_path, capfd):
    saved, _ = build_model(f"transformers:{name}", "none", seed=1)
    saved.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    names = load_file(file).keys()
    assert names != saved.state_dict().keys()  # else this shows nothing
    capfd.readouterr()
    model, source = build_model(f"transformers:{name}", str(file))
    assert capfd.readouterr() == ("", "")
    assert (source.random, source.unused) == ((), ())
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in model.state_dict().items())
    save_file({key: value for key, value in load_file(file).items() if "0" not in key}, file)
    with pytest.raises(ModelError, match="keys missing"):
        build_model(f"transformers:{name}", str(file))


# Specifications that mean nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "weights", "message"),
    [
        ("monai:UNett", "none", "did you mean 'UNet'"),
        ("monai:UNet/resnet18", "none", "UNet has no variants"),
        ("monai:FlexibleUNet/resnet19", "none", "cannot be built .*resnet19"),
        ("monai:UNet?nonsense=1", "none", "cannot be built .*'nonsense'"),
        ("monai:FlexibleUNet/efficientnet-b8", "imagenet", "efficientnet-b0 to -b7 only"),
        ("transformers:.", "none", r"\. is not a folder with a config\.json"),
        ("transformers:vit?nonsense=1", "none", "has no 'nonsense'"),
        ("transformers:vit?num_labels=3", "none", "num_labels is not allowed here"),
        (
            "transformers:vit?task=depth-estimation",
            "none",
            "has no vit for depth-estimation; it has it for image-",
        ),
        ("transformers:vit", "imagenet", "a model type has no weights"),
        *(
            ("transformers:nvidia/mit-b0", weights, "the hub did not provide it")
            for weights in ("none", "imagenet")
        ),
    ],
)
def test_specification_that_means_nothing(spec, weights, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        build_model(spec, weights)
    assert "\n" not in str(caught.value)
