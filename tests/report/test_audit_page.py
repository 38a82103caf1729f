"""The report's words, numbers, files and safety; test_report_browser.py looks at the page."""

import csv
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from pages import HOSTILE, Page, plain
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit

from evenslice._core.errors import ConfigError, MissingExtraError, OutputError
from evenslice.auditing.documents import load_audits
from evenslice.networks.stem_kernels import StemKernels
from evenslice.report.audit.pictures import MAX_PIXELS, example_panels
from evenslice.report.audit.wording import context_sentence, headline, verdict_sentence
from evenslice.report.base.style import AUDIT_COLOURS, audit_colour, audit_marker
from evenslice.report.base.wording import interval, one_line
from evenslice.report.files import write_figures, write_report, write_tables
from evenslice.results.audits import AuditRun
from evenslice.results.intervals import Interval
from evenslice.results.measurements import split_biases

NAN = Interval(float("nan"), float("nan"), float("nan"))


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


def with_statistics(audit, **changes):
    return dataclasses.replace(audit, statistics=dataclasses.replace(audit.statistics, **changes))


# Words.


def test_a_biased_network_is_told_by_how_much_more_one_slice_gets():
    audit = with_statistics(make_audit("a", PRETRAINED), pairs=(Interval(-0.23, -0.24, -0.22),))
    assert plain(verdict_sentence(audit)) == (
        "Biased: the slice before the middle gets 1.6 times the attention of the one after it "
        "(pair bias -0.230, 95 % interval -0.240 to -0.220; fair is within ±0.05)."
    )


def test_the_pair_that_is_surest_to_be_biased_is_named():
    pairs = (Interval(0.5, -0.2, 1.0), Interval(0.2, 0.19, 0.21))
    audit = with_statistics(make_audit("a", CYCLIC), pairs=pairs)
    assert verdict_sentence(audit).startswith("Biased: the slice 2 after the middle gets 1.50 times")


def test_a_network_that_ignores_one_side_has_no_ratio():
    audit = with_statistics(make_audit("a", PRETRAINED), pairs=(Interval(1.0, 1.0, 1.0),))
    assert "after the middle gets the attention of its pair and the one before it none" in verdict_sentence(
        audit
    )


def test_the_other_verdicts():
    assert "every pair bias lies within ±0.05 (the largest is below 0.001)" in verdict_sentence(
        make_audit("a", UNIFORM)
    )
    assert verdict_sentence(make_audit("a", (1.0,))).startswith("Not applicable: a window of one slice")
    undecided = with_statistics(make_audit("a", CYCLIC), verdict="inconclusive")
    assert "the slices next to the middle alike to within ±0.05 is not settled" in verdict_sentence(undecided)
    unknown = with_statistics(undecided, pairs=(NAN, Interval(0.1, -np.inf, np.inf)))
    assert "too few windows" in verdict_sentence(unknown)


def test_what_stands_beside_the_verdict():
    assert plain(context_sentence(make_audit("a", CYCLIC))) == (
        "The middle slice gets 8 % of the attention (an even split gives 20 %). The bias of 2 of 2 pairs is estimated "
        "beyond the tolerance. Reversing a window changes the output by 69 % of its largest value and the "
        "class of 12 % "
        "of the pixels."
    )
    without = with_statistics(make_audit("a", UNIFORM), mirror_disagreement=NAN)
    assert "largest value." in context_sentence(without)


def test_the_headline_counts(audits):
    assert headline(audits) == "Of 3 audits, 2 are biased and 1 is symmetric."
    assert headline(audits[:2]) == "Of 2 audits, 1 is biased and 1 is symmetric."
    assert headline(audits[:1]) == ""


def test_intervals_as_text():
    assert plain(interval(Interval(-0.2346, -0.25, 2e-6))) == "-0.235 [-0.250, 2.0e-6]"
    assert interval(None) == interval(NAN) == "–"  # noqa: RUF001 - the dash that stands for no figure
    assert interval(Interval(0.5, float("nan"), float("nan"))) == "0.500"
    assert plain(interval(Interval(0.0, -np.inf, np.inf))) == "0 [-∞, ∞]"


