"""Verification: whether a neutralized network's output keeps the promises of its strategy.

Two calls of the network are compared: one before the change, on a gray image given as every channel, and one after
it, on the same image given as every slice, and on a window in four orders and with its last bits changed. What fails
is checked again in float64, in which rounding cannot be mistaken for a fault.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from evenslice._core import ModelError
from evenslice.networks import answers_alone, detections, logits, reduce_output
from evenslice.neutralizing.averages import averages_mirrored, mean_of_halves
from evenslice.neutralizing.record import Errors
from evenslice.neutralizing.running import random_image, tensors_in
from evenslice.neutralizing.stems import recorded_parts, run_to_stems
from evenslice.neutralizing.strategies import MIXER_HINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evenslice.neutralizing.record import Record
    from evenslice.neutralizing.stems import Stem, Stems
    from evenslice.neutralizing.strategies import KernelStrategy

_Found = TypeVar("_Found")
ComparedOutputs = dict[Any, Tensor]
"""The tensors of a network that are compared, by where they come from; the first axis counts images."""

MOST_ROUNDING = 0.1
"""Largest error that rounding excuses, enough for half precision. Of a network that amplifies it more, float64 tells."""

MIRROR_LIMIT, GRAY_LIMIT = 1e-5, 1e-4
"""Largest errors of an exact promise: of other orders of the slices, and of a gray image."""

REPEATABLE, SAME = 1e-5, 1e-4
"""Largest differences between two outputs for one window, in two runs and in batches of two sizes: a few operations of a GPU
add in any order, and batches are computed in different parts."""

IMAGES = 6  # in what `trial_images` returns for one gray image and one window


@dataclass(frozen=True)
class Border:
    """The border of a stem's output that padding reaches, which is left out of the comparison of gray images.

    Attributes:
        stem: the stem.
        inside: whether all taps of an output lie inside the image; broadcasts against the output for one image.
        outputs: what its `Stem.bias_owner` returned before the change, call by call.
    """

    stem: Stem
    inside: Tensor
    outputs: tuple[Tensor, ...]

    def patched(self, output: Tensor, old: Tensor | None) -> Tensor:
        """Return the output of a call, with the old values on the border of the gray images."""
        if old is None or output[: len(old)].shape != old.shape or self.inside.ndim != old.ndim:
            return output
        if any(a not in (1, b) for a, b in zip(self.inside.shape, old.shape, strict=True)):
            return output
        patched = output.clone()
        # There are twice as many images where mirrors are appended.
        for start in range(0, len(patched), IMAGES * len(old)):
            gray = patched[start : start + len(old)]
            gray.copy_(torch.where(self.inside, gray, old))
        return patched


class MeasuredErrors(NamedTuple):
    """The errors of a `Record`, and the effect of rounding: of changing the last bits of the input."""

    errors: Errors
    rounding: float

    def allowed(self) -> bool:
        """Return whether rounding explains them in a network that is symmetric and keeps the answers to gray images."""
        limits = ((self.errors.mirror, MIRROR_LIMIT), (self.errors.gray, GRAY_LIMIT))
        return all(error <= allowed_error(limit, self.rounding) for error, limit in limits)


@dataclass(frozen=True)
class Outputs:
    """Which outputs of a network are compared before and after a change: those of the whole, or of its stems alone.

    Attributes:
        reduce: maps what the network returns to one tensor; None for `evenslice.networks.logits`. For a detector, None compares
            what its parts return: whether a detection passes a threshold may depend on the last bit.
        stems: the stems; None for the whole network.
        borders: what keeps the values of before the change for gray images.
    """

    reduce: Callable[[Any], Any] | None = None
    stems: Stems | None = None
    borders: tuple[Border, ...] = ()

    def of(self, model: nn.Module, images: Tensor) -> ComparedOutputs:
        """Run a network on images, and return what is compared."""
        with _old_borders(self.borders):
            if self.stems is not None:
                return _stem_outputs(model, self.stems, images)
            with recorded_parts(model) as parts:
                output = model(images)
            return compared(output, parts, len(images), self.reduce)


def compared(
    output: Any, parts: Sequence[tuple[str, Any]], images: int, reduce: Callable[[Any], Any] | None = None
) -> ComparedOutputs:
    """Return the tensors to compare of what a network returned for a number of images; see `Outputs`.

    Example:
        >>> [tuple(tensor.shape) for tensor in compared((torch.zeros(1, 2, 4, 4), None), [], 1).values()]
        [(1, 2, 4, 4)]
    """
    if reduce is not None:
        output = reduce_output(output, reduce)
    if detections(output) is None:
        return {"output": logits(output).detach()}
    return {
        (name, number): tensor.detach()
        for name, value in parts
        for number, tensor in enumerate(tensors_in(value))
        if tensor.is_floating_point() and tensor.ndim > 1 and len(tensor) == images
    }


def _stem_outputs(model: nn.Module, stems: Stems, images: Tensor) -> ComparedOutputs:
    """Return the outputs of changed stems, averaged where the network averages them later."""
    averaged = averages_mirrored(model)
    return {
        # A batch norm with an activation inside, after which the network averages, has done so already.
        stem.name: mean_of_halves(call.output)
        if averaged and len(call.output) == len(call.input)
        else call.output
        for stem, call in zip(stems.items, run_to_stems(model, stems, images, run=True), strict=True)
    }


def trial_images(
    model: nn.Module,
    slices: int,
    size: tuple[int, int],
    scaled: Callable[[Tensor], Tensor] = torch.Tensor.clone,
) -> Tensor:
    """Return the images to run a changed network on.

    Args:
        model: the network.
        slices: N.
        size: in pixels (y, x).
        scaled: scales images in 0..1 as the network receives them.

    Returns:
        (6, slices, y, x): an image whose slices are all equal; a window, reversed, rotated by one slice, with its first two
        slices exchanged, and with the last bit of every voxel changed, up or down at random.
    """
    gray = scaled(random_image(model, (1, 1, *size)).repeat(1, slices, 1, 1))
    window = scaled(random_image(model, (1, slices, *size), seed=1))
    exchanged = torch.cat([window[:, :2].flip(1), window[:, 2:]], dim=1)
    rounded = window * (1 + torch.finfo(window.dtype).eps * (window - window.flip(-1)).sign())
    return torch.cat([gray, window, window.flip(1), window.roll(1, dims=1), exchanged, rounded])


@contextmanager
def _old_borders(borders: Sequence[Border]) -> Iterator[None]:
    """In the block, stems return their values of before the change on the border of the gray image."""

    def hook(border: Border) -> Callable[[nn.Module, tuple[object, ...], Tensor], Tensor]:
        calls = iter(border.outputs)
        return lambda _module, _args, output: border.patched(output, next(calls, None))

    with ExitStack() as stack:
        for border in borders:
            stack.callback(border.stem.bias_owner.register_forward_hook(hook(border)).remove)
        yield


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """In the block, a network's parameters, buffers and other tensors are float64; afterwards they are as before.

    They stay the same objects. The block may replace them if it puts them back.

    Example:
        >>> network = nn.Conv2d(3, 8, 1)
        >>> with in_float64(network):
        ...     network.weight.dtype
        torch.float64
        >>> network.weight.dtype
        torch.float32
    """
    with ExitStack() as stack:
        plain = (value for module in model.modules() for value in vars(module).values())
        for value in {id(each): each for each in chain(model.parameters(), model.buffers(), plain)}.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                stack.callback(setattr, value, "data", value.data)
                value.data = value.data.double()
        yield


def compare_outputs(before: ComparedOutputs, after: ComparedOutputs) -> MeasuredErrors:
    """Compare the outputs for `trial_images` with those before the change for the gray image.

    Raises:
        ModelError: an output is not finite, or its shape has changed.
    """
    common = [(before[key], after[key]) for key in before if key in after]
    if not common:
        raise ModelError(f"the network no longer returns what it did before the change; {MIXER_HINT}")
    *errors, rounding = map(max, zip(*(_compare(old, new) for old, new in common), strict=True))
    return MeasuredErrors(Errors(*errors), rounding)


def _compare(reference: Tensor, outputs: Tensor) -> tuple[float, ...]:
    """Return the three errors and the effect of rounding."""
    expected = (IMAGES * reference.shape[0], *reference.shape[1:]) if reference.ndim else ()
    if outputs.shape != expected or not expected:
        raise ModelError(
            f"the shape of the network's output went from {tuple(reference.shape)} for 1 image to"
            f" {tuple(outputs.shape)} for {IMAGES}; it must depend on the number of images alone"
        )
    gray, window, *others = outputs.chunk(IMAGES)
    *orders, rounding = (_difference(window, other) for other in others)
    # Relative to both, since kernels that sum to zero turn a gray image into nothing but rounding.
    grays = _difference(torch.cat([reference, window]), torch.cat([gray, window]))
    return orders[0], max(orders), grays, rounding


def _difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference of two outputs, relative to the largest absolute value of both."""
    if not first.numel():
        return 0.0
    largest = max(first.abs().max().item(), second.abs().max().item())
    if not math.isfinite(largest):
        raise ModelError(
            "the output of the network for a random image is not finite; check its weights and its normalization"
        )
    return (first.cpu().double() - second.cpu().double()).abs().max().item() / largest if largest else 0.0


