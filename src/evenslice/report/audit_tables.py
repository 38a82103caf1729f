"""What audits and surveys found: the four answers, the verdict and what to do in words, and all figures as tables."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

from evenslice.report.next_steps import next_step
from evenslice.report.tables import (
    MINUS,
    NOTHING,
    Group,
    Row,
    Table,
    counted,
    csv_text,
    difference,
    flatten,
    html_table,
    interval,
    listed,
    number,
    one_line,
    percent,
    plain_table,
    run_table,
    short_path,
    signed,
    threshold,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.results import (
        AuditResult,
        Interval,
        Measurements,
        StressSummary,
        SurveyedNetwork,
        SurveyResult,
    )


ASKS = {
    "saliency": "Would a map favour a side?",
    "reliance": "Is one side missed more?",
    "answer": "Does the order change the answer?",
    "use": "Are opposite slices used alike, place by place?",
}
SYMBOLS = {"saliency": "B", "reliance": "B", "answer": "C", "use": "E"}
WORST = ("beyond", "open", "unknown", "within")

SCALINGS = {
    "recorded": "as recorded on the network",
    "recorded on a part": "as recorded on a part of the network. If what wraps that part scales its input too, slices were "
    "scaled twice",
    "given": "as given",
    "stated": "as the network's library states for its pretrained weights",
    "assumed": "which is assumed: neither the network nor its library states a scaling",
}
BIASED = {
    "saliency": "its {maps} ({side} gets {half} of its pair{of})",
    "reliance": "what it relies on ({side} is missed most{of})",
    "answer": "its answers ({size}{of} changes when a window is reversed)",
    "scores": "its answers (reversing a window changes them by {size} of the difference between unrelated ones)",
}
VERDICTS = {
    "biased": "Biased in {biased}.",
    "symmetric": "Symmetric: opposite slices are used in the same way, place by place.",
    "balanced": "Balanced: neither side is favoured, and answers do not depend on the order of slices; place by place, opposite "
    "slices may be used in different ways.",
    "inconclusive": "Not settled: {decided}.",
    "not applicable": "Not applicable: a window of one slice has no opposite slices to compare.",
}
LONGEST_NAME = 60
COLOURS = {"symmetric": "#3fae5a", "balanced": "#3fae5a", "biased": "#e8543f", "inconclusive": "#d9a21b"}
OTHER = "#8a8f98"  # of verdicts that none of these has


@dataclass(frozen=True)
class Found:
    """A figure, and the class and the pair ±k that it is about; None stands for all."""

    figure: Interval
    class_number: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to one of the four questions, of an audit, a class or a volume.

    Attributes:
        question: which.
        tolerance: the largest absolute figure that counts as fair.
        found: the figure that decided the verdict, else the judged one that is farthest beyond the tolerance or nearest to
            it; None if the question was not asked.
        state: of all judged figures, "within", "beyond" or "open"; "not judged", "not asked", or "unknown".
        decided: whether it decided the verdict or, of an inconclusive one, is open.
        about: the class and the pair of the figure, as far as it is not about all.
        figures: all that are known.
    """

    question: str
    tolerance: float
    found: Found | None
    state: str
    decided: bool
    about: str
    figures: tuple[Found, ...]

    @property
    def value(self) -> str:
        """The figure with its 95 % interval in brackets."""
        return interval(self.found.figure if self.found else None, self.tolerance, -self.tolerance)

    @property
    def verdict(self) -> str:
        """The state with the tolerance."""
        if self.state not in ("within", "beyond", "open"):
            return {"unknown": "as in version 0.2"}.get(self.state, self.state)
        edge = f"{'±' if SYMBOLS[self.question] == 'B' else ''}{self.tolerance:g}"
        return f"open ({edge})" if self.state == "open" else f"{self.state} {edge}"


def four_answers(audit: AuditResult) -> tuple[Answer, ...]:
    """Return the answers on saliency, reliance, answer and use; none for a window of one slice."""
    decisions = {item.question: item for item in audit.statistics.decided_by}
    return tuple(
        _answer(audit, question, _figures(audit, question), decisions.get(question))
        for question in ASKS
        if audit.saliency
    )


def answers_of_part(audit: AuditResult, part: Any) -> tuple[Answer, ...]:
    """Return the same of one of its ``ClassFigures`` or ``VolumeFigures``."""
    return tuple(_answer(audit, question, _of_part(part, question)) for question in ASKS)


