"""What a symmetric network costs: passes and training steps at each cut, against the plain network in the same run.

    python benchmarks/symmetrize_cost.py --rounds 5

Prints the time of a pass and of a training step as ratios to the network as built, the median over rounds in which all
take turns, with the least and the largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from evenslice import load_network

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
WAYS: dict[str, dict[str, Any]] = {
    "as built": {},
    "uniform": {"strategy": "uniform"},
    "mirror, tied": {"strategy": "mirror", "tie": "mirror"},
    "twin": {"strategy": "twin"},
    "encoder.model.blocks.0": {"symmetrize": "encoder.model.blocks.0"},
    "encoder": {"symmetrize": "encoder"},
    "decoder": {"symmetrize": "decoder"},
    "output": {"symmetrize": "output"},
}


def main() -> None:
    """Time each way and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="side of the windows of a pass, in pixels")
    parser.add_argument("--crop", type=int, default=96, help="side of the crops of a step, in pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{SPEC}, imagenet, 3 slices, float32, {options.threads} threads")
    print(
        f"passes: 2 windows of {options.size} x {options.size}; steps: 8 crops of {options.crop} x {options.crop}"
    )
    passes, steps = {}, {}
    for name, way in WAYS.items():
        try:
            network = load_network(SPEC, "imagenet", **way).model
        except Exception as error:  # noqa: BLE001  # a cut that skip connections go round is part of the answer
            print(f"{name}: {error}")
            continue
        passes[name] = _timed_pass(network, torch.rand(2, 3, options.size, options.size))
        steps[name] = _timed_step(network, torch.rand(8, 3, options.crop, options.crop))
    for title, ways in (("pass", passes), ("training step", steps)):
        _print_ratios(title, ways, options.rounds)


def _timed_pass(network: torch.nn.Module, windows: torch.Tensor) -> Callable[[], float]:
    def run() -> float:
        network.eval()
        with torch.inference_mode():
            started = time.process_time()
            network(windows)
        return time.process_time() - started

    return run


def _timed_step(network: torch.nn.Module, crops: torch.Tensor) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def run() -> float:
        network.train()
        started = time.process_time()
        network(crops).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - started

    return run


def _print_ratios(title: str, ways: dict[str, Callable[[], float]], rounds: int) -> None:
    """Run all ways in turn, and print the processor time of each as a ratio to that of the first in the same round."""
    for run in ways.values():
        run()  # the first is slow
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        times = {name: run() for name, run in ways.items()}
        for name, seconds in times.items():
            ratios[name].append(seconds / times["as built"])
    for name, found in ratios.items():
        print(f"{title}, {name}: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
