"""Networks of other modules: ``package.module:function``, or the class of a network.

What may be called is a plain function or a subclass of ``torch.nn.Module``, defined neither by Python nor by
evenslice; bound methods, built-in functions and other callables are not. A user who types a specification vouches for
the rest.

Nobody vouches for one that stands in a file, such as a configuration. There, only code outside of installed packages
counts, as `check_own_code` verifies before importing anything: installed packages hold functions that run what they
are given (``numpy:load?allow_pickle=True``), and even classes of networks that unpickle a file by its name, so
neither the kind of an object nor its arguments tell which are harmless. Their networks have other names, such as
``timm:resnet18``, or a function of the user's own that returns them.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from evenslice._core import ModelError, did_you_mean, import_object, importable_here, is_installed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from evenslice.networks.specification import Specification

__all__ = ["build_imported", "check_own_code"]


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
        model = _find_builder(specification, libraries)(**specification.arguments)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{specification.text}: returned {type(model).__name__}, not a torch.nn.Module")
    return model


def check_own_code(specification: Specification, libraries: Iterable[str]) -> None:
    """Check that a function or class is code of the user's own, not of an installed package.

    Raises:
        ModelError: it is not, or there is no such function or class.
    """
    with importable_here():
        _refuse_installed(specification, specification.name.partition(":")[0])
        _refuse_installed(specification, _find_builder(specification, libraries).__module__)


def _refuse_installed(specification: Specification, module: str) -> None:
    if is_installed(module):
        raise ModelError(
            f"{specification.text}: {module} is not a module of your own, and a file cannot have functions "
            "of others called; name a"
            " network of a library, such as timm:resnet18, or a function of your own that returns this one"
        )


def _find_builder(specification: Specification, libraries: Iterable[str]) -> Any:
    import torch

    path = specification.name.partition(":")[0]
    try:
        found = import_object(specification.name, specification.text, ModelError)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"{specification.text}: {path!r} is neither a library nor a module that can be imported;"
            f" {did_you_mean(path, [*libraries, 'package.module:function'])}"
        ) from error
    is_network = isinstance(found, type) and issubclass(found, torch.nn.Module)
    if not (is_network or isinstance(found, FunctionType)):
        raise ModelError(
            f"{specification.text}: is {_kind(found)}, neither a function of a module nor a class of "
            "networks (torch.nn.Module)"
        )
    return found


def _kind(found: Any) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
