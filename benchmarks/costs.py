"""What evenslice costs beside the bare passes of a network: ratios of alternating measurements within one run.

    python benchmarks/costs.py segment [--tile 256]     # of bare passes, in PyTorch and OpenVINO; and MONAI's inferer
    python benchmarks/costs.py engines                  # passes in OpenVINO, of those in PyTorch, for six networks
    python benchmarks/costs.py labels                   # how many voxels of real volumes OpenVINO labels otherwise
    python benchmarks/costs.py symmetrize               # passes and training steps at each cut, of those as built
    python benchmarks/costs.py training                 # a step of `evenslice train`, of a bare one; and its monitor
    python benchmarks/costs.py workers                  # `segment` on one worker of a Dask cluster, of two
    python benchmarks/costs.py memory                   # the peak of segmenting large planes
    python benchmarks/costs.py verdict                  # seconds and windows until a default audit is settled

All but ``workers``, and what runs on a GPU, run on one thread, whose processor's time other programs disturb least.
"""

from __future__ import annotations

import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import zarr
from captum.attr import Saliency
from shared import KEPT, SHARED, clock, in_turn, load, make_parser, seconds, spread

import evenslice

# Passes are timed and logits compared, for which there is no public name.
from evenslice.inference import Predictor, ReadyNetwork
from evenslice.inference.engine import EngineNetwork
from evenslice.volumes import mni152

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from torch import nn

ENGINES = {
    "U-Net on EfficientNet-Lite0": "smp:Unet/tu-tf_efficientnet_lite0",
    "U-Net on ResNet-34": "smp:Unet/resnet34",
    "U-Net++ on MobileNetV2": "smp:UnetPlusPlus/mobilenet_v2",
    "DeepLabV3+ on ResNet-18": "smp:DeepLabV3Plus/resnet18",
    "U-Net on ConvNeXt-T": "smp:Unet/tu-convnext_tiny",
    "SegFormer-B0": "smp:Segformer/mit_b0",
}
QUIET = evenslice.Compute(device="cpu", progress=False)


def open_given(options: argparse.Namespace) -> evenslice.Volume:
    """Open the volume of the command line, by default the MNI152 template."""
    return evenslice.open_volume(options.volume) if options.volume else mni152()


