"""Checking: what a neutralized network's output says of the promises of its strategy.

Two calls of the network are compared: the one before the change, for a gray image given as every channel, and one after it,
for the same given as every slice, and for a window in four orders and with its last bits changed.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evenslice._core import ModelError
from evenslice.networks import MIXER_HELPS, as_tensors, logits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evenslice.neutralizing.record import Record
    from evenslice.neutralizing.stems import Stem
    from evenslice.neutralizing.strategies import Strategy

__all__ = [
    "Border",
    "Errors",
    "Outputs",
    "check_promises",
    "listening",
    "measure",
    "old_borders",
    "trial_images",
]

Outputs = dict[Any, Tensor]
"""What is compared of a network's output, by where it came from; the first axis counts images."""

IMAGES = 6  # that `trial_images` gives for one gray image and one window


@dataclass(frozen=True)
class Border:
    """What takes the padding of one stem out of the comparison of gray images.

    Attributes:
        stem: the stem.
        inside: where the taps of its outputs all lie inside the image; broadcasts against the output for one image.
        wrote: what its `Stem.taker` wrote before the change, call by call.
    """

    stem: Stem
    inside: Tensor
    wrote: tuple[Tensor, ...]

    def patched(self, output: Tensor, call: int) -> Tensor:
        """Return the output of a call, with the old values on the border of what is the gray image's."""
        old = self.wrote[call] if call < len(self.wrote) else output[:0]
        gray = output[: len(old)]
        if not len(old) or gray.shape != old.shape or not _fits(self.inside, old):
            return output
        return torch.cat([torch.where(self.inside, gray, old), output[len(old) :]])


def _fits(mask: Tensor, tensor: Tensor) -> bool:
    return mask.ndim == tensor.ndim and all(
        a in (1, b) for a, b in zip(mask.shape, tensor.shape, strict=True)
    )


@dataclass(frozen=True)
class Errors:
    """What was measured; see `evenslice.neutralizing.record.Record`. Rounding is what changing last bits does to the output."""

    mirror: float
    permutation: float
    gray: float
    rounding: float


@contextmanager
def listening(model: nn.Module) -> Iterator[Callable[[Any, int], Outputs]]:
    """Listen to the parts of a network in the block, and yield what tells what of its output is to be compared.

    That is its logits (see `evenslice.networks.models.logits`); but where it returns a list of results, one an image, as detectors
    do, it is what the network's parts wrote: whether a detection passes a threshold may hang on the last bit.

    Yields:
        A function from what the network returned and the number of images to the outputs.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 2, 1))
        >>> with listening(network) as choose:
        ...     outputs = choose(network(torch.zeros(1, 3, 4, 4)), 1)
        >>> [tuple(output.shape) for output in outputs.values()]
        [(1, 2, 4, 4)]
    """
    heard: list[tuple[str, Any]] = []

    def choose(output: Any, images: int) -> Outputs:
        if not _is_list_of_results(output):
            return {"output": logits(output).detach()}
        return {
            (name, number): tensor.detach()
            for name, value in heard
            for number, tensor in enumerate(as_tensors(value))
            if tensor.is_floating_point() and tensor.ndim > 1 and len(tensor) == images
        }

    with ExitStack() as stack:
        for name, part in model.named_children():
            handle = part.register_forward_hook(lambda _, __, output, name=name: heard.append((name, output)))
            stack.callback(handle.remove)
        yield choose


def _is_list_of_results(output: Any) -> bool:
    return (
        isinstance(output, list | tuple) and bool(output) and all(isinstance(item, dict) for item in output)
    )


def trial_images(gray: Tensor, window: Tensor) -> Tensor:
    """Return the images to give to a neutralized network.

    Args:
        gray: (1, slices, y, x) an image whose slices are all alike.
        window: (1, slices, y, x) one whose slices are not.

    Returns:
        (6, slices, y, x): the gray image; the window, reversed, rotated by one slice, with its first two slices exchanged,
        and with the last bit of every voxel changed, up or down at random.
    """
    exchanged = torch.cat([window[:, :2].flip(1), window[:, 2:]], dim=1)
    rounded = window * (1 + torch.finfo(window.dtype).eps * (window - window.flip(-1)).sign())
    return torch.cat([gray, window, window.flip(1), window.roll(1, dims=1), exchanged, rounded])


