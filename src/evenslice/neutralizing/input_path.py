"""The path from the image to the stems, made to treat all channels alike.

A batch norm on the image is removed; torchvision's ``transform_input`` is switched off; constants with one value a
channel, such as the mean and std of a normalization inside the network, become their average; and attributes that state
the number of channels state that of the slices. The layouts that were probed before tell what these did to the image;
`evenslice.neutralizing.folding` moves it into the stems.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evenslice._core import EvensliceError, ModelError
from evenslice.networks import layer_label, random_image
from evenslice.neutralizing.probing import run_to_stems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

    from evenslice.neutralizing.probing import Layout
    from evenslice.neutralizing.stems import Stems

__all__ = ["equalize_input_path", "install_plain_stems", "replace_module"]

WIDTHS = ("in_channels", "in_chans", "num_channels")
"""Attributes of modules that contain a stem, or of their configuration, that state the number of channels."""


def install_plain_stems(model: nn.Module, stems: Stems, undo: ExitStack) -> Stems:
    """Put plain layers in the place of a network's computed or grouped stems.

    Args:
        model: the network.
        stems: from `evenslice.neutralizing.stems.find_stems`.
        undo: takes what undoes this.

    Returns:
        The stems that are in the network now.
    """
    for stem in stems.items:
        if stem.module is not stem.reader:
            replace_module(model, stem.reader, stem.module, undo)
    return replace(stems, items=tuple(replace(stem, reader=stem.module) for stem in stems.items))


def equalize_input_path(
    model: nn.Module, stems: Stems, layouts: Sequence[Layout], slices: int, undo: ExitStack
) -> None:
    """Make the path from the image to the stems treat all channels alike, in place.

    Args:
        model: the network.
        stems: from `evenslice.neutralizing.stems.find_stems`.
        layouts: from `evenslice.neutralizing.probing.probe`, for the channels that the network takes now.
        slices: N, the number of channels that it will take.
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
    """Replace a module wherever it is registered in a network.

    Raises:
        ModelError: it is the network itself.
    """
    if old is model:
        raise ModelError(
            f"{layer_label('', model)} is the network itself and cannot be replaced in place;"
            " wrap it in torch.nn.Sequential"
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
    usual = [call.input for call in run_to_stems(model, stems, image, run=False)]
    found = []
    for owner, name in constants:
        value = getattr(owner, name)
        setattr(owner, name, _moved(value))
        try:
            arrived = [call.input for call in run_to_stems(model, stems, image, run=False)]
            if any(not torch.equal(old, new) for old, new in zip(usual, arrived, strict=True)):
                found.append((owner, name))
        except EvensliceError:  # not a number to scale by
            pass
        finally:
            setattr(owner, name, value)
    return found


def _constants(model: nn.Module, channels: int) -> Iterator[tuple[nn.Module, str]]:
    """Yield constants with one number a channel: buffers, other tensors, lists and tuples of floats."""
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
    """Return a constant for N slices, its average for each, so that padding with 0 keeps about the same meaning."""
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
