"""What an audit needs before it can start: volumes opened, a network ready to run, and defaults that depend on both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch import nn

from evenslice._core import ConfigError, ModelError, VolumeError, check_sendable, option
from evenslice.auditing.attribution import attribute
from evenslice.auditing.methods import check_method
from evenslice.auditing.options import LabelValues
from evenslice.inference import BlackBox, ReadyNetwork
from evenslice.networks import function_name, input_multiple, input_size
from evenslice.results import MethodNames
from evenslice.volumes import (
    Volume,
    check_tile,
    class_volume,
    fit_tile,
    open_labels as open_labels_of,
    open_volume,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from evenslice.auditing.measurer import Network
    from evenslice.auditing.options import Computing
    from evenslice.neutralizing import Record

    VolumeLike: TypeAlias = Volume | NDArray[Any] | str | os.PathLike[str]
    Function: TypeAlias = Callable[[Any], Any]

SMALLEST_CROP = 64  # pixels in y and x

__all__ = [
    "check_method_of",
    "choose_crop",
    "choose_methods",
    "choose_slices",
    "choose_tile",
    "make_ready",
    "open_labels",
    "open_volumes",
]


def make_ready(
    model: nn.Module | Function, slices: int, *, outputs: Function | None, computing: Computing
) -> Network:
    """Return a network or function ready to run; raise ConfigError if it cannot be sent to the workers asked for."""
    options: dict[str, Any] = {"device": computing.device, "dtype": computing.dtype, "outputs": outputs}
    if isinstance(model, nn.Module):  # networks can be sent, as they can be copied
        ready: Network = ReadyNetwork(model, slices=slices, **options)
    else:
        ready = BlackBox(model, **options)
    if computing.workers is not None or computing.scheduler is not None:
        if isinstance(ready, BlackBox):
            check_sendable(ready.function, f"the function {ready.name}")
        if outputs is not None:
            check_sendable(outputs, option("outputs", function_name(outputs)))
    return ready


def check_method_of(model: nn.Module | Function, method: str | None) -> None:
    """Raise ConfigError unless a network or function can be explained by a method."""
    if method is None:
        return
    check_method(method)
    if not isinstance(model, nn.Module) and method != "occlusion":
        raise ConfigError(
            f"method {method!r}: needs gradients, which only a torch.nn.Module has; use the method 'occlusion'"
        )


def choose_methods(network: Network, method: str | None, slices: int, tile: tuple[int, int]) -> MethodNames:
    """Return the methods of an audit: as asked for or the default, for the second opinion, and for the use of slices.

    The gradient tells how slices are used wherever there is one: it is signed, and it draws no samples, which would
    differ between a window and its mirror.
    """
    if isinstance(network, BlackBox):
        return MethodNames("occlusion", None, "occlusion")
    if slices == 1:
        return MethodNames(method or "gradient", None, method or "gradient")
    if method != "occlusion":
        return MethodNames(method or "gradient", "occlusion", "gradient")
    if _has_gradient(network, slices, tile):
        return MethodNames("occlusion", "gradient", "gradient")
    return MethodNames("occlusion", None, "occlusion")


def choose_crop(network: Network, slices: int, tile: tuple[int, int]) -> tuple[int, int] | None:
    """Return half the tile for what is measured on the subset, at a quarter of the time; None to measure all of it.

    A network that insists on its size is measured on whole tiles, as on tiles so small that it would see little; so is
    one that does not accept a part together with its mirror.
    """
    if isinstance(network, BlackBox) or network.tile is not None:
        return None
    multiple = network.multiple
    crop = tile[0] // 2 // multiple * multiple, tile[1] // 2 // multiple * multiple
    if min(crop) < SMALLEST_CROP:
        return None
    try:
        with torch.no_grad():
            network(torch.rand(2, slices, *crop, device=network.device))
    except Exception:  # noqa: BLE001  # a network may raise anything; it has accepted the tile
        return None
    return crop


def _has_gradient(network: ReadyNetwork, slices: int, tile: tuple[int, int]) -> bool:
    """Return whether the output of a network depends on its input in a way that autograd knows."""
    try:
        attribute(network, torch.rand(1, slices, *tile, device=network.device), target="sum")
    except ModelError:
        return False
    return True


def choose_slices(model: nn.Module | Function, record: Record | None) -> int:
    """Return the number of slices that ``neutralize`` recorded or a function states, else 3."""
    if record is not None:
        return record.slices
    return (None if isinstance(model, nn.Module) else getattr(model, "slices", None)) or 3


def open_volumes(volume: VolumeLike | Sequence[VolumeLike]) -> list[Volume]:
    """Open one volume or several."""
    return [open_volume(item) for item in _several(volume)]


def _several(volume: VolumeLike | Sequence[VolumeLike]) -> Sequence[VolumeLike]:
    items: Sequence[VolumeLike] = volume if isinstance(volume, list | tuple) else [cast("VolumeLike", volume)]
    if not items:
        raise ConfigError("no volume given; at least one is needed")
    return items


def open_labels(
    labels: VolumeLike | Sequence[VolumeLike] | None, volumes: list[Volume], values: LabelValues
) -> list[Volume] | None:
    """Open the label volumes, one for each volume, as class numbers.

    Raises:
        ConfigError: their number is not that of the volumes.
        VolumeError: one cannot be read, is not of integers, or does not have the shape of its volume.
    """
    if labels is None:
        return None
    given = _several(labels)
    if len(given) != len(volumes):
        raise ConfigError(
            f"{len(given)} label volumes for {len(volumes)} volumes; give one for each, in the same order"
        )
    opened = [open_labels_of(item, volume) for item, volume in zip(given, volumes, strict=True)]
    for label in opened:
        if not np.issubdtype(label.dtype, np.integer):
            raise VolumeError(f"{label.path}: labels of type {label.dtype}; class numbers must be integers")
    if values == LabelValues():
        return opened
    count = None if values.values is None else len(values.values)
    return [
        class_volume(
            label,
            count,
            values.values,
            others=values.others,
            ignore=values.ignore,
            instances=values.instances,
        )
        for label in opened
    ]


def choose_tile(model: nn.Module | Function, volumes: list[Volume]) -> tuple[int, int]:
    """Return the tile (y, x) that a network or function insists on, or one that fits the smallest volume."""
    network = model if isinstance(model, nn.Module) else None
    fixed = getattr(model, "tile", None) if network is None else input_size(network)
    if fixed is not None:
        return check_tile(fixed)
    planes = [volume.shape[1:] for volume in volumes]
    smallest = (min(plane[0] for plane in planes), min(plane[1] for plane in planes))
    return fit_tile(smallest, multiple=32 if network is None else input_multiple(network))
