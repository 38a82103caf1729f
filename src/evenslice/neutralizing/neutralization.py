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
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from evenslice._core import ConfigError, ModelError, check_known, option, reason, whole_number
from evenslice.networks import (
    StemKernels,
    exact_evaluation,
    failing_layer,
    is_on_meta,
    random_image,
    refuse_inference_tensors,
    refuse_torchscript,
    require_network,
    require_values,
    with_gradients,
)
from evenslice.neutralizing.cuts import find_activations
from evenslice.neutralizing.folding import effective_kernels
from evenslice.neutralizing.inspection import ChannelValues, KnownInput, inspect_network
from evenslice.neutralizing.mirror_average import average_mirrored, averages_mirrored, mean_of_halves
from evenslice.neutralizing.mixer import MIXER_HINT, has_mixer
from evenslice.neutralizing.probing import run_to_stems
from evenslice.neutralizing.record import CHECKS, Record, amend_records, record_of, replace_record, uncompiled
from evenslice.neutralizing.rewriting import Request, RewrittenStems, mix, rewrite
from evenslice.neutralizing.strategies import find_strategy
from evenslice.neutralizing.ties import check_tie, is_tied, untie_weight
from evenslice.neutralizing.verification import (
    ComparedOutputs,
    check_promises,
    compare_apart,
    compare_outputs,
    in_float64,
    old_borders,
    recording_outputs,
    trial_images,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from evenslice.neutralizing.folding import ChannelScaling

__all__ = ["neutralize", "untie"]


@with_gradients
def neutralize(  # what to do, what is known of the network, and how to check
    model: nn.Module,
    slices: int = 3,
    *,
    strategy: str | Sequence[float] = "uniform",
    tie: str | None = None,
    mean: ChannelValues = None,
    std: ChannelValues = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    check: str = "network",
    outputs: Callable[[Any], Any] | None = None,
) -> Record:
    """Make a network take windows of slices by a strategy, in place, and verify what the strategy promises.

    The stems are found (see `evenslice.neutralizing.stems`), their colour kernels become slice kernels (see
    `evenslice.neutralizing.strategies`), and the per-channel scaling that the network was trained with moves into the
    weights (see `evenslice.neutralizing.folding`). If each channel c of an image g was scaled as (g - m_c) / s_c, all
    slices are scaled as (g - m) / s from then on, where m and s are the means of m_c and s_c. A remaining constant
    goes into the bias of the stem, else into the running mean of the batch norm that follows, else into a new bias.

    A stem that computes its weight, such as a weight-standardized convolution, or works in groups is replaced by an
    equivalent plain layer (see `evenslice.neutralizing.plain_layers`), which no longer standardizes what it learns. Hooks
    on such a stem that only watch it do not come along: register them again. One that changes its input or output is an
    error.
    Normalizations before the stems are removed, or made to treat all slices alike (see
    `evenslice.neutralizing.input_path`). The strategy "mixer" leaves the stems alone and puts a layer before the
    network (see `evenslice.neutralizing.mixer`). The strategy "twin" makes the network average over a window and its
    mirror after the activation of each stem (see `evenslice.neutralizing.mirror_average`); `symmetrize` does that
    anywhere else.

    Args:
        model: takes (batch, channels, y, x); any number of channels. Weights keep their dtype, device and
            `requires_grad`; a weight whose shape changes is a new parameter, so create the optimizer afterwards.
        slices: N, odd.
        strategy: one of `STRATEGIES`, or N symmetric weights that sum to 1 for the strategy "profile".
        tie: "mirror" keeps opposite slices equal whatever is learned, "uniform" all slices, None neither. See `untie`.
        mean: what was subtracted from channels in 0..1, one value for each or one for all. By default as in the
            record of an earlier `neutralize`, else as for the pretrained weights, else 0. If the pretrained weights
            state another number of values than the network has channels, their average applies to all.
        std: what they were divided by afterwards, in the same form and with the same defaults, but 1 instead of 0.
        seed: random seed for "shuffle", "reinit" and "random", 0 to 2**63 - 1. The state of torch's random numbers is left alone.
        size: in-plane size (y, x) in pixels of the images for the verification; by default the first that the network
            accepts of its stated size and of 64, 224, 256, 384 and 512.
        check: "network" runs the whole network, on 13 images. "stems" stops after the stems and compares what they return (or
            the batch norms after them), for networks too large to run; all but the stems, the batch norms after them
            and what comes before them may then be on the meta device.
        outputs: maps what the network returns to one tensor, batch first, for the verification; by default
            `evenslice.networks.logits` does.

    Returns:
        What was done, how to scale the slices, and the errors measured. `record_of` returns it again.

    Raises:
        ConfigError: an option is unknown or has a bad value.
        ModelError: the stems cannot be found or rewritten, the network is tied or symmetrized, or it breaks a promise of the
            strategy: mirror and permutation errors of at most 1e-5 and a gray error of at most 1e-4, or four times the effect of
            changing the last bit of its input if that is more, up to .1, as in half precision and in networks that
            amplify rounding. A network that exceeds these limits, or gives another output for the same window when it
            is run again, or beside another window, is checked again in float64, and is refused only if it does so there
            too, or cannot compute in float64. After any error the network is as it was before.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> record = neutralize(network, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        >>> record.stems, round(record.mean, 3), round(record.std, 3)
        (('0',), 0.449, 0.226)
    """
    # A saved record needs integers of Python.
    slices, seed = whole_number("slices", slices), whole_number("seed", seed)
    if not 0 <= seed < 2**63:
        raise ConfigError(f"{option('seed', seed)}: must be from 0 to 2**63 - 1")
    chosen = find_strategy(strategy, slices)
    check_tie(tie)
    check_known("check", check, CHECKS)
    require_network(model)
    refuse_torchscript(model)
    require_values(model, meta=check == "stems")
    refuse_inference_tensors(model)
    model = uncompiled(model)
    if averages_mirrored(model):
        made = record_of(model)
        if made is not None and made.strategy == "twin":
            raise ModelError(
                "the network was neutralized with the strategy 'twin' already; build it again to change that"
            )
        raise ModelError("the network is symmetrized; neutralize it first, and symmetrize it afterwards")
    if chosen.averaged and tie is not None:
        raise ConfigError(
            f"{option('tie', tie)}: the strategy {chosen.name!r} is symmetric whatever is learned; omit it"
        )
    if chosen.symmetry == "mirror" and tie == "uniform":
        raise ConfigError(
            f"{option('tie', tie)}: makes every strategy 'uniform', not {chosen.name!r}; choose the strategy 'uniform', or "
            f"{option('tie', 'mirror')}"
        )
    if any(is_tied(module) for module in model.modules()):
        raise ModelError("the network is tied; call evenslice.untie(model) before neutralizing it again")
    known = KnownInput(mean, std, size, record_of(model), outputs)
    request = Request(slices, chosen, tie, seed)
    with exact_evaluation(model), torch.no_grad():
        with ExitStack() as undo:
            record, broken = _change(model, known, request, check, undo)
            if broken is None:
                undo.pop_all()
        if broken is not None:
            _check_in_float64(model, known, request, check, broken)
            with ExitStack() as undo:
                record, _ = _change(model, known, request, check, undo)
                undo.pop_all()
    replace_record(model, record)
    return record


def _change(
    model: nn.Module, known: KnownInput, request: Request, check: str, undo: ExitStack
) -> tuple[Record, ModelError | None]:
    """Change a network in place.

    Args:
        model: the network.
        known: what is known of its input.
        request: what to do.
        check: which outputs to verify, one of `CHECKS`.
        undo: takes what undoes the change.

    Returns:
        The record, and the error that says which promise is broken in the network's own precision, if one is.
    """
    strategy = request.strategy
    whole, mixing = check == "network", strategy.name == "mixer" and not has_mixer(model)
    before = inspect_network(model, known, whole=whole, stems=not mixing)
    change = (mix if mixing else rewrite)(model, before, request, undo)
    shared = before.scaling.shared(request.slices)
    cuts = _average(model, change, undo) if strategy.averaged else ()
    images = _trial(model, change, shared)

    run = _outputs if whole else _stem_outputs
    errors = compare_outputs(before.gray, run(model, change, images, known.outputs))
    plain = replace(change, borders=())  # as there is no gray image
    errors, unlike = compare_apart(
        model, errors, lambda windows: run(model, plain, windows, known.outputs), images
    )
    record = Record(
        strategy=strategy.name,
        profile=strategy.profile,
        tie=request.tie,
        slices=request.slices,
        seed=request.seed,
        stems=tuple(stem.name for stem in change.stems.items),
        mean=shared.mean,
        std=shared.std,
        mirror_error=errors.mirror,
        permutation_error=errors.permutation,
        gray_error=errors.gray,
        check=check,
        symmetrized=cuts,
        kernels=tuple(_kernels(change, shared)),
    )
    try:
        check_promises(record, strategy, before.stems.channels, errors.rounding, change.stems.items)
    except ModelError as error:
        return record, unlike or error
    return record, unlike


def _check_in_float64(
    model: nn.Module, known: KnownInput, request: Request, check: str, broken: ModelError
) -> None:
    """Check in float64 whether rounding alone broke a promise; the network is as before afterwards.

    One random change of the last bits does not always tell how much a deep network with random weights amplifies
    rounding. In float64 the same network has errors of 1e-10 or less, if it has no fault.

    Raises:
        ModelError: a promise is broken in float64 too; or `broken`, as the network does not compute in it.
    """
    try:
        with in_float64(model), ExitStack() as undo:
            _, again = _change(model, known, request, check, undo)
    except Exception:  # noqa: BLE001  # a network may refuse float64 by any exception
        raise broken from None
    if again is not None:
        raise again


@with_gradients
def untie(model: nn.Module) -> None:
    """Bake the ties of a network into its weights: it computes the same as before, and may learn freely from now on.

    The tied weights stay the same parameters, so an optimizer that has them still works. A network without ties is left
    alone. Afterwards the state dict has its plain keys, and the record, if there is one, says that nothing is tied.

    Raises:
        ModelError: it is no network.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> record = neutralize(network, tie="mirror")
        >>> list(network.state_dict())
        ['0.bias', '0.parametrizations.weight.original', '0.parametrizations.weight.0.evenslice_tied']
        >>> untie(network)
        >>> sorted(network.state_dict())
        ['0.bias', '0.weight']
    """
    require_network(model)
    for module in model.modules():
        if is_tied(module):
            untie_weight(module)
    amend_records(model, tie=None)


def _average(model: nn.Module, change: RewrittenStems, undo: ExitStack) -> tuple[str, ...]:
    """Average over windows and their mirrors after the activations of the stems, and return their names."""
    image = random_image(model, (1, change.layouts[0].index.shape[1], *change.stems.size))
    try:
        cuts = find_activations(model, change.stems.items, image.to("meta") if is_on_meta(model) else image)
    except ModelError:
        raise
    except Exception as error:  # a network may refuse an image by any exception
        raise _refusal(model, image.shape[1], error) from error
    average_mirrored(model, cuts, undo)
    return cuts


def _trial(model: nn.Module, change: RewrittenStems, scaling: ChannelScaling) -> Tensor:
    slices, size = len(scaling.means), change.stems.size
    gray = scaling.apply(random_image(model, (1, 1, *size)).repeat(1, slices, 1, 1))
    return trial_images(gray, scaling.apply(random_image(model, (1, slices, *size), seed=1)))


def _outputs(
    model: nn.Module, change: RewrittenStems, images: Tensor, reduce: Callable[[Any], Any] | None
) -> ComparedOutputs:
    """Return the outputs of a changed network to compare with those before."""
    with recording_outputs(model, reduce) as choose, old_borders(change.borders):
        try:
            output = model(images)
        except Exception as error:  # a network may refuse an image by any exception
            where = f"{failing_layer(error, model)} ({type(error).__name__}: {reason(error)})"
            if averages_mirrored(model):
                raise ModelError(
                    "the strategy 'twin' cannot be averaged at a single place, because a connection bypasses the activation of "
                    f"the stem, or the network reads the image elsewhere too: it fails in {where}; choose another strategy, "
                    f"such as 'mirror', or leave it out and symmetrize the network ({option('symmetrize', 'output')})"
                ) from error
            raise _refusal(model, images.shape[1], error) from error
        return choose(output, len(images))


def _refusal(model: nn.Module, slices: int, error: Exception) -> ModelError:
    """Return what to say of a network whose stems take so many slices, but which fails with them."""
    return ModelError(
        f"the network reads the image elsewhere too, and refuses {slices} slices in {failing_layer(error, model)} "
        f"({type(error).__name__}: {reason(error)}); {MIXER_HINT}"
    )


def _stem_outputs(model: nn.Module, change: RewrittenStems, images: Tensor, _: object) -> ComparedOutputs:
    """Return the outputs of changed stems to compare with those before, averaged where the network averages them later."""
    calls = run_to_stems(model, change.stems, images, run=True)
    borders = {border.stem.name: border for border in change.borders}
    averaged = averages_mirrored(model)
    outputs = {}
    for stem, call in zip(change.stems.items, calls, strict=True):
        border = borders.get(stem.name)
        output = border.patched(call.output, 0) if border else call.output
        # A batch norm with an activation inside, after which the network averages, has done so already.
        both = averaged and len(output) == len(call.input)
        outputs[stem.name] = mean_of_halves(output) if both else output
    return outputs


def _kernels(change: RewrittenStems, scaling: ChannelScaling) -> Iterator[StemKernels]:
    for stem, layout, before in zip(change.stems.items, change.layouts, change.before, strict=True):
        after = effective_kernels(stem, layout, scaling).kernels
        yield StemKernels(stem.name, _picture(before), _picture(after))


def _picture(kernels: Tensor) -> NDArray[np.float32]:
    """Lay (filters, slices, P, ky, kx) or (filters, slices, P) kernels out as (filters, slices, y, x)."""
    filters, slices, features, *taps = kernels.shape
    down = math.isqrt(features) if math.isqrt(features) ** 2 == features else features
    ky, kx = taps or (1, 1)
    grid = kernels.reshape(filters, slices, down, features // down, ky, kx).transpose(3, 4)
    return grid.reshape(filters, slices, down * ky, -1).numpy().astype(np.float32)
