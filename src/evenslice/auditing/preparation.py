"""What an audit needs before it can start: volumes opened, and defaults that depend on them and on the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import nn

from evenslice._core import ConfigError, ModelError, option
from evenslice.auditing.attribution import attribute
from evenslice.auditing.methods import check_method
from evenslice.inference import BlackBox, keep_sides, trial_windows
from evenslice.networks import input_multiple, input_size
from evenslice.results import MethodNames
from evenslice.volumes import (
    check_tile,
    fit_scaling,
    fit_tile,
    open_labels as open_labels_of,
    open_volume,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from evenslice.auditing.measurer import Network
    from evenslice.inference import ReadyNetwork, VolumeLike
    from evenslice.volumes import LabelValues, Scaling, Volume

    Function: TypeAlias = Callable[[Any], Any]

SMALLEST_CROP = 64  # pixels in y and x

__all__ = [
    "check_method_of",
    "choose_crop",
    "choose_methods",
    "choose_scalings",
    "choose_tile",
    "open_labels",
    "open_volumes",
]


def check_method_of(model: nn.Module | Function, method: str | None) -> None:
    """Raise ConfigError unless a network or function can be explained by a method."""
    if method is None:
        return
    check_method(method)
    if not isinstance(model, nn.Module) and method != "occlusion":
        raise ConfigError(
            f"{option('method', method)}: needs gradients, which only a torch.nn.Module has; use the method 'occlusion'"
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
            network(trial_windows(slices, crop).repeat(2, 1, 1, 1).to(network.device))
    except Exception:  # noqa: BLE001  # a network may raise anything; it has accepted the tile
        return None
    return crop


def _has_gradient(network: ReadyNetwork, slices: int, tile: tuple[int, int]) -> bool:
    """Return whether the output of a network depends on its input in a way that autograd knows."""
    try:
        attribute(network, trial_windows(slices, tile).to(network.device), target="sum")
    except ModelError:
        return False
    return True


def open_volumes(volume: VolumeLike | Sequence[VolumeLike], fill: float | None) -> list[Volume]:
    """Open one volume or several, the masked voxels of arrays filled."""
    return [open_volume(item, fill=fill) for item in _several(volume)]


def _several(volume: VolumeLike | Sequence[VolumeLike]) -> Sequence[VolumeLike]:
    items: Sequence[VolumeLike] = volume if isinstance(volume, list | tuple) else [cast("VolumeLike", volume)]
    if not items:
        raise ConfigError("no volume given; at least one is needed")
    return items


def open_labels(
    labels: VolumeLike | Sequence[VolumeLike] | None,
    volumes: list[Volume],
    values: LabelValues,
    classes: int | None,
) -> list[Volume] | None:
    """Open the label volumes, one for each volume, as the class numbers of a network; None if it states no number of classes.

    Raises:
        ConfigError: their number is not that of the volumes, or the values do not suit the classes.
        VolumeError: one cannot be read, or does not have the shape or the place of its volume.
    """
    if labels is None:
        return None
    given = _several(labels)
    if len(given) != len(volumes):
        raise ConfigError(
            f"{len(given)} label volumes for {len(volumes)} volumes; give one for each, in the same order"
        )
    opened = [open_labels_of(item, volume) for item, volume in zip(given, volumes, strict=True)]
    return [values.class_volume(label, classes) for label in opened]


def choose_scalings(
    volumes: Sequence[Volume],
    scalings: Sequence[Scaling] | None,
    *,
    intensity: tuple[float, float] | None,
    fill: float | None,
    seed: int,
) -> Sequence[Scaling]:
    """Return the scaling of each volume, as given or fitted; raise ConfigError if they do not fit together."""
    if scalings is None:
        return [fit_scaling(item, intensity=intensity, fill=fill, seed=seed) for item in volumes]
    if intensity is not None or fill is not None:
        raise ConfigError(
            f"{option('intensity')} and {option('fill')} have no effect with {option('scalings')}; give one or the other"
        )
    if len(scalings) != len(volumes):
        raise ConfigError(f"{len(scalings)} scalings for {len(volumes)} volumes; give one for each")
    return scalings


def choose_tile(model: nn.Module | Function, volumes: list[Volume]) -> tuple[int, int]:
    """Return the tile (y, x) that a network or function insists on, or one that fits the smallest volume."""
    network = model if isinstance(model, nn.Module) else None
    fixed = getattr(model, "tile", None) if network is None else input_size(network)
    if fixed is not None:
        return check_tile(fixed)
    planes = [volume.shape[1:] for volume in volumes]
    smallest = (min(plane[0] for plane in planes), min(plane[1] for plane in planes))
    tile = fit_tile(smallest, multiple=32 if network is None else input_multiple(network))
    return tile if network is not None else keep_sides(model, tile)
