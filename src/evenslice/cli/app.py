"""The command line: one function a command, no logic. Exit status 2 and one line of text for a user's mistake."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import traceback
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import evenslice
from evenslice._core import EvensliceError, spelled_on_command_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from rich.console import RenderableType

    from evenslice.auditing import Audit, Survey

__all__ = ["app", "main"]

app = typer.Typer(
    name="evenslice",
    help="Find and remove the colour bias that RGB-pretrained networks carry into stacks of grayscale slices.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MODEL_HELP = (
    "The network: smp:Unet/resnet34, timm:NAME, torchvision:NAME, monai:NAME, transformers:NAME (on the hub, a folder or a "
    "model type), or package.module:function."
)
WEIGHTS_HELP = "Its weights: imagenet, none (random) or a file (.safetensors, .pt, .pth, .ckpt)."
STRATEGY_HELP = (
    "How colour kernels become slice kernels: pretrained (the network as it is built), uniform, center, profile, "
    "mirror, shuffle, equalize, mixer, reinit, random"
)

Model = Annotated[str, typer.Option("--model", metavar="SPEC", help=MODEL_HELP)]
Weights = Annotated[str, typer.Option("--weights", metavar="W", help=WEIGHTS_HELP)]
Slices = Annotated[
    int | None, typer.Option("--slices", metavar="N", help="Slices in a window, odd; by default 3.")
]
Classes = Annotated[
    int | None, typer.Option("--classes", help="Output classes; by default as in the weights, else 2.")
]
Tie = Annotated[str | None, typer.Option("--tie", help="Keep the symmetry for ever: mirror or uniform.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of everything that is drawn.")]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="M[,M,M]",
        help="What the network's input in 0..1 was centred by in training; by default what its pretrained weights say, "
        "0 for a network trained on plain 0..1.",
    ),
]
Std = Annotated[
    str | None,
    typer.Option("--std", metavar="S[,S,S]", help="What it was divided by, likewise; 1 for plain 0..1."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a result that is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Axes = Annotated[
    str | None, typer.Option("--axes", help="Names of the file's axes as stored, such as xyz or tzyx.")
]
Select = Annotated[
    list[str] | None,
    typer.Option("--select", metavar="AXIS=INDEX", help="Pick one entry of an axis, such as t=0."),
]
Step = Annotated[int, typer.Option("--step", help="Distance between the slices of a window.")]
Tile = Annotated[tuple[int, int] | None, typer.Option("--tile", metavar="Y X", help="Size of the tiles.")]
Intensity = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--intensity", metavar="LOW HIGH", help="Voxel values to scale to 0 and 1; by default percentiles."
    ),
]
Fill = Annotated[float | None, typer.Option("--fill", help="Voxel value that replaces NaN and infinity.")]
Batch = Annotated[
    int | None, typer.Option("--batch", help="Windows in one pass; by default as many as are fastest.")
]
Precision = Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 …")]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Processes to work with, on this machine.")
]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Dask scheduler to work with.")
]
Level = Annotated[int, typer.Option("--level", help="Resolution level of a multiscale volume, 0 the finest.")]


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    # `main` takes --debug and --version from the command line before Typer reads it; they stand here to be documented.
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")] = Path(
        "evenslice-demo"
    ),
    seed: Seed = 0,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Audit a pretrained U-Net on real MRI before and after it was made fair, then train it, offline."""
    from evenslice._core import staged_folder
    from evenslice.cli.comparison import AUDITS, RENDERED, write_results
    from evenslice.cli.demonstration import run_demo, train_demo
    from evenslice.cli.tables import course_table

    with staged_folder(out, AUDITS + RENDERED, force=force) as folder:
        audits = list(run_demo(seed=seed, command=_command()))
        write_results(audits, folder)
    if not json:
        _show_audits(audits, out, json=False)
    trained = train_demo(out / "training", seed=seed, force=force)
    if json:
        _show_json({"audits": [audit.to_dict() for audit in audits], "training": trained.summary})
        return
    _show(course_table(trained.runs))
    _show(f"report: {out / 'training' / 'report.html'}")


@app.command()
def info(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A volume: file, folder, file.h5:/path or address (https, s3)."),
    ],
    axes: Axes = None,
    select: Select = None,
    level: Level = 0,
    json: AsJson = False,
) -> None:
    """Describe a volume: format, shape, spacing, orientation, size, intensities, classes."""
    from dataclasses import asdict

    from evenslice.cli.tables import info_table
    from evenslice.volumes import describe, open_volume

    described = describe(open_volume(path, axes=axes, select=_parse_select(select), level=level))
    _show_json(asdict(described)) if json else _show(info_table(described))


