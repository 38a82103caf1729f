"""Replicates: the values of a metric that the runs of an arm give, and that count as independent.

Runs of one fold share their training and test data, so seeds within a fold say how much the training scatters, not how
much the data do. With folds, a replicate is therefore the mean over the seeds of a fold; without, it is a seed. In a
balanced design with an independent random effect of each fold, Student's t over these means is exact. Folds of one data
set are not quite independent, as their training data overlap: intervals over them may be too narrow (Bengio and
Grandvalet 2004; Nadeau and Bengio 2003, doi:10.1023/A:1024068626366).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    RunRecord = Mapping[str, Any]

__all__ = ["Unit", "fold_of", "pair_runs", "replicate_means", "replicate_unit", "run_name"]

Unit: TypeAlias = Literal["fold", "seed"]
"""What counts as independent among the runs of an arm."""


def fold_of(run: RunRecord) -> int:
    """Return the fold of a run; 0 for records of versions that had none.

    Example:
        >>> fold_of({"seed": 1}), fold_of({"seed": 1, "fold": 2})
        (0, 2)
    """
    return int(run.get("fold", 0))


def run_name(run: RunRecord, *, folded: bool) -> str:
    """Return the names of a run, with its fold where there are folds.

    Example:
        >>> run_name({"dataset": "em", "architecture": "net", "arm": "twin", "fold": 0, "seed": 1}, folded=True)
        'em, net, twin, fold 0, seed 1'
    """
    fold = [f"fold {fold_of(run)}"] if folded or fold_of(run) else []
    return ", ".join([run["dataset"], run["architecture"], run["arm"], *fold, f"seed {run['seed']}"])


def replicate_unit(runs: Iterable[RunRecord]) -> Unit:
    """Return what counts as independent among runs on one data set: folds, if there are several, else seeds.

    Args:
        runs: each with its ``fold``, and with the number of ``folds`` of its data set where that is known: the runs of
            the other folds may have failed.

    Example:
        >>> replicate_unit([{"fold": 0, "seed": 0}, {"fold": 1, "seed": 0}])
        'fold'
        >>> replicate_unit([{"seed": 0}, {"seed": 1}])
        'seed'
        >>> replicate_unit([{"fold": 0, "folds": 2, "seed": 0}, {"fold": 0, "folds": 2, "seed": 1}])
        'fold'
    """
    known = [*runs]
    planned = max((run.get("folds", 1) for run in known), default=1)
    return "fold" if planned > 1 or len(set(map(fold_of, known))) > 1 else "seed"


def replicate_means(runs: Sequence[RunRecord], values: ArrayLike, unit: Unit) -> NDArray[np.float64]:
    """Return the mean of values over the runs of each replicate.

    Args:
        runs: n runs, each with its ``fold`` and ``seed``.
        values: (n,) one value for each; NaN is left out.
        unit: what counts as independent, from ``replicate_unit``.

    Returns:
        One value for each fold, or seed, in the order of the runs; NaN where no run has a value.

    Example:
        >>> runs = [{"fold": fold, "seed": seed} for fold in (0, 1) for seed in (0, 1)]
        >>> replicate_means(runs, [0.8, 0.9, 0.6, 0.7], "fold").round(2).tolist()
        [0.85, 0.65]
    """
    groups: dict[int, list[float]] = {}
    for run, value in zip(runs, np.asarray(values, dtype=np.float64).tolist(), strict=True):
        known = groups.setdefault(fold_of(run) if unit == "fold" else run["seed"], [])
        if not np.isnan(value):
            known.append(value)
    return np.array([np.mean(known) if known else np.nan for known in groups.values()], dtype=np.float64)


def pair_runs(runs: Sequence[RunRecord], baseline: Iterable[RunRecord]) -> list[tuple[RunRecord, RunRecord]]:
    """Return the runs that the baseline has with the same fold and seed, each beside that of the baseline.

    Example:
        >>> pair_runs([{"seed": 0}, {"seed": 1}], [{"seed": 1, "dice": 0.8}])
        [({'seed': 1}, {'seed': 1, 'dice': 0.8})]
    """
    others = {(fold_of(run), run["seed"]): run for run in baseline}
    return [(run, others[place]) for run in runs if (place := (fold_of(run), run["seed"])) in others]
