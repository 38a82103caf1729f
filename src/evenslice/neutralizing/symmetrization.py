"""Symmetrize: make any network, trained or not, treat a window of slices and its mirror alike.

Example:
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> fair = symmetrize(network)
    >>> window = torch.rand(1, 3, 32, 32)
    >>> torch.equal(fair(window), fair(window.flip(1)))
    True
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import nn

from evenslice._core import EvensliceError, ModelError, option, reason
from evenslice.networks import (
    detections,
    exact_evaluation,
    failing_layer,
    layer_label,
    logits,
    random_image,
    refuse_torchscript,
    require_values,
    tensors_in,
    with_gradients,
)
from evenslice.neutralizing.cuts import OUTPUT, find_cut
from evenslice.neutralizing.folding import find_scaling
from evenslice.neutralizing.mirror_average import average_mirrored, averages_mirrored
from evenslice.neutralizing.record import (
    Record,
    keep_record,
    record_of,
    record_with_names,
    uncompiled,
    unwrapped,
)
from evenslice.neutralizing.stems import first_accepted
from evenslice.neutralizing.symmetrized_functions import SymmetrizedFunction
from evenslice.neutralizing.verification import (
    OutputErrors,
    allowed_error,
    compare_apart,
    compare_outputs,
    in_float64,
    recording_outputs,
    trial_images,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from evenslice.neutralizing.verification import ComparedOutputs

__all__ = ["symmetrize", "symmetrize_after"]

_Network = TypeVar("_Network", bound=nn.Module)

MIRROR_LIMIT, GRAY_LIMIT = 1e-5, 1e-4
"""Largest errors of a symmetrized network, as for `neutralize`."""


@overload
def symmetrize(  # type: ignore[overload-overlap]  # a module is a function too; the first that fits counts
    model: _Network,
    at: str = ...,
    *,
    size: tuple[int, int] | None = ...,
    outputs: Callable[[Any], Any] | None = ...,
) -> _Network: ...


@overload
def symmetrize(model: Callable[..., Any], at: str = ...) -> SymmetrizedFunction: ...


@with_gradients
def symmetrize(
    model: nn.Module | Callable[..., Any],
    at: str = OUTPUT,
    *,
    size: tuple[int, int] | None = None,
    outputs: Callable[[Any], Any] | None = None,
) -> nn.Module | SymmetrizedFunction:
    """Make a network treat a window of slices and its mirror alike, whatever it has learned or will learn.

    With x' the mirror of the window x, the network f becomes (f(x) + f(x')) / 2, or, cut earlier into f = g(h(x)),
    g((h(x) + h(x')) / 2). What comes before the cut runs twice: at "output" the whole network, at "encoder" its
    encoder. No parameter changes, so a trained network needs no new training at "output", where this averages its
    answers (those of a detector object by object); an earlier cut should be there from the start of the training, as it
    changes the features that `g` gets.

    Args:
        model: a network, which is changed in place; copy it first (``copy.deepcopy``) to keep the original. If it
            wraps a network with a record, the answers of that one are averaged, not what the wrapper makes of them. Or
            any function from arrays of windows to outputs, such as what ``load_onnx`` returns; a function is left alone.
        at: "output", "encoder", or the dotted name of a module, as in ``model.named_modules()``, whose output is all
            that the rest of the network sees of the image.
        size: in-plane size (y, x) in pixels of the images for the verification; by default as for `neutralize`.
        outputs: maps what the network returns to one tensor, batch first, for the verification; by default
            ``evenslice.networks.logits`` does.

    Returns:
        The network; or, for a function, a new function of the same windows. `record_of` says what was done to a network. One
        without a record is taken to receive all slices on one scale; its record states the average of the
        per-channel scaling of its pretrained weights.

    Raises:
        ConfigError: the size is not a pair of positive whole numbers.
        ModelError: it is no network and no function; the network is already symmetrized, or takes an even number of
            slices; there is no such module, or it is not a cut: a skip connection bypasses it; the network returns classes
            instead of scores, or its output is random or depends on the other windows of its batch; or reversing the
            window changes the output by more than 1e-5 of its largest value, or four times the effect of changing the
            last bit of the input, up to .1, and so it does in float64; or a function was to be cut elsewhere than at
            "output". After any error the network is as it was before.

    Example:
        >>> from evenslice.neutralizing import record_of
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> record_of(symmetrize(network, at="1")).symmetrized
        ('1',)
    """
    if not isinstance(model, nn.Module):
        if at != OUTPUT:
            raise ModelError(f"{at!r}: a function can only be symmetrized at {OUTPUT!r}")
        for name, given in (("size", size), ("outputs", outputs)):
            if given is not None:
                raise ModelError(
                    f"{option(name)}: has no effect on a function, which is not verified; leave it out"
                )
        return SymmetrizedFunction(model)
    refuse_torchscript(model)
    require_values(model)
    network = uncompiled(model)
    if averages_mirrored(network):
        raise ModelError(
            "the network is symmetrized already; use it as it is, or build it again to average elsewhere"
        )
    symmetrize_after(network, (find_cut(network, str(at).removeprefix("_orig_mod.")),), size, outputs)
    return model


def symmetrize_after(
    model: nn.Module,
    cuts: Sequence[str],
    size: tuple[int, int] | None = None,
    outputs: Callable[[Any], Any] | None = None,
) -> None:
    """Symmetrize a network that is not compiled in place, verify it, and leave the record on it.

    Args:
        model: the network.
        cuts: the names of the modules after which to average; an empty one is the network.
        size: see `symmetrize`.
        outputs: see `symmetrize`.

    Raises:
        ModelError: see `symmetrize`.
    """
    network, wrapper = unwrapped(model)
    outside = next((cut for cut in cuts if cut and not f"{cut}.".startswith(wrapper)), None)
    if outside is not None:
        raise ModelError(
            f"{_label(model, outside)} only wraps the network {type(network).__name__}; choose {OUTPUT!r} or a module inside "
            "it"
        )
    with exact_evaluation(model), torch.no_grad():
        # Where the record is, as what wraps the network may be taken off, or call another part of it.
        try:
            _symmetrize_part(model, cuts, network, wrapper, size, outputs)
        except ModelError:
            if network is model:
                raise
            # The wrapper may call no more than the network's forward, or give it more than the window.
            _symmetrize_part(model, cuts, model, "", size, outputs)


def _symmetrize_part(  # where the averages are, and how the whole is verified
    model: nn.Module,
    cuts: Sequence[str],
    network: nn.Module,
    wrapper: str,
    size: tuple[int, int] | None,
    outputs: Callable[[Any], Any] | None,
) -> None:
    """Symmetrize a network or one that it wraps in place, verify the whole, and leave the record where the averages are.

    Raises:
        ModelError: see `symmetrize`.
    """
    record = record_with_names(network)
    names = tuple(f"{cut}.".removeprefix(wrapper).removesuffix(".") for cut in cuts)
    with ExitStack() as undo:
        errors, slices = _symmetrized(
            model,
            cuts[0],
            partial(average_mirrored, network, names),
            _inputs(network, record),
            size,
            outputs,
            undo,
        )
        undo.pop_all()
    if record is None or record.slices != slices:  # that of a part which gets other inputs
        record = _new_record(model, slices, record)
    keep_record(
        network,
        replace(
            record,
            symmetrized=names,
            mirror_error=errors.mirror,
            permutation_error=errors.permutation,
            gray_error=errors.gray,
            check="network",
        ),
    )


def _inputs(network: nn.Module, record: Record | None) -> Sequence[int]:
    """Return the numbers of slices to try in turn, given the record of the network or a part of it; none for the usual."""
    if record is None:
        return ()
    return (record.slices,) if record is record_of(network) else range(record.slices, 0, -1)


def _symmetrized(  # what to do, and what is known of the network
    model: nn.Module,
    cut: str,
    average: Callable[[ExitStack], None],
    inputs: Sequence[int],
    size: tuple[int, int] | None,
    outputs: Callable[[Any], Any] | None,
    undo: ExitStack,
) -> tuple[OutputErrors, int]:
    """Symmetrize a network in place by ``average``, and return its errors and how many slices it takes.

    Raises:
        ModelError: see `symmetrize`.
    """

    def gray(count: int, pixels: tuple[int, int]) -> Tensor:
        return random_image(model, (1, 1, *pixels)).repeat(1, count, 1, 1)

    def run(count: int, pixels: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        model(gray(count, pixels))
        return count, pixels

    channels, pixels = first_accepted(model, run, channels=inputs, size=size)
    if channels % 2 == 0:
        raise ModelError(
            f"the network takes {channels} slices, and a window has an odd number: 1, 3, 5, ...; build it with an "
            "odd number of inputs"
        )

    def compare() -> tuple[OutputErrors, ModelError | None]:
        before, sizes = _outputs(model, gray(channels, pixels), outputs, whole=not cut)
        window = random_image(model, (1, channels, *pixels), seed=1)
        images = trial_images(gray(channels, pixels), window)
        with ExitStack() as here, _naming(model, cut):
            average(here)
            after, sizes_after = _outputs(model, images, outputs, whole=not cut)
            _check_sizes(sizes, sizes_after, len(images))
            return compare_apart(
                model,
                compare_outputs(before, after),
                lambda windows: _outputs(model, windows, outputs, whole=not cut)[0],
                images,
            )

    errors, unlike = compare()
    if _broken(errors) or unlike is not None:
        with in_float64(model):
            exact, unlike = compare()
        if unlike is not None:
            raise unlike
        if _broken(exact):
            raise ModelError(
                f"the network is not symmetric when it is cut after {_label(model, cut)}: reversing the window "
                f"changes its output by {exact.mirror:.2g} of its largest value, giving it one slice N times by "
                f"{exact.gray:.2g}; something else in it reads the window"
            )
    average(undo)
    return errors, channels


def _outputs(
    model: nn.Module, images: Tensor, outputs: Callable[[Any], Any] | None, *, whole: bool
) -> tuple[ComparedOutputs, list[int]]:
    """Return the outputs to compare, and the lengths of all tensors that the network returns; none for a detector.

    Args:
        model: the network.
        images: what to run it on.
        outputs: reduces what it returns, see `symmetrize`.
        whole: whether its output is averaged, so that what a detector finds is compared, not what its parts return.
    """
    if whole and outputs is None:
        outputs = logits
    with recording_outputs(model, outputs) as choose:
        found = model(images)
        sizes = (
            [] if detections(found) is not None else [len(each) for each in tensors_in(found) if each.ndim]
        )
        return choose(found, len(images)), sizes


def _check_sizes(one: Sequence[int], several: Sequence[int], images: int) -> None:
    """Check that each output is a batch of averages, or was left alone.

    Args:
        one: lengths of the outputs for one image, without mirrors.
        several: those for several images, averaged over their mirrors.
        images: their number.

    Raises:
        ModelError: an output is twice as long as it would be, or half as long as something that is no batch.
    """
    for number, (before, after) in enumerate(zip(one, several, strict=False), 1):
        if after == 2 * images * before:
            raise ModelError(f"output {number} of the network is for windows and mirrors, not averaged")
        if after not in (images * before, before):
            raise ModelError(
                f"output {number} of the network is no batch (its length is {before} for one window, {after} for "
                f"{images} and their mirrors) and would be cut in half; let the network return it as an attribute"
            )


def _broken(errors: OutputErrors) -> bool:
    return errors.mirror > allowed_error(MIRROR_LIMIT, errors.rounding) or errors.gray > allowed_error(
        GRAY_LIMIT, errors.rounding
    )


@contextmanager
def _naming(model: nn.Module, cut: str) -> Iterator[None]:
    """Say, of any error in the block, that the module is not a valid cut, or that the output cannot be averaged."""
    try:
        yield
    except Exception as error:  # the rest of the network may refuse its inputs by any exception
        if not cut:
            if isinstance(error, EvensliceError):
                raise
            raise ModelError(
                f"the network refuses windows beside their mirrors in {failing_layer(error, model)} "
                f"({type(error).__name__}: {reason(error)})"
            ) from error
        raise ModelError(
            f"{_label(model, cut)} is not a valid cut: a connection bypasses it, or it is not run, as "
            f"{failing_layer(error, model)} fails ({type(error).__name__}: {reason(error)}); choose a module that all "
            f"paths from the image to the output go through, or {OUTPUT!r}"
        ) from error


def _label(model: nn.Module, cut: str) -> str:
    return layer_label(cut, model.get_submodule(cut))


def _new_record(model: nn.Module, channels: int, part: Record | None) -> Record:
    """Return the record of a network that nobody has neutralized, but for a part of it that gets other inputs."""
    scaling = find_scaling(model, channels, None, None, (part.mean, part.std) if part else None)
    return Record(
        strategy="pretrained",
        profile=(),
        tie=None,
        slices=channels,
        seed=0,
        stems=(),
        mean=scaling.mean,
        std=scaling.std,
        mirror_error=0.0,
        permutation_error=0.0,
        gray_error=0.0,
    )
