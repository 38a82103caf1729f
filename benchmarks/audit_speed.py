"""Speed of an audit compared with the bare passes of the network, and with Captum used as in its documentation.

All results are ratios of alternating measurements within one run, on the network of the demonstration:

    python benchmarks/audit_speed.py [--volume PATH] [--windows 40] [--rounds 5]

- bare: forward pass and gradient of each window and of its mirror, weights frozen, channels-last, in batches of 4; the
  windows are in memory.
- captum: `captum.attr.Saliency` on the network as it was built, with a wrapper that sums the logits of the predicted
  class, as Captum's tutorial on segmentation does; the same windows and mirrors.
- audit: `evenslice.audit` of as many windows, everything included: opening, scaling, reading, all four questions.

Times are those of the clock; on one thread (`OMP_NUM_THREADS=1`) of the processor, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from captum.attr import Saliency
from torch.nn.utils import convert_conv2d_weight_memory_format

import evenslice
from evenslice.cli.demonstration import SPEC
from evenslice.neutralizing.network_files import load_network
from evenslice.volumes import fit_scaling, mni152
from evenslice.volumes.windows import WindowGrid, fit_tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

BATCH = 4


def read_windows(
    volume: evenslice.Volume, count: int, tile: tuple[int, int], mean: float, std: float
) -> Tensor:
    """Read windows spread over a volume, scaled for the network, (count, 3, y, x)."""
    grid = WindowGrid(volume, fit_scaling(volume), 3, tile)
    places = [place for place, _ in zip(grid.visits(), range(count), strict=False)]
    return (torch.from_numpy(np.stack([grid.read(*place) for place in places])) - mean) / std


def predicted(output: Tensor) -> Tensor:
    """Sum each window's logits of the class predicted at each pixel: (batch,)."""
    return output.gather(1, output.argmax(1, keepdim=True)).sum(dim=(1, 2, 3))


def bare(network: Callable[[Tensor], Tensor], windows: Tensor) -> None:
    """Compute the forward pass and the gradient of every window and mirror."""
    for batch in torch.split(windows, BATCH):
        for given in (batch, batch.flip(1)):
            pixels = given.contiguous(memory_format=torch.channels_last).requires_grad_()
            torch.autograd.grad(predicted(network(pixels)).sum(), pixels)


def captum(network: nn.Module, windows: Tensor) -> None:
    """Attribute every window and mirror with Captum."""
    saliency = Saliency(lambda pixels: predicted(network(pixels)))
    for batch in torch.split(windows, BATCH):
        for given in (batch, batch.flip(1)):
            saliency.attribute(given.requires_grad_())


def seconds(run: Callable[[], object]) -> float:
    """Time one call: on one thread the processor's time, which other programs disturb less, else the clock's."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--volume", help="another volume than the MNI152 template")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    count = options.windows

    model, record, _ = load_network(SPEC, "imagenet", slices=3, strategy="pretrained")
    volume = evenslice.open_volume(options.volume) if options.volume else mni152()
    tile = fit_tile((volume.shape[1], volume.shape[2]))
    windows = read_windows(volume, count, tile, record.mean, record.std)
    as_built = copy.deepcopy(model).eval()
    frozen = copy.deepcopy(as_built).requires_grad_(False)
    convert_conv2d_weight_memory_format(frozen, torch.channels_last)

    def audit() -> None:
        evenslice.audit(
            model,
            volume,
            sampling=evenslice.Sampling(tile=tile, min_windows=count, max_windows=count),
            compute=evenslice.Compute(progress=False),
        )

    bare(frozen, windows)  # the first passes of a process are slower
    ratios: dict[str, list[float]] = {"audit / bare": [], "audit / captum": []}
    for _ in range(options.rounds):
        spent = seconds(audit)
        ratios["audit / bare"].append(spent / seconds(lambda: bare(frozen, windows)))
        ratios["audit / captum"].append(spent / seconds(lambda: captum(as_built, windows)))
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.2f} (from {min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
