"""Networks of torchvision: ``torchvision:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice.errors import ModelError, nearest
from evenslice.libraries.library import IMAGENET, PLAIN, Library

if TYPE_CHECKING:
    from torch import nn

    from evenslice.libraries.library import Built
    from evenslice.libraries.plans import Plan

__all__ = ["TORCHVISION"]


def _build(plan: Plan, pretrained: bool) -> Built:
    from torchvision import models as zoo

    detectors = zoo.list_models(module=zoo.detection)
    on_backbones = [*zoo.list_models(module=zoo.segmentation), *detectors]
    known = [*zoo.list_models(module=zoo), *on_backbones]
    if plan.name not in known:
        raise ModelError(
            f"{plan.spec}: torchvision has no network {plan.name!r}; {nearest(plan.name, known)}"
        )
    if plan.inputs != 3:
        raise ModelError(
            f"{plan.spec}: torchvision builds networks of 3 inputs only, these weights have {plan.inputs}"
        )
    if plan.name in on_backbones:
        model, random = _on_backbone(plan, pretrained)
    else:
        model, random = _classifier(plan, pretrained)
    # Read by evenslice's normalization, as timm's networks carry it. A detector scales its input itself.
    model.pretrained_cfg = PLAIN if plan.name in detectors else IMAGENET
    return model, random


def _classes(plan: Plan) -> dict[str, Any]:
    return {} if plan.classes is None else {"num_classes": plan.classes}


def _classifier(plan: Plan, pretrained: bool) -> tuple[Any, tuple[str, ...]]:
    from torchvision import models as zoo

    classes = _classes(plan)
    if not pretrained:
        return zoo.get_model(plan.name, weights=None, **classes, **plan.arguments), ()
    model = zoo.get_model(plan.name, weights="DEFAULT", **plan.arguments)
    if not classes:
        return model, ()
    donor = zoo.get_model(plan.name, weights=None, **classes, **plan.arguments)
    return model, _transplant_heads(model, donor)


def _on_backbone(plan: Plan, pretrained: bool) -> tuple[Any, tuple[str, ...]]:
    """Build a segmentation or a detection network, of which ImageNet's weights are the backbone's."""
    from torchvision import models as zoo

    backbone = {} if pretrained else {"weights_backbone": None}
    model: Any = zoo.get_model(plan.name, weights=None, **backbone, **_classes(plan), **plan.arguments)
    parts = [name for name, part in model.named_children() if next(part.parameters(), None) is not None]
    return model, tuple(name for name in parts if name != "backbone")


def _transplant_heads(model: nn.Module, donor: nn.Module) -> tuple[str, ...]:
    """Replace the layers whose number of classes differs by those of another network; return their top-level parts."""
    replaced = []
    for name, module in list(model.named_modules()):
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
