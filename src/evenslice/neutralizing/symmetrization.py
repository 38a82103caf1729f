"""Symmetrize: make any network, trained or not, treat a window of slices and its mirror alike.

Example:
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> fair = symmetrize(network)
    >>> window = torch.rand(1, 3, 32, 32)
    >>> torch.equal(fair(window), fair(window.flip(1)))
    True
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from evenslice._core import EvensliceError, ModelError, option, reason
from evenslice.networks import detections, function_name, logits, require_network
from evenslice.neutralizing import verification
from evenslice.neutralizing.averages import (
    OUTPUT,
    average_mirrored,
    averages_due,
    averages_mirrored,
    find_cut,
    mean_of,
)
from evenslice.neutralizing.record import (
    Record,
    keep_record,
    record_of,
    record_with_names,
    uncompiled,
    unwrapped,
)
from evenslice.neutralizing.rewriting import find_scaling
from evenslice.neutralizing.running import exact_evaluation, layer_label, tensors_in
from evenslice.neutralizing.stems import accepted_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack

    from numpy.typing import NDArray

STATED = ("slices", "tile", "sides", "mean", "std", "origin")
"""Attributes by which a function states what windows it takes, and where it comes from."""

_Network = TypeVar("_Network", bound=nn.Module)


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


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def symmetrize(
    model: nn.Module | Callable[..., Any],
    at: str = OUTPUT,
    *,
    size: tuple[int, int] | None = None,
    outputs: Callable[[Any], Any] | None = None,
) -> nn.Module | SymmetrizedFunction:
    """Make a network treat a window of slices and its mirror alike, before and after any training.

    With x' the mirror of the window x, the network f becomes (f(x) + f(x')) / 2, or, cut earlier into f = g(h(x)),
    g((h(x) + h(x')) / 2). The part before the cut runs twice: at "output" the whole network, at "encoder" its
    encoder. No parameter changes. At "output" the answers are averaged (a detector's object by object), so a trained
    network needs no retraining; put an earlier cut in place before training, because it changes the features that `g`
    gets.

    Args:
        model: a network, changed in place; copy it first (``copy.deepcopy``) to keep the original. If it wraps a
            network with a record, the answers of the inner network are averaged, not the wrapper's. Or any function
            from arrays of windows to outputs, such as the result of ``load_onnx``; a function is left alone.
        at: "output", "encoder", or the dotted name of a module, as in ``model.named_modules()``, whose output is all
            that the rest of the network sees of the image.
        size: in-plane size (y, x) in pixels of the images for the verification; by default as for `neutralize`.
        outputs: maps the network's output to one tensor, batch first, for the verification (default:
            ``evenslice.networks.logits``).

    Returns:
        The network; or, for a function, a new function of the same windows. `record_of` returns the record of a
        network. A network without a record is taken to receive all slices on one scale; its new record states the
        average of the per-channel scaling of its pretrained weights.

    Raises:
        ConfigError: the size is not a pair of positive whole numbers.
        ModelError: it is neither a network nor a function; the network is already symmetrized, or takes an even
            number of slices; there is no such module, or it is not a cut: a skip connection bypasses it; the network
            returns classes instead of scores, or its output is random or depends on the other windows of its batch;
            or reversing the window changes the output by more than 1e-5 of its largest value, or four times the
            effect of changing the last bit of the input, up to .1, also in float64; or a function would have to be
            cut elsewhere than at "output". Any error leaves the network unchanged.

    Example:
        >>> from evenslice.neutralizing import record_of
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> record_of(symmetrize(network, at="1")).symmetrized
        ('1',)
    """
    if not isinstance(model, nn.Module):
        for name, given in (("at", at != OUTPUT), ("size", size), ("outputs", outputs)):
            if given:
                raise ModelError(
                    f"{option(name)}: has no effect on a function, which is averaged at its output and not verified; leave it out"
                )
        return SymmetrizedFunction(model)
    require_network(model, values=True)
    network = uncompiled(model)
    if averages_mirrored(network):
        raise ModelError(
            "the network is symmetrized already; use it as it is, or build it again to average elsewhere"
        )
    symmetrize_after(network, (find_cut(network, str(at).removeprefix("_orig_mod.")),), size, outputs)
    return model


def restore_average(model: nn.Module) -> None:
    """Let a network average where its state dict says that it did, and verify it as `symmetrize` does; else do nothing.

    Raises:
        ModelError: it is not symmetric then.

    Example:
        >>> restore_average(nn.Conv2d(3, 8, 3))  # whose state dict says nothing
    """
    if cuts := averages_due(model):
        symmetrize_after(model, cuts)


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
    # Where the record is, as what wraps the network may be taken off, or call another part of it. Else around the wrapper, which
    # may call no more than the network's forward, or give it more than the window.
    inside = all(not cut or f"{cut}.".startswith(wrapper) for cut in cuts)
    with exact_evaluation(model), torch.no_grad():
        if network is not model and inside:
            with suppress(ModelError):
                _symmetrize_part(model, cuts, network, wrapper, size, outputs)
                return
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
    inputs: Sequence[int] = ()
    if record is not None:  # a part of the network may get other inputs
        inputs = (record.slices,) if record is record_of(network) else range(record.slices, 0, -1)
    slices, pixels = accepted_input(model, inputs, size)
    if slices % 2 == 0:
        raise ModelError(
            f"the network takes {slices} slices, and a window has an odd number: 1, 3, 5, ...; build it with an odd number of "
            "inputs"
        )
    names, cut = tuple(f"{cut}.".removeprefix(wrapper).removesuffix(".") for cut in cuts), cuts[0]
    where = layer_label(cut, model.get_submodule(cut))
    # What a detector finds is compared where it is averaged, not what its parts return.
    chosen = verification.Outputs(logits if outputs is None and not cut else outputs)

    def average(undo: ExitStack) -> tuple[verification.MeasuredErrors, ModelError | None]:
        images = verification.trial_images(model, slices, pixels)
        before, output = chosen.of(model, images[:1]), model(images[1:2])
        with _naming(where, cut):
            average_mirrored(network, names, undo)
            _check_lengths(output, model(images[1:2]))
            found, unlike = verification.measure(model, before, chosen, images)
        broken = ModelError(
            f"the network is not symmetric when it is cut after {where}: reversing the window changes its output "
            f"by {found.errors.mirror:.2g} of its largest value, giving it one slice N times by {found.errors.gray:.2g}; "
            "something else in it reads the window"
        )
        return found, unlike or (None if found.allowed() else broken)

    found = verification.lasting(model, average)
    if record is None or record.slices != slices:
        scaling = find_scaling(model, slices, None, None, record)
        record = Record("pretrained", (), None, slices, 0, (), scaling.mean, scaling.std)
    keep_record(network, replace(record, symmetrized=names, check="network", errors=found.errors))


def _check_lengths(without: Any, averaged: Any) -> None:
    """Refuse outputs of a window and its mirror that are longer or shorter than those of a window: no averages of a batch."""
    if detections(without) is not None:
        return
    pairs = zip(tensors_in(without), tensors_in(averaged), strict=False)
    for number, (before, after) in enumerate(pairs, 1):
        if before.ndim and after.ndim and len(before) != len(after):
            raise ModelError(
                f"output {number} of the network is not averaged, or no batch that could be (its length is {len(before)} for one "
                f"window, {len(after)} with its mirror); let the network return it as an attribute"
            )


@contextmanager
def _naming(where: str, cut: str) -> Iterator[None]:
    """Say, of any error in the block, that the module is not a valid cut, or that the output cannot be averaged."""
    try:
        yield
    except Exception as error:  # the rest of the network may refuse its inputs by any exception
        if not cut and isinstance(error, EvensliceError):
            raise
        fails = f"{type(error).__name__}: {reason(error)}"
        if not cut:
            raise ModelError(f"the network refuses windows beside their mirrors ({fails})") from error
        raise ModelError(
            f"{where} is not a valid cut: a connection bypasses it, or it is not run ({fails}); choose a module "
            f"that all paths from the image to the output go through, or {OUTPUT!r}"
        ) from error


class SymmetrizedFunction:
    """The mean of a function's outputs for windows and for their mirrors.

    Args:
        function: maps an array or tensor (batch, slices, y, x) to one, or to a mapping, tuple or list of them;
            there, single numbers are averaged, too, while text and None stay as they are for the windows as given. A list
            with the boxes, labels and scores in each window is averaged object by object, see `average_detections`. What
            it states by the attributes ``slices``, ``tile``, ``sides``, ``mean``, ``std``, ``origin`` and ``name`` holds
            here, too.

    Attributes:
        function: the function.
        name: its name.

    Raises:
        ModelError: it is not callable; or, on a call, it returns integers, such as classes, another object, no number at
            all, or other parts for the windows than for their mirrors.

    Example:
        >>> fair = SymmetrizedFunction(lambda windows: windows[:, 0])
        >>> fair(np.array([[[[1.0]], [[5.0]], [[3.0]]]]))
        array([[[2.]]])
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise ModelError(
                f"{type(function).__name__} is not a network; give a torch.nn.Module, or a function from arrays of windows to "
                "outputs"
            )
        self.function = function
        self.name = str(getattr(function, "name", function_name(function)))

    def __getattr__(self, name: str) -> Any:
        if name in STATED:
            return getattr(self.function, name)
        raise AttributeError(name)

    def __call__(self, windows: NDArray[np.float32] | torch.Tensor) -> Any:
        """Return the mean over windows (batch, slices, y, x), an array or tensor as the function takes it, and their mirrors."""
        # The function may change its input, and may return the same memory again.
        mirrors = windows.flip(1) if isinstance(windows, torch.Tensor) else windows[:, ::-1].copy()
        as_given = tree_map(_copied, self.function(windows))
        mirrored = tree_map(_copied, self.function(mirrors))
        if tree_structure(as_given) != tree_structure(mirrored):
            raise ModelError(
                f"{self.name} returns other parts for a window than for its mirror, which cannot be averaged; return as many, "
                "of the same names, for any window"
            )
        mean = mean_of(as_given, mirrored)
        if all(isinstance(leaf, str | bytes | int) or leaf is None for leaf in tree_leaves(mean)):
            raise ModelError(f"{self.name} returns {type(as_given).__name__} without a score; return scores")
        return mean


def _copied(answer: Any) -> Any:
    """Return a copy of an array or tensor."""
    if isinstance(answer, torch.Tensor):
        return answer.detach().clone()
    return answer.copy() if isinstance(answer, np.ndarray) else answer
