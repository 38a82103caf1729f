"""Leveling: whatever stands between the image and the stems is made to treat all channels alike.

A batch norm on the image goes; torchvision's ``transform_input`` is switched off; constants with one value a channel, such
as the mean and std of a normalisation inside the network, become their average; and what states the number of channels
states that of the slices. What these did to the image, the layouts say that were probed before; `evenslice.neutralizing.folding` moves
it into the stems.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evenslice._core import EvensliceError, ModelError
from evenslice.networks import label, random_image
from evenslice.neutralizing.probing import run_to_stems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

    from evenslice.neutralizing.probing import Layout
    from evenslice.neutralizing.stems import Stems

__all__ = ["install_plain", "level", "replace_module"]

WIDTHS = ("in_channels", "in_chans", "num_channels")
"""Attributes that say how many channels an image has, on what contains a stem or on its configuration."""


def install_plain(model: nn.Module, stems: Stems, undo: ExitStack) -> Stems:
    """Put plain layers where the stems of a network are computed or grouped ones, in place.

    Args:
        model: the network.
        stems: what `evenslice.neutralizing.stems.find_stems` found in it.
        undo: takes what undoes this.

    Returns:
        The stems that are in the network now.
    """
    for stem in stems.items:
        if stem.module is not stem.reader:
            replace_module(model, stem.reader, stem.module, undo)
    return replace(stems, items=tuple(replace(stem, reader=stem.module) for stem in stems.items))


def level(model: nn.Module, stems: Stems, layouts: Sequence[Layout], slices: int, undo: ExitStack) -> None:
    """Make what stands between the image and the stems treat all channels alike, in place.

    Args:
        model: the network.
        stems: what `evenslice.neutralizing.stems.find_stems` found in it.
        layouts: what `evenslice.neutralizing.probing.probe` says for the channels that the network takes now.
        slices: N, the number of channels that it is to take.
        undo: takes what undoes this.
    """
    for name in stems.norms:
        replace_module(model, model.get_submodule(name), nn.Identity(), undo)
    for module in model.modules():
        if getattr(module, "transform_input", None) is True:
            _set(module, "transform_input", False, undo)
    if slices != stems.channels or not all(layout.is_bare for layout in layouts):
        for owner, name in _constants_on_the_way(model, stems):
            _set(owner, name, _averaged(getattr(owner, name), slices), undo)
    if slices != stems.channels:
        for owner, name in _stated_widths(model, stems):
            _set(owner, name, slices, undo)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module, undo: ExitStack) -> None:
    """Put a module in the place of another, wherever in a network that is registered.

    Raises:
        ModelError: the other is the network itself.
    """
    if old is model:
        raise ModelError(
            f"{label('', model)} is the network itself, and cannot be replaced in place; give evenslice"
            " torch.nn.Sequential(it)"
        )
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # noqa: SLF001  # the public ways skip what comes twice
            if child is old:
                _set(parent, name, new, undo)


def _set(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _constants_on_the_way(model: nn.Module, stems: Stems) -> list[tuple[nn.Module, str]]:
    """Find constants with one value a channel that change what arrives at a stem, by changing each in turn."""
    constants = list(_constants(model, stems.channels))
    if not constants:
        return []
    image = random_image(model, (1, stems.channels, *stems.size))
    usual = [passage.arrived for passage in run_to_stems(model, stems, image, run=False)]
    found = []
    for owner, name in constants:
        value = getattr(owner, name)
        setattr(owner, name, _moved(value))
        try:
            arrived = [passage.arrived for passage in run_to_stems(model, stems, image, run=False)]
            if any(not torch.equal(old, new) for old, new in zip(usual, arrived, strict=True)):
                found.append((owner, name))
        except EvensliceError:  # it is not a number to scale by
            pass
        finally:
            setattr(owner, name, value)
    return found


def _constants(model: nn.Module, channels: int) -> Iterator[tuple[nn.Module, str]]:
    """Yield what holds one number a channel and is no parameter: buffers, other tensors, lists and tuples of floats."""
    if channels == 1:
        return
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if _is_constant(buffer, channels):
                yield module, name
        for name, value in vars(module).items():
            if _is_constant(value, channels):
                yield module, name


def _is_constant(value: Any, channels: int) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.numel() == channels and channels in value.shape
    return (
        type(value) in (list, tuple)
        and len(value) == channels
        and all(isinstance(item, int | float) for item in value)
        and any(isinstance(item, float) for item in value)
    )


def _moved(value: Any) -> Any:
    """Return a constant with other values, none of them 0."""
    return (
        value * 1.5 + 0.25 if isinstance(value, Tensor) else type(value)(item * 1.5 + 0.25 for item in value)
    )


def _averaged(value: Any, slices: int) -> Any:
    """Return a constant for N slices: its average for each, so that padding with 0 goes on meaning much the same."""
    if not isinstance(value, Tensor):
        return type(value)([sum(value) / len(value)] * slices)
    shape = [slices if length == value.numel() else length for length in value.shape]
    return value.mean().expand(shape).contiguous()


def _stated_widths(model: nn.Module, stems: Stems) -> Iterator[tuple[Any, str]]:
    """Yield the attributes that state the number of channels, on what contains the stems and its configurations."""
    for name, module in model.named_modules():
        if not any(
            stem.name.startswith(f"{name}." if name else "") and stem.name != name for stem in stems.items
        ):
            continue
        for owner in (module, vars(module).get("config")):
            for width in WIDTHS:
                value = vars(owner).get(width) if hasattr(owner, "__dict__") else None
                if value == stems.channels and type(value) is int:
                    yield owner, width
