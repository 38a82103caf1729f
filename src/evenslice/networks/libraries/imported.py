"""User functions that return a network: ``package.module:function``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice._core import ModelError, did_you_mean, import_object, importable_here

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from evenslice.networks.specification import Specification

__all__ = ["build_imported"]


def build_imported(specification: Specification, pretrained: bool, libraries: Iterable[str]) -> nn.Module:
    """Call the user's function; modules in the current directory are importable, as under ``python -m``.

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
    with importable_here():
        model = _find_function(specification, libraries)(**specification.arguments)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{specification.text}: returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _find_function(specification: Specification, libraries: Iterable[str]) -> Any:
    path = specification.name.partition(":")[0]
    try:
        return import_object(specification.name, specification.text, ModelError)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"{specification.text}: {path!r} is neither a library nor a module that can be imported;"
            f" {did_you_mean(path, [*libraries, 'package.module:function'])}"
        ) from error