@contextmanager
def old_borders(borders: Sequence[Border]) -> Iterator[None]:
    """In the block, let stems write what they wrote before the change for the border of the gray image."""

    def hook(border: Border) -> Callable[[nn.Module, tuple[object, ...], Tensor], Tensor]:
        calls = iter(range(len(border.wrote)))
        return lambda _module, _args, output: border.patched(output, next(calls, len(border.wrote)))

    with ExitStack() as stack:
        for border in borders:
            stack.callback(border.stem.taker.register_forward_hook(hook(border)).remove)
        yield


def measure(before: Outputs, after: Outputs) -> Errors:
    """Compare the outputs for `trial_images` with those before the change for the gray image.

    Raises:
        ModelError: an output is not finite, or not of the shape that it had.
    """
    common = [(before[key], after[key]) for key in before if key in after]
    if not common:
        raise ModelError(f"the network returns other things than before the change; {MIXER_HELPS}")
    return _worst([_measure(old, new) for old, new in common])


def _measure(reference: Tensor, outputs: Tensor) -> Errors:
    expected = (IMAGES * reference.shape[0], *reference.shape[1:]) if reference.ndim else ()
    if outputs.shape != expected or not expected:
        raise ModelError(
            f"the shape of the network's output went from {tuple(reference.shape)} for 1 image to"
            f" {tuple(outputs.shape)} for {IMAGES}; evenslice needs an output whose shape depends on nothing else"
        )
    gray, window, *others = outputs.chunk(IMAGES)
    *orders, rounding = (_difference(window, other) for other in others)
    # What a window gives counts too: a gray image may give nothing but rounding, where the kernels sum to zero.
    grays = _difference(torch.cat([reference, window]), torch.cat([gray, window]))
    return Errors(orders[0], max(orders), grays, rounding)


def _worst(errors: Sequence[Errors]) -> Errors:
    return Errors(
        max(error.mirror for error in errors),
        max(error.permutation for error in errors),
        max(error.gray for error in errors),
        max(error.rounding for error in errors),
    )


def _difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference of two outputs, relative to the largest absolute value of both."""
    if not first.numel():
        return 0.0
    largest = max(first.abs().max().item(), second.abs().max().item())
    if not math.isfinite(largest):
        raise ModelError(
            "the output of the network for a random image is not finite; mend its weights or its normalisation first"
        )
    return (first.double() - second.double()).abs().max().item() / largest if largest else 0.0


def check_promises(
    record: Record, strategy: Strategy, channels: int, rounding: float, stems: Sequence[Stem]
) -> None:
    """Check the errors that a record states.

    Args:
        record: what was done, and measured.
        strategy: what promises.
        channels: C, as many as the network took before.
        rounding: the effect of rounding on the output; no network keeps a promise better than it computes.
        stems: what was rewritten, for messages.

    Raises:
        ModelError: an error is more than what the strategy and the tie promise.
    """
    symmetry = {"uniform": "permutation", "mirror": "mirror"}.get(record.tie or "", strategy.symmetry)
    promises = [
        ("reversing the slices", record.mirror_error, 1e-5, symmetry is not None),
        ("reordering the slices", record.permutation_error, 1e-5, symmetry == "permutation"),
        (
            "giving it a gray image as slices, not as channels,",
            record.gray_error,
            1e-4,
            strategy.promises_gray(channels, record.slices),
        ),
    ]
    for what, error, precise, promised in promises:
        limit = max(precise, 4 * rounding)
        if promised and error > limit:
            helps = "" if strategy.name == "mixer" else f"; {MIXER_HELPS}"
            raise ModelError(
                f"the network does not keep what the strategy {strategy.name!r} promises: {what} changes its output"
                f" by {error:.2g} of its largest value, where at most {limit:.2g} was promised;"
                f" look for what reads the image beside {', '.join(stem.label for stem in stems)}{helps}"
            )
