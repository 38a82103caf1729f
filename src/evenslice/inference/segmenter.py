"""A network together with the way in which it reads volumes: one of a file or library here, that of a training run elsewhere.

segmenter = open_segmenter("smp:Unet/resnet34", "fair.safetensors", step=2)
segmenter.segment(open_volume("brain.nii.gz"), "labels.tif")
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from evenslice._core import ConfigError, ModelError, option
from evenslice.inference.evaluation import evaluate
from evenslice.inference.exporting.description import stated_crop, stated_reading
from evenslice.inference.exporting.export import export
from evenslice.inference.onnx_networks import ONNX, load_onnx
from evenslice.inference.segmentation import segment
from evenslice.networks import missing_parts
from evenslice.neutralizing import load_network, symmetrize as make_symmetric
from evenslice.volumes import Reading

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from evenslice.inference.evaluation import Evaluation
    from evenslice.inference.exporting.export import Exported
    from evenslice.networks import ModelSource
    from evenslice.volumes import Volume

__all__ = ["Segmenter", "open_segmenter", "reading_of_network"]

BUILT = ("slices", "classes", "mean", "std")
"""Options that say how a network is built."""


@dataclass(frozen=True)
class Segmenter:
    """A network or a function, and how it reads volumes and their labels.

    Attributes:
        network: the network.
        slices: N.
        reading: how it reads volumes.
        source: what it was built from.
        run: the folder of its run.
        task: what the run trained it for, "segmentation" or "classification".
        crop: the size (y, x) of windows that it is asked about, that of the crops of a classifier; else None.
    """

    network: nn.Module | Callable[..., Any]
    slices: int
    reading: Reading = field(default_factory=Reading)
    source: ModelSource | None = None
    run: Path | None = None
    task: str = "segmentation"
    crop: tuple[int, int] | None = None

    def segment(self, volume: Volume, out: str | os.PathLike[str], **options: Any) -> Volume:
        """Segment a volume; the other options are those of ``evenslice.segment``.

        Raises:
            ConfigError: the network is that of a run that trained a classifier.
        """
        self._need_segmentation()
        return segment(self.network, volume, out, slices=self.slices, reading=self.reading, **options)

    def evaluate(self, volume: Volume, labels: Volume | None = None, **options: Any) -> Evaluation:
        """Evaluate the network on a volume; the other options are those of ``evenslice.evaluate``.

        Raises:
            ConfigError: the network is that of a run that trained a classifier.
        """
        self._need_segmentation()
        reading = self.reading.without_labels() if labels is None else self.reading
        return evaluate(self.network, volume, labels, slices=self.slices, reading=reading, **options)

    def export(self, out: str | os.PathLike[str], *, to: str, **options: Any) -> Exported:
        """Export the network for other programs; the other options are those of ``evenslice.export``.

        Raises:
            ConfigError: it is an ONNX file; or see ``evenslice.export``.
        """
        if not isinstance(self.network, nn.Module):
            raise ConfigError(
                f"{option('model', ONNX)}: is exported already; name the network that it came from"
            )
        own: dict[str, Any] = {"crop": self.crop, "reading": self.reading, "source": self.source}
        return export(self.network, out, to=to, slices=self.slices, **own, **options)

    @property
    def missing(self) -> tuple[str, ...]:
        """The parts of the network that its file of weights lacks, so that they are random."""
        return () if self.source is None else missing_parts(self.source.weights, self.source.random)

    def need_all_weights(self) -> None:
        """Raise ModelError if the file of weights lacks parts of the network, so that its answers would be random."""
        if self.source is not None and self.missing:
            raise ModelError(
                f"{self.source.weights}: lacks the network's {', '.join(self.missing)}, so that its answers would be random; "
                "give the weights of the whole network, or train it first"
            )

    def _need_segmentation(self) -> None:
        if self.task != "segmentation":
            raise ConfigError(
                f"{option('run')}: the run {self.run} trained a classifier of crops, which gives no map of classes; "
                f"its scores are in its result.json, and `evenslice audit --run` takes it"
            )


def open_segmenter(spec: str, weights: str, *, symmetrize: str | None = None, **options: Any) -> Segmenter:
    """Load a network with the way in which it reads volumes.

    Args:
        spec: the network, see ``evenslice.networks.specification``; or "onnx".
        weights: its weights, as ``load_network`` takes them; or the ONNX file.
        symmetrize: where to average over a window and its mirror; None for nowhere, or as in the saved network.
        options: ``slices``, ``classes``, ``mean`` and ``std`` of ``load_network``, and those of ``Reading``; None means
            the default.

    Raises:
        ConfigError: an option is unknown, or the ONNX file determines it.
        ModelError: the network cannot be loaded, or the description in an exported network is damaged.

    Example:
        >>> open_segmenter("timm:test_resnet", "none", step=2).reading.step
        2
    """
    built = {name: options.pop(name, None) for name in BUILT}
    reading, crop = reading_of_network(spec, weights, **options), stated_crop(spec, weights)
    if spec != ONNX:
        model, record, source = load_network(spec, weights, symmetrize=symmetrize, **built)
        return Segmenter(model, record.slices, reading, source, crop=crop)
    if built["classes"] is not None:
        raise ConfigError(f"{option('classes')}: an ONNX network states its own; omit the option")
    network = load_onnx(weights, mean=built["mean"], std=built["std"])
    function = network if symmetrize is None else make_symmetric(network, symmetrize)
    return Segmenter(function, (network.slices or 3) if built["slices"] is None else built["slices"], reading)


def reading_of_network(spec: str | None, weights: str | None, **options: Any) -> Reading:
    """Return how a network reads volumes and their labels: as what holds it states, unless an option says otherwise.

    Args:
        spec: as for ``stated_reading``.
        weights: likewise.
        options: those of ``Reading``; None means the default.

    Raises:
        ConfigError: an option is unknown, or cannot be right.
        ModelError: the description in an exported network is damaged.
    """
    return (stated_reading(spec, weights) or Reading()).with_given(**options)
