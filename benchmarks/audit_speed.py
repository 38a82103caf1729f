"""Speed of an audit compared with the bare passes of the network, and with Captum used as in its documentation.

All results are ratios of alternating measurements within one run, on the network of the demonstration:

    python benchmarks/audit_speed.py [--volume PATH] [--windows 96] [--rounds 5] [--second-opinion] [--threads 1 2]
    python benchmarks/audit_speed.py --larger-tile 256 256 --volume PATH [--rounds 5]

The default volume is the MNI152 template with noise of 1 % of its range, like that of a scan: the template's background
is exactly constant, for which bfloat16 is not exact enough, so that an audit falls back to float32 (see --no-noise).

- bare: forward pass and gradient of each window and of its mirror, weights frozen, channels-last, float32, in batches
  of the fastest size; the windows are in memory.
- captum: `captum.attr.Saliency` on the network as it was built, with a wrapper that sums the logits of the predicted
  class, as Captum's tutorial on segmentation does; the same windows and mirrors.
- audit: `evenslice.audit`, everything included: opening, scaling, reading, attribution, statistics, stopping.
- captum / bare, default precision: what an audit could gain at most, if nothing but the passes of its windows took time.
- one without second opinion: the same, but no window is measured by the second method, for each class or in float32;
  both stop as early as they may. `--second-opinion` measures nothing else.
- with `--larger-tile`, only these are compared with a default audit: an audit with that tile, and Captum on as many of
  its windows as that audit uses, on one thread. The half-widths of all three pair biases are printed.

`--compiled` compares only the bare passes with those of the network under `torch.compile`, which needs a C++ compiler.

Times are those of the clock; on one thread (`OMP_NUM_THREADS=1`) of the processor, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from captum.attr import Saliency
from torch.nn.utils import convert_conv2d_weight_memory_format

import evenslice
from evenslice.auditing import auditor, stopping
from evenslice.cli.demonstration import SPEC
from evenslice.inference.ready_network import ReadyNetwork
from evenslice.neutralizing.network_files import load_network
from evenslice.results import pair_bias
from evenslice.results.intervals import mean_interval
from evenslice.volumes import mni152
from evenslice.volumes.scaling import fit_scaling
from evenslice.volumes.windows import WindowGrid, fit_tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor, nn

BATCH = 4  # for Captum
BARE_BATCHES = (1, 2, 4, 8)


def open_template(noise: float) -> evenslice.Volume:
    """Return the MNI152 template with Gaussian noise; its standard deviation is a fraction of the range."""
    voxels = mni152()[:].astype(np.float32)
    voxels += np.random.default_rng(0).normal(0, noise * voxels.max(), voxels.shape)
    return evenslice.open_volume(voxels)


def read_windows(
    volume: evenslice.Volume, count: int, tile: tuple[int, int], mean: float, std: float
) -> tuple[Tensor, list[int]]:
    """Read the windows that an audit visits first, scaled for the network, (count, 3, y, x), and their z."""
    grid = WindowGrid(volume, fit_scaling(volume), 3, tile)
    places = [place for place, _ in zip(grid.visits(), range(count), strict=False)]
    windows = torch.from_numpy(np.stack([grid.read(*place) for place in places]))
    return (windows - mean) / std, [z for z, _, _ in places]


def predicted(output: Tensor) -> Tensor:
    """Sum each window's logits of the class predicted at each pixel: (batch,)."""
    return output.gather(1, output.argmax(1, keepdim=True)).sum(dim=(1, 2, 3))


def bare(network: Callable[[Tensor], Tensor], windows: Tensor, size: int) -> None:
    """Compute the forward pass and the gradient of every window and mirror."""
    for batch in torch.split(windows, size):
        for given in (batch, batch.flip(1)):
            pixels = given.contiguous(memory_format=torch.channels_last).requires_grad_()
            torch.autograd.grad(predicted(network(pixels)).sum(), pixels)


def captum(network: nn.Module, windows: Tensor) -> NDArray[np.float64]:
    """Attribute every window and mirror with Captum and return the mean shares of both, (windows, 3)."""
    saliency = Saliency(lambda pixels: predicted(network(pixels)))
    rows = []
    for batch in torch.split(windows, BATCH):
        shares = []
        for given in (batch, batch.flip(1)):
            total = saliency.attribute(given.requires_grad_()).sum(dim=(2, 3))
            shares.append((total / total.sum(1, keepdim=True)).detach().double().numpy())
        rows.append((shares[0] + shares[1]) / 2)
    return np.concatenate(rows)


