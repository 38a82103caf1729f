"""Networks and functions ready to run, in the same way: from windows of slices in 0..1 to outputs.

A network becomes a frozen copy on its device, in its precision, with the input scaling that it expects. A function gets
windows as a NumPy array (batch, slices, y, x), float32 in 0..1, and returns an array or a tensor of outputs, batch first. It
has no gradients, so only occlusion can explain it. What a device refuses is told in one line, and batches are as large as its
memory allows.

In evaluation mode a batch norm is a fixed scale and shift, which the convolution before it applies at no cost. Which convolution
that is comes from a test pass, and not from a list of architectures; a second one tells that the output is the same.
"""

from __future__ import annotations

import copy
import io
import logging
import threading
import warnings
import weakref
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evenslice._core import ConfigError, EvensliceError, ModelError, option, reason, reporting_errors
from evenslice.inference.compute import choose_device, choose_dtype
from evenslice.networks import (
    final_activation,
    full_precision,
    function_name,
    input_sizes,
    logits,
    normalization,
    reduce_output,
    require_network,
)
from evenslice.neutralizing import record_of, untie
from evenslice.volumes import WindowGrid, check_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from evenslice.inference.compute import Compute


def to_device(
    array: NDArray[Any], device: torch.device, layout: torch.memory_format = torch.channels_last
) -> Tensor:
    """Copy an array to a device, images (batch, channels, y, x) in this layout.

    A GPU copies it from pinned memory when it comes to that, and this process goes on meanwhile.

    Example:
        >>> to_device(np.zeros((2, 3, 4, 5)), torch.device("cpu")).stride()
        (60, 1, 15, 3)
    """
    layout = layout if array.ndim == 4 else torch.contiguous_format
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device, memory_format=layout)
    # The GPU, and not this process, changes the layout.
    return tensor.pin_memory().to(device, non_blocking=True).contiguous(memory_format=layout)


