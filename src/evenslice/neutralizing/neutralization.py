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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from evenslice._core import ConfigError, EvensliceError, ModelError, check_known, option, reason, whole_number
from evenslice.networks import StemKernels, require_network
from evenslice.neutralizing import rewriting, verification
from evenslice.neutralizing.averages import average_mirrored, averages_mirrored, without_mirror
from evenslice.neutralizing.record import CHECKS, Record, record_of, replace_record, uncompiled
from evenslice.neutralizing.running import exact_evaluation, random_image
from evenslice.neutralizing.stems import (
    Stems,
    accepted_input,
    find_stems,
    interior,
    plain_stems,
    probe,
    run_to_stems,
    trace,
    trace_dry,
)
from evenslice.neutralizing.strategies import MIXER_HINT, check_tie, find_strategy, is_tied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Inspection:
    """A network as it was before any change.

    Attributes:
        stems: its stems; none if a mixer comes before it.
        scaling: how its channels are scaled.
        gray: its outputs for a gray image.
        stem_outputs: for each stem, what its `Stem.bias_owner` returned for that image, call by call.
    """

    stems: Stems
    scaling: rewriting.ChannelScaling
    gray: verification.ComparedOutputs
    stem_outputs: tuple[tuple[Tensor, ...], ...] = ()


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def neutralize(  # what to do, what is known of the network, and how to check
    model: nn.Module,
    slices: int = 3,
    *,
    strategy: str | Sequence[float] = "uniform",
    tie: str | None = None,
    mean: rewriting.ChannelValues = None,
    std: rewriting.ChannelValues = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    check: str = "network",
    outputs: Callable[[Any], Any] | None = None,
) -> Record:
    """Make a network take windows of slices, in place, and verify the promise of the strategy.

    The stems are found (see `evenslice.neutralizing.stems`), their colour kernels become slice kernels (see
    `evenslice.neutralizing.strategies`), and the per-channel scaling that the network was trained with moves into the
    weights (see `evenslice.neutralizing.rewriting`). If each channel c of an image g was scaled as (g - m_c) / s_c, all
    slices are scaled as (g - m) / s from then on, where m and s are the means of m_c and s_c. A remaining constant
    goes into the bias of the stem, else into the running mean of the batch norm that follows, else into a new bias.

    A stem that computes its weight, such as a weight-standardized convolution, or works in groups is replaced by an
    equivalent plain layer (see `evenslice.neutralizing.stems`), which no longer standardizes its weights. Hooks that
    only watch such a stem are lost: register them again. A hook that changes its input or output is an error.
    Normalizations before the stems are removed, or made to treat all slices alike (see
    `evenslice.neutralizing.stems`). The strategy "mixer" leaves the stems alone and puts a layer before the network
    (see `evenslice.neutralizing.rewriting`). The strategy "twin" makes the network average over a window and its
    mirror after the activation of each stem (see `evenslice.neutralizing.averages`); `symmetrize` does that anywhere
    else.

    Args:
        model: takes (batch, channels, y, x); any number of channels. Weights keep their dtype, device and
            `requires_grad`; a weight whose shape changes is a new parameter, so create the optimizer afterwards.
        slices: N, odd.
        strategy: one of `STRATEGIES`, or N symmetric weights that sum to 1 for the strategy "profile".
        tie: "mirror" keeps opposite slices equal whatever is learned, "uniform" all slices, None neither. See `untie`.
        mean: subtracted from channels in 0..1 in training, one value for each or one for all. By default from the
            record of an earlier `neutralize`, else from the pretrained weights, else 0. If the pretrained weights
            state another number of values than the network has channels, their average applies to all.
        std: the divisor afterwards, in the same form and with the same defaults, but 1 instead of 0.
        seed: random seed for "shuffle", "reinit" and "random", 0 or more. The state of torch's random numbers is left alone.
        size: in-plane size (y, x) in pixels of the images for the verification; by default the first that the network
            accepts of its stated size and of 64, 224, 256, 384 and 512.
        check: "network" runs the whole network, on 13 images. "stems" stops after the stems and compares their
            outputs (or the outputs of the batch norms after them), for networks too large to run; every later layer
            may then be on the meta device.
        outputs: maps the network's output to one tensor, batch first, for the verification (default:
            `evenslice.networks.logits`).

    Returns:
        The record: changes made, how to scale the slices, and the errors measured. `record_of` returns it again.

    Raises:
        ConfigError: an option is unknown or has a bad value.
        ModelError: the stems cannot be found or rewritten, the network is tied or symmetrized, or it breaks a promise of the
            strategy: mirror and permutation errors of at most 1e-5 and a gray error of at most 1e-4, or four times
                the effect of changing the last bit of its input if that is more, up to .1, as in half precision and
                in networks that amplify rounding. A network that exceeds these limits, or gives another output for
                the same window in a second run or beside another window, is checked again in float64, and refused
                only if it fails there, too, or cannot compute in float64. Any error leaves the network unchanged.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> record = neutralize(network, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        >>> record.stems, round(record.mean, 3), round(record.std, 3)
        (('0',), 0.449, 0.226)
    """
    # A saved record needs integers of Python.
    slices, seed = whole_number("slices", slices), whole_number("seed", seed, least=0)
    check_tie(tie)
    check_known("check", check, CHECKS)
    chosen = find_strategy(strategy, slices)
    require_network(model, values=True, meta=check == "stems")
    model = uncompiled(model)
    request = rewriting.Request(slices, chosen, tie, seed, mean, std, size, outputs, check, record_of(model))
    _check_request(model, request)
    with exact_evaluation(model), torch.no_grad():
        record = verification.lasting(model, lambda undo: _neutralized(model, request, undo))
    replace_record(model, record)
    return record


