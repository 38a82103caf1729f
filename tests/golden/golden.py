"""What the code answered before it was made light, on one real volume: digests and figures.

    python tests/golden/golden.py tests/golden/answers.json      write them anew; only to add some

The volume is a crop of the MRI template that nilearn holds, the network the packaged EfficientNet-Lite0 with a decoder of
fixed random weights.
"""

import hashlib
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import evenslice

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
AUDIT_KEYS = ("verdict", "pairs", "reliance", "answer_change", "mirror_mismatch", "population")
SCORES = ("dice", "iou")
FIGURES = ("dice", "answer_change", "mirror_mismatch")


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def summary(array):
    """Return what changes with every bit of an array, and what changes little with its last bits."""
    values = np.asarray(array, float)
    return {"digest": digest(array), "mean": values.mean(), "spread": values.std()}


def figures(plain):
    """Return all numbers and words of a part of a document."""
    return json.loads(json.dumps(plain, default=str))


def inputs(folder):
    """Write the crop of the template and of its gray matter into a folder."""
    data = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    for name, kind in (("image", "t1"), ("labels", "gm")):
        file = data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        voxels = np.asarray(evenslice.open_volume(file)[60:84, 60:156, 60:156])
        np.save(
            folder / f"{name}.npy", voxels if kind == "t1" else (voxels > 0.5 * voxels.max()).astype(np.uint8)
        )
    return folder / "image.npy", folder / "labels.npy"


def network(strategy="pretrained"):
    torch.manual_seed(0)
    model = evenslice.load_network(SPEC, "imagenet", strategy=strategy).model
    return model.eval()


def segmented(image, folder):
    labels = evenslice.segment(
        network("twin"), image, folder / "labels.tif", compute=evenslice.Compute(device="cpu", progress=False)
    )
    return summary(np.asarray(labels[:], np.uint8))


def audited(image):
    found = evenslice.audit(
        network(),
        image,
        sampling=evenslice.Sampling(max_windows=40),
        compute=evenslice.Compute(device="cpu", progress=False),
    )
    document = json.loads(found.to_json())
    return figures({key: document[key] for key in AUDIT_KEYS})


def evaluated(image, labels):
    found = evenslice.evaluate(
        network(), image, labels, compute=evenslice.Compute(device="cpu", progress=False)
    )
    document = json.loads(found.to_json())
    return figures({key: document[key] for key in SCORES})


def exported(folder):
    evenslice.export(network("twin"), folder / "onnx", to="onnx", slices=3, tile=(64, 64))
    window = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    session = evenslice.load_onnx(next((folder / "onnx").glob("*.onnx")))
    return summary(np.asarray(session(window)))


def training(folder):
    pair = {"image": "image.npy", "labels": "labels.npy"}
    return {
        "data": {"name": "template", "root": str(folder), "train": [{**pair, "slices": [0, 16]}]}
        | {"test": [{**pair, "slices": [18, 24]}], "validation_fraction": 0.2},
        "model": {"spec": SPEC, "weights": "imagenet", "slices": 3, "strategy": "twin"},
        "training": {"steps": 4, "batch": 2, "crop": [64, 64], "validate_every": 2, "monitor_every": 2}
        | {"dtype": "float32", "accelerator": "cpu", "workers": 0},
        "seed": 0,
    }


def trained(folder):
    evenslice.train(training(folder), out=folder / "run", progress=False)
    weights = load_file(next((folder / "run").glob("*.safetensors")))
    return {name: summary(weights[name].numpy()) for name in sorted(weights)[::40]}


def studied(folder):
    options = training(folder)
    data = options["data"]
    config = {
        "seeds": [0],
        "slices": 3,
        "training": {**options["training"], "monitor_every": 4, "validate_every": 4},
        "arms": [{"name": "pretrained", "strategy": "pretrained"}, {"name": "twin", "strategy": "twin"}],
        "architectures": [{"name": "net", "spec": SPEC, "weights": "imagenet"}],
        "datasets": [data],
        "audit": {"max_windows": 40},
    }
    evenslice.study(config, folder / "study")
    lines = (folder / "study" / "results.csv").read_text().splitlines()
    names = lines[0].split(",")
    wanted = [names.index(name) for name in FIGURES if name in names]
    return [[float(line.split(",")[at]) for at in wanted] for line in lines[1:]]


def answers():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, labels = inputs(folder)
        return {
            "segment": segmented(image, folder),
            "audit": audited(image),
            "evaluate": evaluated(image, labels),
            "export": exported(folder),
            "train": trained(folder),
            "study": studied(folder),
        }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(answers(), indent=1, sort_keys=True) + "\n")