def test_labels_are_short_and_on_one_line():
    assert one_line("a\n\tb\x00c") == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"


# Numbers.


def test_pair_biases_in_closed_form():
    audit = make_audit("a", CYCLIC, windows=2)
    measured = dataclasses.replace(
        audit.measurements,
        shares=np.array([[0.1, 0.2, 0.1, 0.3, 0.3], [0.0, 0.5, 0.5, 0.0, 0.0]]),
        mirrored_shares=np.array([[0.3, 0.3, 0.1, 0.2, 0.1], [0.0, 0.0, 0.5, 0.5, 0.0]]),
    )
    parts = split_biases(measured)
    np.testing.assert_allclose(parts.model, np.zeros((2, 2)), atol=1e-15)
    np.testing.assert_allclose(parts.data, np.array([[0.2, 0.5], [-1, 0]]))


@given(
    hnp.arrays(np.float64, (4, 7), elements=st.floats(0, 1)),
    hnp.arrays(np.float64, (4, 7), elements=st.floats(0, 1)),
)
def test_the_parts_of_a_pair_bias_stay_in_range_and_add_up(shares, mirrored):
    measured = dataclasses.replace(make_measurements(), shares=shares, mirrored_shares=mirrored)
    parts = split_biases(measured)
    swapped = split_biases(dataclasses.replace(measured, shares=mirrored, mirrored_shares=shares))
    assert np.all(np.abs(parts.model) <= 1)
    assert np.all(np.abs(parts.data) <= 1)
    np.testing.assert_array_equal(swapped.model, parts.model)
    np.testing.assert_array_equal(swapped.data, -parts.data)


def make_measurements():
    return make_audit("a", (1 / 7,) * 7, windows=4).measurements


# The page.


def test_the_page_stands_alone(page):
    parsed = Page(page)
    assert parsed.links
    assert all(link.startswith(("data:", "#")) for link in parsed.links)
    beside_namespaces = re.sub(r' xmlns(:xlink)?="[^"]*"', "", page)
    assert "://" not in beside_namespaces
    assert "default-src 'none'" in page


