"""Text made fit to be shown or kept: nothing that steers a terminal, no secrets, and no NaN in JSON."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any

__all__ = ["json_text", "printable", "without_secrets"]

PROTOCOLS = "https?|s3|gc?s|az|abfss?|s?ftp|ssh|hdfs|hf|file|zarr|n5|precomputed"
"""A pattern of what is known to start addresses, also one that lost a slash as pathlib took it for a path."""

# user:password@ after the scheme of an address, and everything behind its question mark but the sentence's punctuation.
_USER = re.compile(rf"(://|(?<![\w.])(?:{PROTOCOLS}):/)[^\s/?#]*@", re.IGNORECASE)
_QUERY = re.compile(
    rf"((?:\b[a-z][a-z0-9+.-]*://|(?<![\w.])(?:{PROTOCOLS}):/)[^\s?'\"<>]*)\?[^\s'\"<>]*[^\s'\"<>:;,.)]",
    re.IGNORECASE,
)
# What can steer a terminal, or is no text: JSON escapes only the first 32 characters by itself.
_INVISIBLE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return text with a question mark in place of every character that is not seen.

    These are control characters, which can start the escape sequences of a terminal, marks that change the direction
    of writing, and the bytes of a name that is not UTF-8. Spaces and line breaks stay; a tab becomes a space.

    Example:
        >>> printable("a\x1b[31mb\tc")
        'a?[31mb c'
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs":
        return character
    return " " if character == "\t" else "?"


def without_secrets(value: Any) -> Any:
    """Return a text, or all texts in a list or mapping, without the secrets of addresses: passwords and query strings.

    Example:
        >>> without_secrets("https://me:pass@host/a.zarr?token=abc: not found")
        'https://***@host/a.zarr?***: not found'
        >>> without_secrets("https:/me:pass@host/a.zarr")
        'https:/***@host/a.zarr'
        >>> without_secrets({"image": ["s3://bucket/a.zarr", "C:/a@b?c"]})
        {'image': ['s3://bucket/a.zarr', 'C:/a@b?c']}
    """
    if isinstance(value, str):
        return _QUERY.sub(r"\1?***", _USER.sub(r"\1***@", value)) if ":/" in value else value
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


def json_text(value: Any) -> str:
    """Return plain values as an indented JSON document; NaN and infinity, which JSON lacks, become null.

    Invisible characters, and bytes of names that are not UTF-8, are escaped.

    Example:
        >>> json_text([1.5, float("nan")]).split()
        ['[', '1.5,', 'null', ']']
    """
    text = json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if hasattr(value, "dtype") and hasattr(value, "item"):  # a number of NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
