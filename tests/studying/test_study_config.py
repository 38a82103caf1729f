"""The configuration of a study, and the runs that it plans: in which order, and what makes two of them the same."""

import json
import re

import pytest
from tiny_training import PAIR, study_options
from torch import nn

import evenslice
from evenslice import ConfigError, StudyConfig, load_config
from evenslice.studying.runs import plan_runs

FAIR = {"name": "fair", "network_of": "pretrained", "symmetrize": "output"}
BASE = {"name": "pretrained", "strategy": "pretrained"}
TRAINED_SO = {"name": "trained so", "strategy": "pretrained", "symmetrize": "output"}
ARMS = [FAIR, BASE, TRAINED_SO]
FOLDED = {"name": "folded", "pairs": [{**PAIR, "slices": [0, 24]}], "blocks": 2, "folds": 2}


def options(**changes):
    """Return the options of a study with arms that take the network of others."""
    return study_options("here", **{"arms": ARMS, **changes})


def configured(**changes):
    return StudyConfig.model_validate(options(**changes))


def planned(**changes):
    return plan_runs(configured(**changes))


def test_runs_are_in_an_order_in_which_what_is_done_is_a_balanced_table():
    config = configured(seeds=[3, 4], datasets=[FOLDED, *options()["datasets"]])
    runs = plan_runs(config)
    assert [(run.seed, run.fold, run.dataset, run.arm) for run in runs[:9]] == [
        (3, fold, name, arm)
        for fold, name in ((0, "folded"), (0, "blobs"), (1, "folded"))
        for arm in ("pretrained", "fair", "trained so")
    ]
    assert len(runs) == 18
    for run in runs:
        if run.arm == "fair":
            assert {name for name in run.labels if run.labels[name] != run.base.labels[name]} == {"arm"}
            assert runs.index(run.base) == runs.index(run) - 1


def test_options_of_arms_are_those_of_their_runs():
    lossy, complete = (
        {"name": name, "missing_slices": lost} for name, lost in (("lossy", 0.2), ("complete", 0.0))
    )
    runs = planned(arms=[BASE, lossy, complete], augmentation={"missing_slices": 0.1})
    assert [run.config.augmentation.missing_slices for run in runs] == [0.1, 0.2, 0.0]
    alone, longer = {"name": "alone", "slices": 1}, {"name": "longer", "steps": 1.5}
    runs = planned(arms=[BASE, alone, longer])
    assert [run.config.model.slices for run in runs] == [3, 1, 3]
    steps = [run.config.training.steps for run in runs]
    assert steps == [steps[0], steps[0], round(1.5 * steps[0])]
    random = {"name": "random", "strategy": "random", "seeds": [4]}
    config = configured(seeds=[3, 4, 5], arms=[FAIR, {**BASE, "seeds": [4, 5]}, TRAINED_SO, random])
    runs = plan_runs(config)
    seeds = {arm.name: {run.seed for run in runs if run.arm == arm.name} for arm in config.arms}
    assert seeds == {"pretrained": {4, 5}, "fair": {4, 5}, "trained so": {3, 4, 5}, "random": {4}}
    some = configured(seeds=[3, 4], arms=[FAIR, {**BASE, "seeds": [3]}, TRAINED_SO], baseline="fair")
    assert [some.seeds_of(arm) for arm in some.arms] == [(3,), (3,), (3, 4)]


# Keys


def test_keys_are_those_of_earlier_versions():
    """What version 0.1.0 called the runs of a configuration that its options can say; a task is none of them."""
    pair = {"image": "i.tif", "labels": "l.tif"}
    known = {
        "seeds": [1],
        "arms": [BASE],
        "architectures": [{"name": "net", "spec": "smp:Unet/resnet18", "weights": "none"}],
        "datasets": [{"name": "em", "train": [pair], "test": [{**pair, "image": "j.tif"}]}],
    }

    def key(**training):
        return plan_runs(StudyConfig.model_validate({**known, "training": training}))[0].key

    assert key() == key(task="segmentation") == "7b2035436547" != key(task="classification")


def test_the_key_is_that_of_what_matters(tmp_path, monkeypatch):
    def key(arm=1, **changes):
        return {run.arm: run.key for run in planned(**changes)}[ARMS[arm]["name"]]

    def weights(content):
        (tmp_path / "w.pt").write_bytes(content)
        (network,) = options()["architectures"]
        return key(architectures=[{**network, "weights": str(tmp_path / "w.pt")}])

    training, (data,) = options()["training"], options()["datasets"]
    more = {"accelerator": "auto", "tensorboard": True}
    assert key() == key(training={**training, **more}) == key(datasets=[{**data, "root": str(tmp_path)}])
    assert key() == key(audit={"max_windows": 9})
    steps = {**training, "steps": 7}
    others = [key(training=steps), key(datasets=[{**data, "training": {"steps": 7}}]), key(seeds=[1])]
    others += [key(arm=0), key(arm=2), weights(b"one"), weights(b"two")]
    assert others[0] == others[1]
    assert len({key(), *others}) == len(others)
    assert weights(b"one") == others[-2]
    assert key(arm=0, training=steps) != key(arm=0)  # of a derived run, with its base
    fair, trained = ({run.arm: run.config for run in planned()}[name] for name in ("fair", "trained so"))
    assert fair == trained

    # The function that makes a network: else a study would take the mean over different networks.
    monkeypatch.syspath_prepend(tmp_path)
    network = [{"name": "own", "spec": "revised:small", "weights": "none"}]
    keys = []
    for line in ("", "", "revised = True\n"):
        with (tmp_path / "revised.py").open("a") as file:
            file.write(line)
        keys.append(key(architectures=network))
    assert keys[0] == keys[1] != keys[2]


