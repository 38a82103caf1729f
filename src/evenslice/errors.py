"""Every error that evenslice raises on purpose, and the two helpers that word them.

    EvensliceError
    ├── VolumeError         a volume that cannot be opened, read or scaled
    ├── ModelError          a network, its specification or its weights
    ├── ConfigError         an option or a configuration value
    ├── OutputError         a result that cannot be written where it was asked for
    └── MissingExtraError   a feature whose optional dependency is not installed (also an ImportError)

A message says what was wrong, where, and what would be right, in one line: the command line prints it after
``error:`` and stops with exit status 2.
"""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "ConfigError",
    "EvensliceError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "VolumeError",
    "nearest",
    "needs_extra",
]


class EvensliceError(Exception):
    """The root of the tree: catch this to catch everything that evenslice raises on purpose."""


class VolumeError(EvensliceError):
    """A volume cannot be opened, read or scaled."""


class ModelError(EvensliceError):
    """A network, its specification or its weights cannot be used as asked."""


class ConfigError(EvensliceError):
    """An option or a configuration value is not one that evenslice knows."""


class OutputError(EvensliceError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(EvensliceError, ImportError):
    """A feature needs an optional dependency that is not installed."""


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn a failed import in the block into an error that names the extra to install.

    Args:
        extra: the optional dependency group, as in ``pip install 'evenslice[extra]'``.
        what: the thing that needs it, as it should read in the message ("reading a TIFF volume").

    Raises:
        MissingExtraError: a module imported in the block is not installed.

    Example:
        >>> with needs_extra("volumes", "reading a TIFF volume"):
        ...     import tifffile
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the package {error.name!r}; install it with: pip install 'evenslice[{extra}]'"
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that helps with a misspelt name.

    Args:
        name: what the user wrote.
        known: every name that would have been right.

    Returns:
        ``"did you mean 'uniform'? known: center, uniform"``; long lists are cut to the six nearest.

    Example:
        >>> nearest("unifrom", ["center", "uniform"])
        "did you mean 'uniform'? known: center, uniform"
        >>> nearest("x", ["center", "uniform"])
        'known: center, uniform'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=6, cutoff=0.5)
    shown = known if len(known) <= 12 else (close or known[:6])
    listing = ", ".join(shown) + ("" if len(shown) == len(known) else f", … ({len(known)} in all)")
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {listing}"
