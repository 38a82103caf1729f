"""The configuration of ``train``: what a file may say, what follows from it, and how mistakes are told."""

import json
import re
from pathlib import Path

import pytest
import yaml
from torch import nn

import evenslice
from evenslice import ConfigError, TrainConfig, load_config

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
DATA = "data: {train: [{image: a.tif, labels: b.tif}]}\n"


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "run.yaml").write_text(text)
        return load_config(tmp_path / "run.yaml", TrainConfig)

    return load


@pytest.fixture
def printed(command, tmp_path):
    """The configuration that was loaded last, as the command prints it, with every option."""
    return lambda: command("train", tmp_path / "run.yaml", "--print-config").stdout


@pytest.fixture
def message(load):
    """The error of a configuration, after the name of its file."""

    def message(text):
        with pytest.raises(ConfigError) as caught:
            load(text)
        text = str(caught.value)
        assert "\n" not in text
        assert len(text) < 700
        return text.partition("run.yaml: ")[2]

    return message


def test_a_few_lines_are_a_whole_configuration(load, printed, tmp_path, monkeypatch):
    config = load(DATA + "training: {steps: 500}")
    assert (config.training.steps, config.training.batch) == (500, 8)
    assert (config.model.strategy, config.seed) == ("twin", 0)
    assert config.data.root == tmp_path
    (tmp_path / "net.safetensors").touch()  # relative paths start from the folder of the file
    more = "data: {root: sub, label_values: [0, 128, 255], train: [{image: a.tif, labels: b.tif}]}\n"
    config = load(more + "model: {weights: net.safetensors}\ntraining: {task: classification}")
    assert (config.data.root, config.data.classes) == (tmp_path / "sub", 3)
    assert config.model.weights == str(tmp_path / "net.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(DATA + "model: {weights: ~/net.safetensors}").model.weights == config.model.weights
    assert load(more.replace("sub", "~no-such-user/sub")).data.root == tmp_path / "~no-such-user" / "sub"
    load(more + "model: {weights: net.safetensors}\ntraining: {task: classification}")
    text = printed()
    assert yaml.safe_load(text)["training"]["loss"] == "ce"  # which follows from the task
    assert load(text) == config


def test_the_default_configuration_loads_and_states_every_option(load):
    text = TrainConfig.template()
    config = load(text)
    assert "loss" not in yaml.safe_load(text)["training"]  # which follows from the task
    files = [(pair.image.path, pair.labels.path) for pair in (*config.data.train, *config.data.test)]
    assert files == [(f"{part}_image.tif", f"{part}_labels.tif") for part in ("train", "test")]
    for section in (config, config.data, config.model, config.training):
        for name, info in type(section).model_fields.items():
            assert f"{name}:" in text
            assert info.description.endswith(".")


@pytest.fixture
def in_folder(tmp_path):
    """A data set of nnU-Net's with three classes and a label to ignore, and a network of five slices."""
    for name in ("imagesTr/a_0000.tif", "labelsTr/a.tif", "imagesTs/b_0000.tif", "labelsTs/b.tif"):
        (tmp_path / "Dataset001" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Dataset001" / name).touch()
    labels = {"background": 0, "cell": 1, "wall": 5, "ignore": 9}
    described = {"channel_names": {"0": "EM"}, "labels": labels, "file_ending": ".tif"}
    (tmp_path / "Dataset001" / "dataset.json").write_text(json.dumps(described))
    network = nn.Conv2d(3, 2, 3)
    evenslice.neutralize(network, slices=5)
    evenslice.save_network(network, tmp_path / "fair.safetensors")


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("data", {"nnunet": "Dataset001"}),
        ("data", {"nnunet": "Dataset001", "instances": "dense"}),
        ("data", {"nnunet": "Dataset001", "label_values": [0, 5], "other_labels": "background"}),
        ("data", {"label_values": [0, 128, 255]}),
        ("data", {"instances": "dense", "ignore_label": 7}),
        ("data", {"boundaries": True}),
        ("model", {"tie": "mirror"}),
        ("model", {"symmetrize": "encoder"}),
        ("model", {"symmetrize": "output", "tie": "mirror"}),
        ("model", {"weights": "fair.safetensors"}),
        ("model", {"slices": 5}),
        ("model", {"slices": 3, "strategy": [0.25, 0.5, 0.25]}),
        ("training", {"task": "classification"}),
        ("training", {"loss": "dice_bce", "stress": False}),
    ],
)
def test_options_entered_in_the_template_mean_what_they_mean_alone(load, section, options):
    template = TrainConfig.template()
    alone = yaml.safe_load(template)["data"]
    alone = {name: alone[name] for name in ("train", "test")}
    if "nnunet" in options:  # instead of pairs
        template = re.sub(r"^  (train|test):\n    - .*\n", "", template, flags=re.MULTILINE)
        alone = {}
    before, title, after = template.partition(f"\n{section}:\n")
    for name, value in options.items():
        after, found = re.subn(rf"(?m)^  (# )?{name}: .*$", f"  {name}: {json.dumps(value)}", after, count=1)
        assert found == 1
    minimal = {"data": alone} | {section: {**(alone if section == "data" else {}), **options}}
    assert load(before + title + after) == load(json.dumps(minimal))


