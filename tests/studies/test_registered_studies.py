"""The configurations of the project's studies: all can be run, and what was registered is what would run."""

from pathlib import Path

import pytest

from evenslice import StudyConfig, load_config
from evenslice.studying.runs import plan_runs

STUDIES = Path(__file__).parents[2] / "studies"


def test_every_study_that_is_finished_or_registered_can_be_read():
    found = {
        path.stem: load_config(path, StudyConfig) for path in STUDIES.glob("*.yaml") if path.stem != "best"
    }
    assert {"price", "compute", "short"} < found.keys()
    data = found["price"].datasets
    for name in ("compute", "short"):
        own = [(item.name, item.pairs, item.folds, item.blocks) for item in found[name].datasets]
        assert own == [(item.name, item.pairs, item.folds, item.blocks) for item in data]


@pytest.mark.parametrize(
    ("name", "primary", "baseline", "steps", "count"),
    [
        ("compute", "symmetrized at the encoder", "pretrained for longer", {600, 900, 1200, 1800}, 128),
        ("short", "twin", "pretrained", {200}, 160),
    ],
)
def test_the_runs_of_a_registered_study_are_those_that_it_says(
    name, primary, baseline, steps, count, shared_data, tmp_path
):
    (tmp_path / "data").symlink_to(shared_data)
    (tmp_path / "study.yaml").write_text((STUDIES / f"{name}.yaml").read_text())
    config = load_config(tmp_path / "study.yaml", StudyConfig)
    runs = plan_runs(config)
    assert (config.primary.arm, config.baseline, len(runs)) == (primary, baseline, count)
    assert {run.config.training.steps for run in runs} == steps
    slices = {run.config.model.slices for run in runs if run.arm == "one slice"}
    assert slices == ({1} if name == "compute" else set())
