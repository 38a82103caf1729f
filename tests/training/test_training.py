"""Training runs on a task that is easily learned: bright blobs under noise."""

import json
import math
import os
import shutil
import sys
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_training
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage
from torch import nn

from evenslice import Scaling
from evenslice._core.config_files import load_config, to_yaml
from evenslice._core.errors import ConfigError, EvensliceError, ModelError, OutputError
from evenslice.cli import entry as cli
from evenslice.neutralizing.averages import without_mirror
from evenslice.neutralizing.network_files import load_network, save_network
from evenslice.training import callbacks, fitting
from evenslice.training.callbacks import KeepBest, ShowProgress
from evenslice.training.config import TrainConfig
from evenslice.training.lightning_module import TrainingModule
from evenslice.training.plan import describe_plan, find_machine, resolve
from evenslice.training.run_folder import RunFolder
from evenslice.training.run_network import find_reading, load_segmenter
from evenslice.training.tasks import TaskLoss, validation_score
from evenslice.training.trainer import train
from evenslice.volumes.labels import ClassIndex, LabelledVolume
from evenslice.volumes.opening import open_volume

NETWORKS = """
import os
import time
from contextlib import suppress

import torch
from torch import nn


class Slow(nn.Module):
    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return x


def in_parts():
    network = nn.Sequential()
    network.add_module("encoder", nn.Conv2d(3, 4, 3, padding=1))
    network.add_module("decoder", nn.Conv2d(4, 2, 1))
    return network


def small(classes=2, drop=0.2):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(drop),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1), Slow(),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.rand_like(weight) - 0.5)
        network[0].weight *= torch.tensor([1.0, 4.0, 0.2]).view(1, 3, 1, 1)
    return network


def plain():
    network = small()
    return nn.Sequential(network[0], *network[4:])


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.head = small(), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return {"out": self.main(x), "aux": self.head(x)}


def auxiliary():
    return Auxiliary()


class Diverging(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = small()

    def forward(self, x):
        return self.main(x) * (float("nan") if self.training else 1.0)


def diverging():
    return Diverging()


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = small()
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))

    def forward(self, x):
        scores = self.main(x)
        return scores + self.context(scores)


def pooled():
    return Pooled()


def frozen():
    return small().requires_grad_(False)


def classifier():
    return nn.Sequential(small(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def halving():
    return nn.Sequential(small(), nn.PixelUnshuffle(2), nn.Conv2d(8, 2, 1))


def deep():
    return nn.Sequential(small(), nn.PixelUnshuffle(64), nn.PixelShuffle(64))


class Faulty(nn.Sequential):
    def forward(self, x):
        return {"out": super().forward(x)}["in" if self.training or x.shape[-1] == 48 else "out"]


def faulty():
    return Faulty(small())
"""


def write_data(folder):
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((40, 64, 64)), (1, 3, 3))
    blobs /= blobs.std()
    image = np.clip(100 + 30 * blobs + 20 * rng.standard_normal(blobs.shape), 0, 255).astype(np.uint8)
    labels = (blobs > 0.8).astype(np.uint8)
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "three.npy", labels + (blobs > 1.6))
    np.save(folder / "few.npy", labels * (np.arange(40) >= 32)[:, None, None].astype(np.uint8))
    np.save(folder / "short.npy", labels[:30])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of data and of networks to import; the current one."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "trainable.py").write_text(NETWORKS)
    write_data(folder)
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    sys.path.remove(str(folder))
    os.chdir(before)


