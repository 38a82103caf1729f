"""Progress for a program that listens, which may end the work."""

import io
import threading
from contextlib import redirect_stderr

import numpy as np
import pytest

import evenslice
from evenslice._core import progress_bar, progress_to


class Stop(BaseException):
    pass


def work(show=None):
    with progress_bar("work", 3, "steps", show=show, done=1) as advance:
        advance(1, note="half")
        advance(1)


def test_a_listener_hears_each_step_and_nothing_is_printed():
    heard = []
    with redirect_stderr(io.StringIO()) as printed, progress_to(lambda *report: heard.append(report)):
        work()
        work(show=False)
        thread = threading.Thread(target=work)  # which is not heard
        thread.start()
        thread.join()
    work()
    assert heard == [("work", done, 3, "steps") for done in (1, 2, 3)]
    assert printed.getvalue() == ""


def test_lines_end_with_one_for_the_last_step_even_if_there_were_more(capsys, monkeypatch):
    monkeypatch.setattr("evenslice._core.progress.LINE_EVERY", 3600)
    with progress_bar("work", 3, "steps", show=None, first_line=0) as advance:
        for _ in range(6):
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "work: 1/3 steps, 0:00:00 remaining",
        "work: 3/3 steps, 0:00:00 remaining",
    ]


def test_what_a_listener_raises_ends_a_segmentation_which_leaves_no_output(tmp_path):
    import torch

    def stop(title, done, total, unit):
        if done:
            raise Stop

    volume = np.random.default_rng(0).random((6, 40, 40))
    with pytest.raises(Stop), progress_to(stop):
        evenslice.segment(torch.nn.Conv2d(3, 2, 1), volume, tmp_path / "labels.npy")
    assert not (tmp_path / "labels.npy").exists()
    evenslice.segment(torch.nn.Conv2d(3, 2, 1), volume, tmp_path / "labels.npy", force=True)
