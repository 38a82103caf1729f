"""Everything public has a page, with an example that is run; and the pages are made from the code."""

import csv
import doctest
import importlib
import inspect
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

import pytest

import evenslice
from evenslice.report.formatting import difference
from evenslice.results.intervals import pool_means, student_interval

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]


def documented():
    """Return the names on the page of the Python API, with their module."""
    names, module = set(), ""
    for line in (DOCS / "reference" / "api.md").read_text().splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.match(r"   (\w+)$", line):
            names.add(f"{module}.{found[1]}")
    return names


def shown():
    """Return what the code on the pages imports from the packages of evenslice: what readers will use."""
    found = set()
    for path in PAGES:
        for package, names in re.findall(
            r"^(?:>>> )?from evenslice\.(\w+) import (.+)$", path.read_text(), re.MULTILINE
        ):
            found |= {f"evenslice.{package}.{name.strip()}" for name in names.split(",")}
    return found


def test_every_public_name_has_a_page_and_no_other_name_has():
    assert documented() == {f"evenslice.{name}" for name in evenslice.__all__} | shown()


@pytest.mark.parametrize("name", sorted(documented()))
def test_every_public_name_has_an_example(name):
    module, _, attribute = name.rpartition(".")
    docstring = inspect.getdoc(getattr(importlib.import_module(module), attribute))
    assert docstring
    assert ">>> " in docstring  # the examples themselves are run by sybil, see conftest.py


@pytest.fixture(scope="module")
def reference():
    """The module of the directives."""
    pytest.importorskip("sphinx", reason="no sphinx; install the group docs")
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        yield importlib.import_module("evenslice_reference")
    finally:
        sys.path.pop(0)


def test_every_command_has_a_page(reference):
    folder = DOCS / "reference" / "commands"
    assert {path.stem for path in folder.glob("*.md")} == set(reference.commands())
    listed = re.findall(
        r"^commands/(\w+)$", (DOCS / "reference" / "command-line.md").read_text(), re.MULTILINE
    )
    assert listed == list(reference.commands())  # in the order of --help
    for path in folder.glob("*.md"):
        assert f"```{{command}} {path.stem}\n" in path.read_text()


def test_the_page_of_a_command_has_its_options(reference):
    lines = reference.command_lines("audit")
    assert any(line.startswith("| `--volume") for line in lines)
    assert lines.index("**Network**") < lines.index("**Output**")
    found = {option for line in lines for option in re.findall(r"^\| `.*?(--[a-z-]+)", line)}
    parameters = reference.commands()["audit"].params
    expected = {option for parameter in parameters for option in parameter.opts if option.startswith("--")}
    assert found == expected | {"--help"}


def test_the_options_of_the_program_itself_are_on_the_page_of_commands():
    from typer import Context
    from typer.main import get_command

    from evenslice.cli.app import app

    program = get_command(app)
    context = Context(program, **program.context_settings)
    records = [option.get_help_record(context) for option in program.get_params(context)]
    page = (DOCS / "reference" / "command-line.md").read_text()
    rows = re.findall(r"^\| `(-[^`]+)` \| (.+) \|$", page, re.MULTILINE)
    assert [names for names, _ in rows] == [names for names, _ in records]
    for (_, text), (_, expected) in zip(rows, records, strict=True):
        assert text.startswith(expected.rstrip("."))


def test_the_options_of_a_configuration_are_all_there_once(reference):
    text = "\n".join(reference.configuration_lines(evenslice.StudyConfig))
    for section in ("training", "datasets", "arms", "audit", "primary"):
        assert text.count(f"**`{section}`**") == 1
    assert "| `missing_slices` | `0.0` | Probability" in text
    assert text.count("| `warmup` |") == 1


def test_the_examples_of_the_directives_hold(reference):
    assert doctest.testmod(reference).failed == 0
    assert doctest.testmod(reference).attempted >= 2


