"""Training runs on a task that is easily learned: bright blobs under noise."""

import json
import math
import shutil
from contextlib import nullcontext
from importlib import metadata
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

import evenslice
from evenslice import ConfigError, EvensliceError, ModelError, OutputError, TrainConfig, load_config, train
from evenslice._core import to_yaml
from evenslice.networks import read_metadata
from evenslice.neutralizing.averages import without_mirror
from evenslice.training import RunFolder, lightning_parts, load_segmenter, trainer
from evenslice.training.lightning_parts import CsvLog, KeepBest, ShowProgress, TrainingModule
from evenslice.training.plan import describe_plan, resolve
from evenslice.training.tasks import TaskLoss, validation_score
from evenslice.volumes import ClassIndex, LabelledVolume, Scaling

NETWORKS = """
import torch
from torch import nn


def in_parts():
    network = nn.Sequential()
    network.add_module("encoder", nn.Conv2d(3, 4, 3, padding=1))
    network.add_module("decoder", nn.Conv2d(4, 2, 1))
    return network


def small(classes=2, drop=0.2):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(drop),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1),
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


class Wrapped(nn.Module):
    def __init__(self, answer, **parts):
        super().__init__()
        self.main, self.answer = small(), answer
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.answer(self, x, self.main(x))


def auxiliary():
    return Wrapped(lambda self, x, scores: {"out": scores, "aux": self.head(x)}, head=nn.Conv2d(3, 2, 1))


def diverging():
    return Wrapped(lambda self, x, scores: scores * (float("nan") if self.training else 1.0))


def pooled():
    context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    return Wrapped(lambda self, x, scores: scores + self.context(scores), context=context)


def faulty():
    return Wrapped(lambda self, x, scores: {"out": scores}["in"])


def frozen():
    return small().requires_grad_(False)


def classifier():
    return nn.Sequential(small(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def halving():
    return nn.Sequential(small(), nn.PixelUnshuffle(2), nn.Conv2d(8, 2, 1))


def deep():
    return nn.Sequential(small(), nn.PixelUnshuffle(64), nn.PixelShuffle(64))
"""


