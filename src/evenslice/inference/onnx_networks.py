"""ONNX files as functions from windows to outputs, through onnxruntime.

    network = evenslice.load_onnx("network.onnx", mean=0.5, std=0.25)
    audit = evenslice.audit(network, volume)

Only onnxruntime reads the file, which cannot bring code of its own: libraries of custom operators are never loaded, and
since version 1.24 external weights are read only from the folder of the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import UNREADABLE, ConfigError, ModelError, local_path, needs_extra, option, reason
from evenslice.networks import METADATA_KEY, check_mean

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


ONNX = "onnx"
"""The specification of a network in an ONNX file, whose weights are the file."""

SYMMETRIZED = "symmetrized"
"""The entry in the metadata of a file that averages over a window and its mirror."""

CPU = ("CPUExecutionProvider",)
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxNetwork:
    """A network in an ONNX file, as a function of windows; created by ``load_onnx``.

    It is pickled as its path and reopened when unpickled, so workers of a cluster must find the file under that path.

    Attributes:
        path: absolute path of the file.
        slices: the number of slices it takes; None if the file allows any.
        tile: the size (y, x) it takes; None if the file leaves either open.
        sides: the same for each side, None for one that is open.
        batch: the number of windows it takes at once; None for any. Smaller batches are padded to it.
        mean: subtracted from slices in 0..1, here or in the graph; one value, or one for each slice.
        std: the divisor applied afterwards, likewise.
        outputs: the names of its outputs.
        types: their types, as in the file: ``"tensor(float)"``.
    """

    def __init__(
        self,
        path: Path,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        providers: tuple[str, ...],
    ) -> None:
        self.path, self.providers = path, providers
        self._given = mean, std
        self._session = open_session(path, providers)
        self.mean, self.std, self._in_graph = _scaling(self._session, path, mean, std)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in TYPES:
            given = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs) or "none"
            raise ModelError(
                f"{path}: its inputs are {given}; it must have one of floating-point numbers (batch, slices, y, x)"
            )
        self._input, self._type = inputs[0].name, TYPES[inputs[0].type]
        sizes = [size if isinstance(size, int) else None for size in inputs[0].shape]
        self.batch, self.slices, y, x = sizes
        self.sides = y, x
        self.tile = None if y is None or x is None else (y, x)
        self.outputs = tuple(item.name for item in self._session.get_outputs())
        self.types = tuple(item.type for item in self._session.get_outputs())
        averages = SYMMETRIZED in self._session.get_modelmeta().custom_metadata_map
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.slices or len(values)):
                raise ConfigError(
                    f"{option(name)} has {len(values)} values; {path} takes {self.slices} slices"
                )
            if averages and not self._in_graph and values != values[::-1]:
                raise ConfigError(
                    f"{option(name, list(values))}: {path} averages over a window and its mirror, so opposite slices need the "
                    "same value"
                )

    @property
    def scales_evenly(self) -> bool:
        """Whether opposite slices are scaled alike before they come to the graph."""
        return self._in_graph or all(values == values[::-1] for values in (self.mean, self.std))

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Run the network on windows (batch, slices, y, x) in 0..1.

        Returns:
            Its output; a dictionary by name if there are several.

        Raises:
            ModelError: onnxruntime rejects the windows, or an output does not have one row for each of them.
            torch.OutOfMemoryError: they do not fit into the memory.
        """
        applied = ((0.0,), (1.0,)) if self._in_graph else (self.mean, self.std)
        mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in applied)
        scaled = ((np.asarray(windows) - mean) / std).astype(self._type)
        if not len(scaled):
            raise ModelError(
                f"{self.path}: windows of shape {scaled.shape}: there is none; give at least one"
            )
        step = self.batch or len(scaled)
        chunks = [self._run(scaled[start : start + step]) for start in range(0, len(scaled), step)]
        outputs = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
        return outputs[0] if len(outputs) == 1 else dict(zip(self.outputs, outputs, strict=True))

    def _run(self, windows: NDArray[Any]) -> list[NDArray[Any]]:
        """Run one batch, padded with its last window to the batch size of the file."""
        count = len(windows)
        given = np.concatenate([windows, *[windows[-1:]] * ((self.batch or count) - count)])
        try:
            outputs = [np.asarray(output) for output in self._session.run(None, {self._input: given})]
        except Exception as error:
            import torch

            from evenslice.inference.devices import out_of_memory

            if out_of_memory(
                RuntimeError(error)
            ):  # for which audits and segmentations take fewer windows at once
                raise torch.OutOfMemoryError(f"{self.path}: {_reason(error)}") from error
            raise ModelError(
                f"{self.path}: rejects windows of shape {given.shape}: {_reason(error)}"
            ) from error
        for name, output in zip(self.outputs, outputs, strict=True):
            if output.shape[:1] != (len(given),):
                raise ModelError(
                    f"{self.path}: its output {name} is {output.shape} for {len(given)} windows; its first dimension "
                    "must be that of the windows"
                )
        return [output[:count] for output in outputs]

    def __repr__(self) -> str:
        return f"OnnxNetwork({str(self.path)!r}, slices={self.slices}, tile={self.tile})"

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxNetwork, (self.path, *self._given, self.providers)

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def origin(self) -> str:
        """The digest of the file, ``"sha256:..."``, without external weights."""
        with self.path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def load_onnx(
    path: str | os.PathLike[str],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    providers: Sequence[str] = CPU,
) -> OnnxNetwork:
    """Read a network from an ONNX file, as a function that ``audit`` takes.

    Args:
        path: the file. It has one input (batch, slices, y, x) of floating-point numbers. Each dimension may be fixed or
            free; smaller batches are padded to a fixed batch size.
        mean: what the network expects to be subtracted from slices in 0..1; one value, or one for each slice. By
            default what ``evenslice export`` wrote into the file, else 0.
        std: the divisor that it expects afterwards, in the same form; by default also from the file, else 1.
        providers: execution providers of onnxruntime in order of preference, or the name of one; a build for GPUs has
            more than one.

    Raises:
        ModelError: the file cannot be read, is not ONNX, takes weights from another folder, or has other inputs; or it
            states its own mean and std, and others are given.
        ConfigError: a mean, a std or a provider is invalid, or a provider does not start.
        MissingExtraError: onnxruntime is not installed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import evenslice
        >>> folder = tempfile.mkdtemp() + "/network"
        >>> model = torch.nn.Conv2d(5, 2, 3, padding=1).eval()
        >>> _ = evenslice.neutralize(model, slices=5, mean=0.5, std=0.25)
        >>> _ = evenslice.export(model, folder, to="onnx")
        >>> network = load_onnx(f"{folder}/network.onnx")
        >>> network.slices, network.mean, network(np.zeros((1, 5, 64, 64), np.float32)).shape
        (5, (0.5,), (1, 2, 64, 64))
    """
    centre, spread = _values("mean", mean), _values("std", std)
    if spread and not all(spread):
        raise ConfigError(f"{option('std', list(spread))}: give no std of 0")
    if centre:
        check_mean(centre)
    names = (providers,) if isinstance(providers, str) else tuple(providers)
    return OnnxNetwork(local_path(path, ModelError).absolute(), centre, spread, names)


