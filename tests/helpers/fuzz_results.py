"""Read damaged results by the hundred: each is read, or refused in one line, without a hang, crash or excess of memory.

    python tests/helpers/fuzz_results.py                        # 500 damaged files of each kind
    python tests/helpers/fuzz_results.py --format audit --count 100 --seed 7

The kinds are audits, studies, surveys, the folders of training runs, and networks with checkpoints. What can be read is
also shown as a user would see it, as a page, tables and JSON. Everything else is as in :mod:`fuzz_volumes`.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import fuzz_volumes
import numpy as np
from fuzz_seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT = 500
SPEC = "timm:test_resnet"
_VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**70,
    1e308,
    -0.5,
    "",
    "a",
    "\u001b[31m",
    [],
    {},
    [[]],
    [1] * 9,
    {"a": 1},
)


# Damage that keeps the form


def _edit_json(content, chance):
    """Change, remove or repeat a value somewhere in a JSON document."""
    document = json.loads(content)
    places = list(_places(document))
    for _ in range(chance.choice((1, 1, 2, 3))):
        holder, key = chance.choice(places)
        kind = chance.random()
        try:
            if kind < 0.2:
                del holder[key]
            elif kind < 0.3 and isinstance(holder, list):
                holder.append(holder[key])
            else:
                holder[key] = chance.choice(_VALUES)
        except (IndexError, KeyError):
            continue
    return json.dumps(document, indent=2).encode()


def _places(value) -> Iterator[tuple]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def _edit_npz(content, chance):
    """Change the shape, the type or the values of an array, or leave it out."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = chance.choice(sorted(arrays))
    array = arrays.pop(name)
    kind = chance.randrange(7)
    if kind == 0:
        arrays[name] = array[: len(array) // 2]
    elif kind == 1:
        arrays[name] = array.ravel()
    elif kind == 2:
        arrays[name] = array.astype(chance.choice(("<U3", "i1", "f4", "c16", "M8[s]", "V5")))
    elif kind == 3:
        arrays[name] = np.full_like(array, chance.choice((0, 1, 127)))
    elif kind == 4 and array.dtype.kind == "f":
        arrays[name] = np.full_like(array, chance.choice((np.nan, np.inf, -1, 3e38)))
    elif kind == 5:
        arrays[name] = array[..., None]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _edit_lines(content, chance):
    """Change, remove or repeat a line, or a number in it."""
    lines = content.split(b"\n")
    place = chance.randrange(len(lines))
    kind = chance.randrange(4)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, lines[place])
    elif kind == 2:
        lines[place] = fuzz_volumes.damaged(lines[place], chance)
    else:
        parts = lines[place].split(b",")
        parts[chance.randrange(len(parts))] = chance.choice((b"", b"-1", b"nan", b"1e400", b"x", b"\x1b[2J"))
        lines[place] = b",".join(parts)
    return b"\n".join(lines)


