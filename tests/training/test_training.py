"""Training runs on a task that is easily learned: bright blobs under noise."""

import json
import shutil
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tiny_training
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_training import PAIR, RunFiles, same
from torch import nn

import evenslice
from evenslice import ConfigError, EvensliceError, ModelError, OutputError, TrainConfig, load_config

pytestmark = pytest.mark.slow

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


def frozen():
    return small().requires_grad_(False)


def classifier():
    return nn.Sequential(small(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def halving():
    return nn.Sequential(small(), nn.PixelUnshuffle(2), nn.Conv2d(8, 2, 1))


def deep():
    return nn.Sequential(small(), nn.PixelUnshuffle(64), nn.PixelShuffle(64))
"""


@pytest.fixture(scope="module")
def folder(inputs):
    """A folder of data and of networks to import; the current one."""
    (inputs / "trainable.py").write_text(NETWORKS)
    tiny_training.write_inputs(inputs, (40, 64, 64))
    image, labels = (np.load(inputs / f"{name}.npy") for name in ("image", "labels"))
    wide = ((0, 0), (0, 32), (0, 32))
    arrays = {"inverted": 1 - labels, "three": labels * (1 + (image > 150))}
    arrays |= {"wide_image": np.pad(image[:8], wide), "wide_labels": np.pad(labels[:8], wide)}
    for name, array in arrays.items():
        np.save(inputs / f"{name}.npy", array)
    return inputs


def make_config(folder, **changes):
    """Return a configuration of 60 steps, changed where names with double underscores say so."""
    values = tiny_training.training_options(folder, batch=4, monitor_every=20, stress=False)
    values["data"] |= {"validation_fraction": 0.1, "train": [{**PAIR, "slices": [0, 30]}]}
    values["data"] |= {"test": [{**PAIR, "slices": [32, 40]}]}
    values["model"] |= {"spec": "trainable:small", "strategy": "uniform"}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return TrainConfig.model_validate(values)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """A run from beginning to end."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    evenslice.train(make_config(folder, training__stress=True), run)
    return run


@pytest.fixture
def copied(tiny_run, tmp_path, one_thread):
    """A copy of the run that tests share, and its configuration."""
    run = RunFiles(shutil.copytree(tiny_run.path, tmp_path / "copied"))
    return run, TrainConfig.model_validate(tiny_run.options)


QUICK = {"training__steps": 5, "training__validate_every": 2, "training__monitor_every": 2}


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
        assert evenslice.train(config, tmp_path / "run", progress=False)["steps"] == 5
    assert {weight.dtype for weight in RunFiles(tmp_path / "run").read_weights().values()} == {
        torch.float32,
        torch.int64,
    }
    rows = RunFiles(tmp_path / "run").read_metrics()
    assert [row["step"] for row in rows if "asymmetry" in row] == [0, 2, 4, 5]


def test_a_run_learns_and_its_folder_holds_everything_needed_to_run_again(folder, undisturbed):
    config = load_config(undisturbed / "config.yaml", TrainConfig)
    assert config == make_config(folder, training__stress=True)
    result, rows = RunFiles(undisturbed).read_result(), RunFiles(undisturbed).read_metrics()
    assert rows[-1]["loss"] < 0.6 * rows[1]["loss"]
    assert result["dice"]["mean"] > 0.8  # chance is far below
    assert result["iou"]["mean"] == pytest.approx(result["dice"]["mean"] / (2 - result["dice"]["mean"]))
    assert result["stress"]["losses"]
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40, 50, 60]
    assert all({"validation_dice", "share_-1", "asymmetry", "loss"} <= rows[i].keys() for i in (2, 4, 6))
    assert rows[1]["learning_rate"] > rows[-1]["learning_rate"] > 0
    assert (result["seed"], result["steps"], result["validation"]["step"]) == (0, 60, 60)
    assert result["config"] == config.model_dump(mode="json")
    assert result["versions"]["torch"] == metadata.version("torch")
    assert result["bias"]["directional_bias"] == rows[-1]["directional_bias"]
    assert [part["shape"] for part in result["data"]["test"]] == [[8, 64, 64]]
    assert result["data"]["train"][0]["image"].startswith("sha256:")
    assert {path.name for path in undisturbed.iterdir()} == {
        *("config.yaml", "data.json", "log", "checkpoints", "network.safetensors", "result.json")
    }
    assert [path.name for path in (undisturbed / "checkpoints").iterdir()] == ["best.safetensors"]


@pytest.fixture
def killed_before_its_test(monkeypatch):
    """Return a function that trains a network until its checkpoint has done its duty."""

    def train(config, folder):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("evenslice.training.trainer._tested", Mock(side_effect=KeyboardInterrupt))
            evenslice.train(config, folder)

    return train


@pytest.mark.parametrize("every", [20, 30])
def test_the_last_network_comes_out_unless_the_best_in_validation_is_asked_for(
    folder, undisturbed, tmp_path, every
):
    # A validation that labels all backgrounds as objects falls while the network learns.
    validation = [{"image": "image.npy", "labels": "inverted.npy", "slices": [32, 40]}]
    options = {"training__keep": "best", "training__monitor_every": every}
    run = RunFiles(tmp_path / "run")
    result = evenslice.train(
        make_config(folder, data__validation=validation, data__test=[], **options), run.path
    )
    rows = {row["step"]: row for row in run.read_metrics()}
    assert result["validation"] == {"step": 20, "dice": rows[20]["validation_dice"]}
    assert rows[20]["validation_dice"] > rows[60]["validation_dice"] + 0.01
    if every == 20:
        assert result["bias"]["directional_bias"] == rows[20]["directional_bias"]
    else:
        assert result["bias"] is None  # it was not measured there
    assert same(RunFiles(run.path).read_weights(), load_file(run.best))
    assert not same(RunFiles(run.path).read_weights(), RunFiles(undisturbed).read_weights())


def test_what_was_chosen_is_said_before_a_training(folder, tmp_path):
    encoder, slices, said = {"encoder.weight": torch.ones(4, 3, 3, 3)}, tmp_path / "slices", []
    torch.save(encoder | {"encoder.bias": torch.ones(4)}, tmp_path / "encoder.pt")
    slices.mkdir()
    for z, pixels in enumerate(np.load(folder / "image.npy")):
        Image.fromarray(pixels).save(slices / f"z{z + (z > 19)}.png")
    parts = {
        f"data__{part}": [{"image": str(slices), "labels": str(folder / "labels.npy"), "slices": of}]
        for part, of in (("train", [0, 30]), ("test", [32, 40]))
    }
    model = {"spec": "trainable:in_parts", "weights": str(tmp_path / "encoder.pt"), "strategy": "uniform"}
    evenslice.train(
        make_config(folder, model=model, training__steps=1, **parts), tmp_path / "run", on_start=said.extend
    )
    assert said[0].endswith("; it lacks decoder, which start random")
    gap = f"{slices}: missing slices 20, by the file names; those beside a gap count as adjacent"
    assert said.count(gap) == 1


def test_one_seed_gives_one_network_whatever_was_drawn_before(folder, undisturbed, tmp_path):
    torch.manual_seed(77)
    state = torch.get_rng_state()
    evenslice.train(make_config(folder), tmp_path / "again")
    assert same(RunFiles(tmp_path / "again").read_weights(), RunFiles(undisturbed).read_weights())
    assert torch.equal(torch.get_rng_state(), state)
    evenslice.train(make_config(folder, seed=1), tmp_path / "other")
    assert not same(RunFiles(tmp_path / "other").read_weights(), RunFiles(undisturbed).read_weights())


# Runs that go on


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_run_that_was_killed_while_it_was_tested_is_not_trained_again(copied, monkeypatch, engine):
    run, config = copied
    before, trained = run.read_result(), run.network.stat().st_mtime_ns
    run.result.unlink()
    if engine == "openvino":  # which tests of many slices are worth
        pytest.importorskip(engine)
        monkeypatch.setattr("evenslice.inference.engine.WORTH", 1)
    after = evenslice.train(config, run.path, resume=True)
    assert (after["dice"], after["seconds"]) == (before["dice"], before["seconds"])
    assert (before["engine"], after["engine"]) == ("torch", engine)
    assert run.network.stat().st_mtime_ns == trained


def test_a_run_may_be_resumed_in_another_place(copied, tiny_run, tmp_path):
    run, config = copied
    run.network.unlink()
    run.result.unlink()
    data = shutil.copytree(tiny_run.folder, tmp_path / "data")
    moved = config.model_copy(update={"data": config.data.model_copy(update={"root": data})})
    evenslice.train(moved, run.path, resume=True)
    assert same(RunFiles(run.path).read_weights(), RunFiles(tiny_run.path).read_weights())
    assert load_config(run.config, TrainConfig) == moved  # which the next resume starts from


def with_options(run, **training):
    """Return the configuration of a run with other options of its training."""
    options = {**run.options, "training": {**run.options["training"], **training}}
    return TrainConfig.model_validate(options)


def test_a_finished_run_is_not_taken_for_one_of_other_options_or_data(
    copied, tiny_run, tmp_path, monkeypatch
):
    (run, config), data, said = copied, tmp_path / "data", []
    data.mkdir()
    moved = config.model_copy(update={"data": config.data.model_copy(update={"root": data})})
    result = evenslice.train(moved, run.path, resume=True, on_start=said.append)
    assert result == run.read_result()  # the files are gone
    assert said == [(f"note: the run in {run.path} is finished; nothing is trained or tested again",)]
    shutil.copy(tiny_run.folder / "image.npy", data)
    np.save(data / "labels.npy", 1 - np.load(tiny_run.folder / "labels.npy"))
    with pytest.raises(ConfigError, match="data: the files are not those on which the run in .* was trained"):
        evenslice.train(moved, run.path, resume=True)
    run.result.unlink()
    with pytest.raises(ConfigError, match=r"data.train: image.npy\[0:8\]: the files are not those with"):
        evenslice.train(moved, run.path, resume=True)
    monkeypatch.setattr(
        "evenslice.training.trainer.final_scores", lambda *_, **__: {"dice": None, "iou": None}
    )
    assert evenslice.train(with_options(tiny_run, stress=True), run.path, resume=True)["dice"] is None


def test_a_run_is_not_overwritten_nor_resumed_as_another(copied, tiny_run):
    run, config = copied
    with pytest.raises(OutputError, match="already holds a run; resume it with resume"):
        evenslice.train(config, run.path)
    with pytest.raises(ConfigError, match=r"^training\.learning_rate: changed since the run began, as"):
        evenslice.train(with_options(tiny_run, learning_rate=0.02), run.path, resume=True)
    run.config.unlink()
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"result.json: belongs to a run whose config.yaml is missing"):
            evenslice.train(config, run.path, resume=resume)


