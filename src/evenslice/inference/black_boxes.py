"""Black boxes: functions from windows to outputs, wrapped to behave like a network that is ready to run.

    audit = evenslice.audit(function, volume, slices=3)

The function gets windows as a NumPy array (batch, slices, y, x), float32 in 0..1, and returns an array or a tensor of
outputs, batch first. It has no gradients, so only occlusion can explain it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice._core import (
    ConfigError,
    EvensliceError,
    ModelError,
    check_sendable,
    option,
    reason,
    whole_number,
)
from evenslice.inference.batch_sizes import BatchSizes
from evenslice.inference.device_errors import SMALLER, memory_error, out_of_memory
from evenslice.inference.ready_network import ReadyNetwork, check_output, trial_windows
from evenslice.networks import function_name, reduce_output
from evenslice.neutralizing import record_of
from evenslice.volumes import check_tile, check_window

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["BlackBox", "choose_slices", "keep_sides", "make_ready"]


class BlackBox(nn.Module):
    """A function wrapped as a module on the CPU, without gradients.

    Args:
        function: maps an array (batch, slices, y, x), float32 in 0..1, to an array or a tensor, batch first, or to
            anything that ``outputs`` or ``evenslice.networks.logits`` reduces to one. It scales and
            moves its input itself. Attributes ``slices`` and ``tile``, if present and not None, state the only windows
            that it accepts; ``sides`` is like ``tile``, with None for a side of any length. ``name``, ``mean`` and
            ``std``, if present, are recorded. ``origin``, such as a digest of its weights, tells it from others when a
            segmentation is resumed.
        outputs: maps what the function returns to the outputs.
        device: must be "auto": any other value would have no effect.
        dtype: likewise.

    Raises:
        ModelError: it is not callable.
        ConfigError: a device or a precision was given.

    Example:
        >>> network = BlackBox(lambda windows: windows.mean(axis=(1, 2, 3)))
        >>> network(torch.ones(2, 3, 8, 8))
        tensor([1., 1.])
    """

    device = torch.device("cpu")
    dtype = torch.float32
    multiple = 32
    """The number of which the size of windows is a multiple: most networks behind functions need it."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        outputs: Callable[[Any], Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        super().__init__()
        if not callable(function):
            raise ModelError(
                f"{type(function).__name__} is not a network; give a torch.nn.Module, or a function from "
                "arrays of windows "
                "to outputs"
            )
        for name, value in (("device", device), ("dtype", dtype)):
            if value != "auto":
                raise ConfigError(
                    f"{option(name, value)} has no effect on a function, which chooses where and how to compute; "
                    "leave it out"
                )
        self.function = function
        self.outputs = outputs
        self.batches = BatchSizes()
        self.name = str(getattr(function, "name", function_name(function)))
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

    @property
    def tile(self) -> tuple[int, int] | None:
        """The only size (y, x) of windows that the function states to accept; None if it states none."""
        stated = getattr(self.function, "tile", None)
        return None if stated is None else check_tile(stated)

    def prepare(self, slices: int, tile: tuple[int, int]) -> Any:
        """Call the function on one test window, and return the result.

        Raises:
            ModelError: it rejects the window, memory runs out, or its result contains no outputs.
            ConfigError: it states that it takes other windows.
        """
        for name, asked, stated in (
            ("slices", slices, getattr(self.function, "slices", None)),
            ("tile", tuple(tile), self.tile),
        ):
            if stated is not None and stated != asked:
                raise ConfigError(
                    f"{option(name, asked)}: {self.name} takes {stated}; leave {option(name)} out"
                )
        windows = trial_windows(slices, tile)
        try:
            returned = self(windows)
        except EvensliceError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise memory_error(
                    error, f"a window of {slices} slices of {tile[0]} x {tile[1]} does not fit", SMALLER
                ) from error
            raise ModelError(
                f"the function {self.name} fails on an array of shape {tuple(windows.shape)}: {type(error).__name__}: "
                f"{reason(error)}"
            ) from error
        check_output(returned, self.name)
        return returned

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


def keep_sides(network: object, tile: tuple[int, int]) -> tuple[int, int]:
    """Return the size (y, x) of windows, with each side that a function states to be the only one that it accepts.

    Args:
        network: the function, such as one from ``load_onnx``, or its ``BlackBox``; anything else states no side.
        tile: the size to take else.

    Example:
        >>> def function(windows):
        ...     return windows
        >>> function.sides = 32, None
        >>> keep_sides(function, (64, 96)), keep_sides(BlackBox(function), (64, 96))
        ((32, 96), (32, 96))
    """
    function = network.function if isinstance(network, BlackBox) else network
    y, x = getattr(function, "sides", (None, None))
    return y or tile[0], x or tile[1]


def choose_slices(model: nn.Module | Callable[..., Any]) -> int:
    """Return the number of slices that ``neutralize`` recorded on a network or that a function states, else 3.

    Example:
        >>> choose_slices(lambda windows: windows)
        3
    """
    stated = record_of(model) if isinstance(model, nn.Module) else model
    return getattr(stated, "slices", None) or 3


def make_ready(
    model: nn.Module | Callable[..., Any],
    slices: int | None,
    *,
    device: str,
    dtype: str,
    outputs: Callable[[Any], Any] | None = None,
    sent: bool = False,
) -> tuple[ReadyNetwork | BlackBox, int]:
    """Return a network or a function ready to run, and the number of slices of its windows.

    Args:
        model: the network or the function.
        slices: N; by default see ``choose_slices``.
        device: as for ``ReadyNetwork``, and for ``BlackBox``.
        dtype: likewise.
        outputs: likewise.
        sent: whether it will be sent to other processes.

    Raises:
        ConfigError: the number is not odd, or a function cannot be sent.
        ModelError, ConfigError: see ``ReadyNetwork`` and ``BlackBox``.

    Example:
        >>> make_ready(lambda windows: windows, None, device="auto", dtype="auto")[1]
        3
    """
    slices = choose_slices(model) if slices is None else whole_number("slices", slices)
    check_window(slices, 1, "reflect")
    ready: ReadyNetwork | BlackBox
    if isinstance(model, nn.Module):  # a network can be sent, as it can be copied
        ready = ReadyNetwork(model, slices=slices, device=device, dtype=dtype, outputs=outputs)
    else:
        ready = BlackBox(model, device=device, dtype=dtype, outputs=outputs)
        if sent:
            check_sendable(model, f"the function {ready.name}")
    if sent and outputs is not None:
        check_sendable(outputs, option("outputs", function_name(outputs)))
    return ready, slices
