"""Which network the user of a widget has chosen, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError
from evenslice.inference import Segmenter
from evenslice.networks import untrained_parts
from evenslice.neutralizing import load_network
from evenslice.training import asked_size, find_reading, load_segmenter

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
        reading: what the user says of reading volumes, as options of ``find_reading``.
    """

    spec: str
    weights: str
    slices: int
    strategy: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Segmenter:
        """Build it; the errors are those of ``load_network`` and ``find_reading``."""
        reading = find_reading(None, self.spec, self.weights, **self.reading)
        model, record, source = load_network(
            self.spec,
            self.weights,
            slices=self.slices,
            strategy=self.strategy,
            mean=self.mean,
            std=self.std,
        )
        crop = asked_size(None, self.spec, self.weights)
        return Segmenter(model, record.slices, reading, source, crop=crop)


@dataclass(frozen=True)
class FromRun:
    """The network of a training run, which says how it reads volumes, unless the user does."""

    run: Path
    reading: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Segmenter:
        """Load it; the errors are those of ``load_segmenter``."""
        _check_chosen(self.run, "the folder of a training run")
        return load_segmenter(self.run, **self.reading)


@dataclass(frozen=True)
class FromFile:
    """A network that evenslice has saved: a file, or a folder for Hugging Face, which says how it reads volumes."""

    path: Path
    reading: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Segmenter:
        """Load it; the errors are those of ``load_network`` and ``find_reading``."""
        _check_chosen(self.path, "the file of a network")
        spec = str(self.path)
        reading = find_reading(None, spec, None, **self.reading)
        model, record, _ = load_network(spec)
        return Segmenter(model, record.slices, reading, crop=asked_size(None, spec, None))


NetworkChoice = FromLibrary | FromRun | FromFile


def random_parts(choice: NetworkChoice, network: Segmenter) -> tuple[str, ...]:
    """Return the parts of a loaded network that are random, since the weights chosen for a library's have none for them."""
    if not isinstance(choice, FromLibrary) or network.source is None:
        return ()
    return untrained_parts(choice.weights, network.source.random)


def _check_chosen(path: Path, what: str) -> None:
    if not path.name:  # the empty field is the current folder
        raise ConfigError(f"no network chosen; choose {what}")
