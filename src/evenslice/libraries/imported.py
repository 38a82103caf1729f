"""Functions of the user's that return a network: ``package.module:function``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from evenslice.errors import ModelError, nearest
from evenslice.importing import find_member, importable_here

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from torch import nn

    from evenslice.libraries.plans import Plan

__all__ = ["build_imported"]


def build_imported(plan: Plan, pretrained: bool, libraries: Iterable[str]) -> nn.Module:
    """Call the user's function; the module's own directory of work is importable, as under ``python -m``.

    Args:
        plan: names the function and its arguments.
        pretrained: whether the user asked for pretrained weights, which a function does not have.
        libraries: names of the libraries, one of which the user may have misspelt.
    """
    import torch

    if pretrained:
        raise ModelError(
            f"{plan.spec}: a function has no imagenet weights; give a file, or none to keep its own"
        )
    path, _, attribute = plan.name.partition(":")
    with importable_here():
        module = _import(plan, path, libraries)
        model = find_member(module, attribute, plan.spec, ModelError)(**plan.arguments)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{plan.spec}: returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _import(plan: Plan, path: str, libraries: Iterable[str]) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"{plan.spec}: {path!r} is neither a library nor a module that can be imported;"
            f" {nearest(path, [*libraries, 'package.module:function'])}"
        ) from error
