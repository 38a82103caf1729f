"""Networks ready to run: frozen copies on their device, in their precision, with the input scaling they expect."""

from __future__ import annotations

import copy
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from evenslice._core import ConfigError, ModelError, option, reason
from evenslice.inference.batch_norm_fusion import fuse_batch_norms
from evenslice.inference.batch_sizes import BatchSizes
from evenslice.inference.depthwise import keep_depthwise_exact
from evenslice.inference.device_errors import SMALLER, is_device_error, reporting_device_errors
from evenslice.inference.devices import choose_device, choose_dtype
from evenslice.networks import (
    ABOUT_INPUT,
    full_precision,
    input_multiple,
    input_size,
    logits,
    normalization,
    reduce_output,
    refuse_torchscript,
    reporting_own_errors,
    require_values,
)
from evenslice.neutralizing import record_of, untie

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

__all__ = ["ReadyNetwork", "by_slice", "check_output", "frozen_copy", "input_scaling", "trial_windows"]

ANY_GPU = ("auto", "cuda")  # devices that are chosen anew by each process
_MOVING = threading.Lock()
LARGEST_WINDOW = 2**28  # pixels in all its slices, 1 GiB
FUSING_SIDE = 128  # pixels; batch norms are folded by passes on windows of about this size


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
    refuse_torchscript(model)
    require_values(model)
    try:
        module = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        if is_device_error(error):  # of that which the network is on
            raise
        raise ModelError(
            f"the network {type(model).__name__} cannot be copied: {reason(error)}; detach the tensors that it "
            "stores, and remove what copy.deepcopy cannot copy"
        ) from error
    untie(module)
    return module.eval().requires_grad_(False).float()


class ReadyNetwork(nn.Module):
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

    Attributes:
        batches: how many windows go through it at once.

    Example:
        >>> network = ReadyNetwork(nn.Conv2d(3, 2, 1), slices=3, device="cpu", dtype="float32")
        >>> network(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """

    mean: Tensor
    std: Tensor

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
        if self.device.type == "cpu":
            keep_depthwise_exact(self.module)

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

        For float64 it has copies of them, still to be converted (``neutralizing.in_float64``). This network stays as it
        is: meanwhile other threads may run it, or send it to another process.

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
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: everything on the CPU, since one of the two may have no GPU, or another.

        One that was received and has not run yet is sent on as it is: no device is chosen for that.
        """
        with _MOVING:  # a move that is under way ends first
            state, device = dict(vars(self)), self._device
        if self._asked in ANY_GPU:
            state |= {"_device": None, "batches": BatchSizes()}
        if device is not None and device.type != "cpu":
            moved = {
                name: copy.deepcopy(part).cpu() for name, part in self._modules.items() if part is not None
            }
            buffers = {name: part.cpu() for name, part in self._buffers.items() if part is not None}
            state |= {"_modules": moved, "_buffers": buffers, "_device": None, "batches": BatchSizes()}
        return state

    def forward(self, windows: Tensor) -> Any:
        """Run the network on windows (batch, slices, y, x) in 0..1; return its output, reduced by ``outputs``."""
        returned = self._run(windows, self.dtype)
        if self.dtype == torch.float16 and not _is_finite(returned):
            returned = self._run(windows, torch.float32)
        return returned

    def _run(self, windows: Tensor, dtype: torch.dtype) -> Any:
        with (
            full_precision(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype.itemsize < 4),
        ):
            returned = self.module((windows - self.mean) / self.std)
            # Within autocast: the function may multiply tensors of both precisions.
            return returned if self.outputs is None else reduce_output(returned, self.outputs)

    @property
    def scaling(self) -> dict[str, list[float]]:
        """The ``mean`` and ``std`` by which slices in 0..1 are scaled, one for all or one for each slice."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    @property
    def tile(self) -> tuple[int, int] | None:
        """The only size (y, x) of windows that the network accepts; None if it accepts others."""
        return input_size(self.module)

    @property
    def multiple(self) -> int:
        """The number of which the size of windows must be a multiple."""
        return input_multiple(self.module)

    def prepare(self, slices: int, tile: tuple[int, int]) -> Any:
        """Run one test window through the network, then fold its batch norms into the preceding convolutions.

        Returns:
            The output of the network for the window.

        Raises:
            ModelError: the network rejects the window or fails, its memory runs out, or its output contains no logits.
            ConfigError: the device fails.
        """
        windows = trial_windows(slices, tile)
        what = f"a window of {slices} slices of {tile[0]} x {tile[1]} does not fit"
        try:
            with (
                torch.no_grad(),
                reporting_own_errors(f"the network {self.name}"),
                reporting_device_errors(self.device, what, SMALLER),
            ):
                windows = windows.to(self.device)
                returned = self(windows)
        except ABOUT_INPUT as error:
            advice = f"neutralize it for {slices} slices, or choose another size with {option('tile')}"
            if self.dtype != torch.float32 and any(name in str(error) for name in ("BFloat16", "Half")):
                advice = f"compute in single precision with {option('dtype', 'float32')}"
            raise ModelError(
                f"the network {self.name} rejects windows of shape {tuple(windows.shape)}: {reason(error)}; {advice}"
            ) from error
        check_output(returned, self.name)
        reduced = logits if self.outputs is None else partial(reduce_output, function=self.outputs)
        with full_precision():
            # Two passes in float32, one of them with its graph: on a whole plane, they would cost more than many slices.
            for part in _parts(windows, self.multiple):
                if fuse_batch_norms(self.module, (part - self.mean) / self.std, reduced):
                    break
        return returned


def trial_windows(slices: int, tile: tuple[int, int]) -> Tensor:
    """Return a window (1, slices, y, x) of noise, to test a network with."""
    if slices * tile[0] * tile[1] > LARGEST_WINDOW:
        raise ConfigError(
            f"{option('tile')}: a window of {slices} slices of {tile[0]} x {tile[1]} pixels is too large; "
            "choose a smaller tile"
        )
    generator = torch.Generator().manual_seed(0)
    return torch.rand((1, slices, *tile), generator=generator, dtype=torch.float32, device="cpu")


def _parts(windows: Tensor, multiple: int) -> Iterator[Tensor]:
    """Yield a part of windows that is large enough for most networks, and then all of it for those that refuse the part."""
    side = -(-FUSING_SIDE // multiple) * multiple
    if max(windows.shape[2:]) > side:
        yield windows[..., :side, :side]
    yield windows


def check_output(returned: Any, name: str) -> None:
    """Check the output of a network for the test window.

    Raises:
        ModelError: it contains no logits, or they contain NaN.
    """
    output = logits(returned)
    if output.is_floating_point() and bool(output.isnan().any()):
        raise ModelError(f"the network {name} returns NaN for a window of noise in 0..1; check its weights")


def _is_finite(returned: Any) -> bool:
    """Return whether the logits in what a network returned are finite, as far as they are of floating point."""
    output = logits(returned)
    return not output.is_floating_point() or bool(output.isfinite().all())
