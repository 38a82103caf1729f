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
from numbers import Number
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from evenslice._core import EvensliceError, ModelError, option, reason
from evenslice.networks import (
    detections,
    exact_evaluation,
    failing_layer,
    function_name,
    layer_label,
    logits,
    random_image,
    require_values,
    tensors_in,
    with_gradients,
)
from evenslice.neutralizing.averages import (
    OUTPUT,
    average_detections,
    average_mirrored,
    averages_due,
    averages_mirrored,
    find_cut,
    finds_objects,
)
from evenslice.neutralizing.folding import find_scaling
from evenslice.neutralizing.record import (
    Record,
    keep_record,
    record_of,
    record_with_names,
    uncompiled,
    unwrapped,
)
from evenslice.neutralizing.stems import accepted_input
from evenslice.neutralizing.verification import (
    OutputErrors,
    Outputs,
    allowed_error,
    compared,
    in_float64,
    measure,
    run_with_parts,
    trial_images,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

STATED = ("slices", "tile", "sides", "mean", "std", "origin")
"""Attributes by which a function states what windows it takes, and where it comes from."""

WORDS = (str, bytes, type(None))
"""What is no answer, and is returned as it was for the window as given."""

RIGHT = "it has to return arrays or tensors, or a mapping, tuple or list of them"

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
    require_values(model)
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
        >>> from torch import nn
        >>> from evenslice.networks import fill_network
        >>> twin, other = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()) for _ in range(2))
        >>> from evenslice.neutralizing import neutralize
        >>> record = neutralize(twin, strategy="twin", mean=0, std=1)
        >>> filled = fill_network(other, twin.state_dict(), source="a state dict", target="a network")
        >>> restore_average(other)
        >>> window = torch.rand(1, 3, 8, 8)
        >>> torch.equal(other(window), twin(window))
        True
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
    outside = next((cut for cut in cuts if cut and not f"{cut}.".startswith(wrapper)), None)
    if outside is not None:
        raise ModelError(
            f"{_label(model, outside)} only wraps the network {type(network).__name__}; choose {OUTPUT!r} or a module inside it"
        )
    # Where the record is, as what wraps the network may be taken off, or call another part of it. Else around the wrapper, which
    # may call no more than the network's forward, or give it more than the window.
    with exact_evaluation(model), torch.no_grad():
        try:
            _symmetrize_part(model, cuts, network, wrapper, size, outputs)
        except ModelError:
            if network is model:
                raise
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
    names = tuple(f"{cut}.".removeprefix(wrapper).removesuffix(".") for cut in cuts)
    trial = model, network, names, cuts[0], (slices, pixels), outputs
    errors, unlike = _measured(*trial)
    if unlike is not None or _broken(errors):
        with in_float64(model):
            exact, unlike = _measured(*trial)
        if unlike is not None:
            raise unlike
        if _broken(exact):
            raise ModelError(
                f"the network is not symmetric when it is cut after {_label(model, cuts[0])}: reversing the window "
                f"changes its output by {exact.mirror:.2g} of its largest value, giving it one slice N times by "
                f"{exact.gray:.2g}; something else in it reads the window"
            )
    average_mirrored(network, names, ExitStack())  # never closed
    if record is None or record.slices != slices:
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


def _measured(  # what is averaged where, and what it takes
    model: nn.Module,
    network: nn.Module,
    names: Sequence[str],
    cut: str,
    shape: tuple[int, tuple[int, int]],
    outputs: Callable[[Any], Any] | None,
) -> tuple[OutputErrors, ModelError | None]:
    """Measure the errors of a network that averages, which ends with it; see `measure`.

    Raises:
        ModelError: see `symmetrize`.
    """
    slices, pixels = shape
    gray = random_image(model, (1, 1, *pixels)).repeat(1, slices, 1, 1)
    images = trial_images(gray, random_image(model, (1, slices, *pixels), seed=1))
    # What a detector finds is compared where it is averaged, not what its parts return.
    chosen = Outputs(logits if outputs is None and not cut else outputs)
    output, parts = run_with_parts(model, gray)
    before = compared(output, parts, 1, chosen.reduce)
    with ExitStack() as undo, _naming(model, cut):
        average_mirrored(network, names, undo)
        _check_lengths(_lengths(output), _lengths(model(images[1:2])))
        return measure(model, before, chosen, images)


