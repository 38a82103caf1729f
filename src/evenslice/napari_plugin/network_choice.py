"""Which network the user of a widget has chosen, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ConfigError
from evenslice.inference import stated_reading
from evenslice.networks import untrained_parts
from evenslice.neutralizing import Reading, load_network
from evenslice.training import Segmenter, load_segmenter

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FromFile", "FromLibrary", "FromRun", "NetworkChoice", "random_parts"]


@dataclass(frozen=True)
class FromLibrary:
    """A network of a library, or of a function of the user's; a file of weights may say how it reads volumes.

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

    def load(self) -> Segmenter:
        """Build it; the errors are those of ``load_network``."""
        model, record, source = load_network(
            self.spec, self.weights, slices=self.slices, strategy=self.strategy
        )
        return Segmenter(model, record.slices, stated_reading(self.spec, self.weights) or Reading(), source)


@dataclass(frozen=True)
class FromRun:
    """The network of a training run, which says how it reads volumes."""

    run: Path

    def load(self) -> Segmenter:
        """Load it; the errors are those of ``load_segmenter``."""
        _check_chosen(self.run, "the folder of a training run")
        return load_segmenter(self.run)


@dataclass(frozen=True)
class FromFile:
    """A network that evenslice has saved: a file, or a folder for Hugging Face, which says how it reads volumes."""

    path: Path

    def load(self) -> Segmenter:
        """Load it; the errors are those of ``load_network``."""
        _check_chosen(self.path, "the file of a network")
        model, record, _ = load_network(str(self.path))
        return Segmenter(model, record.slices, stated_reading(str(self.path), None) or Reading())


NetworkChoice = FromLibrary | FromRun | FromFile


def random_parts(choice: NetworkChoice, network: Segmenter) -> tuple[str, ...]:
    """Return the parts of a loaded network that are random, since the weights chosen for a library's have none for them."""
    if not isinstance(choice, FromLibrary) or network.source is None:
        return ()
    return untrained_parts(choice.weights, network.source.random)


def _check_chosen(path: Path, what: str) -> None:
    if not path.name:  # the empty field is the current folder
        raise ConfigError(f"no network chosen; choose {what}")
