"""evenslice audit: measure how unequally a network treats its slices."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenslice._core import check_known
from evenslice.cli import options
from evenslice.cli.label_opening import LabelledOpening
from evenslice.cli.option_groups import grouped
from evenslice.cli.parsing import parse_values
from evenslice.cli.printing import (
    command_line,
    quiet,
    show_audits,
    tell,
    tell_missing,
    tell_missing_slices,
    tell_untrained,
)
from evenslice.results import Thresholds

if TYPE_CHECKING:
    from evenslice.auditing import Audit
    from evenslice.volumes import Reading


# "not applicable" is not enough: nothing was shown for a window of one slice, which may be there by mistake.
ENOUGH = {"symmetric": ("symmetric",), "balanced": ("symmetric", "balanced")}
"""The verdicts that are enough for each value of ``--require``."""


@grouped
def audit(
    *,
    source: options.AnySource,
    inputs: options.Input,
    classes: options.Classes = None,
    tie: Annotated[
        str | None,
        options.network(
            "Audit the network with tied kernels, those of opposite slices (mirror) or of all slices (uniform) averaged, as "
            "a training with this tie begins.",
            metavar="TIE",
            autocompletion=lambda: options.TIES,
        ),
    ] = None,
    step: options.Step = None,
    strategy: Annotated[
        list[Any] | None, options.strategy("; repeat to compare several (default: pretrained)")
    ] = None,
    volume: Annotated[
        list[str],
        options.volume(f"Volume to audit: {options.VOLUME_HELP}; repeat for several.", metavar="PATH"),
    ],
    labels: Annotated[
        list[str] | None,
        options.volume(
            "Class labels, to also measure what a disturbed slice costs, and for --target labels; repeat, one for each volume, "
            "in the same order.",
            metavar="PATH",
        ),
    ] = None,
    values: options.LabelValues,
    no_stress: Annotated[
        bool,
        options.measurement("With --labels, do not measure what a disturbed slice costs.", "--no-stress"),
    ] = False,
    plane: options.Plane = None,
    opening: LabelledOpening,
    scaling: options.Scaling,
    method: Annotated[
        list[str] | None,
        options.measurement(
            f"Attribution method for the question of saliency: {', '.join(options.METHODS)}; repeat to compare several "
            "(default: gradient; onnx supports occlusion alone, and is not asked by default).",
            metavar="M",
            autocompletion=lambda: options.METHODS,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        options.measurement(
            "What integrated_gradients and occlusion compare a window with: middle (the middle slice in place of all) or gray "
            "(default: middle for integrated_gradients, gray for occlusion).",
            metavar="B",
        ),
    ] = None,
    explain: Annotated[
        Any | None,
        options.measurement(
            "Show this slice first among the examples of the report, in the middle of the plane or around a voxel: Z or Z,Y,X.",
            metavar="Z",
            parser=parse_values,
        ),
    ] = None,
    target: Annotated[
        str,
        options.measurement(
            "What to explain: predicted (the predicted class), labels (the class in --labels), sum (of all "
            "outputs), a class number, or auto (predicted if the output has classes, else sum).",
            metavar="T",
            autocompletion=lambda: options.TARGETS,
        ),
    ] = "auto",
    overlapping: Annotated[
        bool | None,
        options.measurement(
            "Whether several output channels can be on at once, or exclude each other (default: as the network's last "
            "activation says, else they exclude each other).",
            "--overlapping/--exclusive",
        ),
    ] = None,
    outputs: Annotated[
        str | None,
        options.measurement(
            "Function (package.module:function) that turns what the network returns into the tensor to explain "
            "(default: take the logits).",
            metavar="FUNCTION",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        options.measurement(
            "Largest pair bias B, of saliency or reliance, that counts as equal.", metavar="X"
        ),
    ] = Thresholds.attention,
    answer_tolerance: Annotated[
        float,
        options.measurement(
            "Largest answer change C that counts as the same answer for a window and its mirror.",
            metavar="X",
        ),
    ] = Thresholds.answer,
    mismatch_tolerance: Annotated[
        float,
        options.measurement(
            "Largest mirror mismatch E that counts as using opposite slices alike.", metavar="X"
        ),
    ] = Thresholds.use,
    judged_share: Annotated[
        float,
        options.measurement(
            "Pairs that get less than this share of the saliency are shown, not judged; in windows of more than five "
            "slices (K pairs), 2/K of it.",
            metavar="X",
        ),
    ] = Thresholds.judged,
    judged_class: Annotated[
        float,
        options.measurement(
            "Classes that cover less than this part of the pixels are not judged, except for the two largest.",
            metavar="X",
        ),
    ] = Thresholds.judged_class,
    precision: Annotated[
        float | None,
        options.measurement(
            "Also go on until every judged B and C is known to ± X (default: only until the verdict is settled).",
            metavar="X",
        ),
    ] = None,
    min_windows: Annotated[
        int, options.measurement("Read at least this many windows, if there are so many.", metavar="N")
    ] = 40,
    max_windows: Annotated[int, options.measurement("Stop after this many windows.", metavar="N")] = 2000,
    fail_on_bias: Annotated[
        bool,
        options.measurement(
            "Exit with status 1 if a verdict is biased; inconclusive passes (use --require to refuse it).",
            "--fail-on-bias",
        ),
    ] = False,
    require: Annotated[
        str | None,
        options.measurement(
            "Exit with status 1 unless every verdict is at least this: symmetric, or balanced (which symmetric also "
            "satisfies).",
            metavar="V",
        ),
    ] = None,
    seed: options.Seed = 0,
    computing: options.AuditComputing,
    out: Annotated[Path | None, options.output("Folder for results and report.", metavar="DIR")] = None,
    output: options.Output,
) -> None:
    """Measure how unequally a network treats the slices of its windows, with confidence intervals."""
    from evenslice.auditing import audit as measure, parse_target
    from evenslice.cli.comparison import AUDITS, RENDERED, audit_strategies, write_results
    from evenslice.networks import find_function
    from evenslice.report import need_report_extra
    from evenslice.training import asked_size
    from evenslice.volumes import refuse_without_labels

    if require is not None:
        check_known("require", require, ENOUGH)
    if labels is None:
        values.refuse()
        opening.refuse()
        refuse_without_labels(no_stress=no_stress or None)
    network, reading = _of_source(
        source,
        network={**asdict(inputs), "classes": classes, "tie": tie},
        reading={"step": step, "plane": plane, **asdict(values), **asdict(scaling)},
        strategy=strategy,
    )
    tile = computing.tile or asked_size(source.run, source.model, source.weights)
    read = reading.options(labels=labels is not None)
    if target == "labels" and values.ignore_label is None:  # this target has no pixels to ignore
        read.pop("ignore_label", None)
    if out is not None:
        need_report_extra("the report of an audit")
    opened = [opening.open(path, plane=reading.plane) for path in volume]
    tell_missing_slices(*opened)
    with quiet(output.json), output.staged(out, AUDITS + RENDERED, AUDITS) as folder:
        audits = audit_strategies(
            network,
            partial(
                measure,
                volume=opened,
                labels=[opening.open_labels(path, *volume) for path in labels] if labels else None,
                target=parse_target(target),
                baseline=baseline,
                explain=explain,
                outputs=None if outputs is None else find_function(outputs),
                tolerance=tolerance,
                answer_tolerance=answer_tolerance,
                mismatch_tolerance=mismatch_tolerance,
                judged_share=judged_share,
                judged_class=judged_class,
                overlapping=reading.overlapping if overlapping is None and target != "sum" else overlapping,
                precision=precision,
                min_windows=min_windows,
                max_windows=max_windows,
                seed=seed,
                **read,
                **(asdict(computing) | {"tile": tile}),
            ),
            strategies=strategy or ["pretrained"],
            methods=method or [None],
            seed=seed,
            stress=not no_stress,
            command=command_line(),
        )
        if folder is not None:
            write_results(audits, folder)
    show_audits(audits, out, json=output.json)
    if labels and target != "labels" and all(found.stress is None for found in audits):
        why = "--no-stress was given" if no_stress else "a window of one slice has no neighbours to disturb"
        tell(f"note: --labels: had no effect, as {why}")
    audited = audits[0].run.model
    if source.weights is not None:
        tell_untrained(source.weights, audited.get("random", ()))
    tell_missing(
        audited["weights"],
        audited.get("random", ()),
        "were random in this audit; for a verdict on trained answers, give the weights of the whole network",
    )
    short = [audit for audit in audits if require and audit.verdict not in ENOUGH[require]]
    tell(*(_shortfall(audit, str(require)) for audit in short))
    if short or (fail_on_bias and any(audit.verdict == "biased" for audit in audits)):
        raise typer.Exit(1)


def _shortfall(audit: "Audit", required: str) -> str:
    """Say which figures keep an audit from the verdict that is required."""
    from evenslice.report import four_answers

    answers = [item for item in four_answers(audit) if item.decided]
    why = [f"{item.name}: {item.symbol} {item.value}, {item.verdict}" for item in answers]
    return "; ".join([f"--require {required}: {audit.name} is {audit.verdict}", *why])


def _of_source(
    source: options.AnySource, *, network: dict[str, Any], reading: dict[str, Any], strategy: list[Any] | None
) -> tuple[options.Network, "Reading"]:
    """Return the network to audit, and how it reads volumes: as its run did, unless an option says otherwise.

    Args:
        source: where the network comes from.
        network: options of the network; None means the default.
        reading: options of reading volumes and labels, likewise.
        strategy: the strategies asked for, which a run has settled.
    """
    from evenslice.training import find_reading, locate_network

    spec, weights = locate_network(source.run, source.model, source.weights)
    settled = {name: value for name, value in network.items() if name != "symmetrize"}
    more = {} if source.run is None else {**settled, "strategy": strategy}
    found = find_reading(source.run, source.model, source.weights, **reading, **more)
    return options.Network(spec=spec, weights=weights, **network), found