def test_what_is_written_is_what_is_loaded(load, printed):
    config = load("""
seed: 7
data:
  name: "no"
  root: /somewhere
  train:
    - {image: {path: a.zarr, axes: czyx, select: {c: 1}, level: 2}, labels: "b: c.tif", slices: [3, 9]}
    - {image: ä.tif, labels: '1.5', spacing: [5, 0.004, 4], unit: nm}
  classes: 3
  label_values: [0, 128, 255]
  intensity: [-1000, 400.5]
model: {slices: 5, strategy: [0.1, 0.2, 0.4, 0.2, 0.1]}
training: {monitor_every: null, learning_rate: 1e-4}
""")
    assert config.data.name == "no"
    assert config.model.strategy == (0.1, 0.2, 0.4, 0.2, 0.1)
    assert config.training.learning_rate == 1e-4
    assert load(printed()) == config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        ("train", "no_such.yaml", r"^no_such\.yaml: cannot be read"),
        ("train", 3, "configuration of type int: give a YAML file, a dict"),
        ("study", {"datasets": []}, r"^arms: is missing"),
    ],
)
def test_what_is_wrong_in_a_configuration_has_its_place(call, given, message):
    with pytest.raises(ConfigError, match=message):
        getattr(evenslice, call)(given, "nowhere")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("train*.yaml")), ids=lambda path: path.name)
def test_the_examples_load(path):
    assert load_config(path, TrainConfig).data.train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DATA + "training: {stepss: 3}", "training.stepss: no such option; did you mean 'steps'?"),
        ("data: [\n", "is not valid YAML (while parsing a flow node expected the node content"),
        (DATA + "training: {crop: 3}", "training.crop: 3: should be a list"),
        (DATA + "training: {loss: ce}", "training.loss: 'ce': should be 'dice_ce' or 'dice_bce'"),
        (DATA + "model: {slices: 1}\naugmentation: {missing_slices: 0.2}", "augmentation.missing_slices: a window"),
        (DATA + "training: {foreground: .nan}", "training.foreground: nan: should be a finite number"),
        (DATA + "training: {devices: 3}", "training.devices: 3: must divide the batch of 8"),
        (DATA + "training: {steps: x, batch: x}", "training.steps: 'x': should be a valid integer, unable"),
        (DATA + "training: {patience: 3}", "training.patience: 3: there are no validation data"),
        (DATA + "training: {task: classification, loss: dice_ce}", "training.loss: 'dice_ce': should be 'ce'"),
        (DATA + "training: {task: classification, stress: true}", "training.stress: True: is measured on"),
        ("data: {boundaries: true, train: [{image: a, labels: b}]}\ntraining: {task: classification}", "data.boundaries"),
        (DATA + "model: {strategy: unifrom}", "model.strategy: 'unifrom': did you mean 'uniform'?"),
        (DATA + "model: {slices: 5, strategy: [0.3, 0.4, 0.3]}", "model.strategy: [0.3, 0.4, 0.3]: is (0.3, 0.4, 0.3)"),
        (DATA + "model: {strategy: twin, tie: mirror}", "model.tie: 'mirror': the strategy 'twin' is mirror-symmetric"),
        (DATA + "model: {strategy: center, tie: uniform}", "model.tie: 'uniform': makes every strategy 'uniform'"),
        ("seed: 3", "data: is missing; give one"),
        ("data: {train: []}", "data.train: []: "),
        ("data: {train: [{image: {path: a, leve: 1}, labels: b}]}", "data.train[0].image.leve: no such option"),
        ("data: {classes: 3, label_values: [0, 255], train: [{image: a, labels: b}]}", "data.label_values: [0, 255]: give"),
        ("data: {classes: 3, boundaries: true, train: [{image: a, labels: b}]}", "data.boundaries: True: boundaries need"),
        ("", "holds None instead of options"),
        (DATA + DATA, "is not valid YAML ('data' appears twice in one section"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML (could not determine a constructor"),
        ("x" * 2**21, "cannot be read (has 2,097,152 bytes where at most 1,048,576 are read)"),
    ],
)  # fmt: skip
def test_errors_say_where_what_and_what_would_be_right(message, text, expected):
    assert message(text).startswith(expected)


def test_the_first_five_errors_are_listed_in_one_line(message):
    text = message(DATA + f"training: {{{', '.join(f'{name}: 3' for name in 'abcdefg')}}}")
    assert text.count(": no such option") == 5
    assert text.endswith(" (and 2 more)")


def test_an_option_that_replaces_a_merged_one_is_not_taken_for_a_repetition(load):
    config = load("data: {train: [&pair {image: a, labels: b}], test: [{<<: *pair, labels: c}]}")
    assert [(pair.image.path, pair.labels.path) for pair in config.data.test] == [("a", "c")]


@pytest.mark.parametrize("weights", ["hub", "hub/model.safetensors"])
def test_a_saved_network_says_how_many_slices_it_takes(load, tmp_path, weights):
    network = nn.Conv2d(3, 2, 3)
    evenslice.neutralize(network, slices=5)
    (tmp_path / "hub").mkdir()
    evenslice.save_network(network, tmp_path / "hub" / "model.safetensors")
    model = load(f"{DATA}model: {{spec: 'timm:test_vit', weights: {weights}}}").model
    assert (model.strategy, model.slices) == ("pretrained", 5)
    assert model.weights == str(tmp_path / "hub" / "model.safetensors")
    asked = load(
        f"{DATA}model: {{spec: 'timm:test_vit', weights: {weights}, slices: 3, strategy: center}}"
    ).model
    assert (asked.strategy, asked.slices) == ("center", 3)
