"""How many cores are left to this process."""

import os

import pytest

from evenslice._core import available_cores, cores

MANY = 64


@pytest.mark.parametrize(
    ("files", "number"),
    [
        ({}, MANY),
        ({"cpu.max": "max 100000\n"}, MANY),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, MANY),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, MANY),
        ({"cpu.max": ""}, MANY),
        ({"cpu.max": "200000"}, MANY),
        ({"cpu.max": "200000 0"}, MANY),
        ({"cpu.max": "\xff much"}, MANY),
    ],
)
def test_a_container_may_have_fewer_cores_than_its_machine(files, number, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert available_cores() == number
