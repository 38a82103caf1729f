"""evenslice survey, which compares networks, and evenslice report, which draws a survey, a study or audits anew."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from evenslice.cli import options
from evenslice.cli.options import grouped
from evenslice.cli.printing import command_line, quiet, show_audits, show_result


@grouped
def survey(
    *,
    specs: Annotated[
        list[str],
        typer.Argument(metavar="SPEC", help="Networks, as for --model of evenslice audit, except onnx."),
    ],
    weights: Annotated[
        str,
        options.network(
            "Weights of all networks: imagenet, none (random), or, for a single network, a file.", metavar="W"
        ),
    ] = "imagenet",
    inputs: options.Window,
    volume: Annotated[
        str | None,
        options.volume(f"Volume: {options.VOLUME_HELP} (default: an MRI template).", metavar="PATH"),
    ] = None,
    reading: options.VolumeReading,
    windows: Annotated[int, options.measurement("Windows to measure per network.", metavar="N")] = 60,
    draws: Annotated[
        int,
        options.measurement(
            "Draws of a network's random parts, such as a decoder, to average over.", metavar="N"
        ),
    ] = 3,
    seed: options.Seed = 0,
    computing: options.DeviceAlone,
    out: Annotated[
        Path | None, options.output("Folder for survey.json, survey.csv and the report.", metavar="DIR")
    ] = None,
    output: options.Output,
) -> None:
    """Compare networks: how their first layers weight colours, and how that biases them towards some slices.

    The exit status is 1 if a network failed.
    """
    from evenslice import Reading, Survey, survey as compare_networks
    from evenslice.report import need_report_extra

    if out is not None:
        need_report_extra("the report of a survey")
    with quiet(output.json), output.staged(out, Survey.FILES, ("survey.json",)) as folder:
        found = compare_networks(
            specs,
            weights=weights,
            volume=volume,
            reading=Reading(**reading),
            windows=windows,
            draws=draws,
            seed=seed,
            compute=computing,
            command=command_line(),
            **asdict(inputs),
        )
        if folder is not None:
            found.write(folder)
    show_result(found.to_dict(), found, out, json=output.json)
    if found.failed:
        raise typer.Exit(1)


@grouped
def report(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a study, a survey, or audits.")],
    badge: Annotated[
        Path | None,
        options.output(
            "Also write the worst verdict of the audits as JSON for a badge of shields.io.", metavar="FILE"
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Rebuild the report of a study, a survey, or all audits in DIR and its immediate subfolders."""
    from evenslice import ConfigError, Survey, load_audits
    from evenslice._core import option, staged_file, staged_folder
    from evenslice.cli.comparison import AUDITS
    from evenslice.report import AUDIT_FILES, badge_text, write_report_files, write_study_report
    from evenslice.results import StudyResults

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name one that evenslice audit, study or survey wrote")
    if badge is not None and any((folder / name).is_file() for name in ("summary.json", "survey.json")):
        raise ConfigError(
            f"{option('badge')}: {folder} holds no audits of a network, whose verdict it shows; omit it"
        )
    if (folder / "summary.json").is_file():
        results = StudyResults.load(folder)
        write_study_report(results, folder / "report.html")
        show_result(results.document, results.document, folder, f"results: {folder}/results.csv", json=json)
    elif (folder / "survey.json").is_file():
        found = Survey.load(folder)
        found.save(folder, force=True)
        show_result(found.to_dict(), found, folder, json=json)
    else:
        audits = load_audits(folder)
        documents = (*AUDITS, *(f"*/{pattern}" for pattern in AUDITS))
        with staged_folder(folder, AUDIT_FILES, documents=documents, force=True) as staged:
            write_report_files(audits, staged)
        if badge is not None:
            with staged_file(badge, force=True) as beside:
                beside.write_text(badge_text(audits), encoding="utf-8")
        show_audits(audits, folder, json=json)
