"""Black boxes: a function from windows to outputs, made to look like a network that is ready to run.

    audit = evenslice.audit(function, volume, slices=3)

The function is given windows as a NumPy array (batch, slices, y, x), float32 in 0..1, and returns an array or a tensor
of outputs, batch first. There is no gradient to follow, so only occlusion can explain it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice._core import ConfigError, EvensliceError, ModelError
from evenslice.inference.ready_network import check_output, trial_windows
from evenslice.networks import function_name, reduce_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["BlackBox"]


class BlackBox(nn.Module):
    """A function of the user's as a module on the CPU, whose gradients do not exist.

    Args:
        function: maps an array (batch, slices, y, x), float32 in 0..1, to an array or a tensor, batch first, or to
            whatever ``outputs`` or ``evenslice.networks.models.logits`` reduces to one. It scales and moves its input itself.
            Where it has attributes ``slices`` and ``tile`` that are not None, it takes no other; where it has ``name``,
            ``mean`` and ``std``, they are noted.
        outputs: maps what the function returns to the outputs.
        device: "auto"; anything else would have no effect, and is refused.
        dtype: likewise.

    Raises:
        ModelError: it cannot be called.
        ConfigError: a device or a precision was asked for.

    Example:
        >>> network = BlackBox(lambda windows: windows.mean(axis=(1, 2, 3)))
        >>> network(torch.ones(2, 3, 8, 8))
        tensor([1., 1.])
    """

    device = torch.device("cpu")
    dtype = torch.float32

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
                f"{type(function).__name__} is no network; give a torch.nn.Module, or a function from arrays of windows "
                "to outputs"
            )
        for name, value in (("device", device), ("dtype", dtype)):
            if value != "auto":
                raise ConfigError(
                    f"{name} {value!r} has no effect on a function, which computes where and how it likes; leave it out"
                )
        self.function = function
        self.outputs = outputs
        self.name = str(getattr(function, "name", function_name(function)))
        self.scaling = {
            name: np.atleast_1d(getattr(function, name, default)).tolist()
            for name, default in (("mean", 0.0), ("std", 1.0))
        }

    def forward(self, windows: Tensor) -> Any:
        """Call the function on windows (batch, slices, y, x) in 0..1, and return what it returns as tensors."""
        returned = self.function(np.ascontiguousarray(windows.detach().cpu().numpy(), dtype=np.float32))
        if self.outputs is not None:
            returned = reduce_output(returned, self.outputs)
        return self._tensors(returned)

    def prepare(self, slices: int, tile: tuple[int, int]) -> Any:
        """Try the function on one window, and return what it gave.

        Raises:
            ModelError: it refuses the window, or returns something in which there are no outputs.
            ConfigError: it states that it takes other windows.
        """
        for name, asked in (("slices", slices), ("tile", tuple(tile))):
            stated = getattr(self.function, name, None)
            if stated is not None and stated != asked:
                raise ConfigError(f"{name} = {asked}: {self.name} takes {stated}; leave {name} out")
        windows = trial_windows(slices, tile)
        try:
            returned = self(windows)
        except EvensliceError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ModelError(
                f"the function {self.name} fails on an array of shape {tuple(windows.shape)}: {type(error).__name__}: "
                f"{reason}"
            ) from error
        check_output(returned, self.name)
        return returned

    def _tensors(self, returned: Any) -> Any:
        """Turn arrays, wherever they are in what was returned, into tensors."""
        if isinstance(returned, torch.Tensor):
            return returned.detach().cpu()
        if isinstance(returned, Mapping):
            return {key: self._tensors(item) for key, item in returned.items()}
        if isinstance(returned, list | tuple):
            return [self._tensors(item) for item in returned]
        if not hasattr(returned, "__array__"):
            return returned
        array = np.array(returned)  # a copy: what is handed out may be read-only
        if array.dtype.kind not in "fiub":
            raise ModelError(
                f"the function {self.name} returns an array of type {array.dtype}; numbers are needed"
            )
        return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