def write_data(folder):
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((40, 64, 64)), (1, 3, 3))
    blobs /= blobs.std()
    image = np.clip(100 + 30 * blobs + 20 * rng.standard_normal(blobs.shape), 0, 255).astype(np.uint8)
    labels = (blobs > 0.8).astype(np.uint8)
    arrays = {
        "image": image,
        "labels": labels,
        "inverted": 1 - labels,
        "three": labels + (blobs > 1.6),
        "wide_image": np.pad(image[:8], ((0, 0), (0, 32), (0, 32))),
        "wide_labels": np.pad(labels[:8], ((0, 0), (0, 32), (0, 32))),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of data and of networks to import; the current one."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "trainable.py").write_text(NETWORKS)
    write_data(folder)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        torch.set_num_threads(1)
        yield folder
    torch.set_num_threads(threads)


PAIR = {"image": "image.npy", "labels": "labels.npy"}


def make_config(folder, **changes):
    """Return a configuration of 60 steps, changed where names with double underscores say so."""
    values = {
        "data": {
            "name": "blobs",
            "root": str(folder),
            "validation_fraction": 0.1,
            "train": [{**PAIR, "slices": [0, 30]}],
            "test": [{**PAIR, "slices": [32, 40]}],
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
            "stress": False,
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
    train(make_config(folder, training__stress=True), run)
    return run


@pytest.fixture
def copied(tiny_run, tmp_path, one_thread):
    """A copy of the run that tests share, and its configuration."""
    run = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "copied"))
    return run, TrainConfig.model_validate(tiny_run.options)


@pytest.mark.slow
def test_training_learns_and_beats_chance(undisturbed):
    rows, result = RunFolder(undisturbed).read_metrics(), RunFolder(undisturbed).read_result()
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    labels = np.load("labels.npy")[32:40]
    assert result["dice"]["mean"] > 0.8 > 3 * labels.mean()  # all foreground would have 2p / (1 + p)
    assert result["dice"]["per_class"][1] == result["dice"]["mean"]
    assert result["iou"]["mean"] == pytest.approx(result["dice"]["mean"] / (2 - result["dice"]["mean"]))
    assert result["stress"]["losses"]


QUICK = {"training__steps": 4, "training__validate_every": 2, "training__monitor_every": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize(
    ("spec", "task", "mode"),
    [
        ("small", "segmentation", torch.no_grad),
        ("small", "segmentation", torch.inference_mode),
        ("classifier", "classification", torch.enable_grad),
    ],
)
def test_training_is_in_float32_whatever_the_default_dtype_and_mode_of_the_caller(
    folder, tmp_path, spec, task, mode
):
    config = make_config(folder, model__spec=f"trainable:{spec}", training__task=task, **QUICK)
    with mode():
        assert train(config, tmp_path / "run", progress=False)["steps"] == 4
    assert {weight.dtype for weight in weights(tmp_path / "run").values()} == {torch.float32, torch.int64}
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert [row["step"] for row in rows if "asymmetry" in row] == [0, 2, 4]


def test_the_folder_holds_everything_needed_to_run_again(folder, undisturbed):
    config = load_config(undisturbed / "config.yaml", TrainConfig)
    assert config == make_config(folder, training__stress=True)
    result = json.loads((undisturbed / "result.json").read_text())
    assert (result["seed"], result["steps"], result["validation"]["step"]) == (0, 60, 60)
    assert result["config"] == config.model_dump(mode="json")
    assert result["versions"]["torch"] == metadata.version("torch")
    assert result["bias"]["directional_bias"] == RunFolder(undisturbed).read_metrics()[-1]["directional_bias"]
    assert [part["shape"] for part in result["data"]["test"]] == [[8, 64, 64]]
    assert result["data"]["train"][0]["image"].startswith("sha256:")
    assert {path.name for path in undisturbed.iterdir()} == {
        *("config.yaml", "data.json", "log", "checkpoints", "network.safetensors", "result.json")
    }


def test_the_log_has_a_row_for_each_step_at_which_something_was_logged(undisturbed):
    rows = RunFolder(undisturbed).read_metrics()
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40, 50, 60]
    assert all({"validation_dice", "share_-1", "asymmetry", "loss"} <= rows[i].keys() for i in (2, 4, 6))
    measured = {"share_-1", "share_0", "share_1", "directional_bias", "asymmetry", "imbalance"}
    assert rows[0].keys() == {"step", "validation_dice"} | measured
    assert rows[1]["learning_rate"] > rows[-1]["learning_rate"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("every", [20, 30])
def test_the_last_network_comes_out_unless_the_best_in_validation_is_asked_for(
    folder, undisturbed, tmp_path, every
):
    last = torch.load(RunFolder(undisturbed).last, weights_only=True)["state_dict"]
    assert same(weights(undisturbed), {key.removeprefix("network."): value for key, value in last.items()})
    # A validation that labels all backgrounds as objects falls while the network learns.
    validation = [{"image": "image.npy", "labels": "inverted.npy", "slices": [32, 40]}]
    options = {"training__keep": "best", "training__monitor_every": every}
    run = RunFolder(tmp_path / "run")
    result = train(make_config(folder, data__validation=validation, data__test=[], **options), run.path)
    rows = {row["step"]: row for row in run.read_metrics()}
    assert result["validation"] == {"step": 20, "dice": rows[20]["validation_dice"]}
    assert rows[20]["validation_dice"] > rows[60]["validation_dice"] + 0.01
    if every == 20:
        assert result["bias"]["directional_bias"] == rows[20]["directional_bias"]
    else:
        assert result["bias"] is None  # it was not measured there
    assert same(weights(run.path), load_file(run.best))
    assert not same(weights(run.path), weights(undisturbed))


def test_what_the_weights_lack_is_said_before_a_training(folder, tmp_path):
    encoder = {"encoder.weight": torch.ones(4, 3, 3, 3), "encoder.bias": torch.ones(4)}
    torch.save(encoder, tmp_path / "encoder.pt")
    config = make_config(
        folder, model__spec="trainable:in_parts", model__weights=str(tmp_path / "encoder.pt")
    )
    line, *_ = describe_plan(resolve(config))
    assert line.startswith("network: ")
    assert line.endswith("; it lacks decoder, which start random")


@pytest.mark.slow
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
    monkeypatch.setattr(trainer, "Trainer", reach)
    with pytest.raises(ReachedError):
        train(make_config(folder, training__accelerator="cpu"), tmp_path / "run")


# Runs that go on


def test_a_run_that_was_killed_while_it_was_tested_is_not_trained_again(copied):
    run, config = copied
    before, trained = run.read_result(), run.network.stat().st_mtime_ns
    run.result.unlink()
    after = train(config, run.path, resume=True)
    assert (after["dice"], after["seconds"]) == (before["dice"], before["seconds"])
    assert run.network.stat().st_mtime_ns == trained


def test_a_run_may_be_resumed_in_another_place(copied, tiny_run, tmp_path):
    run, config = copied
    run.network.unlink()
    run.result.unlink()
    data = shutil.copytree(tiny_run.folder, tmp_path / "data")
    moved = config.model_copy(update={"data": config.data.model_copy(update={"root": data})})
    train(moved, run.path, resume=True)
    assert same(weights(run.path), weights(tiny_run.path))
    assert load_config(run.config, TrainConfig) == moved  # which the next resume starts from


def with_options(run, **training):
    """Return the configuration of a run with other options of its training."""
    options = {**run.options, "training": {**run.options["training"], **training}}
    return TrainConfig.model_validate(options)


def test_a_finished_run_is_not_taken_for_one_of_other_options_or_data(
    copied, tiny_run, tmp_path, monkeypatch
):
    (run, config), data, said = copied, tmp_path / "data", []
    with pytest.raises(ConfigError, match=r"training\.stress: true: the run .* tested without it; give"):
        train(with_options(tiny_run, stress=True), run.path, resume=True)
    data.mkdir()
    moved = config.model_copy(update={"data": config.data.model_copy(update={"root": data})})
    assert (
        train(moved, run.path, resume=True, on_start=said.append) == run.read_result()
    )  # the files are gone
    assert said == [(f"note: the run in {run.path} is finished; nothing is trained or tested again",)]
    shutil.copy(tiny_run.folder / "image.npy", data)
    np.save(data / "labels.npy", 1 - np.load(tiny_run.folder / "labels.npy"))
    with pytest.raises(ConfigError, match="data: the files are not those on which the run in .* was trained"):
        train(moved, run.path, resume=True)
    run.result.unlink()
    with pytest.raises(ConfigError, match=r"data.train: image.npy\[0:8\]: the files are not those with"):
        train(moved, run.path, resume=True)
    monkeypatch.setattr(trainer, "final_scores", lambda *_, **__: {"dice": None, "iou": None})
    assert train(with_options(tiny_run, stress=True), run.path, resume=True)["dice"] is None


def test_a_run_is_not_overwritten_nor_resumed_as_another(copied, tiny_run):
    run, config = copied
    with pytest.raises(OutputError, match="already holds a run; resume it with resume"):
        train(config, run.path)
    with pytest.raises(ConfigError, match=r"^training\.learning_rate: changed since the run began, as"):
        train(with_options(tiny_run, learning_rate=0.02), run.path, resume=True)
    run.config.unlink()
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"result.json: belongs to a run whose config.yaml is missing"):
            train(config, run.path, resume=resume)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_anew_with_whatever_options(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    train(make_config(folder, training__steps=5), run.path, resume=True)  # where nothing is yet
    for path in (run.result, run.network, run.best, run.last):
        path.unlink()
    assert train(make_config(folder, training__steps=3), run.path, resume=True)["steps"] == 3
    assert load_config(run.config, TrainConfig).training.steps == 3


@pytest.mark.parametrize("out", ["", "s3://bucket/run"])
def test_a_run_has_a_folder_of_this_machine(folder, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"^the path is empty|is an address"):
        train(make_config(folder), out)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_steps_need_not_be_a_multiple_of_those_between_validations(folder, tmp_path):
    result = train(make_config(folder, training__steps=25), tmp_path / "run")
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert result["steps"] == 25
    assert [row["step"] for row in rows if "validation_dice" in row] == [0, 20, 25]
    assert [row["step"] for row in rows if "asymmetry" in row] == [0, 20, 25]
    assert result["bias"]["asymmetry"] == rows[-1]["asymmetry"]


@pytest.mark.slow
def test_training_stops_where_validation_gets_no_better_and_stays_stopped(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    options = {"learning_rate": 1e-12, "validate_every": 5, "patience": 2}
    config = make_config(folder, **{f"training__{name}": value for name, value in options.items()})
    result = train(config, run.path)
    scores = [
        row["validation_dice"] for row in run.read_metrics() if row["step"] > 0 and "validation_dice" in row
    ]
    assert result["steps"] == 5 * (np.argmax(scores) + 1) + 10 < 60
    assert result["validation"]["step"] == result["steps"]  # of scores that tie, the last
    run.result.unlink()
    run.network.unlink()  # as if it had been killed right after the last step
    assert train(config, run.path, resume=True)["steps"] == result["steps"]


@pytest.mark.slow
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


def test_a_damaged_network_is_written_again_from_its_checkpoint(copied, tiny_run):
    run, config = copied
    run.result.unlink()
    run.network.write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"network\.safetensors: .* delete it and resume the run, which"):
        train(config, run.path, resume=True)
    run.network.unlink()
    train(config, run.path, resume=True)
    assert same(weights(run.path), weights(tiny_run.path))


# Networks


@pytest.mark.slow
def test_two_processes_train_one_symmetrized_network(folder, tmp_path):
    options = {"model__spec": "trainable:plain", "training__steps": 20, "training__learning_rate": 0.002}
    options |= {"model__symmetrize": "output", "training__stress": True}
    two = make_config(folder, training__devices=2, **options).model_dump(mode="json")
    process = tiny_training.start_anew(folder, "train", two, tmp_path / "two", "--json")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    said = {line.partition(":")[0] for line in errors.splitlines()}
    assumed = {"network", "slices", "scaling", "data", "training", "test"}
    assert assumed <= said <= {*assumed, "train two"}  # a short training needs no line of progress
    result = json.loads(out)
    assert result == RunFolder(tmp_path / "two").read_result()
    assert result["machine"]["devices"] == 2
    assert [row["step"] for row in RunFolder(tmp_path / "two").read_metrics()] == [0, 10, 20]
    train(make_config(folder, **options), tmp_path / "one")
    train(make_config(folder, seed=1, **options), tmp_path / "other")
    found = weights(tmp_path / "two")

    def distance(run):
        return sum((tensor - found[key]).square().sum().item() for key, tensor in weights(run).items())

    # The Dice loss of a batch is not the mean of those of its halves: nearly the same, not quite.
    assert distance(tmp_path / "one") < 0.2 * distance(tmp_path / "other")
    network = evenslice.load_network("trainable:plain", str(RunFolder(tmp_path / "two").network)).model
    window = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(window), network(window.flip(1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "tie", "at"),
    [
        *(("uniform", "uniform", None), ("mirror", "mirror", None)),
        *(("pretrained", None, "output"), ("twin", None, None)),
    ],
)
def test_a_fair_network_is_as_symmetric_after_training_as_before(folder, tmp_path, strategy, tie, at):
    changes = {"strategy": strategy, "tie": tie, "symmetrize": at}
    config = make_config(folder, **{f"model__{name}": value for name, value in changes.items()})
    result = train(config, tmp_path / "fair")
    assert abs(result["bias"]["directional_bias"]) < 1e-5
    network, record, _ = evenslice.load_network("trainable:small", str(RunFolder(tmp_path / "fair").network))
    assert (record.tie, list(record.symmetrized)) == (tie, result["record"]["symmetrized"])
    window = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(window), network(window.flip(1)))
        if tie is None:
            assert result["record"]["symmetrized"]
            with without_mirror(network):  # learned as freely as any other
                assert not torch.equal(network(window), network(window.flip(1)))


def test_a_neutralized_file_is_trained_as_it_is(folder, tmp_path):
    network, record, source = evenslice.load_network("trainable:small", "none", strategy="center")
    evenslice.save_network(network, tmp_path / "fair.safetensors", record=record, source=source)
    model = {"spec": "trainable:small", "weights": str(tmp_path / "fair.safetensors")}
    result = train(make_config(folder, model=model, training__steps=2), tmp_path / "run")
    assert result["record"]["strategy"] == "center"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "channels", "overlapping"), [("dice_bce", 3, True), ("dice_bce", 1, None), ("dice_ce", 3, False)]
)
def test_a_sigmoid_for_each_class_is_no_softmax(folder, tmp_path, loss, channels, overlapping):
    spec, run, classes = f"trainable:small?classes={channels}", tmp_path / "run", max(channels, 2)
    labels = {"image": "image.npy", "labels": "three.npy" if classes == 3 else "labels.npy"}
    options = {"data__validation_fraction": 0, "training__loss": loss, "training__steps": 1}
    options |= {
        f"data__{part}": [{**labels, "slices": of}] for part, of in (("train", [0, 30]), ("test", [32, 40]))
    }
    result = train(make_config(folder, data__classes=classes, model__spec=spec, **options), run)
    assert len(result["dice"]["per_class"]) == classes
    segmenter, image = load_segmenter(run, spec), np.load("image.npy")[:4]
    stated = json.loads(read_metadata(run / "network.safetensors"))["reading"]
    assert segmenter.reading.overlapping == stated.get("overlapping") == overlapping
    evenslice.segment(segmenter, image, tmp_path / "labels.npy")
    refused = pytest.raises(ConfigError, match="classes that overlap have a sigmoid each .* train with")
    with refused if overlapping else nullcontext():
        evenslice.segment(segmenter, image, tmp_path / "probabilities.npy", probabilities=True)