@pytest.mark.parametrize("page", ["own-loop.md", "own-lightning-module.md"])
def test_the_loop_of_ones_own_is_short(page):
    page = (DOCS / "tutorials" / page).read_text()
    (cell,) = re.findall(
        r"^```\{code-cell\} python\n:tags: \[own-loop\]\n\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    code = [line for line in cell.splitlines() if line.strip()]
    assert re.search(r"\.train\(\)", cell)
    assert "evenslice.audit(" in cell
    assert "LightningModule" not in cell or "def forward(" in cell  # which the monitor calls
    assert len(code) <= 25, len(code)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere_on_github_too(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target


def _results():
    """Return all that the pages of results say."""
    return "\n".join(
        page.read_text() for page in [DOCS / "results.md", *sorted((DOCS / "results").glob("*.md"))]
    )


def test_the_readme_claims_no_more_than_the_results_page_shows():
    """Every number in its table, and every interval, stands on the page that is made of what the studies found."""
    table = re.findall(r"^\| .*\[.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    cells = [cell for row in table for cell in re.findall(r"\S+ \[[^]]*\]", row)]
    results = _results()
    assert len(cells) == 32
    assert [cell for cell in cells if cell not in results] == []


def test_each_difference_in_the_readme_has_its_p():
    """The p that decides whether an arm differs, from the table over all data sets of the study."""
    lines = _results().splitlines()
    pooled = [line for line in lines if re.search(r"\| (not )?(inferior|settled) \(p", line)]
    readme = (ROOT / "README.md").read_text()
    found = re.findall(
        r"^\| .* \| (\S+ \[[^]]*\]), (p [=<] [\d.]+) \| (?:not|inferior)", readme, re.MULTILINE
    )
    assert len(found) == 10
    for cell, p in found:
        assert any(f"| {cell} |" in row and p in row for row in pooled), (cell, p)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_table_has_empty_headings_only(path):
    assert not re.findall(r"^\|(?:\s*\|)+\n\|(?: ---)", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", ["does-it-matter.md", "glossary.md"])
def test_pages_for_newcomers_are_found_from_the_first_pages(page):
    assert f"(docs/explanation/{page})" in (ROOT / "README.md").read_text()
    index = (DOCS / "explanation" / "index.md").read_text()
    assert f"({page})" in index
    assert f"\n{page.removesuffix('.md')}\n" in index  # in the table of contents


def test_the_glossary_explains_what_the_first_pages_take_for_granted():
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]{20,} \|$", (DOCS / "explanation" / "glossary.md").read_text(), re.MULTILINE
    )
    words = {word.strip() for row in rows for word in row.split(",")}
    assert words >= {
        "Dice",
        "encoder",
        "logit",
        "stem",
        "tied",
        "arm",
        "attribution",
        "saliency",
        "share",
        "reliance",
    }


def _plain(text):
    """Write an estimate and its interval in one way: on one line, in one form, and without leading zeros."""
    text = re.sub(r"\s+", " ", text).replace(" Dice [", " [")
    return re.sub(r"(?<![\d.])0\.", ".", text)


def _runs_of_price():
    """Return the runs of the study ``price`` by data set and arm, each by its fold and seed."""
    runs: dict[tuple[str, str], dict[tuple[str, str], dict[str, float]]] = {}
    with (ROOT / "studies" / "price" / "results.csv").open(newline="") as file:
        for run in csv.DictReader(file):
            found = {
                name: float(value)
                for name, value in run.items()
                if name.startswith(("answer_change", "stress_")) and value
            }
            runs.setdefault((run["dataset"], run["arm"]), {})[run["fold"], run["seed"]] = found
    return runs


def _mean_by_fold(found):
    """Return the mean over the seeds of each fold, of numbers by fold and seed."""
    return [
        statistics.fmean(number for (of, _), number in found.items() if of == fold)
        for fold in dict.fromkeys(fold for fold, _ in found)
    ]


def _recomputed():
    """Yield what the text quotes of the runs and the results page does not show.

    By how much C is larger than from a pretrained start, run by run; and, over all data sets, by how much more a missing slice
    before costs that start than one after, and how much less of that the same networks show, symmetrized at the output. All
    are means over folds, of the means over the seeds of each.
    """
    runs = _runs_of_price()
    own, baseline = (runs["MSD hippocampus", arm] for arm in ("pretrained without z-flip", "pretrained"))
    larger = {place: own[place]["answer_change"] - baseline[place]["answer_change"] for place in own}
    yield difference(student_interval(_mean_by_fold(larger)))
    unequal = {
        key: {place: run["stress_after"] - run["stress_before"] for place, run in found.items()}
        for key, found in runs.items()
    }
    built = {dataset: found for (dataset, arm), found in unequal.items() if arm == "pretrained"}
    assert len(built) == 4
    yield difference(pool_means([_mean_by_fold(found) for found in built.values()]).interval()).removeprefix(
        "+"
    )
    less = [
        {place: found[place] - unequal[dataset, "symmetrized at the output"][place] for place in found}
        for dataset, found in built.items()
    ]
    yield difference(pool_means([_mean_by_fold(found) for found in less]).interval()).removeprefix("+")


@pytest.mark.parametrize(
    ("page", "number"),
    [
        ("README.md", 46),
        ("docs/index.md", 0),
        ("docs/symmetry.md", 5),
        ("docs/explanation/strategies.md", 11),
        ("docs/explanation/does-it-matter.md", 38),
        ("docs/how-to/slice-continuity.md", 3),
        ("docs/how-to/thick-slices.md", 9),
    ],
)
def test_intervals_in_the_text_stand_on_the_results_page(page, number):
    """Those that are quoted from a study are no older than the page that is made of its runs, or than its runs."""
    sign = "[+\N{MINUS SIGN}]?"
    quoted = re.findall(rf"{sign}\.?\d[\d.]* \[{sign}\.?\d[^]]*\]", _plain((ROOT / page).read_text()))
    results = _plain("\n".join([_results(), *_recomputed()]))
    assert len(quoted) == number
    assert [interval for interval in quoted if interval not in results] == []


def _verdicts(study):
    """Yield the verdicts of the audits in each comparison of a study on its page, by arm."""
    for part in (DOCS / "results" / f"{study}.md").read_text().split("\n## "):
        if "\n| Verdict of the audits | " in part:
            arms = re.findall(r"^\|  \| (.*) \|$", part, re.MULTILINE)[0].split(" | ")
            cells = re.findall(r"^\| Verdict of the audits \| (.*) \|$", part, re.MULTILINE)[0].split(" | ")
            yield dict(zip(arms, cells, strict=True))


def _counted(text):
    """Read ``"2 biased, 1 inconclusive"``."""
    return Counter({name: int(count) for count, name in re.findall(r"(\d+) (\w+)", text)})


def test_the_readme_says_how_many_audits_of_each_arm_ended_with_each_verdict():
    """No equal attention is shown without what the audits say of the networks: the sums over the data sets of the study."""
    found = list(_verdicts("price"))
    assert len(found) == 4
    rows = re.findall(
        r"^\| ([^|]*) \|[^|]*\|[^|]*\|[^|]*\| (\d[^|\[]*) \|[^|]*\|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == len(found[0]) == 11
    for (name, verdicts), arm in zip(rows, found[0], strict=True):
        assert re.sub(r"\W", "", arm.split()[0]) in name
        assert _counted(verdicts) == sum((_counted(item[arm]) for item in found), Counter()), arm


def test_no_uniform_network_was_found_symmetric_as_the_readme_says():
    studies = ("price", "families", "classification", "stress", "five-slices", "default-crops")
    cells = [item["uniform"] for study in studies for item in _verdicts(study)]
    assert sum(sum(_counted(cell).values()) for cell in cells) >= 33
    assert [cell for cell in cells if "symmetric" in cell] == []
    assert "none was found symmetric in any of our studies" in _plain((ROOT / "README.md").read_text())


def test_intervals_that_are_said_to_include_0_do():
    """What the README says was not found, for networks with a pretrained start in every study but the short one."""
    text = _results().replace("\N{MINUS SIGN}", "-")
    rows = [row.split(" | ") for row in re.findall(r"^\| pretrained \| (.*) \|$", text, re.MULTILINE)]
    lost = [row for row in rows if len(row) == 6 and re.search(r"biased|inconclusive", row[-1])]
    lost = [row for row in lost if "[" in row[0]]  # a single run has none
    bounds = [
        tuple(map(float, re.findall(r"[-\d.e]+", cell)[1:])) for row in lost for cell in (row[2], row[4])
    ]
    assert len(lost) == 11
    outside = [interval for interval in bounds if not interval[0] <= 0 <= interval[1]]
    # The hippocampus in `price`; Lucchi++ in `families` (MobileNetV1) and `stress`. The pages say so.
    assert sorted(outside) == [(0.006, 0.048), (0.013, 0.106), (0.048, 0.154)]


def test_what_the_default_crops_gave_is_what_is_said():
    page = (DOCS / "results" / "default-crops.md").read_text()
    (table,) = re.findall(r"^\| arm \|[^\n]* superior\? .*?(?=\n\n)", page, re.MULTILINE | re.DOTALL)
    rows = {cells[0].strip("*"): cells for cells in (row.split(" | ") for row in _plain_rows(table))}
    said = _plain((DOCS / "results.md").read_text())
    arms = {
        "twin": "with `twin`",
        "symmetrized at the output": "symmetrized at the output",
        "symmetrized at the encoder": "symmetrized at the encoder",
        "uniform": "with `uniform`",
    }
    for arm, words in arms.items():
        written = f"{words}, {rows[arm][2]}" if arm == "uniform" else f"{rows[arm][2]} {words}"
        assert written in said
    assert rows.pop("uniform")[3].startswith("not settled")
    assert all(rows[arm][3].startswith("not inferior (p") for arm in arms if arm in rows)
    assert f"`twin` loses {rows['twin'][-1]} and pretrained {rows['pretrained'][-1]}" in said
    with (ROOT / "studies" / "default-crops" / "results.csv").open(newline="") as file:
        overlap = [float(row["iou"]) for row in csv.DictReader(file) if row["arm"] == "twin"]
    mean = f"{statistics.mean(overlap):.3f}".removeprefix("0")
    assert f"whose three trainings gave an IoU of {mean} on average" in said


def test_what_is_said_of_classifiers_stands_on_the_page_of_their_study():
    said = _plain((DOCS / "results.md").read_text())
    said = said[said.index("## Classifiers") : said.index("## What was run")]
    page, survey = (_plain((DOCS / name).read_text()) for name in ("results/classification.md", "survey.md"))
    sign = "[+\N{MINUS SIGN}]?"
    quoted = re.findall(rf"{sign}\.?\d[\d.]* \[{sign}\.?\d[^]]*\]", said)
    assert len(quoted) == 11
    assert [interval for interval in quoted if interval not in page] == [
        next(interval for interval in quoted if interval in survey)
    ]
    found = list(_verdicts("classification"))
    counts = {
        arm: sum((_counted(item[arm]) for item in found), Counter())
        for arm in ("pretrained", "uniform", "twin", "symmetrized at the output", "symmetrized in training")
    }
    assert counts.pop("pretrained") == {"biased": 6}
    assert counts.pop("uniform") == {"biased": 1, "inconclusive": 5}
    assert all(verdicts == {"symmetric": 6} for verdicts in counts.values())


def _plain_rows(table):
    return [_plain(line).strip("| ") for line in table.splitlines()[2:]]


def test_pages_say_of_how_many_surveyed_networks_they_speak():
    survey = (DOCS / "survey.md").read_text()
    (leaning,) = re.findall(r"- (\d+ of \d+) lean to one side with the whole interval", survey)
    readme, index = (_plain(path.read_text()) for path in (ROOT / "README.md", DOCS / "index.md"))
    for text in (readme, index):
        assert f"favours one neighbour in {leaning} networks" in text
    assert not [page for page in PAGES if "honest stat" in page.read_text()]
