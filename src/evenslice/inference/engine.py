"""Networks converted for OpenVINO, which runs convolutions on a CPU faster than PyTorch, in the same float32.

A conversion takes seconds, so it is for work of many passes (``Predictor.with_engine``). What is converted is the frozen copy
of a network with its scaling and the reduction of its output, by the front end itself: ``openvino.convert_model`` would report
its use to the vendor.
"""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from evenslice._core import ConfigError, needs_extra, option
from evenslice.inference.ready_networks import (
    BatchSizes,
    ReadyModel,
    ReadyNetwork,
    WholeNetwork,
    quiet_libraries,
)

if TYPE_CHECKING:
    from torch import Tensor

    from evenslice.inference.compute import Compute

OPENVINO = "openvino"
WORTH = 2**25
"""Pixels of all passes from which a conversion gains more time than it takes, on two cores."""

_ALONE = threading.Lock()
"""The threads of a Dask worker share one network."""

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""Those of passes on a CPU; the engine's own choice is bfloat16 on some processors."""


def wants_engine(network: ReadyModel, compute: Compute, pixels: int) -> bool:
    """Return whether a network is to be converted; that hangs on no clock, so that two runs agree.

    Args:
        network: the network or the function.
        compute: where and how it runs.
        pixels: of all passes.

    Raises:
        ConfigError: the engine is asked for a function, a GPU or float16.
        MissingExtraError: it is asked for and not installed.
    """
    possible = (
        isinstance(network, ReadyNetwork) and network.device.type == "cpu" and network.dtype in PRECISIONS
    )
    if compute.engine == OPENVINO:
        if not possible:
            raise ConfigError(
                f"{option('engine', OPENVINO)}: runs networks on a CPU in float32 or bfloat16; leave it out, or choose "
                f"{option('device', 'cpu')}"
            )
        with needs_extra(OPENVINO, "this engine"):
            import openvino  # noqa: F401
        return True
    elsewhere = compute.scheduler is not None and compute.device != "cpu"  # the workers may have GPUs
    worth = pixels >= WORTH and is_convolutional(network)
    return compute.engine == "auto" and possible and worth and not elsewhere


def is_convolutional(network: nn.Module) -> bool:
    """Return whether convolutions have most of the weights: OpenVINO gains nothing with transformers.

    Example:
        >>> is_convolutional(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2)))
        True
    """
    weights = {
        kind: sum(module.weight.numel() for module in network.modules() if isinstance(module, kind))
        for kind in (nn.Conv2d, nn.Linear)
    }
    return weights[nn.Conv2d] > weights[nn.Linear]


class EngineNetwork(ReadyModel):
    """A network that OpenVINO runs on the CPU, without gradients, with as many threads as PyTorch has.

    Sent to another process, it is compiled there.

    Args:
        network: the network, ready to run.
        graph: that of OpenVINO and its weights, as files hold them.
        dtype: its precision, float32 or bfloat16.
    """

    engine = OPENVINO

    def __init__(self, network: ReadyModel, graph: tuple[bytes, bytes], dtype: torch.dtype) -> None:
        super().__init__()
        self.name, self.scaling, self.batches = network.name, network.scaling, BatchSizes()
        self.tile, self.multiple = network.tile, network.multiple
        self.graph, self.dtype = graph, dtype

    @classmethod
    def of(cls, network: ReadyNetwork, windows: Tensor) -> EngineNetwork:
        """Convert a network for any number of windows (batch, slices, y, x) of the size of these; others may fit, too.

        Raises:
            Exception: of any kind, if it cannot be converted.
        """
        return cls(network, _convert(network, windows), network.dtype)

    def in_precision(self, dtype: torch.dtype) -> EngineNetwork:
        """Return the same network in another precision."""
        return self if dtype == self.dtype else EngineNetwork(self, self.graph, dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_compiled"}

    def forward(self, windows: Tensor) -> Tensor:
        """Return the scores of windows (batch, slices, y, x) in 0..1."""
        given = np.ascontiguousarray(windows.numpy(), dtype=np.float32)
        with _ALONE:
            (found,) = self._compiled(given, share_inputs=True).values()
        return torch.from_numpy(found)

    @cached_property
    def _compiled(self) -> Any:
        import openvino

        graph, weights = self.graph
        core = openvino.Core()
        model = core.read_model(graph, openvino.Tensor(np.frombuffer(weights, np.uint8)))
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # to cores that other processes are pinned to as well
        }
        return core.compile_model(model, "CPU", options)


@torch.no_grad()
def _convert(network: ReadyNetwork, windows: Tensor) -> tuple[bytes, bytes]:
    """Return the graph of a network and its weights."""
    with needs_extra(OPENVINO, "the engine that segments faster"):
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    whole = WholeNetwork(network.module, *(tuple(network.scaling[name]) for name in ("mean", "std")))
    with quiet_libraries():
        traced = TorchScriptPythonDecoder(whole, example_input=windows, trace_kwargs={"check_trace": False})
        front_end = FrontEndManager().load_by_framework("pytorch")
        model = front_end.convert(front_end.load(traced))
    model.reshape(openvino.PartialShape([-1, windows.shape[1], -1, -1]))
    with TemporaryDirectory() as folder:
        graph, weights = Path(folder, "network.xml"), Path(folder, "network.bin")
        openvino.serialize(model, graph, weights)
        return graph.read_bytes(), weights.read_bytes()
