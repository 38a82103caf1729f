"""Where and how a network runs; without PyTorch, which the command line imports late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ConfigError, option, whole_number

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how a network runs.

    Attributes:
        device: "auto" (a CUDA GPU if there is one, else the CPU) or a PyTorch device name.
        dtype: "float32", which "auto" stands for; or "bfloat16" or "float16" (on a GPU), whose cost in labels is then said.
        batch: windows per forward pass; by default the fastest number. Fewer once memory runs out.
        workers: number of processes to start on this machine; by default everything runs in this one. Results do not depend
            on it.
        scheduler: address of a Dask scheduler whose workers to use instead; they must reach files by the same paths.
        progress: show a progress bar on standard error; by default one on a terminal, and lines elsewhere.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> Compute(device="cpu", workers=2).shared
        True
    """

    device: str = "auto"
    dtype: str = "auto"
    batch: int | None = None
    workers: int | None = None
    scheduler: str | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.batch is not None:
            object.__setattr__(self, "batch", whole_number("batch", self.batch, 1))

    @property
    def shared(self) -> bool:
        """Whether several processes share the work."""
        return self.workers is not None or self.scheduler is not None

    def place(self, *, training: bool = False) -> tuple[torch.device, torch.dtype]:
        """Return the device and the precision, for steps of training if asked for.

        Raises:
            ConfigError: PyTorch does not know or have the device, or the precision is unknown or not for it.
        """
        from evenslice.inference.ready_networks import choose_device, choose_dtype

        device = choose_device(self.device)
        return device, choose_dtype(self.dtype, device, training=training)

    def refuse(self, *names: str) -> None:
        """Raise ConfigError if one of these is given, where it would have no effect."""
        for name in names:
            if getattr(self, name) not in (None, "auto"):
                raise ConfigError(f"{option(name, getattr(self, name))}: has no effect here; leave it out")
