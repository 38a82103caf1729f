"""How often the intervals and verdicts of an audit are right, in simulated audits with known truth.

    python benchmarks/calibration.py                            # the tables, a quarter of an hour on an idle core
    python benchmarks/calibration.py --results runs.json        # saves finished settings; run again to continue
    python benchmarks/calibration.py --docs                     # also writes the tables and the figure to docs/
    python benchmarks/calibration.py --quick                    # 200 audits of each setting

`calibration_simulations.py` and `calibration_limits.py` say what is simulated. The exit status is 1 if a requirement is not met.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
from calibration_limits import (
    Rare,
    SeveralVolumes,
    rare_rates,
    rare_settings,
    several_rates,
    several_settings,
)
from calibration_simulations import (
    TOLERANCE,
    Audits,
    Question,
    Setting,
    Whole,
    few_settings,
    further_settings,
    question_rates,
    questions,
    rates,
    required_settings,
    simulate,
    uneven_questions,
    verdicts,
    whole_rates,
    wholes,
)
from kept import Cache, insert_tables, table

from evenslice.results.intervals import FEW_SLICES

AUDITS = 4000  # of each setting, in the tables of the page
DOCS = Path(__file__).parents[1] / "docs"
ANSWER_RATES = {
    "coverage": "covers, %",
    "biased": "wrongly beyond, %",
    "balanced": "wrongly within, %",
    "found beyond": "C = 0.25 is beyond, %",
    "found within": "C = 0.01 is within, %",
}
"""The rates of the answer, C, and what the tables call them."""

UNEVEN = 1.0  # the largest spread of foreground, as a standard deviation of logarithms, with requirements


def missed(setting: Setting, found: dict[str, float]) -> bool:
    """Return whether a setting fails its requirements."""
    lowest, highest = (0.90, 1.0) if setting.windows == 40 else (0.93, 0.97)
    covered = lowest <= found["coverage"] <= highest
    return not covered or max(found["biased"], found["balanced"]) > 0.05


def whole_audits(audits: int) -> int:
    """Return how many audits of a whole setting are simulated, each of which takes many times as long as another."""
    return audits // 4


AnySetting: TypeAlias = Setting | Question | Rare | SeveralVolumes | Whole


class Rates:
    """The rates of settings, each simulated only once.

    Args:
        audits: simulated audits of each setting; whole audits, which take longer, a quarter of that.
        seed: random seed.
        cache: what is known.
    """

    def __init__(self, audits: int, seed: int, cache: Cache) -> None:
        self.audits, self.seed, self.cache = audits, seed, cache

    def of(self, setting: AnySetting) -> dict[str, float]:
        """Return the rates of a setting."""
        key = f"{setting}, {self.audits} audits, seed {self.seed}"
        return self.cache.get(key, partial(self._simulate, setting))

    def _simulate(self, setting: AnySetting) -> dict[str, float]:
        if isinstance(setting, Rare):
            return rare_rates(setting, self.audits, self.seed)
        if isinstance(setting, SeveralVolumes):
            return several_rates(setting, self.audits, self.seed)
        if isinstance(setting, Question):
            return question_rates(setting, self.audits, self.seed)
        if isinstance(setting, Whole):
            return whole_rates(setting, whole_audits(self.audits), self.seed)
        return rates(setting, self.audits, self.seed)


def _cells(found: dict[str, float]) -> list[str]:
    percents = [f"{100 * found[key]:.1f}" for key in ("coverage", "biased", "balanced")]
    return [*percents, f"{found['used']:.0f}"]


COLUMNS = ["covers, %", "wrongly biased, %", "wrongly balanced, %", "windows used"]


def required_table(known: Rates) -> str:
    """Return the table of the required settings."""
    rows = [
        [str(s.slices), f"{s.autocorrelation:g}", str(s.pairs), s.stop, *_cells(known.of(s))]
        for s in required_settings()
    ]
    return table(["windows", "autocorrelation", "pairs", "stops", *COLUMNS], rows)


def further_table(known: Rates) -> str:
    """Return the table of the further settings."""
    rows = [[what, *_cells(known.of(setting))] for what, setting in further_settings()]
    return table(["setting", *COLUMNS], rows)


def few_table(known: Rates) -> str:
    """Return the table of audits with few slices; fewer than 8 are never enough for a verdict."""
    rows = []
    for setting in few_settings():
        found = known.of(setting)
        cells = _cells(found)[:3]
        if setting.slices < FEW_SLICES:
            cells[1:] = ["withheld", "withheld"]
        rows.append([str(setting.slices), f"{setting.autocorrelation:g}", *cells])
    return table(["slices", "autocorrelation", *COLUMNS[:3]], rows)


def question_table(known: Rates) -> str:
    """Return the table of the answer and the use at their tolerances."""
    rows = []
    for item in questions():
        found = known.of(item)
        cells = [f"{100 * found[key]:.1f}" for key in ("coverage", "biased", "balanced")]
        if item.name == "use":
            cells[1] = "never judged"
        elif item.slices < FEW_SLICES:
            cells[1] = "withheld"
        rows.append([item.name, str(item.slices), f"{item.autocorrelation:g}", *cells])
    return table(
        ["question", "slices", "autocorrelation", "covers, %", "wrongly beyond, %", "wrongly within, %"], rows
    )


def uneven_table(known: Rates) -> str:
    """Return the table of the answer of windows with uneven foreground."""
    rows = []
    for item in uneven_questions():
        found = known.of(item)
        place = [
            f"{item.spread:g}",
            f"{100 * item.present:.0f}",
            str(item.slices),
            f"{item.autocorrelation:g}",
        ]
        rows.append([*place, *(f"{100 * found[key]:.1f}" for key in ANSWER_RATES)])
    return table(["spread", "with foreground, %", "slices", "autocorrelation", *ANSWER_RATES.values()], rows)


def rare_table(known: Rates) -> str:
    """Return the table of differences that few windows have."""
    rows = []
    for item in rare_settings():
        found = known.of(item)
        rates = [f"{100 * found[key]:.1f}" for key in ("coverage", "balanced")]
        rows.append([item.name, f"{100 * item.part:.0f}", str(item.slices), *rates])
    return table(
        ["question", "windows with the difference, %", "windows", "covers, %", "wrongly within, %"], rows
    )


def several_table(known: Rates) -> str:
    """Return the table of the answer in several volumes that differ."""
    rows = []
    for item in several_settings():
        found = known.of(item)
        rates = [f"{100 * found[key]:.1f}" for key in ANSWER_RATES]
        rows.append([str(item.volumes), f"{item.foreground:g}", f"{item.answer:g}", *rates])
    return table(["volumes", "spread of foreground", "spread of C", *ANSWER_RATES.values()], rows)


def whole_table(known: Rates) -> str:
    """Return the table of whole audits."""
    rows = []
    for item in wholes():
        found = known.of(item)
        rates = [f"{100 * found[key]:.1f}" for key in ("biased", "balanced")]
        cells = ["withheld", "withheld"] if item.slices < FEW_SLICES else rates
        subject = "everything" if item.at_tolerance == "all" else "one class"
        rows.append([subject, str(item.slices), f"{item.autocorrelation:g}", *cells])
    return table(
        ["at the tolerance", "windows", "autocorrelation", "wrongly biased, %", "wrongly balanced, %"], rows
    )


def few_missed(setting: Setting, found: dict[str, float]) -> bool:
    """Return whether an audit of few slices fails its requirements."""
    wrong = max(found["biased"], found["balanced"]) > 0.05 and setting.slices >= FEW_SLICES
    return found["coverage"] < 0.93 or wrong


def question_missed(question: Question, found: dict[str, float]) -> bool:
    """Return whether a question is answered wrongly too often."""
    if question.spread > UNEVEN:
        return False  # beyond the requirements
    judged = question.name != "use" and question.slices >= FEW_SLICES
    return max(found["balanced"], found["biased"] if judged else 0.0) > 0.05


def several_missed(setting: SeveralVolumes, found: dict[str, float]) -> bool:
    """Return whether the answer in several volumes is wrong too often."""
    return setting.foreground <= UNEVEN and max(found["biased"], found["balanced"]) > 0.05


def rare_missed(setting: Rare, found: dict[str, float]) -> bool:
    """Return whether a difference of the answer that few windows have is overlooked too often."""
    return setting.name == "answer" and found["balanced"] > 0.05


POWER_SPREAD, POWER_AUTOCORRELATION = 0.1, 0.5


def power_figure(path: Path, audits: int, seed: int) -> None:
    """Plot the shares of verdicts against the true pair bias for audits of several lengths."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    truths = np.linspace(0, 0.12, 61)
    with plt.rc_context({"svg.hashsalt": "evenslice", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 3), sharey=True, layout="constrained")
        for count in (40, 100, 300, 1000):
            found = _power_audits(count, audits, seed)
            shares = np.array([verdicts(found, np.array([truth])) for truth in truths])
            for axis, share in zip(axes, shares.T, strict=True):
                axis.plot(truths, share, label=f"{count} windows")
        for axis, verdict in zip(axes, ("biased", "balanced"), strict=True):
            axis.axvline(TOLERANCE, color="gray", linewidth=0.8, linestyle="--")
            axis.set(title=f'verdict "{verdict}"', xlabel="true pair bias", ylim=(-0.02, 1.02))
        axes[0].set_ylabel("share of audits")
        axes[1].legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _power_audits(count: int, audits: int, seed: int) -> Audits:
    """Run audits that use all windows, with a standard deviation of ``POWER_SPREAD``."""
    setting = Setting(count, POWER_AUTOCORRELATION, "at the end")
    error, half_width, within_half, biased_half, used = simulate(setting, audits, seed)
    scale = POWER_SPREAD / setting.spread
    return Audits(scale * error, scale * half_width, scale * within_half, scale * biased_half, used)


