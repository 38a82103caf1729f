"""The path from the image to the stems: probed, and made to treat all channels alike.

Images whose channels are distinct constants, sent through the parameter-free part in front of the stems, tell which channel
each input feature of a stem comes from, whatever happens to the image on the way: unfolding, space to depth, resizing, a fixed
scaling. The passes end at the last stem.

Then a batch norm on the image is removed; torchvision's ``transform_input`` is switched off; constants with one value a
channel, such as the mean and std of a normalization inside the network, become their average; and attributes that state
the number of channels state that of the slices. What these did to the image moves into the stems; see
`evenslice.neutralizing.rewriting`.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from evenslice._core import EvensliceError, ModelError, reason
from evenslice.networks import layer_label
from evenslice.neutralizing.running import exact_evaluation, is_on_meta, random_image, tensors_in
from evenslice.neutralizing.strategies import MIXER_HINT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.neutralizing.stems import Stem, Stems

WIDTHS = ("in_channels", "in_chans", "num_channels")
"""Attributes of modules that contain a stem, or of their configuration, that state the number of channels."""


@dataclass(frozen=True)
class Layout:
    """Where the input features of a stem come from: feature ``index[p, c]`` is ``scale[p, c] * image[c] + shift[p, c]``.

    P features of a stem come from each of C channels: 1 in most networks, 16 where space to depth unfolds 4 x 4 pixels.

    Attributes:
        index: (P, C) feature numbers, int64.
        scale: (P, C) float64.
        shift: (P, C) float64.
        where: (1, ...) float32, of the shape of the stem's input for one image: 1 where a feature follows the
            channels as above, 0 where it does not, as in a border that was padded on the way to the stem.
    """

    index: Tensor
    scale: Tensor
    shift: Tensor
    where: Tensor

    @property
    def is_bare(self) -> bool:
        """Whether the image arrives as it is, or only moved about."""
        return bool((self.scale == 1).all() and not self.shift.any())


class StemCall(NamedTuple):
    """One call of a stem: its input, and the output of its `Stem.bias_owner`, empty if the stem was not run."""

    input: Tensor
    output: Tensor


def probe(model: nn.Module, stems: Stems, channels: int) -> tuple[Layout, ...]:
    """Find which channel each input feature of the stems comes from, for images of some number of channels.

    Only the parameter-free part in front of the stems is run, so the number of channels need not be the one that the
    stems are made for.

    Args:
        model: the network; it is left as it was.
        stems: from `find_stems`.
        channels: number of channels of the images.

    Returns:
        One layout a stem.

    Raises:
        ModelError: the path to a stem does not accept so many channels, or mixes, drops or centres them.

    Example:
        >>> from evenslice.neutralizing.stems import find_stems
        >>> network = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3))
        >>> layout, = probe(network, find_stems(network), 3)
        >>> layout.index                            # (positions, channels)
        tensor([[ 0,  4,  8],
                [ 1,  5,  9],
                [ 2,  6, 10],
                [ 3,  7, 11]])
    """
    images = random_image(model, (channels + 1, channels, *stems.size)).zero_()
    for channel in range(channels):
        images[channel + 1, channel] = 1
    with exact_evaluation(model), torch.no_grad():
        calls = run_to_stems(model, stems, images, run=False)
    return tuple(
        _layout(stem, call.input, channels, tolerance=_mixing(images.dtype))
        for stem, call in zip(stems.items, calls, strict=True)
    )


def run_to_stems(model: nn.Module, stems: Stems, images: Tensor, *, run: bool) -> tuple[StemCall, ...]:
    """Run a network up to its last stem; call it inside `evenslice.neutralizing.running.exact_evaluation`.

    Args:
        model: the network; what is after the stems may be on the meta device.
        stems: from `find_stems`.
        images: (batch, channels, y, x).
        run: run the stems too; otherwise the number of channels may differ from theirs.

    Returns:
        The first call of each stem.

    Raises:
        ModelError: the path to a stem refuses the images.
    """
    with _watched(stems, run=run, elsewhere=is_on_meta(model)) as (arrivals, written):
        try:
            model(images)
        except _Reached:
            nothing = images.new_empty(0)
            return tuple(
                StemCall(arrivals[stem.name], written.get(stem.name, nothing)) for stem in stems.items
            )
        except Exception as error:  # noqa: BLE001  # a network may refuse an image by any exception
            refusal = f"{type(error).__name__}: {reason(error)}"
        else:
            refusal = "nothing arrives"
    passed = written if run else arrivals
    missed = next(stem for stem in stems.items if stem.name not in passed)
    raise ModelError(
        f"the way from the image to the layer {missed.label} does not take {images.shape[1]} channels"
        f" ({refusal}); it seems to be made for {stems.channels}; {MIXER_HINT}"
    )


@contextmanager
def _watched(
    stems: Stems, *, run: bool, elsewhere: bool
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield the inputs and the outputs of the stems in a pass in the block, by name, which ends after the last stem."""
    arrivals: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}

    def arrive(stem: Stem, given: Any) -> Any:
        arrived = next(tensors_in(given), None)
        if arrived is not None:
            arrivals.setdefault(stem.name, arrived.clone())
        if run:
            return None
        if len(arrivals) == len(stems.items):
            raise _Reached
        # Others follow: continue with an input of the width that the layer is made for.
        return (_of_width(arrivals[stem.name], stem.module),), {}

    def leave(stem: Stem, module: nn.Module, output: Tensor) -> Tensor | None:
        if run and module is (stem.norm if stem.bias_owner is stem.norm else stem.reader):
            written.setdefault(stem.name, output.clone())
            if len(written) == len(stems.items):
                raise _Reached
        # What is after the stem, perhaps its batch norm already, has no values.
        last = stem.reader if stem.norm is None or _lies_on_meta(stem.norm) else stem.norm
        return output.to("meta") if elsewhere and module is last else None

    with ExitStack() as stack:
        for stem in stems.items:
            before, after = partial(arrive, stem), partial(leave, stem)
            hook = stem.reader.register_forward_pre_hook(
                lambda _, args, kwargs, before=before: before((*args, *kwargs.values())), with_kwargs=True
            )
            stack.callback(hook.remove)
            for module in filter(None, (stem.reader, stem.norm)):
                hook = module.register_forward_hook(
                    lambda module, _, output, after=after: after(module, output)
                )
                stack.callback(hook.remove)
        yield arrivals, written


