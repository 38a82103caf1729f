"""State dicts matched to networks, never by guesswork.

The tensors must fit the network one by one. What may differ is named here and reported to the caller: a common prefix
(``model.``, ``module.``, ...) is stripped when that makes the rest fit; a state dict of a backbone alone fills the
backbone; and what stays random or unused is listed by name. Of several ways to fit, the one counts that leaves the
fewest parameters random. No tensor is dropped because of its shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice._core import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    State = Mapping[str, Tensor]

AVERAGED = "evenslice_mirror_average"
"""Buffer of a module after which a network averages over a window and its mirror, so that its state dict says so."""

TIED = "evenslice_tied"
"""Buffer of a tied weight, as long as there are slices in its mean."""

# What wrappers put before every key of a state dict.
PREFIXES = ("model.", "module.", "net.", "_orig_mod.")
# Where segmentation networks keep a backbone: the whole network, smp, smp with timm, timm's feature getter, torchvision.
BACKBONES = ("encoder.", "encoder.model.", "encoder.model.model.", "backbone.")
# How the key of a tied weight ends: `neutralize` ties by a parametrization of PyTorch.
_TIED = "parametrizations.weight.original"
# What may stay random if the state dict is of the backbone alone.
HEADS = frozenset(
    {"classifier", "decoder", "fc", "fc_norm", "head", "head_dist", "heads", "pre_logits"}
    | {"aux_classifier", "auxiliary_head", "classification_head", "decode_head", "neck", "segmentation_head"}
)


@dataclass(frozen=True)
class Filled:
    """How a state dict went into a network.

    Attributes:
        random: top-level parts of the network that the state dict does not hold.
        unused: top-level parts of the state dict that the network does not have.
    """

    random: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def fill_network(model: nn.Module, state: State, *, source: str, target: str) -> Filled:
    """Load a state dict into a network, in place.

    These ways to fit are tried: the state dict is the network's; it is, after stripping a prefix of all keys or of some;
    it lacks the head alone; it is that of the backbone of a segmentation network (and may have more parts than the
    network uses). Of those that fit, the one is taken that leaves the fewest values as they are, and the first of equal
    ones. The tensors take the network's dtype. Where the state dict is of a network that averages over windows and their
    mirrors, the modules get its buffer ``AVERAGED``; the caller has to put the average back.

    Args:
        model: the network.
        state: the tensors.
        source: where they come from, for messages.
        target: what the network is, for messages.

    Returns:
        The parts that kept their values, and those that were not used.

    Raises:
        ModelError: a tensor is missing, unexpected or of another shape; the message names the first of each.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
        >>> state = {"module.0.weight": torch.ones(8, 3, 3, 3), "module.0.bias": torch.ones(8)}
        >>> fill_network(model, state, source="w", target="m")
        Filled(random=(), unused=())
        >>> bool((model[0].bias == 1).all())
        True
    """
    network = model.state_dict()
    views = list(_views(state, network))
    fitting = [view for view in views if view.fits()]
    if fitting:
        best = max(fitting, key=_View.size)
        model.load_state_dict({**network, **best.tensors()})
        averages = [
            f"{best.part}{key}" for key in best.state if _averages(key) and (key != AVERAGED or not best.part)
        ]
        if len(averages) < sum(map(_averages, state)):
            raise ModelError(
                f"{source}: is of a network that averages over a window and its mirror outside of what {target} has; load "
                "it into the whole network"
            )
        place_averages(model, averages, source=source)
        return Filled(random=best.random(network), unused=best.unused())
    closest = max(views, key=lambda view: len(view.common))
    tied = next((key for key in closest.unexpected if key.endswith(_TIED)), None)
    if tied is not None:
        raise ModelError(
            f"{source} does not fit {target}: it was saved while a weight was tied ({_shown(tied)}); call "
            "evenslice.untie(model) before torch.save, or save the network with evenslice.save_network"
        )
    raise ModelError(f"{source} does not fit {target}: {closest.difference()}")


def place_averages(model: nn.Module, keys: Iterable[str], *, source: str) -> None:
    """Note on the modules of a network that it has to average after them; see ``AVERAGED``.

    Args:
        model: the network.
        keys: as in its state dict.
        source: where they come from, for messages.

    Raises:
        ModelError: it has no such module.

    Example:
        >>> import torch
        >>> place_averages(model := torch.nn.Sequential(torch.nn.ReLU()), ["0.evenslice_mirror_average"], source="w")
        >>> list(model.state_dict())
        ['0.evenslice_mirror_average']
    """
    modules = dict(model.named_modules())
    for key in keys:
        names = [each.removesuffix(AVERAGED).removesuffix(".") for each in (key, _flat(key))]
        name = next((each for each in names if each in modules), None)
        if name is None:
            raise ModelError(
                f"{source}: is of a network that averages over a window and its mirror after {_shown(names[0])}, which "
                f"{type(model).__name__} lacks; name the network that was saved"
            )
        mark_average(model, modules[name])


def mark_average(model: nn.Module, module: nn.Module) -> bool:
    """Give a module of a network the buffer ``AVERAGED``; return False if it has it already."""
    import torch

    if AVERAGED in dict(module.named_buffers(recurse=False)):
        return False
    device = next((parameter.device for parameter in model.parameters() if not parameter.is_meta), "cpu")
    module.register_buffer(AVERAGED, torch.zeros((), dtype=torch.uint8, device=device))
    return True


def is_mark(key: str) -> bool:
    """Say whether a key of a state dict is of a buffer that says what evenslice did to a network, and has no values.

    Example:
        >>> is_mark("encoder.relu.evenslice_mirror_average"), is_mark("encoder.conv1.weight")
        (True, False)
    """
    return key.rpartition(".")[2] in (AVERAGED, TIED)


def _averages(key: str) -> bool:
    return key.rpartition(".")[2] == AVERAGED


def differing_sizes(state: State, network: State, *, inputs: int = 3) -> tuple[int | None, int | None]:
    """Find the number of classes and of input channels by which a whole network's state dict differs from a network.

    Args:
        state: the tensors of a file.
        network: the state dict of the network as built.
        inputs: the number of input channels it was built for.

    Returns:
        The classes and the channels that would give the network the file's shapes; None for what agrees. Both are
        None if the two differ in more than that.

    Example:
        >>> import torch
        >>> network = {"stem.weight": torch.zeros(8, 3, 3, 3), "head.weight": torch.zeros(2, 8)}
        >>> differing_sizes({"stem.weight": torch.zeros(8, 5, 3, 3), "head.weight": torch.zeros(4, 8)}, network)
        (4, 5)
    """
    for view in _views(state, network):
        if not view.part and not view.missing and not view.unexpected:
            return _resized(view, inputs)
    return None, None


def _resized(view: _View, inputs: int) -> tuple[int | None, int | None]:
    classes, channels = set(), set()
    for key in view.reshaped:
        have, want = tuple(view.state[key].shape), tuple(view.wanted[key].shape)
        if have[1:] == want[1:]:
            classes.add(have[0])
        elif have[:1] + have[2:] == want[:1] + want[2:] and have[1] * inputs % want[1] == 0:
            channels.add(have[1] * inputs // want[1])
        else:
            return None, None
    if len(classes) > 1 or len(channels) > 1:
        return None, None
    return next(iter(classes), None), next(iter(channels), None)


def without_head(state: State, network: State) -> State:
    """Leave out the tensors that differ from a network's in their number of classes alone.

    It is for weights known to include a head for other classes; the network keeps its own.

    Example:
        >>> import torch
        >>> state = {"conv.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(1000, 8)}
        >>> list(without_head(state, {**state, "fc.weight": torch.zeros(2, 8)}))
        ['conv.weight']
    """
    return {
        key: value
        for key, value in state.items()
        if key not in network
        or value.shape == network[key].shape
        or value.shape[1:] != network[key].shape[1:]
    }


@dataclass(frozen=True)
class _View:
    """A state dict seen as one part of a network.

    Attributes:
        part: prefix of the part, ``""`` for the whole network.
        wanted: the part's own tensors, by their key within it.
        state: the tensors offered, by their key within the part.
        outside: top-level parts of the state dict beside a stripped prefix.
    """

    part: str
    wanted: State
    state: State
    outside: tuple[str, ...]

    @property
    def common(self) -> list[str]:
        return [key for key in self.wanted if key in self.state]

    @property
    def missing(self) -> list[str]:
        # Old checkpoints lack this count, and inference does not use it; what version 0.2 wrote lacks the marks.
        return [
            key
            for key in self.wanted
            if key not in self.state and not key.endswith("num_batches_tracked") and not is_mark(key)
        ]

    @property
    def unexpected(self) -> list[str]:
        return [key for key in self.state if key not in self.wanted and not is_mark(key)]

    @property
    def reshaped(self) -> list[str]:
        return [key for key in self.common if self.state[key].shape != self.wanted[key].shape]

    def fits(self) -> bool:
        if not self.common or self.reshaped:
            return False
        if not self.part:
            filled = _tops(self.common)
            # A head other than the file's stays random, and the file's is unused.
            return _tops(self.missing) <= HEADS - filled and _tops(self.unexpected) <= HEADS - _tops(
                self.wanted
            )
        # Additional whole parts are the head of a classifier; more within a shared part is another, deeper backbone.
        surplus = _tops(self.unexpected) | _tops(map(_flat, self.unexpected))
        return not self.missing and not surplus & _tops(self.wanted)

    def tensors(self) -> dict[str, Tensor]:
        return {self.part + key: self.state[key] for key in self.common}

    def size(self) -> int:
        """Return how many values of the network it fills."""
        return sum(self.wanted[key].numel() for key in self.common)

    def random(self, network: State) -> tuple[str, ...]:
        filled = _tops(self.tensors())
        return tuple(dict.fromkeys(top for top in map(_top, network) if top not in filled))

    def unused(self) -> tuple[str, ...]:
        return tuple(sorted({*_tops(self.unexpected), *self.outside}))

    def difference(self) -> str:
        """Say in one line how the state dict and this part of the network differ."""
        found = [
            f"{_count(keys)} {what} ({_shown(self.part + keys[0])}{', …' if len(keys) > 1 else ''})"
            for what, keys in (("missing", self.missing), ("unexpected", self.unexpected))
            if keys
        ]
        if keys := self.reshaped:
            have, want = tuple(self.state[keys[0]].shape), tuple(self.wanted[keys[0]].shape)
            found.append(
                f"{_count(keys)} of another shape ({_shown(self.part + keys[0])} is {have}, not {want})"
            )
        return ", ".join(found)


def _shown(key: str) -> str:
    """Shorten a key, which may come from anywhere, to one short line."""
    key = key if key.isprintable() else repr(key)
    return key if len(key) <= 100 else f"{key[:100]}…"


def _count(keys: Sequence[str]) -> str:
    return f"{len(keys)} key{'s' if len(keys) > 1 else ''}"


def _views(state: State, network: State) -> Iterator[_View]:
    """Yield every way to see a state dict as a part of a network, the simplest first."""
    for part in ("", *BACKBONES):
        wanted = {key.removeprefix(part): value for key, value in network.items() if key.startswith(part)}
        if wanted:
            for kept, outside in _stripped(state):
                named = kept if not part else {_name(key, wanted): value for key, value in kept.items()}
                yield _View(part, wanted, named, outside)


def _stripped(state: State, depth: int = 3) -> Iterator[tuple[State, tuple[str, ...]]]:
    """Yield a state dict as it is and without the prefixes of wrappers, and the parts beside the prefix.

    What stands beside the prefix may be more of the same network, whose parts were wrapped one by one.
    """
    yield state, ()
    for prefix in PREFIXES if depth else ():
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inner:
            beside = {key: value for key, value in state.items() if not key.startswith(prefix)}
            for kept, outside in _stripped(inner, depth - 1):
                yield kept, (*_tops(beside), *outside)
            if beside and inner.keys().isdisjoint(beside):
                yield {**inner, **beside}, ()


def _name(key: str, wanted: State) -> str:
    """Return the name a key has among the wanted: timm's feature extractors use ``stages_0`` for ``stages.0``."""
    return key if key in wanted or _flat(key) not in wanted else _flat(key)


def _flat(key: str) -> str:
    return key.replace(".", "_", 1)


def _top(key: str) -> str:
    return key.partition(".")[0]


def _tops(keys: Iterable[str]) -> set[str]:
    return set(map(_top, keys))
