"""Other tools for segmentation on the Lucchi++ crop, with two CPU cores and twenty minutes of training each.

    python benchmarks/segmenters.py --data FOLDER --tool evenslice|monai|biapy|nnunet [--bin FOLDER] [--minutes 20] [--length N]

FOLDER holds train_image.tif, train_mito.tif, test_image.tif and test_mito.tif. Each tool trains as its documentation says,
with its own defaults where it has any; only the length of the training is set, such that it takes the time that is given:
`--length` is the number of steps of evenslice or of epochs of BiaPy that fit into it, the other two find it themselves.
Preparing the data and predicting the test volume come on top. Prints one line of JSON: IoU and Dice of the foreground in
the test volume, seconds of training and of prediction, and versions. Nothing else should run on the machine meanwhile.

- evenslice: `evenslice train`, with the defaults but for the number of steps.
- monai: the 3-D U-Net, loss, optimizer and transforms of the tutorial `3d_segmentation/torch/unet_training_dict.py`; it
  needs no installation, for evenslice brings MONAI.
- biapy: `biapy --config`, the template `semantic_segmentation/2d_semantic_segmentation.yaml`; `--bin` is the `bin` of the
  virtual environment into which `pip install biapy` went.
- nnunet: `nnUNetv2_plan_and_preprocess`, `nnUNetv2_train ... 2d all -device cpu` and `nnUNetv2_predict`, with the plans as
  they are made; `--bin` as for biapy, with `pip install nnunetv2`. Its schedule of 1,000 epochs is fitted into the time by a
  trainer of our own, as its documentation advises.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import torch
import yaml

import evenslice

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Labels = NDArray[np.uint8]

EVENSLICE_STEP, BIAPY_EPOCH = 0.46, 190.0  # seconds, on two cores of an Intel Xeon with AMX
SPACING = 5.0  # nanometres
BIAPY = {
    "SYSTEM": {"NUM_CPUS": -1},
    "PROBLEM": {"TYPE": "SEMANTIC_SEG", "NDIM": "2D"},
    "DATA": {"PATCH_SIZE": "(256, 256, 1)", "VAL": {"SPLIT_TRAIN": 0.1}},
    "AUGMENTOR": {"ENABLE": True, "RANDOM_ROT": True, "VFLIP": True, "HFLIP": True},
    "MODEL": {
        "ARCHITECTURE": "attention_unet",
        "FEATURE_MAPS": [16, 32, 64, 128, 256],
        "LOAD_CHECKPOINT": False,
    },
    "TRAIN": {"ENABLE": True, "OPTIMIZER": "ADAMW", "LR": 1e-4, "BATCH_SIZE": 6, "PATIENCE": 50},
    "TEST": {"ENABLE": True, "AUGMENTATION": False, "FULL_IMG": False},
}
TRAINER = '''
import os
import time

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerMinutes(nnUNetTrainer):
    """The default trainer with epochs of five iterations, as many as fit into the time."""

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch, self.save_every = 5, 1, 10**6

    def on_train_start(self):
        super().on_train_start()
        for _ in range(2):  # the first is slower
            start = time.perf_counter()
            self.train_step(next(self.dataloader_train))
        step = time.perf_counter() - start
        given = float(os.environ["TRAINING_SECONDS"])
        self.num_epochs = max(1, round(given / step / 5.5))  # validation takes half as long as a step
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.print_to_log_file(f"{self.num_epochs} epochs of 5 iterations; an iteration takes {step:.2f} s")

    def perform_actual_validation(self, save_probabilities=False):
        """There is nothing to validate on: all that is labelled is trained on."""
'''


def read(data: Path, name: str) -> Labels:
    """Read a volume (z, y, x)."""
    volume: Labels = tifffile.imread(data / f"{name}.tif")
    return volume


def call(folder: Path, *command: str, **variables: str) -> str:
    """Run a command, its output in a file beside the results; return what it printed."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("w") as stream:
        subprocess.run(
            command,
            check=True,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **variables},
        )
    return log.read_text()


@dataclass(frozen=True)
class Budget:
    """How long a tool may train: minutes and, for those that cannot be told so, how many steps or epochs."""

    minutes: float
    length: int | None

    def fit(self, seconds: float) -> int:
        """Return the length, by default as many steps or epochs of some seconds each as fit into the time."""
        return self.length or max(1, int(60 * self.minutes / seconds))