def tolerance_of(audit: AuditResult, question: str) -> float:
    """Return the largest absolute figure that counts as fair."""
    found = audit.statistics
    return {"answer": found.answer_tolerance, "use": found.mismatch_tolerance}.get(question, found.tolerance)


def _answer(audit: AuditResult, question: str, figures: Sequence[Found], decision: Any = None) -> Answer:
    known = [found for found in figures if not math.isnan(found.figure.estimate)]
    key = None if decision is None else (decision.class_number, decision.offset)
    deciding = [found for found in known if (found.class_number, found.offset) == key]
    judged = [found for found in known if getattr(found.figure, "judged", True)]
    states = {getattr(found.figure, "state", "unknown") for found in judged}
    state = next((state for state in WORST if state in states), "not judged" if known else "not asked")
    if decision is not None and state == "within":
        state = "open"  # a pair of a class decided, whose figure is not kept
    chosen = deciding[0] if deciding else max(judged or known, key=_excess, default=None)
    about = []
    if chosen is not None and chosen.class_number is not None:
        about.append(f"class {chosen.class_number}")
    if chosen is not None and chosen.offset is not None and len(audit.saliency) > 1:
        about.append(f"slices ±{chosen.offset}")
    return Answer(
        question=question,
        tolerance=tolerance_of(audit, question),
        found=chosen,
        state=state,
        decided=decision is not None,
        about=", ".join(about),
        figures=tuple(known),
    )


def _excess(found: Found) -> tuple[float, float]:
    """Sort figures by how certainly they are far from 0."""
    figure = found.figure
    least = -figure.high if figure.estimate < 0 else figure.low
    return least if math.isfinite(least) else -math.inf, abs(figure.estimate)


def _figures(audit: AuditResult, question: str) -> list[Found]:
    """List the figures on a question: of all predicted pixels, and of each judged class."""
    of_classes = [
        Found(found.figure, item.class_number, found.offset)
        for item in audit.statistics.classes
        for found in _of_part(item, question)
    ]
    if question != "answer":
        return _of_part(audit.statistics, question) + of_classes
    if any(not math.isnan(found.figure.estimate) for found in of_classes):
        return of_classes  # of which that of the audit is the largest
    return [Found(audit.answer, audit.answer.class_number)]


def _of_part(part: Any, question: str) -> list[Found]:
    """List the figures on a question of all pixels, of a class, or of a volume."""
    if question == "answer":
        return [Found(part.answer_change)]
    of_use = part.mirror_mismatch.pairs
    pairs = {"saliency": part.pairs, "reliance": part.reliance}.get(question, of_use)
    found = [Found(pair, offset=k) for k, pair in enumerate(pairs, start=1)]
    return [Found(part.mirror_mismatch), *found] if question == "use" else found


def tables_of_audits(audits: Sequence[AuditResult]) -> list[Table]:
    """Return the answers of each audit to the four questions, and the cost of disturbed slices to each network."""
    titles = [audit.name if len(audits) > 1 else "four questions" for audit in audits]
    answers = [answer_table(audit, title) for audit, title in zip(audits, titles, strict=True)]
    return [table for table in answers if table.rows] + stress_tables(audits)


def answer_table(audit: AuditResult, title: str = "four questions") -> Table:
    """Return a row for each question: the figure that decided or matters most, what it is about, and its state."""
    rows = [
        Row(
            f"{item.question} *" if item.decided else item.question,
            (SYMBOLS[item.question], item.value, item.about, item.verdict),
        )
        for item in four_answers(audit)
    ]
    note = "* Decided the verdict, or left it open." if audit.statistics.decided_by else ""
    return plain_table(title, ("question", "", "figure [95 %]", "of", "found"), rows, note)


def audit_html(audit: AuditResult) -> str:
    """Return an audit in short as HTML, for notebooks and for labels of Qt: the verdict, the four answers, what to do."""
    style = f"font-size: x-large; font-weight: bold; color: {COLOURS.get(audit.verdict, OTHER)}"
    sentences = [extent_sentence(audit), next_step(audit), *setting_lines([audit])]
    return "".join(
        [
            f'<p><span style="{style}">{escape(audit.verdict)}</span></p>',
            f"<p>{escape(verdict_sentence(audit))}</p>",
            html_table(answer_table(audit, "")),
            *(f"<p>{escape(text)}</p>" for text in sentences if text),
        ]
    )


