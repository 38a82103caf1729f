"""evenslice audit: measure how unequally a network treats its slices."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenslice import ConfigError, Sampling, Tolerances
from evenslice._core import check_known, import_object, reporting_errors
from evenslice.auditing import METHODS
from evenslice.cli import options
from evenslice.cli.options import Options, check_seed, grouped, parse_values
from evenslice.cli.printing import (
    command_line,
    quiet,
    show_audits,
    tell,
    tell_adapted,
    tell_missing,
    tell_missing_slices,
    tell_untrained,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from evenslice import Audit


# "not applicable" is not enough: nothing was shown for a window of one slice, which may be there by mistake.
ENOUGH = {"symmetric": ("symmetric",), "balanced": ("symmetric", "balanced")}
"""The verdicts that are enough for each value of ``--require``."""


TOLERANCES = {
    name: options.measurement(text, metavar="X")
    for name, text in {
        "tolerance": "Largest pair bias B, of saliency or reliance, that counts as equal.",
        "answer_tolerance": "Largest answer change C that counts as the same answer.",
        "mismatch_tolerance": "Largest mirror mismatch E that counts as equal use.",
        "judged_share": "Judge pairs that get at least this share of the saliency (of K > 2 pairs, 2/K of it).",
        "judged_class": "Judge classes that cover at least this part of the pixels, and the two largest.",
    }.items()
}
SAMPLING = {
    "precision": options.measurement(
        "Go on until every judged B and C is known to ± X (default: until the verdict is settled).",
        metavar="X",
    ),
    "min_windows": options.measurement("Read at least this many windows, if there are so many.", metavar="N"),
    "max_windows": options.measurement("Stop after this many windows.", metavar="N"),
    "explain": options.measurement(
        "Show this slice, or the part of it around a voxel, first in the report: Z or Z,Y,X.",
        metavar="Z",
        parser=parse_values,
    ),
    "stress": options.measurement(
        "With --labels, also measure the cost of disturbed slices.", "--stress/--no-stress"
    ),
    "tile": options.computing(
        "In-plane tile size in pixels (default: the network's or its crops', else planes up to 256, or 192).",
        metavar="Y X",
    ),
    "seed": options.computing("Random seed.", metavar="N", callback=check_seed),
}


@dataclass(frozen=True, kw_only=True)
class Volumes(options.LabelledOpening):
    """What to audit the network on."""

    volume: Annotated[
        list[str],
        options.volume(f"Volume to audit: {options.VOLUME_HELP}; repeat for several.", metavar="PATH"),
    ]
    labels: Annotated[
        list[str] | None,
        options.volume(
            "Class labels, to measure the cost of disturbed slices; repeat, in the order of the volumes.",
            metavar="PATH",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What of the answers is explained, and how."""

    method: Annotated[
        list[str] | None,
        options.measurement(
            f"Attribution method for the question of saliency: {', '.join(METHODS)}; repeat to compare several "
            "(default: gradient; onnx supports occlusion alone, and is not asked by default).",
            metavar="M",
            autocompletion=lambda: METHODS,
        ),
    ] = None
    baseline: Annotated[
        str | None,
        options.measurement(
            "Compare a window with the middle slice in place of all (middle; integrated_gradients) or gray (occlusion).",
            metavar="B",
        ),
    ] = None
    target: Annotated[
        str,
        options.measurement(
            "Explain the predicted class, the class in --labels, a class number, the sum of all outputs, or auto (predicted, "
            "without classes sum).",
            metavar="T",
            autocompletion=lambda: options.TARGETS,
        ),
    ] = "auto"
    outputs: Annotated[
        str | None,
        options.measurement(
            "Explain this function (package.module:function) of the network's output (default: its logits).",
            metavar="FUNCTION",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Required:
    """What an audit has to find for the exit status to be 0."""

    fail_on_bias: Annotated[
        bool,
        options.measurement(
            "Exit with status 1 if a verdict is biased (--require also refuses inconclusive).",
            "--fail-on-bias",
        ),
    ] = False
    require: Annotated[
        str | None,
        options.measurement(
            "Exit with status 1 unless every verdict is at least this: symmetric or balanced.", metavar="V"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.require is not None:
            check_known("require", self.require, ENOUGH)

    def check(self, verdicts: "Mapping[str, str]") -> None:
        """End with status 1 if a verdict, by name, is less than required."""
        missed = []
        for name, verdict in verdicts.items():
            if self.fail_on_bias and verdict == "biased":
                missed.append(f"--fail-on-bias: {name} is {verdict}")
            if self.require is not None and verdict not in ENOUGH[self.require]:
                missed.append(f"--require {self.require}: {name} is {verdict}")
        tell(*missed)
        if missed:
            raise typer.Exit(1)


@grouped
def audit(
    *,
    source: options.Source,
    inputs: options.TiedInput,
    strategy: Annotated[
        list[Any] | None, options.strategy("; repeat to compare several (default: pretrained)")
    ] = None,
    volumes: Volumes,
    reading: options.AuditReading,
    explained: Explained,
    tolerances: Annotated[Tolerances, Options(TOLERANCES)],
    sampling: Annotated[Sampling, Options(SAMPLING)],
    required: Required,
    computing: options.Computing,
    out: Annotated[Path | None, options.output("Folder for results and report.", metavar="DIR")] = None,
    output: options.Output,
) -> None:
    """Measure how unequally a network treats the slices of its windows, with confidence intervals."""
    from evenslice import Reading, audit as measure
    from evenslice.cli.comparison import AUDITS, audit_strategies, write_results
    from evenslice.report import AUDIT_FILES, need_report_extra
    from evenslice.training import find_network

    labels = volumes.labels
    target: Any = explained.target  # the audit reads it
    if labels is None:
        volumes.refuse(reading, no_stress=None if sampling.stress else True)
    settled = {name: value for name, value in asdict(inputs).items() if name != "symmetrize"}
    settled["strategy"] = strategy
    found = find_network(source.run, source.model, source.weights, reading=reading, fixed=settled)
    network = options.Network(spec=found.spec, weights=found.weights, **asdict(inputs))
    read = found.reading or Reading()
    if sampling.tile is None:
        sampling = replace(sampling, tile=found.crop)
    if labels is None:
        read = read.without_labels()
    elif target == "labels" and "ignore_label" not in reading:  # this target has no pixels to ignore
        read = replace(read, ignore_label=None)
    if out is not None:
        need_report_extra("the report of an audit")
    opened = [volumes.open(path, plane=read.plane) for path in volumes.volume]
    tell_missing_slices(*opened)
    with quiet(output.json), output.staged(out, AUDITS + AUDIT_FILES, AUDITS) as folder:
        audits = audit_strategies(
            network,
            partial(
                measure,
                volume=opened,
                labels=[volumes.open_labels(path, *volumes.volume) for path in labels] if labels else None,
                target=target,
                baseline=explained.baseline,
                outputs=None if explained.outputs is None else _find_function(explained.outputs),
                reading=read,
                tolerances=tolerances,
                compute=computing,
            ),
            strategies=strategy or ["pretrained"],
            methods=explained.method or [None],
            sampling=sampling,
            command=command_line(),
        )
        if folder is not None:
            write_results(audits, folder)
    show_audits(audits, out, json=output.json)
    _tell_missing_weights(source, audits)
    required.check({audit.name: audit.verdict for audit in audits})


def _find_function(text: str) -> "Callable[..., Any]":
    """Return the function that ``package.module:function`` names; the current directory is importable."""
    with reporting_errors(ConfigError, f"{text}: cannot be imported"):
        function = import_object(text, text, ConfigError)
    if not isinstance(function, FunctionType):
        raise ConfigError(
            f"{text}: is {type(function).__name__}, not a function; write package.module:function"
        )
    return function


def _tell_missing_weights(source: options.Source, audits: "list[Audit]") -> None:
    """Say which parts of the network were random or adapted."""
    from evenslice.networks import ModelSource

    audited = audits[0].run.model
    random, inputs = tuple(audited.get("random", ())), audited.get("inputs")
    built = ModelSource("", audited["weights"], "", random=random, inputs=inputs)
    if source.weights is not None:
        tell_untrained(built)
        tell_adapted(built, len(audits[0].offsets))
    tell_missing(
        built,
        "were random in this audit; for a verdict on trained answers, give the weights of the whole network",
    )