def _edit_safetensors(content, chance):
    """Change the header, with its record of evenslice."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if chance.random() < 0.7:
        inner = json.loads(header["__metadata__"]["evenslice"])
        header["__metadata__"]["evenslice"] = _edit_json(json.dumps(inner), chance).decode()
    else:
        header = json.loads(_edit_json(json.dumps(header), chance))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _edit_archive(content, chance):
    """Damage one entry of a file of ``torch.save``, whose checksums stay right."""
    if not zipfile.is_zipfile(io.BytesIO(content)):  # in the older format
        return fuzz_volumes.damaged(content, chance)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        chosen = chance.choice([entry.filename for entry in before.infolist()])
        for entry in before.infolist():
            data = before.read(entry)
            after.writestr(
                entry.filename, fuzz_volumes.damaged(data, chance) if entry.filename == chosen else data
            )
    return buffer.getvalue()


_EDITS = {
    ".json": _edit_json,
    ".npz": _edit_npz,
    ".csv": _edit_lines,
    ".yaml": _edit_lines,
    ".safetensors": _edit_safetensors,
    ".pt": _edit_archive,
    ".ckpt": _edit_archive,
}


# Valid results


def make(name: str, folder: Path) -> list[Seed]:
    """Write the seeds of a kind: one for each of its files, which is damaged."""
    KINDS[name][0](folder)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in _EDITS]
    return [
        Seed(str(folder), [path], {"kind": name, "file": path}, edit=_EDITS[path.suffix]) for path in files
    ]


def _make_audits(folder: Path) -> None:
    from synthetic import CYCLIC, PRETRAINED, make_audit

    from evenslice.results.audits import save_audits

    cases = [("pretrained", PRETRAINED), ("five", CYCLIC)]
    save_audits([make_audit(name, shares, size=16, windows=50) for name, shares in cases], folder)


def _make_study(folder: Path) -> None:
    from synthetic_study import make_study

    make_study(folder, arms={"pretrained": (-0.19, 0.0), "uniform": (0.0, 0.002)}, seeds=(0, 1), size=16)


def _make_survey(folder: Path) -> None:
    from evenslice.results.intervals import Interval
    from evenslice.results.surveys import SurveyedNetwork, SurveyResult, SurveyRun

    shares = tuple(Interval(value, value - 0.1, value + 0.1) for value in (0.3, 0.5, 0.2))
    bias = Interval(-0.2, -0.3, -0.1)
    networks = [
        SurveyedNetwork(
            spec=spec,
            weights="imagenet",
            origin="a hub",
            stems=("conv1",),
            energy=(0.3, 0.5, 0.2),
            chromatic=0.2,
            verdict="biased",
            shares=shares,
            pairs=(bias,),
            reliance=(bias,),
            answer_change=Interval(0.2, 0.1, 0.3),
            directional_bias=bias,
            mirror_error=Interval(0.3, 0.2, 0.4),
            mirror_disagreement=Interval(0.1, 0.0, 0.2),
            windows=32,
            seconds=1.5,
        )
        for spec in ("timm:a", "timm:b")
    ]
    networks.append(SurveyedNetwork(spec="timm:c", weights="imagenet", error="has no weights"))
    text = SurveyResult(tuple(networks), SurveyRun(windows=32, method="gradient")).to_json()
    (folder / "survey.json").write_text(text, encoding="utf-8")


def _make_networks(folder: Path) -> None:
    import torch

    from evenslice.neutralizing import load_network, save_network

    model, _, source = load_network(SPEC, "none", strategy="uniform")
    save_network(model, folder / "saved.safetensors", source=source)
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    torch.save(state, folder / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "old.ckpt", _use_new_zipfile_serialization=False)


def _make_run(folder: Path) -> None:
    from evenslice.neutralizing import load_network, save_network

    model, _, source = load_network(SPEC, "none", strategy="uniform")
    save_network(model, folder / "network.safetensors", source=source)
    (folder / "log").mkdir()
    (folder / "log" / "metrics.csv").write_text("step,loss,validation_dice\n0,,\n10,0.5,\n20,0.4,0.8\n")
    part = {"name": "a", "shape": [9, 32, 32], "intensity": [0, 255], "image": "0", "labels": "1"}
    (folder / "data.json").write_text(json.dumps({"train": [part], "validation": [], "test": []}))
    (folder / "result.json").write_text(
        json.dumps(
            {
                "dice": {"mean": 0.8, "per_class": [0.9, 0.8]},
                "iou": None,
                "validation": {"step": 20, "dice": 0.8},
                "bias": None,
                "steps": 20,
                "seconds": 3.5,
                "data": {"train": [part], "validation": [], "test": []},
                "versions": {"python": "3.11"},
                "created": "2026-01-02T03:04:05",
            }
        )
    )
    (folder / "config.yaml").write_text(
        "# What to train on.\n"
        "data:\n"
        "  name: blobs\n"
        "  classes: 2\n"
        "  train:\n"
        "    - {image: image.npy, labels: labels.npy, slices: [0, 18]}\n"
        "model:\n"
        f"  spec: {SPEC}\n"
        "  weights: none\n"
        "  slices: 3\n"
        "training:\n"
        "  steps: 20\n"
    )


# Reading them as the commands do


def _look(item: Seed) -> None:
    KINDS[item.options["kind"]][1](Path(item.path), item.options["file"])


def _look_at_audits(folder: Path, _: Path) -> None:
    from evenslice import load_audits
    from evenslice.cli.printing import show_audits
    from evenslice.report import write_audit_report

    audits = load_audits(folder)
    with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        write_audit_report(audits, Path(out))
        for json_asked in (True, False):
            show_audits(audits, None, json=json_asked)


def _look_at_study(folder: Path, _: Path) -> None:
    from evenslice.cli.printing import show_study
    from evenslice.report import write_study_report
    from evenslice.results import load_study

    results = load_study(folder)
    with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        write_study_report(results, Path(out) / "report.html")
        show_study(results.summary, folder, json=False)


def _look_at_survey(folder: Path, _: Path) -> None:
    from evenslice.auditing import Survey
    from evenslice.cli.printing import show_survey

    survey = Survey.load(folder)
    with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        survey.save(Path(out), force=True)
        show_survey(survey, None, json=False)


def _look_at_network(_: Path, file: Path) -> None:
    from evenslice.neutralizing import load_network

    load_network(SPEC, str(file))


def _look_at_run(folder: Path, _: Path) -> None:
    from evenslice._core.config_files import load_config
    from evenslice.training.config import TrainConfig
    from evenslice.training.run_folder import RunFolder
    from evenslice.training.run_network import load_segmenter

    run = RunFolder(folder)
    load_segmenter(folder)
    run.read_result()
    run.read_metrics()
    run.check_data(run.read_data())
    run.has_begun(load_config(run.config, TrainConfig), resume=True)


KINDS = {
    "audit": (_make_audits, _look_at_audits),
    "study": (_make_study, _look_at_study),
    "survey": (_make_survey, _look_at_survey),
    "run": (_make_run, _look_at_run),
    "network": (_make_networks, _look_at_network),
}


def work(name: str, seed: int, first: int, count: int) -> None:
    """Read damaged results; the main function of the process."""
    fuzz_volumes.work_on(name, seed, first, count, make, _look)


if __name__ == "__main__":
    fuzz_volumes.run(__doc__, tuple(KINDS), COUNT, work, __file__)
