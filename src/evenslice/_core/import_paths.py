"""Objects that a user names as ``package.module:name``, found as ``python -m`` would: in the current directory too.

Python's own modules and evenslice are never meant: one of their functions, such as ``os:system``, with arguments
would do anything. They are refused before anything is imported, and once more when the object is found, since a
user's module has what it imports, too: ``my_module:os.system``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import sys
import sysconfig
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core.errors import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice._core.errors import EvensliceError


_INSTALLED = frozenset({"site-packages", "dist-packages"})


@contextmanager
def importable_here() -> Iterator[None]:
    """Let modules in the current directory be imported in the block, before those of the same name elsewhere.

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


def imports_from_here() -> bool:
    """Return whether this process has imported a module from the current directory, as a function that a user named."""
    here = Path.cwd()
    return any(here in _roots(name) for name in tuple(sys.modules) if "." not in name and name != "__main__")


def is_installed(module: str) -> bool:
    """Return whether a module belongs to an installed package, or cannot be told; otherwise it is code of the user's own.

    Only its top-level package is looked for, and nothing is imported.

    Example:
        >>> is_installed("numpy"), is_installed("numpy.lib")
        (True, True)
    """
    roots = _roots(module.partition(".")[0])
    return not roots or any(
        _INSTALLED.intersection(root.parts) or not root.is_dir() or any(root.glob("*.dist-info"))
        for root in roots
    )


def module_file(module: str) -> Path | None:
    """Return the file of a module of the user's own; None for an installed one, or one without a file.

    Packages around it are imported, but not the module itself.

    Example:
        >>> module_file("numpy.linalg") is None
        True
    """
    with importable_here():
        try:
            found = None if is_installed(module) else importlib.util.find_spec(module)
        except Exception:  # noqa: BLE001  # whatever a package raises; building the network will tell
            return None
    return None if found is None or found.origin is None or not found.has_location else Path(found.origin)


def import_object(path: str, label: str, error: type[EvensliceError]) -> Any:
    """Return what ``package.module:name`` stands for; the name may have several parts joined by dots.

    Args:
        path: the module and the name.
        label: what the user wrote, to begin the message with.
        error: the type of error to raise if the module has no such name, or is Python's or evenslice's own.

    Raises:
        EvensliceError: the module has no such name; the message suggests similar ones. Or the module, or that in which
            the object was defined, is Python's or evenslice's own; or the object is a ``functools.partial``.
        Exception: whatever importing the module raises.

    Example:
        >>> from evenslice._core import ConfigError
        >>> import_object("numpy:fft.fftfreq", "numpy:fft.fftfreq", ConfigError)(4).max()
        np.float64(0.25)
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    with importable_here():
        _refuse_reserved(module, label, error)
        try:
            importlib.import_module(module)
            found = pkgutil.resolve_name(path)
        except (AttributeError, ValueError) as missing:  # ValueError: the name is not one that Python allows
            if module not in sys.modules:  # the module itself raised it
                raise
            known = [
                key
                for key, item in vars(sys.modules[module]).items()
                if callable(item) and not key.startswith("_")
            ]
            raise error(f"{label}: {module} has no {name!r}; {did_you_mean(name, known)}") from missing
        if isinstance(found, functools.partial):  # whose own module is functools
            raise error(f"{label}: is a functools.partial; name a function that is written with def")
        defined_in = getattr(found, "__module__", None)
        if isinstance(defined_in, str):
            _refuse_reserved(defined_in, label, error)
    return found


def _refuse_reserved(module: str, label: str, error: type[EvensliceError]) -> None:
    top = module.partition(".")[0]
    owner = "evenslice" if top == "evenslice" else "Python" if _is_standard(top) else None
    if owner is not None:
        raise error(f"{label}: {module} is a module of {owner}; name a function or class of another one")


def _is_standard(top: str) -> bool:
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return True
    # Some that lie beside the others are not listed, such as test and its subprocesses.
    library = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return not library.isdisjoint(_roots(top))


def _roots(top: str) -> list[Path]:
    """Return the folders in which a top-level module or package lies; none if there is no such module."""
    spec = None
    with suppress(ImportError, ValueError):  # ValueError: a module without a specification, such as __main__
        spec = importlib.util.find_spec(top)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place).parent for place in spec.submodule_search_locations]
    return [Path(spec.origin).parent] if spec.origin and spec.has_location else []
