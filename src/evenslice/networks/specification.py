"""Specifications: which network, as a user writes it.

A specification names a library and a network, or a user's function:

    smp:Unet/resnet34                       segmentation_models_pytorch, DECODER/ENCODER
    smp:Unet/tu-tf_efficientnet_lite0       the same with one of timm's networks as encoder
    timm:convnext_tiny                      timm
    torchvision:deeplabv3_resnet50          torchvision, classification, segmentation and detection
    monai:SegResNet                         MONAI, in two dimensions
    monai:FlexibleUNet/efficientnet-b0      the same with one of its encoders
    transformers:nvidia/mit-b0              transformers: a network on the hub,
    transformers:path/to/folder             a folder with its config.json, or that file,
    transformers:segformer                  or a model type, with the library's own configuration
    package.module:function                 a function that returns a module; the current directory is importable

Keyword arguments of the builder, or of the configuration, may follow as Python or JSON literals:
``smp:Unet/resnet34?encoder_depth=4`` or ``timm:mobilenetv1_100?pad_type=same&bn_eps=1e-3``. evenslice adds
``task`` for transformers, to choose among the heads of a model type: ``transformers:dpt?task=depth-estimation``.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from evenslice._core import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LONGEST", "Specification", "parse_arguments"]

LONGEST = 1000
"""Most characters of a specification, which may come from a file of anyone's."""


@dataclass(frozen=True)
class Specification:
    """A parsed specification.

    Attributes:
        text: as the user wrote it.
        library: name of the library; empty for a user's function.
        name: the network's name in the library, or ``package.module:function``.
        arguments: keyword arguments of the builder.
        classes: requested channels of the output; None for the default of the library or the function.
        default_classes: the number of classes if none is requested; None leaves it to the library.
        seed: of random parts.
        inputs: channels of the input.
    """

    text: str
    library: str
    name: str
    arguments: Mapping[str, Any]
    classes: int | None
    seed: int
    default_classes: int | None = None
    inputs: int = 3

    @property
    def outputs(self) -> int | None:
        """Channels of the output; None if the library or the user's function chooses."""
        return self.classes or self.default_classes

    @property
    def timm_name(self) -> str | None:
        """Timm's name of the network, or of the encoder; None if it is not from timm."""
        if self.library == "timm":
            return self.name
        _, _, encoder = self.name.partition("/")
        return encoder.removeprefix("tu-") if self.library == "smp" and encoder.startswith("tu-") else None


def parse_arguments(text: str, query: str) -> dict[str, Any]:
    """Read ``a=1&b=true&c=same``; values are Python or JSON literals, else words.

    Args:
        text: the whole specification, for the message.
        query: what follows its question mark.

    Raises:
        ModelError: it is malformed.

    Example:
        >>> parse_arguments("timm:resnet18?a=1&b=true&c=same", "a=1&b=true&c=same")
        {'a': 1, 'b': True, 'c': 'same'}
    """
    arguments: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not (equals and key.isidentifier()) or key in arguments:
            raise ModelError(
                f"{text}: {item!r} is not an argument; write ?name=value&other=value, each name once"
            )
        arguments[key] = _literal(unquote(value))
    return arguments


def _literal(text: str) -> Any:
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        # The last two: too many brackets or signs.
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text
