"""Documents of results: one writer and one reader for every dataclass that a JSON document or an ``.npz`` file holds.

    to_plain(found)                                  # lists, dicts, numbers and text, for JSON
    from_plain(AuditRun, document)                   # checked field by field, as the annotations say
    from_arrays(ExampleWindows, arrays, "examples/")  # likewise; shapes as in Annotated[Floats, "n 3"]

Metadata of a field state where a document differs from it: ``{"key": "non_inferiority/p"}`` is the entry, nested in others;
the entries of an ``INLINE`` field stand beside those of the others, an ``UNWRITTEN`` one has none; and ``PAIRS`` or ``SLICES``
give each item its ``offset``.

Files may be damaged, or come from anyone. All errors of the readers are of the kinds ``UNREADABLE``, and name the entry.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from evenslice._core import open_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = 1
DEFINITIONS = 2
"""The definitions of the figures: 1 are those of versions 0.1 and 0.2, which are not pooled or compared with these."""

SLICES: Final = {"first": lambda count: -(count // 2)}
PAIRS: Final = {"first": lambda _: 1}
"""Metadata of fields with an item for each slice of a window, -K..K, and for each pair, 1..K."""

INLINE: Final = {"key": ""}
UNWRITTEN: Final = {"key": None}


def checked(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document after a check of its format, with the definitions of its figures: 1 if it does not say."""
    found = {"definitions": 1, **document}
    for name, known in {"format": (FORMAT,), "definitions": (1, DEFINITIONS)}.items():
        if found[name] not in known:
            raise ValueError(
                f"{name} {found[name]!r:.40}, this version reads {' and '.join(map(str, known))}"
            )
    return found


def to_plain(value: Any) -> Any:
    """Return a value as ``from_plain`` reads it, of dicts, lists, numbers and text.

    Example:
        >>> to_plain({"a": (1, None)})
        {'a': [1, None]}
    """
    if is_dataclass(value):
        plain: dict[str, Any] = {}
        for entry in _written(value):
            *outer, key = _keys(entry)
            holder, found = plain, to_plain(getattr(value, entry.name))
            for name in outer:
                holder = holder.setdefault(name, {})
            if "first" in entry.metadata:
                first = entry.metadata["first"](len(found))
                found = [{"offset": k, **item} for k, item in enumerate(found, first)]
            holder.update({key: found} if key else found)
        return plain
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def from_plain(kind: Any, value: Any, place: str = "") -> Any:
    """Rebuild a value of a type from what ``to_plain`` and JSON made of it.

    A dataclass is read from an object: entries that it does not know are ignored, fields with a default may be missing.
    A float may be null, which is NaN; whole numbers are at least 0.

    Args:
        kind: a dataclass, ``tuple``, ``dict``, ``Literal``, union, plain type or ``Any``.
        value: the plain value.
        place: its entry, for messages.

    Raises:
        TypeError: the value, or a part of it, is not of that type.
        ValueError: likewise, or a number is too large.

    Example:
        >>> from_plain(tuple[float, ...], [1, None])
        (1.0, nan)
        >>> from_plain(dict[str, tuple[int, ...]], {"seeds": [0, "1"]})
        Traceback (most recent call last):
        ...
        TypeError: seeds/1: '1' is not of type int, or negative
    """
    origin, arguments, inner = get_origin(kind), get_args(kind), f"{place}/" if place else ""
    if isinstance(value, dict) and is_dataclass(kind):
        build: Any = kind
        return build(**entries(kind, value, inner))
    if isinstance(value, dict) and origin is dict:
        return {name: from_plain(arguments[1], item, f"{inner}{name}") for name, item in value.items()}
    if isinstance(value, list) and origin is tuple:
        kinds = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        parts = enumerate(zip(kinds, value, strict=True))
        return tuple(from_plain(one, item, f"{inner}{n}") for n, (one, item) in parts)
    if origin in (UnionType, Union):
        if value is None and NoneType in arguments:
            return None
        known = [one for one in arguments if one is not NoneType]
        return from_plain(next((one for one in known if type(value) is one), known[-1]), value, place)
    return _scalar(kind, value, place)


def _scalar(kind: Any, value: Any, place: str) -> Any:
    if kind is float and value is None:
        return math.nan
    known = get_args(kind) if get_origin(kind) is Literal else ()
    fits = kind is Any or value in known or type(value) in ((int, float) if kind is float else (kind,))
    if not fits or (kind is int and value < 0):
        raise TypeError(
            f"{place}: {value!r:.40} is not of type {getattr(kind, '__name__', kind)}, or negative"
        )
    return float(value) if kind is float else value


def _written(kind: Any) -> list[Any]:
    """Return the fields of a dataclass that a document holds."""
    return [entry for entry in fields(kind) if entry.metadata.get("key", "") is not None]


def _keys(entry: Any) -> list[str]:
    """Return the entries, each in that before it, that hold a field; an empty name if its own stand beside the others."""
    return str(entry.metadata.get("key", entry.name)).split("/")


def entries(kind: Any, document: Mapping[str, Any], inner: str = "") -> dict[str, Any]:
    """Return what a document has of the fields of a dataclass, by name; see ``from_plain``."""
    hints, found = get_type_hints(kind, include_extras=True), {}
    for entry in _written(kind):
        value: Any = document
        for key in filter(None, _keys(entry)):
            value = value.get(key, MISSING) if isinstance(value, dict) else MISSING
        place = inner + "/".join(_keys(entry))
        if value is not MISSING:
            found[entry.name] = from_plain(hints[entry.name], value, place)
        elif (entry.default, entry.default_factory) == (MISSING, MISSING):
            raise ValueError(f"{place} is missing")
    return found


def read_arrays(path: Path, most: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file by name; nothing is unpickled.

    Args:
        path: the file.
        most: largest number of bytes of all arrays together.
    """
    with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
        size = sum(entry.file_size for entry in archive.zip.infolist())
        if size > most:
            raise ValueError(f"its arrays have {size:,} bytes; at most {most:,} are read")
        return dict(archive)


def to_arrays(value: Any, prefix: str) -> dict[str, NDArray[Any]]:
    """Return the fields of a dataclass of arrays by their names in a file."""
    return {f"{prefix}{entry.name}": getattr(value, entry.name) for entry in fields(value)}


def from_arrays(kind: Any, arrays: Mapping[str, NDArray[Any]], prefix: str = "", **sizes: int) -> Any:
    """Rebuild a dataclass of arrays from those of a file.

    Args:
        kind: the dataclass; its annotations tell the type of each array, and in letters the length of each axis: the same
            letter, the same length.
        arrays: those of the file.
        prefix: of their names.
        sizes: the lengths that are known.
    """
    found, hints = {}, get_type_hints(kind, include_extras=True)
    for name in (entry.name for entry in fields(kind)):
        array, (plain, shape) = arrays[prefix + name], get_args(hints[name])
        axes = shape.split()
        fits = array.ndim == len(axes) and array.dtype.kind == np.dtype(_element(plain)).kind
        for axis, length in zip(axes, array.shape, strict=False):
            fits = fits and length == (int(axis) if axis.isdigit() else sizes.setdefault(axis, length))
        if not fits:
            raise ValueError(
                f"{prefix}{name} is {array.dtype} of shape {array.shape}, where ({shape}) is read"
            )
        found[name] = array
    return kind(**found)


def _element(hint: Any) -> Any:
    """Return the type of the elements of an array's hint: ``NDArray[T]`` is an alias of its own in newer NumPy."""
    while arguments := get_args(hint):
        hint = arguments[-1]
    return hint
