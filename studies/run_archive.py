"""The finished runs of the project's studies, kept as one file a study: what resuming it and its report need of each run.

    python studies/run_archive.py unpack    # studies/*/runs.tar.xz to the folders studies/*/runs
    python studies/run_archive.py pack      # and back, after a study has grown

A resumed study looks for ``runs/RUN/run.json``; its report reads ``log/metrics.csv``, what disturbed slices cost, and
``example.npz``, of which one is kept as a picture of the study. Of ``result.json``, which names places of one machine, the
entry ``stress`` is kept as ``stress.json``. Networks and checkpoints stay out of the repository.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path
from typing import Any

STUDIES = Path(__file__).parent
ARCHIVE = "runs.tar.xz"
STRESS = "stress.json"
KEPT = ("run.json", "log/metrics.csv")
PICTURE = "example.npz"


def pack(study: Path) -> Path:
    """Write what is kept of each finished run of a study to its archive, and return the archive.

    Runs that failed or were interrupted begin again elsewhere. Unpack the archive first: it then has what is there alone.
    """
    archive, kept = study / ARCHIVE, dict[str, bytes]()
    records = [path for path in sorted(study.glob("runs/*/run.json")) if _read(path)["status"] == "done"]
    runs = [path.parent for path in records]
    for run in runs:
        files = [run / name for name in KEPT if (run / name).is_file()]
        kept |= {path.relative_to(study).as_posix(): path.read_bytes() for path in files}
        results = [path for path in (run / "result.json", run / STRESS) if path.is_file()]
        if results and (stress := _read(results[0]).get("stress")) is not None:
            text = json.dumps({"stress": stress}, indent=1)
            kept[(run / STRESS).relative_to(study).as_posix()] = text.encode()
    for path in [run / PICTURE for run in runs if (run / PICTURE).is_file()][:1]:
        kept[path.relative_to(study).as_posix()] = path.read_bytes()
    beside = archive.with_suffix(".new")
    with tarfile.open(beside, "w:xz", preset=9) as file:
        for name, content in kept.items():
            entry = tarfile.TarInfo(name)  # without time and owner: the same runs give the same bytes
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    beside.replace(archive)
    return archive


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def unpack(study: Path) -> Path:
    """Write the runs of a study's archive to its folder ``runs``, which is returned; existing files stay as they are."""
    with tarfile.open(study / ARCHIVE) as file:
        missing = [entry for entry in file if not (study / entry.name).exists()]
        file.extractall(study, missing, filter="data")
    return study / "runs"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Pack or unpack the runs of the project's studies.")
    parser.add_argument("action", choices=["pack", "unpack"])
    options = parser.parse_args()
    wanted = ARCHIVE if options.action == "unpack" else "runs"
    for study in sorted(path.parent for path in STUDIES.glob(f"*/{wanted}")):
        print(unpack(study) if options.action == "unpack" else pack(study))


if __name__ == "__main__":
    main()