def with_evenslice(data: Path, folder: Path, budget: Budget, _: Path) -> tuple[Labels, dict[str, Any]]:
    """Train with the defaults of evenslice, but for the number of steps."""
    steps = budget.fit(EVENSLICE_STEP)
    files = {
        split: [{"image": f"{split}_image.tif", "labels": f"{split}_mito.tif"}] for split in ("train", "test")
    }
    config = {
        "data": {"name": "crop", "root": str(data.resolve()), **files},
        "training": {"steps": steps},
    }
    result = evenslice.train(config, out=folder / "run")
    trained = time.monotonic()
    call(folder, sys.executable, "-m", "evenslice", "segment", "--run", "run", "--volume", str(data / "test_image.tif"),
         "--out", "labels.tif")  # fmt: skip
    return read(folder, "labels"), {
        "start": result["config"]["model"]["strategy"],
        "steps": steps,
        "training": result["seconds"],
        "prediction": time.monotonic() - trained,
    }


def with_monai(data: Path, _: Path, budget: Budget, __: Path) -> tuple[Labels, dict[str, Any]]:
    """Train the 3-D U-Net of MONAI's tutorial."""
    from monai.data import CacheDataset, DataLoader, list_data_collate
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceLoss
    from monai.networks.nets import UNet
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        RandCropByPosNegLabeld,
        RandRotate90d,
        ScaleIntensityd,
    )
    from monai.utils import set_determinism

    set_determinism(0)
    both = ["img", "seg"]
    transforms = Compose(
        [
            EnsureChannelFirstd(keys=both, channel_dim="no_channel"),
            ScaleIntensityd(keys=both),
            RandCropByPosNegLabeld(
                keys=both, label_key="seg", spatial_size=[96, 96, 96], pos=1, neg=1, num_samples=4
            ),
            RandRotate90d(keys=both, prob=0.5, spatial_axes=[0, 2]),
        ]
    )
    # The tutorial reads two volumes for a batch; here, one volume is read twice.
    items = [
        {
            "img": read(data, "train_image").astype(np.float32),
            "seg": read(data, "train_mito").astype(np.float32),
        }
    ] * 2
    loader = DataLoader(
        CacheDataset(items, transforms, progress=False), batch_size=2, collate_fn=list_data_collate
    )
    network = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
    )
    loss, optimizer = DiceLoss(sigmoid=True), torch.optim.Adam(network.parameters(), 1e-3)
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < 60 * budget.minutes:
        for batch in loader:
            optimizer.zero_grad()
            loss(network(batch["img"]), batch["seg"]).backward()
            optimizer.step()
            steps += 1
    trained = time.monotonic()
    image = read(data, "test_image").astype(np.float32)
    image = (image - image.min()) / (image.max() - image.min())
    with torch.no_grad():
        output = sliding_window_inference(
            torch.from_numpy(image)[None, None], (96, 96, 96), 4, network.eval()
        )
    labels = (torch.as_tensor(output)[0, 0].sigmoid() > 0.5).numpy().astype(np.uint8)
    return labels, {"steps": steps, "training": trained - start, "prediction": time.monotonic() - trained}


def with_biapy(data: Path, folder: Path, budget: Budget, programs: Path) -> tuple[Labels, dict[str, Any]]:
    """Train BiaPy's 2-D attention U-Net as its template for semantic segmentation does."""
    for split in ("train", "test"):
        for kind, name in (("x", "image"), ("y", "mito")):
            (folder / split / kind).mkdir(parents=True)
            for number, plane in enumerate(read(data, f"{split}_{name}")):
                tifffile.imwrite(
                    folder / split / kind / f"{number:03}.tif", plane * (255 if kind == "y" else 1)
                )
    epochs = budget.fit(BIAPY_EPOCH)
    config = json.loads(json.dumps(BIAPY))
    for split in ("train", "test"):
        paths = {"PATH": str(folder / split / "x"), "GT_PATH": str(folder / split / "y"), "IN_MEMORY": True}
        config["DATA"][split.upper()] = paths
    config["DATA"]["TEST"] |= {"LOAD_GT": True, "PADDING": "(32, 32)"}
    config["TRAIN"]["EPOCHS"] = epochs
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start = time.monotonic()
    printed = call(folder, str(programs / "biapy"), "--config", "config.yaml", "--result_dir", "results", "--name", "crop",
                   "--run_id", "1", OMP_NUM_THREADS="2")  # fmt: skip
    found = sorted(folder.glob("results/**/per_image_binarized/*.tif"))
    labels = np.stack([np.squeeze(tifffile.imread(path)) for path in found])
    hours, minutes, seconds = map(int, re.findall(r"Train time \(s\): (\d+):(\d+):(\d+)", printed)[-1])
    training = 3600.0 * hours + 60 * minutes + seconds
    return (labels > 0).astype(np.uint8), {
        "epochs": epochs,
        "training": training,
        "prediction": time.monotonic() - start - training,
    }


