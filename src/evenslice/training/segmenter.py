"""A network together with the way in which it reads volumes: that of a training run, or any other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from evenslice._core import ConfigError, ModelError, option
from evenslice.inference import (
    ONNX,
    Evaluation,
    Exported,
    evaluate,
    export,
    load_onnx,
    segment,
    stated_crop,
    stated_reading,
)
from evenslice.networks import missing_parts, parse_specification
from evenslice.neutralizing import load_network, symmetrize
from evenslice.volumes import Reading

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from evenslice.networks import ModelSource
    from evenslice.training.config import TrainConfig
    from evenslice.volumes import Volume

__all__ = [
    "Segmenter",
    "asked_size",
    "find_reading",
    "load_segmenter",
    "locate_network",
    "reading_of",
]

BUILT = ("slices", "classes", "mean", "std")
"""Options of ``load_network`` that a run determines."""


@dataclass(frozen=True)
class Segmenter:
    """A network or a function, and how it reads volumes and their labels.

    Attributes:
        network: the network.
        slices: N.
        reading: how it reads volumes.
        source: what it was built from.
        run: the folder of its run.
        task: what the run trained it for.
        crop: see ``asked_size``.
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


def load_segmenter(
    run: Path | None = None, spec: str | None = None, weights: str | None = None, **options: Any
) -> Segmenter:
    """Load the network of a training run, or any other.

    Args:
        run: see ``locate_network``.
        spec: likewise; or "onnx".
        weights: likewise; or the ONNX file.
        options: ``slices``, ``classes``, ``mean``, ``std`` and ``symmetrize`` of ``load_network``, and those of
            ``find_reading``; None means the default. With a run, ``slices``, ``classes``, ``mean``, ``std`` and
            ``step`` are not allowed.

    Raises:
        ConfigError: see ``locate_network``; or an option is given that the run, or the ONNX file, determines.
        ModelError: the network cannot be loaded.
    """
    at = options.pop("symmetrize", None)
    built = {name: options.pop(name, None) for name in BUILT}
    if run is None and spec == ONNX and weights is not None:
        return _of_onnx(weights, at, **built, reading=find_reading(None, spec, weights, **options))
    if run is not None:
        _refuse_determined(run, **built, step=options.get("step"))
    spec, weights = locate_network(run, spec, weights)
    reading = find_reading(run, spec, weights, **options)
    network, record, source = load_network(spec, weights, symmetrize=at, **built)
    task = "segmentation" if run is None else _configuration(run).training.task
    return Segmenter(network, record.slices, reading, source, run, task, asked_size(run, spec, weights))


def _of_onnx(
    file: str,
    at: str | None,
    *,
    slices: int | None,
    classes: int | None,
    mean: Any,
    std: Any,
    reading: Reading,
) -> Segmenter:
    """Return the function that an ONNX file holds."""
    if classes is not None:
        raise ConfigError(f"{option('classes')}: an ONNX network states its own; omit the option")
    network = load_onnx(file, mean=mean, std=std)
    function = network if at is None else symmetrize(network, at)
    return Segmenter(function, (network.slices or 3) if slices is None else slices, reading)


def find_reading(run: Path | None, spec: str | None, weights: str | None, **options: Any) -> Reading:
    """Return how a network reads volumes and their labels: as its run did, unless the user says otherwise.

    Args:
        run: the folder of the run of the network; None for a network without one.
        spec: without a run, the specification of the network, which may have been exported: see ``stated_reading``.
        weights: likewise, its weights.
        options: those of ``Reading``; None means the default. With a run, ``step`` and options of other kinds are
            refused.

    Raises:
        ConfigError: an option is given that the run determines.
        ModelError: the description in an exported network is damaged.
    """
    if run is None:
        return (stated_reading(spec, weights) or Reading()).with_given(**options)
    known = reading_of(_configuration(run))
    settled = {
        name: value for name, value in options.items() if name == "step" or name not in known.to_plain()
    }
    _refuse_determined(run, **settled)
    return known.with_given(**{name: value for name, value in options.items() if name not in settled})