def main() -> int:
    """Run the simulations."""
    parser = argparse.ArgumentParser(
        description="How often the intervals and verdicts of an audit are right."
    )
    parser.add_argument(
        "--audits", type=int, default=AUDITS, help="simulated audits of each setting (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="200 audits of each setting, too few for conclusions"
    )
    parser.add_argument("--results", type=Path, help="JSON file for finished settings")
    parser.add_argument("--docs", action="store_true", help="write the tables and the figure into docs/")
    options = parser.parse_args()
    if options.docs and (options.quick or options.audits != AUDITS):
        parser.error(
            f"--docs: the tables of the page are of {AUDITS:,} audits; leave out --quick and --audits"
        )
    started = time.monotonic()
    audits = 200 if options.quick else options.audits
    known = Rates(audits, options.seed, Cache(options.results))
    tables = {
        "required": required_table(known),
        "few": few_table(known),
        "questions": question_table(known),
        "uneven": uneven_table(known),
        "several": several_table(known),
        "rare": rare_table(known),
        "whole": whole_table(known),
        "further": further_table(known),
    }
    whole = f"{whole_audits(audits)} where whole audits are simulated"
    print(
        f"{audits} simulated audits of each setting ({whole}), seed {options.seed}",
        *tables.values(),
        sep="\n\n",
    )
    if options.docs:
        insert_tables(DOCS / "calibration.md", tables)
        power_figure(DOCS / "power.svg", audits, options.seed)
    misses: list[AnySetting] = [
        *(setting for setting in required_settings() if missed(setting, known.of(setting))),
        *(setting for setting in few_settings() if few_missed(setting, known.of(setting))),
        *(item for item in wholes() if max(known.of(item).values()) > 0.05),
        *(item for item in chain(questions(), uneven_questions()) if question_missed(item, known.of(item))),
        *(item for item in several_settings() if several_missed(item, known.of(item))),
        *(item for item in rare_settings() if rare_missed(item, known.of(item))),
    ]
    for setting in [] if options.quick else misses:
        print(f"missed: {setting}")
    print(f"\n{time.monotonic() - started:.0f} s")
    return 1 if misses and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