def _lengths(output: Any) -> list[int]:
    """Return the lengths of all tensors that a network returns; none for a detector."""
    return [] if detections(output) is not None else [len(each) for each in tensors_in(output) if each.ndim]


def _check_lengths(without: Sequence[int], averaged: Sequence[int]) -> None:
    """Refuse outputs of a window and its mirror that are longer or shorter than those of a window: no averages of a batch."""
    for number, (before, after) in enumerate(zip(without, averaged, strict=False), 1):
        if after == 2 * before:
            raise ModelError(f"output {number} of the network is for windows and mirrors, not averaged")
        if after != before:
            raise ModelError(
                f"output {number} of the network is no batch (its length is {before} for one window, {after} with its mirror) "
                "and would be cut in half; let the network return it as an attribute"
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


class SymmetrizedFunction:
    """The mean of a function's outputs for windows and for their mirrors.

    Args:
        function: maps an array (batch, slices, y, x) to an array or tensor, or to a mapping, tuple or list of them;
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

    def __repr__(self) -> str:
        return f"SymmetrizedFunction({self.function!r})"

    def __call__(self, windows: NDArray[np.float32]) -> Any:
        """Return the mean over windows (batch, slices, y, x) and their mirrors."""
        # The function may change its input, and may return the same memory again.
        mirrors = windows[:, ::-1].copy()
        as_given = tree_map(_copied, self.function(windows))
        mirrored = tree_map(_copied, self.function(mirrors))
        if tree_structure(as_given) != tree_structure(mirrored):
            raise ModelError(
                f"{self.name} returns other parts for a window than for its mirror, which cannot be averaged; return as many, "
                "of the same names, for any window"
            )
        if finds_objects(as_given):
            both = (map(_as_tensors, found) for found in (as_given, mirrored))
            return [average_detections(*pair) for pair in zip(*both, strict=True)]
        mean = tree_map(self._mean, as_given, mirrored)
        if all(isinstance(leaf, (*WORDS, int)) for leaf in tree_leaves(mean)):
            raise ModelError(f"{self.name} returns {type(as_given).__name__} without a score; {RIGHT}")
        return mean

    def _mean(self, first: Any, second: Any) -> Any:
        if isinstance(first, WORDS) or (isinstance(first, int) and first == second):  # what is no answer
            return first
        # A tensor may be on any device and in any precision, of which NumPy knows but some.
        if isinstance(first, torch.Tensor):
            first, second = first.detach(), second.detach()
            real = first.is_floating_point() or first.is_complex()
        elif isinstance(first, Number) or hasattr(first, "__array__"):
            real = np.asarray(first).dtype.kind in "fc"
        else:
            raise ModelError(
                f"{self.name} returns {type(first).__name__}, which cannot be averaged over a window and its mirror; {RIGHT}"
            )
        if not real:
            raise ModelError(
                f"{self.name} returns integers, which cannot be averaged over a window and its mirror; "
                "it has to return scores or probabilities"
            )
        return first / 2 + second / 2  # of which no term overflows in half precision


def _as_tensors(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a detector found with tensors in place of arrays, without their graph."""
    return {
        name: torch.as_tensor(value).detach() if hasattr(value, "__array__") else value
        for name, value in found.items()
    }


def _copied(answer: Any) -> Any:
    """Return a copy of an array or tensor."""
    if isinstance(answer, torch.Tensor):
        return answer.detach().clone()
    return answer.copy() if isinstance(answer, np.ndarray) else answer