def verdict_sentence(audit: AuditResult) -> str:
    """Say the verdict and what decided it; then what is equal, and what was not judged."""
    found, answers = audit.statistics, four_answers(audit)
    if audit.definitions == 1:
        about = listed([item.question for item in found.decided_by])
        return f"{audit.verdict.capitalize()} with the definitions of version 0.2{about and f', by its {about}'}."
    decided = [item for item in answers if item.decided]
    biases = [
        _bias(audit, item.question, item.found)
        for item in decided
        if audit.verdict == "biased" and item.found
    ]
    names = [f"{item.question} ({item.about})" if item.about else item.question for item in decided]
    text = VERDICTS[audit.verdict].format(
        biased=listed(biases), decided=listed(names) or "nothing differs so far"
    )
    if found.different is not None:
        text += f" Equal in all {counted(audit.windows, 'window')} read"
        most = threshold(math.ceil(1000 * found.different) / 1000)
        text += f": fewer than {most} of all can differ." if found.different else "."
    if found.unjudged_classes:
        classes = ", ".join(map(str, found.unjudged_classes))
        text += f" Not judged, as below {threshold(found.judged_class)} of the pixels: class {classes}."
    return text


def _bias(audit: AuditResult, question: str, found: Found) -> str:
    """Say where a network is biased, and how much."""
    method = audit.run.method.replace("_", " ")
    scores = question == "answer" and audit.answer.of == "scores"
    size, k = found.figure.estimate, found.offset or 1
    of = "" if found.class_number is None else f" of class {found.class_number}"
    return BIASED["scores" if scores else question].format(
        maps="gradient maps" if method == "gradient" else f"maps by {method}",
        side=f"z{signed(k if size > 0 else -k)}",
        half=percent((1 + abs(size)) / 2),
        size=percent(abs(size)),
        of=of if question == "answer" else of.replace(" of ", " in "),
    )


def extent_sentence(audit: AuditResult) -> str:
    """Say of which volumes the verdict is, and how many of their windows were read."""
    there = audit.run.windows_available
    volumes = "these volumes" if len(audit.run.volumes) > 1 else "this volume"
    return f"On {volumes}: {audit.windows}{f' of {there}' if there else ''} windows read."