def _check_request(model: nn.Module, request: rewriting.Request) -> None:
    """Raise an error if a tie does not go with the strategy, or the network was changed in a way that cannot be changed again."""
    strategy, tie = request.strategy, request.tie
    if averages_mirrored(model):
        raise ModelError(
            "the network averages over a window and its mirror already; build it again, and symmetrize it after neutralizing it"
        )
    if tie is not None and (strategy.averaged or (strategy.symmetry == "mirror" and tie == "uniform")):
        raise ConfigError(
            f"{option('tie', tie)}: does not go with the strategy {strategy.name!r}; omit it, or choose another strategy"
        )
    if any(is_tied(module) for module in model.modules()):
        raise ModelError("the network is tied; call evenslice.untie(model) before neutralizing it again")


def _neutralized(
    model: nn.Module, request: rewriting.Request, undo: ExitStack
) -> tuple[Record, ModelError | None]:
    """Change a network in place, and measure what came of it.

    Args:
        model: the network.
        request: what to do.
        undo: takes what undoes the change.

    Returns:
        The record, and the error that says which promise is broken in the network's own precision, if one is.
    """
    strategy = request.strategy
    mixing = strategy.name == "mixer" and rewriting.MIXER not in dict(model.named_children())
    before = inspect_network(model, request, stems=not mixing)
    planned = (
        (rewriting.mix(model, before.scaling, request.slices, request.tie, undo),)
        if mixing
        else rewriting.plan(model, before.stems, before.scaling, request, undo)
    )
    borders = tuple(
        verification.Border(each.stem, interior(each.stem, each.old), outputs)
        for each, outputs in zip(planned, before.stem_outputs, strict=False)  # there are none with a mixer
        if each.colours.shifted
    )
    if not mixing:
        rewriting.rewrite(model, planned, request, undo)
    stems = replace(before.stems, items=tuple(each.stem for each in planned))
    shared = before.scaling.shared(request.slices)
    outputs = verification.Outputs(request.outputs, None if request.check == "network" else stems, borders)
    images = verification.trial_images(model, request.slices, stems.size, shared.apply)
    try:
        if strategy.averaged:
            average_mirrored(model, stems.activations, undo)
        found, unlike = verification.measure(model, before.gray, outputs, images)
    except EvensliceError:
        raise
    except Exception as error:  # a network may refuse an image by any exception
        raise _refusal(model, request.slices, error) from error
    record = Record(
        strategy.name,
        strategy.profile,
        request.tie,
        request.slices,
        request.seed,
        tuple(stem.name for stem in stems.items),
        shared.mean,
        shared.std,
        found.errors,
        check=request.check,
        symmetrized=stems.activations,
        kernels=_kernels(planned, shared),
    )
    broken = verification.check_promises(record, strategy, before.stems.channels, found.rounding, stems.items)
    return record, unlike or broken


