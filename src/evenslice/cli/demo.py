"""evenslice demo: pretrained weights and a real volume, both of which come with Python packages, so it works offline.

It audits a U-Net as commonly built and after each of three strategies. Then it trains the same network to tell gray
from white matter, from a pretrained, a fair and a random start, and explains a slice by the fair one.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from evenslice.cli import options
from evenslice.cli.options import grouped
from evenslice.cli.printing import command_line, quiet, show_audits, show_result

if TYPE_CHECKING:
    from evenslice import Audit

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
STRATEGIES = ("pretrained", "uniform", "mirror", "twin")
LABELS, MAP = "labels.nii.gz", "explanation.html"
EXPLAINED = 114
"""A slice of the test volume."""

NEXT = "evenslice audit --model smp:Unet/resnet34 --weights unet.pt --volume stack.tif --out audit"


@grouped
def demo(
    *,
    seed: options.Seed = 0,
    out: Annotated[Path, options.output("Folder for results and reports.", metavar="DIR")] = Path(
        "evenslice-demo"
    ),
    output: options.Output,
) -> None:
    """Audit a pretrained U-Net on real MRI before and after making it fair, then train it; about three minutes, offline."""
    from evenslice._core import needs_extra, staged_folder
    from evenslice.cli.comparison import AUDITS, write_results
    from evenslice.report import AUDIT_FILES, need_report_extra
    from evenslice.results import StudyResults
    from evenslice.volumes import mni152

    mni152()  # all before minutes of audits; its extra brings the other two
    need_report_extra("the demonstration")
    with needs_extra("train", "the training part of the demonstration"):
        from evenslice import study
        from evenslice.studying import working_in_study
    training = out / "training"
    if training.exists():
        with working_in_study(training):
            pass
    with quiet(output.json):
        files = (*AUDITS, *AUDIT_FILES, LABELS, MAP)
        with staged_folder(out, files, documents=AUDITS, force=output.force) as folder:
            audits = _audits(seed)
            write_results(audits, folder)
            _write_labels(folder / LABELS)
        if not output.json:
            show_audits(audits, out, json=False)
        study(_configuration(out / LABELS, seed), training)
        trained = StudyResults.load(training)
        map_line = _explain(training, out, seed)
    show_result(
        {"audits": [audit.to_dict() for audit in audits], "training": trained.document},
        trained.document,
        map_line,
        f"next, with your own network and file: {NEXT}",
        out=training,
        json=output.json,
    )


def _audits(seed: int) -> "list[Audit]":
    """Audit a U-Net on EfficientNet-Lite0 as commonly built, and after three strategies."""
    from evenslice import Sampling, audit
    from evenslice.cli.comparison import audit_strategies
    from evenslice.volumes import mni152

    return audit_strategies(
        options.Network(spec=SPEC, weights="imagenet"),
        partial(audit, volume=mni152()),
        strategies=STRATEGIES,
        sampling=Sampling(tile=(128, 128), seed=seed),
        command=command_line(),
    )


def _explain(training: Path, out: Path, seed: int) -> str:
    """Write the explanation of a slice by the network with the fair start, and say where."""
    from evenslice import explain
    from evenslice._core import staged_folder
    from evenslice.training import find_network
    from evenslice.volumes import mni152

    run = next((training / "runs").glob(f"*-twin-0-{seed}-*"))  # fold 0; beside those of other seeds
    found = explain(find_network(run).load(), mni152(), EXPLAINED)
    head = '<meta charset=utf-8><meta name=viewport content="width=device-width"><style>body {font-family: sans-serif}</style>'
    with staged_folder(out, (MAP,), documents=(MAP,), force=True) as folder:  # and on the list of the folder
        (folder / MAP).write_text(f"<!doctype html>{head}{found._repr_html_()}", encoding="utf-8")
    return f"map of slice {EXPLAINED}, with the start twin: {out / MAP}"


def _write_labels(path: Path) -> None:
    """Write the most probable class of each voxel: background (0), gray matter (1) or white matter (2)."""
    import numpy as np

    from evenslice import open_volume
    from evenslice.volumes import mni152, write_volume

    gray, white = (mni152(name)[...].astype(np.int16) for name in ("gm", "wm"))
    classes = np.stack([255 - gray - white, gray, white]).argmax(0).astype(np.uint8)
    write_volume(open_volume(classes), path, like=mni152(), labels=True)


def _configuration(labels: Path, seed: int) -> dict[str, Any]:
    """Return the options of the study of three starts.

    Its steps are so few that what was learned from photographs counts; after twice as many, a random start is as good.
    """
    from evenslice.volumes import mni152

    pair = {"image": mni152().path, "labels": str(labels.absolute())}
    return {
        "seeds": [seed],
        "training": {
            "steps": 60,
            "crop": [96, 96],
            "learning_rate": 1e-3,  # few steps have to be large
            "validate_every": 20,
            "monitor_every": 20,
        },
        "arms": [{"name": name, "strategy": name} for name in ("pretrained", "twin", "random")],
        "architectures": [{"name": "EfficientNet-Lite0 U-Net", "spec": SPEC}],
        "datasets": [
            {
                "name": "MNI152",
                "classes": 3,
                "train": [{**pair, "slices": [30, 105]}],
                "test": [{**pair, "slices": [108, 120]}],  # no window reads slices of both
                "validation_fraction": 0.1,
            }
        ],
        "audit": {"precision": 0.05, "max_windows": 60},
    }
