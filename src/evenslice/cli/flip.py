"""evenslice flip: whether the answer of any program depends on which way round a volume is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenslice.cli import options
from evenslice.cli.audit import Required
from evenslice.cli.options import grouped
from evenslice.cli.printing import command_line, quiet, resumable, show_result, tell

if TYPE_CHECKING:
    from evenslice import Volume


def parse_swap(text: str) -> options.AxisEntry:
    """Read CLASS:CLASS."""
    one, _, other = text.partition(":")
    if not (one.isdecimal() and other.isdecimal()):
        raise typer.BadParameter(f"{text}: two class numbers are needed, such as 3:4")
    return options.AxisEntry(one, int(other))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Who is asked, and how the volume is handed over."""

    command: Annotated[
        str | None,
        options.network(
            "Program to run, with {input} and {output} in place of the files, or {input_folder} and {output_folder}; it is run "
            "without a shell.",
            metavar="COMMAND",
        ),
    ] = None
    answers: Annotated[
        tuple[str, str] | None,
        options.network(
            "Answers made elsewhere: to the volume, and to the volume flipped along the axis.",
            metavar="INTACT FLIPPED",
        ),
    ] = None
    input_name: Annotated[
        str | None,
        options.network(
            "Name of the input file (default: volume, with the suffix of --volume).", metavar="NAME"
        ),
    ] = None
    output_name: Annotated[
        str | None,
        options.network("Name of the output file (default: answer, with the same suffix).", metavar="NAME"),
    ] = None
    ignore_orientation: Annotated[
        bool,
        options.volume(
            "Flip the voxels but not the header, like a conversion that loses the orientation.",
            "--ignore-orientation",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What is compared."""

    axis: Annotated[
        list[str] | None,
        options.measurement("Axis to flip: z, y or x; repeat for several (default: z).", metavar="AXIS"),
    ] = None
    swap: Annotated[
        list[options.AxisEntry] | None,
        options.measurement(
            "Classes that change places in a mirror, such as 3:4 for left and right; repeat for several.",
            metavar="C:C",
            parser=parse_swap,
            callback=options.given_once,
        ),
    ] = None
    instances: Annotated[
        bool, options.measurement("Answers number objects, in any order.", "--instances")
    ] = False
    no_repeat: Annotated[
        bool,
        options.measurement(
            "Run the program once on the intact volume, not twice to learn how much two runs differ.",
            "--no-repeat",
        ),
    ] = False


@grouped
def flip(
    *,
    asked: Asked,
    volume: Annotated[str, options.volume(f"Volume: {options.VOLUME_HELP}.", metavar="PATH")],
    opening: options.Opening,
    labels: Annotated[
        str | None, options.volume("True classes or objects of the volume, for Dice.", metavar="PATH")
    ] = None,
    compared: Compared,
    required: Required,
    merge: Annotated[
        str | None,
        options.output("Also write the class that most answers give: a file for the labels.", metavar="PATH"),
    ] = None,
    out: Annotated[
        Path, options.output("Folder for flip.json, the report, inputs and answers.", metavar="DIR")
    ],
    output: options.Output,
) -> None:
    """Compare a program's answers to a volume and to the flipped volume; answers that exist are not computed again."""
    from evenslice import ConfigError, VolumeAudit, open_volume
    from evenslice.auditing import VolumeAnswers
    from evenslice.report import need_report_extra
    from evenslice.volumes import Destination, write_volume

    if (asked.command is None) == (asked.answers is None):
        raise ConfigError("nothing to compare, or too much: give either --command or --answers")
    of_programs = {
        "--input-name": asked.input_name,
        "--output-name": asked.output_name,
        "--ignore-orientation": asked.ignore_orientation,
        "--no-repeat": compared.no_repeat,
    }
    for name, given in of_programs.items():
        if given and asked.answers:
            raise ConfigError(f"{name}: has no effect without --command")
    axes = compared.axis or ["z"]
    swap = VolumeAnswers.check(axes, {int(entry.axis): entry.place for entry in compared.swap or ()})
    if (asked.answers or merge) and len(axes) > 1:
        raise ConfigError("--answers and --merge are for one axis; give --axis once")
    if merge and compared.instances:
        raise ConfigError(
            "--merge: objects have no vote, as their numbers mean nothing; leave out --instances"
        )
    need_report_extra("the report of flip")
    opened = opening.open(volume)
    if merge is not None:
        Destination.of(merge).check(opened, force=output.force)
    with quiet(output.json), resumable("finished answers are kept; repeat the command to go on"):
        if asked.answers is None:
            repeat = not compared.no_repeat
            intact, again, flipped = _run_program(asked, opened, out, axes, output, repeat=repeat)
        else:
            intact, again, flipped = asked.answers[0], None, {axes[0]: asked.answers[1]}
        answers = VolumeAnswers.of_files(opened, intact, flipped, again=again, swap=swap, labels=labels)
    found = answers.audit(
        method=asked.command or "answers made elsewhere", instances=compared.instances, command=command_line()
    )
    with output.staged(out, VolumeAudit.FILES, ("flip.json",)) as folder:
        if folder is not None:
            found.write(folder)
    if merge is not None:
        voted = answers.vote()
        write_volume(open_volume(voted), merge, like=opened, labels=True, force=output.force)
    lines = [] if merge is None else [f"labels: {merge}"]
    show_result(found.to_dict(), found, *lines, out=out, json=output.json)
    required.check({found.method: found.verdict})


def _run_program(
    asked: Asked, volume: "Volume", out: Path, axes: list[str], output: options.Output, *, repeat: bool
) -> tuple[str, str | None, dict[str, str]]:
    """Return the files of a program's answers to a volume, to it again, and to the flipped ones by axis."""
    from evenslice import EvensliceError, OutputError
    from evenslice.auditing import Program
    from evenslice.volumes import Destination

    suffix = "".join(
        Path(volume.path).suffixes[-2:] if volume.path.endswith(".gz") else Path(volume.path).suffixes[-1:]
    )
    try:
        Destination.of(f"volume{suffix}")
    except OutputError:
        suffix = ".nii.gz"
    names = asked.input_name or f"volume{suffix}", asked.output_name or f"answer{suffix}"
    program = Program.parse(str(asked.command), out, *names, force=output.force)
    try:
        return program.answer_all(volume, axes, repeat=repeat, ignore_orientation=asked.ignore_orientation)
    except EvensliceError as error:
        tell(*getattr(error, "__notes__", ()))  # the last lines of the program
        raise
