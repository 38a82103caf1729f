"""The errors that evenslice raises, and helpers for their messages.

    EvensliceError
    ├── VolumeError         a volume cannot be opened, read or scaled
    ├── ModelError          a network, its specification or its weights cannot be used
    ├── ConfigError         an option or a configuration value is wrong
    ├── OutputError         a result cannot be written where it should go
    └── MissingExtraError   an optional dependency is not installed (also an ImportError)

A message is one line: where, what was wrong, and what would be right. The command line prints it after ``error:`` and
stops with exit status 2. ``option`` marks an option inside a message, so that each reader sees it as they write it:
``fill`` in Python, ``--fill`` on the command line, ``data.fill`` in a configuration.
"""

from __future__ import annotations

import csv
import difflib
import json
import operator
import re
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    Spelling: TypeAlias = Callable[[str, Any], str]


UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError),
    *(IndexError, MemoryError, OverflowError, RecursionError, csv.Error, zipfile.BadZipFile, zlib.error),
)
"""What json, csv, zipfile and NumPy raise on damaged or hostile files."""

PROTOCOLS = "https?|s3|gc?s|az|abfss?|s?ftp|ssh|hdfs|hf|file|zarr|n5|precomputed"
"""A pattern of what is known to start addresses, also one that lost a slash as pathlib took it for a path."""

# user:password@ after the scheme of an address, and everything behind its question mark but the sentence's punctuation.
_USER = re.compile(rf"(://|(?<![\w.])(?:{PROTOCOLS}):/)[^\s/?#]*@", re.IGNORECASE)
_QUERY = re.compile(
    rf"((?:\b[a-z][a-z0-9+.-]*://|(?<![\w.])(?:{PROTOCOLS}):/)[^\s?'\"<>]*)\?[^\s'\"<>]*[^\s'\"<>:;,.)]",
    re.IGNORECASE,
)

_MARK = "\x00\x1f"  # no text that a person wrote has it
_LONGEST = 2000  # characters of a message


def option(name: str, value: Any = None) -> str:
    """Mark an option in an error message, so that each reader sees it as they write it.

    Args:
        name: its name as a Python argument.
        value: a value to show with it: a number (of NumPy, too), a string, or a list or mapping of these.

    Example:
        >>> error = ConfigError(f"has no names; give {option('axes', 'tzyx')}")
        >>> str(error)
        "has no names; give axes='tzyx'"
        >>> error.render(spelled_on_command_line)
        'has no names; give --axes tzyx'
    """
    return f"{_MARK}{json.dumps([name, value], default=_plain)}{_MARK}"


