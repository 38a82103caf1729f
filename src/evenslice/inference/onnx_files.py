"""ONNX files as functions from windows to outputs, through onnxruntime.

    network = evenslice.load_onnx("network.onnx", mean=0.5, std=0.25)
    audit = evenslice.audit(network, volume)

Only onnxruntime reads the file, which cannot bring code of its own: libraries of custom operators are never loaded, and
since version 1.24 external weights are read only from the folder of the file. Networks are written as such files, and compared
with what onnxruntime makes of them; and files are made symmetric:

    symmetrize_onnx("network.onnx", "fair.onnx")

A symmetric file runs each window and its mirror in one batch, and averages the answers. All names within its graph begin with
``symmetrized/``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    MissingExtraError,
    ModelError,
    json_text,
    local_path,
    needs_extra,
    option,
    reason,
    staged_file,
)
from evenslice.inference.ready_networks import WholeNetwork, out_of_memory, quiet_libraries
from evenslice.networks import METADATA_KEY, check_scaling, input_sizes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor


ONNX = "onnx"
"""The specification of a network in an ONNX file, whose weights are the file."""

SYMMETRIZED = "symmetrized"
"""The entry in the metadata of a file that averages over a window and its mirror."""

CPU = ("CPUExecutionProvider",)
DAMAGED: tuple[type[Exception], ...] = (ConfigError, *UNREADABLE)  # what a reader of descriptions may raise
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
        stated: what ``evenslice export`` wrote into the file; empty if something else made it.
    """

    def __init__(
        self,
        path: Path,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        providers: tuple[str, ...],
    ) -> None:
        self.path, self.name, self.providers = path, path.name, providers
        self._given = mean, std
        self._session = open_session(path, providers)
        said = self._session.get_modelmeta().custom_metadata_map
        self.stated, self.mean, self.std = _stated(path, said.get(METADATA_KEY), mean, std)
        self._in_graph = self.stated.get("scaled_in_graph") is True
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
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.slices or len(values)):
                raise ConfigError(
                    f"{option(name)} has {len(values)} values; {path} takes {self.slices} slices"
                )
            if SYMMETRIZED in said and not self._in_graph and values != values[::-1]:
                raise ConfigError(
                    f"{option(name, list(values))}: {path} averages over a window and its mirror, so opposite slices need the "
                    "same value"
                )

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
            if out_of_memory(RuntimeError(error)):  # audits and segmentations then take fewer windows at once
                raise torch.OutOfMemoryError(f"{self.path}: {reason(error)}") from error
            raise ModelError(
                f"{self.path}: rejects windows of shape {given.shape}: {reason(error)}"
            ) from error
        for name, output in zip(self.outputs, outputs, strict=True):
            if output.shape[:1] != (len(given),):
                raise ModelError(
                    f"{self.path}: its output {name} is {output.shape} for {len(given)} windows; its first dimension "
                    "must be that of the windows"
                )
        return [output[:count] for output in outputs]

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxNetwork, (self.path, *self._given, self.providers)

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
    """Load an ONNX file as a function for ``audit``, ``evaluate`` and ``segment``.

    Args:
        path: the file. It has one input (batch, slices, y, x) of floating-point numbers. Each dimension may be fixed or
            free; smaller batches are padded to a fixed batch size.
        mean: to subtract from slices in 0..1, one value, or one for each slice. By default the value that ``evenslice
            export`` wrote into the file, else 0.
        std: the divisor afterwards, in the same form; by default also from the file, else 1.
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
    names = (providers,) if isinstance(providers, str) else tuple(providers)
    return OnnxNetwork(local_path(path, ModelError).absolute(), centre, spread, names)


def _values(name: str, given: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    with suppress(TypeError, ValueError):
        values = np.atleast_1d(np.asarray(given, dtype=float))
        if (
            values.ndim == 1
            and len(values)
            and np.isfinite(values).all()
            and (name == "mean" or values.min() > 0)
        ):
            check_scaling(name, values.tolist())
            return tuple(values.tolist())
    wanted = "a finite number" + (" above 0" if name == "std" else "")
    raise ConfigError(f"{option(name)}: is {given!r:.40}; give {wanted}, or one for each slice")


def _stated(
    path: Path, text: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[dict[str, Any], tuple[float, ...], tuple[float, ...]]:
    """Return what a file states, and the mean and std of slices in 0..1: as given, else as in the file."""
    if text is None:
        return {}, mean or (0.0,), std or (1.0,)
    if mean is not None or std is not None:
        raise ModelError(
            f"{path}: states its own mean and std; leave out {option('mean')} and {option('std')}"
        )
    try:
        stated = dict(json.loads(text))
        centre, spread = _values("mean", stated["mean"]), _values("std", stated["std"])
        return stated, centre or (0.0,), spread or (1.0,)
    except DAMAGED as error:
        raise ModelError(
            f"{path}: the metadata of evenslice in it cannot be read ({reason(error)}); export the network again"
        ) from error


def open_session(path: Path, providers: tuple[str, ...] = CPU) -> Any:
    """Return an onnxruntime session of a file; see ``load_onnx`` for the errors."""
    with needs_extra("onnx", f"reading {path.name}"):
        import onnxruntime
    path = local_path(path, ModelError)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; name an ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    options.intra_op_num_threads = torch.get_num_threads()  # the limit of a worker in a cluster
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of providers, see below
            session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        raise ModelError(f"{path}: cannot be read as an ONNX network: {reason(error)}") from error
    if missing := [name for name in providers if name not in session.get_providers()]:
        raise ConfigError(
            f"provider {missing[0]!r}: does not start here, and onnxruntime would compute without it; install what it needs, "
            f"or choose one of {', '.join(onnxruntime.get_available_providers())}"
        )
    return session


TOLERANCE = 1e-4  # of the largest output
SMALLEST_TILE, FIXED_TILE = 64, 256
INPUT, OUTPUT = "windows", "logits"


@dataclass(frozen=True)
class WrittenOnnx:
    """An ONNX file that was written, and how it was checked.

    Attributes:
        tile: the only size (y, x) of windows that it takes; None for every multiple of ``multiple``.
        multiple: of which the size of windows must be a multiple.
        batch: how many windows it takes at once; None for any number.
        difference: the largest difference between its outputs and the network's, relative to the largest output.
        opset: version of the ONNX operators.
        window: the size (y, x) of the smallest window that it was tried with.
    """

    tile: tuple[int, int] | None
    multiple: int
    batch: int | None
    difference: float
    opset: int
    window: tuple[int, int]


def write_onnx(
    model: nn.Module,
    path: Path,
    stated: Mapping[str, Any],
    *,
    scaled: bool,
    tile: tuple[int, int] | None = None,
) -> WrittenOnnx:
    """Write a network to an ONNX file and run it.

    The batch is free, and so are y and x where the network allows it; else they are fixed.

    Args:
        model: maps (batch, slices, y, x), with the scaling it expects, to logits.
        path: the file.
        stated: the description of the network as plain values, which goes into the file's metadata.
        scaled: put the scaling by mean and std into the graph, which then takes slices in 0..1.
        tile: fix the size (y, x) of windows.

    Raises:
        ModelError: the network cannot be exported, or the file computes something else.
        MissingExtraError: onnxscript or onnxruntime is not installed.
    """
    with needs_extra("export", "writing an ONNX file"):
        import onnxscript  # noqa: F401  # what torch.onnx needs, and says in many lines
    scaling = (stated["mean"], stated["std"]) if scaled else ((0.0,), (1.0,))
    network, multiple, problem = WholeNetwork(model, *scaling), input_sizes(model)[1], ""
    generator = torch.Generator().manual_seed(0)
    metadata = {METADATA_KEY: json_text({**stated, "scaled_in_graph": scaled})}
    for (y, x), free in _attempts(model, tile, multiple):
        shapes = [(1, stated["slices"], y, x)]
        if "batch" in free:
            larger = (y + 2 * multiple, x + multiple) if "plane" in free else (y, x)
            shapes.append((3, stated["slices"], *larger))
        try:
            given = [
                torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes
            ]
            with torch.no_grad():
                wanted = [network(windows) for windows in given]
            opset = _convert(copy.deepcopy(network), path, shapes[0], free, metadata)
            difference = _difference(path, given, wanted)
        except (MissingExtraError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  # the exporter raises anything, and another attempt may do
            problem = f"{type(error).__name__}: {reason(error)}"
            continue
        if difference <= TOLERANCE:
            return WrittenOnnx(
                None if "plane" in free else (y, x),
                multiple,
                None if "batch" in free else 1,
                difference,
                opset,
                (y, x),
            )
        problem = f"its outputs differ by {difference:.1e} of the largest"
    raise ModelError(
        f"the network {type(model).__name__} cannot be exported to ONNX for windows of "
        f"{stated['slices']} slices ({problem}); try another size with {option('tile')}, or "
        f"{option('to', 'huggingface')}"
    )


def _attempts(
    model: nn.Module, tile: tuple[int, int] | None, multiple: int
) -> Iterator[tuple[tuple[int, int], tuple[str, ...]]]:
    """Yield a size (y, x) of windows, and which of "batch" and "plane" stay free, most first."""
    fixed = tile or input_sizes(model)[0]
    if fixed is None:
        if not pads_by_size(model):
            side = math.ceil(SMALLEST_TILE / multiple) * multiple
            yield (side, side + multiple), ("batch", "plane")
        side = math.ceil(FIXED_TILE / multiple) * multiple
        fixed = (side, side)
    yield fixed, ("batch",)
    yield fixed, ()


def _convert(
    network: WholeNetwork, path: Path, shape: Sequence[int], free: Sequence[str], metadata: Mapping[str, str]
) -> int:
    """Write an ONNX file with its metadata; return the version of its operators."""
    if "plane" in free:
        settle_padding(network)
    axes = (("batch", {0: "batch"}), ("plane", {2: "y", 3: "x"}))
    names: dict[int, Any] = {
        axis: name for part, named in axes if part in free for axis, name in named.items()
    }
    sizes: dict[int, Any] = dict.fromkeys(names, torch.export.Dim.AUTO)
    # A batch of 1 would be taken for fixed.
    windows = torch.zeros((2 if "batch" in free else 1, *shape[1:]), dtype=torch.float32, device="cpu")
    with torch.no_grad(), quiet_libraries():
        exported = torch.export.export(network, (windows,), dynamic_shapes=(sizes,), strict=False)
        program = torch.onnx.export(
            exported,
            (),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(names,),
        )
        if program is None:
            raise ModelError("torch.onnx returned no program")
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with paths of this machine
        program.model.metadata_props.update(metadata)
        program.save(path, external_data=False)
        return program.model.opset_imports[""]


def _difference(path: Path, given: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return by how much the outputs of a file differ from those of the network, relative to the largest."""
    session = open_session(path)
    found = [session.run(None, {INPUT: windows.numpy()})[0] for windows in given]
    return _error([output.numpy() for output in wanted], found)


