"""Which network the user of a widget has chosen, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError
from evenslice.neutralizing import load_network
from evenslice.training import load_segmenter

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["FromFile", "FromLibrary", "FromRun", "Loaded", "NetworkChoice"]


@dataclass(frozen=True)
class Loaded:
    """A network with the way in which it reads volumes.

    Attributes:
        network: the network.
        slices: N, the slices of its windows.
        step: distance between neighbouring slices of a window.
        plane: the axis of a volume along which slices follow one another.
        scaling: ``intensity`` and ``fill``, as far as a training run determines them.
    """

    network: nn.Module
    slices: int
    step: int = 1
    plane: str = "z"
    scaling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FromLibrary:
    """A network of a library, or of a function of the user's.

    Attributes:
        spec: its specification.
        weights: "imagenet", "none", or a file.
        slices: N.
        strategy: how the kernels of the colours become those of the slices.
    """

    spec: str
    weights: str
    slices: int
    strategy: str

    def load(self) -> Loaded:
        """Build it; the errors are those of ``load_network``."""
        model, record, _ = load_network(self.spec, self.weights, slices=self.slices, strategy=self.strategy)
        return Loaded(model, record.slices)


@dataclass(frozen=True)
class FromRun:
    """The network of a training run, which says how it reads volumes."""

    run: Path

    def load(self) -> Loaded:
        """Load it; the errors are those of ``load_segmenter``."""
        _check_chosen(self.run, "the folder of a training run")
        found = load_segmenter(self.run)
        scaling = {"intensity": found.intensity, "fill": found.fill}
        known = {name: value for name, value in scaling.items() if value is not None}
        return Loaded(found.network, found.slices, found.step, found.plane, known)


@dataclass(frozen=True)
class FromFile:
    """A network that evenslice has saved: a file, or a folder for Hugging Face."""

    path: Path

    def load(self) -> Loaded:
        """Load it; the errors are those of ``load_network``."""
        _check_chosen(self.path, "the file of a network")
        model, record, _ = load_network(str(self.path))
        return Loaded(model, record.slices)


NetworkChoice = FromLibrary | FromRun | FromFile


def _check_chosen(path: Path, what: str) -> None:
    if not path.name:  # the empty field is the current folder
        raise ConfigError(f"no network chosen; choose {what}")
