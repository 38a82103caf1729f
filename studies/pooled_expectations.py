"""What was expected of fair networks over the data sets of a study together, held against what was found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from study_expectations import LOST, Expectation, by_study, outcome

from evenslice.neutralizing.strategies import find_strategy
from evenslice.report.formatting import difference, interval, p_value
from evenslice.report.study_tables import superiority
from evenslice.results.arms import pair_runs, replicate_means
from evenslice.results.intervals import LEVEL, pool_means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from found_studies import Study

    from evenslice.results.arms import PooledArm, PooledComparison
    from evenslice.results.intervals import Interval, PooledMean
    from evenslice.studying.config import Arm

    RunRecord = Mapping[str, Any]

__all__ = ["pooled_expectations"]

HALF = 0.5


@dataclass(frozen=True)
class PooledFound:
    """An arm of a certain kind over all data sets of a study."""

    study: Study
    comparison: PooledComparison
    arm: PooledArm

    @property
    def place(self) -> str:
        """Where it was found."""
        return self.comparison.title

    @property
    def change(self) -> Interval:
        """The difference of its main score from the baseline's."""
        return self.arm.differences[self.arm.score]

    def pool_pairs(self, value: Callable[[RunRecord, RunRecord], float]) -> PooledMean:
        """Return the mean over the data sets of a value of each run beside that of the baseline."""
        groups = []
        for item in self.study.results.comparisons:
            if item.architecture == self.comparison.architecture:
                own, other = (
                    [vars(run) for run in self.study.results.runs_of(item, arm)]
                    for arm in (self.arm.arm, self.study.results.baseline)
                )
                pairs = pair_runs(own, other)
                values = [value(*pair) for pair in pairs]
                groups.append(replicate_means([run for run, _ in pairs], values, item.unit))
        known = [values for values in groups if not np.isnan(values).all()]
        return pool_means(known if len(known) == len(self.study.config.datasets) else ())


@dataclass(frozen=True)
class Candidates:
    """The arms of a kind in one comparison, of which the best is judged."""

    study: Study
    found: Sequence[PooledFound]

    @property
    def best(self) -> PooledFound:
        """The arm that scores highest."""
        return max(self.found, key=lambda item: item.change.estimate)

    @property
    def p(self) -> float:
        """That of the test that the best loses more than ``LOST``, times the number of arms it was chosen from."""
        score = self.best.arm.score
        lost = self.best.pool_pairs(lambda own, other: own["metrics"][score] - other["metrics"][score])
        return float(np.minimum(1.0, len(self.found) * lost.p_above(-LOST)))


def pooled_expectations(studies: Sequence[Study]) -> list[Expectation]:
    """Hold what was expected against the pooled comparisons; what was not run is left out."""
    encoder = _pooled(studies, lambda arm: arm.symmetrize == "encoder" and _is_trained_so(arm))
    output = _pooled(studies, lambda arm: arm.symmetrize == "output" and arm.network_of is not None)
    return [
        *_gains(encoder, "A network that is symmetrized at the encoder and trained so"),
        *_gains(output, "A trained network that is symmetrized at the output"),
        *_costs_little(_pooled(studies, _costs_one_pass)),
        *_survives(_pooled(studies, _should_survive)),
    ]


def _pooled(studies: Sequence[Study], chosen: Callable[[Arm], bool]) -> list[PooledFound]:
    return [
        PooledFound(study, comparison, arm)
        for study in studies
        for comparison in study.results.pooled
        for arm in comparison.arms
        if arm.differences and any(arm.arm == item.name and chosen(item) for item in study.config.arms)
    ]


def _is_trained_so(arm: Arm) -> bool:
    return arm.network_of is None and not arm.missing_slices


def _costs_one_pass(arm: Arm) -> bool:
    """Return whether an arm starts fair, in a network that sees each window once."""
    by_name = isinstance(arm.strategy, str)  # the weights of a profile are symmetric
    fair = arm.tie is not None or not by_name or find_strategy(arm.strategy, 3).symmetry is not None
    return fair and arm.symmetrize is None and _is_trained_so(arm)


def _should_survive(arm: Arm) -> bool:
    """Return whether an arm's training should make it survive a missing slice: a fair one, or one with such slices."""
    return bool(arm.missing_slices) or (
        arm.network_of is None and (_costs_one_pass(arm) or arm.symmetrize is not None)
    )


