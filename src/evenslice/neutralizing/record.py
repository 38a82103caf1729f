"""The record of a neutralized network: what was done to it, and how its slices have to be scaled from now on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from evenslice._core import UNREADABLE, ConfigError, ModelError, check_known, reason, whole_number
from evenslice.networks import require_network
from evenslice.neutralizing.strategies import check_tie, find_strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from evenslice.networks import StemKernels

_ATTRIBUTE = "evenslice_record"
ERRORS = ("mirror_error", "permutation_error", "gray_error")
RECORDED = (
    *("strategy", "profile", "tie", "slices", "seed", "stems", "mean", "std"),
    *(*ERRORS, "check", "symmetrized"),
)
"""What a file states of a record, in this order."""

_DAMAGED: tuple[type[Exception], ...] = (*UNREADABLE, ConfigError)
CHECKS: tuple[str, ...] = ("network", "stems")
"""Which outputs `neutralize` verifies: those of the whole network, or of its stems."""


class Errors(NamedTuple):
    """How far a network is from symmetric, and from what it was: see the attributes of `Record` of these names."""

    mirror: float = 0.0
    permutation: float = 0.0
    gray: float = 0.0


@dataclass(frozen=True)
class Record:
    """The changes that `neutralize` made to a network, and how to scale its slices from now on.

    Attributes:
        strategy: the name of the strategy.
        profile: the weights that the user gave for the strategy "profile"; else empty.
        tie: "mirror", "uniform" or None.
        slices: N, the number of slices that the network takes.
        seed: random seed of the strategy.
        stems: dotted names of the layers that were rewritten.
        mean: to subtract from every slice, in the unit of the network's mean.
        std: to divide every slice by afterwards.
        errors: the three errors below as one value.
        check: which outputs the errors refer to, one of `CHECKS`: "network" (for a detector, its parts, or,
            symmetrized at its output, the sum of its scores) or "stems" (or the batch norms after them).
        symmetrized: dotted names of the modules after which the network averages over a window and its mirror; an
            empty name is the network.
        kernels: the kernels of each stem before and after; not part of `to_dict`.

    Example:
        >>> import evenslice
        >>> from torch import nn
        >>> record = evenslice.neutralize(nn.Conv2d(3, 8, 3), slices=5, mean=0.5, std=0.25)
        >>> record.strategy, record.slices, record.mean, record.std
        ('uniform', 5, 0.5, 0.25)
    """

    strategy: str
    profile: tuple[float, ...]
    tie: str | None
    slices: int
    seed: int
    stems: tuple[str, ...]
    mean: float
    std: float
    errors: Errors = field(default_factory=Errors)
    check: str = "network"
    symmetrized: tuple[str, ...] = ()
    kernels: tuple[StemKernels, ...] = field(default=(), repr=False, compare=False)

    @property
    def mirror_error(self) -> float:
        """Largest change of the output when a random window is reversed, relative to the output's largest absolute value."""
        return self.errors.mirror

    @property
    def permutation_error(self) -> float:
        """The same, the largest over three orders: reversed, rotated by one slice, the first two exchanged.

        The latter two generate all orders.
        """
        return self.errors.permutation

    @property
    def gray_error(self) -> float:
        """Largest change of the output for a random gray image, given as every channel before and as every slice after.

        It is relative to the output's largest absolute value. A random window counts for that value too, since kernels that
        sum to zero turn a gray image into nothing but rounding. If a constant was folded into a stem that pads with zeros,
        outputs of the stem whose taps reach into the padding keep their old values: zeros do not mean the same intensity
        before and after.
        """
        return self.errors.gray

    @property
    def symmetrized_at(self) -> str | None:
        """Where the network was symmetrized, also by the strategy "twin"; None if nowhere."""
        if not self.symmetrized or self.strategy == "twin":
            return None
        return ", ".join(cut or "output" for cut in self.symmetrized)

    def to_dict(self) -> dict[str, Any]:
        """Return the record, without its kernels, as plain values for JSON."""
        values = {name: getattr(self, name) for name in RECORDED}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """Rebuild a record, without kernels, from the result of `to_dict`.

        Raises:
            ModelError: an entry is missing or unknown, or has a bad type or value.

        Example:
            >>> record = Record("uniform", (), None, 3, 0, ("conv1",), 0.5, 0.5)
            >>> Record.from_dict(record.to_dict()) == record
            True
        """
        try:
            given = {"check": "network", "symmetrized": (), **values}  # which older records lack
            for name in ("profile", "stems", "symmetrized"):
                if not isinstance(given[name], list | tuple):
                    raise ValueError(f"{name} {given[name]!r:.40} is no list")
                given[name] = tuple(map(float if name == "profile" else str, given[name]))
            numbers = {name: float(given.pop(name)) for name in ("mean", "std", *ERRORS)}
            if not all(map(math.isfinite, numbers.values())) or numbers["std"] <= 0:
                raise ValueError(f"bad scaling or errors: {numbers}")
            check_known("check", given["check"], CHECKS)
            check_tie(given["tie"])
            find_strategy(given["profile"] or given["strategy"], given["slices"])
            whole = {name: whole_number(name, given[name]) for name in ("slices", "seed")}
            errors = Errors(*map(numbers.pop, ERRORS))
            return cls(**given | numbers | whole, errors=errors, kernels=())
        except _DAMAGED as error:
            raise ModelError(
                f"not the record of a neutralized network ({reason(error)}); neutralize the network again"
            ) from error