def allowed_error(precise: float, rounding: float) -> float:
    """Return the largest error that keeps a promise, given the effect of rounding.

    Example:
        >>> allowed_error(1e-5, 1e-7), allowed_error(1e-5, 0.01), allowed_error(1e-5, 1.0)
        (1e-05, 0.04, 0.1)
    """
    return max(precise, min(4 * rounding, MOST_ROUNDING))


def measure(
    model: nn.Module, before: ComparedOutputs, outputs: Outputs, images: Tensor
) -> tuple[MeasuredErrors, ModelError | None]:
    """Measure the errors of a changed network.

    A window and its mirror are run in batches of their own, too: in one batch, one could stand in for the other.

    Args:
        model: the network.
        before: its outputs for the gray image before the change.
        outputs: what is compared.
        images: those of `trial_images`.

    Returns:
        The errors, and what to say of a network whose output for a window depends on something else; None for any other.

    Raises:
        ModelError: an output is not finite, or its shape has changed.
    """
    found = compare_outputs(before, outputs.of(model, images))
    plain = replace(outputs, borders=())  # as there is no gray image
    limits = REPEATABLE, max(SAME, min(64 * torch.finfo(images.dtype).eps, MOST_ROUNDING))
    run = partial(plain.of, model)
    try:
        # Beside the gray image: many networks cannot tell a window from its mirror.
        _, window = answers_alone(run, images[:2], name=type(model).__name__, limits=limits, model=model)
    except ModelError as error:
        return found, error
    mirror = run(images[2:3])
    apart = max((_difference(window[key], mirror[key]) for key in window if key in mirror), default=0.0)
    largest = max(found.errors.mirror, apart)
    errors = Errors(largest, max(found.errors.permutation, largest), found.errors.gray)
    return found._replace(errors=errors), None


