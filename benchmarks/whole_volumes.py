"""Does the answer of a whole-volume method depend on which way round the stack is? The table of docs/whole-volumes.md.

    python benchmarks/whole_volumes.py [--scratch FOLDER] [--only TEXT]

Real methods on real data: 3-D networks by MONAI and nnU-Net, watershed and random walker of scikit-image, a propagation
through z by optical flow, and cellpose's stitching of slices. nnU-Net and cellpose run if they are installed. What is done is
kept in whole-volumes.jsonl; networks are trained in FOLDER.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.ndimage import binary_opening, distance_transform_edt, gaussian_filter, label
from shared import SHARED, append_lines, make_parser, read_lines, table
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.registration import optical_flow_ilk
from skimage.segmentation import random_walker, watershed
from skimage.transform import warp

import evenslice

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

RESULTS = Path(__file__).parent / "whole-volumes.jsonl"
AXES = ("z", "y", "x")
STEPS, BATCH, SIDE = 400, 8, 32
"""Of the training of MONAI's network, on crops of SIDE cubed."""

NNUNET_BATCH, NNUNET_TRAINER = 2, "nnUNetTrainer_1epoch"


def cases(part: slice) -> list[tuple[Path, Path]]:
    """Return image and labels of cases of the hippocampus."""
    folder = SHARED / "data" / "msd_hippocampus"
    names = sorted(path.name for path in (folder / "images").glob("*.nii*"))[part]
    return [(folder / "images" / name, folder / "labels" / name) for name in names]


TRAINED, TESTED, NNUNET_TESTED = slice(45), slice(45, 60), slice(45, 47)


def dark(stack: Array) -> Array:
    """Return what is darker than Otsu's threshold, smoothed: mitochondria and membranes, roughly."""
    smooth = gaussian_filter(stack.astype(float), 1.5)
    return np.asarray(binary_opening(smooth < threshold_otsu(smooth), iterations=2))


def follow(stack: Array) -> Array:
    """Find dark bodies in the first slice, and follow them through z by optical flow; what appears later is not seen."""
    smooth = gaussian_filter(stack.astype(float), (0, 1.5, 1.5))
    darkness = smooth < threshold_otsu(smooth)
    answer = np.zeros(stack.shape, np.uint8)
    answer[0] = binary_opening(darkness[0], iterations=2)
    rows, columns = np.indices(stack.shape[1:])
    for z in range(1, len(stack)):
        down, right = optical_flow_ilk(smooth[z], smooth[z - 1], radius=7)
        moved = warp(answer[z - 1].astype(float), np.array([rows + down, columns + right]), mode="edge") > 0.5
        answer[z] = moved & darkness[z]
    return answer


def basins(stack: Array) -> Array:
    """Number the basins of a 3-D watershed of the distance from dark membranes."""
    inside = ~dark(stack)
    depth = gaussian_filter(distance_transform_edt(inside), 1)
    markers = np.zeros(stack.shape, int)
    peaks = peak_local_max(depth, min_distance=6, labels=inside.astype(int))
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(watershed(-depth, markers, mask=inside))


def walk(stack: Array) -> Array:
    """Tell dark bodies from the rest by a random walker from the darkest and the brightest voxels."""
    smooth = gaussian_filter(stack.astype(float), 1)
    low, high = np.percentile(smooth, (3, 50))
    seeds = np.where(smooth < low, 2, np.where(smooth > high, 1, 0))
    return np.asarray(random_walker(smooth / smooth.std(), seeds, beta=130, mode="cg_j", tol=1e-3) - 1)


def stitch(stack: Array) -> Array:
    """Number dark bodies slice by slice, and let cellpose stitch the numbers through z."""
    utils: Any = import_module("cellpose.utils")
    return np.asarray(
        utils.stitch3D(np.stack([label(plane)[0] for plane in dark(stack)]), stitch_threshold=0.25)
    )


def normalised(path: Path) -> Array:
    """Return an image of the hippocampus with mean 0 and standard deviation 1, (z, y, x)."""
    stack = np.asarray(evenslice.open_volume(path)[...], np.float32)
    return np.asarray((stack - stack.mean()) / stack.std())