def audit_lines(audits: Sequence[AuditResult]) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Return what a terminal says above the answers of audits, and what to do next, which it says below.

    Lines above are a name, a verdict, more text, and the tone of the verdict: first how the audits were made, then for each its
    verdict with what decided it and its extent.
    """
    above = [("", "", line, "") for line in setting_lines(audits)]
    for audit in audits:
        word, rest = verdict_sentence(audit).split(maxsplit=1)
        name = f"{audit.name}: " if len(audits) > 1 else ""
        above.append((name, word, f" {rest} {extent_sentence(audit)}", Table.tone(audit.verdict)))
    fair = ("symmetric", "balanced") if len(audits) > 1 else ()
    steps = dict.fromkeys(next_step(audit) for audit in audits if audit.verdict not in fair)
    return above, [line for line in steps if line]


def setting_lines(audits: Sequence[AuditResult]) -> list[str]:
    """Say how audits were made as far as it bears on their figures, one line for each way.

    The line names the audits that were made in this way, unless all were: which scaling of the input was used, and where it
    comes from; whether classes were assumed to exclude each other; and by which definitions it was measured.
    """
    named: dict[str, list[str]] = {}
    for audit in audits:
        named.setdefault(_setting(audit), []).append(one_line(audit.name, LONGEST_NAME))
    return [text if len(named) == 1 else f"{listed(names)}: {text}" for text, names in named.items() if text]


def _setting(audit: AuditResult) -> str:
    run, parts = audit.run, []
    if audit.definitions == 1:
        parts.append("Measured with the definitions of version 0.2.")
    if run.scaling is not None and run.scaling.get("source") == "function":
        parts.append("The function gets slices in 0 to 1, and scales them itself.")
    elif run.scaling is not None:
        mean, std = (_values(run.scaling.get(name)) for name in ("mean", "std"))
        how = SCALINGS.get(str(run.scaling.get("source")), "")
        parts.append(f"Input: slices in 0 to 1, minus mean {mean}, divided by std {std}{how and f', {how}'}.")
    if run.assumed:
        typed = "--overlapping" if run.command else "Reading(overlapping=True)"
        parts.append(f"Classes were assumed to exclude each other; if they do not, give {typed}.")
    if run.clamped:
        parts.append(f"{percent(run.clamped)} of the probabilities were clamped to [1e-6, 1 - 1e-6].")
    return " ".join(parts)


def _values(values: Any) -> str:
    """Format one value for each slice, once if all are the same."""
    found = [f"{value:.3g}" for value in (values if isinstance(values, list | tuple) else [values])]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def networks_and_volumes(audits: Sequence[AuditResult]) -> str:
    """Name the networks of audits and their volumes, three of each at most."""
    networks = [_network(audit.run.model) for audit in audits]
    volumes = [short_path(volume.path) for audit in audits for volume in audit.run.volumes]
    return ", on ".join(filter(None, map(_first, (networks, volumes))))


def _first(names: Sequence[str], most: int = 3) -> str:
    named = [*dict.fromkeys(names)]
    return listed(named[:most] + ([f"{len(named) - most} more"] if len(named) > most else []))


def _network(model: dict[str, Any]) -> str:
    text = str(model.get("spec") or model.get("class") or "a network of unknown name")
    text += f", weights {model['weights']}" if model.get("weights") else ""
    return f"{text}, symmetrized" if model.get("symmetrized") else text


SHARES = (
    "Shares of the saliency",
    "Mean part of the absolute attribution that falls on each slice; they sum to 1.",
)
"""Title and meaning of a group."""

EFFECT = (
    "Effect on the result",
    {
        "answer_change": "C, answer change",
        "mirror_mismatch": "E, mirror mismatch",
        "mirror_error": "Mirror error",
        "mirror_disagreement": "Mirror disagreement",
    },
    (
        "The effect of reversing a window. C: for a class, the part of its pixels that changes; for scores, the size of the "
        "change, 1 for unrelated outputs. E: the part of the attribution of the outer slices that is not used in the same way, "
        "place by place. Error: largest change of the output, relative to the largest output. Disagreement: the part of the "
        "pixels whose class changes."
    ),
)
"""Title, statistics with their labels, and meaning of a group."""

GROUPS: tuple[tuple[str, dict[str, str], str], ...] = (
    (SHARES[0], {"shares": "slice {}"}, SHARES[1]),
    (
        "Saliency: pair bias B, model part",
        {"pairs": "k = {}"},
        f"How the network itself divides the saliency of the slices at {MINUS}k and +k: {MINUS}1 all to the one before, 0 fair.",
    ),
    (
        "Reliance: pair bias B",
        {"reliance": "k = {}"},
        "The same for the change when a slice is replaced by the middle one.",
    ),
    (
        "Saliency: pair bias B, data part",
        {"data_pairs": "k = {}"},
        "The contribution of the slices themselves. It changes sign when a window is reversed, and is not due to the network.",
    ),
    (
        "Distance between saliency distributions",
        {"wasserstein": "k = {}"},
        f"Wasserstein-1 distance between the saliency of the slices at {MINUS}k and +k, in units of the mean saliency.",
    ),
    (
        "Saliency: over all pairs",
        {
            "directional_bias": "D_m, directional bias, model part",
            "data_direction": "D_d, directional bias, data part",
            "asymmetry": "A, asymmetry",
            "imbalance": "U, imbalance",
        },
        "D: as B, over all pairs. A: distance of the mean shares from their mirror. U: their distance from an even split.",
    ),
    EFFECT,
)
"""Title, statistics with their labels, and meaning."""

JUDGED = {"pairs": "saliency", "reliance": "reliance", "answer_change": "answer", "mirror_mismatch": "use"}
"""The question that a statistic answers."""

TOLERANCES = ("tolerance", "answer_tolerance", "mismatch_tolerance", "judged_share", "judged_class")


QUESTIONS = ("Saliency, B", "Reliance, B", "Answer, C", "Use, E")


def statistics_table(audits: Sequence[AuditResult]) -> Table:
    """Return all statistics in groups of rows, one column for each audit."""
    found = [_statistics(audit) for audit in audits]
    known = dict.fromkeys(key for figures in found for key in figures)
    groups = []
    for title, labels, meaning in GROUPS:
        rows = []
        for name, k in sorted((key for key in known if key[0] in labels), key=lambda key: key[1] or 0):
            cells = [
                _figure_cell(audit, name, figures.get((name, k)))
                for audit, figures in zip(audits, found, strict=True)
            ]
            if not all(cell.startswith(NOTHING) for cell in cells):
                label = labels[name].format(signed(k or 0) if name == "shares" else k)
                rows.append(Row(label, tuple(cells)))
        groups.append(Group(title, meaning, tuple(rows)))
    return Table(
        "All statistics",
        ("Statistic", *(audit.name for audit in audits)),
        tuple(groups),
        "Estimates with their 95 % intervals.",
        tuple(range(len(audits))),
    )


def _statistics(audit: AuditResult) -> dict[tuple[str, int | None], Interval]:
    """Return all statistics of an audit by their names in ``audit.json``, and the slice or pair that one is about."""
    found: dict[tuple[str, int | None], Interval] = {}
    for name in (name for _, labels, _ in GROUPS for name in labels):
        value = getattr(audit.statistics, name)
        first = -(len(audit.shares) // 2) if name == "shares" else 1
        if isinstance(value, tuple):
            found |= {(name, k): item for k, item in enumerate(value, start=first)}
        else:
            found[name, None] = value
    return found


def _figure_cell(audit: AuditResult, name: str, value: Interval | None) -> str:
    """Format a statistic so that it is seen on which side of the audit's tolerance it lies."""
    edge = tolerance_of(audit, JUDGED[name]) if name in JUDGED else None
    cell = interval(value, *([] if edge is None else [-edge, edge]))
    return cell if getattr(value, "judged", True) else f"{cell}\nnot judged"


