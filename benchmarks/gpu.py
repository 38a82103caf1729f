"""What share of the speed of a network's bare passes is left in an audit, a segmentation and a training, on a GPU.

    python benchmarks/gpu.py [--device cuda] [--out gpu.json] [--dtypes float32 bfloat16 float16] [--encoder resnet34]

It needs torch, timm, lightning, h5py, scipy and evenslice, and no package index: `pip install --no-deps evenslice-*.whl` is
enough, since of the smaller packages that evenslice imports, those that are missing are stood in for (`stand_ins.py`; the
result names them). Without a GPU it says so and exits with status 2, unless `--device cpu` is given.

The network is a U-Net on an encoder of timm with random weights, the volume a synthetic one in an HDF5 file. Measured
alternately, several rounds each, after one that warms up:

- audit: `evenslice.audit`, from opening the file to the verdict, against the forward and backward passes of as many windows
  and mirrors as it measured, in the same batches;
- predict: opening, reading, predicting and copying the labels back, as `evenslice.segment` does but for its files, against
  the forward passes of as many windows in the same batches; with zarr installed, `evenslice.segment` from file to file too;
- train: steps of Lightning with evenslice's module and crops, against as many of forward pass, loss, backward pass and AdamW.
  Both are timed from the end of some first steps on, so that opening volumes and starting workers does not count.

The bare passes run on random tensors that are on the device already, channels-last, weights frozen where nothing is trained,
in the precision of what they are compared with. In an audit and a prediction float32 is computed in full, without
TensorFloat32, on both sides; a training leaves PyTorch's settings as they are, and so do its bare steps.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import h5py
import numpy as np
import timm
import torch
from lightning.pytorch import Callback, Trainer
from scipy import ndimage
from stand_ins import add_missing
from torch import nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.utils.data import DataLoader

STOOD_IN = add_missing()

import evenslice  # noqa: E402  # after the stand-ins
from evenslice.inference import ReadyNetwork, choose_device, choose_dtype, predict  # noqa: E402
from evenslice.networks import full_precision, predicted_classes  # noqa: E402
from evenslice.training import SliceWindows  # noqa: E402
from evenslice.training.lightning_parts import TrainingModule  # noqa: E402
from evenslice.volumes import Scaling, open_volume  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Given = ParamSpec("Given")
Result = TypeVar("Result")

SLICES, CLASSES = 3, 2
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    shape: tuple[int, int, int] = (192, 512, 512)
    tile: int = 256
    windows: int = 384
    crop: int = 256
    batch: int = 16  # crops in a step
    first: int = 20  # steps that are not timed: the loader's workers start, and fill their queue
    steps: int = 60
    rounds: int = 5


QUICK = Sizes((12, 64, 64), tile=64, windows=8, crop=32, batch=2, first=1, steps=3, rounds=1)


class UNet(nn.Module):
    """A U-Net on an encoder of timm."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        features: Any = timm.create_model(encoder, features_only=True, pretrained=False)
        widths: list[int] = [*reversed(features.feature_info.channels())]
        self.encoder = features
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(below + beside, beside, 3, padding=1, bias=False),
                nn.BatchNorm2d(beside),
                nn.ReLU(inplace=True),
            )
            for below, beside in pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], CLASSES, 3, padding=1)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits (batch, classes, y, x)."""
        pixels, *others = reversed(self.encoder(windows))
        for block, beside in zip(self.blocks, others, strict=True):
            up = functional.interpolate(pixels, size=beside.shape[2:], mode="nearest")
            pixels = block(torch.cat([up, beside], 1))
        return functional.interpolate(
            self.head(pixels), size=windows.shape[2:], mode="bilinear", align_corners=False
        )


def write_volume(path: Path, shape: tuple[int, int, int]) -> None:
    """Write blobs with noise, and which voxels are in a blob."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), (1, 4, 4))
    blobs /= blobs.std()
    noisy = blobs + 0.5 * rng.standard_normal(shape, np.float32)
    with h5py.File(path, "w") as file:
        chunks = (1, min(256, shape[1]), min(256, shape[2]))
        file.create_dataset("image", data=np.clip(100 + 30 * noisy, 0, 255).astype(np.uint8), chunks=chunks)
        file.create_dataset("labels", data=(blobs > 0.8).astype(np.uint8), chunks=chunks)


