"""Typed values read back from the plain values of a JSON document."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = ["from_plain"]


def from_plain(kind: Any, value: Any) -> Any:
    """Rebuild a value of a type from what ``dataclasses.asdict`` and JSON made of it.

    A dataclass is read from an object: entries it does not know are ignored, fields with a default may be missing. A
    float may be null, which is NaN.

    Args:
        kind: a dataclass, ``tuple``, ``dict`` with text as keys, ``Literal``, union, plain type or ``Any``.
        value: the plain value.

    Raises:
        TypeError: the value is not of that type.

    Example:
        >>> from_plain(tuple[float, ...], [1, None])
        (1.0, nan)
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        names = [entry.name for entry in fields(kind) if entry.name in value]
        return kind(**{name: from_plain(hints[name], value[name]) for name in names})  # type: ignore[operator]
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(from_plain(*pair) for pair in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(name): from_plain(arguments[1], item) for name, item in value.items()}
    if value is None and NoneType in arguments:
        return None
    if origin is UnionType:
        for option in arguments:
            with suppress(TypeError):
                return from_plain(option, value)
    if kind is float and (value is None or isinstance(value, int)):
        value = math.nan if value is None else float(value)
    if (
        value in arguments
        if origin is Literal
        else kind is Any or (isinstance(kind, type) and isinstance(value, kind))
    ):
        return value
    raise TypeError(f"{value!r:.40} is not of type {getattr(kind, '__name__', kind)}")