@pytest.mark.parametrize("out", ["", "s3://bucket/run"])
def test_a_run_has_a_folder_of_this_machine(folder, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"^the path is empty|is an address"):
        evenslice.train(make_config(folder), out)
    assert not list(tmp_path.iterdir())


def test_training_stops_where_validation_gets_no_better_and_stays_stopped(folder, tmp_path):
    run = RunFiles(tmp_path / "run")
    options = {"learning_rate": 1e-12, "validate_every": 5, "patience": 2}
    config = make_config(folder, **{f"training__{name}": value for name, value in options.items()})
    result = evenslice.train(config, run.path)
    scores = [
        row["validation_dice"] for row in run.read_metrics() if row["step"] > 0 and "validation_dice" in row
    ]
    assert result["steps"] == 5 * (np.argmax(scores) + 1) + 10 < 60
    assert result["validation"]["step"] == result["steps"]  # of scores that tie, the last
    run.result.unlink()
    run.network.unlink()  # as if it had been killed right after the last step
    assert evenslice.train(config, run.path, resume=True)["steps"] == result["steps"]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_best_network_that_is_lost_is_not_replaced_by_the_last(
    folder, tmp_path, keep, killed_before_its_test
):
    run, config = RunFiles(tmp_path / "run"), make_config(folder, training__keep=keep)
    killed_before_its_test(config, run.path)
    last = torch.load(run.last, weights_only=True)["state_dict"]
    for path in (run.best, run.network):
        path.unlink()
    if keep == "last":
        evenslice.train(config, run.path, resume=True)
        weights = RunFiles(run.path).read_weights()
        assert same(weights, {key.removeprefix("network."): value for key, value in last.items()})
        return
    with pytest.raises(OutputError, match=r"best\.safetensors: is lost, .* remove last\.ckpt to train anew"):
        evenslice.train(config, run.path, resume=True)
    run.last.unlink()
    evenslice.train(config, run.path, resume=True)
    assert run.network.read_bytes() == run.best.read_bytes()