@app.command()
def audit(
    model: Annotated[str, typer.Option("--model", metavar="SPEC", help=f"{MODEL_HELP} Or onnx.")],
    weights: Annotated[
        str, typer.Option("--weights", metavar="W", help=f"{WEIGHTS_HELP} For onnx, the file of the network.")
    ],
    volume: Annotated[
        list[str], typer.Option("--volume", metavar="PATH", help="A volume; several may be given.")
    ],
    slices: Slices = None,
    strategy: Annotated[list[str] | None, typer.Option("--strategy", metavar="S", help=STRATEGY_HELP)] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="M",
            help="Of attribution: gradient (the default), input_x_gradient, integrated_gradients, smoothgrad, gradient_shap, occlusion (the only one for ONNX); several may be given.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for results and report.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Largest pair bias that is still symmetric.")
    ] = 0.05,
    precision: Annotated[
        float, typer.Option("--precision", help="Half-width of the intervals to stop at.")
    ] = 0.01,
    fail_on_bias: Annotated[
        bool, typer.Option("--fail-on-bias", help="Exit with status 1 if biased.")
    ] = False,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            help="Explain: auto (predicted where the output has classes, else sum), predicted, labels, sum or a class.",
        ),
    ] = "auto",
    outputs: Annotated[
        str | None,
        typer.Option(
            "--outputs",
            metavar="MODULE:FUNCTION",
            help="Makes the tensor to explain of what the network returns; by default its logits, by a rule.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", metavar="PATH", help="Class map of each volume.")
    ] = None,
    classes: Classes = None,
    tie: Tie = None,
    mean: Mean = None,
    std: Std = None,
    step: Step = 1,
    tile: Tile = None,
    intensity: Intensity = None,
    fill: Fill = None,
    axes: Axes = None,
    select: Select = None,
    level: Level = 0,
    max_windows: Annotated[
        int | None, typer.Option("--max-windows", help="Stop after so many windows.")
    ] = None,
    batch: Batch = None,
    dtype: Precision = "auto",
    device: Device = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Measure how unequally a network treats the slices of its windows, with honest statistics."""
    from evenslice._core import staged_folder
    from evenslice.auditing import parse_target
    from evenslice.cli.comparison import AUDITS, RENDERED, audit_strategies, write_results
    from evenslice.networks import find_function
    from evenslice.volumes import open_volume

    opened = partial(open_volume, axes=axes, select=_parse_select(select), level=level)
    staged = nullcontext() if out is None else staged_folder(out, AUDITS + RENDERED, force=force)
    with _quiet(json), staged as folder:
        audits = audit_strategies(
            model,
            weights,
            [opened(path) for path in volume],
            strategies=strategy or ["pretrained"],
            methods=method or [],
            network={
                "slices": slices,
                "tie": tie,
                "classes": classes,
                "seed": seed,
                "mean": _parse_numbers("--mean", mean),
                "std": _parse_numbers("--std", std),
            },
            command=_command(),
            labels=[opened(path) for path in labels] if labels else None,
            target=parse_target(target),
            outputs=None if outputs is None else find_function(outputs),
            tolerance=tolerance,
            precision=precision,
            step=step,
            tile=tile,
            intensity=intensity,
            fill=fill,
            max_windows=max_windows,
            batch=batch,
            dtype=dtype,
            device=device,
            workers=workers,
            scheduler=scheduler,
            seed=seed,
        )
        if folder is not None:
            write_results(audits, folder)
    _show_audits(audits, out, json=json)
    if fail_on_bias and any(audit.verdict == "biased" for audit in audits):
        raise typer.Exit(1)


@app.command()
def neutralize(
    model: Model,
    weights: Weights,
    out: Annotated[Path, typer.Option("--out", metavar="OUT.safetensors", help="File for the fair network.")],
    slices: Slices = None,
    strategy: Annotated[str, typer.Option("--strategy", metavar="S", help=STRATEGY_HELP)] = "uniform",
    tie: Tie = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = 0,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Rewrite the first layer of a pretrained network so that it favours no slice, and keep the rest."""
    from evenslice.cli.tables import record_table
    from evenslice.neutralizing import neutralize_file

    with _quiet(json):
        record = neutralize_file(
            model,
            weights,
            out,
            slices=slices,
            strategy=strategy,
            tie=tie,
            classes=classes,
            seed=seed,
            mean=_parse_numbers("--mean", mean),
            std=_parse_numbers("--std", std),
            force=force,
        )
    _show_json(record.to_dict()) if json else _show(record_table(record, out))


