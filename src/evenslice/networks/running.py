"""Running networks: what is one, random states, precision, and answers that depend on the window alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from evenslice._core import ModelError

Answer = Callable[[Tensor], Mapping[Any, Tensor]]

GENERATORS = ("cuda", "xpu")
"""Kinds of devices with a generator each, in ``torch.cuda.default_generators`` and the like; all of MPS share one."""


def require_network(model: object, *, values: bool = False, meta: bool = False) -> None:
    """Refuse what is no network, such as its name, its weights, or all that ``load_network`` returns.

    A network of TorchScript is refused, too: it can be neither changed nor copied and frozen as a module.

    Args:
        model: the network.
        values: refuse parameters without values, too, as on "meta" or in lazy layers.
        meta: but let it be on "meta", or parts of it.

    Raises:
        ModelError: it is not a torch.nn.Module, or one without values.

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
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the network is a module of TorchScript; give the torch.nn.Module that it was made from, or a function that calls "
            "it: lambda windows: network(torch.from_numpy(windows))"
        )
    tensors = [*model.named_parameters(), *model.named_buffers()] if values else []
    if without := [name for name, tensor in tensors if is_lazy(tensor) or (tensor.is_meta and not meta)]:
        raise ModelError(
            f"the network {type(model).__name__} has parameters without values ({without[0]!r}); load its weights, or run it "
            "once if its layers are lazy"
        )


