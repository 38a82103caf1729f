"""The sentences of a study's page: how much of the bias each arm removes, and at what cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from evenslice.report.base.wording import MINUS, NOTHING, counted, decimals, interval, listed, number, percent
from evenslice.results import Tolerances, inferiority, score_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import ArmSummary, Comparison, Interval, PooledArm, StudyResults

MOST: Final = 0.9
"""The part of the baseline's bias that an arm must remove, with its whole interval, to be named in a headline."""

BIAS: Final = "largest pair bias"
"""What is removed: the largest |B_k|, in which pairs of opposite sign do not cancel."""


LEVELS: Final = (0.025, 0.05)
"""Below these, a one-sided and a two-sided p is significant."""

_OUTCOMES: Final = {
    "not inferior": (" and is not inferior in {score}", " and are not inferior in {score}"),
    "inferior": (" but is inferior in {score}", " but are inferior in {score}"),
    "not settled": (
        ", but whether it is inferior in {score} is not settled",
        ", but whether they are inferior in {score} is not settled",
    ),
    "no test": (", but one {unit} is too few to test {score}",) * 2,
    "all equal": (", but all differences in {score} are equal, which cannot be tested",) * 2,
}
"""Ends of a clause about one arm and about several, by the outcome for the main score."""


def study_headline(results: StudyResults) -> str:
    """Describe what was compared and how much of it is done."""
    planned, finished = (int(results.summary[name]) for name in ("planned", "finished"))
    failed = len(results.summary["failed"])
    sets, networks = (
        len({getattr(item, name) for item in results.comparisons}) for name in ("dataset", "architecture")
    )
    seeds = len({run.seed for run in results.runs})
    folds = len({run.fold for run in results.runs})
    counts = (
        (sets, "data set"),
        (networks, "network"),
        (len(results.arms), "arm"),
        *([(folds, "fold")] if folds > 1 else []),
        (seeds, "seed"),
    )
    text = f"{finished} of {counted(planned, 'run')} {'is' if 1 in (planned, finished) else 'are'} done"
    if results.comparisons:
        text += ": " + listed([counted(count, name) for count, name in counts])
    text += f"; {failed} failed" if failed else ""
    waiting = max(0, planned - finished - failed)
    return text + (f"; {waiting} {'is' if waiting == 1 else 'are'} still to be done." if waiting else ".")


def comparison_sentence(comparison: Comparison, baseline: str) -> str:
    """Name the arms that are shown to remove most of the baseline's bias, and whether that costs any score."""
    others = [arm for arm in comparison.arms if arm.arm != baseline]
    compared = [arm for arm in others if arm.differences]
    if not compared:
        return (
            f"There is no other arm to compare with {baseline}."
            if not others
            else f"No arm has a {comparison.unit} in common with {baseline}, so there is nothing to compare."
        )
    if all(math.isnan(arm.bias_removed.estimate) for arm in compared):
        return f"{_nothing_shown(compared, baseline, comparison.unit)}."
    what = f"at least {percent(MOST)} of the {BIAS} of {baseline}"
    removing = [arm for arm in compared if arm.bias_removed.low >= MOST]
    if not removing:
        none = all(arm.bias_removed.high < MOST for arm in compared)
        return f"No arm removes {what}." if none else f"No arm is shown to remove {what}."
    clauses = []
    for outcome, (one, several) in _OUTCOMES.items():
        names = [arm.arm for arm in removing if _outcome(arm) == outcome]
        if names:
            verb, cost = ("removes", one) if len(names) == 1 else ("remove", several)
            cost = cost.format(unit=comparison.unit, score=score_title(removing[0].score))
            clauses.append(f"{listed(names)} {verb} {what}{cost}")
            what = "as much"
    tested = any(arm.holds is not None for arm in removing)
    return "; ".join(clauses) + (f" (margin {removing[0].margin:g})." if tested else ".")