def reading_of(config: TrainConfig) -> Reading:
    """Return how the network of a configuration reads volumes; sigmoids of several classes let these overlap."""
    data, sigmoids = config.data, config.training.loss == "dice_bce"
    return Reading(
        step=config.model.step,
        plane=data.plane,
        intensity=data.intensity,
        fill=data.fill,
        **asdict(data.label_options),
        overlapping=None if sigmoids and data.classes <= 2 else sigmoids,
    )


def asked_size(run: Path | None, spec: str | None, weights: str | None) -> tuple[int, int] | None:
    """Return the size (y, x) of windows that a network is asked about: that of the crops of a classifier, else None.

    Args:
        run: the folder of its run; None for a network without one.
        spec: without a run, the specification of the network, which may have been exported: see ``stated_crop``.
        weights: likewise, its weights.

    Raises:
        ModelError: the description in an exported network is damaged.
    """
    return stated_crop(spec, weights) if run is None else _configuration(run).training.asked_size


def locate_network(run: Path | None, spec: str | None, weights: str | None) -> tuple[str, str]:
    """Return the specification of a network, and its weights.

    Args:
        run: the folder of a finished run of ``train``; or
        spec: a network, see ``evenslice.networks.specification``, and
        weights: its weights, as ``load_network`` takes them. With a run, ``spec`` is allowed if the network comes from
            a function: a folder alone, which may be anybody's, has no function called.

    Raises:
        ConfigError: neither a run nor a network is given, or both are; or the run is not finished, or its network comes
            from a function that was not repeated.
    """
    if run is not None:
        function = spec if spec is not None and not parse_specification(spec).library else None
        for name, value in {"model": spec if function is None else None, "weights": weights}.items():
            if value is not None:
                raise _determined(name, run)
        return _of_run(run, function)
    if spec is None and weights is None:
        raise ConfigError(
            f"no network given; give {option('run')}, or {option('model')} and {option('weights')}"
        )
    if spec is None:
        raise ConfigError(
            f"{option('model')} is missing; give the network that {option('weights')} belongs to"
        )
    if weights is None:
        raise ConfigError(f"{option('weights')} is missing; give imagenet, none, or a file")
    return spec, weights


def _refuse_determined(run: Path, **given: Any) -> None:
    """Raise ConfigError for the first option that is given although a run determines it."""
    for name, value in given.items():
        if value is not None:
            raise _determined(name, run)


def _determined(name: str, run: Path) -> ConfigError:
    return ConfigError(f"{option(name)}: the run {run} determines it; omit it, or omit {option('run')}")


def _of_run(run: Path, function: str | None) -> tuple[str, str]:
    from evenslice.training.run_folder import RunFolder

    files = RunFolder(run)
    if not files.network.exists():
        raise ConfigError(
            f"{run}: holds no finished run of `evenslice train`; name one, or finish it with `evenslice train --out {run} "
            "--resume`"
        )
    spec = _configuration(run).model.spec
    is_function = not parse_specification(spec).library
    if is_function and spec != function:
        raise ConfigError(
            f"{run}: its network comes from the function {spec}; if you trust its module, give "
            f"{option('model', spec)} as well"
        )
    if function is not None and not is_function:
        raise ConfigError(f"{option('model')}: the run {run} determines it, {spec}; omit it")
    return spec, str(files.network)


def _configuration(run: Path) -> TrainConfig:
    from evenslice._core import load_config
    from evenslice.training.config import (
        TrainConfig,
    )  # not needed for other networks, nor is its extra installed
    from evenslice.training.run_folder import RunFolder

    file = RunFolder(run).config
    if not file.exists():
        raise ConfigError(
            f"{file}: is missing, which says how the network of the run reads volumes; restore it"
        )
    return load_config(file, TrainConfig)
