"""Ways to a fair network that were only ideas, tried on Lucchi++ in short trainings.

    OMP_NUM_THREADS=1 python studies/candidates.py --data studies/data/lucchi_pp --workers 2

Each is trained with a few seeds for 400 steps of 8 crops of 96 x 96 (the same crops in each), and tested on every eighth
slice of the other volume. The rows are in studies/candidates.csv, written one by one, so that an interrupted run goes on
where it was. Trainings that are not of the package's own design are made here, in a loop of one's own, as docs/training.md
describes it.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils.data import DataLoader

import evenslice

ROWS = Path(__file__).parent / "candidates.csv"
BASELINE = "pretrained"
SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
STEPS, BATCH, CROP, RATE, WARMUP, FOREGROUND = 400, 8, (96, 96), 1e-3, 0.05, 0.5
EVERY = 8  # of the test slices, one in so many is tested


@dataclass(frozen=True)
class Row:
    """What one training gave.

    Attributes:
        arm: name of the arm.
        seed: random seed of network and crops.
        dice: Dice of the foreground over all tested slices.
        changed: the pixels whose class changes if the window is reversed, over those that are foreground in either answer.
        before: Dice with the middle slice in place of the slice before.
        after: the same for the slice after.
        both: the same for both neighbours.
        seconds: of training, with that of a teacher.
    """

    arm: str
    seed: int
    dice: float
    changed: float
    before: float
    after: float
    both: float
    seconds: float


def read_rows(path: Path = ROWS) -> list[Row]:
    """Return the rows found so far."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return [
            Row(
                arm=line.pop("arm"),
                seed=int(line.pop("seed")),
                **{name: float(value) for name, value in line.items()},
            )
            for line in csv.DictReader(lines)
        ]


def append_row(row: Row, path: Path = ROWS) -> None:
    """Write one more row."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, [field.name for field in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(
            {
                name: f"{value:.4f}" if isinstance(value, float) else value
                for name, value in asdict(row).items()
            }
        )


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        strategy: how the colour kernels become slice kernels; numbers are the weights of a profile.
        tie: which slices are tied.
        held: the fraction of the steps in which the kernels of all slices but the middle one stay as they are.
        consistency: weight of a loss that pulls the answers to a window and to its mirror together.
        distilled: weight of a loss that pulls the answers towards those of ``BASELINE``, symmetrized at the output.
    """

    strategy: str | tuple[float, ...]
    tie: str | None = None
    held: float = 0.0
    consistency: float = 0.0
    distilled: float = 0.0


ARMS = {
    BASELINE: Arm("pretrained"),
    "pretrained, consistency loss": Arm("pretrained", consistency=1.0),
    "mirror, tied": Arm("mirror", "mirror"),
    "mirror, tied, distilled": Arm("mirror", "mirror", distilled=1.0),
    "center, tied": Arm("center", "mirror"),
    "center, tied, outer kernels held for half the steps": Arm("center", "mirror", held=0.5),
    "outer kernels small: .05, .9, .05, tied": Arm((0.05, 0.9, 0.05), "mirror"),
}


def consistency(scores: Tensor, mirrored: Tensor) -> Tensor:
    """Return by how much the answers to windows and to their mirrors differ: the symmetric Kullback-Leibler divergence.

    Example:
        >>> scores = torch.tensor([[[[4.0]], [[0.0]]]])
        >>> consistency(scores, scores).item(), round(consistency(scores, -scores).item(), 2)
        (0.0, 3.86)
    """
    one, other = scores.log_softmax(1), mirrored.log_softmax(1)
    return ((one.exp() - other.exp()) * (one - other)).sum(1).mean() / 2


