"""What an audit needs before it can start: how outputs are to be understood, and defaults that depend on the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from evenslice._core import ConfigError, option
from evenslice.auditing.methods import check_method
from evenslice.auditing.targets import Explained, LastActivation, resolve_target
from evenslice.inference import BlackBox, holds_probabilities, keep_sides, trial_windows
from evenslice.networks import (
    ends_in_sigmoid,
    ends_in_softmax,
    input_multiple,
    input_size,
    logits,
    normalization,
)
from evenslice.neutralizing import recorded_on
from evenslice.volumes import check_tile, fit_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from evenslice.auditing.targets import Target
    from evenslice.inference import ReadyNetwork
    from evenslice.volumes import Volume

    Function: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Understood:
    """How the output of a network is understood.

    Attributes:
        explained: what is explained.
        name: of that: "log-odds", "channel", "score" or "class numbers".
        assumed: whether it was assumed that classes exclude each other.
        gradient: whether the output has a gradient.
    """

    explained: Explained
    name: str
    assumed: bool
    gradient: bool


def check_method_of(model: nn.Module | Function, method: str | None) -> None:
    """Raise ConfigError unless a network or function can be explained by a method."""
    if method is None:
        return
    check_method(method)
    if not isinstance(model, nn.Module) and method != "occlusion":
        raise ConfigError(
            f"{option('method', method)}: needs gradients, which only a torch.nn.Module has; use the method 'occlusion', "
            "or leave it out"
        )


def understand(
    network: ReadyNetwork | BlackBox,
    returned: Any,
    *,
    slices: int,
    tile: tuple[int, int],
    target: Target,
    overlapping: bool | None,
    margin: tuple[float, float] = (0.0, 0.0),
) -> Understood:
    """Tell how the output of a network is to be understood.

    A sigmoid at the end of several channels, which the graph of the network shows, says that they overlap; a softmax that
    they exclude each other. What does not say is taken for the logits of classes that exclude each other.

    Args:
        network: ready to run.
        returned: what it returned for the window of noise from ``trial_windows``.
        slices: N.
        tile: size (y, x) of the windows.
        target: as given by the user.
        overlapping: as given by the user; None if the network is to tell.
        margin: part of each side of the windows in which answers are not compared.

    Raises:
        ModelError: the target needs classes and the output has none.
        ConfigError: an output without channels is said to have ``overlapping`` ones.
    """
    target = resolve_target(target, returned)
    fresh, undone = _run(network, slices, tile)
    gradient = fresh.requires_grad
    channels = fresh.is_floating_point() and fresh.ndim in (2, 4) and fresh.shape[1] > 1 and target != "sum"
    if overlapping and not channels:
        raise ConfigError(
            f"{option('overlapping', overlapping)}: tells how several channels of classes are to be read; the network "
            f"returns {tuple(fresh.shape)}: leave it out"
        )
    if target == "sum":
        return Understood(Explained("sum", margin=margin), "score", assumed=False, gradient=gradient)
    if not fresh.is_floating_point():
        return Understood(Explained(target, margin=margin), "class numbers", assumed=False, gradient=False)
    sigmoid, softmax = ends_in_sigmoid(fresh), ends_in_softmax(fresh)
    found = holds_probabilities(network, fresh, slices, tile)
    several = channels and (sigmoid or found == "sigmoid")
    explained = Explained(
        target,
        overlapping=several if overlapping is None else overlapping,
        probabilities=not undone and (sigmoid or found is not None),
        margin=margin,
    )
    return Understood(
        explained,
        "channel" if explained.overlapping else "log-odds",
        assumed=channels and overlapping is None and not (several or softmax or found == "softmax"),
        gradient=gradient,
    )


def _run(network: ReadyNetwork | BlackBox, slices: int, tile: tuple[int, int]) -> tuple[torch.Tensor, bool]:
    """Return the output for a window of noise with its graph, and whether its last activation can be undone."""
    windows = trial_windows(slices, tile).to(network.device)
    if isinstance(network, BlackBox):
        return logits(network(windows)), False
    with torch.enable_grad(), LastActivation() as last:
        output = logits(network(windows.requires_grad_()))
    return output, last.undone(output) is not output


def scaling_source(model: nn.Module | Function) -> str:
    """Return where the scaling of slices in 0..1 comes from, as ``AuditRun.scaling`` says it.

    Example:
        >>> scaling_source(nn.Conv2d(3, 8, 3))
        'assumed'
    """
    if not isinstance(model, nn.Module):
        return "function"
    part = recorded_on(model)
    if part is not None:
        return "recorded on a part" if part else "recorded"
    return "assumed" if normalization(model) is None else "stated"


def corner_of(
    name: str, centre: Sequence[int] | None, tile: tuple[int, int], plane: tuple[int, int]
) -> tuple[int, int]:
    """Return the corner (y, x) of the tile around a pixel of a plane, or in its middle, as far inside as it fits.

    Raises:
        ConfigError: the option ``name`` gives a pixel outside of the plane.

    Example:
        >>> corner_of("at", (0, 90), (32, 32), (20, 100)), corner_of("at", None, (32, 32), (64, 64))
        ((0, 68), (16, 16))
    """
    y, x = centre or (plane[0] // 2, plane[1] // 2)
    if not (0 <= y < plane[0] and 0 <= x < plane[1]):
        raise ConfigError(
            f"{option(name, (y, x))}: y, x lies outside of the plane; give a pixel of {plane[0]} x {plane[1]}"
        )
    return (
        max(0, min(y - tile[0] // 2, plane[0] - tile[0])),
        max(0, min(x - tile[1] // 2, plane[1] - tile[1])),
    )


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