def _nothing_shown(compared: Sequence[ArmSummary], baseline: str, unit: str) -> str:
    """Say why nothing is known of what arms remove."""
    if all(math.isnan(arm.differences["largest_bias"].estimate) for arm in compared):
        return f"There is no {BIAS} to compare"  # as in windows of one slice
    if all(math.isnan(arm.differences["largest_bias"].low) for arm in compared):
        return f"One {unit} in common is too few to tell what becomes of the bias"
    return f"{baseline} shows no bias to be removed: its {BIAS} is not beyond the tolerance with its whole interval"


def arm_sentence(arm: ArmSummary, baseline: str, unit: str = "seed") -> str:
    """Describe the effect of an arm on the bias and on the main score, to follow its name.

    ``unit`` is that of the comparison.

    ``"removes 98 % [96 %, 100 %] of the largest pair bias; Dice differs by +0.002 [-0.004, 0.008] and is not inferior
    (margin 0.01)."``
    """
    score = score_title(arm.score)
    if arm.arm == baseline:
        bias, found = metric_text("largest_bias", arm), metric_text(arm.score, arm)
        return f"is the baseline: its {BIAS} is {bias}, its {score} {found}."
    if not arm.differences:
        return f"has no {unit} in common with {baseline}; its {score} is {metric_text(arm.score, arm)}."
    change = arm.differences[arm.score]
    if math.isnan(change.estimate):
        return f"{removal(arm.bias_removed)}; there is no {score} to compare."
    return f"{removal(arm.bias_removed)}; {score} differs by {difference_text(arm.score, arm)}{_judged(arm, unit)}."


def removal(removed: Interval) -> str:
    r"""Describe how much of the largest pair bias an arm removes or adds, as far as the interval settles it.

    Example:
        >>> from evenslice.results import Interval
        >>> for part in ((0.98, 0.961, 1.0), (-0.3, -0.4, -0.2), (-4.2, -5, -3), (0.4, -0.1, 0.9), (math.nan,) * 3):
        ...     print(removal(Interval(*part)).replace("\N{NO-BREAK SPACE}", " ").replace(MINUS, "-"))
        removes 98 % [96 %, 100 %] of the largest pair bias
        adds 30 % [20 %, 40 %] to the largest pair bias
        has 5.2 times [4.0, 6.0] the largest pair bias
        leaves open whether any of the largest pair bias is removed: 40 % [-10 %, 90 %]
        is not known to remove any bias
    """
    if math.isnan(removed.estimate):
        return "is not known to remove any bias"
    if removed.low > 0:
        return f"removes {removed_part(removed)} of the {BIAS}"
    if removed.high >= 0:
        return f"leaves open whether any of the {BIAS} is removed: {removed_part(removed)}"
    if removed.estimate <= -1:
        times, least, most = (_times(1 - part) for part in (removed.estimate, removed.high, removed.low))
        return f"has {times} times [{least}, {most}] the {BIAS}"
    added, least, most = (percent(-part) for part in (removed.estimate, removed.high, removed.low))
    return f"adds {added} [{least}, {most}] to the {BIAS}"


def _times(factor: float) -> str:
    return f"{factor:.1f}" if factor < 10 else f"{factor:.0f}" if factor < 1000 else "more than 1000"


def removed_part(removed: Interval) -> str:
    r"""Format the part that is removed with its interval, in whole percent; it is rounded down so as not to overstate it.

    Example:
        >>> from evenslice.results import Interval
        >>> removed_part(Interval(0.989, 0.961, 1.0)).replace("\N{NO-BREAK SPACE}", " ")
        '98 % [96 %, 100 %]'
        >>> removed_part(Interval(0.29, 0.004, 0.58)).replace("\N{NO-BREAK SPACE}", " ")
        '29 % [0.4 %, 58 %]'
    """
    if math.isnan(removed.estimate):
        return NOTHING
    return f"{_part(removed.estimate)} [{_part(removed.low)}, {_part(removed.high)}]"


def _part(removed: float) -> str:
    if removed < -10:
        return f"below {MINUS}{percent(10)}"
    if 0 < removed < 0.01:
        return percent(removed)
    part = math.floor(100 * removed + 1e-9) / 100  # 100 * .58 is less than 58
    if part < 0:
        return f"{MINUS}{percent(-part)}"
    return f"more than {percent(0.99)}" if 0.99 < removed < 1 else percent(part)