def part_tables(audits: Sequence[AuditResult]) -> list[Table]:
    """Return the four answers about each judged class, and about each volume of audits that have several."""
    classes = [
        _part_row(audits, index, f"class {item.class_number}", percent(item.pixels), item)
        for index, audit in enumerate(audits)
        for item in audit.statistics.classes
    ]
    volumes = [
        _part_row(audits, index, _volume_name(audit, item.volume), str(item.windows), item)
        for index, audit in enumerate(audits)
        for item in audit.statistics.by_volume
    ]
    return [
        plain_table(
            "Each judged class",
            ("Class", "Pixels", *QUESTIONS),
            classes,
            "Figures for the pixels of each class, and its most biased pair. Biases that cancel out over the whole output show "
            "here.",
        ),
        plain_table(
            "Each volume",
            ("Volume", "Windows", *QUESTIONS),
            volumes,
            "The figures of all predicted pixels of each volume, which decide nothing by themselves.",
        ),
    ]


def _volume_name(audit: AuditResult, number: int) -> str:
    volumes = audit.run.volumes
    return f"{number + 1}: {short_path(volumes[number].path) if number < len(volumes) else ''}"


def _part_row(audits: Sequence[AuditResult], index: int, name: str, extent: str, part: Any) -> Row:
    label = name if len(audits) == 1 else f"{audits[index].name}, {name}"
    cells = [_answer_cell(answer) for answer in answers_of_part(audits[index], part)]
    return Row(label, (extent, *cells), index)


def _answer_cell(answer: Answer) -> str:
    remarks = [answer.state if answer.state != "unknown" else "", answer.about]
    return "\n".join(filter(None, [answer.value, ", ".join(filter(None, remarks))]))


def settings_table(audits: Sequence[AuditResult]) -> Table:
    """Return what was run, one column for each audit."""
    return run_table([audit.name for audit in audits], [dict(flatten(asdict(audit.run))) for audit in audits])


def csv_tables(audits: Sequence[AuditResult]) -> dict[str, str]:
    """Return the text of each CSV file by name.

    ``figures.csv`` has a row for every statistic of every audit (audit, figure, offset, estimate, low, high, judged,
    state, class, volume), those of each judged class and each volume too; ``windows.csv`` a row for every window, with its
    place and what was measured, by offset (``share_-1``, ``reliance_-1``, ``mismatch_1``); ``run.csv`` a row for every
    setting and a column for every audit. Undefined values are left empty.
    """
    lines = {"figures": _figure_lines, "windows": _window_lines, "run": _run_lines}
    return {f"tables/{name}.csv": csv_text(write(audits)) for name, write in lines.items()}


