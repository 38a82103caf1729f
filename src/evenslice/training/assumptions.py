"""What a training run assumes, in a few lines for its user: the network, scaling, slices, precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice.inference import Disturbances
from evenslice.networks import missing_parts
from evenslice.training.preflight import find_device, find_dtype
from evenslice.training.tasks import stressed_slices
from evenslice.volumes import PERCENTILES, describe_missing_numbers, missing_slice_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.networks import ModelSource
    from evenslice.neutralizing import Record
    from evenslice.training.config import TrainConfig
    from evenslice.training.data import Data
    from evenslice.volumes import LabelledVolume

__all__ = ["describe_assumptions"]

MOST_NAMED = 3  # stems, and ranges of intensities


def describe_assumptions(
    config: TrainConfig, data: Data, record: Record, source: ModelSource
) -> tuple[str, ...]:
    """Return lines that say what was chosen for a training run, by its configuration or by default."""
    return (
        f"network: {config.model.spec}, {source.origin}{_missing(source)}",
        f"slices: {_slices(config, record, source)}",
        f"scaling: {_scaling(config, data)} become 0..1; then mean {record.mean:.4g}, standard deviation {record.std:.4g}",
        f"data: {_splits(data)}; {config.data.classes} classes",
        *_missing_slices(data),
        f"training: {_training(config)}",
        *_stress(config, data),
    )


def _missing(source: ModelSource) -> str:
    missing = missing_parts(source.weights, source.random)
    return f"; it lacks {', '.join(missing)}, which start random" if missing else ""


def _slices(config: TrainConfig, record: Record, source: ModelSource) -> str:
    model = config.model
    lifted = (
        ""
        if source.inputs in (None, record.slices)
        else f" lifted from {source.inputs} inputs to {record.slices}"
    )
    stems = ", ".join(record.stems[:MOST_NAMED]) + (" ..." if len(record.stems) > MOST_NAMED else "")
    noun = "stem" if len(record.stems) == 1 else "stems"
    return ", ".join(
        (
            f"{record.slices} a window, {model.step} apart"
            + (f" along {config.data.plane}" if config.data.plane != "z" else ""),
            f"strategy {record.strategy}" + (f" tied {record.tie}" if record.tie else ""),
            *([f"{noun} {stems}{lifted}"] if stems else []),
            *(["averaged over the window and its mirror"] if record.symmetrized else []),
        )
    )


def _scaling(config: TrainConfig, data: Data) -> str:
    parts = (*data.train, *data.validation, *data.test)
    ranges = list(dict.fromkeys(f"{part.scaling.low:g}..{part.scaling.high:g}" for part in parts))
    shown = ", ".join(ranges[:MOST_NAMED]) + (" ..." if len(ranges) > MOST_NAMED else "")
    low, high = PERCENTILES
    why = "data.intensity" if config.data.intensity is not None else f"percentiles {low:g} and {high:g}"
    return f"voxel values {shown} ({why})"


def _splits(data: Data) -> str:
    return ", ".join(_part(split, getattr(data, split)) for split in ("train", "validation", "test"))


def _missing_slices(data: Data) -> list[str]:
    """Say which slices folders of slices lack; each folder once, although several parts may be of it."""
    found = {
        part.volume.location: numbers
        for part in (*data.train, *data.validation, *data.test)
        if (numbers := missing_slice_numbers(part.volume))
    }
    return [
        f"{folder}: missing slices {describe_missing_numbers(numbers)}" for folder, numbers in found.items()
    ]


def _part(split: str, parts: Sequence[LabelledVolume]) -> str:
    if not parts:
        return f"no {split}"
    volumes = f" in {len(parts)} volumes" if len(parts) > 1 else ""
    return f"{split} {sum(len(part.labels) for part in parts)} slices{volumes}"


def _training(config: TrainConfig) -> str:
    options = config.training
    device = find_device(options).type
    places = f"{options.devices} x {device}" if options.devices > 1 else device
    precision = str(find_dtype(options)).removeprefix("torch.")
    crop = f"{options.crop[0]} x {options.crop[1]}"
    return f"{options.steps} steps of {options.batch} crops of {crop}, {precision} on {places}, seed {config.seed}"


def _stress(config: TrainConfig, data: Data) -> list[str]:
    """Announce the stress test, which may take longer than a short training."""
    slices = stressed_slices(data.test, config)
    if not slices:
        return []
    more = slices * (len(Disturbances(config.model.slices)) - 1)
    return [
        f"test: with {more} more windows that lack slices or are disturbed; training.stress: false leaves them out"
    ]
