"""What evenslice costs beside the bare passes of a network: ratios of alternating measurements within one run.

    python benchmarks/costs.py audit [--device cuda]    # of bare passes and gradients of its windows and mirrors
    python benchmarks/costs.py segment [--tile 256]     # of bare passes; and MONAI's sliding window
    python benchmarks/costs.py neutralize               # of two forward passes of what it shows the network, and 0.2 s
    python benchmarks/costs.py symmetrize               # passes and training steps at each cut, of those as built
    python benchmarks/costs.py training                 # a step of `evenslice train`, of a bare one; and its monitor
    python benchmarks/costs.py workers                  # `segment` and `audit` on one worker of a Dask cluster, of two
    python benchmarks/costs.py memory                   # passes where freed memory is not kept, of where it is
    python benchmarks/costs.py verdict                  # seconds and windows until a default audit is settled

All but ``audit``, ``segment`` and ``workers`` run on one thread, whose processor's time other programs disturb least.
"""

from __future__ import annotations

import copy
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from shared import KEPT, SHARED, compare, fast_copy, load, make_parser, open_middle, seconds, show

import evenslice

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

QUIET = evenslice.Compute(device="cpu", progress=False)


def audit(options: argparse.Namespace) -> None:
    """Compare an audit of 40 windows with bare passes and gradients of as many random ones in memory, and of mirrors."""
    model, volume, device, count = load(), open_middle(options.volume), options.device, 40
    half = getattr(torch, options.dtype)

    def ours() -> evenslice.Audit:
        return evenslice.audit(
            model,
            volume,
            sampling=evenslice.Sampling(min_windows=count, max_windows=count),
            compute=evenslice.Compute(device=device, dtype=options.dtype, progress=False),
        )

    run = ours().run
    windows = torch.rand(count, 3, *(run.tile or ()), device=device)
    batches = torch.split(torch.cat([windows, windows.flip(1)]), run.batch or 4)
    frozen = fast_copy(model, device)

    def bare() -> None:
        for batch in batches:
            pixels = batch.contiguous(memory_format=torch.channels_last).requires_grad_()
            with torch.autocast(device, half, enabled=half != torch.float32):
                output = frozen(pixels)
            explained = output.gather(1, output.argmax(1, keepdim=True)).float().sum()
            torch.autograd.grad(explained, pixels)

    compare("audit / bare", ours, bare, options.rounds)


def segment(options: argparse.Namespace) -> None:
    """Compare segmenting 32 slices, file to file, with bare passes of as many tiles, and with MONAI's sliding window.

    MONAI's has the same tiles, overlap and batches; or is used as documented: batches of four, an overlap of a quarter.
    """
    from monai.inferers import SlidingWindowInferer

    volume, tile, device = open_middle(options.volume, 32), options.tile, options.device
    model = load(strategy="uniform")
    frozen = fast_copy(model, device)
    overlap, batch = tile // 8, max(1, min(16, 2**20 // tile**2))
    places = [math.ceil(max(length - tile, 0) / (tile - overlap)) + 1 for length in volume.shape[1:]]
    planes = torch.rand(len(volume), 3, *volume.shape[1:], device=device)
    tiles = torch.rand(len(volume) * math.prod(places), 3, tile, tile, device=device)
    same = SlidingWindowInferer((tile, tile), sw_batch_size=batch, overlap=overlap / tile, mode="gaussian")
    documented = SlidingWindowInferer((tile, tile), sw_batch_size=4, overlap=0.25)

    @torch.no_grad()
    def bare() -> None:
        for chunk in torch.split(tiles, batch):
            frozen(chunk.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def monai(inferer: SlidingWindowInferer) -> None:
        model.to(device)
        for window in planes:
            inferer(window[None], model).argmax(1)

    with tempfile.TemporaryDirectory() as folder:

        def ours(dtype: str, size: tuple[int, int] | None = None) -> Any:
            compute = evenslice.Compute(
                device=device, dtype=dtype, batch=batch if size else None, progress=False
            )
            return evenslice.segment(
                model, volume, Path(folder, "a.npy"), tile=size, compute=compute, force=True
            )

        exact, rounded = ours("float32")[...], ours("bfloat16")[...]
        cut = (tile, tile)
        compare("float32 segment / bare", partial(ours, "float32", cut), bare, options.rounds)
        for name, inferer, dtype, size in (
            ("monai, same tiles / float32 segment", same, "float32", cut),
            ("monai, as documented / segment in bfloat16", documented, "bfloat16", None),
            ("monai, as documented / segment in bfloat16, same tiles", documented, "bfloat16", cut),
        ):
            compare(name, partial(monai, inferer), partial(ours, dtype, size), options.rounds, warm=False)
    print(f"voxels labelled differently in bfloat16 than in float32: {np.mean(exact != rounded):.4%}")


def neutralize(options: argparse.Namespace) -> None:
    """Compare neutralizing with two passes of the six images that it shows the network, plus 0.2 s."""
    import segmentation_models_pytorch as smp
    import timm
    from torchvision.models import resnet50

    unet = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None)
    for model, side in (
        (unet, 64),
        (unet, 256),
        (resnet50(), 224),
        (timm.create_model("convnext_tiny"), 224),
    ):
        ratios = list[float]()
        single = torch.no_grad()(partial(model.eval(), torch.rand(6, 3, side, side)))
        single()
        for _ in range(options.rounds):
            spent = seconds(partial(evenslice.neutralize, copy.deepcopy(model), 5, size=(side, side)))
            ratios.append(spent / (seconds(single) + seconds(single) + 0.2))
        show(f"{type(model).__name__}, {side} pixels", ratios)


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
            compare(f"{title}, {name}", kind(name), kind("as built"), options.rounds)


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
    show("training step / bare step", ratios)
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
    model, volume = load(), open_middle(options.volume)
    with tempfile.TemporaryDirectory() as folder, dask.config.set(settings):

        def spent(task: str, count: int) -> float:
            alone = {"threads_per_worker": 1, "memory_limit": None, "dashboard_address": None}
            with LocalCluster(n_workers=count, **alone) as cluster:
                address = cluster.scheduler_address
                compute = evenslice.Compute(scheduler=address, dtype="float32", progress=False)
                out = Path(folder, "a.npy")
                segmented = partial(evenslice.segment, model, out=out, compute=compute, force=True)
                segmented(volume[: 8 * count])
                start = time.perf_counter()
                if task == "segment":
                    segmented(volume)
                else:
                    sampling = evenslice.Sampling(min_windows=400, max_windows=400)
                    evenslice.audit(model, volume, sampling=sampling, compute=compute)
                return time.perf_counter() - start

        for task in ("segment", "audit"):
            ratios = [spent(task, 1) / spent(task, 2) for _ in range(options.rounds)]
            show(f"{task}, one worker / two", ratios)


