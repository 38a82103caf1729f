"""Functions of the user's that return a network: ``package.module:function``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from evenslice._core import ModelError, find_member, importable_here, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from torch import nn

    from evenslice.networks.specification import Specification

__all__ = ["build_imported"]


def build_imported(specification: Specification, pretrained: bool, libraries: Iterable[str]) -> nn.Module:
    """Call the user's function; the module's own directory of work is importable, as under ``python -m``.

    Args:
        specification: names the function and its arguments.
        pretrained: whether the user asked for pretrained weights, which a function does not have.
        libraries: names of the libraries, one of which the user may have misspelt.
    """
    import torch

    if pretrained:
        raise ModelError(
            f"{specification.text}: a function has no imagenet weights; give a file, or none to keep its own"
        )
    path, _, attribute = specification.name.partition(":")
    with importable_here():
        module = _import(specification, path, libraries)
        model = find_member(module, attribute, specification.text, ModelError)(**specification.arguments)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{specification.text}: returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _import(specification: Specification, path: str, libraries: Iterable[str]) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"{specification.text}: {path!r} is neither a library nor a module that can be imported;"
            f" {nearest(path, [*libraries, 'package.module:function'])}"
        ) from error