def test_identifiers_are_unique_and_references_point_at_them(page):
    parsed = Page(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    inner = {link.removeprefix("#") for link in parsed.links if link.startswith("#")}
    assert inner | set(parsed.references) <= set(parsed.ids)


def test_the_page_has_every_figure_of_every_audit(audits, page):
    text = plain(" ".join(Page(page).text))
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
        for value in (*audit.shares, *audit.pairs, *statistics.data_pairs, *statistics.wasserstein, *singles):
            assert plain(interval(value)) in text
    for value in ("60303ae2" * 8, "evenslice audit --model", "brain.nii.gz", "2.9.0"):
        assert value in text


def test_every_picture_has_a_text_and_every_figure_a_reading(page):
    assert page.count("<figcaption>") == page.count('<div class="chart">') == 4
    assert page.count('<svg role="img" aria-label=') == 4 + 2 * (3 + 3 + 5)
    assert page.count("<svg ") == 1 + page.count(
        '<svg role="img" aria-label='
    )  # the store of images alone has none


def test_colours_of_the_figures_follow_the_page(page):
    drawings = "".join(re.findall(r'<div class="chart">.*?</div>', page, flags=re.DOTALL))
    assert "var(--ink)" in drawings
    for index in range(3):
        assert f"var(--audit-{index})" in drawings
        assert audit_colour(index) not in drawings


def test_an_image_that_audits_share_is_kept_once():
    pair = [make_audit(name, PRETRAINED) for name in ("a", "b")]
    assert [[row.name for row in panel.rows] for panel in example_panels(pair)] == [["a", "b"], ["a", "b"]]


def test_saliency_is_on_one_scale_across_slices_and_audits():
    panel, _ = example_panels([make_audit(name, s) for name, s in (("a", PRETRAINED), ("b", UNIFORM))])
    middle, after = (np.mean(panel.rows[0].overlays[k][..., 3]) for k in (1, 2))
    even = np.mean(panel.rows[1].overlays[1][..., 3])
    assert after < even < middle


def test_large_slices_are_shrunk_and_keep_their_shape(tmp_path):
    audit = make_audit("a", PRETRAINED, examples=1, size=300)
    audit = dataclasses.replace(
        audit,
        examples=dataclasses.replace(
            audit.examples,
            images=audit.examples.images[..., :200],
            saliency=audit.examples.saliency[..., :200],
        ),
    )
    (panel,) = example_panels([audit])
    assert panel.rows[0].images[0].shape == (MAX_PIXELS, round(MAX_PIXELS * 2 / 3))
    assert panel.rows[0].overlays[0].shape == (*panel.rows[0].images[0].shape, 4)


def test_the_page_stays_small(tmp_path):
    path = write_report([make_audit("a", CYCLIC, examples=8, size=256)], tmp_path / "report.html")
    assert path.stat().st_size < 3_000_000


def test_hostile_text_stays_text(tmp_path):
    audit = make_audit(
        HOSTILE,
        PRETRAINED,
        examples=1,
        run={"command": HOSTILE, "model": {HOSTILE: [HOSTILE, {"x": HOSTILE}]}},
    )
    audit = dataclasses.replace(audit, kernels=(dataclasses.replace(audit.kernels[0], name=HOSTILE),))
    other = make_audit("other", UNIFORM)
    parsed = Page(write_report([audit, other], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert parsed.tags.count("script") == 1
    assert "img" not in parsed.tags
    for path in write_figures([audit, other], tmp_path):
        if path.suffix == ".svg":
            ET.parse(path)  # noqa: S314 - our own file


def test_writing_the_same_audits_twice_gives_the_same_page(audits, page, tmp_path):
    assert write_report(audits, tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_an_audit_read_from_its_files_gives_the_same_page(audits, tmp_path):
    audits[2].save(tmp_path / "audit.json")
    first = write_report([audits[2]], tmp_path / "a.html").read_bytes()
    assert write_report(load_audits(tmp_path), tmp_path / "b.html").read_bytes() == first


@pytest.mark.parametrize("slices", [1, 3, 9])
def test_any_number_of_slices_alone(slices, tmp_path):
    audit = make_audit("alone", (1 / slices,) * slices)
    page = Page(write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("course" in page.ids) == (slices > 1)
    assert write_figures([audit], tmp_path)
    assert write_tables([audit], tmp_path)


def test_any_numbers_of_slices_together_with_volumes_and_stems_of_several_kinds(tmp_path):
    audits = [
        make_audit("volumes", PRETRAINED, volumes=12, windows=200, stems=2),
        make_audit("one slice", (1.0,)),
        make_audit("seven", (1 / 7,) * 7),
        make_audit("few", (0.32, 0.33, 0.35), windows=2),
    ]
    linear = StemKernels("linear", np.ones((40, 192, 1, 1), np.float32), np.ones((40, 320, 1, 1), np.float32))
    patches = StemKernels(
        "patches", np.zeros((2, 3, 16, 16), np.float32), np.zeros((2, 3, 16, 16), np.float32)
    )
    audits.append(dataclasses.replace(make_audit("cyclic", CYCLIC), kernels=(linear, patches)))
    page = Page(write_report(audits, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"kernels-1", "kernels-2", "kernels-3", "kernels-4"} <= set(page.ids)
    assert "first 48 of 320 inputs" in page.text


def test_an_interval_without_bounds_is_drawn_to_the_edge(tmp_path):
    open_ended = Interval(0.3, -np.inf, np.inf)
    audit = make_audit("a", PRETRAINED, windows=1)
    audit = with_statistics(audit, verdict="inconclusive", shares=(open_ended,) * 3, pairs=(open_ended,))
    page = write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "[−∞, ∞]" in page  # noqa: RUF001 - a true minus sign


def test_what_was_not_measured_is_left_out(tmp_path):
    audit = make_audit("a", PRETRAINED, windows=3)
    nothing = dict.fromkeys(
        (
            "directional_bias",
            "data_direction",
            "asymmetry",
            "imbalance",
            "mirror_error",
            "mirror_disagreement",
        ),
        NAN,
    )
    audit = with_statistics(
        audit,
        verdict="inconclusive",
        shares=(NAN,) * 3,
        pairs=(NAN,),
        data_pairs=(NAN,),
        wasserstein=(NAN,),
        **nothing,
    )
    empty = np.full_like(audit.measurements.shares, np.nan)
    audit = dataclasses.replace(
        audit,
        measurements=dataclasses.replace(audit.measurements, shares=empty, mirrored_shares=empty),
        examples=dataclasses.replace(audit.examples, saliency=np.full_like(audit.examples.saliency, np.nan)),
        kernels=(),
        run=AuditRun(),
    )
    text = " ".join(Page(write_report([audit], tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "nan" not in text.lower().split()
    figures, windows, _ = (read(path) for path in write_tables([audit], tmp_path))
    assert {row["estimate"] for row in figures} == {""}
    assert {row["share_0"] for row in windows} == {""}


# Files.


def test_figures_are_written_as_png_and_svg(audits, tmp_path):
    before = dict(mpl.rcParams)
    paths = write_figures(audits, tmp_path / "new" / "figures")
    names = {path.name for path in paths}
    assert {
        f"{n}{s}" for n in ("shares", "biases", "course", "kernels-1", "example-1") for s in (".png", ".svg")
    } <= names
    assert names == {path.name for path in (tmp_path / "new" / "figures").iterdir()}
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    assert dict(mpl.rcParams) == before


def test_tables_hold_every_figure_and_every_window(audits, tmp_path):
    figures, windows, run = (read(path) for path in write_tables(audits, tmp_path))
    (row,) = [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("cyclic", "pairs", "2")]
    assert [float(row[key]) for key in ("estimate", "low", "high")] == list(
        dataclasses.astuple(audits[2].pairs[1])
    )
    assert not [r for r in figures if (r["audit"], r["figure"], r["offset"]) == ("uniform", "pairs", "2")]
    assert len(windows) == sum(len(audit.measurements.volume) for audit in audits)
    assert windows[0]["share_-2"] == windows[0]["pair_model_2"] == ""
    assert float(windows[0]["share_-1"]) == audits[0].measurements.shares[0, 0]
    assert float(windows[-1]["wasserstein_2"]) == audits[2].measurements.wasserstein[-1, 1]
    assert int(windows[-1]["z"]) == audits[2].measurements.position[-1, 0]
    assert {"setting": "verdict", "pretrained": "biased", "uniform": "symmetric", "cyclic": "biased"} in run
    assert {"setting": "step", "pretrained": "1", "uniform": "1", "cyclic": "1"} in run


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
        with pytest.raises(OutputError, match="file: cannot be written"):
            write(audits[:1], tmp_path / "file")
    assert {path.name for path in tmp_path.rglob("*")} == {"taken", "file"}


def test_the_old_report_stays_when_the_new_one_fails(audits, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_report(audits[:1], path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_figures_of_an_earlier_report_do_not_stay(audits, tmp_path):
    for name in ("kernels-7.png", "example-9.svg", "mine.png"):
        (tmp_path / name).write_text("")
    written = write_figures([make_audit("a", PRETRAINED, examples=0)], tmp_path)
    assert set(tmp_path.iterdir()) == {*written, tmp_path / "mine.png"}


def test_the_extra_is_named_where_it_is_missing(audits, tmp_path, monkeypatch):
    users = ("evenslice.report.audit.page", "evenslice.report.base.rendering", "jinja2")
    for name in [name for name in sys.modules if name.startswith(users)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"writing a report needs .*evenslice\[report\]"):
        write_report(audits[:1], tmp_path / "report.html")


def test_importing_the_report_draws_nothing_in():
    code = "import sys, evenslice.report.files; print({'matplotlib', 'jinja2', 'PIL'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_audits_past_the_last_colour_differ_by_marker():
    looks = [(audit_colour(index), audit_marker(index)) for index in range(2 * len(AUDIT_COLOURS))]
    assert len(set(looks)) == len(looks)
