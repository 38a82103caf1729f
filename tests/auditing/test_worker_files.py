"""Workers that find another file, a copy or none under the path of a volume."""

import os
from contextlib import nullcontext

import numpy as np
import pytest
from pretended_workers import PretendedWorkers
from torch import nn

import evenslice
from evenslice import Compute, Sampling, VolumeError


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr("evenslice.auditing.auditor._CHECKED", set())
    path = tmp_path / "image.npy"
    np.save(path, np.random.default_rng(0).random((12, 40, 40)))
    return path


def later(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


def audit(file, monkeypatch, meanwhile):
    """Audit a file with which something happens before a worker sees it."""

    class Workers(PretendedWorkers):
        def submit(self, *task):
            if not self.items:
                meanwhile(file)
            return super().submit(*task)

    monkeypatch.setattr("evenslice.auditing.auditor.open_workers", lambda *_: nullcontext(Workers()))
    options = {"sampling": Sampling(tile=(32, 32)), "compute": Compute(batch=2, device="cpu")}
    return evenslice.audit(nn.Conv2d(3, 2, 3, padding=1), file, **options)


@pytest.mark.slow
@pytest.mark.parametrize("happens", [lambda _: None, later])
def test_the_same_file_or_a_copy_is_read(file, monkeypatch, happens):
    assert audit(file, monkeypatch, happens).windows == 40


@pytest.mark.parametrize("happens", [lambda path: np.save(path, np.zeros((12, 40, 40))), os.unlink])
def test_other_content_and_a_missing_file_are_errors_that_name_the_path(file, monkeypatch, happens):
    with pytest.raises(VolumeError, match=r"image\.npy: is missing on a worker, or has other content"):
        audit(file, monkeypatch, happens)