SAME_CONVOLUTIONS = ("Conv2dSame", "SameConv2d")  # timm's and our own


def settle_padding(network: nn.Module) -> None:
    """Let convolutions with TensorFlow's padding "SAME" pad as they do for sizes that their stride divides, in place.

    Their padding otherwise depends on the size of the image, which takes the exporter very long to follow.

    Example:
        >>> import timm
        >>> network = timm.create_model("tf_efficientnet_lite0").eval()
        >>> image = torch.rand(1, 3, 64, 96)
        >>> before = network(image)
        >>> settle_padding(network)
        >>> torch.equal(network(image), before)
        True
    """
    for module in network.modules():
        if type(module).__name__ in SAME_CONVOLUTIONS and isinstance(module, nn.Conv2d):
            vars(module)["forward"] = partial(_padded, module)  # its hooks stay


def _padded(layer: nn.Conv2d, image: Tensor) -> Tensor:
    """Run a convolution whose padding is known."""
    pads: list[int] = []
    for axis in (1, 0):  # torch pads the last axis first
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        total = max(reach - layer.stride[axis], 0)
        pads += [total // 2, total - total // 2]
    image = functional.pad(image, pads)
    return functional.conv2d(image, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


def pads_by_size(network: Any) -> bool:
    """Say whether other layers than those of ``settle_padding`` pad by the size of the image.

    Example:
        >>> pads_by_size(nn.Conv2d(3, 1, 1))
        False
    """
    names = {type(module).__name__ for module in network.modules()}
    return any(name.endswith("Same") and name not in SAME_CONVOLUTIONS for name in names)


PREFIX, INNER = f"{SYMMETRIZED}/", f"{SYMMETRIZED}/graph/"
IR = 4
"""Since this version of the format, weights need not be inputs too."""

MIRROR_LIMIT, DIFFERENCE_LIMIT = 1e-5, 1e-4  # of the largest output
SIDES = (256, 224, 384, 512)
TINY = float(np.finfo(np.float32).tiny)
NUMBERED_SPLIT = 18  # the version of ONNX since which Split needs the number of its outputs


def symmetrize_onnx(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, force: bool = False
) -> float:
    """Write an ONNX file that averages the answers of another over each window and its mirror.

    The new file runs both in one batch, so it takes twice the passes. Any program that reads ONNX files can use it.
    It is tested before it takes its name.

    Args:
        path: a file for ``load_onnx``, with a free batch size and its weights inside.
        out: the new file, ``.onnx``; it keeps the metadata of the other.
        force: replace an existing file.

    Returns:
        The largest difference between the answers for windows of noise and for their mirrors, relative to the largest answer.

    Raises:
        ModelError: the file scales opposite slices differently before its graph, keeps weights in other files, returns classes
            instead of scores, uses operators older than version 10, is in onnxruntime's own format, or is symmetrized
            already; or the new file is not symmetric within 1e-5, or not the mean within 1e-4, or twice the rounding error of
            its outputs if that is more, as in half precision.
        ConfigError: the new file has another suffix, or is the other itself.
        OutputError: it exists, or cannot be written.
        MissingExtraError: onnx or onnxruntime is not installed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import evenslice
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Conv2d(3, 2, 3, padding=1).eval()
        >>> _ = evenslice.neutralize(model, strategy="pretrained", mean=0.5, std=0.25)
        >>> _ = evenslice.export(model, f"{folder}/exported", to="onnx")
        >>> error = symmetrize_onnx(f"{folder}/exported/network.onnx", f"{folder}/fair.onnx")
        >>> windows = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
        >>> fair = evenslice.load_onnx(f"{folder}/fair.onnx")
        >>> error < 1e-6, np.allclose(fair(windows), fair(windows[:, ::-1]), atol=1e-6)
        (True, True)
    """
    network = load_onnx(path)
    with needs_extra("export", "writing an ONNX file"):
        import onnx
    if not str(out).endswith(".onnx"):
        raise ConfigError(
            f"{option('out', str(out))}: a network in an ONNX file is written to one; name it .onnx"
        )
    if Path(out).exists() and Path(out).samefile(path):
        raise ConfigError(f"{option('out', str(out))}: is the network itself; name another file")
    try:
        model = onnx.load(network.path, load_external_data=False)
    except Exception as error:  # onnxruntime reads files of its own format, too
        raise ModelError(
            f"{path}: is not in the format of ONNX; name the ONNX file that it was made of"
        ) from error
    said = {item.key: item.value for item in model.metadata_props}
    record = network.stated.get("record") or {}
    if SYMMETRIZED in said or record.get("symmetrized"):
        raise ModelError(f"{path}: is symmetrized already; use it as it is")
    said[SYMMETRIZED] = "the mean of the answers for a window and for its mirror"
    _average(model, network)
    with staged_file(out, force=force) as beside:
        onnx.helper.set_model_props(model, said)
        onnx.save(model, beside)
        found = _check(network, beside)
        if network.stated:  # what was audited is another network
            own = record and record | {"symmetrized": [""], "mirror_error": found}
            said[METADATA_KEY] = json_text(network.stated | {"record": own or None, "audits": []})
            onnx.helper.set_model_props(model, said)
            onnx.save(model, beside)
    return found


def _average(model: Any, network: OnnxNetwork) -> None:
    """Change a graph in place: it gets windows and their mirrors, and the halves of its outputs are averaged."""
    from onnx.compose import add_prefix_graph
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array

    graph = model.graph
    weights = {item.name for item in graph.initializer} | {
        item.values.name for item in graph.sparse_initializer
    }
    inputs = [item for item in graph.input if item.name not in weights]  # older files name weights there, too
    window = type(inputs[0]).FromString(inputs[0].SerializeToString())
    outputs = [type(item).FromString(item.SerializeToString()) for item in graph.output]
    del graph.input[:], graph.value_info[:]  # which state the sizes of smaller batches
    graph.input.extend(inputs)
    add_prefix_graph(graph, INNER, inplace=True)
    model.ir_version = max(model.ir_version, IR)
    numbers = {"one": 1, "minus-one": -1, "lowest": np.iinfo(np.int64).min}
    constants = {f"{PREFIX}{name}": np.array([value], np.int64) for name, value in numbers.items()}
    one, minus, lowest = constants
    mirror, both = f"{PREFIX}mirror", f"{INNER}{window.name}"
    nodes = [
        make_node("Slice", [window.name, minus, lowest, one, minus], [mirror]),
        make_node("Concat", [window.name, mirror], [both], axis=0),
        *graph.node,
    ]
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    parts: dict[str, Any] = {"num_outputs": 2} if opset >= NUMBERED_SPLIT else {}
    for output, kind in zip(outputs, network.types, strict=True):
        if kind not in TYPES:
            raise ModelError(
                f"{network.path}: returns classes: {output.name} of type {kind}; export it with its scores"
            )
        half, halves, *ends = (
            f"{PREFIX}{name}/{output.name}" for name in ("half", "halves", "first", "last")
        )
        constants[half] = np.array(0.5, TYPES[kind])
        nodes += [
            make_node("Mul", [f"{INNER}{output.name}", half], [halves]),  # the sum may overflow in float16
            make_node("Split", [halves], ends, axis=0, **parts),
            make_node("Add", ends, [output.name]),
        ]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(window)
    graph.output.extend(outputs)
    graph.initializer.extend(from_array(value, name) for name, value in constants.items())


def _check(network: OnnxNetwork, beside: Path) -> float:
    """Return the mirror error of the new file, which must give the mean of the answers of the other."""
    windows = _fitting_windows(network)
    mirrored = np.ascontiguousarray(windows[:, ::-1])
    mean = [
        one / 2 + other / 2
        for one, other in zip(_run(network, windows), _run(network, mirrored), strict=True)
    ]
    try:
        fair = load_onnx(beside)
        given, turned = _run(fair, windows), _run(fair, mirrored)
    except (ConfigError, ModelError) as failed:
        raise ModelError(f"{network.path}: cannot be symmetrized: the new file {failed}") from failed
    error, difference = _error(given, turned), _error(given, mean)
    rounding = max(2 * float(np.finfo(item.dtype).eps) for item in given)
    if not (error <= MIRROR_LIMIT and difference <= max(DIFFERENCE_LIMIT, rounding)):
        raise ModelError(
            f"{network.path}: symmetrized, its answers differ by {error:.1e} from those for reversed windows, and by "
            f"{difference:.1e} from the mean; is the answer for one window independent of the others in its batch?"
        )
    return error


def _fitting_windows(network: OnnxNetwork) -> NDArray[np.float32]:
    """Return two windows of noise of a size that a network takes."""
    *shapes, last = ((2, network.slices or 3, *(own or side for own in network.sides)) for side in SIDES)
    for shape in shapes:
        windows = np.random.default_rng(0).random(shape, np.float32)
        with suppress(ModelError):
            network(windows)
            return windows
    return np.random.default_rng(0).random(last, np.float32)


def _run(network: OnnxNetwork, windows: NDArray[np.float32]) -> list[NDArray[Any]]:
    found = network(windows)
    return list(found.values()) if isinstance(found, dict) else [found]


def _error(given: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """Return the largest difference of any output, relative to its largest value."""
    pairs = ((one.astype(float), two.astype(float)) for one, two in zip(given, other, strict=True))
    return max(float(np.abs(one - two).max() / max(np.abs(one).max(), TINY)) for one, two in pairs)