def train_monai(file: Path, *, flips: bool) -> torch.nn.Module:
    """Train a 3-D U-Net on the hippocampus, with or without flips along all axes, once."""
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    network: torch.nn.Module = UNet(
        3, 1, 3, channels=(16, 32, 64), strides=(2, 2), num_res_units=1, norm="instance"
    )
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    pairs = [
        (normalised(image), np.asarray(evenslice.open_volume(labels)[...]))
        for image, labels in cases(TRAINED)
    ]
    padded = [[np.pad(part, [(0, max(0, SIDE - n)) for n in part.shape]) for part in pair] for pair in pairs]
    random, loss = np.random.default_rng(0), DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(STEPS):
        crops = []
        for number in random.integers(len(padded), size=BATCH):
            start = [int(random.integers(n - SIDE + 1)) for n in padded[number][0].shape]
            place = tuple(slice(at, at + SIDE) for at in start)
            turned = [axis for axis in range(3) if flips and random.random() < 0.5]
            crops.append([np.flip(part[place], tuple(turned)).copy() for part in padded[number]])
        images, labels = (
            torch.from_numpy(np.stack(parts))[:, None].float() for parts in zip(*crops, strict=True)
        )
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
    torch.save(network.state_dict(), file)
    return network.eval()


def predict_monai(network: torch.nn.Module, stack: Array) -> Array:
    """Return the logits (classes, z, y, x) of a stack; it is centred in multiples of 4, so that padding is no matter of order."""
    sides = [(-n % 4 + 8, n) for n in stack.shape]
    width = [(extra // 2, extra - extra // 2) for extra, _ in sides]
    place = tuple(slice(before, before + n) for (before, _), (_, n) in zip(width, sides, strict=True))
    scaled = (stack - stack.mean()) / stack.std()
    with torch.no_grad():
        logits = network(torch.from_numpy(np.pad(scaled, width, "reflect"))[None, None].float())
    return np.asarray(logits[0].numpy()[:, *place])


def audit(
    function: Callable[[Array], Any], volumes: Any, labels: Any = None, **options: Any
) -> list[dict[str, Any]]:
    """Audit a function along all axes.

    Returns:
        What the table shows of each axis: the change of the class that changes most, and mean Dice of the foreground by side.
    """
    started = time.monotonic()
    found = evenslice.audit_volume(function, volumes, labels=labels, axes=AXES, **options)
    seconds, rows = (time.monotonic() - started) / (2 + len(AXES)), []
    for axis in found.axes:
        judged = [one for one in axis.classes if one.judged and one.label != 0]
        row = {"axis": axis.axis, "verdict": axis.verdict, "change": max(one.change for one in judged)}
        row["alone"] = axis.objects and [sum(axis.objects.alone), axis.objects.partners]
        row["dice"] = np.mean([one.dice for one in judged], axis=0).tolist()
        rows.append(row | {"seconds": round(seconds, 2)})
    return rows


def nnunet(scratch: Path, *, mirroring: bool) -> list[dict[str, Any]]:
    """Train nnU-Net for an epoch by its own commands, once, and flip test cases by its own prediction."""
    folders = {name: scratch / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    tools = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "nnUNet_n_proc_DA": "1"}
    environment |= {name: str(folder) for name, folder in folders.items()}
    run = partial(subprocess.run, env=environment, check=True, stdout=subprocess.DEVNULL)
    data = folders["nnUNet_raw"] / "Dataset004_Hippocampus"
    plans = folders["nnUNet_preprocessed"] / data.name / "nnUNetPlans.json"
    if not plans.exists():
        shutil.rmtree(data, ignore_errors=True)
        for place in ("imagesTr", "labelsTr"):
            (data / place).mkdir(parents=True)
        for image, labels in cases(TRAINED):
            name = image.name.removesuffix(".nii.gz")
            shutil.copy(image, data / "imagesTr" / f"{name}_0000.nii.gz")
            shutil.copy(labels, data / "labelsTr" / f"{name}.nii.gz")
        classes = {"background": 0, "anterior": 1, "posterior": 2}
        described = {"channel_names": {"0": "MRI"}, "labels": classes, "file_ending": ".nii.gz"}
        (data / "dataset.json").write_text(json.dumps(described | {"numTraining": 45}))
        run([tools / "nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "-np", "1"])
        changed = json.loads(plans.read_text())
        changed["configurations"]["3d_fullres"]["batch_size"] = NNUNET_BATCH
        plans.write_text(json.dumps(changed))
    if not list(folders["nnUNet_results"].glob(f"*/{NNUNET_TRAINER}__*/fold_0/checkpoint_final.pth")):
        run([tools / "nnUNetv2_train", "4", "3d_fullres", "0", "-tr", NNUNET_TRAINER, "-device", "cpu"])
    command = (
        f"nnUNetv2_predict -i {{input_folder}} -o {{output_folder}} -d 4 -c 3d_fullres -f 0 -tr {NNUNET_TRAINER} "
        f"-device cpu -npp 0 -nps 0 {'' if mirroring else '--disable_tta'}"
    )
    files, seconds = list[Path](), list[float]()
    pairs = cases(NNUNET_TESTED)
    for image, _ in pairs:
        out = scratch / f"{NNUNET_TRAINER}-{mirroring}" / image.name
        words = ["--volume", image, "--out", out, "--force", "--command", command]
        names = ["--input-name", "case_0000.nii.gz", "--output-name", "case.nii.gz"]
        turned = [word for axis in AXES for word in ("--axis", axis)]
        run([sys.executable, "-m", "evenslice", "flip", *words, *names, *turned])
        for place in ("intact", "again", *(f"flipped-{axis}" for axis in AXES)):
            files.append(out / place / "output" / "case.nii.gz")
            seconds.append(files[-1].stat().st_mtime - (out / place / "plan.json").stat().st_mtime)
    answers = iter(files)
    # All cases together, by the answers of the program, in the order in which an audit asks for them.
    rows = audit(lambda _: evenslice.open_volume(next(answers))[...], *map(list, zip(*pairs, strict=True)))
    return [{**row, "seconds": round(float(np.mean(seconds)), 2)} for row in rows]


def clients(scratch: Path) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Return what to run, by name."""

    def monai(*, flips: bool, both: bool = False) -> list[dict[str, Any]]:
        network = train_monai(scratch / f"monai-{flips}.pt", flips=flips)
        predict = partial(predict_monai, network)
        images, labels = map(list, zip(*cases(TESTED), strict=True))
        return audit(evenslice.symmetrize_volume(predict, AXES) if both else predict, images, labels)

    folder, place = SHARED / "data" / "lucchi_pp", np.s_[0:41, 96:288, 96:288]
    stack, truth = (evenslice.open_volume(folder / f"test_{name}.tif")[place] for name in ("image", "mito"))
    neurons = evenslice.open_volume(SHARED / "data" / "fib25_medulla" / "image.tif")
    cells = neurons[200:232, 40:168, 40:168]
    both = evenslice.symmetrize_volume(follow)
    return {
        "optical flow from the first slice": lambda: audit(follow, stack, truth),
        "optical flow, both ways (symmetrize_volume)": lambda: audit(both, stack, truth),
        "watershed, scikit-image": lambda: audit(basins, cells, instances=True),
        "random walker, scikit-image": lambda: audit(walk, stack, truth),
        "cellpose, stitching through z": lambda: audit(stitch, stack, instances=True),
        "MONAI 3-D U-Net, trained without flips": lambda: monai(flips=False),
        "MONAI 3-D U-Net, trained with flips": lambda: monai(flips=True),
        "the same, averaged over all flips (symmetrize_volume)": lambda: monai(flips=True, both=True),
        "nnU-Net v2 without mirroring (--disable_tta)": lambda: nnunet(scratch, mirroring=False),
        "nnU-Net v2, mirroring in prediction (its default)": lambda: nnunet(scratch, mirroring=True),
    }


def method_table() -> str:
    """Return the table of the page, a row for each method."""
    body = []
    for found in read_lines(RESULTS):
        rows, first = found["rows"], found["rows"][0]
        cells = [f"{row['verdict']}, {row['change']:.3f}" for row in rows]
        alone = "" if first["alone"] is None else "{} of {}".format(first["alone"][0], sum(first["alone"]))
        dice = [first["dice"][0], *(row["dice"][1] for row in rows)]
        known = "" if math.isnan(dice[0]) else ", ".join(f"{value:.3f}" for value in dice)
        body.append([found["method"], *cells, alone, known, f"{first['seconds']:.1f}"])
    header = [
        "method",
        *(f"{axis}: verdict, C" for axis in AXES),
        "objects alone",
        "Dice: intact, z, y, x",
        "s",
    ]
    return table(header, body)


def main() -> None:
    """Run what is left."""
    parser = make_parser(__doc__)
    parser.add_argument("--scratch", type=Path, default=Path("whole-volumes"))
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(exist_ok=True)
    known = {found["method"] for found in read_lines(RESULTS)}
    for name, run in clients(arguments.scratch.absolute()).items():
        if name not in known and arguments.only in name:
            append_lines(RESULTS, {"method": name, "rows": run()})


if __name__ == "__main__":
    main()
