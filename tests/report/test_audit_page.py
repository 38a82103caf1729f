"""The page, charts, files and safety of a report on audits; test_browser.py looks at the page."""

import csv
import dataclasses
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from pages import HOSTILE, Page, plain, standing_alone
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit, with_statistics

from evenslice._core.errors import ConfigError, MissingExtraError, OutputError
from evenslice.auditing.documents import load_audits
from evenslice.networks.inputs import StemKernels
from evenslice.report import verdict_sentence, write_figures, write_report, write_tables
from evenslice.report.audit_charts import audit_charts, biases_figure, kernel_figures
from evenslice.report.formatting import interval
from evenslice.report.pictures import MAX_PIXELS, window_panels
from evenslice.report.style import AUDIT_COLOURS, audit_colour, audit_marker, settings
from evenslice.results import AuditRun, Figure, Interval
from evenslice.results.stress import BriefLoss, StressSummary
from evenslice.results.verdicts import AnswerChange, Mismatch

NAN = Interval(float("nan"), float("nan"), float("nan"))
UNKNOWN = {
    "answer_change": AnswerChange(*dataclasses.astuple(NAN), judged=False),
    "mirror_mismatch": Mismatch(*dataclasses.astuple(NAN), judged=False),
}


@pytest.fixture(scope="module")
def audits():
    return [
        make_audit("pretrained", PRETRAINED),
        make_audit("uniform", UNIFORM),
        make_audit("cyclic", CYCLIC),
    ]


@pytest.fixture(scope="module")
def page(audits, tmp_path_factory):
    return write_report(audits, tmp_path_factory.mktemp("report") / "report.html").read_text(encoding="utf-8")


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stressed(audit, loss=0.6):
    losses = (BriefLoss("missing", 1, loss, 0.8, 0.5, Interval(0.2, 0.1, 0.3)),)
    return dataclasses.replace(audit, stress=StressSummary("labels", 16, 0.9, 0.85, losses))


# The page.


def test_the_page_has_every_figure_of_every_audit(audits, page):
    text = " ".join(plain(" ".join(Page(page).text)).split())
    for audit in audits:
        assert audit.name in text
        assert plain(verdict_sentence(audit)) in text
        statistics = audit.statistics
        singles = (
            statistics.directional_bias,
            statistics.data_direction,
            statistics.asymmetry,
            statistics.imbalance,
        )
        pairs = (*audit.pairs, *audit.reliance, *statistics.data_pairs, *statistics.wasserstein)
        for value in (*audit.shares, *pairs, *singles):
            assert plain(interval(value)) in text
    for value in ("60303ae2" * 8, "evenslice audit --model", "brain.nii.gz", "2.9.0"):
        assert value in text