def distillation(scores: Tensor, taught: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of a network's answers from its teacher's, the mean over pixels.

    Example:
        >>> scores = torch.tensor([[[[4.0]], [[0.0]]]])
        >>> distillation(scores, scores).item(), round(distillation(scores, -scores).item(), 2)
        (0.0, 3.86)
    """
    wanted = taught.log_softmax(1)
    return (wanted.exp() * (wanted - scores.log_softmax(1))).sum(1).mean()


def hold_outer_kernels(network: nn.Module, steps: int) -> None:
    """Let the kernels of all slices but the middle one learn only after some steps.

    Args:
        network: a neutralized network whose first layer is tied.
        steps: how many passes backward they stay as they are.
    """
    stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    kernels = next(parameter for parameter in stem.parameters() if parameter.ndim == 4)
    passes = 0

    def hold(gradient: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if passes > steps:
            return gradient
        held = torch.zeros_like(gradient)
        middle = held.shape[1] // 2
        held[:, middle] = gradient[:, middle]
        return held

    kernels.register_hook(hold)  # type: ignore[no-untyped-call]


def learning_rate_factor(step: int) -> float:
    """Return the factor of the peak learning rate in a step: a linear rise, then a cosine decay, as in `train`."""
    rising = round(WARMUP * STEPS)
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(STEPS - rising, 1))) / 2


def train(arm: Arm, seed: int, data: Path) -> nn.Module:
    """Return the trained network of an arm."""
    network, record, _ = evenslice.load_network(
        SPEC, "imagenet", slices=3, strategy=arm.strategy, tie=arm.tie, classes=2, seed=seed
    )
    teacher = evenslice.symmetrize(train(ARMS[BASELINE], seed, data)) if arm.distilled else None
    if arm.held:
        hold_outer_kernels(network, round(arm.held * STEPS))
    windows = evenslice.SliceWindows(
        data / "train_image.tif",
        data / "train_mito.tif",
        model=record,
        crop=CROP,
        foreground=FOREGROUND,
        augmentation=True,
        length=STEPS * BATCH,
        seed=seed,
    )
    loss_of = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True
    )  # as `train` has it
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    torch.manual_seed(seed)
    network.train()
    for crops, labels in DataLoader(windows, batch_size=BATCH):
        scores = network(crops)
        loss = loss_of(scores, labels[:, None])
        if arm.consistency:
            loss = loss + arm.consistency * consistency(scores, network(crops.flip(1)))
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(crops)
            loss = loss + arm.distilled * distillation(scores, taught)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def test(network: nn.Module, data: Path) -> dict[str, float]:
    """Return the scores of a network on the test volume: the fields of ``Row`` that are shares."""
    planes = evenslice.SliceWindows(data / "test_image.tif", data / "test_mito.tif", model=network)
    found = {name: torch.zeros(2) for name in ("dice", "changed", "before", "after", "both")}
    for centre in range(EVERY // 2, len(planes), EVERY):
        window, labels = planes[centre]
        before, middle, after = window
        inputs = {
            "dice": window,
            "changed": window.flip(0),
            "before": torch.stack([middle, middle, after]),
            "after": torch.stack([before, middle, middle]),
            "both": torch.stack([middle, middle, middle]),
        }
        answers = {name: network(each[None])[0].argmax(0) == 1 for name, each in inputs.items()}
        intact, reversed_ = answers["dice"], answers.pop("changed")
        found["changed"] += torch.stack([(intact ^ reversed_).sum(), (intact | reversed_).sum()])
        for name, answer in answers.items():
            found[name] += torch.stack(
                [2 * (answer & (labels == 1)).sum(), answer.sum() + (labels == 1).sum()]
            )
    return {name: (part / whole).item() for name, (part, whole) in found.items()}


def run(name: str, seed: int, data: Path) -> Row:
    """Train and test an arm with a seed."""
    torch.set_num_threads(1)
    started = time.monotonic()
    network = train(ARMS[name], seed, data)
    seconds = time.monotonic() - started
    return Row(arm=name, seed=seed, **test(network, data), seconds=seconds)


def main() -> None:
    """Train and test what is missing, one seed after another."""
    parser = argparse.ArgumentParser(description="Try further ways to a fair network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with train_image.tif and so on")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    done = {(row.arm, row.seed) for row in read_rows()}
    missing = [(arm, seed) for seed in range(options.seeds) for arm in ARMS if (arm, seed) not in done]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for task in as_completed([pool.submit(run, arm, seed, options.data) for arm, seed in missing]):
            row = task.result()
            append_row(row)
            print(f"{row.arm}, seed {row.seed}: Dice {row.dice:.4f}, {row.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