CPU_ALLOCATOR = "DefaultCPUAllocator"
OUT_OF_MEMORY = (
    *(CPU_ALLOCATOR, "unable to find an engine"),  # of cuDNN: for want of memory, as a rule
    *("out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("Failed to allocate memory for requested buffer", "is smaller than requested bytes"),  # of onnxruntime
)
DEVICE_ERRORS = ("CUDA error", "HIP error", "cuDNN error")

ADVICE = f"choose a smaller {option('tile')} or {option('batch')}, or end what else uses it"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device, or of the machine, has run out.

    Example:
        >>> out_of_memory(torch.OutOfMemoryError()), out_of_memory(RuntimeError("expected 3 channels"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY)


def device_error(
    error: BaseException,
    device: torch.device | None = None,
    *,
    what: str | None = None,
    advice: str | None = None,
) -> EvensliceError | None:
    """Return one line for what a device refuses; None for an error about what it was to compute.

    Args:
        error: what PyTorch, or a function, raised.
        device: where it computed; None if only memory that runs out is looked for.
        what: what does not fit if memory runs out, as a sentence: "the network does not fit"; by default what the error says.
        advice: what to do in that case.

    Example:
        >>> print(device_error(torch.OutOfMemoryError(), what="the network does not fit", advice="end others"))
        the memory of the device has run out: the network does not fit; end others
        >>> device_error(RuntimeError("expected 3 channels"), torch.device("cpu"))
    """
    if out_of_memory(error):
        what = what or reason(error).rstrip(".")
        on_cpu = isinstance(error, MemoryError) or CPU_ALLOCATOR in str(error)
        advice = advice or (ADVICE if on_cpu else f"{ADVICE}, or choose {option('device', 'cpu')}")
        return ModelError(f"the memory of the device has run out: {what}; {advice}")
    failed = isinstance(error, RuntimeError) and any(part in str(error) for part in DEVICE_ERRORS)
    if device is None or not (failed or isinstance(error, torch.AcceleratorError)):
        return None
    return ConfigError(
        f"{option('device', str(device))}: fails ({reason(error)}); choose {option('device', 'cpu')}, or install a PyTorch "
        "for this device"
    )


@contextmanager
def reporting_device_errors(device: torch.device, what: str) -> Iterator[None]:
    """Turn what a device refuses in the block into one line, see ``device_error``.

    Raises:
        ModelError: its memory has run out.
        ConfigError: it refuses to compute.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if refusal := device_error(error, device, what=what):
            raise refusal from error
        raise


Result = TypeVar("Result")


class BatchSizes:
    """How many windows at once a network can take on its device, for each kind of work.

    A kind of work is whatever tells it from others that take other memory: what is computed, in which precision, on
    windows of which size.
    """

    def __init__(self) -> None:
        self._most: dict[Hashable, int] = {}

    def run(self, compute: Callable[[slice], Result], count: int, kind: Hashable) -> list[Result]:
        """Compute on a batch of windows; where memory runs out, on halves of it, and from then on on no more at once.

        Args:
            compute: computes on some windows of the batch.
            count: number of windows in the batch.
            kind: of work.

        Returns:
            The results of the parts of the batch, in order; usually there is one.

        Raises:
            ModelError: memory runs out for a single window.

        Example: memory for two windows.
            >>> def compute(part):
            ...     if part.stop - part.start > 2:
            ...         raise torch.OutOfMemoryError
            ...     return list(range(5)[part])
            >>> BatchSizes().run(compute, 5, "example")
            [[0, 1], [2, 3], [4]]
        """
        results: list[Result] = []
        size, start = min(self._most.get(kind, count), count), 0
        while start < count:
            part = slice(start, min(start + size, count))
            try:
                results.append(compute(part))
            except (RuntimeError, MemoryError) as error:  # the latter of a function, by NumPy
                refusal = device_error(error, what="a single window does not fit into it")
                if refusal is None:
                    raise
            else:
                start = part.stop
                continue
            # Only here is the exception gone, and with it the tensors that it held.
            if part.stop - part.start == 1:
                raise refusal
            size = self._most[kind] = (part.stop - part.start) // 2
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()  # reserved in pieces, so that whole ones can be reserved
        return results


_MOVING = threading.Lock()


def input_scaling(model: nn.Module, slices: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std that a network expects of slices in 0..1: one for all, or one for each slice.

    They come from the record of ``neutralize``, else from the pretrained configuration, averaged if it has another
    number of channels than there are slices; else they are 0 and 1.
    """
    record = record_of(model)
    if record is not None:
        return (record.mean,), (record.std,)
    mean, std = normalization(model) or ((0.0,), (1.0,))
    if len(mean) in (1, slices):
        return mean, std
    return (sum(mean) / len(mean),), (sum(std) / len(std),)


def by_slice(values: tuple[float, ...]) -> Tensor:
    """Return one value, or one for each slice, as float32 (1, N, 1, 1), by which windows are scaled.

    Example:
        >>> by_slice((0.5, 0.25)).shape
        torch.Size([1, 2, 1, 1])
    """
    return torch.tensor(values, dtype=torch.float32, device="cpu").view(1, -1, 1, 1)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network in float32 and in evaluation mode, without gradients; ties become plain weights.

    Raises:
        ModelError: it cannot be copied, is a module of TorchScript, or has parameters without values.

    Example:
        >>> frozen_copy(nn.Conv2d(3, 2, 1)).weight.requires_grad
        False
    """
    require_network(model, values=True)
    try:
        module = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        if device_error(error, torch.device("cpu")):  # of that which the network is on
            raise
        raise ModelError(
            f"the network {type(model).__name__} cannot be copied: {reason(error)}; detach the tensors that it "
            "stores, and remove what copy.deepcopy cannot copy"
        ) from error
    untie(module)
    return module.eval().requires_grad_(False).float()


class WholeNetwork(nn.Module):
    """A frozen copy of a network in float32 on the CPU; ties are resolved into plain weights.

    Args:
        model: maps (batch, slices, y, x), with the scaling it expects, to anything with logits.
        mean: what it subtracts from slices in 0..1 by itself; one value, or one for each slice.
        std: what it divides them by afterwards, likewise.

    Example:
        >>> network = WholeNetwork(nn.Conv2d(3, 2, 4, stride=4), (0.5,), (0.25,))
        >>> network(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = frozen_copy(model).cpu()
        self.register_buffer("mean", by_slice(mean))
        self.register_buffer("std", by_slice(std))

    def forward(self, windows: Tensor) -> Tensor:
        """Return the logits of windows (batch, slices, y, x); a map gets the size of the windows, as in ``Predictor``."""
        output = logits(self.network((windows - self.mean) / self.std)).float()
        if output.ndim == 4 and output.shape[2:] != windows.shape[2:]:
            output = functional.interpolate(
                output, size=windows.shape[2:], mode="bilinear", align_corners=False
            )
        return output


@contextmanager
def watching_batch_norms(network: nn.Module) -> Iterator[dict[str, str]]:
    """Note, while a network runs, which batch norm reads the output of which convolution: their names."""
    convolutions: dict[str, str] = {}
    last: tuple[str, Callable[[], Tensor | None]] = "", lambda: None

    def note_convolution(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal last
        last = name, weakref.ref(output)

    def note_batch_norm(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and inputs[0] is last[1]():
            convolutions[name] = last[0]

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(partial(note_convolution, name)))
        elif _without_batch_norm(module):
            hooks.append(module.register_forward_pre_hook(partial(note_batch_norm, name)))
    try:
        yield convolutions
    finally:
        for hook in hooks:
            hook.remove()


def _without_batch_norm(module: nn.Module) -> nn.Module | None:
    """Return what a batch norm does beside its scale and shift; None for another module, or if hooks read its output."""
    if module._forward_hooks or getattr(module, "running_mean", None) is None:  # noqa: SLF001
        return None
    if type(module).__name__ == "BatchNormAct2d":  # timm's, with the activation in it
        return nn.Sequential(cast("nn.Module", module.drop), cast("nn.Module", module.act))
    return nn.Identity() if type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) else None


FAR = 1e3
"""Windows of noise in -FAR..FAR drive a function that ends in a sigmoid to both of its ends."""

NEAR_END = 0.01

SOFTMAX_ROUNDING = 0.01
"""How far a sum of probabilities may be from 1 in half precision; that of logits is hardly near it everywhere."""


class ReadyModel(nn.Module):
    """What a network and a function that are ready to run have in common.

    Attributes:
        name: what messages call it.
        scaling: the ``mean`` and ``std`` by which slices in 0..1 are scaled, one for all or one for each slice.
        batches: how many windows go through it at once.
        dtype: its precision.
        engine: what runs it.
        layout: of the windows that it reads without another copy.
        tile: the only size (y, x) of windows that it accepts; None if it accepts others.
        multiple: the number of which the size of windows must be a multiple.
    """

    name: str
    scaling: dict[str, list[float]]
    batches: BatchSizes
    tile: tuple[int, int] | None
    multiple = 32  # most networks behind functions need it
    dtype = torch.float32
    engine = "torch"
    layout = torch.contiguous_format

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    def accepted(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Return the size (y, x) of windows that it accepts: its only one, or the given one."""
        return self.tile or tile

    def trial(self, slices: int, tile: tuple[int, int]) -> Tensor:
        """Return a window (1, slices, y, x) of noise on its device, to test it with."""
        return trial_windows(slices, tile).to(self.device)

    def reporting(self, what: str) -> AbstractContextManager[None]:
        """Turn what its device refuses in a block into one line, which says ``what`` does not fit if memory runs out."""
        return reporting_device_errors(self.device, what)

    def prepare(self, slices: int, tile: tuple[int, int]) -> Any:
        """Run one test window.

        Returns:
            Its output for the window.

        Raises:
            ModelError: it rejects the window or fails, memory runs out, or its output contains no logits, or NaN.
            ConfigError: the device fails, or a function states that it takes other windows.
        """
        size = f"{slices} slices of {tile[0]} x {tile[1]}"
        others = f"another {option('tile')} or {option('dtype')}"
        advice = f"; correct it, give as many slices as it takes, or choose {others}"
        with (
            reporting_errors(ModelError, f"{self.name}: rejects windows of {size}", advice),
            self.reporting(f"a window of {size} does not fit"),
            torch.no_grad(),
        ):
            returned = self(self.trial(slices, tile))
        output = logits(returned)
        if output.is_floating_point() and bool(output.isnan().any()):
            raise ModelError(f"{self.name}: returns NaN for a window of noise in 0..1; check its weights")
        return returned

    def probabilities(
        self, output: Tensor, slices: int, tile: tuple[int, int]
    ) -> Literal["softmax", "sigmoid"] | None:
        """Tell from an output whether it holds probabilities, and of which kind; None for logits, or if nothing tells.

        Args:
            output: for the window of noise, (batch, channels) or (batch, channels, y, x).
            slices: N, the number of slices of its windows.
            tile: the size (y, x) of its windows.
        """
        if not _within(output):
            return None
        if output.shape[1] > 1 and bool(((output.float().sum(dim=1) - 1).abs() <= SOFTMAX_ROUNDING).all()):
            return "softmax"
        return "sigmoid" if self._ends_in_sigmoid(output, self.trial(slices, tile)) else None

    def _ends_in_sigmoid(self, output: Tensor, windows: Tensor, /) -> bool:
        raise NotImplementedError


def trial_windows(slices: int, tile: tuple[int, int]) -> Tensor:
    """Return a window (1, slices, y, x) of noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand((1, slices, *tile), generator=generator, dtype=torch.float32, device="cpu")


def _within(output: Tensor) -> bool:
    """Return whether all numbers of an output are between 0 and 1."""
    return output.is_floating_point() and bool(((output >= 0) & (output <= 1)).all())


TOLERANCE = 1e-4
"""How much an output may change where batch norms are folded, relative to the largest."""


class ReadyNetwork(ReadyModel):
    """A frozen copy of a network in evaluation mode that reads windows in 0..1; the original is left unchanged.

    Ties are resolved into plain weights in channels-last layout; the forward pass runs in the chosen precision. One that
    overflows in float16 is repeated in float32. A network that is sent to another process chooses its device there anew,
    see ``choose_device``, unless it was to run on a certain one; its precision stays.

    Args:
        model: maps (batch, slices, y, x), with the scaling it expects, to logits.
        slices: N, the number of slices of its windows.
        device: where it runs: "auto" (a CUDA GPU if there is one, else the CPU), or a PyTorch device name.
        dtype: "float32", which "auto" stands for, "bfloat16" or "float16" (on a GPU); the weights are always float32.
        outputs: maps what the network returns to the tensor of its outputs; by default ``evenslice.networks.logits``
            does.

    Raises:
        ModelError: the network cannot be copied, is a module of TorchScript, or does not fit into the memory of the device.
        ConfigError: the device is not available or fails, or the precision is unknown, or float16 on a CPU.

    Example:
        >>> network = ReadyNetwork(nn.Conv2d(3, 2, 1), slices=3, device="cpu", dtype="float32")
        >>> network(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """

    mean: Tensor
    std: Tensor
    layout = torch.channels_last

    def __init__(
        self,
        model: nn.Module,
        *,
        slices: int,
        device: str = "auto",
        dtype: str = "auto",
        outputs: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = type(model).__name__
        self.outputs = outputs
        self.batches = BatchSizes()
        self._asked = device
        self._device: torch.device | None = choose_device(device)
        self.dtype = choose_dtype(dtype, self._device)
        mean, std = input_scaling(model, slices)
        with reporting_device_errors(self.device, f"the network {self.name} does not fit"):
            module = frozen_copy(model).to(self.device)
            self.module = convert_conv2d_weight_memory_format(module, torch.channels_last)
            for name, values in (("mean", mean), ("std", std)):
                self.register_buffer(name, by_slice(values).to(self.device))
        self.scaling = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        self.tile, self.multiple = input_sizes(self.module)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        if self._device is None:  # it was sent to this process
            with _MOVING:  # other threads wait until it is there
                if self._device is None:
                    device = choose_device(self._asked)
                    with reporting_device_errors(device, f"the network {self.name} does not fit"):
                        self.to(device)
                    self._device = device
        return self._device

    def in_precision(self, dtype: torch.dtype) -> ReadyNetwork:
        """Return a network with the same weights that computes in another precision.

        For float64 it has copies of them. This network stays as it is: meanwhile other threads may run it, or send it to
        another process.

        Example:
            >>> network = ReadyNetwork(nn.Conv2d(3, 2, 1), slices=3, device="cpu", dtype="bfloat16")
            >>> exact = network.in_precision(torch.float32)
            >>> exact.dtype, network.dtype, exact.module is network.module
            (torch.float32, torch.bfloat16, True)
        """
        other = ReadyNetwork.__new__(ReadyNetwork)
        vars(other).update(vars(self), _device=self.device)
        other.dtype = dtype
        if dtype == torch.float64:
            vars(other).update({name: copy.deepcopy(vars(self)[name]) for name in ("_modules", "_buffers")})
            other.double()
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: everything on the CPU, since one of the two may have no GPU, or another.

        One that was received and has not run yet is sent on as it is: no device is chosen for that.
        """
        with _MOVING:  # a move that is under way ends first
            state, device = dict(vars(self)), self._device
        moved = device is not None and device.type != "cpu"
        if moved or self._asked in ("auto", "cuda"):
            state |= {"_device": None, "batches": BatchSizes()}
        for kind in ("_modules", "_buffers") if moved else ():
            parts = {name: part for name, part in state[kind].items() if part is not None}
            state[kind] = {name: copy.deepcopy(part).cpu() for name, part in parts.items()}
        return state

    def forward(self, windows: Tensor) -> Any:
        """Run the network on windows (batch, slices, y, x) in 0..1; return its output, reduced by ``outputs``."""
        returned = self._run(windows, self.dtype)
        if self.dtype == torch.float16:
            output = logits(returned)
            if output.is_floating_point() and not bool(output.isfinite().all()):
                returned = self._run(windows, torch.float32)
        return returned

    def _run(self, windows: Tensor, dtype: torch.dtype) -> Any:
        with full_precision(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype.itemsize < 4):
            returned = self.module((windows - self.mean) / self.std)
            # Within autocast: the function may multiply tensors of both precisions.
            return returned if self.outputs is None else reduce_output(returned, self.outputs)

    def prepare(self, slices: int, tile: tuple[int, int]) -> Any:
        """Run one test window, see ``ReadyModel.prepare``; in float32, fold batch norms into the convolutions before them."""
        if self.dtype != torch.float32:
            return super().prepare(slices, tile)
        with watching_batch_norms(self.module) as convolutions:
            returned = super().prepare(slices, tile)
        before: dict[str, nn.Module] = {}
        for name, convolution in convolutions.items():
            norm, reads = self.module.get_submodule(name), self.module.get_submodule(convolution)
            before |= {name: norm, convolution: reads}
            fused = fuse_conv_bn_eval(cast("nn.Conv2d", reads), cast("nn.BatchNorm2d", norm))
            self.module.set_submodule(convolution, fused.requires_grad_(False))
            self.module.set_submodule(name, cast("nn.Module", _without_batch_norm(norm)))
        if before and not self._still_gives(logits(returned), slices, tile):
            for name, module in before.items():
                self.module.set_submodule(name, module)
        return returned

    def _still_gives(self, expected: Tensor, slices: int, tile: tuple[int, int]) -> bool:
        """Return whether the changed network has the same output for the test window."""
        try:
            with torch.no_grad():
                output = logits(self(self.trial(slices, tile)))
        except Exception:  # noqa: BLE001  # the network may read its batch norms
            return False
        return bool((output - expected).abs().max() <= TOLERANCE * expected.abs().max())

    def _ends_in_sigmoid(self, _output: Tensor, windows: Tensor, /) -> bool:
        with torch.enable_grad():
            return final_activation(logits(self(windows.requires_grad_()))) == "sigmoid"


class BlackBox(ReadyModel):
    """A function wrapped as a module on the CPU, without gradients.

    Args:
        function: maps an array (batch, slices, y, x), float32 in 0..1, to an array or a tensor, batch first, or to
            anything that ``outputs`` or ``evenslice.networks.logits`` reduces to one. It scales and
            moves its input itself. Attributes ``slices`` and ``tile``, if present and not None, state the only windows
            that it accepts; ``sides`` is like ``tile``, with None for a side of any length. ``name``, ``mean`` and
            ``std``, if present, are recorded. ``origin``, such as a digest of its weights, tells it from others when a
            segmentation is resumed.
        outputs: maps what the function returns to the outputs.

    Raises:
        ModelError: it is not callable.

    Example:
        >>> network = BlackBox(lambda windows: windows.mean(axis=(1, 2, 3)))
        >>> network(torch.ones(2, 3, 8, 8))
        tensor([1., 1.])
    """

    engine = "function"

    def __init__(self, function: Callable[..., Any], *, outputs: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        if not callable(function):
            raise ModelError(
                f"{type(function).__name__} is not a network; give a torch.nn.Module, or a function from arrays of windows to "
                "outputs"
            )
        self.function = function
        self.outputs = outputs
        self.batches = BatchSizes()
        self.name = str(getattr(function, "name", function_name(function)))
        stated = getattr(function, "tile", None)
        self.tile = None if stated is None else check_tile(stated)
        self.scaling = {
            name: np.atleast_1d(getattr(function, name, default)).tolist()
            for name, default in (("mean", 0.0), ("std", 1.0))
        }

    @torch.no_grad()
    def forward(self, windows: Tensor) -> Any:
        """Call the function on windows (batch, slices, y, x) in 0..1, and return its outputs as tensors."""
        returned = self.function(np.ascontiguousarray(windows.detach().cpu().numpy(), dtype=np.float32))
        if self.outputs is not None:
            returned = reduce_output(returned, self.outputs)
        return self._tensors(returned)

    def accepted(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Return the size (y, x) of windows that the function takes: each side that it states, else the given one.

        Example:
            >>> def function(windows):
            ...     return windows
            >>> function.sides = 32, None
            >>> BlackBox(function).accepted((64, 96))
            (32, 96)
        """
        y, x = getattr(self.function, "sides", (None, None))
        return self.tile or (y or tile[0], x or tile[1])

    def prepare(self, slices: int, tile: tuple[int, int]) -> Any:
        """Call the function on one test window that it states to take; see ``ReadyModel.prepare``."""
        stated = {"slices": getattr(self.function, "slices", None), "tile": self.tile}
        for name, asked in (("slices", slices), ("tile", tuple(tile))):
            if stated[name] not in (None, asked):
                raise ConfigError(
                    f"{option(name, asked)}: {self.name} takes {stated[name]}; leave {option(name)} out"
                )
        return super().prepare(slices, tile)

    def _ends_in_sigmoid(self, output: Tensor, windows: Tensor, /) -> bool:
        """Return whether values between 0 and 1 are driven to both ends."""
        if bool((output == 0).any()):  # a mask, or a clipped output
            return False
        try:
            with np.errstate(over="ignore"):
                driven = logits(self((2 * windows - 1) * FAR))
        except Exception:  # noqa: BLE001  # a function may raise anything for inputs outside of 0..1
            return False
        ends = (
            driven.ndim == 4 and _within(driven) and driven.min() < NEAR_END and driven.max() > 1 - NEAR_END
        )
        return bool(ends)

    def _tensors(self, returned: Any) -> Any:
        """Convert arrays, however nested in the returned value, to tensors."""
        if isinstance(returned, torch.Tensor):
            return returned.detach().cpu()
        if isinstance(returned, Mapping):
            return {key: self._tensors(item) for key, item in returned.items()}
        if isinstance(returned, list | tuple):
            return [self._tensors(item) for item in returned]
        if not hasattr(returned, "__array__"):
            return returned
        array = np.array(returned)  # a copy: the original may be read-only
        if array.dtype.kind not in "fiub":
            raise ModelError(
                f"the function {self.name} returns an array of type {array.dtype}; it must return numbers"
            )
        return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def make_ready(
    model: nn.Module | Callable[..., Any],
    slices: int,
    compute: Compute,
    *,
    outputs: Callable[[Any], Any] | None = None,
) -> ReadyNetwork | BlackBox:
    """Return a network or a function ready to run, which other processes get if these share the work.

    Args:
        model: the network or the function.
        slices: N.
        compute: where it runs, and in which precision.
        outputs: as for ``ReadyNetwork``, and for ``BlackBox``.

    Raises:
        ConfigError: the number is not odd, or a function cannot be sent.
        ModelError, ConfigError: see ``ReadyNetwork`` and ``BlackBox``.

    Example:
        >>> from evenslice.inference import Compute
        >>> make_ready(lambda windows: windows, 3, Compute()).name
        'evenslice.inference.ready_networks:<lambda>'
    """
    WindowGrid.check(slices)
    if not isinstance(model, nn.Module):
        compute.refuse("device", "dtype")  # a function chooses where and how to compute
        return BlackBox(model, outputs=outputs)
    return ReadyNetwork(model, slices=slices, device=compute.device, dtype=compute.dtype, outputs=outputs)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep to itself what converters of networks print, log and warn of: they speak of their own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
