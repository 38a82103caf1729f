"""docs/coverage.md, from what the sweep found.

python studies/write_coverage.py     # reads studies/sweep/coverage.csv
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from sweep_rows import RESULTS, SLICES, Row, read_rows

from evenslice._core.staging import staged_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCS = Path(__file__).parent.parent / "docs"
LIBRARIES = ("timm", "torchvision", "smp", "monai", "transformers")
LONGEST = 200  # characters of a reason

HEAD = """# Coverage

Every network below was built with random weights, those of its stem far from equal by colour, and neutralized by the
strategy `uniform` for windows of 3 and of 5 slices. "ok" says that it then holds what that promises, as the record of
`neutralize` measures it on the running network: the output changes by at most 1e-5 of its largest value when the slices
are put in another order, and a window of identical slices gives the output of the gray image to 1e-4. Where that fails, the
strategy `mixer` is tried. A promise that is broken in float32 is tried again in float64, since deep networks with random
weights magnify rounding, and once more with batch norms that have the statistics of what they meet; the column
`precision` says where. Images are as small as the network can be built for. Of the
largest, only the stem was checked, for the time and the memory that they take, and they are counted apart.

[`studies/sweep/coverage.csv`](../studies/sweep/coverage.csv) has a row a network; `make sweep` goes on with it, and
`python studies/write_coverage.py` writes this page from it. (This page is written by that script; do not edit it.)
"""


def page(rows: Sequence[Row]) -> str:
    """Return the page, as Markdown."""
    parts = [HEAD, _summary(rows), _failures(rows), _unbuilt(rows)]
    return "\n".join(part for part in parts if part)


def _summary(rows: Sequence[Row]) -> str:
    lines = ["## In numbers", ""]
    for checked, title in (("network", "Checked as a whole"), ("stem", "Checked at the stem alone")):
        chosen = [row for row in rows if row.checked == checked and not row.unbuilt]
        if chosen:
            sizes = [row.parameters for row in chosen if row.parameters is not None]
            extent = f" ({min(sizes):.0f} to {max(sizes):.0f} million parameters)" if sizes else ""
            lines += [f"{title}{extent}:", "", *_table(chosen), ""]
    exact = sum(
        any(row.results[n].precision.startswith("float64") for n in SLICES) for row in rows if not row.unbuilt
    )
    if exact:
        lines += [
            f"{exact} of them magnify rounding, with random weights, beyond what is promised, and were checked in double",
            "precision.",
            "",
        ]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    heads = [
        "networks",
        *(f"ok at {n}" for n in SLICES),
        *(f"ok at {n}, with the mixer" for n in SLICES),
        "neither",
    ]
    yield f"| library | {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * len(heads)}"
    groups = [(library, [row for row in rows if row.library == library]) for library in LIBRARIES]
    present = [(library, group) for library, group in groups if group]
    for library, group in [*present, ("all", list(rows))] if len(present) > 1 else present:
        plain = [_part(sum(_is_ok(row, n) for row in group), len(group)) for n in SLICES]
        mixed = [_part(sum(_is_ok(row, n) or _is_mixed(row, n) for row in group), len(group)) for n in SLICES]
        neither = sum(any(not (_is_ok(row, n) or _is_mixed(row, n)) for n in SLICES) for row in group)
        yield f"| {library} | {len(group)} | {' | '.join([*plain, *mixed, str(neither)])} |"


def _part(number: int, whole: int) -> str:
    """Word a number as a part of a whole, never rounded up to all of it."""
    percent = 100.0 if number == whole else min(99.9, 100 * number / whole)
    return f"{number} ({percent:.4g} %)" if number == whole else f"{number} ({percent:.1f} %)"


def _is_ok(row: Row, slices: int) -> bool:
    return row.results[slices].outcome == "ok"


def _is_mixed(row: Row, slices: int) -> bool:
    return row.results[slices].mixer == "ok"


def _failures(rows: Sequence[Row]) -> str:
    lines = []
    for library in LIBRARIES:
        failed = [row for row in rows if row.library == library and not row.unbuilt]
        found = [line for row in failed for line in _reasons(row)]
        if found:
            lines += [
                "",
                f"### {library}",
                "",
                "| network | slices | why | mixer |",
                "| --- | --- | --- | --- |",
                *found,
            ]
    return "\n".join(["## What fails, and why", *lines, ""]) if lines else ""


def _reasons(row: Row) -> Iterator[str]:
    """Yield a line for each reason of a network, with the numbers of slices that it stands for."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for slices in SLICES:
        found = row.results[slices]
        if found.outcome != "ok":
            mixer = found.mixer if found.mixer != "failed" else f"failed: {found.mixer_error}"
            reasons.setdefault((found.error, mixer or "not tried"), []).append(slices)
    for (error, mixer), numbers in reasons.items():
        counts = ", ".join(map(str, numbers))
        yield f"| {row.name} | {counts} | {_escaped(error)} | {_escaped(mixer)} |"


def _unbuilt(rows: Sequence[Row]) -> str:
    chosen = [row for row in rows if row.unbuilt]
    if not chosen:
        return ""
    counts = Counter(row.library for row in chosen)
    listed = ", ".join(f"{counts[library]} of {library}" for library in LIBRARIES if counts[library])
    lines = [f"| {row.library} | {row.name} | {_escaped(_reason(row))} |" for row in chosen]
    return "\n".join(
        [
            "## What the libraries do not build, or cannot run",
            "",
            f"Counted nowhere above, since there is nothing to neutralize: {listed}. Most are encoders that a decoder of smp",
            "does not take.",
            "",
            "| library | network | why |",
            "| --- | --- | --- |",
            *lines,
            "",
        ]
    )


def _reason(row: Row) -> str:
    return row.unbuilt.removeprefix(f"{row.spec}: ")


def _escaped(text: str) -> str:
    """Make a text safe as a cell of a Markdown table."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    for character in "\\|<>*_`[]":
        short = short.replace(character, f"\\{character}")
    return short


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV of the sweep")
    parser.add_argument("--out", type=Path, default=DOCS / "coverage.md", help="the page")
    options = parser.parse_args()
    text = page(sorted(read_rows(options.results), key=lambda row: (row.library, row.name.lower())))
    with staged_file(options.out, force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