def _gains(found: Sequence[PooledFound], what: str) -> Iterator[Expectation]:
    if found:
        yield Expectation(
            f"{what} scores higher than a pretrained one, over all data sets of a study.",
            outcome(found, confirms=_is_higher, refutes=_is_lower),
            by_study(
                (item.study, f"{item.place}: {difference(item.change)}, {_test(item)}") for item in found
            ),
        )


def _is_higher(item: PooledFound) -> bool:
    """Return whether an arm scores higher: by the test of superiority if it is primary, else by its adjusted p."""
    if item.arm.primary:
        return bool(item.arm.superior)
    return item.change.estimate > 0 and item.arm.p_adjusted < 1 - LEVEL


def _is_lower(item: PooledFound) -> bool:
    if item.arm.primary:
        return item.change.high < 0
    return item.change.estimate < 0 and item.arm.p_adjusted < 1 - LEVEL


def _test(item: PooledFound) -> str:
    interim = not item.study.complete
    if item.arm.primary:
        return superiority(item.arm, interim=interim).replace("\n", ", ")
    return _adjusted(item.arm.p_adjusted, interim=interim)


def _adjusted(p: float, *, interim: bool) -> str:
    return "no test" if math.isnan(p) else f"adjusted {p_value(p, interim=interim)}"


def _costs_little(found: Sequence[PooledFound]) -> Iterator[Expectation]:
    """Judge the best fair start of each comparison, with the p of its test times the number of fair starts."""
    places: dict[tuple[str, str], list[PooledFound]] = {}
    for item in found:
        places.setdefault((item.study.name, item.place), []).append(item)
    choices = [Candidates(items[0].study, items) for items in places.values()]
    if choices:
        yield Expectation(
            f"The best fair start that costs no further passes loses no more than {LOST:g}, over all data sets of a study.",
            outcome(
                choices,
                confirms=lambda choice: choice.p < (1 - LEVEL) / 2,
                refutes=lambda choice: all(item.change.high < -LOST for item in choice.found),
            ),
            by_study((choice.study, _choice(choice)) for choice in choices),
        )


def _choice(choice: Candidates) -> str:
    best = choice.best
    test = f"the best of {len(choice.found)}, {_adjusted(choice.p, interim=not choice.study.complete)}"
    return f"{best.place}: {best.arm.arm} {difference(best.change, -LOST)}, {test}"


def _survives(found: Sequence[PooledFound]) -> Iterator[Expectation]:
    """Compare losses run by run with those of the baseline, which may have more seeds than an arm."""
    measured = [item for item in found if _is_measured(item)]
    if measured:
        yield Expectation(
            "If the slice before is missing, fair starts, and training with missing slices, lose less than half of the Dice "
            "that a pretrained start loses, over all data sets of a study.",
            outcome(
                measured,
                confirms=lambda item: _pooled_loss(item, 1, -HALF).high < 0,
                refutes=lambda item: _pooled_loss(item, 1, -HALF).low > 0,
            ),
            by_study((item.study, _losses(item)) for item in measured),
        )


def _is_measured(item: PooledFound) -> bool:
    names = (item.comparison.architecture, item.arm.arm)
    runs = [run for run in item.study.results.runs if (run.architecture, run.arm) == names]
    return any(run.stress is not None for run in runs)


def _losses(item: PooledFound) -> str:
    own, baseline = (interval(_pooled_loss(item, *weights)) for weights in ((1, 0), (0, 1)))
    return (
        f"{item.place}: {item.arm.arm} loses {own}, {item.study.results.baseline} {baseline}; "
        f"its loss minus half of that: {difference(_pooled_loss(item, 1, -HALF))}"
    )


def _pooled_loss(item: PooledFound, own: float, baseline: float) -> Interval:
    """Return a sum of the losses of an arm and of the baseline, each with its weight, as a mean over paired runs."""
    return item.pool_pairs(lambda run, other: own * _loss(run) + baseline * _loss(other)).interval()


def _loss(run: RunRecord) -> float:
    """Return the Dice that a run loses if the slice before is missing, which hurts a pretrained network most."""
    for loss in () if run["stress"] is None else run["stress"].losses:
        if (loss.kind, loss.offset) == ("missing", 1):
            return float(run["stress"].intact - loss.before)
    return math.nan
