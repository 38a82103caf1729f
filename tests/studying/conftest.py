"""Pages of studies, which take three seconds each, are drawn where a test looks at them; ``tests/report`` has more."""

import pytest


@pytest.fixture
def drawn():
    """Let the studies of a test draw their pages."""


@pytest.fixture
def without_pages(request, monkeypatch):
    """Let studies draw no pages, but for a test that looks at them."""
    if "drawn" not in request.fixturenames:
        name = "evenslice.studying.study_runner.write_study_report"
        monkeypatch.setattr(name, lambda _, path: path.exists() or path.touch())