def judgement(arm: ArmSummary | PooledArm) -> str:
    """Return the outcome of the non-inferiority test of the main score, see ``inferiority``."""
    high = arm.differences[arm.score].high if arm.differences else math.nan
    return inferiority(arm.holds, high, arm.margin)


def _outcome(arm: ArmSummary) -> str:
    """Return the outcome of the test, or "all equal" where there is none although there are enough differences."""
    outcome = judgement(arm)
    known = not math.isnan(arm.differences[arm.score].low)
    return "all equal" if outcome == "no test" and known else outcome


def _judged(arm: ArmSummary, unit: str) -> str:
    margin = f"(margin {arm.margin:g})"
    return {
        "no test": f"; one {unit} in common is too few for a test",
        "all equal": "; all differences are equal, so there is no test",
        "not inferior": f" and is not inferior {margin}",
        "inferior": f" and is inferior {margin}",
        "not settled": f"; whether it is inferior is not settled {margin}",
    }[_outcome(arm)]


def verdicts(seen: Sequence[str]) -> str:
    """Count the verdicts of an arm's audits: ``"2 biased, 1 inconclusive"``; a single one is not counted."""
    known = ("biased", "inconclusive", "balanced", "symmetric", "not applicable")
    names = [name for name in known if name in seen] + sorted(set(seen) - set(known))
    return ", ".join(name if len(seen) == 1 else f"{seen.count(name)} {name}" for name in names) or NOTHING


def metric_text(name: str, arm: ArmSummary | PooledArm) -> str:
    """Format a metric of an arm with its interval, a pair bias so that its side of the audit's tolerance is seen."""
    return interval(arm.metrics[name], *([Tolerances.tolerance] if name == "largest_bias" else []))


def difference_text(name: str, arm: ArmSummary | PooledArm) -> str:
    """Format the difference of an arm from the baseline in a metric, in the tested one with regard to its margin."""
    return difference(arm.differences[name], *([-arm.margin] if name == arm.score else []))


def difference(value: Interval, *limits: float) -> str:
    """Format a difference with its interval, with a plus sign if positive.

    It has three decimals, or more where three would not show on which side of 0, or of other limits, an end of the
    interval lies.

    Example:
        >>> from evenslice.results import Interval
        >>> for ends in ((-0.0024, 0.0066), (-0.0003, 0.0066)):
        ...     print(difference(Interval(0.0021, *ends)).replace(MINUS, "-"))
        +0.002 [-0.002, 0.007]
        +0.0021 [-0.0003, 0.0066]
        >>> print(difference(Interval(-0.0075, -0.0096, -0.0054), -0.01).replace(MINUS, "-"))
        -0.0075 [-0.0096, -0.0054]
    """
    if math.isnan(value.estimate):
        return NOTHING
    ends = (value.low, value.high)
    places = decimals(ends, (0.0, *limits))
    estimate, low, high = (f"{part:z.{places}f}".replace("-", MINUS) for part in (value.estimate, *ends))
    estimate = f"+{estimate}" if estimate.strip("0.") and value.estimate > 0 else estimate
    return estimate if math.isnan(value.low) or math.isnan(value.high) else f"{estimate} [{low}, {high}]"


def p_value(p: float, *, interim: bool = False) -> str:
    """Format the p of a test.

    Args:
        p: of the test.
        interim: whether runs of the study are missing: tests hold for one look at the finished study.

    Example:
        >>> p_value(0.0312), p_value(2e-5), p_value(0.0312, interim=True), p_value(0.0496)
        ('p = 0.031', 'p < 0.001', 'interim p = 0.031', 'p = 0.0496')
    """
    if math.isnan(p):
        return NOTHING
    return ("interim " if interim else "") + (
        "p < 0.001" if p < 0.001 else f"p = {number(p, decimals([p], LEVELS))}"
    )
