"""Networks of segmentation_models_pytorch: ``smp:DECODER/ENCODER``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from evenslice._core import ModelError, did_you_mean
from evenslice.networks.libraries.library import Library
from evenslice.networks.libraries.timm import check_timm

if TYPE_CHECKING:
    from torch import nn

    from evenslice.networks.libraries.library import Built
    from evenslice.networks.specification import Specification

__all__ = ["SMP"]

CLASSES = 2  # by default: background and one structure


def _build(specification: Specification, pretrained: bool) -> Built:
    import segmentation_models_pytorch as smp

    name, slash, encoder = specification.name.partition("/")
    if not slash:
        raise ModelError(
            f"{specification.text}: no encoder; write smp:DECODER/ENCODER, such as smp:Unet/resnet34"
        )
    decoder = smp.MODEL_ARCHITECTURES_MAPPING.get(name.lower())
    if decoder is None:
        known = [decoder.__name__ for decoder in smp.MODEL_ARCHITECTURES_MAPPING.values()]
        raise ModelError(f"{specification.text}: smp has no decoder {name!r}; {did_you_mean(name, known)}")
    if specification.timm_name:
        check_timm(specification, specification.timm_name, pretrained)
    else:
        _check_encoder(specification, encoder, pretrained)
        _check_arguments(specification, decoder)
    model = decoder(
        encoder_name=encoder,
        encoder_weights=(True if specification.timm_name else "imagenet") if pretrained else None,
        in_channels=specification.inputs,
        classes=specification.outputs,
        **specification.arguments,
    )
    return model, tuple(name for name, _ in model.named_children() if name != "encoder")


def _check_encoder(specification: Specification, encoder: str, pretrained: bool) -> None:
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if encoder not in encoders:
        known = [*encoders, *(f"tu-{name}" for name in timm.list_models())]
        raise ModelError(
            f"{specification.text}: smp has no encoder {encoder!r}; {did_you_mean(encoder, known)}"
        )
    settings = encoders[encoder]["pretrained_settings"]
    if pretrained and "imagenet" not in settings:
        raise ModelError(
            f"{specification.text}: smp has no imagenet weights for this encoder, only "
            f"{', '.join(settings)}; give a file"
        )


def _check_arguments(specification: Specification, decoder: type[nn.Module]) -> None:
    """Refuse arguments that the decoder does not know: smp's own encoders would swallow them."""
    known = inspect.signature(decoder).parameters.keys() - {"kwargs"} - SMP.reserved
    if unknown := sorted(specification.arguments.keys() - known):
        raise ModelError(
            f"{specification.text}: {decoder.__name__} takes no argument {unknown[0]!r}; "
            f"{did_you_mean(unknown[0], known)}"
        )


SMP = Library(
    package="segmentation_models_pytorch",
    extra="models",
    build=_build,
    reserved=frozenset({"classes", "encoder_name", "encoder_weights", "in_channels"}),
    classes=CLASSES,
)
