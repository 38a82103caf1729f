"""The code answers as it did before it was made light: bit for bit where the processor and its libraries are the same."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("nilearn")
golden = pytest.importorskip("golden")

KNOWN = json.loads((Path(__file__).parent / "answers.json").read_text())
EXACT = os.environ.get("EVENSLICE_GOLDEN") == "exact"
"""Other processors round otherwise, and a training of a few steps enlarges that; then the figures are close."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    return json.loads(json.dumps(golden.answers()))


def same(known, found, path=""):
    """Compare two documents, and yield the places where they differ."""
    if isinstance(known, dict) and isinstance(found, dict) and known.keys() == found.keys():
        for key in known.keys() - (set() if EXACT else {"digest"}):
            yield from same(known[key], found[key], f"{path}.{key}")
    elif isinstance(known, list) and isinstance(found, list) and len(known) == len(found):
        for at, pair in enumerate(zip(known, found, strict=True)):
            yield from same(*pair, f"{path}[{at}]")
    elif isinstance(known, float) and not EXACT:
        if found != pytest.approx(known, rel=0.01, abs=1e-4):
            yield f"{path}: {found} instead of {known}"
    elif known != found:
        yield f"{path}: {found} instead of {known}"


@pytest.mark.parametrize("answer", sorted(KNOWN))
def test_answers_are_as_before(found, answer):
    assert list(same(KNOWN[answer], found[answer])) == []
