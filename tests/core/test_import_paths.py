"""Where modules that a user names are looked for."""

import sys

import pytest

from evenslice._core import importable_here


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("already", [True, False])
def test_the_places_of_modules_are_afterwards_what_they_were(first, already, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)] * already + ["/a", "/b"])
    before = list(sys.path)
    with importable_here(first=first):
        assert str(tmp_path) in sys.path
    assert sys.path == before