# Networks


def test_two_processes_train_one_symmetrized_network(folder, tmp_path):
    options = {"model__spec": "trainable:plain", "training__steps": 20, "training__learning_rate": 0.002}
    options |= {"model__symmetrize": "output", "training__stress": True}
    two = make_config(folder, training__devices=2, **options).model_dump(mode="json")
    process = tiny_training.start_anew(folder, "train", two, tmp_path / "two", "--json")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    said = {line.partition(":")[0] for line in errors.splitlines()}
    assumed = {"network", "slices", "scaling", "data", "training"}
    assert assumed <= said <= {*assumed, "train two"}  # a short training needs no line of progress
    result = json.loads(out)
    assert result == RunFiles(tmp_path / "two").read_result()
    assert result["machine"]["devices"] == 2
    assert [row["step"] for row in RunFiles(tmp_path / "two").read_metrics()] == [0, 10, 20]
    evenslice.train(make_config(folder, **options), tmp_path / "one")
    evenslice.train(make_config(folder, seed=1, **options), tmp_path / "other")
    found = RunFiles(tmp_path / "two").read_weights()

    def distance(run):
        return sum(
            (tensor - found[key]).square().sum().item()
            for key, tensor in RunFiles(run).read_weights().items()
        )

    # The Dice loss of a batch is not the mean of those of its halves: nearly the same, not quite.
    assert distance(tmp_path / "one") < 0.2 * distance(tmp_path / "other")
    network = evenslice.load_network("trainable:plain", str(RunFiles(tmp_path / "two").network)).model
    window = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(window), network(window.flip(1)))


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
    result = evenslice.train(config, tmp_path / "fair")
    assert abs(result["bias"]["directional_bias"]) < 1e-5
    network, record, _ = evenslice.load_network("trainable:small", str(RunFiles(tmp_path / "fair").network))
    assert (record.tie, list(record.symmetrized)) == (tie, result["record"]["symmetrized"])
    window = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(window), network(window.flip(1)))
        if tie is None:
            assert result["record"]["symmetrized"]


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
    result = evenslice.train(make_config(folder, data__classes=classes, model__spec=spec, **options), run)
    assert len(result["dice"]["per_class"]) == classes
    image = np.load("image.npy")[:4]
    segmenter = evenslice.open_segmenter(spec, str(run / "network.safetensors"))
    assert segmenter.reading.overlapping == overlapping
    evenslice.segment(segmenter, image, tmp_path / "labels.npy")
    refused = pytest.raises(ConfigError, match="classes that overlap have a sigmoid each .* train with")
    with refused if overlapping else nullcontext():
        evenslice.segment(segmenter, image, tmp_path / "probabilities.npy", probabilities=True)