def test_what_the_logits_do_not_depend_on_is_left_as_it_was(folder, tmp_path):
    train(make_config(folder, model__spec="trainable:auxiliary", training__steps=5), tmp_path / "run")
    import trainable

    torch.manual_seed(0)
    first = trainable.auxiliary().state_dict()
    assert not torch.equal(weights(tmp_path / "run")["main.6.weight"], first["main.6.weight"])
    last = torch.load(RunFolder(tmp_path / "run").last, weights_only=True)
    moved = len(last["optimizer_states"][0]["state"])
    assert moved == sum(1 for name, _ in trainable.auxiliary().named_parameters() if "head" not in name)


@pytest.mark.slow
def test_logs_for_tensorboard_and_mlflow(folder, tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    run = RunFolder(tmp_path / "run")
    config = make_config(folder, training__tensorboard=True, training__mlflow=True, training__steps=20)
    train(config, run.path)
    run.network.unlink()
    run.result.unlink()
    train(config, run.path, resume=True)
    assert list((run.log / "tensorboard").glob("events*"))
    client = MlflowClient(f"sqlite:///{run.log}/mlflow.db")
    experiment = client.get_experiment_by_name("blobs")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["validation_dice"] > 0
    assert {path.name for path in folder.iterdir()} & {"mlruns", "mlartifacts", "lightning_logs"} == set()


# Mistakes


WIDE = [{"image": "wide_image.npy", "labels": "wide_labels.npy"}]
DEEP = {"model__spec": "trainable:deep", "training__crop": [64, 64]}
BAD = {
    "missing file": ({"data__train": [{**PAIR, "image": "no.npy"}]}, r"data.train\[0\].image: .*no.npy"),
    "softmax": (
        {"model__spec": "smp:Unet/tu-test_resnet?activation=softmax2d"},
        r"returns probabilities, which add up to 1",
    ),
    "channels": ({"model__spec": "trainable:small?classes=5"}, r"returns 5 channels; 2 classes .* need 2"),
    "no map": ({"model__spec": "trainable:classifier"}, r"\(1, 2\)"),
    "crop": ({"model__spec": "trainable:halving", "training__crop": [32, 33]}, "training.crop"),
    "one crop": (
        {"model__spec": "trainable:pooled", "training__batch": 1},
        "cannot be trained on 1 of these",
    ),
    "plane of validation": (
        {**DEEP, "data__validation": WIDE},
        r"rejects the planes of wide_image\.npy, 96 x 96",
    ),
    "plane of test": ({**DEEP, "data__test": WIDE}, r"rejects the planes of wide_image\.npy, 96 x 96"),
    "no network": ({"model__spec": "trainable:smal"}, "^model: trainable:smal: .*did you mean 'small'"),
    "reserved argument": (
        {"model__spec": "smp:Unet/resnet18?classes=3"},
        r"^model: smp:.*: model\.weights and data\.classes decide",
    ),
    "no cut": ({"model__symmetrize": "nowhere"}, "^model.symmetrize: nowhere|no module 'nowhere'"),
    "nothing to train": ({"model__spec": "trainable:frozen"}, "no parameter that requires a gradient"),
    "own error": ({"model__spec": "trainable:faulty"}, "KeyError: 'in'"),
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
        (torch.OutOfMemoryError("CUDA out of memory."), "run out.*training.crop, or set training.dtype"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "run out.*training.crop"),
        (torch.AcceleratorError("CUDA error: no kernel image is available"), "^training.accelerator: cpu"),
    ],
)
def test_what_a_device_refuses_is_one_line(folder, tmp_path, monkeypatch, error, message):
    def refuse(*_):
        raise error

    monkeypatch.setattr(TrainingModule, "training_step", refuse)
    with pytest.raises(EvensliceError, match=message):
        train(make_config(folder), tmp_path / "run", progress=False)


