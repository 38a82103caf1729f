"""Arguments and settings by which the libraries' builders read further files or run code that comes with a network.

No specification may set them, at any depth of a mapping: evenslice reads weights itself, bounded and without
unpickling.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find_loader", "find_loader_in_configuration"]

_CODE = frozenset(
    {
        "allow_all_kernels",  # transformers: compiled code from the hub
        "checkpoint_path",  # timm: unpickled before 1.0.26
        "code_revision",
        "kernel_config",
        "pretrained_cfg_overlay",
        "trust_remote_code",
        "use_kernels",
    }
)
_LOADERS = _CODE | {
    "cache_dir",
    "encoder_weights",
    "gguf_file",
    "pretrained",
    "pretrained_cfg",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "pretrained_state_dict_key",
    "pretrained_url",  # MONAI's HoVerNet: downloads and unpickles
    "quantization_config",
    "state_dict",
    "weights",
    "weights_backbone",
    "weights_only",
}
_NESTED = ("backbone_kwargs", "model_args")  # settings that transformers passes on to a builder of timm

# transformers downloads and runs an implementation of attention that is named like a repository on the hub.
_IMPLEMENTATION = re.compile(r"_?(?:attn|experts)_implementation(?:_internal)?")
_IMPLEMENTATIONS = (None, "eager", "sdpa")
# timm: a network by the configuration in a folder or on the hub.
_SOURCE = re.compile(r"(?:hf[-_]hub|local-dir):")


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
