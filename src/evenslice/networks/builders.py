"""Builders: from a specification to a network, by the library that it names."""

from __future__ import annotations

import importlib
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import EvensliceError, ModelError, needs_extra, option, reason
from evenslice.networks.hubs import hub_with_timeout
from evenslice.networks.libraries.imported import build_imported
from evenslice.networks.libraries.monai import MONAI
from evenslice.networks.libraries.smp import SMP
from evenslice.networks.libraries.timm import TIMM
from evenslice.networks.libraries.torchvision import TORCHVISION
from evenslice.networks.libraries.transformers import TRANSFORMERS
from evenslice.networks.specification import Specification, parse_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.networks.libraries.library import Built

__all__ = ["build_network", "parse_specification"]

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
        ModelError: it is malformed, or sets what evenslice sets.

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
    inputs = known.inputs.get(name.lower(), 3)
    return Specification(text, library, name, arguments, classes, seed, known.classes, inputs)


def build_network(specification: Specification, *, pretrained: bool = False) -> Built:
    """Build a network; return it with the top-level parts that the library's weights leave random.

    Raises:
        ModelError: it cannot be built, or its pretrained weights do not exist or cannot be reached.
        MissingExtraError: the library is not installed.
    """
    library = LIBRARIES.get(specification.library)
    text = specification.text
    try:
        with _drawn_under(specification.seed):
            if library is None:
                return build_imported(specification, pretrained, LIBRARIES), ()
            with needs_extra(library.extra, f"building {text}"):
                importlib.import_module(library.package)
            hub = pretrained and not Path(specification.name).exists()
            with hub_with_timeout() if hub else nullcontext():
                return library.build(specification, pretrained)
    except EvensliceError:
        raise
    except Exception as error:
        if pretrained and isinstance(error, OSError):
            raise ModelError(
                f"{text}: its imagenet weights are neither installed nor cached, and the hub cannot be reached"
                f" ({type(error).__name__}); give a weights file, or none for random weights"
            ) from error
        raise ModelError(f"{text}: cannot be built ({type(error).__name__}: {reason(error)})") from error


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
