"""What was expected of the project's studies, held strictly against what they found."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from study_results import Interval, lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from study_results import Arm, Study

    Item = TypeVar("Item", "Arm", "Best")

LOST = 0.01  # Dice that a fair start is expected to lose at most
LEVEL = 0.025  # of one-sided tests
FAIR = ("uniform", "center", "profile", "mirror", "twin")


def outcomes(studies: Sequence[Study]) -> dict[str, str]:
    """Hold each expectation against the studies that bear on it, and return what became of it."""
    alone = [arm for study in studies for arm in study.alone]
    pooled = [arm for study in studies for arm in study.pooled if arm.test]
    uniform = [arm for arm in alone if arm.test and starts(arm, "uniform")]
    dice = [arm for arm in alone if arm.test and arm.study.score == "dice"]
    return {
        "A uniform start removes 90 % of the largest pair bias left after training": judge(
            uniform, lambda arm: removed(arm).low >= 0.9, lambda arm: removed(arm).high < 0.9
        ),
        "and loses no more than 0.01 Dice": judge(
            [arm for arm in dice if starts(arm, "uniform")],
            lambda arm: bool(arm.test["holds"]) and arm.test["margin"] <= LOST,
            lambda arm: arm.change.high < -LOST,
        ),
        "The largest pair bias of a tied, `twin` or symmetrized network stays below 1e-4": judge(
            [
                arm
                for arm in alone
                if arm.how.get("tie") or arm.how.get("symmetrize") or arm.how.get("strategy") == "twin"
            ],
            lambda arm: arm.figure("largest_bias").high < 1e-4,
            lambda arm: arm.figure("largest_bias").low > 1e-4,
        ),
        "A random start loses Dice": judge(
            [arm for arm in dice if starts(arm, "random")],
            lambda arm: arm.change.high < 0,
            lambda arm: arm.change.low > 0,
        ),
        "A pretrained start keeps a largest pair bias above 0.05": judge(
            [arm for arm in alone if starts(arm, "pretrained") and arm.how.get("z_flip") is not False],
            lambda arm: arm.figure("largest_bias").low > 0.05,
            lambda arm: arm.figure("largest_bias").high < 0.05,
        ),
        "Symmetrized at the encoder and trained so, a network scores higher": judge(
            [arm for arm in pooled if arm.how.get("symmetrize") == "encoder" and is_trained_so(arm.how)],
            is_higher,
            is_lower,
        ),
        "Symmetrized at the output after training, a network scores higher": judge(
            [arm for arm in pooled if arm.how.get("symmetrize") == "output" and "network_of" in arm.how],
            is_higher,
            is_lower,
        ),
        "The best fair start at one pass loses no more than 0.01": judge(
            list(best_of(arm for arm in pooled if costs_one_pass(arm.how))),
            lambda best: best.p < LEVEL,
            lambda best: all(arm.change.high < -LOST for arm in best.arms),
        ),
        "With the slice before missing, fair starts and training with missing slices lose less than half as much": judge(
            [arm for arm in pooled if should_survive(arm.how) and "stress_intact" in arm.runs[0]],
            lambda arm: less_than_half(arm).high < 0,
            lambda arm: less_than_half(arm).low > 0,
        ),
    }


def judge(found: Sequence[Item], confirms: Callable[[Item], bool], refutes: Callable[[Item], bool]) -> str:
    """Return what became of an expectation: refuted by any finding, confirmed only by all, open otherwise.

    Studies all of whose findings confirm an open one are named. Comparisons with NaN are false: they confirm nothing.
    """
    if any(map(refutes, found)):
        return "refuted"
    unsettled = {item.study.name for item in found if not confirms(item)}
    settled = dict.fromkeys(f"`{item.study.name}`" for item in found if item.study.name not in unsettled)
    if not unsettled:
        return "confirmed"
    return f"open; confirmed in {', '.join(settled)}" if settled else "open"


def starts(arm: Arm, strategy: str) -> bool:
    """Return whether an arm differs from others by starting in one way, and by nothing else."""
    how = arm.how
    return how.get("strategy") == strategy and not any(
        how.get(name) for name in ("tie", "network_of", "symmetrize", "missing_slices")
    )


def is_trained_so(how: Mapping[str, Any]) -> bool:
    """Return whether an arm is trained as it is audited, and otherwise like the baseline."""
    return not how.get("network_of") and not how.get("missing_slices")


def costs_one_pass(how: Mapping[str, Any]) -> bool:
    """Return whether an arm starts fair, in a network that sees each window once."""
    fair = how.get("tie") or how.get("strategy") in FAIR
    return bool(fair) and not how.get("symmetrize") and is_trained_so(how)


def should_survive(how: Mapping[str, Any]) -> bool:
    """Return whether the training of an arm should make it survive a missing slice."""
    fair = costs_one_pass(how) or (how.get("symmetrize") and not how.get("network_of"))
    return bool(how.get("missing_slices") or fair)


def removed(arm: Arm) -> Interval:
    """Return the part of the baseline's bias that an arm removes."""
    return Interval.read(arm.entry["bias_removed"])


def is_higher(arm: Arm) -> bool:
    """Return whether an arm scores higher: the primary one by its test of superiority, others by their adjusted p."""
    if arm.entry.get("primary"):
        return bool(arm.entry["superiority"]["holds"])
    return arm.change.estimate > 0 and _adjusted(arm) < 2 * LEVEL


def is_lower(arm: Arm) -> bool:
    """Return whether an arm scores lower, likewise."""
    if arm.entry.get("primary"):
        return arm.change.high < 0
    return arm.change.estimate < 0 and _adjusted(arm) < 2 * LEVEL


def _adjusted(arm: Arm) -> float:
    p = arm.entry["difference"]["p_adjusted"]
    return float("nan") if p is None else float(p)


class Best(NamedTuple):
    """The arm that scores highest of a kind, and how many there are; its p is multiplied by their number."""

    study: Study
    arms: list[Arm]

    @property
    def p(self) -> float:
        """That of the test that the best loses more than ``LOST``."""
        best = max(self.arms, key=lambda arm: arm.change.estimate)
        score = best.study.score
        gained = best.mean(lambda run, other: float(run[score]) - float(other[score]))
        return min(1.0, len(self.arms) * gained.p_above(-LOST))


def best_of(arms: Iterable[Arm]) -> Iterable[Best]:
    """Group arms by their study and network."""
    for _, group in groupby(arms, key=lambda arm: (arm.study.name, arm.network)):
        found = list(group)
        yield Best(found[0].study, found)


def less_than_half(arm: Arm) -> Interval:
    """Return an arm's loss with the slice before missing, less half of the baseline's, over paired runs."""
    return arm.mean(lambda run, other: lost(run, "before") - lost(other, "before") / 2).interval