# What is said


def test_the_command_shows_what_came_out(tiny_run, command):
    done = command("train", tiny_run.path / "config.yaml", "--out", tiny_run.path, "--resume")
    assert done.returncode == 0
    assert (
        done.stderr == f"note: the run in {tiny_run.path} is finished; nothing is trained or tested again\n"
    )
    assert f"next: evenslice segment --run {tiny_run.path}" in " ".join(done.stdout.split())
    assert "test Dice" in done.stdout
    assert "80 in " in done.stdout


@pytest.mark.parametrize("stress", [True, False])
def test_the_windows_of_the_stress_test_are_announced(folder, stress):
    plan = resolve(make_config(folder, training__stress=stress))
    more = 13 * min(60, sum(len(part.volume) for part in plan.data.test))  # as is each way with three slices
    assert any(line.startswith(f"test: with {more} more windows") for line in describe_plan(plan)) == stress


def test_a_gap_in_a_folder_of_slices_is_told_before_a_training(folder, tmp_path):
    slices = tmp_path / "slices"
    slices.mkdir()
    for z, pixels in enumerate(np.load(folder / "image.npy")):
        Image.fromarray(pixels).save(slices / f"z{z + (z > 19)}.png")
    parts = {
        f"data__{part}": [{"image": str(slices), "labels": str(folder / "labels.npy"), "slices": of}]
        for part, of in (("train", [0, 30]), ("test", [32, 40]))
    }
    said = f"{slices}: missing slices 20, by the file names; those beside a gap count as adjacent"
    assert describe_plan(resolve(make_config(folder, **parts))).count(said) == 1


