"""Numbers, labels and tables as text."""

import math

import numpy as np
from pages import plain

from evenslice.report.formatting import difference, few_lines, interval, one_line, percent
from evenslice.report.tables import Group, Row, Table, csv_text, run_table
from evenslice.results import Interval

NAN = Interval(math.nan, math.nan, math.nan)


def test_intervals_and_shares_as_text():
    assert plain(interval(Interval(-0.2346, -0.25, 2e-6))) == "-0.235 [-0.250, 2.0e-6]"
    assert interval(None) == interval(NAN) == "–"  # noqa: RUF001 - the dash that stands for no figure
    assert interval(Interval(0.5, float("nan"), float("nan"))) == "0.500"
    assert plain(interval(Interval(0.0, -np.inf, np.inf))) == "0 [-∞, ∞]"
    assert plain(percent(0.997)) == "more than 99 %"
    assert [plain(percent(share)) for share in (0.994, 1 - 1e-9, 1.004)] == ["99 %", "100 %", "100 %"]


def test_labels_are_short():
    assert one_line("a\n\tb\x00c") == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"
    assert few_lines("pretrained with\nmissing slices") == "pretrained with missing\nslices"
    assert few_lines("a-b " * 30, 11) == "a-b a-b a-b\na-b a-b…"


def test_a_difference_shows_on_which_side_of_0_its_interval_ends():
    for low, high, ends in [
        (-0.0003, 0.0071, "[-0.0003, 0.0071]"),
        (0.0002, 0.0071, "[0.0002, 0.0071]"),
        (0.0, 0.0071, "[0.000, 0.007]"),
        (-2e-5, 0.0071, "[-0.00002, 0.00710]"),
        (-2e-7, 0.0071, "[0.000, 0.007]"),  # six decimals would not show it either
    ]:
        assert plain(difference(Interval(0.0031, low, high))).endswith(f" {ends}")
    assert plain(difference(Interval(3.5e-5, -0.0081, 0.0082))) == "0.000 [-0.008, 0.008]"
    assert plain(difference(Interval(-2e-5, math.nan, math.nan))) == "0.000"


def test_a_table_has_the_rows_of_all_groups_and_settings_that_are_known():
    one, two = Row("a", ("1",)), Row("b", ("2",))
    assert Table("t", ("", "x"), (Group("", "", (one,)), Group("g", "", (two,)))).rows == [one, two]
    table = run_table(["first", "second"], [{"seed": "0", "command": "c"}, {"seed": "1", "device": ""}])
    assert [(row.label, row.cells) for row in table.rows] == [("command", ("c", "")), ("seed", ("0", "1"))]


def test_csv_leaves_out_what_is_undefined_and_quotes_formulas():
    assert csv_text([["=1+1", math.nan, None, 0.5]]) == "'=1+1,,,0.5\n"
