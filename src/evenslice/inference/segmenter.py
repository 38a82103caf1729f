"""A network together with the way in which it reads volumes, which ``evaluate``, ``segment``, ``audit`` and ``export`` take.

segmenter = open_segmenter("smp:Unet/resnet34", "fair.safetensors", reading={"step": 2})
segment(segmenter, "brain.nii.gz", "labels.tif")
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from evenslice._core import ConfigError, ModelError, option, read_bounded, reason
from evenslice.inference.onnx_files import DAMAGED, ONNX, load_onnx
from evenslice.networks import METADATA_KEY, read_metadata
from evenslice.neutralizing import load_network, record_of, symmetrize as make_symmetric
from evenslice.volumes import Reading, check_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from evenslice.networks import ModelSource


@dataclass(frozen=True)
class Segmenter:
    """A network or a function, and how it reads volumes and their labels.

    Pass it as ``model`` in place of the network; explicit arguments take precedence over it.

    Attributes:
        network: the network.
        slices: N, the slices of its windows.
        reading: how it reads volumes.
        source: its specification and weights.
        run: the folder of its run.
        task: "segmentation" or "classification".
        crop: the size (y, x) of a classifier's windows; else None.

    Example:
        >>> import numpy as np
        >>> import evenslice
        >>> bright = evenslice.Segmenter(lambda windows: windows[:, 1:2] - 0.5, 3, evenslice.Reading(intensity=(0, 200)))
        >>> labels = evenslice.segment(bright, np.full((3, 32, 32), 180))
        >>> float(labels[1].mean())
        1.0
    """

    network: nn.Module | Callable[..., Any]
    slices: int
    reading: Reading = field(default_factory=Reading)
    source: ModelSource | None = None
    run: Path | None = None
    task: str = "segmentation"
    crop: tuple[int, int] | None = None

    def symmetrized(self, at: str = "output") -> Segmenter:
        """Return it with its network averaged over each window and its mirror, in place, see ``evenslice.symmetrize``."""
        return replace(self, network=make_symmetric(self.network, at))

    def need_all_weights(self) -> None:
        """Raise ModelError if the file of weights lacks parts of the network, so that its answers would be random."""
        if self.source is not None and self.source.missing:
            raise ModelError(
                f"{self.source.weights}: lacks the network's {', '.join(self.source.missing)}, so that its answers would be "
                "random; give the weights of the whole network, or train it first"
            )

    def need_segmentation(self) -> None:
        """Raise ConfigError if the run trained a classifier, or ModelError if parts of the network are random."""
        self.need_all_weights()
        if self.task != "segmentation":
            raise ConfigError(
                f"{option('run')}: the run {self.run} trained a classifier of crops, which gives no map of classes; "
                f"its scores are in its result.json, and `evenslice audit --run` takes it"
            )


def as_segmenter(
    model: nn.Module | Callable[..., Any] | Segmenter,
    slices: int | None = None,
    reading: Reading | None = None,
    *,
    labelled: bool = True,
) -> Segmenter:
    """Return a network, or what one is given in, with how it reads volumes.

    Args:
        model: the network, the function, or either with its reading.
        slices: N; by default the segmenter's, else as ``neutralize`` recorded it or as the function states it, else 3.
        reading: how it reads volumes; by default as the segmenter says.
        labelled: whether there are labels, whose values the segmenter may describe.

    Example:
        >>> as_segmenter(lambda windows: windows).slices
        3
    """
    if not isinstance(model, Segmenter):
        stated = record_of(model) if isinstance(model, nn.Module) else model
        model = Segmenter(model, getattr(stated, "slices", None) or 3)
    own = model.reading if labelled else model.reading.without_labels()
    return replace(model, slices=model.slices if slices is None else slices, reading=reading or own)


def open_segmenter(
    spec: str,
    weights: str | None = None,
    *,
    slices: int | None = None,
    strategy: str | Sequence[float] = "pretrained",
    classes: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    symmetrize: str | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
) -> Segmenter:
    """Load a network and how it reads volumes.

    Args:
        spec: the network, as for ``load_network``; or "onnx".
        weights: its weights, likewise; or the ONNX file.
        slices: N, as for ``load_network``; by default the network's own, else 3.
        strategy: as for ``load_network``.
        classes: likewise.
        mean: as for ``load_network`` or ``load_onnx``.
        std: likewise.
        symmetrize: where to average over a window and its mirror; None for nowhere, or as in the saved network.
        reading: how it reads volumes; by default from its file. A dict changes only the options that it names.

    Raises:
        ConfigError: an option is unknown, or the ONNX file determines it.
        ModelError: the network cannot be loaded, or the description in an exported network is damaged.

    Example:
        >>> open_segmenter("timm:test_resnet", "none", reading={"step": 2}).reading.step
        2
    """
    if spec == ONNX and weights is None:
        raise ConfigError(f"{option('weights')}: name the ONNX file")
    stated, crop = stated_reading(spec, weights)
    read = reading if isinstance(reading, Reading) else (stated or Reading()).with_given(reading or {})
    if spec != ONNX:
        built: dict[str, Any] = {"slices": slices, "strategy": strategy, "classes": classes}
        model, record, source = load_network(
            spec, weights, **built, mean=mean, std=std, symmetrize=symmetrize
        )
        return Segmenter(model, record.slices, read, source, crop=crop)
    for name, given, usual in (("classes", classes, None), ("strategy", strategy, "pretrained")):
        if given != usual:
            raise ConfigError(f"{option(name)}: an ONNX network states its own; omit the option")
    found = as_segmenter(load_onnx(str(weights), mean=mean, std=std), slices, read)
    return found if symmetrize is None else found.symmetrized(symmetrize)


MOST_METADATA = 2**24  # characters
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def stated_reading(spec: str, weights: str | None) -> tuple[Reading | None, tuple[int, int] | None]:
    """Return how a network reads volumes, as ``evenslice export`` or ``save_network`` wrote it with the network.

    Args:
        spec: "onnx"; a folder for Hugging Face or a file of ``save_network``, without weights; or any other
            specification.
        weights: the ONNX file; such a folder or file; or any other weights.

    Returns:
        What is stated, and defaults for the rest, None for a network that evenslice has neither exported nor saved; and the
        size (y, x) of the windows that a classifier was trained on, None if it is not stated, or for an ONNX file, whose
        graph takes one size alone.

    Raises:
        ModelError: what is stated is damaged; or see ``load_onnx``.

    Example:
        >>> stated_reading("timm:resnet18", "imagenet")
        (None, None)
    """
    if weights in ("imagenet", "none"):
        return None, None
    place = Path(spec if weights is None else weights)
    try:
        stated = _stated(place, onnx=spec == ONNX)
        if stated is None:
            return None, None
        crop = None if spec == ONNX else stated.get("crop")
        return Reading.from_plain(stated), None if crop is None else check_tile(crop, "crop")
    except DAMAGED as error:
        raise ModelError(
            f"{place}: its description of how it reads volumes is damaged ({reason(error)}); export the network again, or save "
            "it again"
        ) from error


def _stated(place: Path, *, onnx: bool) -> Any:
    """Return what a file of a network, or its folder, states; None if evenslice wrote nothing there."""
    if onnx:
        return load_onnx(place).stated or None
    text = read_metadata(place / WEIGHTS if place.is_dir() else place)
    if text is not None and (saved := json.loads(text).get("reading")):
        return saved
    config = (place.parent if place.name == WEIGHTS else place) / CONFIG
    stated = json.loads(read_bounded(config, MOST_METADATA)) if config.is_file() else None
    return stated if isinstance(stated, dict) and stated.get("library_name") == METADATA_KEY else None