def lasting(model: nn.Module, change: Callable[[ExitStack], tuple[_Found, ModelError | None]]) -> _Found:
    """Change a network so that it keeps a promise, or leave it as it was.

    What fails in the network's own precision is repeated in float64. One random change of the last bits does not always tell
    how much a deep network with random weights amplifies rounding; in float64 it has errors of 1e-10 or less, if it has no
    fault.

    Args:
        model: the network.
        change: changes it, given what takes what undoes the change; returns what was found, and the error that says which promise
            is broken.

    Raises:
        ModelError: a promise is broken in float64 too; or in the network's own precision, and it does not compute in float64.
    """
    with ExitStack() as undo:
        found, broken = change(undo)
        if broken is None:
            undo.pop_all()
            return found
    try:
        with in_float64(model), ExitStack() as undo:
            _, again = change(undo)
    except Exception:  # noqa: BLE001  # a network may refuse float64 by any exception
        raise broken from None
    if again is not None:
        raise again
    with ExitStack() as undo:
        found, _ = change(undo)
        undo.pop_all()
    return found


def check_promises(
    record: Record, strategy: KernelStrategy, channels: int, rounding: float, stems: Sequence[Stem]
) -> ModelError | None:
    """Check the errors of a record against what was promised; return what to say of an error that exceeds it.

    Args:
        record: what was done, and the errors.
        strategy: what promises.
        channels: C, the number of inputs before.
        rounding: the effect of rounding on the output; no network keeps a promise better than it computes.
        stems: what was rewritten, for messages.
    """
    symmetry = {"uniform": "permutation", "mirror": "mirror"}.get(record.tie or "", strategy.symmetry)
    promises = []
    if symmetry is not None:
        promises.append(("reversing the slices", record.mirror_error, MIRROR_LIMIT))
    if symmetry == "permutation":
        promises.append(("reordering the slices", record.permutation_error, MIRROR_LIMIT))
    if strategy.promises_gray(channels, record.slices):
        promises.append(("giving it a gray image as slices, not as channels,", record.gray_error, GRAY_LIMIT))
    for what, error, precise in promises:
        limit = allowed_error(precise, rounding)
        if error > limit:
            hint = "" if strategy.name == "mixer" else f"; {MIXER_HINT}"
            return ModelError(
                f"the network breaks what the strategy {strategy.name!r} promises: {what} changes its output"
                f" by {error:.2g} of its largest value, more than {limit:.2g};"
                f" look for what else reads the image, besides {', '.join(stem.label for stem in stems)}{hint}"
            )
    return None
