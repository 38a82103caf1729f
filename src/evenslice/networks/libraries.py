"""How evenslice builds the networks of timm, segmentation_models_pytorch, torchvision and MONAI; and hubs of weights."""

from __future__ import annotations

import inspect
import socket
import ssl
import sys
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from evenslice._core import needs_extra
from evenslice.networks.inputs import IMAGENET, PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from torch import Tensor, nn

    from evenslice.networks.specification import Specification

    Built: TypeAlias = tuple[nn.Module, tuple[str, ...]]

SEGMENTER_CLASSES = 2  # by default: background and one structure
TIMEOUT = 10.0  # seconds to wait for a hub's answer
FILLED = ("body", "features")
"""Parts of a detector's backbone in torchvision that have ImageNet's weights."""


@dataclass(frozen=True)
class Library:
    """How to build the networks of a library.

    Attributes:
        package: what has to be importable.
        extra: the optional dependencies that install it.
        build: builds the network of a specification, pretrained or not; returns it with the top-level parts that the
            library's weights leave random. A failed connection is an ``OSError``.
        reserved: arguments of the library's builders that evenslice sets.
        classes: default number of classes; None leaves it to the library.
        inputs: by lower-case name, channels of the input of networks that cannot take 3.
        translate: gives tensors that the library has saved for a network the names that they have in it; None if these
            are the same.
    """

    package: str
    extra: str
    build: Callable[[Specification, bool], Built]
    reserved: frozenset[str]
    classes: int | None = None
    inputs: Mapping[str, int] = field(default_factory=dict)
    translate: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None


@contextmanager
def hub_with_timeout(*, asked: bool = True) -> Iterator[None]:
    """In the block, let hubs fail at once if there is no network, instead of after minutes of retries.

    What a hub has cached is found either way. Progress goes to standard error.

    Args:
        asked: whether a hub may be asked at all; a library that tries gets an OSError if not.
    """
    with needs_extra("models", "reading weights from a hub"):
        from huggingface_hub import constants

    timeout, offline = socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE
    socket.setdefaulttimeout(TIMEOUT)
    constants.HF_HUB_OFFLINE = offline or not (asked and _answers(constants.ENDPOINT))
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)


def _answers(url: str) -> bool:
    """Tell whether anything answers at an address, even with an error or an untrusted certificate."""
    try:
        urlopen(Request(url, method="HEAD")).close()  # noqa: S310  # the hub's address, from its own library
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


def _build_timm(specification: Specification, pretrained: bool) -> Built:
    import timm

    _check_timm(specification, specification.name, pretrained)
    model: Any = timm.create_model(
        specification.name,
        pretrained=pretrained,
        in_chans=specification.inputs,
        **_classes(specification),
        **specification.arguments,
    )
    config = model.pretrained_cfg
    if specification.classes in (None, config.get("num_classes")):
        return model, ()
    classifiers = config.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    return model, tuple(dict.fromkeys(name.partition(".")[0] for name in classifiers))


def _check_timm(specification: Specification, name: str, pretrained: bool) -> None:
    """Refuse a name that timm does not know, or of which it has no pretrained weights where they are asked for."""
    import timm

    specification.require(name.partition(".")[0], timm.list_models(), "timm has no network")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise specification.error(f"timm has no pretrained weights for {name}; give a weights file, or none")


TIMM = Library(
    package="timm",
    extra="models",
    build=_build_timm,
    reserved=frozenset({"in_chans", "num_classes", "pretrained"}),
)


def _build_smp(specification: Specification, pretrained: bool) -> Built:
    import segmentation_models_pytorch as smp

    name, slash, encoder = specification.name.partition("/")
    if not slash:
        raise specification.error("no encoder; write smp:DECODER/ENCODER, such as smp:Unet/resnet34")
    decoders = smp.MODEL_ARCHITECTURES_MAPPING
    names = {decoder.__name__.lower(): decoder.__name__ for decoder in decoders.values()}
    specification.require(names.get(name.lower(), name), names.values(), "smp has no decoder")
    decoder = decoders[name.lower()]
    if specification.timm_name:
        _check_timm(specification, specification.timm_name, pretrained)
    else:
        _check_smp_encoder(specification, encoder, pretrained)
        _check_smp_arguments(specification, decoder)
    model = decoder(
        encoder_name=encoder,
        encoder_weights=(True if specification.timm_name else "imagenet") if pretrained else None,
        in_channels=specification.inputs,
        classes=specification.outputs,
        **specification.arguments,
    )
    return model, tuple(name for name, _ in model.named_children() if name != "encoder")