@pytest.fixture
def seen(monkeypatch):
    """What the command would train: configuration, folder, and whether to resume."""
    seen = []

    def pretend(config, out, *, resume, on_start, **_):
        seen.append((config, out, resume))
        on_start(("network: any",))

    monkeypatch.setattr(evenslice.training, "train", pretend)
    return seen


@pytest.mark.parametrize(("resumed", "notes"), [("--resume", 1), ("--json", 0)])
def test_the_command_says_that_there_is_nothing_to_resume(folder, command, seen, tmp_path, resumed, notes):
    (tmp_path / "run.yaml").write_text(to_yaml(make_config(folder)))
    done = command("train", "run.yaml", "--out", tmp_path / "run3", resumed)
    note = f"note: nothing to resume in {tmp_path / 'run3'}; starting"
    assert (done.returncode, done.stderr.splitlines()) == (0, [*[note] * notes, "network: any"])


def test_a_run_is_resumed_as_it_was_configured(tiny_run, command, seen, tmp_path):
    done = command("train", "--out", tiny_run.path, "--resume")
    assert done.returncode == 0, done.stderr
    assert seen == [(load_config(tiny_run.path / "config.yaml", TrainConfig), tiny_run.path, True)]
    done = command("train", "--out", tmp_path / "none", "--resume")
    said = f"error: {tmp_path / 'none'}: holds no run to resume; to start one, give its CONFIG.yaml\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.slow
