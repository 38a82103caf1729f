"""Speed of an audit compared with the bare passes of the network, and with Captum used as in its documentation.

All results are ratios of alternating measurements within one run, on the network of the demonstration:

    python benchmarks/audit_speed.py [--volume PATH] [--windows 96] [--rounds 5]

The default volume is the MNI152 template with noise of 1 % of its range, like that of a scan: the template's background
is exactly constant, for which bfloat16 is not exact enough, so that an audit falls back to float32 (see --no-noise).

- bare: forward pass and gradient of each window and of its mirror, weights frozen, channels-last, float32, in batches
  of the fastest size; the windows are in memory.
- captum: `captum.attr.Saliency` on the network as it was built, with a wrapper that sums the logits of the predicted
  class, as Captum's tutorial on segmentation does; the same windows and mirrors.
- audit: `evenslice.audit`, everything included: opening, scaling, reading, attribution, statistics, stopping.
- one without answer, use and second opinion: the same, but for three windows; neither of the two stops early.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from captum.attr import Saliency
from torch.nn.utils import convert_conv2d_weight_memory_format

import evenslice
from evenslice.auditing import auditor
from evenslice.cli.demonstration import SPEC
from evenslice.neutralizing.network_files import load_network
from evenslice.volumes import mni152
from evenslice.volumes.scaling import fit_scaling
from evenslice.volumes.windows import WindowGrid, fit_tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor, nn

BATCH = 4  # for Captum
BARE_BATCHES = (1, 2, 4, 8)

EVERYTHING = 10**9  # more windows than any audit has
ALL = 1e-9  # so precise that no audit stops early


def open_template(noise: float) -> evenslice.Volume:
    """Return the MNI152 template with Gaussian noise; its standard deviation is a fraction of the range."""
    voxels = mni152()[:].astype(np.float32)
    voxels += np.random.default_rng(0).normal(0, noise * voxels.max(), voxels.shape)
    return evenslice.open_volume(voxels)


def read_windows(volume: evenslice.Volume, count: int, mean: float, std: float) -> Tensor:
    """Read the windows that an audit visits first, scaled for the network: (count, 3, y, x)."""
    grid = WindowGrid(volume, fit_scaling(volume), 3, fit_tile((volume.shape[1], volume.shape[2])))
    windows = np.stack([grid.read(*place) for place, _ in zip(grid.visits(), range(count), strict=False)])
    return (torch.from_numpy(windows) - mean) / std


def predicted(output: Tensor) -> Tensor:
    """Sum each window's logits of the class predicted at each pixel: (batch,)."""
    return output.gather(1, output.argmax(1, keepdim=True)).sum(dim=(1, 2, 3))


def bare(network: nn.Module, windows: Tensor, size: int) -> None:
    """Compute the forward pass and the gradient of every window and mirror."""
    for batch in torch.split(windows, size):
        for given in (batch, batch.flip(1)):
            pixels = given.contiguous(memory_format=torch.channels_last).requires_grad_()
            torch.autograd.grad(predicted(network(pixels)).sum(), pixels)


def captum(network: nn.Module, windows: Tensor) -> NDArray[np.float64]:
    """Attribute every window and mirror with Captum and return the mean shares."""
    saliency = Saliency(lambda pixels: predicted(network(pixels)))
    rows = []
    for batch in torch.split(windows, BATCH):
        for given in (batch, batch.flip(1)):
            total = saliency.attribute(given.requires_grad_()).sum(dim=(2, 3))
            rows.append((total / total.sum(1, keepdim=True)).detach().numpy())
    mean: NDArray[np.float64] = np.concatenate(rows).mean(0)
    return mean


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--volume", help="another volume")
    parser.add_argument("--no-noise", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    model, record, _ = load_network(SPEC, "imagenet", slices=3, strategy="pretrained")
    noise = 0.0 if options.no_noise else 0.01
    volume = evenslice.open_volume(options.volume) if options.volume else open_template(noise)
    windows = read_windows(volume, options.windows, record.mean, record.std)
    as_built = copy.deepcopy(model).eval()
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    convert_conv2d_weight_memory_format(frozen, torch.channels_last)

    def audit(dtype: str, precision: float = 0.01) -> evenslice.Audit:
        return evenslice.audit(model, volume, dtype=dtype, max_windows=options.windows, precision=precision)

    def without_subset() -> evenslice.Audit:
        """Audit as many windows, of which the first three alone get a second opinion."""
        with mock.patch.object(auditor, "SUBSET_GROUPS", (EVERYTHING, EVERYTHING)):
            return audit("auto", ALL)

    exact, default = audit("float32"), audit("auto")
    # The audits stop early; the other methods get exactly the windows that the audits used.
    for_bare, for_captum = (windows[: len(found.measurements.volume)] for found in (exact, default))
    shares = captum(as_built, for_captum)
    bare(frozen, for_bare, BATCH)  # the first passes of a process are slower
    size = min(BARE_BATCHES, key=lambda size: seconds(lambda: bare(frozen, for_bare, size)))
    ratios: dict[str, list[float]] = {
        "float32 audit / bare": [],
        "captum / default audit": [],
        "default audit / one without answer, use and second opinion": [],
    }
    for _ in range(options.rounds):
        ratios["float32 audit / bare"].append(
            seconds(lambda: audit("float32")) / seconds(lambda: bare(frozen, for_bare, size))
        )
        ratios["captum / default audit"].append(
            seconds(lambda: captum(as_built, for_captum)) / seconds(lambda: audit("auto"))
        )
        ratios["default audit / one without answer, use and second opinion"].append(
            seconds(lambda: audit("auto", ALL)) / seconds(without_subset)
        )
    print(f"bare: batches of {size}")
    print(f"windows: {len(for_bare)} in float32, {len(for_captum)} by default ({default.run.dtype})")
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.2f} (from {min(values):.2f} to {max(values):.2f})")
    difference = np.abs(shares - [share.estimate for share in default.shares]).max()
    print(
        f"largest difference of a mean share, default precision ({default.run.dtype}) to captum: {difference:.5f}"
    )


if __name__ == "__main__":
    main()
