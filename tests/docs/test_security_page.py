"""The page on security names tests that exist, and is short."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test_that_exists():
    text = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(\w+/test_\w+\.py)`", text)
    assert len(set(named)) > 10
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []
    assert len(re.findall(r"\w+", re.sub(r"`[^`]*`", "", text))) <= 500
