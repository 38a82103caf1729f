"""Objects that a user names as ``package.module:name``, found as ``python -m`` would: in the current directory too."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core.errors import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice._core.errors import EvensliceError

__all__ = ["import_object", "importable_here"]


@contextmanager
def importable_here(*, first: bool = True) -> Iterator[None]:
    """Let modules in the current directory be imported in the block.

    Args:
        first: prefer them to modules of the same name elsewhere.

    Example:
        >>> with importable_here():
        ...     sys.path[0] == str(Path.cwd())
        True
    """
    here = str(Path.cwd())
    sys.path.insert(0 if first else len(sys.path), here)
    try:
        yield
    finally:
        sys.path.remove(here)


def import_object(path: str, label: str, error: type[EvensliceError]) -> Any:
    """Return what ``package.module:name`` stands for; the name may have several parts joined by dots.

    Args:
        path: the module and the name.
        label: what the user wrote, to begin the message with.
        error: the type of error to raise if the module has no such name.

    Raises:
        EvensliceError: the module has no such name; the message suggests similar ones.
        Exception: whatever importing the module raises.

    Example:
        >>> from evenslice._core import ConfigError
        >>> import_object("math:sqrt", "math:sqrt", ConfigError)(9.0)
        3.0
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    try:
        with importable_here():
            importlib.import_module(module)
            return pkgutil.resolve_name(path)
    except (AttributeError, ValueError) as missing:  # ValueError: the name is not one that Python allows
        if module not in sys.modules:  # the module itself raised it
            raise
        known = [
            key
            for key, item in vars(sys.modules[module]).items()
            if callable(item) and not key.startswith("_")
        ]
        raise error(f"{label}: {module} has no {name!r}; {did_you_mean(name, known)}") from missing
