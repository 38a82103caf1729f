"""Networks of segmentation_models_pytorch: ``smp:DECODER/ENCODER``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from evenslice.errors import ModelError, nearest
from evenslice.libraries.library import Library
from evenslice.libraries.timm import check_timm

if TYPE_CHECKING:
    from torch import nn

    from evenslice.libraries.library import Built
    from evenslice.libraries.plans import Plan

__all__ = ["SMP"]

CLASSES = 2  # unless another number is asked for: background and one thing


def _build(plan: Plan, pretrained: bool) -> Built:
    import segmentation_models_pytorch as smp

    name, slash, encoder = plan.name.partition("/")
    if not slash:
        raise ModelError(f"{plan.spec}: no encoder; write smp:DECODER/ENCODER, as smp:Unet/resnet34")
    decoder = smp.MODEL_ARCHITECTURES_MAPPING.get(name.lower())
    if decoder is None:
        known = [decoder.__name__ for decoder in smp.MODEL_ARCHITECTURES_MAPPING.values()]
        raise ModelError(f"{plan.spec}: smp has no decoder {name!r}; {nearest(name, known)}")
    if plan.timm_name:
        check_timm(plan, plan.timm_name, pretrained)
    else:
        _check_encoder(plan, encoder, pretrained)
        _check_arguments(plan, decoder)
    model = decoder(
        encoder_name=encoder,
        encoder_weights=(True if plan.timm_name else "imagenet") if pretrained else None,
        in_channels=plan.inputs,
        classes=plan.outputs,
        **plan.arguments,
    )
    return model, tuple(name for name, _ in model.named_children() if name != "encoder")


def _check_encoder(plan: Plan, encoder: str, pretrained: bool) -> None:
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if encoder not in encoders:
        known = [*encoders, *(f"tu-{name}" for name in timm.list_models())]
        raise ModelError(f"{plan.spec}: smp has no encoder {encoder!r}; {nearest(encoder, known)}")
    settings = encoders[encoder]["pretrained_settings"]
    if pretrained and "imagenet" not in settings:
        raise ModelError(
            f"{plan.spec}: smp has no imagenet weights for this encoder, only {', '.join(settings)}; give a file"
        )


def _check_arguments(plan: Plan, decoder: type[nn.Module]) -> None:
    """Refuse arguments that the decoder does not know: smp's own encoders would swallow them."""
    known = inspect.signature(decoder).parameters.keys() - {"kwargs"} - SMP.reserved
    if unknown := sorted(plan.arguments.keys() - known):
        raise ModelError(
            f"{plan.spec}: {decoder.__name__} takes no argument {unknown[0]!r}; {nearest(unknown[0], known)}"
        )


SMP = Library(
    package="segmentation_models_pytorch",
    extra="models",
    build=_build,
    reserved=frozenset({"classes", "encoder_name", "encoder_weights", "in_channels"}),
    classes=CLASSES,
)
