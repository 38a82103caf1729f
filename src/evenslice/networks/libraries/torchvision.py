"""Networks of torchvision: ``torchvision:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice._core import ModelError, did_you_mean
from evenslice.networks.libraries.library import IMAGENET, PLAIN, Library

if TYPE_CHECKING:
    from torch import nn

    from evenslice.networks.libraries.library import Built
    from evenslice.networks.specification import Specification

__all__ = ["TORCHVISION"]

FILLED = ("body", "features")
"""Parts of a detector's backbone that have ImageNet's weights."""


def _build(specification: Specification, pretrained: bool) -> Built:
    from torchvision import models as zoo

    detectors = zoo.list_models(module=zoo.detection)
    on_backbones = [*zoo.list_models(module=zoo.segmentation), *detectors]
    known = [*zoo.list_models(module=zoo), *on_backbones]
    if specification.name not in known:
        raise ModelError(
            f"{specification.text}: torchvision has no network {specification.name!r}; "
            f"{did_you_mean(specification.name, known)}"
        )
    if specification.inputs != 3:
        raise ModelError(
            f"{specification.text}: torchvision builds networks of 3 inputs only, these weights have "
            f"{specification.inputs}"
        )
    if specification.name in on_backbones:
        model, random = _on_backbone(specification, pretrained)
    else:
        model, random = _classifier(specification, pretrained)
    # Read by evenslice's normalization, as timm's networks carry it. A detector scales its input itself.
    if specification.name in detectors:
        model.pretrained_cfg = PLAIN
    elif specification.name in on_backbones:
        model.pretrained_cfg = IMAGENET
    else:
        model.pretrained_cfg = _scaling(specification.name)
    return model, random


def _scaling(name: str) -> dict[str, tuple[float, ...]]:
    """Return the mean and std that the default weights of a classifier were trained with."""
    from torchvision import models as zoo

    transforms = zoo.get_model_weights(name).DEFAULT.transforms()
    return {"mean": tuple(transforms.mean), "std": tuple(transforms.std)}


def _classes(specification: Specification) -> dict[str, Any]:
    return {} if specification.classes is None else {"num_classes": specification.classes}


def _classifier(specification: Specification, pretrained: bool) -> tuple[Any, tuple[str, ...]]:
    from torchvision import models as zoo

    classes = _classes(specification)
    if not pretrained:
        return zoo.get_model(specification.name, weights=None, **classes, **specification.arguments), ()
    model = zoo.get_model(specification.name, weights="DEFAULT", **specification.arguments)
    if not classes:
        return model, ()
    donor = zoo.get_model(specification.name, weights=None, **classes, **specification.arguments)
    return model, _transplant_heads(model, donor)


def _on_backbone(specification: Specification, pretrained: bool) -> tuple[Any, tuple[str, ...]]:
    """Build a segmentation or a detection network, of which ImageNet's weights are the backbone's."""
    from torchvision import models as zoo

    backbone = {} if pretrained else {"weights_backbone": None}
    model: Any = zoo.get_model(
        specification.name, weights=None, **backbone, **_classes(specification), **specification.arguments
    )
    parts = [name for name, part in model.named_children() if next(part.parameters(), None) is not None]
    random = [name for name in parts if name != "backbone"]
    # What a detector adds to its backbone, such as a feature pyramid, has no weights either.
    added = (
        [name for name, _ in model.backbone.named_children() if name not in FILLED]
        if _is_detector(model)
        else []
    )
    return model, (*(f"backbone.{name}" for name in added), *random)


def _is_detector(model: nn.Module) -> bool:
    return hasattr(model, "transform")


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
    build=_build,
    reserved=frozenset({"num_classes", "weights", "weights_backbone"}),
)
