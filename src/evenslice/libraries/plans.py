"""A specification, taken apart, and how it is built."""

from __future__ import annotations

import ast
import importlib
import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from evenslice.errors import EvensliceError, ModelError, needs_extra
from evenslice.libraries.hubs import impatient_hub
from evenslice.libraries.imported import build_imported
from evenslice.libraries.monai import MONAI
from evenslice.libraries.smp import SMP
from evenslice.libraries.timm import TIMM
from evenslice.libraries.torchvision import TORCHVISION
from evenslice.libraries.transformers import TRANSFORMERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from evenslice.libraries.library import Built

__all__ = ["Plan"]

_LIBRARIES = {
    "monai": MONAI,
    "smp": SMP,
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "transformers": TRANSFORMERS,
}


@dataclass(frozen=True)
class Plan:
    """A specification, taken apart, and how to build it. The library is empty for a function of the user's."""

    spec: str
    library: str
    name: str
    arguments: Mapping[str, Any]
    classes: int | None
    seed: int
    inputs: int = 3

    @classmethod
    def read(cls, spec: str, classes: int | None, seed: int) -> Plan:
        """Take a specification apart; raise ModelError where it has no meaning."""
        head, _, query = spec.partition("?")
        library, colon, name = head.partition(":")
        if not (library and colon and name):
            raise ModelError(f"{spec!r} names no network; write LIBRARY:NETWORK, as smp:Unet/resnet34")
        arguments = _arguments(spec, query)
        known = _LIBRARIES.get(library)
        if known is None:
            if classes is not None:
                raise ModelError(
                    f"{spec}: a function sets its own classes; pass its arguments as {head}?name=value"
                )
            return cls(spec, "", head, arguments, None, seed)
        if taken := sorted(known.reserved & arguments.keys()):
            raise ModelError(
                f"{spec}: {taken[0]} cannot stand here; weights and classes are options of their own"
            )
        return cls(spec, library, name, arguments, classes, seed, known.inputs.get(name.lower(), 3))

    @property
    def outputs(self) -> int | None:
        """Channels of the output; None for the number that the library or the user's function chooses."""
        return self.classes or (_LIBRARIES[self.library].classes if self.library else None)

    @property
    def timm_name(self) -> str | None:
        """Timm's name of the network, or of the encoder; None where it is not one of timm's."""
        if self.library == "timm":
            return self.name
        _, _, encoder = self.name.partition("/")
        return encoder.removeprefix("tu-") if self.library == "smp" and encoder.startswith("tu-") else None

    def build(self, *, pretrained: bool = False) -> Built:
        """Build the network; return it with the top-level parts that the library's weights leave random."""
        library = _LIBRARIES.get(self.library)
        try:
            with _drawn_under(self.seed):
                if library is None:
                    return build_imported(self, pretrained, _LIBRARIES), ()
                with needs_extra(library.extra, f"building {self.spec}"):
                    importlib.import_module(library.package)
                hub = pretrained and not Path(self.name).exists()
                with impatient_hub() if hub else nullcontext():
                    return library.build(self, pretrained)
        except EvensliceError:
            raise
        except Exception as error:
            if pretrained and isinstance(error, OSError):
                raise ModelError(
                    f"{self.spec}: its imagenet weights are neither installed nor cached, and the hub cannot be reached"
                    f" ({type(error).__name__}); give a weights file, or none for random weights"
                ) from error
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ModelError(f"{self.spec}: cannot be built ({type(error).__name__}: {reason})") from error


def _arguments(spec: str, query: str) -> dict[str, Any]:
    """Read ``a=1&b=true&c=same``; values are Python or JSON literals, and else words."""
    arguments: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not (equals and key.isidentifier()) or key in arguments:
            raise ModelError(
                f"{spec}: {item!r} is no argument; write ?name=value&other=value, each name once"
            )
        arguments[key] = _literal(unquote(value))
    return arguments


def _literal(text: str) -> Any:
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


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
