"""What an audit needs before it can start: defaults that depend on the network and on the volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from evenslice._core import ConfigError, ModelError, option
from evenslice.auditing.attribution import attribute
from evenslice.auditing.methods import check_method
from evenslice.inference import BlackBox, keep_sides, trial_windows
from evenslice.networks import input_multiple, input_size
from evenslice.results import MethodNames
from evenslice.volumes import check_tile, fit_tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from evenslice.auditing.measurer import Network
    from evenslice.inference import ReadyNetwork
    from evenslice.volumes import Volume

    Function: TypeAlias = Callable[[Any], Any]

SMALLEST_CROP = 64  # pixels in y and x

__all__ = [
    "check_method_of",
    "choose_crop",
    "choose_methods",
    "choose_tile",
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
