"""The project gets no heavier: every figure of `make size` is at most what `size.json` holds."""

import json
from pathlib import Path

import pytest
import size

HELD = json.loads((Path(__file__).parent / "size.json").read_text())

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured():
    return size.measure()


@pytest.mark.parametrize("name", sorted(HELD))
def test_nothing_gets_heavier(measured, name):
    assert measured[name] <= HELD[name], (
        "make it lighter; where it became lighter, run studies/size.py --hold"
    )


def test_every_figure_is_held(measured):
    assert measured.keys() == HELD.keys()
