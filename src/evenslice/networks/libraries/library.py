"""How evenslice builds the networks of a library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from torch import Tensor, nn

    from evenslice.networks.specification import Specification

    Built: TypeAlias = tuple[nn.Module, tuple[str, ...]]

__all__ = ["HALF", "IMAGENET", "PLAIN", "Library"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Library:
    """How to build the networks of a library.

    Attributes:
        package: what has to be importable.
        extra: the optional dependencies that install it.
        build: builds the network of a specification, pretrained or not; returns it with the top-level parts that the
            library's weights leave random. A failed connection is an ``OSError``.
        reserved: arguments of the library's builders that evenslice sets.
        classes: default number of classes; None leaves it to the library.
        inputs: by lower-case name, channels of the input of networks that cannot take 3.
        translate: gives tensors that the library has saved for a network the names that they have in it; None if these
            are the same.
    """

    package: str
    extra: str
    build: Callable[[Specification, bool], Built]
    reserved: frozenset[str]
    classes: int | None = None
    inputs: Mapping[str, int] = field(default_factory=dict)
    translate: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