@dataclass(frozen=True)
class Bench:
    """What all measurements need.

    Attributes:
        model: the network, neutralized, on the CPU.
        device: where it runs.
        dtype: name of the precision.
        sizes: how much is measured.
        path: the file of the volume.
    """

    model: nn.Module
    device: torch.device
    dtype: str
    sizes: Sizes
    path: Path

    def bare(self) -> nn.Module:
        """Return a copy of the network on the device, channels-last."""
        network = copy.deepcopy(self.model).to(self.device)
        return convert_conv2d_weight_memory_format(network, torch.channels_last)

    def precision(self) -> Any:
        """Return the context of the bare passes."""
        half = getattr(torch, self.dtype)
        return torch.autocast(self.device.type, dtype=half, enabled=half != torch.float32)

    def random(self, count: int, side: int) -> Tensor:
        """Return windows on the device."""
        windows = torch.rand(count, SLICES, side, side, device=self.device)
        return windows.contiguous(memory_format=torch.channels_last)

    def timed(self, run: Callable[Given, Result]) -> Callable[Given, tuple[Result, float]]:
        """Return a function that returns what a call returns, and its seconds until the device is done."""

        def call(*given: Given.args, **options: Given.kwargs) -> tuple[Result, float]:
            start = self.now()
            result = run(*given, **options)
            return result, self.now() - start

        return call

    def now(self) -> float:
        """Return the time at which the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def compare(
        self,
        what: str,
        ours: Callable[[], tuple[int, float]],
        bare: Callable[[int], tuple[object, float]],
    ) -> dict[str, Any]:
        """Run both in turn, which return their seconds.

        ``ours`` also returns how many windows it took, which ``bare`` then takes too.
        """
        count, _ = ours()
        bare(count)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        rounds = [(ours()[1], bare(count)[1]) for _ in range(self.sizes.rounds)]
        shares = [slow / own for own, slow in rounds]
        row = {
            "what": what,
            "dtype": self.dtype,
            "windows": count,
            "seconds": [own for own, _ in rounds],
            "bare_seconds": [slow for _, slow in rounds],
            "share": statistics.median(shares),
        }
        if self.device.type == "cuda":
            row["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
        print(
            f"{what}, {self.dtype}: {row['share']:.2f} of the speed of the bare passes "
            f"({min(shares):.2f} to {max(shares):.2f}), {count} windows"
        )
        return row


def measure_audit(bench: Bench) -> dict[str, Any]:
    """Compare an audit with forward and backward passes, and the forward passes with a slice replaced."""
    network, tile, batch = bench.bare().requires_grad_(False), bench.sizes.tile, 8

    def ours() -> int:
        nonlocal batch
        found = evenslice.audit(
            bench.model,
            f"{bench.path}:/image",
            sampling=evenslice.Sampling(
                min_windows=bench.sizes.windows, max_windows=bench.sizes.windows, tile=(tile, tile)
            ),
            compute=evenslice.Compute(device=str(bench.device), dtype=bench.dtype, progress=False),
        )
        batch = found.run.batch or batch
        return found.windows

    def bare(count: int) -> None:
        for start in range(0, 2 * count, batch):  # windows and mirrors
            windows = bench.random(min(batch, 2 * count - start), tile).requires_grad_()
            with bench.precision(), full_precision():
                output = network(windows)
                explained = output.gather(1, output.argmax(1, keepdim=True)).float().sum()
                torch.autograd.grad(explained, windows)
                with torch.no_grad():
                    for _ in range(windows.shape[1] - 1):  # each outer slice replaced
                        network(windows)

    return bench.compare("audit", bench.timed(ours), bench.timed(bare))


def bare_prediction(bench: Bench, side: int) -> Callable[[int], None]:
    """Return forward passes of windows."""
    network = bench.bare().requires_grad_(False)
    most = (
        max(1, min(64, 2**23 // side**2))
        if bench.device.type == "cuda"
        else max(1, min(16, 2**20 // side**2))
    )

    @torch.no_grad()
    def bare(count: int) -> None:
        for start in range(0, count, most):
            with bench.precision(), full_precision():
                network(bench.random(min(most, count - start), side))

    return bare


def measure_prediction(bench: Bench) -> dict[str, Any]:
    """Compare predicting a volume, without writing, with forward passes."""

    def ours() -> int:
        volume = open_volume(f"{bench.path}:/image")
        network = ReadyNetwork(bench.model, slices=SLICES, device=str(bench.device), dtype=bench.dtype)
        network.prepare(SLICES, (volume.shape[1], volume.shape[2]))
        for _, output in predict(network, volume, scaling=Scaling(0, 255), slices=SLICES):
            predicted_classes(output, dim=0).cpu()
        return len(volume)

    bare = bare_prediction(bench, bench.sizes.shape[1])
    return bench.compare("predict", bench.timed(ours), bench.timed(bare))


def measure_segmentation(bench: Bench) -> dict[str, Any]:
    """Compare a segmentation from file to file with forward passes."""

    def ours() -> int:
        labels = evenslice.segment(
            bench.model,
            f"{bench.path}:/image",
            bench.path.with_name("labels.h5"),
            reading=evenslice.Reading(intensity=(0, 255)),
            compute=evenslice.Compute(device=str(bench.device), dtype=bench.dtype, progress=False),
            force=True,
        )
        return len(labels)

    bare = bare_prediction(bench, bench.sizes.shape[1])
    return bench.compare("segment", bench.timed(ours), bench.timed(bare))


class Clock(Callback):
    """Notes when some steps of a training end, counted from 1."""

    def __init__(self, now: Callable[[], float], steps: tuple[int, ...]) -> None:
        self.now, self.steps, self.times = now, steps, list[float]()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  # Lightning's
        """Note the time at the end of a step."""
        if batch_idx + 1 in self.steps:
            self.times.append(self.now())


def measure_training(bench: Bench) -> dict[str, Any]:
    """Compare steps of Lightning on crops of the volume with steps on one random batch."""
    sizes = bench.sizes
    total = sizes.first + sizes.steps
    options = SimpleNamespace(
        task="segmentation",
        loss="dice_ce",
        learning_rate=5e-4,
        weight_decay=1e-2,
        warmup=0.05,
        steps=total,
    )
    config = SimpleNamespace(training=options, data=SimpleNamespace(classes=CLASSES, ignore_label=-1), seed=0)

    def module() -> Any:
        return TrainingModule(bench.bare().train(), config)  # type: ignore[arg-type]

    def ours() -> tuple[int, float]:
        crops = SliceWindows(
            f"{bench.path}:/image",
            f"{bench.path}:/labels",
            model=bench.model,
            crop=(sizes.crop, sizes.crop),
            length=total * sizes.batch,
        )
        clock = Clock(bench.now, (sizes.first, total))
        trainer = Trainer(
            accelerator=bench.device.type,
            devices=[bench.device.index] if bench.device.type == "cuda" else 1,
            precision=PRECISIONS[bench.dtype],  # type: ignore[arg-type]
            max_steps=total,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(
            crops,
            batch_size=sizes.batch,
            num_workers=min(8, os.cpu_count() or 1) if bench.device.type == "cuda" else 0,
            pin_memory=bench.device.type == "cuda",
        )
        trainer.fit(module(), loader)
        begun, ended = clock.times
        return sizes.steps * sizes.batch, ended - begun

    def bare(count: int) -> tuple[None, float]:
        trained = module().to(bench.device)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-4, fused=True)
        scaler = torch.amp.GradScaler(bench.device.type, enabled=bench.dtype == "float16")
        windows = bench.random(sizes.batch, sizes.crop)
        labels = (windows[:, 1] > 0.8).long()

        def run(steps: int) -> None:
            for _ in range(steps):
                with bench.precision():
                    loss = trained.loss(trained(windows), labels)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()

        run(sizes.first)
        return bench.timed(run)(count // sizes.batch)

    return bench.compare("train", ours, bare)


def describe(device: torch.device, sizes: Sizes, encoder: str) -> dict[str, Any]:
    """Return what the figures were measured with."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine(),
        "kind": device.type,
        "cuda": torch.version.cuda if gpu else None,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "evenslice": evenslice.__version__,
        },
        "stood_in": STOOD_IN,
        "encoder": encoder,
        "sizes": vars(sizes),
    }