def test_a_seed_on_the_command_line_takes_precedence(folder, command, seen, tmp_path):
    config = make_config(folder)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    for seed, options in ((config.seed, []), (7, ["--seed", "7"]), (0, ["--seed", "0"])):
        done = command("train", "run.yaml", "--out", "run", *options)
        assert done.returncode == 0, done.stderr
        assert seen.pop()[0] == config.model_copy(update={"seed": seed})
    assert yaml.safe_load(command("train", "run.yaml", "--print-config", "--seed", "7").stdout)["seed"] == 7
    done = command("train", "run.yaml", "--out", "run", "--seed", "-1")
    assert (done.returncode, done.stderr) == (2, "error: --seed -1: is not between 0 and 2**32 - 1\n")


def test_the_last_line_of_progress_shows_the_validation_of_the_final_network(monkeypatch, tmp_path):
    notes, log = [], CsvLog(tmp_path / "metrics.csv", ["loss"])
    monkeypatch.setattr(
        lightning_parts, "progress_bar", lambda *_, **__: nullcontext(lambda _, note: notes.append(note))
    )
    shown = ShowProgress("train", 2, show=None, log=log, score="dice")
    at = SimpleNamespace(is_global_zero=True, global_step=0)
    log.log_metrics(
        {"loss": 0.5, "validation_dice": 0.039, "share_-1": 0.3, "share_0": 0.5, "share_1": 0.2}, 0
    )
    shown.on_train_start(at, None)
    for at.global_step in (1, 2):
        shown.on_train_batch_end(at)
    log.log_metrics({"validation_dice": 0.2}, 2)  # at the end of the epoch
    shown.on_fit_end(at, None)
    said = "loss 0.500, bias -0.200, validation Dice"
    assert notes == [f"{said} 0.039", f"{said} 0.200"]