def test_an_arm_that_starts_from_a_saved_network_leaves_it_as_it_is(tmp_path):
    network = nn.Conv2d(3, 2, 3)
    evenslice.neutralize(network, slices=3, strategy="center")
    evenslice.save_network(network, tmp_path / "fair.safetensors")
    arms = [{"name": "pretrained", "weights": str(tmp_path / "fair.safetensors")}, {"name": "uniform"}]
    assert [run.config.model.strategy for run in planned(arms=arms)] == ["pretrained", "uniform"]


# The template, and what is written


def test_the_template_is_a_study_that_shows_every_option(command, tmp_path):
    printed = command("study", "--print-config")
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, StudyConfig.template(), "")
    (tmp_path / "template.yaml").write_text(printed.stdout)
    example = load_config(tmp_path / "template.yaml", StudyConfig)
    # The files of folds are opened.
    runs = plan_runs(example.model_copy(update={"datasets": example.datasets[1:]}))
    assert len({run.key for run in runs}) == len(runs) == 3 * 5  # seeds, arms
    assert [data.training.steps for data in example.datasets] == [1000, 600]
    assert [run.config.model.tie for run in runs[:5]] == [None, None, None, "mirror", None]
    shown = (
        example,
        example.arms[0],
        example.architectures[0],
        example.datasets[0],
        example.audit,
        example.primary,
    )
    names = {name for section in shown for name in type(section).model_fields}
    assert [name for name in names if not re.search(rf"\b{name}:[ \n]", printed.stdout)] == []


def test_a_configuration_is_written_as_it_is_read(tmp_path):
    changed = options(training={"steps": 500, "batch": 2})
    changed["datasets"][0]["training"] = {"steps": 2000}  # the default, but not the study's
    (tmp_path / "a.yaml").write_text(json.dumps(changed))
    first = load_config(tmp_path / "a.yaml", StudyConfig)
    (tmp_path / "b.yaml").write_text(json.dumps(first.model_dump(mode="json", exclude_defaults=True)))
    assert load_config(tmp_path / "b.yaml", StudyConfig) == first
    assert (first.datasets[0].training.steps, first.datasets[0].training.batch) == (2000, 2)
    given = StudyConfig.model_validate(options())
    for kind in (tuple, list):  # options given as objects count as those of a file
        assert StudyConfig.model_validate({**options(), "datasets": kind(given.datasets)}) == given
        assert StudyConfig.model_validate({**options(), "training": given.training}) == given


# What is refused


WITHOUT_TEST = {"name": "a", "train": [{"image": "i", "labels": "l"}]}
OTHER_TASK = {**options()["datasets"][0], "name": "map", "training": {"task": "classification", "loss": "ce"}}
TWIN = {"name": "twin", "strategy": "twin"}
HALF = {"seeds": [3, 4], "arms": [FAIR, {**BASE, "seeds": [3]}, {**TRAINED_SO, "seeds": [4]}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": [{"name": "uniform"}]}, "baseline: 'pretrained': no arm has this name; the arms are"),
        ({"seeds": [0, 2**33]}, "seeds: .*from 0 to 4294967295"),
        ({"training": {"devices": 2}}, "^training: {'devices': 2}: a run of a study uses one device; [^;]*$"),
        ({"arms": [{"name": "pretrained"}] * 2}, "arms: .*'pretrained' occurs twice"),
        ({"datasets": [WITHOUT_TEST]}, r"datasets\[0\].test: is"),
        (
            {"datasets": [*options()["datasets"], OTHER_TASK]},
            "map: training.task: classification: that of blobs",
        ),
        # Arms that take the network of another.
        ({"arms": [BASE, {"name": "fair", "network_of": "pretrained"}]}, "network_of needs symmetrize"),
        ({"arms": [BASE, {**FAIR, "network_of": "pretraind"}]}, "network_of: did you mean 'pretrained'"),
        ({"arms": [BASE, {**FAIR, "tie": "mirror"}]}, "trains no network, so tie has no effect"),
        ({"arms": [BASE, FAIR, {**FAIR, "name": "b", "network_of": "fair"}]}, "'fair' trains no network"),
        ({"arms": [BASE, TWIN, {**FAIR, "network_of": "twin"}]}, "'twin' is symmetrized already"),
        # Seeds of an arm.
        ({"arms": [BASE, {"name": "a", "seeds": [5]}]}, "a: seeds: 5 is not one of the study's seeds"),
        (HALF, r"trained so has none of its seeds \(3\), so they cannot be compared"),
        # A primary comparison.
        ({"primary": {"arm": "fare"}}, "arm: did you mean 'fair'"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, change, message):
    (tmp_path / "bad.yaml").write_text(json.dumps(options(**change)))
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "bad.yaml", StudyConfig)
    said = str(error.value).removeprefix(f"{tmp_path / 'bad.yaml'}: ")
    assert re.search(message, said), said
    assert "\n" not in said
