"""Time of a training run compared with the bare passes of its network, and of monitoring its slice bias.

All results are ratios of processor times on one core, from alternating measurements within one run, with the defaults
of `evenslice train` (U-Net on EfficientNet-Lite0, batches of 8 crops of 192 x 192, 8 monitored windows every 200
steps) on a volume of noise:

    python benchmarks/monitor_cost.py [--steps 10] [--rounds 3]

- bare: forward pass, loss, backward pass and AdamW on one batch in memory, in the same precision and memory
  layout.
- training: a step of `train`, including crops, augmentation, schedule and log.
- monitor: one measurement, divided by 200 steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from evenslice.inference.devices import choose_dtype
from evenslice.neutralizing.network_files import load_network
from evenslice.training.config import TrainConfig
from evenslice.training.lightning_parts import measure_bias
from evenslice.training.tasks import TaskLoss
from evenslice.training.trainer import MONITORED, train


def make_config(folder: Path, steps: int) -> TrainConfig:
    """Write a volume of noise with two classes, and return the configuration of a run that trains on it."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (32, 512, 512), dtype=np.uint8)
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", (image > 128).astype(np.uint8))
    pair = {"image": str(folder / "image.npy"), "labels": str(folder / "labels.npy")}
    return TrainConfig.model_validate(
        {
            "data": {"train": [pair], "validation_fraction": 0},
            "training": {"steps": steps, "validate_every": steps, "monitor_every": None},
        }
    )


class Bare:
    """The bare passes of the network."""

    def __init__(self, config: TrainConfig) -> None:
        model, training = config.model, config.training
        self.network, _, _ = load_network(
            model.spec, model.weights, slices=model.slices, strategy=model.strategy
        )
        convert_conv2d_weight_memory_format(self.network.train(), torch.channels_last)
        shape = training.batch, model.slices, *training.crop
        self.windows = torch.rand(shape).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(2, (training.batch, *training.crop))
        self.loss = TaskLoss(training.loss, 2)
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        self.bfloat16 = choose_dtype(training.dtype, torch.device("cpu"), training=True) == torch.bfloat16

    def seconds(self, steps: int) -> float:
        """Time a step."""
        start = time.process_time()
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                loss = self.loss(self.network(self.windows).float(), self.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return (time.process_time() - start) / steps


def training_seconds(config: TrainConfig, out: Path) -> float:
    """Return the time of a training step, from the difference between runs of different lengths."""
    spent = []
    for factor in (1, 3):
        steps = factor * config.training.steps
        training = config.training.model_copy(update={"steps": steps, "validate_every": steps})
        start = time.process_time()
        train(config.model_copy(update={"training": training}), out / str(factor))
        spent.append(time.process_time() - start)
    return (spent[1] - spent[0]) / (2 * config.training.steps)


def monitor_seconds(bare: Bare) -> float:
    """Time one measurement."""
    start = time.process_time()
    measure_bias(bare.network, bare.windows[:MONITORED])
    return time.process_time() - start


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = 200
    ratios: dict[str, list[float]] = {"training step / bare step": [], "monitor / training": []}
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder), options.steps)
        bare = Bare(config)
        bare.seconds(3)  # the first passes of a process are slower
        for number in range(options.rounds):
            alone = bare.seconds(options.steps)
            step = training_seconds(config, Path(folder) / str(number))
            ratios["training step / bare step"].append(step / alone)
            ratios["monitor / training"].append(monitor_seconds(bare) / (every * step))
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.3f} (from {min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