def inspect_network(model: nn.Module, request: rewriting.Request, *, stems: bool = True) -> Inspection:
    """Run a network once on a gray image; call it inside `evenslice.neutralizing.running.exact_evaluation`.

    Where the stems alone are verified, a pass of shapes alone finds them, and only they and what is in front of them are run;
    what is after them may be on the meta device.

    Args:
        model: the network.
        request: what to do.
        stems: look for its stems, which raises if one of them cannot be rewritten.

    Raises:
        ModelError: see `evenslice.neutralizing.stems.trace`.
        ConfigError: see `evenslice.neutralizing.rewriting.find_scaling`.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> with exact_evaluation(network):
        ...     found = inspect_network(network, rewriting.Request(3, find_strategy("uniform", 3), size=(8, 8)))
        >>> found.stems.items[0].name, [tuple(output.shape) for output in found.gray.values()]
        ('0', [(1, 8, 6, 6)])
    """
    before, whole, averaged = request.record, request.check == "network", request.strategy.averaged
    channels, size = accepted_input(model, (before.slices,) if before else (), request.size, dry=not whole)
    scaling = rewriting.find_scaling(model, channels, request.mean, request.std, before)
    image = scaling.apply(random_image(model, (1, 1, *size)).repeat(1, channels, 1, 1))
    if not stems:
        outputs = verification.Outputs(request.outputs)
        gray = outputs.of(model, image) if whole else {rewriting.MIXER: image}
        return Inspection(Stems((), channels, size), scaling, gray)
    if whole:
        traced = trace(model, image, activations=averaged)
        gray = verification.compared(traced.output, traced.parts, 1, request.outputs)
        return Inspection(traced.stems, scaling, gray, traced.stem_outputs)
    found = trace_dry(model, image, activations=averaged)
    calls = run_to_stems(model, found, image, run=True)
    outputs_of = {stem.name: call.output for stem, call in zip(found.items, calls, strict=True)}
    found = plain_stems(found, [call.input for call in calls])
    return Inspection(found, scaling, outputs_of, tuple((call.output,) for call in calls))


def _refusal(model: nn.Module, slices: int, error: Exception) -> ModelError:
    """Return what to say of a network whose stems take so many slices, but which fails with them."""
    fails = f"{type(error).__name__}: {reason(error)}"
    if averages_mirrored(model):
        return ModelError(
            f"the strategy 'twin' cannot be averaged at a single place, because a connection bypasses the activation of the "
            f"stem, or the network reads the image elsewhere too ({fails}); choose the strategy 'mirror', or symmetrize "
            f"the network instead ({option('symmetrize', 'output')})"
        )
    return ModelError(
        f"the network reads the image elsewhere too, and refuses {slices} slices ({fails}); {MIXER_HINT}"
    )


def _kernels(
    planned: Sequence[rewriting.StemPlan], scaling: rewriting.ChannelScaling
) -> tuple[StemKernels, ...]:
    after = (rewriting.effective_kernels(each.stem, each.layout, scaling).kernels for each in planned)
    return tuple(
        StemKernels(each.stem.name, _picture(each.colours.kernels), _picture(new))
        for each, new in zip(planned, after, strict=True)
    )


def current_kernels(model: nn.Module, record: Record) -> list[NDArray[np.float32]]:
    """Return the kernels (filters, slices, P, ...) of each stem of a network, as they act on slices of one scale.

    Args:
        model: the network; ties are baked in.
        record: what was done to it.
    """
    rewriting.untie(model)
    with without_mirror(model):
        stems = find_stems(model, channels=(record.slices,))
        layouts = probe(model, stems, stems.channels)
    scaling = rewriting.find_scaling(model, stems.channels, None, None, record)
    return [
        rewriting.effective_kernels(stem, layout, scaling).kernels.numpy()
        for stem, layout in zip(stems.items, layouts, strict=True)
    ]


def _picture(kernels: Tensor) -> NDArray[np.float32]:
    """Lay (filters, slices, P, ky, kx) or (filters, slices, P) kernels out as (filters, slices, y, x)."""
    filters, slices, features, *taps = kernels.shape
    down = math.isqrt(features) if math.isqrt(features) ** 2 == features else features
    ky, kx = taps or (1, 1)
    grid = kernels.reshape(filters, slices, down, features // down, ky, kx).transpose(3, 4)
    return grid.reshape(filters, slices, down * ky, -1).numpy().astype(np.float32)
