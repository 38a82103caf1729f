"""The finished runs of the project's studies, kept as one file a study: what resuming it and its report need of each run.

    python studies/run_archive.py unpack    # studies/*/runs.zip to the folders studies/*/runs
    python studies/run_archive.py pack      # and back, after a study has grown

A resumed study looks for ``runs/RUN/run.json``; its report reads ``log/metrics.csv``, what disturbed slices cost, and
``example.npz``, of which one is kept as a picture of the study. Of ``result.json``, which names places of one machine, the
entry ``stress`` is kept as ``stress.json``. Networks and checkpoints stay out of the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

STUDIES = Path(__file__).parent
ARCHIVE = "runs.zip"
STRESS = "stress.json"
KEPT = ("run.json", "log/metrics.csv")
PICTURE = "example.npz"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same time for every file, so that the same runs give the same bytes."""


def pack(study: Path) -> Path:
    """Write what is kept of each finished run of a study to its archive, and return the archive.

    Raises:
        SystemExit: the archive has runs that are not there, and would be lost.
    """
    archive = study / ARCHIVE
    runs = [run for run in sorted((study / "runs").iterdir()) if _is_done(run)]
    if lost := _archived(archive) - {run.name for run in runs}:
        raise SystemExit(f"{archive}: has {len(lost)} runs that are not in {study / 'runs'}; unpack it first")
    pictures = [run / PICTURE for run in runs if (run / PICTURE).is_file()][:1]
    beside = archive.with_suffix(".new")
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for run in runs:
            for path in (run / name for name in KEPT):
                if path.is_file():
                    _add(file, path.relative_to(study), path.read_bytes())
            if (stress := _stress(run)) is not None:
                _add(file, (run / STRESS).relative_to(study), json.dumps(stress, indent=1).encode())
        for path in pictures:
            _add(file, path.relative_to(study), path.read_bytes())
    beside.replace(archive)
    return archive


def _archived(archive: Path) -> set[str]:
    if not archive.exists():
        return set()
    with zipfile.ZipFile(archive) as file:
        return {name.split("/")[1] for name in file.namelist()}


def _is_done(run: Path) -> bool:
    """Return whether a run has finished: those that failed or were interrupted begin again elsewhere."""
    record = run / "run.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["status"] == "done"


def _add(file: zipfile.ZipFile, path: Path, content: bytes) -> None:
    file.writestr(zipfile.ZipInfo(path.as_posix(), EPOCH), content, zipfile.ZIP_DEFLATED, 9)


def _stress(run: Path) -> dict[str, Any] | None:
    """Return what is kept of what disturbed slices cost a run; None if it was not measured."""
    for path in (run / "result.json", run / STRESS):
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("stress")
            return None if found is None else {"stress": found}
    return None


def unpack(study: Path) -> Path:
    """Write the runs of a study's archive to its folder ``runs``, which is returned; existing files stay as they are."""
    with zipfile.ZipFile(study / ARCHIVE) as file, tempfile.TemporaryDirectory(dir=study) as beside:
        for entry in file.infolist():
            if not (study / entry.filename).exists():
                part = Path(file.extract(entry, beside))
                whole = study / part.relative_to(beside)
                whole.parent.mkdir(parents=True, exist_ok=True)
                part.replace(whole)
    return study / "runs"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Pack or unpack the runs of the project's studies.")
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("--studies", type=Path, default=STUDIES, help="folder of the studies")
    options = parser.parse_args()
    wanted = ARCHIVE if options.action == "unpack" else "runs"
    for study in sorted(path.parent for path in options.studies.glob(f"*/{wanted}")):
        print(unpack(study) if options.action == "unpack" else pack(study))
    return 0


if __name__ == "__main__":
    sys.exit(main())