def with_nnunet(data: Path, folder: Path, budget: Budget, programs: Path) -> tuple[Labels, dict[str, Any]]:
    """Train nnU-Net's 2d configuration on all training slices."""
    parts = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    variables = {name: str(folder / part) for name, part in parts.items()}
    variables |= {
        "nnUNet_extTrainer": str(folder / "trainers"),
        "nnUNet_n_proc_DA": "2",
        "nnUNet_def_n_proc": "2",
    }
    variables["TRAINING_SECONDS"] = str(60 * budget.minutes)
    (folder / "trainers").mkdir()
    (folder / "trainers" / "minutes.py").write_text(TRAINER)
    raw = folder / "raw" / "Dataset001_Crop"
    for target, name in (
        ("imagesTr/crop_0000", "train_image"),
        ("labelsTr/crop", "train_mito"),
        ("imagesTs/test_0000", "test_image"),
    ):
        path = raw / f"{target}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, read(data, name))
        (path.parent / f"{path.stem.removesuffix('_0000')}.json").write_text(
            json.dumps({"spacing": [SPACING] * 3})
        )
    described = {
        "channel_names": {"0": "EM"},
        "labels": {"background": 0, "mitochondrion": 1},
        "numTraining": 1,
        "file_ending": ".tif",
        "overwrite_image_reader_writer": "Tiff3DIO",
    }
    (raw / "dataset.json").write_text(json.dumps(described))
    call(
        folder, str(programs / "nnUNetv2_plan_and_preprocess"), "-d", "1", "-c", "2d", "-np", "2", **variables
    )
    start = time.monotonic()
    printed = call(folder, str(programs / "nnUNetv2_train"), "1", "2d", "all", "-device", "cpu", "-tr", "nnUNetTrainerMinutes",
                   **variables)  # fmt: skip
    trained = time.monotonic()
    call(folder, str(programs / "nnUNetv2_predict"), "-i", str(raw / "imagesTs"), "-o", "predicted", "-d", "1", "-c", "2d",
         "-f", "all", "-tr", "nnUNetTrainerMinutes", "-device", "cpu", "-npp", "1", "-nps", "1", **variables)  # fmt: skip
    labels: Labels = tifffile.imread(folder / "predicted" / "test.tif")
    steps = 5 * int(re.findall(r"(\d+) epochs of 5 iterations", printed)[-1])
    return labels, {"steps": steps, "training": trained - start, "prediction": time.monotonic() - trained}


TOOLS: dict[str, tuple[Callable[[Path, Path, Budget, Path], tuple[Labels, dict[str, Any]]], str]] = {
    "evenslice": (with_evenslice, "evenslice"),
    "monai": (with_monai, "monai"),
    "biapy": (with_biapy, "biapy"),
    "nnunet": (with_nnunet, "nnunetv2"),
}


def version_of(package: str, programs: Path) -> str:
    """Return the version of a package in the environment that holds a folder of programs."""
    python = programs / "python"
    if not python.exists():
        return version(package)
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Train one tool, and print how well it segments the test volume."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the crop")
    parser.add_argument("--tool", choices=TOOLS, required=True)
    parser.add_argument(
        "--bin", type=Path, default=Path(sys.executable).parent, help="folder of the tool's programs"
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--length", type=int, help="steps of evenslice, or epochs of BiaPy")
    parser.add_argument(
        "--keep", type=Path, help="folder for everything that the tool writes; by default a temporary one"
    )
    options = parser.parse_args()
    options.data = options.data.resolve()  # the tools run in other folders
    if options.length and options.tool not in ("evenslice", "biapy"):
        parser.error(f"--length: {options.tool} finds by itself what fits into --minutes; leave it out")
    run, package = TOOLS[options.tool]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        labels, found = run(
            options.data, folder, Budget(options.minutes, options.length), options.bin.absolute()
        )
    truth = read(options.data, "test_mito")
    shared, either = np.sum((labels > 0) & (truth > 0)), np.sum((labels > 0) | (truth > 0))
    scores = {"iou": shared / either, "dice": 2 * shared / (shared + either)}
    found = {name: round(value, 1) if isinstance(value, float) else value for name, value in found.items()}
    print(
        json.dumps(
            {"tool": options.tool, "version": version_of(package, options.bin.absolute()), **scores, **found}
        )
    )


if __name__ == "__main__":
    main()
