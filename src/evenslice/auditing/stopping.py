"""Windows are read until the word of an audit is settled, or its limit is reached."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from evenslice._core import ModelError, open_workers, option, progress_bar
from evenslice.auditing.measuring import collect_measurements, measure_batches
from evenslice.auditing.targets import check_batch
from evenslice.inference import SMALLER, BlackBox, ReadyNetwork, reporting_device_errors
from evenslice.networks import answers_alone, logits
from evenslice.results import SAME, ask, judge

if TYPE_CHECKING:
    from torch import Tensor

    from evenslice.auditing.measuring import MeasuredBatch, Measurer, WindowBatch, WindowSample
    from evenslice.inference import Compute
    from evenslice.results import Measurements, Questions, Tolerances

MOST = 8  # windows in one pass, beside as many mirrors
CACHED_PIXELS = 2**17  # of windows and mirrors in float32
SETTLING = 200
"""Windows after which an audit gives up on a network that nothing in them has moved."""

MOST_ON_GPU = 32  # windows in one pass: more would hardly be faster, and an audit stops between passes


@dataclass(frozen=True)
class Found:
    """The windows that were read, what they say, why no more were read, and how many at most in one pass."""

    batches: list[MeasuredBatch]
    measurements: Measurements
    questions: Questions
    stopped: str
    batch: int


def check_first(measurer: Measurer, sample: WindowSample) -> None:
    """Check that the network answers a window in the same way whatever stands beside it, on two of the sample."""
    first: WindowBatch = next(sample.batches(lambda: 2))
    windows = torch.from_numpy(measurer.read(first).windows)
    if len(windows) == 1:
        windows = torch.cat([windows, windows.flip(1)])
    network = measurer.explainer.network
    exact = network.in_precision(torch.float32) if isinstance(network, ReadyNetwork) else network

    def answer(batch: Tensor) -> dict[str, Tensor]:
        output = logits(exact(batch))
        check_batch(output, batch)
        return {"output": output.float()}

    with torch.no_grad(), reporting_device_errors(network.device, "two windows do not fit into it", SMALLER):
        answers_alone(
            answer,
            windows.to(network.device),
            name=network.name,
            limits=(SAME, SAME),
            model=exact.module if isinstance(exact, ReadyNetwork) else None,
        )


def read_until_settled(
    sample: WindowSample,
    measurer: Measurer,
    tolerances: Tolerances,
    compute: Compute,
) -> Found:
    """Measure windows until the word is settled."""

    def size() -> int:
        return compute.batch or batch_size(measurer)

    collected: list[MeasuredBatch] = []
    read, look, population = 0, sample.next_look(0), sum(sample.population)
    with (
        open_workers(compute.workers, compute.scheduler) as client,
        progress_bar(
            "audit", sample.limit, "windows at most", show=compute.progress, remaining=False
        ) as advance,
        closing(measure_batches(sample, size, measurer, client=client)) as measured,
    ):
        found, note = None, ""
        for batch in measured:
            collected.append(batch)
            read += len(batch.places)
            if read < look:
                advance(len(batch.places), note)
                continue
            look = sample.next_look(read)
            measurements = collect_measurements(collected)
            moved = _moved(measurements)
            if read >= min(SETTLING, sample.limit) and not moved:
                raise _unmoved(read, scores=measurer.explainer.explained.target == "sum")
            questions = ask(measurements, population, tolerances)
            note = _progress_note(questions)
            advance(len(batch.places), note)
            stopped = settled(questions, sample.sampling.precision) if moved else ""
            ended = "all windows used" if read == population else "limit reached"
            found = Found(collected, measurements, questions, stopped or ended, size())
            if stopped or read == sample.limit:
                break
    return cast("Found", found)  # the last look is at the limit


def settled(questions: Questions, precision: float | None) -> str:
    """Return why an audit may stop; empty if it has to go on.

    "balanced" is settled once the use of slices is beyond its tolerance: until then it may become "symmetric".
    """
    verdict, _ = judge(questions.evidence, questions.different)
    if verdict == "inconclusive":
        return ""
    uses = [item for item in questions.evidence if item.question == "use"]
    if verdict == "balanced" and uses and not any(item.beyond().any() for item in uses):
        return ""
    if precision is None:
        return "settled"
    for item in questions.evidence:
        low, high = item.bounds()
        if item.question != "use" and ((high - low)[item.judged] / 2 > precision).any():
            return ""
    return "precision reached"


def _progress_note(questions: Questions) -> str:
    """Return the word so far, and of each question the figure that matters most with its interval."""
    verdict, _ = judge(questions.evidence, questions.different)
    parts: list[str] = [verdict]
    if questions.different is not None:
        return f"{verdict}  all windows equal their mirrors so far"
    for item in questions.evidence:
        if not item.judged.any():
            continue
        k = item.excess(item.judged)
        low, high = item.bounds()
        parts.append(f"{item.question} {item.estimate[k]:.3f} [{low[k]:.3f}, {high[k]:.3f}]")
    return "  ".join(parts)


def _moved(measured: Measurements) -> bool:
    """Return whether anything in the windows moves the output, or it differs between windows."""
    explained = measured.explained
    return bool(
        (np.ptp(explained, axis=0) > SAME * explained.max(axis=0)).any()
        or measured.saliency.any()
        or measured.reliance.any()
        or measured.outer.any()
        or np.nan_to_num(measured.mirror_disagreement).any()
        or (measured.mirror_error > SAME).any()
    )


def _unmoved(read: int, *, scores: bool) -> ModelError:
    advice = "if it detects nothing, lower its score threshold; else" if scores else "check the network, or"
    return ModelError(
        f"the network's output does not depend on its input: nothing in {read} windows moves it; {advice} explain "
        f"another output ({option('target')}, {option('outputs')})"
    )


def batch_size(measurer: Measurer) -> int:
    """Return the fastest number of windows in one pass: on a CPU, what stays in its cache."""
    explainer, grid = measurer.explainer, measurer.grids[0]
    network = explainer.network
    if isinstance(network, BlackBox) or network.device.type not in ("cpu", "cuda"):
        return MOST
    if network.device.type == "cpu":
        return next((count for count in (MOST, 4, 2) if 2 * count * math.prod(grid.tile) <= CACHED_PIXELS), 1)

    def explain(count: int) -> None:
        shape = (count, grid.slices, *grid.tile)
        windows = torch.zeros(shape, dtype=torch.float32, device=network.device)
        explainer.rows(windows, None if measurer.labels is None else windows[:, 0].long())

    kind = (explainer.method, network.dtype, grid.slices, *grid.tile)
    return network.batches.fitting(explain, network.device, most=MOST_ON_GPU, kind=kind)
