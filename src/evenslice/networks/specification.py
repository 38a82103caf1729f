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

No specification may set, at any depth of a mapping, by what the libraries' builders read further files or run code that comes
with a network: evenslice reads weights itself, without unpickling.
"""

from __future__ import annotations

import ast
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from evenslice._core import ModelError, did_you_mean

_CODE = {
    "allow_all_kernels",  # transformers: compiled code from the hub
    "checkpoint_path",  # timm: unpickled before 1.0.26
    *("code_revision", "kernel_config", "pretrained_cfg_overlay", "trust_remote_code", "use_kernels"),
}
_LOADERS = _CODE | {
    "pretrained_url",  # MONAI's HoVerNet: downloads and unpickles
    *("cache_dir", "encoder_weights", "gguf_file", "pretrained", "pretrained_cfg", "pretrained_filter_fn"),
    *("pretrained_model_args", "pretrained_state_dict_key", "quantization_config", "state_dict"),
    *("weights", "weights_backbone", "weights_only"),
}
_NESTED = ("backbone_kwargs", "model_args")  # settings that transformers passes on to a builder of timm

# transformers downloads and runs an implementation of attention that is named like a repository on the hub.
_IMPLEMENTATION = re.compile(r"_?(?:attn|experts)_implementation(?:_internal)?")
_IMPLEMENTATIONS = (None, "eager", "sdpa")
# timm: a network by the configuration in a folder or on the hub.
_SOURCE = re.compile(r"(?:hf[-_]hub|local-dir):")


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

    def error(self, message: str) -> ModelError:
        """Return an error that names the specification."""
        return ModelError(f"{self.text}: {message}")

    def require(self, name: str, known: Iterable[str], lacks: str) -> None:
        """Raise ModelError unless a name is known.

        Args:
            name: the name.
            known: all that there are.
            lacks: what to say in front of any other name, such as "timm has no network".
        """
        known = list(known)
        if name not in known:
            raise self.error(f"{lacks} {name!r}; {did_you_mean(name, known)}")


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


def find_loader(arguments: Any) -> str | None:
    """Return the first argument, at any depth, that reads further files or runs code; None if there is none.

    Example:
        >>> find_loader({"depth": 4, "backbone_kwargs": {"checkpoint_path": "a.pth"}}), find_loader({"depth": 4})
        ('checkpoint_path', None)
    """
    return next(
        (name for name, value in _settings(arguments) if name in _LOADERS or _runs(name, value)), None
    )


def find_loader_in_configuration(configuration: Any) -> str | None:
    """Return the first setting in a configuration of transformers that reads further files or runs code.

    Published configurations state some loaders that transformers then ignores, such as ``pretrained_cfg``; those which
    reach a builder are refused, and ``trust_remote_code``, which some releases followed.
    """
    for name, value in _settings(configuration):
        if (name in _CODE and value) or _runs(name, value):
            return name
        if name in _NESTED and (nested := find_loader(value)):
            return nested
    return None


def _settings(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values at all depths; an element of a list has the list's name."""
    pending: deque[tuple[str, Any]] = deque([("", values)])
    while pending:
        name, value = pending.popleft()
        yield name, value
        if isinstance(value, Mapping):
            pending += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(name, inner) for inner in value]


def _runs(name: str, value: Any) -> bool:
    if _IMPLEMENTATION.fullmatch(name):
        chosen = value.values() if isinstance(value, Mapping) else [value]
        return any(each not in _IMPLEMENTATIONS for each in chosen)
    return isinstance(value, str) and _SOURCE.match(value) is not None
