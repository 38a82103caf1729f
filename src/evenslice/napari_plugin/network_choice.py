"""Which network the user of a widget has chosen, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError
from evenslice.inference import Segmenter, open_segmenter
from evenslice.networks import untrained_parts
from evenslice.training import load_segmenter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["FromFile", "FromLibrary", "FromRun", "NetworkChoice", "random_parts"]


@dataclass(frozen=True)
class FromLibrary:
    """A network of a library, or of a function of the user's; a file of weights may say how it reads volumes, as may the user.

    Attributes:
        spec: its specification.
        weights: "imagenet", "none", or a file.
        slices: N.
        strategy: how the kernels of the colours become those of the slices.
        mean: by which its inputs were centred in training; None for what its library states.
        std: by which they were divided afterwards, likewise.
        reading: what the user says of reading volumes, as options of ``Reading``.
    """

    spec: str
    weights: str
    slices: int
    strategy: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Segmenter:
        """Build it; the errors are those of ``open_segmenter``."""
        return open_segmenter(
            self.spec,
            self.weights,
            slices=self.slices,
            strategy=self.strategy,
            mean=self.mean,
            std=self.std,
            reading=self.reading,
        )


@dataclass(frozen=True)
class FromRun:
    """The network of a training run, which says how it reads volumes, unless the user does."""

    run: Path
    reading: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Segmenter:
        """Load it; the errors are those of ``load_segmenter``."""
        _check_chosen(self.run, "the folder of a training run")
        return load_segmenter(self.run, reading=self.reading)


@dataclass(frozen=True)
class FromFile:
    """A network that evenslice has saved: a file, or a folder for Hugging Face, which says how it reads volumes."""

    path: Path
    reading: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Segmenter:
        """Load it; the errors are those of ``open_segmenter``."""
        _check_chosen(self.path, "the file of a network")
        return open_segmenter(str(self.path), reading=self.reading)


NetworkChoice = FromLibrary | FromRun | FromFile


def random_parts(choice: NetworkChoice, network: Segmenter) -> tuple[str, ...]:
    """Return the parts of a loaded network that are random, since the weights chosen for a library's have none for them."""
    if not isinstance(choice, FromLibrary) or network.source is None:
        return ()
    return untrained_parts(choice.weights, network.source.random)


def _check_chosen(path: Path, what: str) -> None:
    if not path.name:  # the empty field is the current folder
        raise ConfigError(f"no network chosen; choose {what}")
