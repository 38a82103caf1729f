"""Workers that find another file, a copy or none under the path of a volume."""

import os
from contextlib import nullcontext

import numpy as np
import pytest
from pretended_workers import PretendedWorkers
from torch import nn

import evenslice
from evenslice._core import VolumeError
from evenslice.auditing import measuring
from evenslice.auditing.measuring import copies_of, refuse_other_content, stamps_of
from evenslice.volumes import fingerprint, open_volume


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_FOUND", {})
    path = tmp_path / "image.npy"
    np.save(path, np.random.default_rng(0).random((12, 40, 40)))
    return path


def test_the_same_file_is_not_read_again(file, monkeypatch):
    volumes = [open_volume(file), open_volume(np.zeros((3, 4, 5)))]
    monkeypatch.setattr(measuring, "fingerprint", lambda _: pytest.fail("reads the file"))
    assert copies_of(volumes, stamps_of(volumes)) == {}


def test_a_copy_is_as_good_and_read_once(file, monkeypatch):
    here = [open_volume(file)]
    known, stat = stamps_of(here), file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    there, content = [open_volume(file)], fingerprint(here[0])
    assert copies_of(there, known) == {str(file): content}
    monkeypatch.setattr(measuring, "fingerprint", lambda _: pytest.fail("reads the file again"))
    refuse_other_content(here, copies_of(there, known), {str(file): content})


def test_other_content_and_a_missing_file_are_errors_that_name_the_path(file, monkeypatch):
    here = [open_volume(file)]
    known, content = stamps_of(here), {str(file): fingerprint(here[0])}
    np.save(file, np.zeros((12, 40, 40)))
    with pytest.raises(VolumeError, match=r"image\.npy: has other content on a worker than here"):
        refuse_other_content(here, copies_of([open_volume(file)], known), content)
    monkeypatch.setattr(measuring, "_FOUND", {})
    there = [open_volume(file)]
    file.unlink()
    with pytest.raises(VolumeError, match=r"image\.npy: is not there, or cannot be read, on the worker "):
        copies_of(there, known)


@pytest.mark.parametrize("where", ["first", "later"])
def test_an_audit_ends_where_a_worker_has_other_content(file, monkeypatch, where):
    """Its numbers would be of two volumes."""
    network, asked = nn.Conv2d(3, 2, 3, padding=1), []
    honest = measuring.copies_of

    def lying(volumes, known):
        asked.append(volumes)
        return {str(file): "sha256:0"} if where == "first" or len(asked) > 2 else honest(volumes, known)

    monkeypatch.setattr(measuring, "copies_of", lying)
    monkeypatch.setattr("evenslice.auditing.stopping.open_workers", here_and_now)
    with pytest.raises(VolumeError, match="has other content on a worker than here"):
        evenslice.audit(
            network,
            file,
            sampling=evenslice.Sampling(tile=(32, 32)),
            compute=evenslice.Compute(batch=2, device="cpu"),
        )
    assert evenslice.audit(
        network,
        np.load(file),
        sampling=evenslice.Sampling(tile=(32, 32)),
        compute=evenslice.Compute(batch=2, device="cpu"),
    ).measurements


def here_and_now(*_):
    return nullcontext(PretendedWorkers())
