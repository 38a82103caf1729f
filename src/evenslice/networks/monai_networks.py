"""Networks of MONAI, in two dimensions: ``monai:NAME``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from evenslice.networks.libraries import IMAGENET, SEGMENTER_CLASSES, Library

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from evenslice.networks.libraries import Built
    from evenslice.networks.specification import Specification

_LEVELS = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2)}
_PATCHES = {"img_size": (96, 96), "patch_size": (16, 16)}

_WITHOUT_ARGUMENTS = (
    *("AHNet", "BasicUNet", "BasicUNetPlusPlus", "HighResNet", "HoVerNet", "MedNeXt", "Quicknat"),
    *("DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264", "SEResNet50", "SEResNet101", "SEResNet152"),
    *("SEResNext50", "SEResNext101", "SENet154", "SegResNet", "SegResNetDS", "SwinUNETR"),
    *("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200"),
)

NETWORKS: dict[str, Mapping[str, Any]] = {
    "AttentionUnet": _LEVELS,
    "AutoEncoder": {"channels": (16, 32, 64), "strides": (2, 2, 2)},
    "Classifier": {**_LEVELS, "in_shape": (96, 96)},
    "DynUNet": {"kernel_size": (3, 3, 3, 3), "strides": (1, 2, 2, 2), "upsample_kernel_size": (2, 2, 2)},
    "EfficientNetBN": {"model_name": "efficientnet-b0"},
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
    "SegResNetVAE": {"input_image_size": (96, 96)},
    "UNet": _LEVELS,
    "UNETR": {"img_size": (96, 96)},
    "ViT": {**_PATCHES, "classification": True},
    "ViTAutoEnc": _PATCHES,
    "VNet": {"dropout_dim": 2},
    **{name: {} for name in _WITHOUT_ARGUMENTS},
}
"""MONAI's networks that take one 2-D image, with values for the arguments that MONAI requires."""

# The argument after a slash, as in FlexibleUNet/efficientnet-b0.
_AFTER_SLASH = {"FlexibleUNet": "backbone", "EfficientNetBN": "model_name"}
# MONAI's names for the channels of the input and of the output.
_INPUTS = ("in_channels", "n_input_channels", "num_channels")
_OUTPUTS = ("out_channels", "num_classes", "classes", "out_classes")


def _build(specification: Specification, pretrained: bool) -> Built:
    from monai.networks import nets
    from monai.networks.nets.efficientnet import url_map

    head, slash, variant = specification.name.partition("/")
    names = {known.lower(): known for known in NETWORKS}
    name = names.get(head.lower(), head)
    specification.require(name, NETWORKS, "MONAI has no 2-D network")
    arguments = {**NETWORKS[name], **specification.arguments}
    if slash:
        if name not in _AFTER_SLASH:
            raise specification.error(f"{name} has no variants; write monai:{name}?argument=value")
        arguments[_AFTER_SLASH[name]] = variant
    variant = str(arguments.get(_AFTER_SLASH.get(name, ""), ""))
    builder = getattr(nets, name)
    known = _parameters(builder)
    arguments |= _own_arguments(specification, known, arguments)
    if (
        pretrained and variant not in url_map
    ):  # MONAI has no other weights for 2-D images, or only pickled ones
        raise specification.error(
            "evenslice reads imagenet weights from MONAI for efficientnet-b0 to -b7 only, as in"
            " monai:FlexibleUNet/efficientnet-b0; give a weights file, or none"
        )
    if "pretrained" in known:
        arguments["pretrained"] = pretrained
    model = builder(**arguments)
    model.pretrained_cfg = _stated(name, variant, arguments)
    if name == "FlexibleUNet":
        return model, tuple(part for part, _ in model.named_children() if part != "encoder")
    return model, () if specification.outputs == 1000 else ("_fc",)


def _own_arguments(
    specification: Specification, known: set[str], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that evenslice sets."""
    own: dict[str, Any] = {name: specification.inputs for name in _INPUTS if name in known}
    own |= {name: specification.outputs for name in _OUTPUTS if name in known}
    if "spatial_dims" in known:
        own["spatial_dims"] = 2
    if "in_shape" in known:
        own["in_shape"] = (specification.inputs, *_sides(arguments["in_shape"]))
    return own


def _stated(name: str, variant: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what evenslice reads of a network's input, in the form in which timm's networks carry it."""
    stated: dict[str, Any] = dict(IMAGENET) if variant.startswith("efficientnet") else {}
    size = arguments.get("img_size", arguments.get("in_shape", arguments.get("input_image_size")))
    if name == "HoVerNet":
        size = 270 if str(arguments.get("mode", "fast")).lower() == "original" else 256
    if size is not None:
        stated |= {"fixed_input_size": True, "input_size": (3, *_sides(size))}
    return stated


def _sides(size: Any) -> tuple[int, int]:
    y, x = (size, size) if isinstance(size, int) else size[-2:]
    return int(y), int(x)


def _parameters(builder: Callable[..., Any]) -> set[str]:
    """Return the arguments of a builder, and those that it passes on to the class that it builds or derives from."""
    from monai.networks.nets import ResNet

    sources = inspect.getmro(builder) if inspect.isclass(builder) else (builder, ResNet)
    own = [source for source in sources if source.__module__.startswith("monai.")]
    return {name for source in own for name in inspect.signature(source).parameters}


MONAI = Library(
    package="monai",
    extra="train",
    build=_build,
    reserved=frozenset({*_INPUTS, *_OUTPUTS, "pretrained", "spatial_dims"}),
    classes=SEGMENTER_CLASSES,
    # VNet adds its input, repeated, to 16 features.
    inputs={"vnet": 1},
)