@app.command()
def survey(
    specs: Annotated[
        list[str], typer.Argument(metavar="SPEC...", help="Networks, each as --model of the audit takes it.")
    ],
    weights: Annotated[
        str,
        typer.Option("--weights", metavar="W", help="Of all: imagenet or none; of one network also a file."),
    ] = "imagenet",
    volume: Annotated[
        str | None,
        typer.Option("--volume", metavar="PATH", help="What to show them; by default an MRI template."),
    ] = None,
    slices: Slices = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for survey.json, survey.csv and report."),
    ] = None,
    windows: Annotated[int, typer.Option("--windows", help="How many to show each network.")] = 32,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Compare networks: how their stems weigh colours, and which way that makes them lean."""
    from evenslice._core import staged_folder
    from evenslice.auditing import survey as survey_networks
    from evenslice.results import SURVEY_FILES

    staged = nullcontext() if out is None else staged_folder(out, SURVEY_FILES, force=force)
    with _quiet(json), staged as folder:
        found = survey_networks(
            specs,
            weights=weights,
            volume=volume,
            slices=slices,
            windows=windows,
            mean=_parse_numbers("--mean", mean),
            std=_parse_numbers("--std", std),
            seed=seed,
            device=device,
            command=_command(),
        )
        if folder is not None:
            found.write(folder)
    _show_survey(found, out, json=json)


@app.command()
def train(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG.yaml", help="What to train on, and how.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Folder for all that comes of it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration with all options, and stop.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Train a segmenter of slice windows and test it."""
    from evenslice._core import load_config, to_yaml
    from evenslice.training import TrainConfig, default_yaml

    if print_config:
        text = default_yaml() if config is None else to_yaml(load_config(config, TrainConfig))
        typer.echo(text, nl=False)
        return
    if config is None or out is None:
        raise typer.BadParameter(
            "train needs CONFIG.yaml and --out RUN; train --print-config prints one to start from"
        )
    options = load_config(config, TrainConfig)
    from evenslice.cli.tables import run_table
    from evenslice.training import train

    result = train(options, out, resume=resume, command=_command())
    if result:  # of several processes, the first has it
        _show_json(result) if json else _show(run_table(result, out))