def test_hostile_text_stays_text(tmp_path):
    audit = make_audit(
        HOSTILE,
        PRETRAINED,
        examples=1,
        run={"command": HOSTILE, "model": {HOSTILE: [HOSTILE, {"x": HOSTILE}]}},
    )
    audit = dataclasses.replace(
        audit, kernels=(dataclasses.replace(audit.kernels[0], name=HOSTILE + r"\1\q"),)
    )
    other = make_audit("other", UNIFORM)
    parsed = Page(write_report([audit, other], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert parsed.tags.count("script") == 1
    assert "img" not in parsed.tags
    for path in write_figures([audit, other], tmp_path):
        if path.suffix == ".svg":
            ET.parse(path)  # noqa: S314 - our own file


def test_an_audit_read_from_its_files_gives_the_same_page(audits, tmp_path):
    audits[2].save(tmp_path / "audit.json")
    first = write_report([audits[2]], tmp_path / "a.html").read_bytes()
    assert write_report(load_audits(tmp_path), tmp_path / "b.html").read_bytes() == first


@pytest.mark.parametrize("slices", [1, 3, 9])
def test_any_number_of_slices_alone(slices, tmp_path):
    audit = make_audit("alone", (1 / slices,) * slices)
    page = Page(write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("biases" in page.ids) == (slices > 1)
    assert write_figures([audit], tmp_path)
    assert write_tables([audit], tmp_path)


def test_an_interval_without_bounds_is_drawn_to_the_edge(tmp_path):
    open_ended = Interval(0.3, -np.inf, np.inf)
    audit = make_audit("a", PRETRAINED, windows=1)
    audit = with_statistics(
        audit, verdict="inconclusive", shares=(open_ended,) * 3, pairs=(Figure(0.3, -np.inf, np.inf),)
    )
    page = write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "[−∞, ∞]" in page  # noqa: RUF001 - a true minus sign


def test_what_was_not_measured_is_left_out(tmp_path):
    audit = make_audit("a", PRETRAINED, windows=3)
    single = (
        "directional_bias",
        "data_direction",
        "asymmetry",
        "imbalance",
        "mirror_error",
        "mirror_disagreement",
    )
    unknown = Figure(*dataclasses.astuple(NAN), judged=False)
    audit = with_statistics(
        audit,
        verdict="inconclusive",
        decided_by=(),
        shares=(NAN,) * 3,
        pairs=(unknown,),
        reliance=(unknown,),
        classes=(),
        data_pairs=(NAN,),
        wasserstein=(NAN,),
        **dict.fromkeys(single, NAN),
        **UNKNOWN,
    )
    empty = np.zeros_like(audit.measurements.saliency)
    audit = dataclasses.replace(
        audit,
        measurements=dataclasses.replace(audit.measurements, saliency=empty),
        examples=dataclasses.replace(audit.examples, saliency=np.full_like(audit.examples.saliency, np.nan)),
        kernels=(),
        run=AuditRun(),
    )
    text = " ".join(Page(write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "nan" not in text.lower().split()
    figures, windows, _ = (read(path) for path in write_tables([audit], tmp_path))
    assert {row["estimate"] for row in figures} == {""}
    assert {row["share_0"] for row in windows} == {""}


def test_the_page_stands_alone(page):
    assert standing_alone(page).tags.count("script") == 1
    charts = re.findall(r'<div class="chart">.*?</div>', page, flags=re.DOTALL)
    assert len(charts) == page.count('<div class="chart"><svg role="img" aria-label="') == 3
    assert "var(--ink)" in charts[0]
    for index in range(3):
        assert f"var(--audit-{index})" in "".join(charts)
        assert audit_colour(index) not in "".join(charts)


def test_what_a_lost_slice_costs_is_shown_once_for_each_network(tmp_path):
    audits = [
        stressed(make_audit(f"{strategy}, {method}", PRETRAINED), loss)
        for strategy, loss in (("pretrained", 0.6), ("uniform", 0.7))
        for method in ("gradient", "occlusion")
    ]
    page = Page(write_report(audits, tmp_path / "report.html").read_text(encoding="utf-8"))
    titles = [text for text in page.text if text.endswith("Dice when slices are disturbed, 16 windows")]
    assert [title.partition(":")[0] for title in titles] == ["pretrained, gradient", "uniform, gradient"]
    assert "stress" in page.ids
    assert "missing, k = 1" in page.text
    (row,) = [
        row for row in read(write_tables(audits[:1], tmp_path)[0]) if row["figure"].startswith("stress")
    ]
    assert (row["figure"], row["offset"], row["low"]) == ("stress_asymmetry_missing", "1", "0.1")


def test_networks_and_stems_of_several_kinds_stand_together(tmp_path):
    audits = [
        make_audit("volumes", PRETRAINED, volumes=12, windows=200, stems=2),
        make_audit("one slice", (1.0,)),
        make_audit("few", (0.32, 0.33, 0.35), windows=2),
    ]
    linear = StemKernels("linear", np.ones((40, 192, 1, 1), np.float32), np.ones((40, 320, 1, 1), np.float32))
    audits.append(dataclasses.replace(make_audit("cyclic", CYCLIC), kernels=(linear,)))
    page = Page(write_report(audits, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"kernels-1", "kernels-2", "kernels-3"} <= set(page.ids)
    assert "first 24 of 320 inputs" in page.text


# Charts and pictures.


def draw_kernels(audits):
    with settings():
        (drawing,) = kernel_figures(audits)
    return drawing


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.images]


def inputs(figure):
    return [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes if axes.images]


def test_kernels_before_and_after_are_those_of_each_network(audits):
    drawing = draw_kernels(audits)
    assert titles(drawing.figure) == ["pretrained", "uniform", "cyclic"]
    assert inputs(drawing.figure)[2] == ["−2", "−1", "0", "+1", "+2"]  # noqa: RUF001
    assert "except where the network averages over each window and its mirror" in drawing.reading
    alone = draw_kernels(audits[1:2])
    assert titles(alone.figure) == ["before", "uniform"]
    assert inputs(alone.figure) == [["R", "G", "B"], ["−1", "0", "+1"]]  # noqa: RUF001


def test_kernels_of_a_network_read_from_a_file_are_not_called_before(audits):
    """What they were before is not known, and their inputs are slices, not colours."""
    pretrained, uniform = audits[:2]
    after = uniform.kernels[0].after
    read_back = dataclasses.replace(uniform, kernels=(dataclasses.replace(uniform.kernels[0], before=after),))
    drawing = draw_kernels([pretrained, read_back])
    assert titles(drawing.figure) == ["pretrained", "uniform"]
    assert inputs(drawing.figure) == [["−1", "0", "+1"]] * 2  # noqa: RUF001
    energy = np.square(pretrained.kernels[0].after).sum(axis=(1, 2, 3))
    first = np.sort(np.argsort(-energy, kind="stable")[:8])[0]  # the same filters of both
    shown = [axes.images[0].get_array() for axes in drawing.figure.axes if axes.images]
    for picture, kernels in zip(shown, (pretrained.kernels[0].after, after), strict=True):
        np.testing.assert_array_equal(picture[:3, :3], kernels[first, 0])


def test_nothing_lies_off_the_axes_and_what_is_not_judged_is_pale(audits):
    wide = with_statistics(audits[0], reliance=(Figure(0.6, -0.2, 0.9, judged=False),))
    drawing = biases_figure([wide, audits[1]])
    assert len(drawing.figure.axes) == 2  # saliency and reliance
    for axes in drawing.figure.axes:
        low, high = axes.get_xlim()
        assert all(low <= x <= high for line in axes.lines for x in line.get_xdata())
        assert high > 0.9
    assert {line.get_alpha() for line in drawing.figure.axes[1].lines} >= {0.35, 1.0}
    assert ("Pale" in drawing.reading, "Pale" in biases_figure(audits).reading) == (True, False)


def test_maps_are_on_one_scale_across_slices_and_audits():
    panel, _ = window_panels([make_audit(name, s) for name, s in (("a", PRETRAINED), ("b", UNIFORM))])
    middle, after = (np.mean(panel.strips[0].pictures[k].layer[..., 3]) for k in (1, 2))
    even = np.mean(panel.strips[1].pictures[1].layer[..., 3])
    assert after < even < middle


def test_large_slices_are_shrunk_and_keep_their_shape_also_in_half_precision():
    audit = make_audit("a", PRETRAINED, examples=1, size=300)
    maps = audit.examples.maps[..., :200].astype(np.float16)
    examples = dataclasses.replace(audit.examples, images=audit.examples.images[..., :200], maps=maps)
    (panel,) = window_panels([dataclasses.replace(audit, examples=examples)])
    picture = panel.strips[0].pictures[0]
    assert picture.image.shape == (MAX_PIXELS, round(MAX_PIXELS * 2 / 3))
    assert picture.layer.shape == (*picture.image.shape, 4)


# Files.


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path):
    audit = make_audit("=HYPERLINK(1)", PRETRAINED, examples=0, run={"command": "@SUM(1)"})
    for path in write_tables([audit], tmp_path):
        lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
        assert not [cell for line in lines for cell in line if cell.startswith(("=", "@"))]


def test_no_audit_is_an_error(tmp_path):
    for write in (write_report, write_figures, write_tables):
        with pytest.raises(ConfigError, match="needs one or more audits"):
            write([], tmp_path / "x")


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(audits, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="taken: exists; name a file"):
        write_report(audits[:1], tmp_path / "taken")
    for write in (write_figures, write_tables):
        with pytest.raises(OutputError, match="file: is a file; name a folder"):
            write(audits[:1], tmp_path / "file")
    assert {path.name for path in tmp_path.rglob("*")} == {"taken", "file"}


def test_audits_past_the_last_colour_differ_by_marker():
    looks = [(audit_colour(index), audit_marker(index)) for index in range(2 * len(AUDIT_COLOURS))]
    assert len(set(looks)) == len(looks)


def test_charts_are_written_as_svg_and_replace_those_of_an_earlier_report(audits, tmp_path):
    before = dict(mpl.rcParams)
    for name in ("kernels-7.png", "example-9.svg", "mine.png"):
        (tmp_path / name).write_text("")
    paths = write_figures([stressed(audits[0])], tmp_path)
    assert [path.name for path in paths] == ["shares.svg", "biases.svg", "stress.svg", "kernels-1.svg"]
    assert set(tmp_path.iterdir()) == {*paths, tmp_path / "mine.png"}
    assert dict(mpl.rcParams) == before
    with settings():
        assert [drawing.name for drawing in audit_charts(audits)] == ["shares", "biases", "kernels-1"]


def test_tables_hold_every_figure_and_every_window(audits, tmp_path):
    figures, windows, run = (read(path) for path in write_tables(audits, tmp_path))
    (row,) = [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("cyclic", "pairs", "2")]
    ends = [float(row[key]) for key in ("estimate", "low", "high")]
    assert ends == list(dataclasses.astuple(audits[2].pairs[1])[:3])
    assert (row["judged"], row["state"], row["class"]) == ("True", "beyond", "")
    of_class = [r["figure"] for r in figures if (r["audit"], r["class"]) == ("pretrained", "0")]
    assert of_class == ["answer_change", "saliency", "reliance", "answer", "use"]
    assert not [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("uniform", "pairs", "2")]
    assert len(windows) == sum(audit.windows for audit in audits)
    first, last, measured = windows[0], windows[-1], audits[2].measurements
    assert first["share_-2"] == first["mismatch_2"] == ""
    assert float(first["share_-1"]) == audits[0].measurements.shares[0, 0, 0]
    assert float(last["mismatch_2"]) == measured.mismatch[-1, 0, 1]
    assert (float(last["change"]), int(last["z"])) == (measured.change[-1], measured.position[-1, 0])
    for name, value in (("verdict", "symmetric"), ("definitions", "2"), ("step", "1")):
        assert {"setting": name, "uniform": value}.items() <= next(
            r for r in run if r["setting"] == name
        ).items()


def test_the_extra_is_named_where_it_is_missing(audits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"evenslice\[report\]"):
        write_report(audits[:1], tmp_path / "report.html")


def test_importing_the_report_draws_nothing_in():
    code = "import sys, evenslice.report as r; [getattr(r, n) for n in r.__all__ if n[0] != 'm' and n[:2] != 'ex']"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print({{'matplotlib', 'jinja2', 'PIL'}} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "set()"
