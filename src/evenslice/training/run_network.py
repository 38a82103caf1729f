"""The network of a training run, and how it reads volumes; or any other network, for commands that take either.

segmenter = find_network(Path("run")).load()
evenslice.segment(segmenter, "brain.nii.gz", "labels.tif")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, option
from evenslice.inference import Segmenter, stated_reading
from evenslice.networks import parse_specification
from evenslice.neutralizing import load_network
from evenslice.volumes import Reading

if TYPE_CHECKING:
    from collections.abc import Mapping
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
        run: the folder of the run, if it comes from one.
    """

    spec: str
    weights: str
    reading: Reading | None
    crop: tuple[int, int] | None
    task: str = "segmentation"
    run: Path | None = None

    def load(self, symmetrize: str | None = None) -> Segmenter:
        """Load the network, averaged over each window and its mirror where ``symmetrize`` says.

        Raises:
            ModelError: it cannot be loaded.
        """
        model, record, source = load_network(self.spec, self.weights, symmetrize=symmetrize)
        reading = self.reading or Reading()
        return Segmenter(model, record.slices, reading, source, self.run, self.task, self.crop)


def find_network(
    run: Path | None,
    spec: str | None = None,
    weights: str | None = None,
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
        if spec is None or weights is None:
            raise ConfigError(
                f"no network given; give {option('run')}, or {option('model')} and {option('weights')}"
            )
        stated, crop = stated_reading(spec, weights)
        read = (stated or Reading()).with_given(given) if given else stated
        return NetworkSource(spec, weights, read, crop)
    _refuse_determined(run, {**(fixed or {}), "step": given.get("step"), "weights": weights})
    from evenslice._core import load_config  # the extra of both may be missing, and other networks need none
    from evenslice.training.config import TrainConfig
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
    return NetworkSource(own, str(files.network), read, training.asked_size, training.task, run)


def _refuse_determined(run: Path, given: dict[str, Any]) -> None:
    """Raise ConfigError for the first option that is given although a run determines it."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{option(name)}: the training in {run} determines it; omit it, or omit {option('run')}"
            )
