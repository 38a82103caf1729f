"""Every error that evenslice raises on purpose, and what words their messages.

    EvensliceError
    ├── VolumeError         a volume that cannot be opened, read or scaled
    ├── ModelError          a network, its specification or its weights
    ├── ConfigError         an option or a configuration value
    ├── OutputError         a result that cannot be written where it was asked for
    └── MissingExtraError   a feature whose optional dependency is not installed (also an ImportError)

A message says what was wrong, where, and what would be right, in one line: the command line prints it after
``error:`` and stops with exit status 2. An option that a message names is marked by ``option``, so that each reader sees
it as they write it: ``fill`` in Python, ``--fill`` on the command line, ``data.fill`` in a configuration.
"""

from __future__ import annotations

import difflib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    Spelling: TypeAlias = Callable[[str, Any], str]

__all__ = [
    "ConfigError",
    "EvensliceError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "VolumeError",
    "nearest",
    "needs_extra",
    "option",
    "spelled_on_command_line",
]


_MARK = "\x00"  # no path and no terminal has it


def option(name: str, value: Any = None) -> str:
    """Mark an option in the message of an error, for each reader to see as they write it.

    Args:
        name: its name as a Python argument.
        value: a value to show with it: a number, a string, a list or a mapping of these.

    Example:
        >>> error = ConfigError(f"has no names; give {option('axes', 'tzyx')}")
        >>> str(error)
        "has no names; give axes='tzyx'"
        >>> error.render(spelled_on_command_line)
        'has no names; give --axes tzyx'
    """
    return f"{_MARK}{json.dumps([name, value])}{_MARK}"


def spelled_in_python(name: str, value: Any) -> str:
    """Spell an option as an argument."""
    return name if value is None else f"{name}={value!r}"


def spelled_on_command_line(name: str, value: Any) -> str:
    """Spell an option as the command line takes it.

    Example:
        >>> spelled_on_command_line("select", {"t": 0, "c": 1})
        '--select t=0 --select c=1'
    """
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, dict):
        return " ".join(f"{flag} {key}={item}" for key, item in value.items())
    words = value if isinstance(value, list) else [] if value is None else [value]
    return " ".join(map(str, [flag, *words]))


class EvensliceError(Exception):
    """The root of the tree: catch this to catch everything that evenslice raises on purpose."""

    def __str__(self) -> str:
        return self.render(spelled_in_python)

    def render(self, spelling: Spelling) -> str:
        """Return the message with its options in some spelling.

        Args:
            spelling: takes the name of an option and the value shown with it, or None, and returns its text.
        """
        parts = str(self.args[0] if self.args else "").split(_MARK)
        parts[1::2] = [spelling(*json.loads(part)) for part in parts[1::2]]
        return "".join(parts)

    def within(self, place: str, spelling: Spelling) -> Self:
        """Return the same error with the place in a configuration where it arose, and options as they are named there."""
        return type(self)(f"{place}: {self.render(spelling)}")


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


for _kind in (EvensliceError, VolumeError, ModelError, ConfigError, OutputError, MissingExtraError):
    _kind.__module__ = "evenslice"  # the one home that users know; tracebacks name it