def segment(options: argparse.Namespace) -> None:
    """Compare segmenting slices, file to file, with bare passes of as many tiles, and with MONAI's inferer as documented.

    That has batches of four tiles, which overlap by a quarter. What OpenVINO takes to convert a network and to check it is left
    out.
    """
    volume, tile, device = open_given(options), options.tile, options.device
    volume = evenslice.open_volume(volume[: options.slices])
    network, batch = load(strategy="uniform").to(device), max(1, min(16, 2**17 // tile**2))
    places = [math.ceil(max(length - tile, 0) / (tile - tile // 8)) + 1 for length in volume.shape[1:]]
    tiles = torch.split(torch.rand(len(volume) * math.prod(places), 3, tile, tile, device=device), batch)
    preparing, chosen = list[float](), Predictor.with_engine

    def prepare(*given: Any) -> Any:
        begun, found = clock(), chosen(*given)
        preparing.append(clock() - begun)
        return found

    def ours(engine: str, size: tuple[int, int] | None = (tile, tile)) -> float:
        compute = evenslice.Compute(device=device, engine=engine, batch=size and batch, progress=False)
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(Predictor, "with_engine", prepare):
            out = Path(folder, "labels.npy")
            return (
                seconds(lambda: evenslice.segment(network, volume, out, tile=size, compute=compute))
                - preparing.pop()
            )

    ways = {
        "bare PyTorch": partial(seconds, lambda: run_tiles(network, tiles)),
        "MONAI, as documented": partial(seconds, partial(infer_by_monai, network, volume, tile)),
        "segment in PyTorch": partial(ours, "torch"),
    }
    if device == "cpu":
        converted = EngineNetwork.of(ReadyNetwork(network, slices=3, device=device), tiles[0][:1])
        ways["bare OpenVINO"] = partial(seconds, lambda: run_tiles(converted, tiles))
        ways |= {
            "segment": partial(ours, "openvino"),
            "segment, whole planes": partial(ours, "openvino", None),
        }
    rows = in_turn(ways, options.rounds)
    for name, base in permutations(ways, 2):
        if base in ("bare PyTorch", "bare OpenVINO") or name.startswith("MONAI"):
            print(f"{name} / {base}: {spread([row[name] / row[base] for row in rows])}", flush=True)


@torch.inference_mode()
def run_tiles(network: nn.Module, tiles: Sequence[torch.Tensor]) -> None:
    """Run all batches of tiles."""
    for batch in tiles:
        network(batch)


@torch.inference_mode()
def infer_by_monai(network: nn.Module, volume: evenslice.Volume, tile: int) -> None:
    """Find the classes of as many planes as a volume has, of noise."""
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer((tile, tile), sw_batch_size=4, overlap=0.25)
    device = next(network.parameters()).device
    for _ in range(len(volume)):
        inferer(torch.rand(1, 3, *volume.shape[1:], device=device), network).argmax(1)


@torch.inference_mode()
def engines(options: argparse.Namespace) -> None:
    """Compare passes of two windows of 256 x 256 with those of the network as built: as a copy that is ready, and in OpenVINO."""
    windows = torch.rand(2, 3, 256, 256)
    given = windows.contiguous(memory_format=torch.channels_last)
    print("| network | channels-last | OpenVINO | conversion | difference |\n| --- | --- | --- | --- | --- |")
    for title, spec in ENGINES.items():
        model = evenslice.load_network(spec, "none", strategy="uniform").model.eval()
        ready, begun = ReadyNetwork(model, slices=3, device="cpu"), time.process_time()
        converted = EngineNetwork.of(ready, windows[:1])
        found, spent = converted(windows), time.process_time() - begun
        error = float((found - ready(windows)).abs().max() / found.abs().max())
        ways = {
            "bare": partial(model, windows),
            "ready": partial(ready, given),
            "OpenVINO": partial(converted, windows),
        }
        rows = in_turn({name: partial(seconds, way) for name, way in ways.items()}, options.rounds)
        cells = [spread([row[name] / row["bare"] for row in rows]) for name in ("ready", "OpenVINO")]
        print(f"| {title} | {' | '.join(cells)} | {spent:.1f} s | {error:.1e} |", flush=True)


def labels(options: argparse.Namespace) -> None:
    """Count the voxels of real volumes that OpenVINO labels otherwise than PyTorch."""
    network = load(strategy="uniform")
    for path in [Path(options.volume)] if options.volume else real_volumes():
        ways = (replace(QUIET, engine=engine) for engine in ("torch", "openvino"))
        one, other = (evenslice.segment(network, path, compute=way) for way in ways)
        print(f"{path.name}: {np.count_nonzero(one != other)} of {one.size:,} voxels", flush=True)


def symmetrize(options: argparse.Namespace) -> None:
    """Compare passes of 2 windows of 256 x 256, and steps of 8 crops of 96 x 96, with those of the network as built."""
    ways: dict[str, dict[str, Any]] = {
        "as built": {},
        "uniform": {"strategy": "uniform"},
        "mirror, tied": {"strategy": "mirror", "tie": "mirror"},
        "twin": {"strategy": "twin"},
        **{at: {"symmetrize": at} for at in ("encoder.model.blocks.0", "encoder", "output")},
    }
    networks = {name: load(**way) for name, way in ways.items()}
    windows, crops = torch.rand(2, 3, 256, 256), torch.rand(8, 3, 96, 96)

    def forward(name: str) -> Callable[[], object]:
        network = networks[name]
        return torch.inference_mode()(lambda: network.eval()(windows))

    def step(name: str) -> Callable[[], object]:
        network = networks[name].train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

        def run() -> None:
            network.train()(crops).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    for title, kind in (("pass", forward), ("training step", step)):
        for name in list(ways)[1:]:
            runs = {way: partial(seconds, kind(way)) for way in (name, "as built")}
            ratios = [row[name] / row["as built"] for row in in_turn(runs, options.rounds)]
            print(f"{title}, {name}: {spread(ratios)}", flush=True)


def training(options: argparse.Namespace) -> None:
    """Compare a training step, in bfloat16, with a bare one: forward pass, loss, backward pass and AdamW on one batch."""
    from monai.losses import DiceCELoss

    steps, every = 10, 200
    network = load(strategy="uniform").train()
    windows, labels = torch.rand(8, 3, 192, 192), torch.randint(2, (8, 1, 192, 192))
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters())

    def bare() -> None:
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16):
                output = network(windows.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad()
            loss_of(output.float(), labels).backward()
            optimizer.step()

    with tempfile.TemporaryDirectory() as name:
        folder, random = Path(name), np.random.default_rng(0)
        image = random.integers(0, 256, (32, 512, 512), dtype=np.uint8)
        np.save(folder / "image.npy", image)
        np.save(folder / "labels.npy", (image > 128).astype(np.uint8))
        pair = {"image": str(folder / "image.npy"), "labels": str(folder / "labels.npy")}

        def spent(count: int, monitor: int | None) -> float:
            more = {"steps": count, "validate_every": count, "monitor_every": monitor, "dtype": "bfloat16"}
            config = {"data": {"train": [pair], "validation_fraction": 0}, "training": more}
            out = tempfile.mkdtemp(dir=folder)
            return seconds(lambda: evenslice.train(config, out=Path(out) / "run", progress=False))

        bare()
        ratios, monitors = [], []
        for _ in range(options.rounds):
            begun, plain, watched = spent(steps, None), spent(3 * steps, None), spent(3 * steps, steps)
            step = (plain - begun) / (2 * steps)
            ratios.append(step / (seconds(bare) / steps))
            monitors.append((watched - plain) / 4 / (every * step))  # measured before, twice between, after
    print(f"training step / bare step: {spread(ratios)}", flush=True)
    print(f"monitor / training, every {every} steps: {statistics.median(monitors):.2%}")


def workers(options: argparse.Namespace) -> None:
    """Compare one worker with two, each with one thread, on a local Dask cluster; importing is done before."""
    import dask
    from distributed import LocalCluster

    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1)
    settings = {
        "distributed.nanny.pre-spawn-environ": {**threads, **KEPT},
        "distributed.worker.profile.enabled": False,
    }
    model, volume = load(), open_given(options)
    with tempfile.TemporaryDirectory() as folder, dask.config.set(settings):

        def spent(count: int) -> float:
            alone = {"threads_per_worker": 1, "memory_limit": None, "dashboard_address": None}
            with LocalCluster(n_workers=count, **alone) as cluster:
                address = cluster.scheduler_address
                compute = evenslice.Compute(scheduler=address, dtype="float32", progress=False)
                out = Path(folder, "a.npy")
                segmented = partial(evenslice.segment, model, out=out, compute=compute, force=True)
                segmented(volume[: 8 * count])
                start = time.perf_counter()
                segmented(volume)
                return time.perf_counter() - start

        ratios = [spent(1) / spent(2) for _ in range(options.rounds)]
        print(f"one worker / two: {spread(ratios)}", flush=True)


def real_volumes() -> list[Path]:
    """Return every volume of the shared data, and the first of those in folders of many."""
    sets = sorted(path for path in (SHARED / "data").iterdir() if path.is_dir())
    return [
        path
        for part in sets
        for path in (*sorted(part.glob("*image.tif")), *sorted(part.glob("images/*"))[:1])
    ]


def verdict(options: argparse.Namespace) -> None:
    """Print the time and the windows of default audits of real volumes: of networks as built, or of run folders.

    Beside it, the time of Captum's Saliency on one tile of the audit's size in the middle of every slice.
    """
    files = {run.name: str(run / "network.safetensors") for run in options.runs}
    networks = {name: evenslice.load_network(file).model for name, file in files.items()}
    networks = networks or {way: load(strategy=way) for way in ("pretrained", "uniform", "twin")}
    noise = np.random.default_rng(0).random((16, 64, 64))
    evenslice.audit(load(), noise, compute=QUIET)  # the first is slower
    print(
        "| network | volume | verdict | windows | seconds | Captum |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, network in networks.items():
        saliency = Saliency(lambda given, network=network: network(given).amax(1).sum((1, 2)))
        for path in real_volumes():
            begun = time.process_time()
            found = evenslice.audit(network, path, compute=QUIET)
            spent = time.process_time() - begun
            part = torch.rand(1, 3, *found.run.tile, requires_grad=True)
            each = statistics.median(seconds(partial(saliency.attribute, part)) for _ in range(9))
            cells = (name, path.relative_to(SHARED / "data").as_posix(), found.verdict, str(found.windows))
            every = each * len(evenslice.open_volume(path))
            print("| " + " | ".join([*cells, f"{spent:.1f}", f"{every:.1f}"]) + " |", flush=True)


def memory(_options: argparse.Namespace) -> None:
    """Print the peak of segmenting 1 GiB of planes of two sizes, by a small network, in a process each."""
    network = "from torch import nn\ndef small():\n    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))"
    for side in (2048, 4096):
        with tempfile.TemporaryDirectory() as name:
            volume, shape = f"{name}/volume.zarr", (2**30 // side**2, side, side)
            array = zarr.create_array(volume, shape=shape, chunks=(64, 64, 64), dtype="uint8", fill_value=100)
            array[:64] = np.random.default_rng(0).integers(0, 255, (64, side, side), np.uint8)
            Path(name, "benchmark_network.py").write_text(network)
            files = f"--volume {volume} --out {name}/labels.ome.zarr"
            words = f"segment --json --model benchmark_network:small --weights none {files}"
            command = [sys.executable, "-m", "evenslice", *words.split()]
            subprocess.run(command, cwd=name, stdout=subprocess.DEVNULL, check=True)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest so far
            print(f"{side} x {side}: {peak:.0f} MiB", flush=True)


TASKS = {
    task.__name__: task for task in (segment, engines, labels, symmetrize, training, workers, memory, verdict)
}


def main() -> None:
    """Run what the command line names."""
    parser = make_parser(__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--volume", help="another than the MNI152 template")
    parser.add_argument("--slices", type=int, default=32, help="of the volume that is segmented")
    parser.add_argument("--tile", type=int, default=128, help="of segment")
    parser.add_argument("--device", default="cpu", help="of segment")
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[], help="of verdict: folders of `evenslice train`"
    )
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    TASKS[options.task](options)


if __name__ == "__main__":
    main()
