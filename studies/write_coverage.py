"""docs/coverage.md, from what the sweep found.

python studies/write_coverage.py     # reads studies/sweep/coverage.csv, and twin.csv and symmetrize.csv beside it
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from scipy.stats import binomtest
from sweep_rows import RESULTS, SLICES, Row, read_rows

from evenslice._core.staging import staged_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DOCS = Path(__file__).parent.parent / "docs"
LIBRARIES = ("timm", "torchvision", "smp", "monai", "transformers")
LONGEST = 200  # characters of a reason

HEAD = """# Coverage

Every network below was built with random weights, those of its stem far from equal by colour, and neutralized by the
strategy `uniform` for windows of 3 and of 5 slices. "ok" says that it then holds what that promises, as the record of
`neutralize` measures it on the running network: the output changes by at most 1e-5 of its largest value when the slices
are put in another order, and a window of identical slices gives the output of the gray image to 1e-4. Where that fails, the
strategy `mixer` is tried. A promise that is broken in float32 is tried again in float64, since deep networks with random
weights magnify rounding, and once more with batch norms whose statistics match their input; the column
`precision` says where. Images are as small as the network can be built for. Of the
largest, only the stem was checked, for the time and the memory that they take, and they are counted apart.

A promise is only as well tested as the network reacts to the image, so what scales a branch of a fresh network to almost
nothing, such as a LayerScale, is set to 1 first.

[`studies/sweep/coverage.csv`](../studies/sweep/coverage.csv) has a row a network; `make sweep` continues it, and
`python studies/write_coverage.py` writes this page from it. (This page is written by that script; do not edit it.)
"""

SYMMETRIC = """## Symmetric networks

The same networks, in two other ways, each of which promises that reversing the window changes the output by at most 1e-5 of
its largest value, and that a window of identical slices gives the output of the gray image to 1e-4 (see
[Exactly symmetric networks](symmetry.md)):

- `twin`: `neutralize(model, N, strategy="twin")`, which averages after the activation of the stem. Where none follows,
  as in vision transformers and ConvNeXt, there is no place for that, and the error says so.
- `symmetrize`: `neutralize(model, N, strategy="pretrained")`, then `symmetrize(model)`, which averages the output. A network
  that cannot be given other slices is symmetrized as it was built, for 3 slices alone.