def _values(name: str, given: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    with suppress(TypeError, ValueError):
        values = np.atleast_1d(np.asarray(given, dtype=float))
        if values.ndim == 1 and len(values) and np.isfinite(values).all():
            return tuple(values.tolist())
    raise ConfigError(f"{option(name)}: is {given!r:.40}; give a finite number, or one for each slice")


def _scaling(
    session: Any, path: Path, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Return the mean and std of slices in 0..1, and whether the graph applies them: as given, else as in the file."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        return mean or (0.0,), std or (1.0,), False
    if mean is not None or std is not None:
        raise ModelError(
            f"{path}: states its own mean and std; leave out {option('mean')} and {option('std')}"
        )
    try:
        stated = json.loads(text)
        centre, spread = (tuple(float(value) for value in stated[name]) for name in ("mean", "std"))
        if not (centre and spread and np.isfinite([*centre, *spread]).all() and min(spread) > 0):
            raise ValueError(f"mean {stated['mean']!r:.40}, std {stated['std']!r:.40}")
        return centre, spread, stated["scaled_in_graph"] is True
    except UNREADABLE as error:
        raise ModelError(
            f"{path}: the metadata of evenslice in it cannot be read ({reason(error)}); export the network again"
        ) from error


def open_session(path: Path, providers: tuple[str, ...] = CPU, *, optimized: bool = True) -> Any:
    """Return an onnxruntime session of a file, which opens faster if it need not be fast; see ``load_onnx`` for the errors."""
    with needs_extra("onnx", f"reading {path.name}"):
        import onnxruntime
    import torch

    available = onnxruntime.get_available_providers()
    if missing := [name for name in providers if name not in available]:
        raise ConfigError(f"provider {missing[0]!r}: this onnxruntime has {', '.join(available)}")
    path = local_path(path, ModelError)
    if (inside := path / "network.onnx").is_file():
        raise ModelError(f"{path}: is a folder; name {inside}")
    if not path.is_file():
        raise ModelError(f"{path}: no such file; name an ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()  # the limit of a worker in a cluster
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        raise ModelError(f"{path}: cannot be read as an ONNX network: {_reason(error)}") from error
    if missing := [name for name in providers if name not in session.get_providers()]:
        raise ConfigError(
            f"provider {missing[0]!r}: does not start here, and onnxruntime would compute without it; install what it needs "
            "(for CUDA, its libraries and cuDNN in the versions that onnxruntime names), or leave it out"
        )
    return session


def _reason(error: Exception) -> str:
    """Return the message of an onnxruntime error without its leading codes."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text) or type(error).__name__