def main() -> int:
    """Measure, print the shares and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--dtypes", nargs="+", choices=list(PRECISIONS), help="by default all that it has")
    parser.add_argument("--encoder", default="resnet34", help="of timm")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--quick", action="store_true", help="check that it runs; the figures mean nothing")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU on this machine; give --device cpu to run it on the CPU", file=sys.stderr)
        return 2
    device, sizes = choose_device(options.device), QUICK if options.quick else Sizes()
    half = ["bfloat16"] if choose_dtype("auto", device, training=True) == torch.bfloat16 else []
    dtypes = options.dtypes or ["float32", *half, *(["float16"] if device.type == "cuda" else [])]
    torch.manual_seed(0)
    model = UNet(options.encoder).eval()
    evenslice.neutralize(model, slices=SLICES, mean=0.5, std=0.25)
    measurements = [measure_audit, measure_prediction, measure_training]
    if importlib.util.find_spec("zarr") is not None:
        measurements.append(measure_segmentation)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        path = Path(folder) / "volume.h5"
        write_volume(path, sizes.shape)
        rows = [
            measure(Bench(model, device, dtype, sizes, path)) for dtype in dtypes for measure in measurements
        ]
    text = json.dumps({**describe(device, sizes, options.encoder), "results": rows}, indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(f"result: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
