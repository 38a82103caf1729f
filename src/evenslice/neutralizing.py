"""Neutralize: turn a network for colours into one for windows of slices, and check that it is fair.

Example:
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> record = neutralize(network, slices=5)
    >>> network[0].weight.shape
    torch.Size([8, 5, 3, 3])
    >>> window = torch.rand(1, 5, 32, 32)
    >>> torch.allclose(network(window), network(window.flip(1)), atol=1e-5)
    True
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from evenslice.errors import ModelError
from evenslice.folding import (
    ChannelScaling,
    Met,
    add_constant,
    constant_taker,
    find_scaling,
    kernels_as_met,
    restorer,
    set_width,
    write_kernels,
)
from evenslice.models import logits
from evenslice.records import Kernels, Record, keep_record, record_of
from evenslice.stems import Layout, Stems, find_stems, interior, probe, undisturbed
from evenslice.strategies import STRATEGIES, Strategy, find_strategy, spread
from evenslice.tying import check_tie, is_tied, symmetric, tie_weight, untie_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["STRATEGIES", "Record", "neutralize", "record_of", "untie"]

_Mask = tuple[nn.Module, Tensor]  # a module, and what to multiply its output by


def neutralize(
    model: nn.Module,
    slices: int = 3,
    *,
    strategy: str | Sequence[float] = "uniform",
    tie: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> Record:
    """Make a network take windows of slices by a strategy, in place, and check what the strategy promises.

    The stems are found (see `evenslice.stems`), their colour kernels become slice kernels (see `evenslice.strategies`),
    and the scaling by channel that the network was trained with moves into the weights (see `evenslice.folding`). With
    the channels c of an image g scaled as (g - m_c) / s_c until now, all slices are scaled as (g - m) / s from now on,
    where m and s are the means of m_c and s_c. A constant that is left goes into the bias of the stem, else into the
    running mean of the batch norm that follows, else into a new bias.

    Args:
        model: takes (batch, channels, y, x); any number of channels. Weights keep their dtype, device and
            `requires_grad`; a weight whose shape changes is a new parameter, so make the optimizer afterwards.
        slices: N, odd.
        strategy: one of `STRATEGIES`, or N symmetric weights that sum to 1 for the strategy "profile".
        tie: "mirror" keeps opposite slices equal whatever is learned, "uniform" all slices, None neither. See `untie`.
        mean: what the network's channels were centred by, one value for each or one for all. By default what the
            record of an earlier `neutralize` says, else what the pretrained weights say, else 0. Where the pretrained
            weights say another number of values than the network has channels, their average serves for all.
        std: what they were divided by afterwards, likewise; 1 where nothing is known.
        seed: of what "shuffle", "reinit" and "random" draw. The state of torch's own random numbers is left alone.
        size: in-plane size (y, x) in pixels of the images for the check; by default the first that the network accepts of
            the one it states itself and of 64, 224, 256, 384 and 512.

    Returns:
        What was done, how to scale the slices, and the errors measured. `record_of` gives it again.

    Raises:
        ConfigError: an option is not one that evenslice knows.
        ModelError: the stems cannot be found or rewritten, the network is tied, or it does not keep what the strategy
            promises: mirror and permutation errors of at most 1e-5 and a gray error of at most 1e-4, or four times what
            changing the last bit of its input does, if that is more, as in half precision and in networks that magnify
            rounding. After any error the network is as it was before.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> record = neutralize(network, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        >>> record.stems, round(record.mean, 3), round(record.std, 3)
        (('0',), 0.449, 0.226)
    """
    chosen = find_strategy(strategy, slices)
    check_tie(tie)
    if any(is_tied(module) for module in model.modules()):
        raise ModelError("the network is tied; call evenslice.untie(model) before neutralizing it again")
    present = record_of(model)
    with undisturbed(model), torch.no_grad(), ExitStack() as undo:
        stems = find_stems(model, channels=(present.slices,) if present else (), size=size)
        known = (present.mean, present.std) if present else None
        scaling = find_scaling(model, stems.channels, mean, std, known)
        shared = scaling.shared(slices)
        layouts = probe(model, stems, stems.channels)
        before = _met(stems, layouts, scaling)
        masks = _masks(stems, layouts, before)
        reference = _gray_output(model, stems, scaling, masks)

        undo.callback(restorer(list(model.modules()) if chosen.name == "random" else list(_touched(stems))))
        _switch_off_transform_input(model, undo)
        layouts = probe(model, stems, slices)
        _rewrite(model, stems, layouts, before, chosen, tie, seed)
        for stem, layout in zip(stems.items, layouts, strict=True):
            if tie is not None:
                tie_weight(stem.module, layout, tie)
                undo.callback(untie_weight, stem.module, bake=False)

        mirror_error, permutation_error, rounding = _order_errors(model, stems, shared)
        after = _met(stems, layouts, shared)
        record = Record(
            strategy=chosen.name,
            profile=chosen.profile,
            tie=tie,
            slices=slices,
            seed=seed,
            stems=tuple(stem.name for stem in stems.items),
            mean=scaling.mean,
            std=scaling.std,
            mirror_error=mirror_error,
            permutation_error=permutation_error,
            gray_error=_difference(reference, _gray_output(model, stems, shared, masks)),
            kernels=tuple(
                Kernels(stem.name, _picture(old.kernels), _picture(new.kernels))
                for stem, old, new in zip(stems.items, before, after, strict=True)
            ),
        )
        _check(record, chosen, stems, rounding)
        undo.pop_all()
    keep_record(model, record)
    return record


def untie(model: nn.Module) -> None:
    """Bake the ties of a network into its weights: it computes the same as before, and may learn freely from now on.

    The tied weights stay the same parameters, so an optimizer that has them goes on. A network without ties is left
    alone. Afterwards the state dict has its plain keys, and the record, if there is one, says that nothing is tied.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> record = neutralize(network, tie="mirror")
        >>> list(network.state_dict())
        ['0.bias', '0.parametrizations.weight.original']
        >>> untie(network)
        >>> sorted(network.state_dict())
        ['0.bias', '0.weight']
    """
    for module in model.modules():
        if is_tied(module):
            untie_weight(module)
    record = record_of(model)
    if record is not None:
        keep_record(model, replace(record, tie=None))


def _met(stems: Stems, layouts: Sequence[Layout], scaling: ChannelScaling) -> list[Met]:
    return [kernels_as_met(stem, layout, scaling) for stem, layout in zip(stems.items, layouts, strict=True)]


def _touched(stems: Stems) -> Iterator[nn.Module]:
    for stem in stems.items:
        yield stem.module
        if stem.norm is not None:
            yield stem.norm


def _switch_off_transform_input(model: nn.Module, undo: ExitStack) -> None:
    """Switch off torchvision's scaling of exactly three channels, which the probe has seen and which gets folded."""
    for module in model.modules():
        if getattr(module, "transform_input", None) is True:
            undo.callback(setattr, module, "transform_input", True)
            setattr(module, "transform_input", False)  # noqa: B010  # torch types attributes of modules as modules


def _rewrite(
    model: nn.Module,
    stems: Stems,
    layouts: Sequence[Layout],
    before: Sequence[Met],
    strategy: Strategy,
    tie: str | None,
    seed: int,
) -> None:
    """Give the stems their new weights; the state of torch's random numbers is the caller's to keep."""
    torch.manual_seed(seed)
    for number, (stem, layout, met) in enumerate(zip(stems.items, layouts, before, strict=True)):
        if strategy.drawn:
            set_width(stem.module, layout.index.numel())
            stem.module.reset_parameters()
            continue
        kernels = spread(met.kernels, layout.index.shape[1], strategy, seed=seed + number)
        if tie is not None:
            kernels = symmetric(kernels, tie)
        constant = met.constant - write_kernels(stem, layout, kernels)
        if constant.abs().max() > 1e-9 * kernels.abs().max():  # less is rounding, and worth no new bias
            add_constant(stem, constant)
    if strategy.name == "random":
        _draw_anew(model)


def _draw_anew(model: nn.Module) -> None:
    """Draw every parameter of a network by its module's own rule.

    A parameter without one is drawn from the normal distribution of its own values' mean and standard deviation; the
    constants of a frozen batch norm become those of a fresh one.
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.normal_(parameter.mean().item(), parameter.std(correction=0).item())
        for name, buffer in module.named_buffers(recurse=False):
            if isinstance(getattr(module, "running_mean", None), Tensor) and buffer.is_floating_point():
                buffer.fill_(name in ("weight", "running_var"))


def _masks(stems: Stems, layouts: Sequence[Layout], met: Sequence[Met]) -> list[_Mask]:
    """Return the masks that take padding out of the comparison of gray images, where it makes a difference."""
    return [
        (constant_taker(stem), interior(stem, layout))
        for stem, layout, item in zip(stems.items, layouts, met, strict=True)
        if item.shifted
    ]


@contextmanager
def _masked(masks: Sequence[_Mask]) -> Iterator[None]:
    def hook(mask: Tensor) -> Callable[[nn.Module, tuple[object, ...], Tensor], Tensor]:
        return lambda _module, _args, output: output * mask

    handles = [module.register_forward_hook(hook(mask)) for module, mask in masks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gray_output(model: nn.Module, stems: Stems, scaling: ChannelScaling, masks: Sequence[_Mask]) -> Tensor:
    """Return the output for one random gray image, given as every channel."""
    gray = _random(model, (1, 1, *stems.size))
    with _masked(masks):
        return logits(model(scaling.apply(gray)))


def _order_errors(model: nn.Module, stems: Stems, scaling: ChannelScaling) -> tuple[float, float, float]:
    """Return the mirror error, the permutation error and the effect of rounding for one random window.

    The latter is what changing the last bit of every voxel does to the output, up or down at random.
    """
    window = scaling.apply(_random(model, (1, len(scaling.means), *stems.size)))
    exchanged = torch.cat([window[:, :2].flip(1), window[:, 2:]], dim=1)
    rounded = window * (1 + torch.finfo(window.dtype).eps * (window - window.flip(-1)).sign())
    images = torch.cat([window, window.flip(1), window.roll(1, dims=1), exchanged, rounded])
    output, *others = logits(model(images)).chunk(5)
    *errors, rounding = (_difference(output, other) for other in others)
    return errors[0], max(errors), rounding


def _random(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(like)


def _difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference of two outputs, relative to the largest absolute value of both."""
    if first.shape != second.shape:
        raise ModelError(
            f"the shape of the network's output went from {tuple(first.shape)} to {tuple(second.shape)};"
            " evenslice needs an output whose shape does not depend on the number of slices"
        )
    largest = max(first.abs().max().item(), second.abs().max().item())
    if not math.isfinite(largest):
        raise ModelError(
            "the output of the network for a random image is not finite; mend its weights or its normalisation first"
        )
    return (first.double() - second.double()).abs().max().item() / largest if largest else 0.0


def _check(record: Record, strategy: Strategy, stems: Stems, rounding: float) -> None:
    """Raise ModelError unless the errors measured are within what the strategy and the tie promise."""
    symmetry = {"uniform": "permutation", "mirror": "mirror"}.get(record.tie or "", strategy.symmetry)
    promises = [
        ("reversing the slices", record.mirror_error, 1e-5, symmetry is not None),
        ("reordering the slices", record.permutation_error, 1e-5, symmetry == "permutation"),
        (
            "giving it a gray image as slices, not as channels,",
            record.gray_error,
            1e-4,
            strategy.promises_gray(stems.channels, record.slices),
        ),
    ]
    for what, error, precise, promised in promises:
        limit = max(precise, 4 * rounding)  # no network keeps a promise better than it computes
        if promised and error > limit:
            raise ModelError(
                f"the network does not keep what the strategy {strategy.name!r} promises: {what} changes its output"
                f" by {error:.2g} of its largest value, where at most {limit:.2g} was promised;"
                f" look for what reads the image beside {', '.join(stem.label for stem in stems.items)}"
            )


def _picture(kernels: Tensor) -> NDArray[np.float32]:
    """Lay (filters, slices, P, ky, kx) or (filters, slices, P) kernels out as (filters, slices, y, x)."""
    filters, slices, features, *taps = kernels.shape
    down = math.isqrt(features) if math.isqrt(features) ** 2 == features else features
    ky, kx = taps or (1, 1)
    grid = kernels.reshape(filters, slices, down, features // down, ky, kx).transpose(3, 4)
    return grid.reshape(filters, slices, down * ky, -1).numpy().astype(np.float32)