def _figure_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["audit", "figure", "offset", "estimate", "low", "high", "judged", "state", "class", "volume"]
    for audit in audits:
        for (name, offset), value in _statistics(audit).items():
            number = getattr(value, "class_number", None)
            yield [audit.name, name, offset, *_figure_cells(value), number, None]
        for part, about in (
            *((item, [item.class_number, None]) for item in audit.statistics.classes),
            *((item, [None, item.volume + 1]) for item in audit.statistics.by_volume),
        ):
            for answer in answers_of_part(audit, part):
                for found in answer.figures:
                    yield [audit.name, answer.question, found.offset, *_figure_cells(found.figure), *about]


def _figure_cells(value: Interval) -> list[Any]:
    more = (getattr(value, name, None) for name in ("judged", "state"))
    return [value.estimate, value.low, value.high, *more]


def _window_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    tables = [
        (audit.name, _columns(audit.measurements)) for audit in audits if audit.measurements is not None
    ]
    names = dict.fromkeys(name for _, columns in tables for name in columns)
    yield ["audit", *names]
    for audit, columns in tables:
        for i in range(len(columns["volume"])):
            yield [audit, *(columns[name][i] if name in columns else None for name in names)]


def _columns(measured: Measurements) -> dict[str, Any]:
    """Return what was measured on each window for all pixels, by name and offset."""
    half = measured.slices // 2
    columns = {"volume": measured.volume, **dict(zip("zyx", measured.position.T, strict=True))}
    for name, found in (("share", measured.shares[:, 0]), ("mirrored_share", measured.shares[:, 1])):
        columns |= {f"{name}_{k}": found[:, k + half] for k in range(-half, half + 1)}
    reliance = measured.reliance[:, :, 0].mean(axis=1)
    columns |= {f"reliance_{k}": reliance[:, k + half] for k in range(-half, half + 1)}
    for name, pairs in (("mismatch", measured.mismatch[:, 0]), ("outer", measured.outer[:, 0])):
        columns |= {f"{name}_{k}": pairs[:, k - 1] for k in range(1, half + 1)}
    return columns | {
        name: getattr(measured, name) for name in ("mirror_error", "change", "clamped", "own_mirror")
    }


def _run_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["setting", *(audit.name for audit in audits)]
    for name in ("verdict", "definitions", "windows"):
        yield [name, *(getattr(audit, name) for audit in audits)]
    for name in (*TOLERANCES, "different", "needed"):
        yield [name, *(getattr(audit.statistics, name) for audit in audits)]
    for row in settings_table(audits).rows:
        yield [row.label, *row.cells]


def stressed(audits: Sequence[AuditResult]) -> list[tuple[int, str, StressSummary]]:
    """Return index, name and losses of one audit of each network, though several methods may have audited it."""
    found: dict[str, tuple[int, str, StressSummary]] = {}
    for index, audit in enumerate(audits):
        if audit.stress is not None and audit.stress.losses:
            found.setdefault(repr(audit.stress), (index, audit.name, audit.stress))
    return list(found.values())


def stress_tables(audits: Sequence[AuditResult]) -> list[Table]:
    """Return the cost of disturbed slices to each network, one table for each."""
    return [stress_table(stress, name if len(audits) > 1 else "") for _, name, stress in stressed(audits)]


def stress_table(stress: StressSummary, network: str = "") -> Table:
    """Return the mean Dice for each kind of disturbance: of the slice at -k, at +k and both, and the asymmetry."""
    labelled = stress.reference == "labels"
    note = ""
    if not stress.intact > 0:
        found = "The answer is right about" if labelled else "The network finds"
        note = f"{found} no class but 0 in these slices, so there is nothing to lose."
    rows = [
        Row("intact", ("", *[number(stress.intact)] * 3, "")),
        *(
            Row(
                loss.kind,
                (
                    str(loss.offset),
                    *(number(side) for side in (loss.before, loss.after, loss.both)),
                    difference(loss.asymmetry),
                ),
            )
            for loss in stress.losses
        ),
        Row("reversed stack", ("", NOTHING, NOTHING, number(stress.reversed), "")),
    ]
    return plain_table(
        f"{network and f'{network}: '}{'Dice' if labelled else 'Dice with the intact answer'} when slices are disturbed, "
        f"{counted(stress.slices, 'window')}",
        ("slice is", "k", f"{MINUS}k", "+k", "both", f"loss at {MINUS}k minus at +k"),
        rows,
        note,
    )