def _check_smp_encoder(specification: Specification, encoder: str, pretrained: bool) -> None:
    import timm
    from segmentation_models_pytorch.encoders import encoders

    known = [*encoders, *(f"tu-{name}" for name in timm.list_models())]
    specification.require(encoder, known, "smp has no encoder")
    settings = encoders[encoder]["pretrained_settings"]
    if pretrained and "imagenet" not in settings:
        raise specification.error(
            f"smp has no imagenet weights for this encoder, only {', '.join(settings)}; give a file"
        )


def _check_smp_arguments(specification: Specification, decoder: type[nn.Module]) -> None:
    """Refuse arguments that the decoder does not know: smp's own encoders would swallow them."""
    known = inspect.signature(decoder).parameters.keys() - {"kwargs"} - SMP.reserved
    for argument in specification.arguments:
        specification.require(argument, known, f"{decoder.__name__} takes no argument")


SMP = Library(
    package="segmentation_models_pytorch",
    extra="models",
    build=_build_smp,
    reserved=frozenset({"classes", "encoder_name", "encoder_weights", "in_channels"}),
    classes=SEGMENTER_CLASSES,
)


def _build_torchvision(specification: Specification, pretrained: bool) -> Built:
    from torchvision import models as zoo

    name, detectors = specification.name, zoo.list_models(module=zoo.detection)
    on_backbones = [*zoo.list_models(module=zoo.segmentation), *detectors]
    specification.require(name, [*zoo.list_models(module=zoo), *on_backbones], "torchvision has no network")
    if specification.inputs != 3:
        raise specification.error(
            f"torchvision builds networks of 3 inputs only, these weights have {specification.inputs}"
        )
    build = _on_backbone if name in on_backbones else _classifier
    model, random = build(specification, pretrained)
    # Read by evenslice's normalization, as timm's networks carry it. A detector scales its input itself.
    if name in on_backbones:
        model.pretrained_cfg = PLAIN if name in detectors else IMAGENET
    else:  # as the default weights of a classifier were trained
        transforms = zoo.get_model_weights(name).DEFAULT.transforms()
        model.pretrained_cfg = {"mean": tuple(transforms.mean), "std": tuple(transforms.std)}
    return model, random


def _classes(specification: Specification) -> dict[str, Any]:
    return {} if specification.classes is None else {"num_classes": specification.classes}


def _classifier(specification: Specification, pretrained: bool) -> tuple[Any, tuple[str, ...]]:
    from torchvision.models import get_model

    name, classes, arguments = specification.name, _classes(specification), specification.arguments
    model = get_model(name, weights="DEFAULT", **arguments) if pretrained else None
    if model is not None and not classes:
        return model, ()
    drawn = get_model(name, weights=None, **classes, **arguments)
    return (drawn, ()) if model is None else (model, _transplant_heads(model, drawn))


def _on_backbone(specification: Specification, pretrained: bool) -> tuple[Any, tuple[str, ...]]:
    """Build a segmentation or a detection network, of which ImageNet's weights are the backbone's."""
    from torchvision.models import get_model

    backbone = {} if pretrained else {"weights_backbone": None}
    model: Any = get_model(
        specification.name, weights=None, **backbone, **_classes(specification), **specification.arguments
    )
    parts = [name for name, part in model.named_children() if next(part.parameters(), None) is not None]
    # What a detector adds to its backbone, such as a feature pyramid, has no weights either.
    whole = model.backbone if hasattr(model, "transform") else None
    added = [f"backbone.{name}" for name, _ in whole.named_children() if name not in FILLED] if whole else []
    return model, (*added, *(name for name in parts if name != "backbone"))


def _transplant_heads(model: nn.Module, donor: nn.Module) -> tuple[str, ...]:
    """Replace the layers whose number of classes differs by those of another network; return their top-level parts.

    A part that holds layers stays, as the encoder of a vision transformer, whose position embedding fits the size of
    the images that the weights were trained with.
    """
    replaced = []
    for name, module in list(model.named_modules()):
        if any(module.children()):
            continue
        shapes = [tuple(parameter.shape) for parameter in module.parameters(recurse=False)]
        other = donor.get_submodule(name) if shapes else module
        if shapes != [tuple(parameter.shape) for parameter in other.parameters(recurse=False)]:
            model.set_submodule(name, other)
            replaced.append(name.partition(".")[0])
    return tuple(dict.fromkeys(replaced))


TORCHVISION = Library(
    package="torchvision",
    extra="models",
    build=_build_torchvision,
    reserved=frozenset({"num_classes", "weights", "weights_backbone"}),
)

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


def _build_monai(specification: Specification, pretrained: bool) -> Built:
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
    if pretrained and variant not in url_map:  # MONAI has no other weights for 2-D images, or pickled ones
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
    build=_build_monai,
    reserved=frozenset({*_INPUTS, *_OUTPUTS, "pretrained", "spatial_dims"}),
    classes=SEGMENTER_CLASSES,
    # VNet adds its input, repeated, to 16 features.
    inputs={"vnet": 1},
)
