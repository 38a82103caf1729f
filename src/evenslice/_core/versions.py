"""Versions of the packages that a result was computed with."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["package_versions"]


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, under ``"python"``, and of those packages that are installed.

    Example:
        >>> list(package_versions(["numpy", "no-such-package"]))
        ['python', 'numpy']
    """
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
