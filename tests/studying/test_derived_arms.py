"""Studies with folds and with arms that take the network of another: in which order, known by what, with which result."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from tiny_training import PAIR, start, study_options, write_inputs

from evenslice.neutralizing import load_network
from evenslice.results.studies import load_study
from evenslice.studying import run_execution, study_runner
from evenslice.studying.config import StudyConfig
from evenslice.studying.runs import count_runs, plan_runs
from evenslice.studying.study_runner import study

ARMS = [
    {"name": "fair", "network_of": "pretrained", "symmetrize": "output"},
    {"name": "pretrained", "strategy": "pretrained"},
    {"name": "trained so", "strategy": "pretrained", "symmetrize": "output"},
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("derived"))


def options(inputs, **changes):
    """A study of two folds, and of a second data set without any."""
    values = study_options(inputs)
    (plain,) = values["datasets"]
    folded = {
        "name": "folded",
        "root": str(inputs),
        "pairs": [{**PAIR, "slices": [0, 24]}],
        "blocks": 2,
        "folds": 2,
    }
    return {**values, "arms": ARMS, "datasets": [folded, plain], **changes}


def config(inputs, **changes):
    return StudyConfig.model_validate(options(inputs, **changes))


def test_runs_are_in_an_order_in_which_what_is_done_is_a_balanced_table(inputs):
    planned = config(inputs, seeds=[3, 4])
    runs = plan_runs(planned)
    assert [(run.seed, run.fold, run.dataset, run.arm) for run in runs[:9]] == [
        (3, 0, "folded", "pretrained"),
        (3, 0, "folded", "fair"),
        (3, 0, "folded", "trained so"),
        (3, 0, "blobs", "pretrained"),
        (3, 0, "blobs", "fair"),
        (3, 0, "blobs", "trained so"),
        (3, 1, "folded", "pretrained"),
        (3, 1, "folded", "fair"),
        (3, 1, "folded", "trained so"),
    ]
    assert len(runs) == count_runs(planned) == 18
    for run in runs:
        if run.arm == "fair":
            assert run.base in runs
            assert {name for name in run.labels if run.labels[name] != run.base.labels[name]} == {"arm"}
            assert runs.index(run.base) == runs.index(run) - 1


def test_a_derived_run_is_neither_its_base_nor_an_arm_trained_so(inputs):
    fair, base, trained = (
        next(run for run in plan_runs(config(inputs)) if run.arm == arm["name"]) for arm in ARMS
    )
    assert fair.config == trained.config
    assert len({fair.key, base.key, trained.key}) == 3
    other = options(inputs)
    other["training"] |= {"steps": 5}
    changed = next(run for run in plan_runs(StudyConfig.model_validate(other)) if run.arm == "fair")
    assert changed.key != fair.key


def test_arms_may_lose_slices_in_training(inputs):
    arms = [
        {"name": "pretrained", "strategy": "pretrained"},
        {"name": "lossy", "strategy": "pretrained", "missing_slices": 0.2},
        {"name": "complete", "strategy": "pretrained", "missing_slices": 0.0},
    ]
    runs = plan_runs(config(inputs, arms=arms, augmentation={"missing_slices": 0.1}))
    assert [run.config.augmentation.missing_slices for run in runs[:3]] == [0.1, 0.2, 0.0]


def test_a_control_is_run_with_fewer_seeds(inputs):
    fair, base, trained = ARMS
    arms = [fair, {**base, "seeds": [4, 5]}, trained, {"name": "random", "strategy": "random", "seeds": [4]}]
    planned = config(inputs, seeds=[3, 4, 5], arms=arms)
    runs = plan_runs(planned)
    seeds = {arm["name"]: {run.seed for run in runs if run.arm == arm["name"]} for arm in arms}
    assert seeds == {"pretrained": {4, 5}, "fair": {4, 5}, "trained so": {3, 4, 5}, "random": {4}}
    assert len(runs) == count_runs(planned) == 3 * (2 + 2 + 3 + 1)
    with pytest.raises(ValidationError, match="random: seeds: 5 is not one of the study's seeds"):
        config(inputs, seeds=[3, 4], arms=[*ARMS, {"name": "random", "strategy": "random", "seeds": [5]}])
    with pytest.raises(ValidationError, match="trains no network, so seeds has no effect"):
        config(inputs, seeds=[3, 4], arms=[{**fair, "seeds": [3]}, base, trained])


def test_an_arm_without_a_seed_in_common_with_the_baseline_is_refused(inputs):
    fair, base, trained = ARMS
    message = (
        r"trained so has none of its seeds \(3\), so they cannot be compared; give both a seed in common"
    )
    with pytest.raises(ValidationError, match=message):
        config(inputs, seeds=[3, 4], arms=[fair, {**base, "seeds": [3]}, {**trained, "seeds": [4]}])
    with pytest.raises(ValidationError, match=r"fair has none of its seeds \(4\)"):
        config(
            inputs,
            seeds=[3, 4],
            arms=[fair, {**base, "seeds": [3]}, {**trained, "seeds": [4]}],
            baseline="trained so",
        )
    some = config(inputs, seeds=[3, 4], arms=[fair, {**base, "seeds": [3]}, trained], baseline="fair")
    assert [some.seeds_of(arm) for arm in some.arms] == [(3,), (3,), (3, 4)]


def test_keys_are_those_of_earlier_versions(inputs):
    """What version 0.1.0 called the runs of a configuration that its options can say."""
    pair = {"image": "i.tif", "labels": "l.tif"}
    known = StudyConfig.model_validate(
        {
            "seeds": [1],
            "arms": [{"name": "pretrained", "strategy": "pretrained"}],
            "architectures": [{"name": "net", "spec": "smp:Unet/resnet18", "weights": "none"}],
            "datasets": [{"name": "em", "train": [pair], "test": [{**pair, "image": "j.tif"}]}],
        }
    )
    assert plan_runs(known)[0].key == KEY_OF_0_1_0


KEY_OF_0_1_0 = "7b2035436547"


FAIR = {"name": "fair", "network_of": "pretrained", "symmetrize": "output"}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([{"name": "fair", "network_of": "pretrained"}], "network_of needs symmetrize"),
        ([{**FAIR, "network_of": "pretraind"}], "network_of: did you mean 'pretrained'"),
        ([{**FAIR, "tie": "mirror"}], "trains no network, so tie has no effect"),
        ([FAIR, {**FAIR, "name": "fairer", "network_of": "fair"}], "'fair' trains no network itself"),
        (
            [{"name": "so", "strategy": "pretrained", "symmetrize": "encoder"}, {**FAIR, "network_of": "so"}],
            "'so' is",
        ),
        (
            [{"name": "twin", "strategy": "twin"}, {**FAIR, "network_of": "twin"}],
            "'twin' is symmetrized already",
        ),
    ],
)
def test_arms_that_take_no_usable_network_are_refused(inputs, arms, message):
    with pytest.raises(ValidationError, match=message):
        config(inputs, arms=[{"name": "pretrained", "strategy": "pretrained"}, *arms])


@pytest.mark.parametrize(
    ("primary", "message"),
    [
        ({"arm": "fare"}, "arm: did you mean 'fair'"),
        ({"arm": "pretrained"}, "arm: 'pretrained' is the baseline"),
        ({"arm": "fair", "architecture": "tin"}, "architecture: did you mean 'tiny'"),
        ({"arm": "fair", "margin": 0}, "greater than 0"),
    ],
)
def test_a_primary_comparison_that_is_none_is_refused(inputs, primary, message):
    with pytest.raises(ValidationError, match=message):
        config(inputs, primary=primary)


@pytest.fixture(scope="module")
def done(inputs):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = inputs / "done"
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(inputs))
        summary = study(
            config(inputs, arms=ARMS[:2], primary={"arm": "fair", "margin": 0.02}),
            out,
            on_finished=lambda outcome, *_: seen.append(outcome),
        )
    torch.set_num_threads(before)
    return out, summary, seen


def test_a_derived_run_has_the_network_of_its_base_made_symmetric(done, inputs, monkeypatch):
    monkeypatch.syspath_prepend(str(inputs))
    out, summary, seen = done
    assert summary["failed"] == []
    assert (summary["planned"], summary["finished"]) == (6, 6)
    by_arm = {outcome.arm: outcome for outcome in seen if outcome.dataset == "folded" and outcome.fold == 1}
    fair, base = by_arm["fair"], by_arm["pretrained"]
    assert (fair.steps, fair.seconds) == (0, 0)
    assert base.steps == 8
    assert fair.largest_bias < 1e-5 < base.largest_bias
    assert fair.mirror_mismatch < 1e-5
    assert fair.data == base.data
    folders = [next(out.glob(f"runs/*-{outcome.key}")) for outcome in (fair, base)]
    left, trained = ({path.name for path in folder.iterdir()} for folder in folders)
    assert left == trained - {"log"}
    assert yaml.safe_load((folders[0] / "config.yaml").read_text())["model"]["symmetrize"] == "output"
    window = torch.rand(1, 3, 16, 16)
    fair_network, network = (
        load_network("tiny_networks:tiny", str(folder / "network.safetensors")).model for folder in folders
    )
    expected = (network(window) + network(window.flip(1))) / 2
    torch.testing.assert_close(fair_network(window), expected)


def test_results_know_their_folds(done):
    out, _, _ = done
    with (out / "results.csv").open(newline="") as file:
        rows = [(row["dataset"], row["arm"], row["fold"]) for row in csv.DictReader(file)]
    assert rows == [
        *(("folded", arm, fold) for arm in ("fair", "pretrained") for fold in "01"),
        *(("blobs", arm, "0") for arm in ("fair", "pretrained")),
    ]
    found = load_study(out)
    assert [run.fold for run in found.runs if run.dataset == "folded"] == [0, 1, 0, 1]
    assert next(run for run in found.runs if run.arm == "fair").curves == {}
    assert (out / "report.html").exists()


def test_the_summary_pools_data_sets_and_knows_the_primary_comparison(done):
    _, summary, seen = done
    (pooled,) = summary["pooled"]
    assert (pooled["architecture"], pooled["datasets"]) == ("tiny", ["folded", "blobs"])
    fair, base = pooled["arms"]
    assert fair["primary"] is True
    assert fair["non_inferiority"]["margin"] == 0.02
    assert fair["non_inferiority"]["holds"] is None  # one replicate of blobs
    assert not base.get("differences")
    by_set = [
        np.mean([outcome.dice for outcome in seen if (outcome.dataset, outcome.arm) == (name, "fair")])
        for name in ("folded", "blobs")
    ]
    assert fair["figures"]["dice"]["estimate"] == pytest.approx(np.mean(by_set))
    assert base["figures"]["loss_both"]["estimate"] is not None


def test_a_data_set_has_folds_even_if_only_one_of_them_has_succeeded(done, inputs, tmp_path):
    _, _, seen = done
    first = [outcome for outcome in seen if outcome.fold == 0]
    summary = study_runner.write_results(config(inputs, arms=ARMS[:2]), first, tmp_path)
    assert [(item["dataset"], item["unit"]) for item in summary["comparisons"]] == [
        ("folded", "fold"),
        ("blobs", "seed"),
    ]


def test_nothing_is_repeated_but_what_is_damaged(done, inputs, monkeypatch):
    monkeypatch.syspath_prepend(str(inputs))
    out, summary, seen = done
    tried = []
    again = config(inputs, arms=ARMS[:2], primary={"arm": "fair", "margin": 0.02})
    assert study(again, out, on_finished=lambda outcome, *_: tried.append(outcome)) == summary
    assert not tried
    fair = next(outcome for outcome in seen if outcome.arm == "fair")
    (next(out.glob(f"runs/*-{fair.key}")) / "network.safetensors").write_bytes(b"damaged")
    study(again, out, on_finished=lambda outcome, *_: tried.append(outcome))
    (repeated,) = tried
    assert repeated == fair


def test_a_network_that_was_removed_is_trained_anew_if_other_runs_need_it(inputs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(inputs))
    values = options(inputs, arms=ARMS[1:2])
    values["datasets"] = values["datasets"][1:]
    out, kept = tmp_path / "out", {"run.json", "log", "example.npz"}
    first = study(StudyConfig.model_validate(values), out)
    (folder,) = (out / "runs").iterdir()
    for path in folder.iterdir():
        if path.name not in kept:  # as in an archive of results without networks
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    tried = []
    assert study(StudyConfig.model_validate(values), out) == first  # nobody needs it
    arms = [*ARMS[:2], {"name": "fair early", "network_of": "pretrained", "symmetrize": "0"}]
    more = StudyConfig.model_validate({**values, "arms": arms})
    summary = study(more, out, on_finished=lambda outcome, *_: tried.append(outcome))
    assert [run["error"] for run in summary["failed"]] == []
    assert summary["finished"] == 3
    assert [outcome.arm for outcome in tried] == ["pretrained", "fair", "fair early"]
    assert tried[0].dice == first["comparisons"][0]["arms"][0]["figures"]["dice"]["estimate"]


def test_a_derived_run_of_a_failed_run_fails_and_says_why(inputs, monkeypatch):
    monkeypatch.syspath_prepend(str(inputs))
    monkeypatch.setenv("STOP_AT", "1")
    values = options(inputs, arms=ARMS[:2])
    values["datasets"] = values["datasets"][1:]
    summary = study(StudyConfig.model_validate(values), inputs / "failed")
    errors = {run["arm"]: run["error"] for run in summary["failed"]}
    assert "stopped here" in errors["pretrained"]
    assert errors["fair"].startswith(
        "its network is that of pretrained, whose run blobs-tiny-pretrained-0-0-"
    )
    assert errors["fair"].endswith("failed (RuntimeError: stopped here)")


def test_an_unusable_fold_stops_a_study_before_its_first_run(inputs):
    np.save(inputs / "empty.npy", np.zeros((24, 48, 48), np.uint8))
    values = options(inputs)
    values["datasets"][0]["pairs"][0]["labels"] = "empty.npy"
    with pytest.raises(study_runner.ConfigError, match=r"datasets: 'folded': fold 0: train: has no voxel"):
        study(StudyConfig.model_validate(values), inputs / "unusable")
    assert not (inputs / "unusable" / "runs").exists()


@pytest.mark.slow
def test_workers_begin_a_derived_run_when_its_base_is_done(inputs, tmp_path):
    values = options(inputs, arms=ARMS[:2])
    values["datasets"] = values["datasets"][:1]
    process = start(inputs, "study", values, tmp_path / "out", "--workers", "2", SLOW="0.05")
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["finished"] == 4
    assert "folded, tiny, fair, fold 1, seed 0: Dice" in error


def test_a_derived_run_refuses_other_data_than_its_base_was_trained_on(done, inputs, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(inputs))
    out, _, _ = done
    moved = tmp_path / "moved"
    write_inputs(moved)
    np.save(moved / "labels.npy", 1 - np.load(moved / "labels.npy"))
    values = options(moved, arms=ARMS[:2])
    run = next(run for run in plan_runs(StudyConfig.model_validate(values)) if run.arm == "fair")
    base = tmp_path / "runs"
    base.mkdir()
    trained = run.base.folder(out / "runs")
    (base / trained.name).symlink_to(trained)
    assert "the files are not those with which the run" in run_execution.execute(run, base).error