def _lies_on_meta(module: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


class _Reached(Exception):  # noqa: N818  # not an error: it ends a forward pass when every stem has been reached
    pass


def interior(stem: Stem, layout: Layout) -> Tensor:
    """Mark the outputs of a stem whose taps all lie inside the image.

    Args:
        stem: the layer.
        layout: its layout for the channels that the layer takes now.

    Returns:
        A boolean mask that broadcasts against the output of the stem for one image.

    Example:
        >>> from evenslice.neutralizing.stems import find_stems
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
        >>> found = find_stems(network, size=(4, 4))
        >>> interior(found.items[0], probe(network, found, 3)[0])[0, 0].int()
        tensor([[0, 0, 0, 0],
                [0, 1, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    layer = copy.deepcopy(stem.module).float()
    axis = _feature_axis(layer)
    with torch.no_grad():
        layer.weight.fill_(1)
        if layer.bias is not None:
            layer.bias.zero_()
        taps: Tensor = layer(layout.where).narrow(axis, 0, 1)
    inside: Tensor = taps == taps.max()
    return inside


def _of_width(tensor: Tensor, layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Return zeros of a tensor's shape, except for the feature axis, which is as wide as a layer takes."""
    shape = list(tensor.shape)
    shape[_feature_axis(layer)] = layer.weight.shape[1]
    return tensor.new_zeros(shape)


def _layout(stem: Stem, arrived: Tensor, channels: int, tolerance: float) -> Layout:
    """Derive the layout from the inputs for the images 0, e_1 .. e_C."""

    def refused(why: str) -> ModelError:
        return ModelError(f"the layer {stem.label}, given images of {channels} channels, {why}; {MIXER_HINT}")

    axis = _feature_axis(stem.module)
    moved = arrived.detach().to("cpu", torch.float64).movedim(axis, -1)
    if moved.shape[0] % (channels + 1):
        raise refused(f"gets {moved.shape[0]} inputs for {channels + 1} images; it mixes images")
    by_image = moved.reshape(channels + 1, -1, moved.shape[-1])  # (images, positions, features)
    typical = by_image.median(dim=1).values  # borders that were padded on the way are few
    shift, gain = typical[0], typical[1:] - typical[0]
    strength, source = gain.abs().max(dim=0)
    if (strength < tolerance).any() or (gain.abs().sum(dim=0) > strength * (1 + channels * tolerance)).any():
        raise refused("gets features that no channel or several channels enter; each has to come from one")
    counts = source.bincount(minlength=channels)
    if counts.min() != counts.max():
        found = "/".join(map(str, counts.tolist()))
        raise refused(
            f"gets {found} features from them; the way to it is made for another number of channels"
        )
    index = source.argsort(stable=True).reshape(channels, -1).T
    follows = torch.isclose(by_image, typical[:, None], rtol=tolerance, atol=tolerance).all(dim=0)
    one_image = moved.reshape(channels + 1, -1, *moved.shape[1:])[0]
    return Layout(
        index=index,
        scale=_snapped(gain.gather(0, source[None])[0], 1.0)[index],
        shift=_snapped(shift, 0.0)[index],
        where=follows.reshape(one_image.shape).movedim(-1, axis).to(arrived.device, torch.float32),
    )


def _snapped(values: Tensor, to: float) -> Tensor:
    """Undo the rounding of values meant to be a round number: resizing an image of ones gives 0.9999999."""
    return torch.where((values - to).abs() < 1e-6, to, values)


def _mixing(dtype: torch.dtype) -> float:
    """Return the share of a feature below which the trace of another channel counts as rounding."""
    return 50 * torch.finfo(dtype).eps


def _feature_axis(layer: nn.Conv2d | nn.Linear) -> int:
    return -3 if isinstance(layer, nn.Conv2d) else -1


def install_plain_stems(model: nn.Module, stems: Stems, undo: ExitStack) -> Stems:
    """Put plain layers in the place of a network's computed or grouped stems.

    Args:
        model: the network.
        stems: from `find_stems`.
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
        stems: from `find_stems`.
        layouts: from `probe`, for the channels that the network takes now.
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
        for name, value in (*module.named_buffers(recurse=False), *vars(module).items()):
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
