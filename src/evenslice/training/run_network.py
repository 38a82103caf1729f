"""The network of a training run, and how it reads volumes; or any other network, for commands that take either.

segmenter = load_segmenter(Path("run"))
segmenter.segment(open_volume("brain.nii.gz"), "labels.tif")
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from evenslice._core import ConfigError, load_config, option
from evenslice.inference import Segmenter, open_segmenter, reading_of_network, stated_crop
from evenslice.networks import parse_specification
from evenslice.neutralizing import load_network
from evenslice.volumes import Reading

if TYPE_CHECKING:
    from pathlib import Path

    from evenslice.training.config import TrainConfig

__all__ = ["asked_size", "find_reading", "load_segmenter", "locate_network", "reading_of"]

BUILT = ("slices", "classes", "mean", "std", "step")
"""Options of a network that a run determines."""


class _RunNetwork(NamedTuple):
    """What the folder of a run says of its network."""

    spec: str
    weights: Path
    reading: Reading
    task: str
    crop: tuple[int, int] | None


def load_segmenter(
    run: Path | None = None, spec: str | None = None, weights: str | None = None, **options: Any
) -> Segmenter:
    """Load the network of a training run, or any other.

    Args:
        run: see ``locate_network``.
        spec: likewise; or "onnx".
        weights: likewise; or the ONNX file.
        options: those of ``open_segmenter``; None means the default. With a run, ``slices``, ``classes``, ``mean``, ``std``
            and ``step`` are not allowed.

    Raises:
        ConfigError: see ``locate_network``; or an option is given that the run, or the ONNX file, determines.
        ModelError: the network cannot be loaded.
    """
    if run is None:
        return open_segmenter(*locate_network(None, spec, weights), **options)
    _refuse_determined(run, {name: options.pop(name, None) for name in BUILT})
    at = options.pop("symmetrize", None)
    locate_network(run, spec, weights)
    found = _of_run(run)
    network, record, source = load_network(found.spec, str(found.weights), symmetrize=at)
    reading = found.reading.with_given(**options)
    return Segmenter(network, record.slices, reading, source, run, found.task, found.crop)


def find_reading(run: Path | None, spec: str | None, weights: str | None, **options: Any) -> Reading:
    """Return how a network reads volumes and their labels: as its run did, unless the user says otherwise.

    Args:
        run: the folder of the run of the network; None for a network without one.
        spec: without a run, the specification of the network, which may have been exported: see ``stated_reading``.
        weights: likewise, its weights.
        options: those of ``Reading.of``; None means the default. With a run, ``step`` and options of other kinds are
            refused.

    Raises:
        ConfigError: an option is given that the run determines.
        ModelError: the description in an exported network is damaged.
    """
    if run is None:
        return reading_of_network(spec, weights, **options)
    known = _of_run(run).reading
    own = {name: value for name, value in options.items() if name != "step" and name in known.to_plain()}
    _refuse_determined(run, {name: value for name, value in options.items() if name not in own})
    return known.with_given(**own)


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
    return stated_crop(spec, weights) if run is None else _of_run(run).crop


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
    if run is None:
        missing = [name for name, value in (("model", spec), ("weights", weights)) if value is None]
        if spec is None or weights is None:
            needed = f"{option('run')}, or {option('model')} and {option('weights')}"
            what = "no network given" if len(missing) == 2 else f"{option(missing[0])} is missing"
            raise ConfigError(f"{what}; give {needed}")
        return spec, weights
    _refuse_determined(run, {"weights": weights})
    found = _of_run(run)
    if not found.weights.exists():
        raise ConfigError(
            f"{run}: holds no finished run of `evenslice train`; name one, or finish it with `evenslice train --out {run} "
            "--resume`"
        )
    library = parse_specification(found.spec).library
    if library:
        _refuse_determined(run, {"model": spec})
    elif spec != found.spec:
        raise ConfigError(
            f"{run}: its network comes from the function {found.spec}; if you trust its module, give "
            f"{option('model', found.spec)} as well"
        )
    return found.spec, str(found.weights)


def _refuse_determined(run: Path, given: dict[str, Any]) -> None:
    """Raise ConfigError for the first option that is given although a run determines it."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{option(name)}: the run {run} determines it; omit it, or omit {option('run')}"
            )


def _of_run(run: Path) -> _RunNetwork:
    from evenslice.training.config import (
        TrainConfig,  # its extra may be missing, and other networks need none
    )
    from evenslice.training.run_folder import RunFolder

    files = RunFolder(run)
    if not files.config.exists():
        raise ConfigError(
            f"{run}: holds no run of `evenslice train`, whose config.yaml says how its network reads volumes; name one, or "
            "restore the file"
        )
    config = load_config(files.config, TrainConfig)
    training = config.training
    return _RunNetwork(
        config.model.spec, files.network, reading_of(config), training.task, training.asked_size
    )