def _plain(value: Any) -> Any:
    """Return a scalar or an array of NumPy as Python's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def spelled_in_python(name: str, value: Any) -> str:
    """Spell an option as a Python argument."""
    name = "axes" if name in ("label_axes", "axis") else name  # as `open_volume` and `audit_volume` call them
    return name if value is None else f"{name}={value!r}"


_OF_ANY_LENGTH = {"mean", "std", "label_values", "strategy"}
"""Options whose values the command line takes as one word, separated by commas."""


def spelled_on_command_line(name: str, value: Any) -> str:
    """Spell an option as on the command line.

    Example:
        >>> spelled_on_command_line("select", {"t": 0, "c": 1})
        '--select t=0 --select c=1'
    """
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, dict):
        return " ".join(f"{flag} {key}{':' if name == 'swap' else '='}{item}" for key, item in value.items())
    words = value if isinstance(value, list) else [] if value is None else [value]
    if name in _OF_ANY_LENGTH and words:
        words = [",".join(map(str, words))]
    return " ".join(map(str, [flag, *words]))


def spelled_in_configuration(path: str, value: Any) -> str:
    """Spell an option as in a configuration.

    Args:
        path: its path there.
        value: its value; None to name the option alone.

    Example:
        >>> spelled_in_configuration("training.dtype", "float16"), spelled_in_configuration("data.fill", None)
        ('training.dtype: float16', 'data.fill')
    """
    return path if value is None else f"{path}: {value}"


class EvensliceError(Exception):
    """The base class of all errors that evenslice raises on purpose.

    Example: any wrong option.
        >>> import evenslice
        >>> try:
        ...     evenslice.neutralize(None, slices=4)
        ... except evenslice.EvensliceError as error:
        ...     print(error)
        slices=4: a window has an odd number of slices, 1, 3, 5, ..., at most 1001
    """

    def __str__(self) -> str:
        return self.render(spelled_in_python)

    def render(self, spelling: Spelling) -> str:
        """Return the message with its options spelled for a reader.

        One printable line, in which files, names and libraries cannot place control characters or the secrets of
        addresses.

        Args:
            spelling: takes the name of an option and the value shown with it (or None) and returns the text.
        """
        message = str(self.args[0] if self.args else "")
        parts = message.split(_MARK)
        with suppress(ValueError, TypeError):  # the mark came from somewhere else
            parts[1::2] = [spelling(*json.loads(part)) for part in parts[1::2]]
        line = printable(" ".join(without_secrets("".join(parts)).splitlines()))
        return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"


class VolumeError(EvensliceError):
    """A volume cannot be opened, read or scaled.

    Example:
        >>> import evenslice
        >>> try:
        ...     evenslice.open_volume("nowhere.tif")
        ... except evenslice.VolumeError as error:
        ...     print(error)
        nowhere.tif: ...
    """


class ModelError(EvensliceError):
    """A network, its specification or its weights cannot be used as asked.

    Example:
        >>> import evenslice
        >>> try:
        ...     evenslice.load_network("timm:resnet9", "none")
        ... except evenslice.ModelError as error:
        ...     print(error)
        timm:resnet9: ...
    """


class ConfigError(EvensliceError):
    """An option or a configuration value is wrong.

    Example:
        >>> import evenslice
        >>> try:
        ...     evenslice.load_network("timm:test_resnet", "none", strategy="unifrom")
        ... except evenslice.ConfigError as error:
        ...     print(error)
        strategy='unifrom': did you mean 'uniform'? known: ...
    """


class OutputError(EvensliceError):
    """A result cannot be written where it should go.

    Example:
        >>> import numpy as np
        >>> import evenslice
        >>> from evenslice.volumes import write_volume
        >>> try:
        ...     write_volume(evenslice.open_volume(np.zeros((3, 4, 4))), "labels.gif")
        ... except evenslice.OutputError as error:
        ...     print(error)
        labels.gif: ...
    """


class MissingExtraError(EvensliceError, ImportError):
    """A feature needs an optional dependency that is not installed.

    Example:
        >>> with needs_extra("volumes", "reading a TIFF volume"):
        ...     import no_such_package
        Traceback (most recent call last):
        evenslice.MissingExtraError: reading a TIFF volume needs the package 'no_such_package'; install it with: ...
    """


@contextmanager
def errors_at(place: str, spelling: Spelling = spelled_in_configuration) -> Iterator[None]:
    """Prefix errors by their place in a configuration, and spell options as they are written there.

    Example:
        >>> with errors_at("data"):
        ...     raise ConfigError(f"{option('fill', 'x')}: give a number")
        Traceback (most recent call last):
        evenslice.ConfigError: data: fill: x: give a number
    """
    try:
        yield
    except EvensliceError as error:
        raise type(error)(f"{place}: {error.render(spelling)}") from error


@contextmanager
def reporting_errors(kind: type[EvensliceError], what: str, advice: str = "") -> Iterator[None]:
    """Report whatever the code of a user or of a library raises as an error of evenslice, whose own pass.

    Example:
        >>> with reporting_errors(ModelError, "the network fails", "; correct it"):
        ...     1 / 0
        Traceback (most recent call last):
        evenslice.ModelError: the network fails (ZeroDivisionError: division by zero); correct it
    """
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        raise kind(f"{what} ({type(error).__name__}: {reason(error)}){advice}") from error


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


def reason(error: BaseException) -> str:
    r"""Return the first line of an exception's message, or its type if there is none, to quote in another message.

    The text is printable and has at most 300 characters: damaged files can put anything into it.

    Example:
        >>> reason(ValueError("wrong shape\nmore about it"))
        'wrong shape'
        >>> reason(ValueError())
        'ValueError'
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return printable(without_secrets(line))[:300]


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Return an option that has to be a whole number, of Python or of another library, as Python's.

    Raises:
        ConfigError: it is not a whole number, or below the least.

    Example:
        >>> whole_number("batch", 4, least=1)
        4
        >>> whole_number("batch", "4", least=1)
        Traceback (most recent call last):
        evenslice.ConfigError: batch: is '4', not a whole number
    """
    try:
        number = int(operator.index(value))  # that of True is True
    except TypeError:
        raise ConfigError(f"{option(name)}: is {value!r:.40}, not a whole number") from None
    if least is not None and number < least:
        raise ConfigError(f"{option(name, number)}: must be at least {least}")
    return number


def check_known(name: str, value: Any, known: Iterable[str], more: str = "") -> None:
    """Check an option that has to be one of several words.

    Args:
        name: its name.
        value: what the user gave, text or not.
        known: the words.
        more: what else would be right, as the end of the message.

    Raises:
        ConfigError: it is none of them.

    Example:
        >>> check_known("plane", "z", ["x", "y", "z"])
        >>> check_known("plane", 0, ["x", "y", "z"])
        Traceback (most recent call last):
        evenslice.ConfigError: plane=0: known: x, y, z
    """
    words = list(known)
    if not (isinstance(value, str) and value in words):
        raise ConfigError(f"{option(name, value)}: {did_you_mean(value, words)}{more}")


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn a failed import in the block into an error that names the extra to install.

    Args:
        extra: the optional dependency group, as in ``pip install 'evenslice[extra]'``.
        what: what needs it, as the message should say ("reading a TIFF volume").

    Raises:
        MissingExtraError: a package imported in the block is not installed, or its installation is damaged.

    Example:
        >>> with needs_extra("volumes", "reading a TIFF volume"):
        ...     import tifffile
    """
    try:
        yield
    except MissingExtraError:  # of a block within this one
        raise
    except ImportError as error:
        if _is_not_there(error):
            raise MissingExtraError(
                f"{what} needs the package {error.name!r}; install it with: pip install 'evenslice[{extra}]'"
            ) from error
        raise MissingExtraError(
            f"{what} fails, because an installed package is damaged or too old ({reason(error)}); reinstall it"
        ) from error


def _is_not_there(error: ImportError) -> bool:
    """Return whether the top-level module that failed to be imported does not exist; otherwise a part of it is amiss."""
    top = (error.name or "").partition(".")[0]
    return isinstance(error, ModuleNotFoundError) and top != "" and find_spec(top) is None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about a misspelt name: similar names, then the known ones.

    Args:
        name: what the user wrote, text or not.
        known: every correct name.

    Returns:
        ``"did you mean 'uniform'? known: center, uniform"``; long lists are cut to the six nearest.

    Example:
        >>> did_you_mean("unifrom", ["center", "uniform"])
        "did you mean 'uniform'? known: center, uniform"
        >>> did_you_mean("x", ["center", "uniform"])
        'known: center, uniform'
    """
    known = sorted(set(known))
    close = difflib.get_close_matches(str(name), known, n=6, cutoff=0.5)
    shown = known if len(known) <= 12 else (close or known[:6])
    listing = ", ".join(shown) + ("" if len(shown) == len(known) else f", … ({len(known)} in all)")
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {listing}"


for _kind in (EvensliceError, VolumeError, ModelError, ConfigError, OutputError, MissingExtraError):
    _kind.__module__ = "evenslice"  # the public name, which tracebacks show