"""


def page(rows: Sequence[Row], others: Mapping[str, Sequence[Row]] | None = None) -> str:
    """Return the page, as Markdown.

    Args:
        rows: of the way "uniform".
        others: the rows of other ways, by name.
    """
    parts = [HEAD, _summary(rows), _failures(rows), _symmetric(rows, others or {}), _unbuilt(rows)]
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


def _symmetric(rows: Sequence[Row], others: Mapping[str, Sequence[Row]]) -> str:
    """Return the section about the ways that make a network symmetric; ``rows`` say what networks there are."""
    ways = {way: [row for row in found if not row.unbuilt] for way, found in others.items() if found}
    if not ways:
        return ""
    whole = Counter(row.library for row in rows if not row.unbuilt)
    tried = ", ".join(f"{len(found)} by `{way}`" for way, found in ways.items())
    lines = [
        SYMMETRIC,
        f"Tried so far, of {whole.total()} networks: {tried}: all of a library, or a random sample. Of networks that",
        "take too long to run, `twin` was checked at the stem alone, which is counted apart, and `symmetrize` not at all.",
        f"{' and '.join(f'`make sweep SWEEP={chr(39)}--way {way}{chr(39)}`' for way in ways)} go on with the others.",
        "",
        "| way | library | networks | tried | ok at 3 | ok at 5 | no place | refused | share ok [95 %] |",
        "| --- | --- |" + " ---: |" * 7,
    ]
    for way, found in ways.items():
        lines += _symmetric_table(way, [row for row in found if row.checked == "network"], whole)
    lines += [
        "",
        "The share is of the networks that have a place, at 3 and at 5 slices, with its exact binomial interval.",
    ]
    for way, found in ways.items():
        lines += _symmetric_notes(way, found)
    lines += _symmetric_reasons(ways)
    return "\n".join([*lines, ""])


def _symmetric_table(way: str, rows: Sequence[Row], whole: Counter[str]) -> Iterator[str]:
    groups = {library: [row for row in rows if row.library == library] for library in LIBRARIES}
    for library, group in [*groups.items(), ("all", list(rows))]:
        if not group:
            continue
        placed = [row for row in group if not _lacks_place(row)]
        held = sum(not _is_refused(row) for row in placed)
        counts = [
            whole.total() if library == "all" else whole[library],
            len(group),
            *(sum(_is_ok(row, n) for row in group) for n in SLICES),
            len(group) - len(placed),
            len(placed) - held,
        ]
        yield f"| {way} | {library} | {' | '.join(map(str, counts))} | {_share(held, len(placed))} |"


def _share(number: int, whole: int) -> str:
    """Word a part of a whole in percent, with the interval in which the share of all networks lies."""
    if not whole:
        return ""
    interval = binomtest(number, whole).proportion_ci()
    return f"{number / whole:.1%} [{interval.low:.1%}, {interval.high:.1%}]".replace("%", " %")


def _symmetric_notes(way: str, rows: Sequence[Row]) -> Iterator[str]:
    stems = [row for row in rows if row.checked == "stem"]
    noted = [f"{row.library}:{row.name}" for row in rows if any(row.results[n].note for n in SLICES)]
    if stems:
        lacking, refused = sum(map(_lacks_place, stems)), sum(map(_is_refused, stems))
        yield ""
        yield (
            f"Checked by `{way}` at the stem alone: {len(stems)}; no place: {lacking}; refused: {refused}."
        )
    if noted:
        yield ""
        yield f"By `{way}` as they were built, for 3 slices alone: {', '.join(f'`{name}`' for name in noted)}."


def _symmetric_reasons(ways: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    lines = [
        f"| {way} | {row.library}:{row.name} | {slices} | {why} |"
        for way, rows in ways.items()
        for row in rows
        if _is_refused(row)
        for slices, why in _refusals(row).items()
    ]
    if lines:
        yield from [
            "",
            "What is refused, and why:",
            "",
            "| way | network | slices | why |",
            "| --- | --- | --- | --- |",
        ]
        yield from lines
    for way, rows in ways.items():
        lacking = [f"`{row.library}:{row.name}`" for row in rows if _lacks_place(row)]
        if lacking:
            yield from ["", f"No place for `{way}`: {', '.join(lacking)}."]


def _refusals(row: Row) -> dict[str, str]:
    """Return the reasons of a network by the numbers of slices that they stand for."""
    found = {n: _escaped(row.results[n].error) for n in SLICES if row.results[n].outcome == "failed"}
    return (
        {", ".join(map(str, found)): next(iter(found.values()))}
        if len(set(found.values())) == 1
        else {str(n): why for n, why in found.items()}
    )


def _lacks_place(row: Row) -> bool:
    return any(row.results[n].outcome == "no place" for n in SLICES)


def _is_refused(row: Row) -> bool:
    return any(row.results[n].outcome == "failed" for n in SLICES)


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
    parser.add_argument("--results", type=Path, default=RESULTS["uniform"], help="the CSV of the sweep")
    parser.add_argument("--out", type=Path, default=DOCS / "coverage.md", help="the page")
    options = parser.parse_args()
    results = {"uniform": options.results}
    results |= {
        way: options.results.with_name(path.name) for way, path in RESULTS.items() if way != "uniform"
    }
    for way, path in results.items():
        if not path.exists():
            raise SystemExit(f"{path}: is missing; make it: make sweep SWEEP='--way {way}'")
    ways = {
        way: sorted(read_rows(path), key=lambda row: (row.library, row.name.lower()))
        for way, path in results.items()
    }
    text = page(ways.pop("uniform"), ways)
    with staged_file(options.out, force=True) as beside:
        beside.write_text(text, encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