@app.command()
def segment(
    volume: Annotated[str, typer.Option("--volume", metavar="PATH", help="A volume.")],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="PATH",
            help="For the labels: .tif, .nii.gz, .ome.zarr (s3:// too), .h5:/path, .mha, .nrrd, .npy.",
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="A folder that `evenslice train` wrote.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="SPEC", help=MODEL_HELP)] = None,
    weights: Annotated[str | None, typer.Option("--weights", metavar="W", help=WEIGHTS_HELP)] = None,
    slices: Slices = None,
    step: Annotated[
        int | None, typer.Option("--step", help="Distance between the slices of a window.")
    ] = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the probability of each class, not labels.")
    ] = False,
    tile: Tile = None,
    batch: Batch = None,
    intensity: Intensity = None,
    fill: Fill = None,
    axes: Axes = None,
    select: Select = None,
    level: Level = 0,
    dtype: Precision = "auto",
    device: Device = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", metavar="DIR", help="Folder for unfinished work; by default beside --out."),
    ] = None,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Segment a volume of any size; what was interrupted goes on from there."""
    from dataclasses import asdict

    from evenslice.cli.tables import info_table
    from evenslice.inference import segment as segment_volume
    from evenslice.training import load_segmenter
    from evenslice.volumes import describe, open_volume

    opened = open_volume(volume, axes=axes, select=_parse_select(select), level=level)
    with _quiet(json):
        network, options = load_segmenter(
            run,
            model,
            weights,
            slices=slices,
            step=step,
            classes=classes,
            mean=_parse_numbers("--mean", mean),
            std=_parse_numbers("--std", std),
            intensity=intensity,
            fill=fill,
        )
        written = segment_volume(
            network,
            opened,
            out,
            probabilities=probabilities,
            tile=tile,
            batch=batch,
            dtype=dtype,
            device=device,
            workers=workers,
            scheduler=scheduler,
            scratch=scratch,
            force=force,
            **options,
        )
    described = describe(written)
    _show_json(asdict(described)) if json else _show(info_table(described))


@app.command()
def study(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="Arms, networks, data sets and seeds.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the runs and results.")],
    workers: Workers = None,
    scheduler: Scheduler = None,
    json: AsJson = False,
) -> None:
    """Compare strategies on your data: train, test and audit each; what is finished is not repeated."""
    from evenslice._core import load_config
    from evenslice.cli.tables import run_line
    from evenslice.studying import StudyConfig
    from evenslice.studying import study as run_study

    summary = run_study(
        load_config(config, StudyConfig),
        out,
        workers=workers,
        scheduler=scheduler,
        on_finished=lambda *progress: typer.echo(run_line(*progress), err=True),
    )
    _show_study(summary, out, json=json)
    if summary["failed"]:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that holds audits, a study or a survey.")
    ],
    json: AsJson = False,
) -> None:
    """Write the report anew: of a study, of a survey, or of all audits in a folder and in the folders right below it."""
    from evenslice.auditing import Survey
    from evenslice.report import write_study_report
    from evenslice.results import is_study, is_survey, load_study

    if is_study(folder):
        results = load_study(folder)
        write_study_report(results, folder / "report.html")
        _show_study(results.summary, folder, json=json)
        return
    if is_survey(folder):
        found = Survey.load(folder)
        found.save(folder, force=True)
        _show_survey(found, folder, json=json)
        return
    from evenslice._core import staged_folder
    from evenslice.auditing import load_audits
    from evenslice.cli.comparison import RENDERED, write_rendered

    audits = load_audits(folder)
    with staged_folder(folder, RENDERED, force=True) as staged:
        write_rendered(audits, staged)
    _show_audits(audits, folder, json=json)


def main() -> None:
    """Run the command line and exit.

    The status is 0 when done, 1 when ``--fail-on-bias`` found a bias or runs of a study failed, 2 when the user's input is
    at fault, 70 after an error of evenslice itself, 130 when interrupted.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if arguments == ["--version"]:
        typer.echo(f"evenslice {evenslice.__version__}")
        sys.exit()
    try:
        status = app(args=arguments, prog_name="evenslice", standalone_mode=False)
    except (EvensliceError, typer.TyperException) as error:
        if debug:
            traceback.print_exc()
        text = (
            error.render(spelled_on_command_line)
            if isinstance(error, EvensliceError)
            else error.format_message()
        )
        if text:  # without arguments, the help was shown
            typer.echo(f"error: {' '.join(text.split())}", err=True)
        # Requests to a store that were under way when one of them failed have complaints of their own at the very end.
        atexit.register(setattr, sys, "unraisablehook", lambda _: None)
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:  # nobody reads on; close without a complaint
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141  # as a shell reports SIGPIPE
    except Exception:  # noqa: BLE001  # an error of ours must not look like the status of a bias
        traceback.print_exc()
        status = 70
    if status == 130:
        typer.echo("interrupted", err=True)
    sys.exit(status if isinstance(status, int) else 0)


def _quiet(json: bool) -> AbstractContextManager[object]:
    """Send what a user's network prints to standard error, where standard output is to hold one JSON document."""
    return redirect_stdout(sys.stderr) if json else nullcontext()


def _command() -> str:
    return shlex.join(["evenslice", *sys.argv[1:]])


def _parse_select(texts: Sequence[str] | None) -> dict[str, int]:
    """Read AXIS=INDEX options."""
    selected = {}
    for text in texts or ():
        axis, _, index = text.partition("=")
        if not axis or not index.isdecimal():
            raise typer.BadParameter(f"--select {text}: an axis and a whole number are needed, such as t=0")
        selected[axis] = int(index)
    return selected


def _parse_numbers(option: str, text: str | None) -> list[float] | None:
    """Read one number or several, separated by commas."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} {text}: numbers are needed, such as 0.485,0.456,0.406") from None


def _show(item: RenderableType) -> None:
    from rich.console import Console

    Console().print(item)


def _show_json(value: object) -> None:
    from evenslice._core import json_text

    typer.echo(json_text(value), nl=False)


def _show_audits(audits: Sequence[Audit], out: Path | None, *, json: bool) -> None:
    from evenslice.cli.tables import audit_table

    if json:
        documents = [audit.to_dict() for audit in audits]
        _show_json(documents[0] if len(documents) == 1 else documents)
        return
    _show(audit_table(audits))
    if out is not None:
        _show(f"report: {out / 'report.html'}")


def _show_survey(found: Survey, out: Path | None, *, json: bool) -> None:
    from evenslice.cli.tables import survey_tables

    if json:
        _show_json(found.to_dict())
        return
    for table in survey_tables(found):
        _show(table)
    if out is not None:
        _show(f"report: {out / 'report.html'}")


def _show_study(summary: Mapping[str, Any], out: Path, *, json: bool) -> None:
    from evenslice.cli.tables import study_tables

    if json:
        _show_json(summary)
        return
    for table in study_tables(summary):
        _show(table)
    _show(f"results: {out / 'results.csv'}")
    _show(f"report: {out / 'report.html'}")