def record_of(model: nn.Module) -> Record | None:
    """Return the record that `neutralize` left on a network, or on one inside it (a wrapper changes nothing).

    Raises:
        ModelError: it is not a network.

    Example:
        >>> from torch import nn
        >>> record_of(nn.Conv2d(3, 8, 3)) is None
        True
    """
    held = _held(model)
    return None if held is None else held[2]


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the network that holds the record if a model only wraps it, and its name there, ``"module."``; else the model.

    What has parameters of its own beside that network is more than a wrapper.

    Example:
        >>> from torch import nn
        >>> layer = nn.Conv2d(3, 8, 3)
        >>> unwrapped(layer) == (layer, "")
        True
    """
    name, inner, _ = _held(model) or ("", model, None)
    held = set(map(id, inner.parameters()))
    if not name or any(id(parameter) not in held for parameter in model.parameters()):
        return model, ""
    return inner, f"{name}."


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the network that `torch.compile` has wrapped, to change it or a part of it; any other as it is.

    Copies and pickles of the wrapper lose hooks and parts of its own, and have the network's.

    Example:
        >>> from torch import nn
        >>> layer = nn.Conv2d(3, 8, 3)
        >>> uncompiled(torch.compile(layer, backend="eager")) is layer, uncompiled(layer) is layer
        (True, True)
    """
    # As an attribute it would be looked up in the network, too.
    if any("_orig_mod" in module._modules for module in model.modules()):  # noqa: SLF001
        torch.compiler.reset()  # what was compiled before does not look for new hooks
    inner = model._modules.get("_orig_mod")  # noqa: SLF001
    return model if inner is None else inner


def record_with_names(model: nn.Module) -> Record | None:
    """Return the record that a network holds, or a part of it, with the names that layers have in the network.

    It is the one of `record_of` itself if the network holds it.
    """
    held = _held(model)
    if held is None:
        return None
    name, _, record = held
    return _renamed(record, lambda part: f"{name}.{part}".strip(".")) if name else record


def uncompiled_record(model: nn.Module) -> tuple[nn.Module, Record | None]:
    """Return the network that `torch.compile` may have wrapped, and the record in it, see `record_with_names`."""
    network = uncompiled(model)
    return network, record_with_names(network)


def keep_record(model: nn.Module, record: Record) -> None:
    """Leave a record on a network, replacing an earlier one.

    It is a plain attribute: it is copied by `copy.deepcopy` and pickle, and is not part of the state dict.
    """
    setattr(model, _ATTRIBUTE, record)


def replace_record(model: nn.Module, record: Record) -> None:
    """Leave a record on a network, or in place of an earlier one on a network that the model only wraps, by its names there.

    Example:
        >>> import evenslice
        >>> from torch import nn
        >>> record = evenslice.neutralize(layer := nn.Conv2d(3, 8, 3))
        >>> replace_record(nn.Sequential(layer), replace(record, slices=5, stems=("0",)))
        >>> record_of(layer).slices, record_of(layer).stems
        (5, ('',))
    """
    network, wrapper = unwrapped(model)
    inside = all(f"{name}.".startswith(wrapper) for name in (*record.stems, *record.symmetrized))
    if network is model or not inside:  # what is averaged may be in the wrapper
        keep_record(model, record)
    else:
        keep_record(
            network, _renamed(record, lambda name: f"{name}.".removeprefix(wrapper).removesuffix("."))
        )


def forget_ties(model: nn.Module) -> None:
    """Say in the records that a network and its parts hold that nothing is tied."""
    for module in model.modules():
        if _ATTRIBUTE in vars(module):
            setattr(module, _ATTRIBUTE, replace(vars(module)[_ATTRIBUTE], tie=None))


def _held(model: nn.Module) -> tuple[str, nn.Module, Record] | None:
    """Return the name of the first part of a network that holds a record, the part, and the record."""
    require_network(model)
    parts = ((name, module) for name, module in model.named_modules() if _ATTRIBUTE in vars(module))
    name, module = next(parts, ("", None))
    return None if module is None else (name, module, vars(module)[_ATTRIBUTE])


def _renamed(record: Record, rename: Callable[[str], str]) -> Record:
    """Return a record with other names of layers."""
    return replace(
        record,
        stems=tuple(map(rename, record.stems)),
        symmetrized=tuple(map(rename, record.symmetrized)),
        kernels=tuple(replace(kernels, name=rename(kernels.name)) for kernels in record.kernels),
    )