# Surveys.

SURVEY_READING: Final = (
    f"Directional bias D_m: {MINUS}1 if all attention goes to the slices before the middle, 0 if the network is fair, 1 if all "
    "goes to those after. C: how much the answer changes when a window is reversed. Energy: share of each channel (red, green, "
    "blue) in the sum of squares of the stem's kernels, with the network's normalisation folded in. Chromatic: the part of that "
    "energy to which a gray image does not contribute. Shares: share of each slice in the attribution. Mirror error: change of "
    "the output when a window is reversed, relative to its largest value."
)


def survey_headline(survey: SurveyResult) -> str:
    """Count the networks and verdicts of a survey in one sentence."""
    verdicts = [item.verdict for item in survey.measured]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts))]
    failed = [f"{len(survey.failed)} failed"] if survey.failed else []
    return f"{counted(len(survey.networks), 'network')}: {', '.join(counts + failed)}."


def networks_table(survey: SurveyResult) -> Table:
    """Return a row for each network that was measured."""
    rows = [
        Row(
            item.spec,
            (
                "\n".join(filter(None, (item.verdict, *_remarks(item)))),
                difference(item.directional_bias),
                number(item.answer_change.estimate, 2),
                " ".join(map(number, item.energy)),
                number(item.chromatic),
                " ".join(number(share.estimate) for share in item.shares),
                number(item.mirror_error.estimate),
            ),
        )
        for item in survey.measured
    ]
    columns = ("network", "verdict", "D_m", "C", "energy", "chromatic", "shares", "mirror error")
    draws = max((item.draws for item in survey.measured), default=1)
    note = f"Networks with random parts: means over {draws} draws." if draws > 1 else ""
    return plain_table("Colour balance and slice bias", columns, rows, note)


def _remarks(item: SurveyedNetwork) -> Iterator[str]:
    """Yield what decided the verdict of a network, or is open, and whether it has random parts."""
    if item.decided_by:
        yield f"{'not settled: ' if item.verdict == 'inconclusive' else 'by '}{', '.join(item.decided_by)}"
    if item.random:
        yield "all random" if item.random == ("*",) else "partly random"


def failed_networks_table(survey: SurveyResult) -> Table:
    """Return the networks that could not be surveyed, and why."""
    return plain_table(
        "What failed", ("network", "error"), [Row(item.spec, (item.error,)) for item in survey.failed]
    )


def tables_of_survey(survey: SurveyResult) -> list[Table]:
    """Return the table of the networks that were measured, and that of those which were not, as far as there are any."""
    return [table for table in (networks_table(survey), failed_networks_table(survey)) if table.rows]


def survey_settings(survey: SurveyResult) -> Table:
    """Return what was run."""
    return run_table(["Value"], [dict(flatten(asdict(survey.run)))])


def survey_csv(survey: SurveyResult) -> str:
    """Return a survey as CSV, one row for each network; cells of channels and slices that it does not have are empty."""
    rows = [_survey_row(item) for item in survey.networks]
    names = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    return csv_text([[*names], *([row.get(name) for name in names] for row in rows)])


def _survey_row(item: SurveyedNetwork) -> dict[str, Any]:
    """Return the cells of a network by column."""
    bias = item.directional_bias
    return {
        **{name: getattr(item, name) for name in ("spec", "weights", "origin")},
        **{name: " ".join(getattr(item, name)) for name in ("random", "stems")},
        "verdict": item.verdict,
        "decided_by": " ".join(item.decided_by),
        **{f"energy_{n}": part for n, part in enumerate(item.energy, start=1)},
        "chromatic": item.chromatic,
        **{f"share_{k}": share.estimate for k, share in enumerate(item.shares, -(len(item.shares) // 2))},
        "directional_bias": bias.estimate,
        "directional_bias_low": bias.low,
        "directional_bias_high": bias.high,
        **{f"pair_{k}": pair.estimate for k, pair in enumerate(item.pairs, start=1)},
        **{f"reliance_{k}": pair.estimate for k, pair in enumerate(item.reliance, start=1)},
        **{
            name: getattr(item, name).estimate
            for name in ("answer_change", "mirror_error", "mirror_disagreement")
        },
        **{name: getattr(item, name) for name in ("windows", "draws", "seconds", "error")},
    }
