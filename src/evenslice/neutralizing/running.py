"""Running networks to see what they do: in evaluation mode, without side effects, on random images or on shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from evenslice.networks import full_precision, keep_generators

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def exact_evaluation(model: nn.Module) -> Iterator[None]:
    """Run a network in the block in evaluation mode, in its plain precision and without side effects.

    In the block neither autocast nor PyTorch's settings reduce precision, and what a forward pass does to the
    network's buffers ends with it. Afterwards each module's mode, and the state of torch's random numbers on every device of
    the network, are as before.

    Example:
        >>> network = nn.Dropout()
        >>> with exact_evaluation(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if not parameter.is_meta}
    with ExitStack() as stack:
        stack.enter_context(keep_generators(devices))
        for kind in {device.type for device in devices}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(full_precision())
        for module, training in modes:
            stack.callback(setattr, module, "training", training)
        stack.enter_context(_keeping_buffers(model))
        model.eval()
        yield


@contextmanager
def _keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Give each call of a network in the block copies of its buffers, which a forward pass may update."""
    kept: list[tuple[dict[str, Tensor | None], str, Tensor]] = []

    def copy(*_: Any) -> None:
        copies: dict[int, Tensor] = {}  # modules may share a buffer
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
                kept.append((module._buffers, name, buffer))  # noqa: SLF001  # whose values stay whatever is assigned
                module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())  # noqa: SLF001

    def put_back(*_: Any) -> None:
        for buffers, name, buffer in kept:
            buffers[name] = buffer
        kept.clear()

    handles = [
        model.register_forward_pre_hook(copy, prepend=True),
        model.register_forward_hook(put_back, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        put_back()  # an interrupt, unlike an error, goes round the hook


def is_on_meta(model: nn.Module) -> bool:
    """Say whether any part of a network is on the meta device, where tensors have shapes and no values.

    Example:
        >>> is_on_meta(nn.Conv2d(3, 8, 3)), is_on_meta(nn.Conv2d(3, 8, 3, device="meta"))
        (False, True)
    """
    return any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers()))


def random_image(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return a random image in 0..1 on a network's device and in its dtype.

    Example:
        >>> random_image(nn.Conv2d(3, 8, 3).double(), (1, 3, 4, 4)).dtype
        torch.float64
    """
    floating = [p for p in model.parameters() if p.is_floating_point()]
    like = next((p for p in floating if not p.is_meta), None)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return drawn.to(next(iter(floating), drawn).dtype) if like is None else drawn.to(like)


def run_network(model: nn.Module, image: Tensor) -> Any:
    """Run a network on an image; on shapes alone if the image is on the meta device, wherever the network is.

    Example:
        >>> run_network(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 4, 4, device="meta"))
        tensor(..., device='meta', size=(1, 8, 2, 2), grad_fn=<ConvolutionBackward0>)
    """
    if not image.is_meta:
        return model(image)
    state = {name: buffer.to("meta") for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        state[name] = parameter.detach().to("meta").requires_grad_(parameter.requires_grad)
    with torch.device("meta"):
        return functional_call(model, state, (image,))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in a nest of mappings, lists and tuples.

    Example:
        >>> [tensor.item() for tensor in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), None]})]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def layer_label(name: str, module: nn.Module) -> str:
    """Return a layer's name and type, for messages.

    Example:
        >>> layer_label("stem.0", nn.ReLU()), layer_label("", nn.ReLU())
        ('stem.0 (ReLU)', 'ReLU')
    """
    return f"{name} ({type(module).__name__})" if name else type(module).__name__
