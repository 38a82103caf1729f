"""The networks of the sweep, by library."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple


class Network(NamedTuple):
    """A network of the sweep: its library, its name there, and the specification that builds it."""

    library: str
    name: str
    spec: str


# The smallest encoder of each of smp's own families, then some of timm's.
ENCODERS = (
    *("resnet18", "resnext50_32x4d", "dpn68", "vgg11", "vgg11_bn", "se_resnet50", "se_resnext50_32x4d"),
    *("densenet121", "inceptionresnetv2", "inceptionv4", "efficientnet-b0", "mobilenet_v2", "xception"),
    *("timm-efficientnet-b0", "timm-tf_efficientnet_lite0", "timm-skresnet18", "mit_b0", "mobileone_s0"),
    *("tu-convnext_atto", "tu-regnety_002", "tu-tf_efficientnet_lite0", "tu-tresnet_m"),
    "tu-vit_tiny_patch16_224",
)

# Every detection passes, so that what is compared hangs on the image; the image stays as small as it is.
_DETECTORS = {
    "fasterrcnn": "min_size=64&max_size=64&box_score_thresh=0",
    "fcos": "min_size=64&max_size=64&score_thresh=0",
    "keypointrcnn": "min_size=64&max_size=64&box_score_thresh=0",
    "maskrcnn": "min_size=64&max_size=64&box_score_thresh=0",
    "retinanet": "min_size=64&max_size=64&score_thresh=0",
    "ssd": "score_thresh=0",
}

_VIT = "hidden_size=192&num_attention_heads=3&intermediate_size=768"
_STAGES = "'out_features':['stage1','stage2','stage3','stage4']"
_SWIN = "{'model_type':'swin','embed_dim':48,'depths':[1,1,2,1]," + _STAGES + "}"
_CONVNEXT = "{'model_type':'convnext','hidden_sizes':[48,96,192,384],'depths':[1,1,2,1]," + _STAGES + "}"
_RESNET = "{'model_type':'resnet','depths':[1,1,2,1]," + _STAGES + "}"
_QUERIES = f"num_queries=16&decoder_layers=3&backbone_config={_SWIN}"


_AS_THEY_ARE = (
    *("segformer", "depth_anything", "glpn", "dinov3_vit", "dinov3_convnext", "swin", "convnext"),
    *("convnextv2", "hiera", "resnet", "regnet", "mobilevit", "mobilevitv2", "mobilenet_v2", "poolformer"),
    *("pvt_v2", "focalnet", "levit"),
)

# Name to configuration: the library's own architecture, made narrow or shallow where it is large.
_TRANSFORMERS = {
    **{name: name for name in _AS_THEY_ARE},
    "segformer-image-classification": "segformer?task=image-classification",
    "upernet-resnet": f"upernet?backbone_config={_RESNET}",
    "upernet-swin": f"upernet?backbone_config={_SWIN}&auxiliary_in_channels=192",
    "upernet-convnext": f"upernet?backbone_config={_CONVNEXT}&auxiliary_in_channels=192",
    "mask2former": f"mask2former?encoder_layers=2&{_QUERIES}",
    "maskformer": f"maskformer?backbone_config={_SWIN}",
    "dpt": f"dpt?{_VIT}&image_size=64&num_hidden_layers=4&backbone_out_indices=[0,1,2,3]",
    "dpt-depth-estimation": (
        f"dpt?task=depth-estimation&{_VIT}&image_size=64&num_hidden_layers=4&backbone_out_indices=[0,1,2,3]"
    ),
    "beit": f"beit?{_VIT}&image_size=64",
    "beit-image-classification": f"beit?task=image-classification&{_VIT}&image_size=64",
    "data2vec-vision": f"data2vec-vision?{_VIT}&image_size=64",
    "vit": f"vit?{_VIT}&image_size=64",
    "vit-feature-extraction": f"vit?task=feature-extraction&{_VIT}&image_size=64",
    "deit": f"deit?{_VIT}&image_size=64",
    "vit_msn": f"vit_msn?{_VIT}&image_size=64",
    "dinov2": "dinov2?hidden_size=192&num_attention_heads=3",
    "dinov2_with_registers": "dinov2_with_registers?hidden_size=192&num_attention_heads=3",
    "swinv2": "swinv2?image_size=64",
    "sam-image-encoder": "sam_vision_model?image_size=128&num_hidden_layers=2&global_attn_indexes=[1]",
    "eomt": "eomt?image_size=64&hidden_size=192&num_attention_heads=3&num_hidden_layers=4&num_blocks=1&num_queries=16",
    "clip-image-classification": "clip",
    "siglip-image-classification": "siglip",
    "pvt": "pvt?image_size=64",
    "yolos": f"yolos?{_VIT}&image_size=[64,64]&num_hidden_layers=4",
    "detr": "detr?task=object-detection&encoder_layers=2&decoder_layers=2",
}


def all_networks() -> list[Network]:
    """Return every network of the sweep, in the order of the libraries."""
    import segmentation_models_pytorch as smp
    import timm
    from torchvision import models as zoo

    from evenslice.networks.libraries import NETWORKS  # as they are reached by specification alone

    plain = [*zoo.list_models(module=zoo), *zoo.list_models(module=zoo.segmentation)]
    detectors = {
        name: next(f"{name}?{value}" for key, value in _DETECTORS.items() if name.startswith(key))
        for name in zoo.list_models(module=zoo.detection)
    }
    decoders = (decoder.__name__ for decoder in smp.MODEL_ARCHITECTURES_MAPPING.values())
    flexible = ("FlexibleUNet/efficientnet-b4", "FlexibleUNet/resnet18")
    small = dict.fromkeys(("ViT", "ViTAutoEnc", "UNETR"), "?img_size=64")
    found = {
        "timm": {name: name for name in timm.list_models()},
        "torchvision": {name: name for name in plain} | detectors,
        "smp": {name: name for name in map("/".join, product(decoders, ENCODERS))},
        "monai": {name: name + small.get(name, "") for name in (*NETWORKS, *flexible)},
        "transformers": _TRANSFORMERS,
    }
    return [
        Network(library, name, f"{library}:{spec}")
        for library, specs in found.items()
        for name, spec in specs.items()
    ]
