"""Trial runs of a network: without side effects, in its plain precision, on random images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from evenslice._core import EvensliceError, ModelError, reason
from evenslice.networks.precision import full_precision

__all__ = [
    "ABOUT_INPUT",
    "exact_evaluation",
    "failing_layer",
    "first_tensor",
    "is_on_meta",
    "keep_generators",
    "layer_label",
    "random_image",
    "refuse_inference_tensors",
    "refuse_torchscript",
    "reporting_own_errors",
    "require_network",
    "require_values",
    "run_network",
    "seed_generators",
    "tensors_in",
]


ABOUT_INPUT = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, MemoryError)
"""What networks raise on windows that are too large, or of a size or number of slices that they do not take."""


GENERATORS = ("cuda", "xpu")
"""Kinds of devices with a generator each, in ``torch.cuda.default_generators`` and the like; all of MPS share one."""


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
        stack.callback(_restore_modes, modes)
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


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


@contextmanager
def reporting_own_errors(label: str) -> Iterator[None]:
    """Turn what the code of a network raises into one line, except errors about its input, which say what is wrong with that.

    Args:
        label: the network, as the user knows it.

    Raises:
        ModelError: the block raised an error that no other input would avoid, as a rule.

    Example:
        >>> with reporting_own_errors("Net"):
        ...     {}["mask"]
        Traceback (most recent call last):
        ...
        evenslice.ModelError: Net: fails in its forward pass (KeyError: 'mask'); correct it
    """
    try:
        yield
    except (EvensliceError, *ABOUT_INPUT):
        raise
    except Exception as error:  # anything, as in any code
        raise ModelError(
            f"{label}: fails in its forward pass ({type(error).__name__}: {reason(error)}); correct it"
        ) from error


def require_network(model: object) -> None:
    """Refuse what is no network, such as its name, its weights, or all that ``load_network`` returns.

    Raises:
        ModelError: it is not a torch.nn.Module.

    Example:
        >>> require_network(nn.Conv2d(3, 8, 3))
        >>> require_network("timm:resnet18")
        Traceback (most recent call last):
        evenslice.ModelError: str is not a network; give a torch.nn.Module, such as the model that evenslice.load_network ...
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{type(model).__name__} is not a network; give a torch.nn.Module, such as the model that evenslice.load_network "
            "returns"
        )


def refuse_torchscript(model: nn.Module) -> None:
    """Refuse a network of TorchScript, which can be neither changed nor copied and frozen as a module.

    Raises:
        ModelError: it is one.

    Example:
        >>> refuse_torchscript(nn.Conv2d(3, 8, 3))
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the network is a module of TorchScript; give the torch.nn.Module that it was made from, or a function that calls "
            "it: lambda windows: network(torch.from_numpy(windows))"
        )


def require_values(model: nn.Module, *, meta: bool = False) -> None:
    """Refuse a network with parameters or buffers that have no values, as on the device "meta" or in lazy layers.

    Args:
        model: the network.
        meta: whether it may be on "meta", or parts of it.

    Raises:
        ModelError: it is one.

    Example:
        >>> require_values(nn.Conv2d(3, 8, 3))
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if without := [name for name, tensor in tensors if is_lazy(tensor) or (tensor.is_meta and not meta)]:
        raise ModelError(
            f"the network {type(model).__name__} has parameters without values ({without[0]!r}); load its weights, or run it "
            "once if its layers are lazy"
        )


def refuse_inference_tensors(model: nn.Module) -> None:
    """Refuse a network whose weights were made within ``torch.inference_mode``, as they cannot be changed or trained.

    Raises:
        ModelError: it is one.

    Example:
        >>> refuse_inference_tensors(nn.Conv2d(3, 8, 3))
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ModelError(
            "the network was built within torch.inference_mode(), so its weights can be neither changed nor trained; build "
            "it outside of that, or give a copy.deepcopy of it that is made outside"
        )


def is_on_meta(model: nn.Module) -> bool:
    """Say whether any part of a network is on the meta device, where tensors have shapes and no values.

    Example:
        >>> is_on_meta(nn.Conv2d(3, 8, 3)), is_on_meta(nn.Conv2d(3, 8, 3, device="meta"))
        (False, True)
    """
    return any(parameter.is_meta for parameter in model.parameters())


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


@contextmanager
def keep_generators(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore torch's generator of the CPU, and those of some devices, after the block.

    Example:
        >>> state = torch.get_rng_state()
        >>> with keep_generators([]):
        ...     _ = torch.rand(2)
        >>> torch.equal(state, torch.get_rng_state())
        True
    """
    devices = list(devices)
    with ExitStack() as stack:
        for kind in GENERATORS:
            own = [device for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(own, device_type=kind))
        if any(device.type == "mps" for device in devices):  # whose functions take no device
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        yield


def seed_generators(devices: Iterable[torch.device], seed: int) -> None:
    """Seed torch's generator of the CPU, and those of some devices; `torch.manual_seed` would seed all there are.

    Example:
        >>> seed_generators([torch.device("cpu")], 3)
        >>> first = torch.rand(2)
        >>> seed_generators([torch.device("cpu")], 3)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    torch.default_generator.manual_seed(seed)
    for device in devices:
        if device.type in GENERATORS:
            generators: tuple[torch.Generator, ...] = getattr(torch, device.type).default_generators
            if generators:  # none before the device is used
                generators[device.index or 0].manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)


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


def first_tensor(values: Iterable[Any]) -> Tensor | None:
    """Return the first of some values that is a tensor.

    Example:
        >>> first_tensor([None, 2, torch.ones(1)])
        tensor([1.])
    """
    return next((value for value in values if isinstance(value, Tensor)), None)


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


def failing_layer(error: Exception, model: nn.Module) -> str:
    """Return the label of the innermost part of a network that raised an error, or of the network.

    Example:
        >>> network = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 1, 1))
        >>> try:
        ...     network(torch.zeros(1, 2, 4, 4))
        ... except RuntimeError as error:
        ...     failing_layer(error, network)
        '1 (Conv2d)'
    """
    names, found = {module: name for name, module in model.named_modules()}, model
    for frame, _ in walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner in names:
            found = owner
    return layer_label(names[found], found)
