"""Rewriting: the colour kernels of a network's stems become slice kernels, in place, or a mixer is put in front of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evenslice._core import ModelError
from evenslice.networks import seed_generators
from evenslice.neutralizing.folding import (
    EffectiveKernels,
    add_constant,
    effective_kernels,
    restorer,
    set_width,
    write_kernels,
)
from evenslice.neutralizing.input_path import equalize_input_path, install_plain_stems
from evenslice.neutralizing.mixer import MIXER, MIXER_HINT, add_mixer
from evenslice.neutralizing.probing import Layout, interior, probe
from evenslice.neutralizing.stems import Stem, Stems
from evenslice.neutralizing.strategies import KernelStrategy, spread
from evenslice.neutralizing.ties import symmetric, tie_weight, untie_weight
from evenslice.neutralizing.verification import Border

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.neutralizing.inspection import Inspection

__all__ = ["Request", "RewrittenStems", "mix", "rewrite", "shape_mixer", "shape_stems"]


@dataclass(frozen=True)
class Request:
    """What the user requests; see `evenslice.neutralize`."""

    slices: int
    strategy: KernelStrategy
    tie: str | None
    seed: int


@dataclass(frozen=True)
class RewrittenStems:
    """What was done to a network.

    Attributes:
        stems: what was rewritten, as it is in the network now.
        layouts: for each, which slice its features come from.
        before: for each, its effective kernels (out, C, P, ...) before.
        borders: what takes padding out of the comparison of gray images, where it makes a difference.
    """

    stems: Stems
    layouts: tuple[Layout, ...]
    before: tuple[Tensor, ...]
    borders: tuple[Border, ...] = ()


def rewrite(model: nn.Module, before: Inspection, request: Request, undo: ExitStack) -> RewrittenStems:
    """Give the stems of a network slice kernels; the caller restores torch's random numbers.

    Args:
        model: the network, which is changed in place.
        before: how it was, with its stems.
        request: what to do.
        undo: takes what undoes this.

    Raises:
        ModelError: the path to a stem does not accept so many slices, or mixes its channels.
    """
    stems, old, layouts = _open_path(model, before.stems, request.slices, undo)
    kernels = [
        effective_kernels(stem, layout, before.scaling) for stem, layout in zip(stems.items, old, strict=True)
    ]
    borders = tuple(
        Border(stem, interior(stem, layout), outputs)
        for stem, layout, colours, outputs in zip(stems.items, old, kernels, before.stem_outputs, strict=True)
        if colours.shifted
    )
    everything = request.strategy.name == "random"
    undo.callback(restorer(list(model.modules()) if everything else list(_touched(stems))))
    if request.strategy.drawn:
        seed_generators({parameter.device for parameter in model.parameters()}, request.seed)
    owners = _weight_owners(stems.items)
    for number, (stem, layout, colours, owner) in enumerate(
        zip(stems.items, layouts, kernels, owners, strict=True)
    ):
        # A bias that two stems share gets the constant once.
        constant = (
            number == owner or stem.bias_owner is stem.norm or not _share_bias(stem, stems.items[owner])
        )
        _rewrite(stem, layout, colours, request, owner, constant=constant)
    _share_weights(stems.items, owners, drawn=request.strategy.drawn)
    if everything:
        _draw_anew(model)
    _tie(stems.items, layouts, request.tie, undo)
    return RewrittenStems(stems, layouts, tuple(colours.kernels for colours in kernels), borders)


def mix(model: nn.Module, before: Inspection, request: Request, undo: ExitStack) -> RewrittenStems:
    """Put a slice mixer in front of a network; see `evenslice.neutralizing.mixer`.

    Args:
        model: the network, which is changed in place.
        before: how it was.
        request: what to do.
        undo: takes what undoes this.

    Raises:
        ModelError: the network has another part of the mixer's name.
    """
    scaling = before.scaling
    means, stds = (
        torch.tensor(values, dtype=torch.float64, device="cpu") for values in (scaling.means, scaling.stds)
    )
    scale, shift = scaling.std / stds, (scaling.mean - means) / stds
    stem, layout = _add_mixer(model, scale, shift, request.slices, undo)
    _tie([stem], [layout], request.tie, undo)
    stems = replace(before.stems, items=(stem,))
    return RewrittenStems(stems, (layout,), (torch.diag(scale)[:, :, None, None, None],))


def shape_stems(model: nn.Module, stems: Stems, slices: int, tie: str | None) -> None:
    """Give the stems of a network the shapes and ties that `rewrite` gives them, but no values; it has no undo.

    Raises:
        ModelError: as for `rewrite`.
    """
    undo = ExitStack()  # never closed
    stems, _, layouts = _open_path(model, stems, slices, undo)
    owners = _weight_owners(stems.items)
    for stem, layout in zip(stems.items, layouts, strict=True):
        set_width(stem.module, layout.index.numel())
    _share_weights(stems.items, owners, drawn=True)
    _tie(stems.items, layouts, tie, undo)


def shape_mixer(model: nn.Module, channels: int, slices: int, tie: str | None) -> None:
    """Put a slice mixer in front of a network as `mix` does, for weights to be loaded into; it has no undo."""
    undo = ExitStack()  # never closed
    stem, layout = _add_mixer(
        model, torch.ones(channels, device="cpu"), torch.zeros(channels, device="cpu"), slices, undo
    )
    _tie([stem], [layout], tie, undo)


def _open_path(
    model: nn.Module, stems: Stems, slices: int, undo: ExitStack
) -> tuple[Stems, tuple[Layout, ...], tuple[Layout, ...]]:
    """Make the stems plain layers, and what is in front of them treat all slices alike.

    Returns:
        The stems in the network now; the layout of each for the channels before; and that for the slices.
    """
    stems = install_plain_stems(model, stems, undo)
    old = probe(model, stems, stems.channels)
    equalize_input_path(model, stems, old, slices, undo)
    same = slices == stems.channels and all(layout.is_bare for layout in old)
    return stems, old, old if same else probe(model, stems, slices)


def _add_mixer(
    model: nn.Module, scale: Tensor, shift: Tensor, slices: int, undo: ExitStack
) -> tuple[Stem, Layout]:
    mixer = add_mixer(model, scale, shift, slices, undo)
    layout = Layout(
        index=torch.arange(slices, device="cpu")[None],
        scale=torch.ones(1, slices, dtype=torch.float64, device="cpu"),
        shift=torch.zeros(1, slices, dtype=torch.float64, device="cpu"),
        where=torch.ones(1, slices, 1, 1, device="cpu"),
    )
    return Stem(MIXER, mixer, None, mixer), layout


def _tie(stems: Sequence[Stem], layouts: Sequence[Layout], tie: str | None, undo: ExitStack) -> None:
    if tie is None:
        return
    for stem, layout in zip(stems, layouts, strict=True):
        tie_weight(stem.module, layout, tie)
        undo.callback(untie_weight, stem.module, bake=False)


def _touched(stems: Stems) -> Iterator[nn.Module]:
    for stem in stems.items:
        yield stem.module
        if stem.norm is not None:
            yield stem.norm


def _weight_owners(stems: Sequence[Stem]) -> list[int]:
    """Return for each stem the number of the first one that has the same weight, mostly its own."""
    first: dict[int, int] = {}
    return [first.setdefault(id(stem.module.weight), number) for number, stem in enumerate(stems)]


def _share_weights(stems: Sequence[Stem], owners: Sequence[int], *, drawn: bool) -> None:
    """Let stems that had one weight have one again, though it was given another shape.

    Raises:
        ModelError: they need different weights; those that were drawn do not.
    """
    for stem, owner in zip(stems, owners, strict=True):
        shared = stems[owner].module.weight
        if stem.module.weight is shared:
            continue
        if not drawn and not torch.equal(stem.module.weight, shared):
            raise ModelError(
                f"the layers {stems[owner].label} and {stem.label} share a weight, but get slices that are scaled differently; "
                f"{MIXER_HINT}"
            )
        stem.module.weight = shared


def _share_bias(stem: Stem, other: Stem) -> bool:
    return stem.module.bias is not None and stem.module.bias is other.module.bias


def _rewrite(  # what to do with which stem
    stem: Stem, layout: Layout, colours: EffectiveKernels, request: Request, number: int, *, constant: bool
) -> None:
    """Give one stem its new weights, and its response the constant that makes up for what colours add."""
    if request.strategy.drawn:
        set_width(stem.module, layout.index.numel())
        stem.module.reset_parameters()
        return
    kernels = spread(colours.kernels, layout.index.shape[1], request.strategy, seed=request.seed + number)
    if request.tie is not None:
        kernels = symmetric(kernels, request.tie)
    missing = colours.constant - write_kernels(stem, layout, kernels)
    rounding = 1e-9 * kernels.abs().max()  # not worth a new bias
    if constant and missing.abs().max() > rounding:
        add_constant(stem, missing)


def _draw_anew(model: nn.Module) -> None:
    """Redraw every parameter of a network by its module's own rule.

    A parameter that no rule changes is drawn from the normal distribution with the mean and standard deviation of its values;
    the constants of a frozen batch norm become those of a new one.
    """
    for module in model.modules():
        parameters = [each for each in module.parameters(recurse=False) if not each.is_meta]
        before = [each.detach().clone() for each in parameters]
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        for parameter, old in zip(parameters, before, strict=True):
            # Where a norm of the weights holds them under other names, the module's rule does not reach them.
            if torch.equal(parameter, old) and (parameter.is_floating_point() or parameter.is_complex()):
                values = torch.view_as_real(parameter) if parameter.is_complex() else parameter
                values.normal_(values.mean().item(), values.std(correction=0).item())
        if reset is not None:
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if isinstance(getattr(module, "running_mean", None), Tensor) and buffer.is_floating_point():
                buffer.fill_(name in ("weight", "running_var"))