@contextmanager
def keep_generators(devices: Iterable[torch.device], seed: int | None = None) -> Iterator[None]:
    """Restore torch's generator of the CPU, and those of some devices, after the block.

    Args:
        devices: the devices.
        seed: for all of them at the beginning; `torch.manual_seed` would seed those of other devices, too.

    Example:
        >>> state = torch.get_rng_state()
        >>> with keep_generators([], seed=3):
        ...     first = torch.rand(2)
        >>> with keep_generators([], seed=3):
        ...     torch.equal(first, torch.rand(2))
        True
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
        if seed is not None:
            _seed(devices, seed)
        yield


def _seed(devices: Iterable[torch.device], seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    for device in devices:
        if device.type in GENERATORS:
            generators: tuple[torch.Generator, ...] = getattr(torch, device.type).default_generators
            if generators:  # none before the device is used
                generators[device.index or 0].manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)


FULL = ("none", "ieee")
_LOCK = threading.Lock()
_HELD: list[list[str]] = []
"""For each block of `full_precision` under way in any thread, PyTorch's settings before the first of them."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 in full in the block, whatever PyTorch is set to; in other threads, too.

    By default convolutions on a GPU round to TensorFloat32, 10 bits, and ``torch.set_float32_matmul_precision`` lets
    products round, on a CPU to bfloat16. The symmetry of networks is judged by differences smaller than that.

    Example:
        >>> torch.set_float32_matmul_precision("medium")
        >>> with full_precision():
        ...     torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        ('highest', False)
        >>> torch.get_float32_matmul_precision()
        'medium'
        >>> torch.set_float32_matmul_precision("highest")
    """
    with _LOCK:
        before = _HELD[0] if _HELD else [operation.fp32_precision for operation in _operations()]
        if not _HELD:  # the older switches go along: PyTorch complains where it reads one that says otherwise
            _set_precision(False, "highest", [name if name in FULL else "ieee" for name in before])
        _HELD.append(before)
    try:
        yield
    finally:
        with _LOCK:
            _HELD.pop()
            if not _HELD:
                products = "high" if before[2] == "tf32" else "highest"
                products = {"bf16": "medium", "tf32": "high"}.get(before[3], products)
                _set_precision(before[0] == before[1] == "tf32", products, before)


def _operations() -> tuple[Any, ...]:
    backends: Any = torch.backends
    convolutions = (backends.cudnn.conv, backends.cudnn.rnn)
    return (*convolutions, backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv)


def _set_precision(convolutions: bool, products: str, names: list[str]) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    for operation, name in zip(_operations(), names, strict=True):
        if operation.fp32_precision != name:
            operation.fp32_precision = name


MOST_NAMED = 5
ADVICE = {
    "random": "make it deterministic in evaluation mode",
    "dependent on the batch": "make it independent of its batch in evaluation mode, as a batch norm with "
    "track_running_stats=True is",
}


def answers_alone(
    answer: Answer, windows: Tensor, *, name: str, limits: tuple[float, float], model: nn.Module | None = None
) -> tuple[Mapping[Any, Tensor], Mapping[Any, Tensor]]:
    """Return the answers to two windows, each in a batch of its own, which depend on nothing but the window.

    Args:
        answer: returns the outputs of the network for a batch, each with the batch first, by any names.
        windows: (2, N, y, x).
        name: of the network, for messages.
        limits: the largest differences of two outputs for one window, relative to the largest value: of two runs, and of batches
            of different sizes, which are computed in another order.
        model: the network, whose layers are named; None if it has none.

    Raises:
        ModelError: the outputs for a window differ by more in a second run, or in a batch with the other window in front of it
            or behind it; the layers that do so are named.

    Example:
        >>> noisy = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten(0, 0))
        >>> noisy.append(type("Noise", (torch.nn.Module,), {"forward": lambda self, x: x + torch.rand_like(x)})())
        Sequential(...)
        >>> windows = torch.rand(2, 3, 8, 8)
        >>> with torch.no_grad():
        ...     answers_alone(lambda batch: {"": noisy(batch)}, windows, name="Net", limits=(1e-4, 1e-4), model=noisy)
        Traceback (most recent call last):
        ...
        evenslice.ModelError: the network Net returns another output for the same window ... random: 2 (Noise) ...
    """
    first, second = answer(windows[:1]), answer(windows[1:])
    again, together = answer(windows[1:]), answer(windows.flip(0))
    rows = ({key: output[row : row + 1] for key, output in together.items()} for row in range(2))
    second_run, beside = ("in a second run", "random"), ("beside another window", "dependent on the batch")
    trials = (
        (second, again, windows[1:], 0, second_run, limits[0]),
        (second, next(rows), windows.flip(0), 0, beside, limits[1]),
        (first, next(rows), windows.flip(0), 1, beside, limits[1]),
    )
    for alone, other, batch, row, (where, kind), limit in trials:
        if any(_differ(alone[key], other[key], limit) for key in alone if key in other):
            layers = [] if model is None else _unlike_layers(model, answer, batch, row, limit)
            named = f"; {kind}: {', '.join(layers[:MOST_NAMED])}" if layers else ""
            raise ModelError(
                f"the network {name} returns another output for the same window {where}, so a window cannot be compared with "
                f"its mirror{named}; {ADVICE[kind]}"
            )
    return first, second


def _differ(one: Tensor, other: Tensor, limit: float) -> bool:
    if one.shape != other.shape or not one.numel():
        return one.shape != other.shape
    size = max(float(one.abs().max()), torch.finfo(torch.float32).tiny)
    return float((one - other).abs().max()) > limit * size


def _unlike_layers(model: nn.Module, answer: Answer, batch: Tensor, row: int, limit: float) -> list[str]:
    """Return the innermost layers that answer the same input differently, by name and kind.

    Args:
        model: the network.
        answer: runs it.
        batch: of windows.
        row: which of them is compared with itself alone.
        limit: the largest difference that counts as none.
    """
    alone, beside = (
        _calls(model, answer, windows, place) for windows, place in ((batch[row, None], 0), (batch, row))
    )
    found = [
        name
        for name, calls in alone.items()
        if any(
            not _differ(given, again, limit) and _differ(output, repeated, limit)
            for (given, output), (again, repeated) in zip(calls, beside.get(name, []), strict=False)
        )
    ]
    inner = [name for name in found if not any(item != name and _lies_in(item, name) for item in found)]
    kinds = {name: type(model.get_submodule(name)).__name__ for name in inner}
    return [f"{name} ({kind})" if name else kind for name, kind in kinds.items()]


def _lies_in(name: str, part: str) -> bool:
    return not part or name.startswith(f"{part}.")


def _calls(
    model: nn.Module, answer: Answer, windows: Tensor, row: int
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return what each layer is given and returns for one window of a batch, call by call."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def record(name: str, given: Any, returned: Any) -> None:
        tensors = [item for item in given if isinstance(item, Tensor) and item.ndim]
        if tensors and isinstance(returned, Tensor) and returned.ndim:
            rows = slice(row, row + 1)
            calls.setdefault(name, []).append((tensors[0][rows].float(), returned[rows].float()))

    with ExitStack() as stack:
        for name, part in model.named_modules():
            hook = part.register_forward_hook(lambda _, given, output, name=name: record(name, given, output))
            stack.callback(hook.remove)
        answer(windows)
    return calls


LARGEST_FAST = 3  # largest kernel size for which the gradient of the weights is fast


def keep_convolutions_exact(network: nn.Module) -> None:
    """Make convolutions whose gradient is slow, or wrong, in bfloat16 run in float32 on a CPU under autocast, in place.

    Slow are some depthwise ones. With a stride, those of images smaller than it or the kernel are not finite in torch
    2.13. No parameter is renamed. Freeze weights that are not trained first: whether a weight is trained is decided here.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=4, bias=False))
        >>> keep_convolutions_exact(network)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     output = network(torch.full((1, 4, 3, 3), 1.001))
        >>> bool((output - 1.001 * network[0].weight.sum((1, 2, 3)).view(1, -1, 1, 1)).abs().max() < 1e-6)
        True
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or "forward" in vars(module):
            continue
        if max(module.stride) > 1 or _is_slow(module):
            vars(module)["forward"] = partial(_exact_forward, module, slow=_is_slow(module))


def _is_slow(convolution: nn.Conv2d) -> bool:
    depthwise = convolution.groups == convolution.in_channels > 1
    strided, large = max(convolution.stride) > 1, max(convolution.kernel_size) > LARGEST_FAST
    return depthwise and (strided or (large and convolution.weight.requires_grad))


def _exact_forward(convolution: nn.Conv2d, pixels: Tensor, *more: Any, slow: bool, **named: Any) -> Any:
    """Run a slow convolution, or one of a small image, in the precision of its weights if a gradient may follow."""
    forward = type(convolution).forward
    small = min(pixels.shape[-2:]) < max(*convolution.kernel_size, *convolution.stride)
    unneeded = torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
    if more or named or unneeded or not (slow or small):
        return forward(convolution, pixels, *more, **named)
    with torch.autocast("cpu", enabled=False):
        return forward(convolution, pixels.to(convolution.weight.dtype)).to(pixels.dtype)
