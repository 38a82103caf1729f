"""What a user names as ``package.module:function``, found as ``python -m`` would find it: from the current directory too."""

from __future__ import annotations

import operator
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from evenslice._core.errors import EvensliceError

__all__ = ["find_member", "importable_here"]


@contextmanager
def importable_here() -> Iterator[None]:
    """Let modules that lie in the current directory be imported in the block, before those of the same name elsewhere.

    Example:
        >>> with importable_here():
        ...     sys.path[0] == str(Path.cwd())
        True
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def find_member(module: ModuleType, name: str, text: str, error: type[EvensliceError]) -> Any:
    """Return what a name, or several joined by dots, stands for in a module.

    Args:
        module: the module.
        name: the name.
        text: what the user wrote, to begin the message with.
        error: what to raise.

    Raises:
        EvensliceError: of the type given; there is no such thing, and the message says what is like it.

    Example:
        >>> import math
        >>> from evenslice._core import ConfigError
        >>> find_member(math, "sqrt", "math:sqrt", ConfigError)(9.0)
        3.0
    """
    try:
        return operator.attrgetter(name)(module)
    except AttributeError as missing:
        names = [key for key, item in vars(module).items() if callable(item) and not key.startswith("_")]
        raise error(f"{text}: {module.__name__} has no {name!r}; {nearest(name, names)}") from missing