def memory(options: argparse.Namespace) -> None:
    """Compare passes in processes that return what tensors leave to the system with those in one that keeps it."""
    environments = {"kept": KEPT, "by default": {}, "by Dask's default": {"MALLOC_TRIM_THRESHOLD_": 65536}}

    def spent(environment: dict[str, int]) -> float:
        given = {name: value for name, value in os.environ.items() if name not in KEPT}
        done = subprocess.run(
            [sys.executable, __file__, "passes"],
            env=given | {name: str(value) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return float(done.stdout)

    rounds = [{name: spent(given) for name, given in environments.items()} for _ in range(options.rounds)]
    for name in list(environments)[1:]:
        show(f"{name} / kept", [found[name] / found["kept"] for found in rounds])


@torch.no_grad()
def passes(_options: argparse.Namespace) -> None:
    """Print the shortest time of a pass of a plane of 768 x 1024, in this process."""
    network, plane = fast_copy(load()), torch.rand(1, 3, 768, 1024)
    print(min(seconds(lambda: network(plane)) for _ in range(5)))


def verdict(options: argparse.Namespace) -> None:
    """Print the time and the windows of default audits of real volumes: of networks as built, or of run folders."""
    files = {run.name: str(run / "network.safetensors") for run in options.runs}
    networks = {name: evenslice.load_network(file).model for name, file in files.items()}
    networks = networks or {way: load(strategy=way) for way in ("pretrained", "uniform", "twin")}
    sets = sorted(path for path in (SHARED / "data").iterdir() if path.is_dir())
    volumes = [path for part in sets for path in sorted(part.glob("*image.tif"))]
    volumes += [path for part in sets for path in sorted(part.glob("images/*"))[:1]]
    noise = np.random.default_rng(0).random((16, 64, 64))
    evenslice.audit(load(), noise, compute=QUIET)  # the first is slower
    print("| network | volume | verdict | windows | seconds |\n| --- | --- | --- | --- | --- |")
    for name, network in networks.items():
        for path in volumes:
            begun = time.process_time()
            found = evenslice.audit(network, path, compute=QUIET)
            spent = time.process_time() - begun
            place = path.relative_to(SHARED / "data").as_posix()
            print(f"| {name} | {place} | {found.verdict} | {found.windows} | {spent:.1f} |", flush=True)


TASKS = {
    task.__name__: task
    for task in (audit, segment, neutralize, symmetrize, training, workers, memory, passes, verdict)
}


def main() -> None:
    """Run what the command line names."""
    parser = make_parser(__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--volume", help="another than the MNI152 template")
    parser.add_argument("--tile", type=int, default=128, help="of segment")
    parser.add_argument("--device", default="cpu", help="of audit and segment")
    parser.add_argument("--dtype", default="float32", help="of audit")
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[], help="of verdict: folders of `evenslice train`"
    )
    options = parser.parse_args()
    if options.task not in ("audit", "segment"):
        torch.set_num_threads(1)
    TASKS[options.task](options)


if __name__ == "__main__":
    main()