# Losses and scores


def test_the_loss_is_dice_plus_cross_entropy():
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))

    def dice(chance, truth):
        return 1 - 2 * (chance * truth).sum() / (chance.sum() + truth.sum())

    chances = scores.softmax(1)
    expected = torch.stack([dice(chances[:, number], labels == number) for number in (1, 2)]).mean()
    expected += nn.functional.cross_entropy(scores, labels)
    assert TaskLoss("dice_ce", 3)(scores, labels).item() == pytest.approx(expected.item(), rel=1e-4)
    score, label = scores[:, :1], labels > 1
    expected = dice(score.sigmoid()[:, 0], label)
    expected += nn.functional.binary_cross_entropy_with_logits(score[:, 0], label.float())
    assert TaskLoss("dice_bce", 2)(score, label.long()).item() == pytest.approx(expected.item(), rel=1e-4)


def test_biases_and_normalisations_do_not_decay(folder):
    import trainable

    config = make_config(folder)
    decayed, free = TrainingModule(trainable.small(), config).configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in (decayed, free)] == [config.training.weight_decay, 0]
    assert {parameter.ndim for parameter in decayed["params"]} == {4}
    assert {parameter.ndim for parameter in free["params"]} == {1}


def test_the_best_is_kept_and_nan_is_never_best():
    trainer = SimpleNamespace(
        is_global_zero=True, loggers=(), should_stop=False, global_step=0, is_last_batch=True
    )
    trainer.strategy = SimpleNamespace(broadcast=lambda value: value)
    scores, kept, stops = iter([0.9, math.nan, 0.5, 0.4, math.nan, 0.6, 0.5995, 0.59]), [], []
    module = nn.ModuleDict({"network": nn.Identity()})
    keep = KeepBest(lambda _: next(scores), lambda _: kept.append(len(stops)), patience=3)
    keep.on_train_epoch_start(trainer, module)  # the score before the first step is no candidate
    for _ in range(7):
        keep.on_train_epoch_end(trainer, module)
        stops.append(trainer.should_stop)
    assert kept == [1, 4, 5]  # the sixth is as good as the fifth but for noise, the seventh is not
    assert stops == [False] * 7
    assert keep.state_dict() == {"best": 0.6, "worse": 2}


def test_one_false_pixel_in_a_slice_without_the_organ_costs_the_validation_little(folder):
    image = np.zeros((4, 32, 32), np.float32)
    image[:, :16] = 1
    spotted = np.zeros_like(image)
    spotted[2, 5, 5] = 1
    parts = []
    for name, voxels, labels in (("organ", image, image), ("none", spotted, 0 * image)):
        index = ClassIndex(np.bincount(labels.astype(int).ravel(), minlength=2), ())
        labelled = evenslice.open_volume(voxels), evenslice.open_volume(labels.astype(np.int64))
        parts.append(LabelledVolume(name, *labelled, Scaling(0, 1), index))
    network = nn.Conv2d(3, 1, 1).requires_grad_(False)
    network.weight.copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
    network.bias.fill_(-0.5)
    hits = 4 * 16 * 32
    assert validation_score(network, parts, make_config(folder)) == pytest.approx(2 * hits / (2 * hits + 1))
