"""The runs of the project's studies travel in one file each, from which a study resumes."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import run_archive as archive
from study_results import NAMES
from synthetic_study import make_study

from evenslice.results.studies import StudyResults

STUDIES = Path(__file__).parents[2] / "studies"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_what_is_unpacked_is_what_was_packed(tmp_path):
    study = make_study(tmp_path / "made-up", size=24)
    before = contents(study / "runs")
    first = archive.pack(study).read_bytes()
    shutil.rmtree(study / "runs")
    archive.unpack(study)
    after = contents(study / "runs")
    kept = {name for name in before if name.partition("/")[2] in archive.KEPT}
    (picture,) = (name for name in after if name.endswith(archive.PICTURE))
    stress = {name: after.pop(name) for name in list(after) if name.endswith("stress.json")}
    assert after == {name: before[name] for name in {*kept, picture}}
    assert len(stress) == 18
    for name, content in stress.items():  # of result.json nothing else, which names a machine
        result = json.loads(before[name.replace("stress.json", "result.json")])
        assert json.loads(content) == {"stress": result["stress"]}
    found = StudyResults.load(study).runs
    assert len(found) == 18
    assert {len(run.stress.losses) for run in found} == {4}
    assert archive.pack(study).read_bytes() == first  # the same runs, the same bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_archives_of_the_repository_hold_every_run_of_their_summaries(name, tmp_path):
    study = Path(shutil.copytree(STUDIES / name, tmp_path / name, ignore=shutil.ignore_patterns("runs")))
    shutil.copy(STUDIES / f"{name}.yaml", study / "config.yaml")
    archive.unpack(study)
    summary = json.loads((study / "summary.json").read_text())
    assert summary["finished"] == summary["planned"]
    assert len(StudyResults.load(study).runs) == summary["finished"]
    with (study / "results.csv").open(newline="") as file:
        shown = {row["key"] for row in csv.DictReader(file)}
    assert shown == {json.loads(path.read_text())["key"] for path in (study / "runs").glob("*/run.json")}
    assert sum(path.stat().st_size for path in STUDIES.glob("*/runs.tar.xz")) < 2_000_000
