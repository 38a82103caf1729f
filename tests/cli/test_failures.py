"""What a user's mistake, a refusal of the system or Ctrl-C ends with: one clear line, and an exit status."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

NETWORK = ["--model", "my_networks:unequal", "--weights", "weights.pt"]
AUDIT = ["audit", *NETWORK, "--max-windows", "40"]
GOOD = ["--volume", "good.tif"]

BAD = [
    (["--volume", "missing.tif"], r"missing.tif"),
    (["--volume", "text.tif"], r"text.tif"),
    (["--volume", "cut.tif"], r"cut.tif"),
    (["--volume", "four.npy"], r"four.npy.*--axes"),
    (["--volume", "nan.npy"], r"1 voxels? .*\(3, 4, 5\).*--fill"),
    (["--volume", "constant.npy"], r"constant"),
    (["--volume", "thin.npy"], r"2 slices; a window of 3 needs 3"),
    ([*GOOD, "--slices", "4"], r"4.*odd"),
    ([*GOOD, "--strategy", "unifrom"], r"did you mean 'uniform'"),
    ([*GOOD, "--strategy", "0.3,0.5,0.3"], r"3 weights, .* sum to 1"),
    ([*GOOD, "--require", "symetric"], r"--require symetric: did you mean 'symmetric'\?"),
    ([*GOOD, "--model", "my_networks:unequl"], r"did you mean 'unequal'"),
    ([*GOOD, "--model", "my_networks:AlongZ", "--weights", "none", "--strategy", "uniform"], r"error: "),
    (
        [*GOOD, "--weights", "none", "--model", "my_networks:with_inputs"],
        r"my_networks:with_inputs\?name=value",
    ),
    ([*GOOD, "--weights", "none", "--model", "my_networks:with_inputs?inputs=4"], r"to have 4 channels"),
    ([*GOOD, "--weights", "."], r"\.: is a folder; name the file of weights"),
    ([*GOOD, "--weights", "other.pt"], r"other.pt.*0\.weight"),
    ([*GOOD, "--weights", "pickled.pt"], r"pickled.pt.*pickle"),
    ([*GOOD, "--mean", "half"], r"--mean': half: numbers"),
    ([*GOOD, "--labels", "short_labels.tif", "--target", "labels"], r"short_labels.tif.*\(20, 48, 40\)"),
    ([*GOOD, "--intensity", "9", "2"], r"--intensity 9.0 2.0: the first must be below"),
    ([*GOOD, "--select", "t"], r"Invalid value for '--select': t: an axis and a whole number are needed"),
    ([*GOOD, "--label-values", "0,255"], r"--label-values: has no effect without --labels; give both"),
    ([*GOOD, "--label-values", "0", "255"], r"\(255\); join the values of a list by commas: 0,255"),
    ([*GOOD, "--no-stress"], r"--no-stress: has no effect without --labels; give both"),
    ([*GOOD, "--seed", "-1"], r"--seed': -1 is not between 0 and 2\*\*32 - 1"),
    ([*GOOD, "--max-windows", "0"], r"error: --max-windows 0: must be at least 1"),
    ([*GOOD, "--no-such-option"], r"--no-such-option"),
    ([], r"--volume"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(case[0][-2:]) for case in BAD])
def test_a_mistake_is_one_clear_line_and_nothing_is_written(run, tmp_path, arguments, message):
    code, out, err = run(*AUDIT, *arguments, "--out", tmp_path / "out")
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()


LONG = "a" * 300
FULL = Path("/dev/full")
SEGMENT = ["segment", "--model", "my_networks:unequal", "--weights", "none", "--volume", "good.tif"]
ADDRESS = "https://me:secret@127.0.0.1:9/x"
EMPTY = "is empty; name a file or folder, or . for the current folder"
ONLY_PATHS = "is an address, which is not supported here; name a path of this machine"

EVALUATE = ["evaluate", *NETWORK, *GOOD]
NO_SURFACES = "--no-surfaces: has no effect without --labels"

BAD_COMMANDS = [
    (["segment", *GOOD, "--out", "o.npy"], "give --run, or --model and --weights"),
    (["segment", "--run", ".", *GOOD, "--out", "o.npy"], "holds no finished run of `evenslice train`"),
    (EVALUATE, "nothing to compare the answers with; give --labels, or --stress"),
    ([*EVALUATE, "--labels", "short_labels.tif"], "do not fit good.tif of shape (30, 48, 40)"),
    ([*EVALUATE, "--labels", "labels.tif", "--label-values", "a"], "whole numbers are needed, such as 0,255"),
    ([*EVALUATE, "--stress", "--no-surfaces"], NO_SURFACES),
    (
        ["evaluate", "--run", "run", *GOOD, "--stress", "--mean", "0"],
        "--mean: the training in run determines it; omit",
    ),
    ([*AUDIT, *GOOD, "--out="], f"--out: {EMPTY}"),
    ([*SEGMENT, "--out", "o.npy", "--scratch", ""], f"--scratch: {EMPTY}"),
    (["segment", "--run", "", *GOOD, "--out", "o.npy"], f"--run: {EMPTY}"),
    (["report", ""], f"DIR: {EMPTY}"),
    (["segment", "--run", LONG, *GOOD, "--out", "o.npy"], "File name too long; choose a shorter"),
    (["neutralize", *NETWORK, "--out", f"{LONG}.safetensors"], "File name too long; choose a shorter name"),
    (
        [*SEGMENT, "--out", "LOOP/o.npy"],
        "loop/o.npy: Too many levels of symbolic links; the link leads back to itself",
    ),
    ([*AUDIT, *GOOD, "--out", "good.tif/out"], "good.tif/out is, or lies in, a file"),
    (["report", "nope"], "nope: no such folder; name one that evenslice audit, study or survey wrote"),
    (
        ["neutralize", *NETWORK, "--out", "n\udce9.safetensors"],
        "n?.safetensors: is not UTF-8, as safetensors needs",
    ),
    ([*SEGMENT, "--out", "o.h5:/x\udce9"], "o.h5:/x?: names no dataset; name one"),
    ([*SEGMENT, "--weights", ADDRESS, "--out", "o.npy"], ONLY_PATHS),
    ([*AUDIT, *GOOD, "--out", "s3://bucket/x?key=secret"], ONLY_PATHS),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_COMMANDS)
def test_a_command_that_cannot_be_followed_is_one_clear_line(run, folder, tmp_path, arguments, message):
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(folder.iterdir())
    code, out, err = run(*(word.replace("LOOP", str(tmp_path / "loop")) for word in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert "secret" not in err
    assert sorted(folder.iterdir()) == before


ON_CPU = "; choose a smaller --tile or --batch, or end what else uses it, or raise --memory-limit"
ON_GPU = f"{ON_CPU.partition(', or raise')[0]}, or choose --device cpu"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ZeroDivisionError(), None),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 20 MiB."),
            f"CUDA out of memory. Tried to allocate 20 MiB{ON_GPU}",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes."),
            f"DefaultCPUAllocator: can't allocate memory: 5 bytes{ON_CPU}",
        ),
        (MemoryError("Unable to allocate 9 GiB."), f"Unable to allocate 9 GiB{ON_CPU}"),
    ],
)
def test_memory_may_run_out_anywhere_and_other_errors_are_our_own(run, monkeypatch, error, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("evenslice.cli.comparison.audit_strategies", fail)
    code, _, err = run(*AUDIT, *GOOD)
    if line is None:
        assert (code, "Traceback" in err) == (70, True)
    else:
        assert (code, err) == (2, f"error: the memory of the device has run out: {line}\n")


def test_where_there_is_not_even_memory_for_pytorch_the_limit_is_named(run, monkeypatch):
    def missing(*_, **__):
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr("evenslice.cli.comparison.audit_strategies", missing)
    monkeypatch.delattr("evenslice.inference.device_error", raising=False)
    monkeypatch.setattr("evenslice.inference.__getattr__", missing)
    _, _, err = run(*AUDIT, *GOOD)
    assert err == "error: memory has run out; end what else uses it, or raise --memory-limit\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited elsewhere by watching it")
def test_more_memory_than_the_limit_is_one_line_and_status_2(process):
    source = ["--model", "my_networks:Greedy", "--weights", "none", *GOOD]
    done = process("--memory-limit", 2, "audit", *source)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "memory" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="only some systems have a disk that is always full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_full_standard_output_is_one_clear_line(process, more):
    with FULL.open("w") as full:
        done = process("info", "good.tif", *more, stdout=full)
        assert process("info", "missing.tif", stdout=full, stderr=full).returncode == 2
    assert done.returncode == 2
    assert done.stderr.startswith("error: output: cannot be written (No space left on device); make room")
    assert done.stderr.count("\n") == 1


def test_no_result_is_lost_for_want_of_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    status, out, _ = run("info", "good.tif")
    assert (status, "voxels (z, y, x)" in out) == (0, True)


def test_debug_shows_the_traceback(run):
    own = ["--model", "my_networks:with_inputs?inputs=x", "--weights", "none"]
    assert "--debug shows where" in run("audit", *own, *GOOD)[2]  # of what code of one's own raised
    code, _, err = run(*AUDIT, "--volume", "missing.tif", "--debug")
    assert (code, "Traceback" in err) == (2, True)
    assert err.splitlines()[-1].startswith("error: missing.tif")
    assert "--debug" not in err.splitlines()[-1]


@pytest.mark.slow
def test_python_without_docstrings_is_refused(process, folder):
    done = process("info", "good.tif", cwd=folder, env=os.environ | {"PYTHONOPTIMIZE": "2"})
    assert (done.returncode, "PYTHONOPTIMIZE" in done.stderr) == (2, True)


@pytest.mark.slow
def test_ctrl_c_stops_cleanly(folder, tmp_path):
    source = ["--model", "my_networks:Slow", "--weights", "none", *GOOD, "--out", str(tmp_path / "out")]
    running = subprocess.Popen(
        [sys.executable, "-m", "evenslice", "audit", *source, "--precision", "1e-9", "--batch", "1"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(8):
        running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert (running.returncode, err.strip()) == (130, "interrupted")
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["info", "good.tif", "--json"], ["--help"]])
def test_a_reader_that_stops_reading_is_no_error(folder, arguments):
    command = [sys.executable, "-m", "evenslice", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141  # as a shell reports SIGPIPE