def test_what_the_logits_do_not_depend_on_is_left_as_it_was(folder, tmp_path, killed_before_its_test):
    killed_before_its_test(
        make_config(folder, model__spec="trainable:auxiliary", training__steps=5), tmp_path / "run"
    )
    import trainable

    torch.manual_seed(0)
    first = trainable.auxiliary().state_dict()
    assert not torch.equal(RunFiles(tmp_path / "run").read_weights()["main.6.weight"], first["main.6.weight"])
    last = torch.load(RunFiles(tmp_path / "run").last, weights_only=True)
    moved = len(last["optimizer_states"][0]["state"])
    assert moved == sum(1 for name, _ in trainable.auxiliary().named_parameters() if "head" not in name)


def test_logs_for_tensorboard_and_mlflow(folder, tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    run = RunFiles(tmp_path / "run")
    config = make_config(folder, training__tensorboard=True, training__mlflow=True, training__steps=20)
    evenslice.train(config, run.path)
    run.network.unlink()
    run.result.unlink()
    evenslice.train(config, run.path, resume=True)
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
        r"returns probabilities where logits",
    ),
    "channels": ({"model__spec": "trainable:small?classes=5"}, r"returns 5 channels; 2 classes .* need 2"),
    "no map": ({"model__spec": "trainable:classifier"}, r"\(1, 2\)"),
    "crop": ({"model__spec": "trainable:halving", "training__crop": [32, 33]}, "training.crop"),
    "one crop": (
        {"model__spec": "trainable:pooled", "training__batch": 1},
        "cannot be trained on 1 of these",
    ),
    "plane of test": ({**DEEP, "data__test": WIDE}, r"rejects the planes of wide_image\.npy, 96 x 96"),
    "no network": ({"model__spec": "trainable:smal"}, "^model: trainable:smal: .*did you mean 'small'"),
    "nothing to train": ({"model__spec": "trainable:frozen"}, "no parameter that requires a gradient"),
    "no GPU": ({"training__accelerator": "gpu"}, r"^training\.accelerator: gpu: is not available here"),
    "float16 on a CPU": ({"training__dtype": "float16"}, r"^training\.dtype: float16: is for GPUs"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_before_anything_is_written(folder, tmp_path, case):
    changes, message = BAD[case]
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EvensliceError, match=message) as error:
        evenslice.train(make_config(folder, **changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("every", "step"), [(20, 10), (3, 3)])
def test_a_loss_that_is_no_longer_finite_ends_the_run(folder, tmp_path, every, step):
    more = {"training__validate_every": every, "training__monitor_every": every}
    config = make_config(folder, model__spec="trainable:diverging", **more)
    with pytest.raises(ModelError, match=f"the loss is nan at step {step}; lower training.learning_rate"):
        evenslice.train(config, tmp_path / "run")


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

    monkeypatch.setattr("evenslice.training.lightning_parts.TrainingModule.training_step", refuse)
    with pytest.raises(EvensliceError, match=message):
        evenslice.train(make_config(folder), tmp_path / "run", progress=False)


# The command


def test_a_training_is_the_same_from_a_path_a_dict_and_an_object(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.model_validate(tiny_run.options)
    Path("train.yaml").write_text(json.dumps(tiny_run.options))
    for given in (Path("train.yaml"), "train.yaml", tiny_run.options, config):
        # A finished run is not changed; other options than its own would be an error.
        assert evenslice.train(given, tiny_run.path, resume=True)["steps"] == 80


@pytest.mark.parametrize(
    "more", [["--step", "1"], ["--slices", "5"], ["--strategy", "uniform"], ["--weights", "none"]]
)
def test_what_a_run_determines_cannot_be_given(tiny_run, command, more):
    volume = tiny_run.folder / "image.npy"
    network = ("--run", tiny_run.path, "--model", "tiny_networks:tiny")
    done = command("audit", "--volume", volume, *network, *more)
    assert done.returncode == 2
    assert f"{more[0]}: the training in {tiny_run.path} determines it; omit it, or omit --run" in done.stderr


def test_the_command_shows_what_came_out(tiny_run, command):
    done = command("train", tiny_run.path / "config.yaml", "--out", tiny_run.path, "--resume")
    note = f"note: the run in {tiny_run.path} is finished; nothing is trained or tested again\n"
    assert (done.returncode, done.stderr) == (0, note)
    for text in (f"next: evenslice segment --run {tiny_run.path}", "test Dice", "80 in "):
        assert text in " ".join(done.stdout.split())


def test_the_command_trains_as_it_is_configured(folder, tiny_run, command, tmp_path, monkeypatch):
    seen, config = [], make_config(folder)

    def pretend(config, out, *, resume, on_start, **_):
        seen.append((config, out, resume))
        on_start(("network: any",))

    monkeypatch.setattr(evenslice, "train", pretend)
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    note, new = f"note: nothing to resume in {tmp_path / 'run'}; starting", tmp_path / "run"
    for options, seed, said in (
        (["--resume"], config.seed, [note, "network: any"]),
        (["--json", "--seed", "7"], 7, ["network: any"]),
    ):
        done = command("train", "run.yaml", "--out", new, *options)
        assert (done.returncode, done.stderr.splitlines()) == (0, said)
        assert seen.pop() == (config.model_copy(update={"seed": seed}), new, "--resume" in options)
    assert command("train", "--out", tiny_run.path, "--resume").returncode == 0
    assert seen == [(load_config(tiny_run.path / "config.yaml", TrainConfig), tiny_run.path, True)]
    for options, error in (
        (["--out", tmp_path / "none", "--resume"], f"{tmp_path / 'none'}: holds no run to resume; "),
        (["run.yaml", "--out", "run", "--seed", "-1"], "Invalid value for '--seed': -1 is not between"),
    ):
        done = command("train", *options)
        assert (done.returncode, done.stderr.startswith(f"error: {error}")) == (2, True)
    assert yaml.safe_load(command("train", "run.yaml", "--print-config", "--seed", "7").stdout)["seed"] == 7


# Losses and scores


def test_the_loss_is_dice_plus_cross_entropy():
    from evenslice.training.losses import TaskLoss

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