def make_config(folder, **changes):
    """Return a configuration of 60 steps, changed where names with double underscores say so."""
    source = {"image": "image.npy", "labels": "labels.npy"}
    values = {
        "data": {
            "name": "blobs",
            "root": str(folder),
            "validation_fraction": 0.1,
            "train": [{**source, "slices": [0, 30]}],
            "test": [{**source, "slices": [32, 40]}],
        },
        "model": {"spec": "trainable:small", "weights": "none", "slices": 3, "strategy": "uniform"},
        "training": {
            "steps": 60,
            "batch": 4,
            "crop": [32, 32],
            "learning_rate": 0.01,
            "validate_every": 20,
            "monitor_every": 20,
            "dtype": "float32",
            "accelerator": "cpu",
        },
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return TrainConfig.model_validate(values)


def weights(path):
    return load_file(RunFolder(path).network)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """A run from beginning to end."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(make_config(folder), run)
    return run


def test_training_learns_and_beats_chance(undisturbed):
    rows = RunFolder(undisturbed).read_metrics()
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    result = RunFolder(undisturbed).read_result()
    labels = np.load("labels.npy")[32:40]
    assert result["dice"]["mean"] > 0.8 > 3 * labels.mean()  # all foreground would have 2p / (1 + p)
    assert result["dice"]["per_class"][1] == result["dice"]["mean"]
    assert result["iou"]["mean"] == pytest.approx(result["dice"]["mean"] / (2 - result["dice"]["mean"]))


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_training_is_in_float32_whatever_the_default_dtype(folder, tmp_path, task):
    spec = {"segmentation": "small", "classification": "classifier"}[task]
    steps = {"training__steps": 4, "training__validate_every": 2, "training__monitor_every": 2}
    config = make_config(folder, model__spec=f"trainable:{spec}", training__task=task, **steps)
    assert train(config, tmp_path / "run", progress=False)["steps"] == 4
    assert {weight.dtype for weight in weights(tmp_path / "run").values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_in_any_mode_of_the_caller(folder, tmp_path, mode):
    steps = {"training__steps": 4, "training__validate_every": 2, "training__monitor_every": 2}
    train(make_config(folder, **steps), tmp_path / "wanted", progress=False)
    with mode():
        train(make_config(folder, **steps), tmp_path / "run", progress=False)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "wanted"))
    rows, wanted_rows = (RunFolder(tmp_path / name).read_metrics() for name in ("run", "wanted"))
    assert [row.get("asymmetry") for row in rows] == [row.get("asymmetry") for row in wanted_rows]


def test_the_folder_holds_everything_needed_to_run_again(folder, undisturbed):
    config = load_config(undisturbed / "config.yaml", TrainConfig)
    assert config == make_config(folder)
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["seed"] == 0
    assert result["steps"] == 60
    assert result["config"] == config.model_dump(mode="json")
    assert result["versions"]["torch"] == metadata.version("torch")
    assert result["validation"]["step"] == 60
    assert result["bias"]["directional_bias"] == RunFolder(undisturbed).read_metrics()[-1]["directional_bias"]
    assert [part["shape"] for part in result["data"]["test"]] == [[8, 64, 64]]
    assert result["data"]["train"][0]["image"].startswith("sha256:")
    assert {path.name for path in undisturbed.iterdir()} == {
        "config.yaml",
        "data.json",
        "log",
        "checkpoints",
        "network.safetensors",
        "result.json",
    }


def test_the_log_has_a_row_for_each_step_at_which_something_was_logged(undisturbed):
    rows = RunFolder(undisturbed).read_metrics()
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40, 50, 60]
    assert all({"validation_dice", "share_-1", "asymmetry", "loss"} <= rows[i].keys() for i in (2, 4, 6))
    assert rows[0].keys() == {
        "step",
        "validation_dice",
        "share_-1",
        "share_0",
        "share_1",
        "directional_bias",
        "asymmetry",
        "imbalance",
    }
    assert rows[1]["learning_rate"] > rows[-1]["learning_rate"] > 0


def test_the_last_network_comes_out_unless_the_best_in_validation_is_asked_for(folder, undisturbed, tmp_path):
    last = torch.load(RunFolder(undisturbed).last, weights_only=True)["state_dict"]
    assert same(weights(undisturbed), {key.removeprefix("network."): value for key, value in last.items()})
    # A validation that labels all backgrounds as objects falls while the network learns.
    np.save(folder / "inverted.npy", 1 - np.load("labels.npy"))
    validation = [{"image": "image.npy", "labels": "inverted.npy", "slices": [32, 40]}]
    config = make_config(folder, data__validation=validation, data__test=[], training__keep="best")
    result = train(config, tmp_path / "run")
    scores = {
        row["step"]: row["validation_dice"]
        for row in RunFolder(tmp_path / "run").read_metrics()
        if "validation_dice" in row
    }
    assert result["validation"] == {"step": 20, "dice": scores[20]}
    bias = {row["step"]: row.get("directional_bias") for row in RunFolder(tmp_path / "run").read_metrics()}
    assert result["bias"]["directional_bias"] == bias[20] != bias[60]
    assert scores[20] > scores[60] + 0.01
    assert same(weights(tmp_path / "run"), load_file(RunFolder(tmp_path / "run").best))
    assert not same(weights(tmp_path / "run"), weights(undisturbed))


def test_what_the_weights_lack_is_said_before_a_training(folder, tmp_path):
    class HeardError(Exception):
        pass

    def stop(lines):
        raise HeardError(lines[0])

    torch.save(
        {"encoder.weight": torch.ones(4, 3, 3, 3), "encoder.bias": torch.ones(4)}, tmp_path / "encoder.pt"
    )
    weights = str(tmp_path / "encoder.pt")
    config = make_config(folder, model__spec="trainable:in_parts", model__weights=weights)
    with pytest.raises(HeardError, match=r"^network: .*; it lacks decoder, which start random$"):
        train(config, tmp_path / "run", on_start=stop)


def test_one_seed_gives_one_network_whatever_was_drawn_before(folder, undisturbed, tmp_path):
    torch.manual_seed(77)
    state = torch.get_rng_state()
    train(make_config(folder), tmp_path / "again")
    assert same(weights(tmp_path / "again"), weights(undisturbed))
    assert torch.equal(torch.get_rng_state(), state)
    train(make_config(folder, seed=1), tmp_path / "other")
    assert not same(weights(tmp_path / "other"), weights(undisturbed))


def test_what_a_training_on_the_cpu_draws_concerns_no_gpu(folder, tmp_path, monkeypatch):
    """To ask for the state of a GPU starts it, which takes memory there."""

    class ReachedError(Exception):
        pass

    def reach(**_):
        raise ReachedError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: pytest.fail("a GPU was started"))
    monkeypatch.setattr(fitting, "Trainer", reach)
    with pytest.raises(ReachedError):
        train(make_config(folder, training__accelerator="cpu"), tmp_path / "run")


def test_a_run_that_was_killed_while_it_was_tested_is_not_trained_again(folder, undisturbed, tmp_path):
    run = tmp_path / "run"
    before = train(make_config(folder), run)
    network = RunFolder(run).network
    trained = network.stat().st_mtime_ns
    RunFolder(run).result.unlink()
    after = train(make_config(folder), run, resume=True)
    assert after["dice"] == before["dice"]
    assert after["seconds"] == before["seconds"]
    assert network.stat().st_mtime_ns == trained


def test_a_run_may_be_resumed_in_another_place(folder, undisturbed, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(undisturbed, run)
    RunFolder(run).network.unlink()
    RunFolder(run).result.unlink()
    data = shutil.copytree(folder, tmp_path / "data")
    moved = make_config(folder, data__root=str(data), training__stress=False)
    train(moved, run, resume=True)
    assert same(weights(run), weights(undisturbed))
    assert load_config(RunFolder(run).config, TrainConfig) == moved  # which the next resume starts from


def test_a_finished_run_is_not_taken_for_one_of_other_options_or_data(
    folder, undisturbed, tmp_path, monkeypatch
):
    run, data, said = RunFolder(tmp_path / "run"), tmp_path / "data", []
    shutil.copytree(undisturbed, run.path)
    with pytest.raises(ConfigError, match=r"training\.stress: false: the run .* tested with it; give"):
        train(make_config(folder, training__stress=False), run.path, resume=True)
    data.mkdir()
    moved = make_config(folder, data__root=str(data))
    result = run.read_result()
    assert train(moved, run.path, resume=True, on_start=said.append) == result  # of files that are gone
    assert said == [(f"note: the run in {run.path} is finished; nothing is trained or tested again",)]
    shutil.copy(folder / "image.npy", data)
    np.save(data / "labels.npy", 1 - np.load(folder / "labels.npy"))
    with pytest.raises(ConfigError, match="data: the files are not those on which the run in .* was trained"):
        train(moved, run.path, resume=True)
    run.result.unlink()
    monkeypatch.setattr(
        "evenslice.training.trainer.final_scores", lambda *_, **__: {"dice": None, "iou": None}
    )
    assert train(make_config(folder, training__stress=False), run.path, resume=True)["dice"] is None
    train(make_config(folder, training__stress=False), run.path, resume=True)


def test_a_run_is_not_overwritten_nor_resumed_as_another(folder, undisturbed):
    with pytest.raises(OutputError, match="already holds a run; resume it with resume"):
        train(make_config(folder), undisturbed)
    with pytest.raises(ConfigError, match=r"^training\.steps: changed since the run began, as"):
        train(make_config(folder, training__steps=80), undisturbed, resume=True)


def test_a_run_without_a_checkpoint_begins_anew_with_whatever_options(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    train(make_config(folder, training__steps=5), run.path)
    for path in (run.result, run.network, run.best, run.last):
        path.unlink()
    assert train(make_config(folder, training__steps=3), run.path, resume=True)["steps"] == 3
    assert load_config(run.config, TrainConfig).training.steps == 3


def test_what_another_run_left_is_not_taken_for_this_one(folder, undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    RunFolder(run).config.unlink()
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"result.json: belongs to a run whose config.yaml is missing"):
            train(make_config(folder), run, resume=resume)


def test_a_run_does_not_go_on_with_other_data(folder, undisturbed, tmp_path):
    run, data = RunFolder(tmp_path / "run"), tmp_path / "data"
    shutil.copytree(undisturbed, run.path)
    run.result.unlink()
    data.mkdir()
    shutil.copy(folder / "image.npy", data)
    np.save(data / "labels.npy", 1 - np.load(folder / "labels.npy"))
    with pytest.raises(ConfigError, match=r"data.train: image.npy\[0:26\]: the files are not those with"):
        train(make_config(folder, data__root=str(data)), run.path, resume=True)


@pytest.mark.parametrize("out", ["", "s3://bucket/run"])
def test_a_run_has_a_folder_of_this_machine(folder, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"^the path is empty|is an address"):
        train(make_config(folder), out)
    assert not list(tmp_path.iterdir())


def test_resuming_where_nothing_is_begins(folder, tmp_path):
    result = train(make_config(folder, training__steps=3), tmp_path / "run", resume=True)
    assert result["steps"] == 3


def test_steps_need_not_be_a_multiple_of_those_between_validations(folder, tmp_path):
    result = train(make_config(folder, training__steps=25), tmp_path / "run")
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert result["steps"] == 25
    assert [row["step"] for row in rows if "validation_dice" in row] == [0, 20, 25]
    assert [row["step"] for row in rows if "asymmetry" in row] == [0, 20, 25]
    assert result["bias"]["asymmetry"] == rows[-1]["asymmetry"]


def test_no_bias_is_told_of_a_network_that_was_kept_where_none_was_measured(folder, tmp_path):
    np.save(tmp_path / "inverted.npy", 1 - np.load("labels.npy"))
    validation = [{"image": "image.npy", "labels": str(tmp_path / "inverted.npy"), "slices": [32, 40]}]
    changes = {"training__keep": "best", "training__monitor_every": 30}
    config = make_config(folder, data__validation=validation, data__test=[], **changes)
    result = train(config, tmp_path / "run")
    assert result["validation"]["step"] == 20
    assert result["bias"] is None


def test_training_stops_where_validation_gets_no_better_and_stays_stopped(folder, tmp_path):
    run = tmp_path / "run"
    config = make_config(
        folder, training__learning_rate=1e-12, training__validate_every=5, training__patience=2
    )
    result = train(config, run)
    scores = [
        row["validation_dice"]
        for row in RunFolder(run).read_metrics()
        if row["step"] > 0 and "validation_dice" in row
    ]
    assert result["steps"] == 5 * (np.argmax(scores) + 1) + 10 < 60
    assert result["validation"]["step"] == result["steps"]  # of scores that tie, the last
    RunFolder(run).result.unlink()
    RunFolder(run).network.unlink()  # as if it had been killed right after the last step
    assert train(config, run, resume=True)["steps"] == result["steps"]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_best_network_that_is_lost_is_not_replaced_by_the_last(folder, tmp_path, keep):
    run, config = RunFolder(tmp_path / "run"), make_config(folder, training__keep=keep)
    train(config, run.path)
    for path in (run.best, run.network, run.result):
        path.unlink()
    if keep == "last":
        train(config, run.path, resume=True)
        return
    with pytest.raises(OutputError, match=r"best\.safetensors: is lost .* remove .*last\.ckpt to train anew"):
        train(config, run.path, resume=True)
    run.last.unlink()
    train(config, run.path, resume=True)
    assert run.network.read_bytes() == run.best.read_bytes()


def test_a_damaged_network_is_written_again_from_its_checkpoint(folder, undisturbed, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(undisturbed, run.path)
    run.result.unlink()
    run.network.write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"network\.safetensors: .* delete it and resume the run, which"):
        train(make_config(folder), run.path, resume=True)
    run.network.unlink()
    train(make_config(folder), run.path, resume=True)
    assert same(weights(run.path), weights(undisturbed))


def test_values_of_labels_that_no_segmentation_can_hold_are_refused_before_a_training(folder, tmp_path):
    np.save(tmp_path / "labels.npy", np.load(folder / "labels.npy").astype(int) - 1)
    pair = {"image": "image.npy", "labels": str(tmp_path / "labels.npy")}
    changes = {"data__train": [pair], "data__test": [], "data__label_values": [-1, 0]}
    with pytest.raises(ConfigError, match=r"^data\.label_values"):
        train(make_config(folder, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_learn_from_one_crop_is_refused_before_anything_is_written(folder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ModelError, match=r"trainable:pooled: cannot be trained on 1 of these crops at once"):
        train(make_config(folder, model__spec="trainable:pooled", training__batch=1), run)
    assert not run.exists()
    config = make_config(folder, model__spec="trainable:pooled", training__steps=2)
    assert train(config, run)["steps"] == 2


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_network_that_rejects_planes_is_refused_before_anything_is_written(folder, tmp_path, split):
    for name in ("image", "labels"):
        np.save(tmp_path / f"{name}.npy", np.pad(np.load(f"{name}.npy")[:8], ((0, 0), (0, 32), (0, 32))))
    wide = [{name: str(tmp_path / f"{name}.npy") for name in ("image", "labels")}]
    changes = {"model__spec": "trainable:deep", "training__crop": [64, 64], "training__steps": 2}
    with pytest.raises(ModelError, match=r"trainable:deep: rejects the planes of .*image\.npy, 96 x 96"):
        train(make_config(folder, **changes, **{f"data__{split}": wide}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(make_config(folder, **changes), tmp_path / "run")


@pytest.mark.slow
def test_two_processes_train_one_network(folder, tmp_path):
    options = {"model__spec": "trainable:plain", "training__steps": 20, "training__learning_rate": 0.002}
    two = make_config(folder, training__devices=2, **options).model_dump(mode="json")
    process = tiny_training.start_anew(folder, "train", two, tmp_path / "two", "--json")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    said = {line.partition(":")[0] for line in errors.splitlines()}
    assumed = {"network", "slices", "scaling", "data", "training", "test"}
    assert assumed <= said <= {*assumed, "train two"}  # a short training needs no line of progress
    result = json.loads(out)
    assert result == RunFolder(tmp_path / "two").read_result()
    assert result["machine"]["devices"] == 2
    assert [row["step"] for row in RunFolder(tmp_path / "two").read_metrics()] == [0, 10, 20]

    def distance(run):
        return sum((tensor - found[key]).square().sum().item() for key, tensor in weights(run).items())

    train(make_config(folder, **options), tmp_path / "one")
    train(make_config(folder, seed=1, **options), tmp_path / "other")
    found = weights(tmp_path / "two")
    # The Dice loss of a batch is not the mean of those of its halves: nearly the same, not quite.
    assert distance(tmp_path / "one") < 0.2 * distance(tmp_path / "other")


@pytest.mark.parametrize(("strategy", "tie"), [("uniform", "uniform"), ("mirror", "mirror")])
def test_a_tied_network_is_as_symmetric_after_training_as_before(folder, tmp_path, strategy, tie):
    config = make_config(folder, model__strategy=strategy, model__tie=tie)
    result = train(config, tmp_path / "tied")
    assert result["record"]["tie"] == tie
    assert abs(result["bias"]["directional_bias"]) < 1e-5
    network, _, _ = load_network("trainable:small", str(RunFolder(tmp_path / "tied").network))
    window = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(window), network(window.flip(1)))


@pytest.mark.parametrize(("strategy", "at"), [("pretrained", "output"), ("twin", None)])
def test_a_symmetrized_network_is_symmetric_after_training(folder, tmp_path, strategy, at):
    config = make_config(folder, model__strategy=strategy, model__symmetrize=at)
    result = train(config, tmp_path / "fair")
    assert result["record"]["symmetrized"]
    assert abs(result["bias"]["directional_bias"]) < 1e-5
    network, record, _ = load_network("trainable:small", str(RunFolder(tmp_path / "fair").network))
    assert list(record.symmetrized) == result["record"]["symmetrized"]
    window = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(window), network(window.flip(1)))
        free = load_network("trainable:small", str(RunFolder(tmp_path / "fair").network)).model
        with without_mirror(free):
            assert not torch.equal(free(window), free(window.flip(1)))  # learned as freely as any other


@pytest.mark.slow
def test_two_processes_train_a_symmetrized_network(folder, tmp_path):
    options = {"model__spec": "trainable:plain", "training__steps": 10, "model__symmetrize": "output"}
    two = make_config(folder, training__devices=2, **options).model_dump(mode="json")
    process = tiny_training.start_anew(folder, "train", two, tmp_path / "two")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    network, _, _ = load_network("trainable:plain", str(RunFolder(tmp_path / "two").network))
    window = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(window), network(window.flip(1)))


def test_a_neutralized_file_is_trained_as_it_is(folder, tmp_path):
    network, record, source = load_network("trainable:small", "none", strategy="center")
    save_network(network, tmp_path / "fair.safetensors", record=record, source=source)
    model = {"spec": "trainable:small", "weights": str(tmp_path / "fair.safetensors")}
    train(make_config(folder, model=model, training__steps=2), tmp_path / "run")
    _, record, _ = load_network("trainable:small", str(RunFolder(tmp_path / "run").network))
    assert record.strategy == "center"


@pytest.mark.parametrize("loss", ["dice_ce", "dice_bce"])
def test_more_classes_than_two(folder, tmp_path, loss):
    pair = {"image": "image.npy", "labels": "three.npy"}
    config = make_config(
        folder,
        data__train=[{**pair, "slices": [0, 30]}],
        data__test=[{**pair, "slices": [32, 40]}],
        data__classes=3,
        model__spec="trainable:small?classes=3",
        training__loss=loss,
        training__steps=240,
    )
    result = train(config, tmp_path / "run")
    assert len(result["dice"]["per_class"]) == 3
    assert result["dice"]["mean"] > 0.4


@pytest.mark.parametrize(("loss", "classes"), [("dice_bce", 3), ("dice_bce", 1), ("dice_ce", 3)])
def test_a_sigmoid_for_each_class_is_no_softmax(folder, tmp_path, loss, classes):
    spec, run = f"trainable:small?classes={classes}", tmp_path / "run"
    labels = {"image": "image.npy", "labels": "three.npy" if classes == 3 else "labels.npy"}
    options = {
        "data__train": [labels],
        "data__test": [],
        "data__validation_fraction": 0,
        "training__loss": loss,
    }
    train(
        make_config(folder, data__classes=max(classes, 2), model__spec=spec, training__steps=1, **options),
        run,
    )
    segmenter, image = load_segmenter(run, spec), open_volume(np.load("image.npy")[:4])
    stated = find_reading(None, spec, str(run / "network.safetensors"))  # for an audit of the file alone
    assert segmenter.reading.overlapping == stated.overlapping
    assert (
        stated.overlapping
        == {("dice_bce", 3): True, ("dice_bce", 1): None, ("dice_ce", 3): False}[loss, classes]
    )
    segmenter.segment(image, tmp_path / "labels.npy")
    if (loss, classes) == ("dice_bce", 3):
        with pytest.raises(ConfigError, match="classes that overlap have a sigmoid each .* train with"):
            segmenter.segment(image, tmp_path / "probabilities.npy", probabilities=True)
    else:
        segmenter.segment(image, tmp_path / "probabilities.npy", probabilities=True)


def test_what_the_logits_do_not_depend_on_is_left_as_it_was(folder, tmp_path):
    train(make_config(folder, model__spec="trainable:auxiliary", training__steps=5), tmp_path / "run")
    import trainable

    torch.manual_seed(0)
    first = trainable.auxiliary().state_dict()
    trained = weights(tmp_path / "run")
    assert not torch.equal(trained["main.6.weight"], first["main.6.weight"])
    last = torch.load(RunFolder(tmp_path / "run").last, weights_only=True)
    moved = len(last["optimizer_states"][0]["state"])
    assert moved == sum(1 for name, _ in trainable.auxiliary().named_parameters() if "head" not in name)


def test_logs_for_tensorboard_and_mlflow(folder, tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    run = tmp_path / "run"
    config = make_config(folder, training__tensorboard=True, training__mlflow=True, training__steps=20)
    train(config, run)
    RunFolder(run).network.unlink()
    RunFolder(run).result.unlink()
    train(config, run, resume=True)
    assert list((run / "log" / "tensorboard").glob("events*"))
    client = MlflowClient(f"sqlite:///{run}/log/mlflow.db")
    experiment = client.get_experiment_by_name("blobs")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["validation_dice"] > 0
    assert {path.name for path in folder.iterdir()} & {"mlruns", "mlartifacts", "lightning_logs"} == set()


PAIR = {"image": "image.npy", "labels": "labels.npy"}
BAD = {
    "missing file": ({"data__train": [{**PAIR, "image": "no.npy"}]}, r"data.train\[0\].image: .*no.npy"),
    "other shape": ({"data__train": [{**PAIR, "labels": "short.npy"}]}, r"data.train\[0\].*\(30, 64, 64\)"),
    "label outside": ({"data__train": [{**PAIR, "labels": "three.npy"}], "data__test": []}, "label value 2"),
    "overlap": ({"data__test": [{**PAIR, "slices": [20, 40]}]}, "overlap in slices 20 to 29"),
    "no guard": ({"data__test": [{**PAIR, "slices": [30, 40]}]}, "leave at least 1"),
    "short split": ({"data__test": [{**PAIR, "slices": [38, 40]}]}, "2 slices; a window of 3 needs 3"),
    "empty class": (
        {"data__train": [{**PAIR, "labels": "few.npy", "slices": [0, 30]}], "data__test": []},
        "no voxel of class 1",
    ),
    "softmax": (
        {"model__spec": "smp:Unet/tu-test_resnet?activation=softmax2d"},
        r"returns probabilities, which add up to 1",
    ),
    "channels": ({"model__spec": "trainable:small?classes=5"}, r"returns 5 channels; 2 classes .* need 2"),
    "no map": ({"model__spec": "trainable:classifier"}, r"\(1, 2\)"),
    "crop": ({"model__spec": "trainable:halving", "training__crop": [32, 33]}, "training.crop"),
    "no network": ({"model__spec": "trainable:smal"}, "^model: trainable:smal: .*did you mean 'small'"),
    "reserved argument": (
        {"model__spec": "smp:Unet/resnet18?classes=3"},
        r"^model: smp:.*: model\.weights and data\.classes decide",
    ),
    "no cut": ({"model__symmetrize": "nowhere"}, "^model.symmetrize: nowhere|no module 'nowhere'"),
    "nothing to train": ({"model__spec": "trainable:frozen"}, "no parameter that requires a gradient"),
    "own error": ({"model__spec": "trainable:faulty"}, "fails in its forward pass"),
    "patience": ({"data__validation_fraction": 0, "training__patience": 3}, r"^training\.patience: 3"),
    "best": ({"data__validation_fraction": 0, "training__keep": "best"}, r"^training\.keep: best"),
    "no GPU": ({"training__accelerator": "gpu"}, r"^training\.accelerator: gpu: is not available here"),
    "float16 on a CPU": ({"training__dtype": "float16"}, r"^training\.dtype: float16: is for GPUs"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_before_anything_is_written(folder, tmp_path, case):
    changes, message = BAD[case]
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EvensliceError, match=message) as error:
        train(make_config(folder, **changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_longer_finite_ends_the_run(folder, tmp_path):
    with pytest.raises(ModelError, match=r"the loss is nan at step 10; lower training.learning_rate"):
        train(make_config(folder, model__spec="trainable:diverging"), tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "run out .*training.crop, or set training.dtype"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "run out .*training.crop"),
        (torch.AcceleratorError("CUDA error: no kernel image is available"), "^training.accelerator: cpu"),
    ],
)
def test_what_a_device_refuses_is_one_line(folder, tmp_path, monkeypatch, error, message):
    def refuse(*_):
        raise error

    monkeypatch.setattr(TrainingModule, "training_step", refuse)
    with pytest.raises(EvensliceError, match=message):
        train(make_config(folder), tmp_path / "run", progress=False)


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run the command line within this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def test_the_command_shows_what_came_out(folder, undisturbed, run):
    code, out, err = run("train", undisturbed / "config.yaml", "--out", undisturbed, "--resume")
    assert code == 0
    assert err == f"note: the run in {undisturbed} is finished; nothing is trained or tested again\n"
    assert f"next: evenslice segment --run {undisturbed}" in " ".join(out.split())
    assert "test Dice" in out
    assert "60 in " in out


@pytest.mark.parametrize(("options", "announced"), [({}, True), ({"training__stress": False}, False)])
def test_the_windows_of_the_stress_test_are_announced(folder, options, announced):
    config = make_config(folder, **options)
    plan = resolve(config, find_machine(config.training))
    more = 13 * min(60, sum(len(part.volume) for part in plan.data.test))  # as is each way with three slices
    lines = describe_plan(plan)
    assert any(line.startswith(f"test: with {more} more windows") for line in lines) == announced


def test_a_gap_in_a_folder_of_slices_is_told_before_a_training(folder, tmp_path):
    slices = tmp_path / "slices"
    slices.mkdir()
    for z, pixels in enumerate(np.load(folder / "image.npy")):
        Image.fromarray(pixels).save(slices / f"z{z + (z > 19)}.png")
    parts = {
        f"data__{part}": [{"image": str(slices), "labels": str(folder / "labels.npy"), "slices": of}]
        for part, of in (("train", [0, 30]), ("test", [32, 40]))
    }
    config = make_config(folder, **parts)
    lines = describe_plan(resolve(config, find_machine(config.training)))
    said = f"{slices}: missing slices 20, by the file names; those beside a gap count as adjacent"
    assert lines.count(said) == 1


@pytest.mark.parametrize(("resumed", "notes"), [("--resume", 1), ("--json", 0)])
def test_the_command_says_that_there_is_nothing_to_resume(folder, run, tmp_path, monkeypatch, resumed, notes):
    from evenslice import training

    monkeypatch.setattr(training, "train", lambda *_, on_start, **__: on_start(("network: any",)))
    (tmp_path / "run.yaml").write_text(to_yaml(make_config(folder)))
    code, _, err = run("train", tmp_path / "run.yaml", "--out", tmp_path / "run3", resumed)
    note = f"note: nothing to resume in {tmp_path / 'run3'}; starting"
    assert (code, err.splitlines()) == (0, [*[note] * notes, "network: any"])


def test_a_run_is_resumed_as_it_was_configured(undisturbed, run, tmp_path, monkeypatch):
    from evenslice import training

    seen = []
    monkeypatch.setattr(
        training, "train", lambda config, out, **options: seen.append((config, out, options["resume"]))
    )
    code, _, err = run("train", "--out", undisturbed, "--resume")
    assert code == 0, err
    assert seen == [(load_config(undisturbed / "config.yaml", TrainConfig), undisturbed, True)]
    code, _, err = run("train", "--out", tmp_path / "none", "--resume")
    assert (code, err) == (
        2,
        f"error: {tmp_path / 'none'}: holds no run to resume; to start one, give its CONFIG.yaml\n",
    )


def test_a_seed_on_the_command_line_takes_precedence(folder, run, tmp_path, monkeypatch):
    from evenslice import training

    seen = []
    monkeypatch.setattr(training, "train", lambda config, *_, **__: seen.append(config))
    (tmp_path / "run.yaml").write_text(to_yaml(make_config(folder)))
    for seed, options in ((make_config(folder).seed, []), (7, ["--seed", "7"]), (0, ["--seed", "0"])):
        code, _, err = run("train", tmp_path / "run.yaml", "--out", tmp_path / "run", *options)
        assert code == 0, err
        assert seen.pop() == make_config(folder).model_copy(update={"seed": seed})
    code, out, _ = run("train", tmp_path / "run.yaml", "--print-config", "--seed", "7")
    assert code == 0
    assert yaml.safe_load(out)["seed"] == 7
    code, _, err = run("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--seed", "-1")
    assert (code, err) == (2, "error: --seed -1: is not between 0 and 2**32 - 1\n")


def test_the_last_line_of_progress_shows_the_validation_of_the_final_network(monkeypatch):
    notes = []
    monkeypatch.setattr(
        callbacks, "progress_bar", lambda *_, **__: nullcontext(lambda _, note: notes.append(note))
    )
    best = KeepBest(lambda _: 0.2, lambda _: None)
    shown = ShowProgress("train", 2, show=None, monitor=None, best=best)
    at = SimpleNamespace(is_global_zero=True, global_step=0)
    best.latest = 0.039
    shown.on_train_start(at, None)
    for at.global_step in (1, 2):
        shown.on_train_batch_end(at, None, {"loss": torch.tensor(0.5)}, None, 0)
    best.latest = 0.2  # at the end of the epoch
    shown.on_fit_end(at, None)
    assert notes == ["loss 0.500, validation Dice 0.039", "loss 0.500, validation Dice 0.200"]


def test_the_loss_is_dice_plus_cross_entropy():
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    chances = scores.softmax(1)
    dice = []
    for number in (1, 2):
        chance, truth = chances[:, number], labels == number
        dice.append(1 - 2 * (chance * truth).sum() / (chance.sum() + truth.sum()))
    expected = torch.stack(dice).mean() + nn.functional.cross_entropy(scores, labels)
    assert TaskLoss("dice_ce", 3)(scores, labels).item() == pytest.approx(expected.item(), rel=1e-4)

    score, label = scores[:, :1], labels > 1
    chance = score.sigmoid()[:, 0]
    expected = 1 - 2 * (chance * label).sum() / (chance.sum() + label.sum())
    expected += nn.functional.binary_cross_entropy_with_logits(score[:, 0], label.float())
    assert TaskLoss("dice_bce", 2)(score, label.long()).item() == pytest.approx(expected.item(), rel=1e-4)


def test_biases_and_normalisations_do_not_decay(folder):
    import trainable

    config = make_config(folder).training
    module = TrainingModule(trainable.small(), config, classes=2)
    decayed, free = module.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in (decayed, free)] == [config.weight_decay, 0]
    assert {parameter.ndim for parameter in decayed["params"]} == {4}
    assert {parameter.ndim for parameter in free["params"]} == {1}


class FakeTrainer:
    """As much of a trainer as validation needs."""

    is_global_zero, loggers, should_stop, global_step = True, (), False, 0

    class strategy:  # noqa: N801
        @staticmethod
        def broadcast(value):
            return value


def test_the_best_is_kept_and_nan_is_never_best():
    scores, kept = iter([0.9, math.nan, 0.5, 0.4, math.nan, 0.6, 0.5995, 0.59]), []
    module = nn.ModuleDict({"network": nn.Identity()})
    keep = KeepBest(lambda _: next(scores), lambda _: kept.append(len(stops)), patience=3)
    trainer, stops = FakeTrainer(), []
    keep.on_train_start(trainer, module)  # the score before the first step is no candidate
    for _ in range(7):
        keep.on_train_epoch_end(trainer, module)
        stops.append(trainer.should_stop)
    assert kept == [1, 4, 5]  # the sixth is as good as the fifth but for noise, the seventh is not
    assert stops == [False] * 7
    assert keep.state_dict() == {"best": 0.6, "worse": 2, "due": False}


def test_one_false_pixel_in_a_slice_without_the_organ_costs_the_validation_little(folder):
    image = np.zeros((4, 32, 32), np.float32)
    image[:, :16] = 1
    spotted = np.zeros_like(image)
    spotted[2, 5, 5] = 1
    parts = []
    for name, voxels, labels in (("organ", image, image), ("none", spotted, 0 * image)):
        index = ClassIndex(np.bincount(labels.astype(int).ravel(), minlength=2), ())
        labelled = open_volume(voxels), open_volume(labels.astype(np.int64))
        parts.append(LabelledVolume(name, *labelled, Scaling(0, 1), index))
    network = nn.Conv2d(3, 1, 1).requires_grad_(False)
    network.weight.copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
    network.bias.fill_(-0.5)
    hits = 4 * 16 * 32
    assert validation_score(network, parts, make_config(folder)) == pytest.approx(2 * hits / (2 * hits + 1))