def seconds(run: Callable[[], object]) -> float:
    """Time one call: on one thread the processor's time, which other programs disturb less, else the clock's."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def second_opinion(
    audit: Callable[[], evenslice.Audit], threads: list[int], rounds: int
) -> dict[str, list[float]]:
    """Return the ratios of the times of audits with and without second opinion, for each number of threads."""

    def without() -> evenslice.Audit:
        with (
            mock.patch.object(auditor, "with_subset", lambda stream, *_: replace(stream, every=10**9)),
            mock.patch.object(stopping, "MOST_FOR_SLICES", 0),
        ):
            return audit()

    ratios = {}
    usual = torch.get_num_threads()
    for number in threads:
        torch.set_num_threads(number)
        windows = [len(found.measurements.volume) for found in (audit(), without())]
        name = f"default audit / one without second opinion ({windows[0]} and {windows[1]} windows), threads: {number}"
        ratios[name] = [seconds(audit) / seconds(without) for _ in range(rounds)]
    torch.set_num_threads(usual)
    return ratios


def larger_tile(
    audit: Callable[[tuple[int, int] | None], evenslice.Audit],
    tile: tuple[int, int],
    network: nn.Module,
    windows: Tensor,
    z: list[int],
    rounds: int,
) -> dict[str, list[float]]:
    """Return the ratios of the processor times on one thread; print how well each pair bias is known."""
    torch.set_num_threads(1)
    usual, large = audit(None), audit(tile)
    windows, z = windows[: len(large.measurements.volume)], z[: len(large.measurements.volume)]
    explained = mean_interval(pair_bias(captum(network, windows))[:, 0], z, bounds=(-1, 1))
    for name, count, size, pair in (
        ("default audit", len(usual.measurements.volume), usual.run.tile, usual.pairs[0]),
        ("audit with --larger-tile", len(windows), tile, large.pairs[0]),
        ("captum", len(windows), tile, explained),
    ):
        half = (pair.high - pair.low) / 2
        print(f"{name}: {count} windows of {size[0]} x {size[1]}, pair bias {pair.estimate:.4f} ± {half:.4f}")
    for name, found in (("default", usual), ("larger tile", large)):
        answer = found.answer
        print(
            f"{name}: {found.verdict}, answer change {answer.estimate:.3f} [{answer.low:.3f}, {answer.high:.3f}]"
        )
    runs: dict[str, Callable[[], object]] = {
        "audit with --larger-tile": lambda: audit(tile),
        "captum": lambda: captum(network, windows),
    }
    ratios: dict[str, list[float]] = {f"{name} / default audit": [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            ratio = seconds(run) / seconds(lambda: audit(None))
            ratios[f"{name} / default audit"].append(ratio)
    return ratios


def compiled(network: nn.Module, windows: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the ratios of the times of passes with and without ``torch.compile``; print how long compiling took."""
    faster = torch.compile(network)
    started = time.perf_counter()
    bare(faster, windows, BATCH)
    first = time.perf_counter() - started
    print(f"first compiled passes of {len(windows)} windows: {first:.0f} s")
    bare(network, windows, BATCH)
    ratios = [
        seconds(lambda: bare(faster, windows, BATCH)) / seconds(lambda: bare(network, windows, BATCH))
        for _ in range(rounds)
    ]
    return {"compiled / bare, default precision": ratios}


def ready(model: nn.Module, tile: tuple[int, int]) -> ReadyNetwork:
    """Return the network as an audit runs it, in the default precision."""
    network = ReadyNetwork(model, slices=3)
    network.prepare(3, tile)
    return network


def show(ratios: dict[str, list[float]]) -> None:
    """Print the median and the range of each ratio."""
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.2f} (from {min(values):.2f} to {max(values):.2f})")


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--volume", help="another volume")
    parser.add_argument("--no-noise", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--second-opinion", action="store_true", help="measure only what it takes")
    parser.add_argument("--compiled", action="store_true", help="compare only passes with torch.compile")
    parser.add_argument("--larger-tile", type=int, nargs=2, help="compare only audits with it and by default")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="that it is measured with")
    options = parser.parse_args()

    model, record, _ = load_network(SPEC, "imagenet", slices=3, strategy="pretrained")
    noise = 0.0 if options.no_noise else 0.01
    volume = evenslice.open_volume(options.volume) if options.volume else open_template(noise)

    def audit(dtype: str, tile: tuple[int, int] | None = None) -> evenslice.Audit:
        return evenslice.audit(model, volume, dtype=dtype, tile=tile, max_windows=options.windows)

    if options.second_opinion:
        show(second_opinion(lambda: audit("auto"), options.threads, options.rounds))
        return
    y, x = options.larger_tile or fit_tile((volume.shape[1], volume.shape[2]))
    windows, z = read_windows(volume, options.windows, (y, x), record.mean, record.std)
    as_built = copy.deepcopy(model).eval()
    if options.larger_tile:
        show(larger_tile(lambda tile: audit("auto", tile), (y, x), as_built, windows, z, options.rounds))
        return
    fast = ready(model, (y, x))
    if options.compiled:
        torch.set_num_threads(1)
        show(compiled(fast, windows[:8], options.rounds))
        return
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    convert_conv2d_weight_memory_format(frozen, torch.channels_last)
    exact, default = audit("float32"), audit("auto")
    # The audits stop early; the other methods get exactly the windows that the audits used.
    for_bare, for_captum = (windows[: len(found.measurements.volume)] for found in (exact, default))
    shares = captum(as_built, for_captum).mean(0)
    bare(frozen, for_bare, BATCH)  # the first passes of a process are slower
    size = min(BARE_BATCHES, key=lambda size: seconds(lambda: bare(frozen, for_bare, size)))
    bare(fast, for_captum, BATCH)
    ratios: dict[str, list[float]] = {
        "float32 audit / bare": [],
        "captum / default audit": [],
        "captum / bare, default precision": [],
    }
    for _ in range(options.rounds):
        ratios["float32 audit / bare"].append(
            seconds(lambda: audit("float32")) / seconds(lambda: bare(frozen, for_bare, size))
        )
        explaining = seconds(lambda: captum(as_built, for_captum))
        ratios["captum / default audit"].append(explaining / seconds(lambda: audit("auto")))
        ratios["captum / bare, default precision"].append(
            explaining / seconds(lambda: bare(fast, for_captum, BATCH))
        )
    print(f"bare: batches of {size}")
    print(f"windows: {len(for_bare)} in float32, {len(for_captum)} by default ({default.run.dtype})")
    show(ratios)
    show(second_opinion(lambda: audit("auto"), options.threads, options.rounds))
    difference = np.abs(shares - [share.estimate for share in default.shares]).max()
    print(
        f"largest difference of a mean share, default precision ({default.run.dtype}) to captum: {difference:.5f}"
    )


if __name__ == "__main__":
    main()
