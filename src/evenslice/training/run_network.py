"""The network of a training run, and how it reads volumes; or any other network, for commands that take either.

segmenter = load_segmenter(Path("run"))
evenslice.segment(segmenter, "brain.nii.gz", "labels.tif")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, load_config, option
from evenslice.inference import Segmenter, open_segmenter, stated_reading
from evenslice.networks import parse_specification
from evenslice.neutralizing import load_network
from evenslice.volumes import Reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class NetworkSource:
    """Where a network comes from, and how it reads volumes and their labels.

    Attributes:
        spec: its specification.
        weights: its weights.
        reading: as its run or its file says, unless the user does; None if neither does.
        crop: the size (y, x) of windows that it is asked about: that of the crops of a classifier, else None.
        task: what the run trained it for.
    """

    spec: str
    weights: str
    reading: Reading | None
    crop: tuple[int, int] | None
    task: str = "segmentation"


def load_segmenter(
    run: Path | None = None,
    spec: str | None = None,
    weights: str | None = None,
    *,
    slices: int | None = None,
    classes: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    symmetrize: str | None = None,
    reading: Mapping[str, Any] | None = None,
) -> Segmenter:
    """Load the network of a training run, or any other.

    Args:
        run: see ``find_network``.
        spec: likewise; or "onnx".
        weights: likewise; or the ONNX file.
        slices: as for ``open_segmenter``, and not with a run, which determines it.
        classes: likewise.
        mean: likewise.
        std: likewise.
        symmetrize: as for ``open_segmenter``.
        reading: options of ``Reading`` by name, which change what is stated.

    Raises:
        ConfigError: see ``find_network``; or an option is given that the run, or the ONNX file, determines.
        ModelError: the network cannot be loaded.
    """
    built: dict[str, Any] = {"slices": slices, "classes": classes, "mean": mean, "std": std}
    if run is None:
        found = _given_network(spec, weights)
        return open_segmenter(*found, **built, symmetrize=symmetrize, reading=reading)
    network = find_network(run, spec, weights, reading=reading, fixed=built)
    model, record, source = load_network(network.spec, network.weights, symmetrize=symmetrize)
    return Segmenter(
        model, record.slices, network.reading or Reading(), source, run, network.task, network.crop
    )


def find_network(
    run: Path | None,
    spec: str | None,
    weights: str | None,
    *,
    reading: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> NetworkSource:
    """Return where a network comes from, and how it reads volumes, without loading it.

    Args:
        run: the folder of a finished run of ``train``; or
        spec: a network, see ``evenslice.networks.specification``, and
        weights: its weights, as ``load_network`` takes them. With a run, ``spec`` is allowed if the network comes from
            a function: a folder alone, which may be anybody's, has no function called.
        reading: options of ``Reading`` by name, which change what is stated.
        fixed: options of the network, None if not given, of which a run allows none.

    Raises:
        ConfigError: neither a run nor a network is given, or both are; or the run is not finished, or determines an option,
            or its network comes from a function that was not repeated.
        ModelError: the description in an exported network is damaged.
    """
    given = {name: value for name, value in (reading or {}).items() if value is not None}
    if run is None:
        spec, weights = _given_network(spec, weights)
        stated, crop = stated_reading(spec, weights)
        read = (stated or Reading()).with_given(given) if given else stated
        return NetworkSource(spec, weights, read, crop)
    _refuse_determined(run, {**(fixed or {}), "step": given.get("step"), "weights": weights})
    from evenslice.training.config import (
        TrainConfig,  # its extra may be missing, and other networks need none
    )
    from evenslice.training.run_folder import RunFolder

    files = RunFolder(run)
    if not (files.config.exists() and files.network.exists()):
        raise ConfigError(
            f"{run}: holds no finished run of `evenslice train`; name one, or finish it with `evenslice train --out {run} "
            "--resume`"
        )
    config = load_config(files.config, TrainConfig)
    own, training = config.model.spec, config.training
    if parse_specification(own).library:
        _refuse_determined(run, {"model": spec})
    elif spec != own:
        raise ConfigError(
            f"{run}: its network comes from the function {own}; if you trust its module, give "
            f"{option('model', own)} as well"
        )
    read = config.reading.with_given(given)
    return NetworkSource(own, str(files.network), read, training.asked_size, training.task)


def _given_network(spec: str | None, weights: str | None) -> tuple[str, str]:
    """Return a specification and weights, of which neither may be missing."""
    if spec is None or weights is None:
        raise ConfigError(
            f"no network given; give {option('run')}, or {option('model')} and {option('weights')}"
        )
    return spec, weights


def _refuse_determined(run: Path, given: dict[str, Any]) -> None:
    """Raise ConfigError for the first option that is given although a run determines it."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{option(name)}: the run {run} determines it; omit it, or omit {option('run')}"
            )
