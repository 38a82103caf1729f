"""What a user's mistake, a refusal of the system or Ctrl-C ends with: one clear line, and an exit status."""

import errno
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = ["audit", "--model", "my_networks:unequal", "--weights", "weights.pt", "--max-windows", "40"]


def run_process(folder, *arguments, **options):
    command = [sys.executable, "-m", "evenslice", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, **options
    )


BAD = [
    (["--volume", "missing.tif"], r"missing.tif"),
    (["--volume", "text.tif"], r"text.tif"),
    (["--volume", "cut.tif"], r"cut.tif"),
    (["--volume", "two.npy"], r"two.npy.*2"),
    (["--volume", "four.npy"], r"four.npy.*--axes"),
    (["--volume", "nan.npy"], r"1 voxels? .*\(3, 4, 5\).*--fill"),
    (["--volume", "constant.npy"], r"constant"),
    (["--volume", "thin.npy"], r"2 slices; a window of 3 needs 3; take a deeper one"),
    (["--volume", "good.tif", "--slices", "4"], r"4.*odd"),
    (["--volume", "good.tif", "--strategy", "unifrom"], r"did you mean 'uniform'"),
    (["--volume", "good.tif", "--method", "gradeint"], r"did you mean 'gradient'"),
    (["--volume", "good.tif", "--tie", "miror"], r"did you mean 'mirror'"),
    (["--volume", "good.tif", "--model", "my_networks:unequl"], r"did you mean 'unequal'"),
    (["--volume", "good.tif", "--model", "my_networks:nothing"], r"nothing"),
    (["--volume", "good.tif", "--model", "smpp:Unet/resnet18"], r"did you mean 'smp'"),
    (["--volume", "good.tif", "--model", "smp:Unett/resnet18"], r"did you mean 'Unet'"),
    (["--volume", "good.tif", "--model", "timm:resnet188"], r"did you mean 'resnet18'"),
    (
        ["--volume", "good.tif", "--weights", "none", "--model", "my_networks:with_inputs"],
        r"my_networks:with_inputs: cannot be built .*",
    ),
    (
        ["--volume", "good.tif", "--weights", "none", "--model", "my_networks:with_inputs?inputs=4"],
        r"error: --slices 4: a window has an odd number of slices",
    ),
    (["--volume", "good.tif", "--weights", "missing.pt"], r"missing.pt"),
    (["--volume", "good.tif", "--weights", "."], r"\.: is a folder; name the file of weights"),
    (["--volume", "good.tif", "--weights", "other.pt"], r"other.pt.*0\.weight"),
    (["--volume", "good.tif", "--weights", "pickled.pt"], r"pickled.pt.*pickle"),
    (["--volume", "good.tif", "--weights", "good.tif"], r"good.tif"),
    (["--volume", "good.tif", "--weights", "junk.pt"], r"junk.pt"),
    (["--volume", "good.tif", "--mean", "half"], r"--mean': half: numbers"),
    (["--volume", "good.tif", "--std", "1,2"], r"std"),
    (
        ["--volume", "good.tif", "--labels", "short_labels.tif", "--target", "labels"],
        r"short_labels.tif.*\(20, 48, 40\)",
    ),
    (["--volume", "good.tif", "--intensity", "9", "2"], r"--intensity 9.0 2.0: the first must be below"),
    (["--volume", "good.tif", "--select", "t"], r"--select"),
    (
        ["--volume", "good.tif", "--select", "T=0", "--select", "t=1"],
        r"--select.*the axis t is given 2 times",
    ),
    (
        ["--volume", "good.tif", "--label-values", "0,255"],
        r"--label-values: has no effect without --labels; give both",
    ),
    (["--volume", "good.tif", "--seed", "-1"], r"--seed"),
    (["--volume", "good.tif", "--max-windows", "0"], r"error: --max-windows 0: must be at least 1"),
    (["--volume", "good.tif", "--answer-tolerance", "2"], r"error: --answer-tolerance 2.0: must be between"),
    (["--volume", "good.tif", "--judged-share", "1"], r"error: --judged-share 1.0: must be at least 0"),
    (["--volume", "good.tif", "--precision", "0"], r"error: --precision 0.0: must be above 0"),
    (["--volume", "good.tif", "--tile", "0", "32"], r"--tile 0: must be at least 1"),
    (["--volume", "good.tif", "--strategy", "uniform", "--strategy", "unifrom"], r"did you mean 'uniform'"),
    (
        ["--volume", "good.tif", "--method", "gradient", "--method", "gradient"],
        r"--method gradient: is given more than once",
    ),
    (
        ["--volume", "good.tif", "--strategy", "0.2,0.6,0.2", "--strategy", ".2,.6,.2"],
        r"--strategy 0.2,0.6,0.2: is given more than once; give each strategy once",
    ),
    (["--volume", "good.tif", "--no-such-option"], r"--no-such-option"),
    ([], r"--volume"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=[" ".join(case[0][-2:]) or "no volume" for case in BAD]
)
def test_a_mistake_is_one_clear_line_and_nothing_is_written(run, tmp_path, arguments, message):
    code, out, err = run(*AUDIT, *arguments, "--out", str(tmp_path / "out"))
    assert code == 2, out + err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten_without_force(run, tmp_path):
    code, _, err = run(*AUDIT, "--volume", "good.tif", "--out", str(tmp_path))
    assert code == 0, err
    code, _, err = run(*AUDIT, "--volume", "good.tif", "--out", str(tmp_path))
    assert code == 2
    assert "holds another result" in err
    code, _, err = run(*AUDIT, "--volume", "good.tif", "--out", str(tmp_path), "--force")
    assert code == 0, err


def test_an_output_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(*AUDIT, "--volume", "good.tif", "--out", str(tmp_path / "file" / "out"))
    assert code == 2
    assert "file: is a file; name a folder" in err


LONG = "a" * 300
FULL = Path("/dev/full")
UNTRAINED = ["--model", "my_networks:unequal", "--weights", "none"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([*AUDIT, "--volume", "good.tif", "--out", ""], "--out"),
        ([*AUDIT, "--volume", "good.tif", "--out="], "--out"),
        (["segment", *UNTRAINED, "--volume", "good.tif", "--out", "o.npy", "--scratch", ""], "--scratch"),
        (["segment", "--run", "", "--volume", "good.tif", "--out", "o.npy"], "--run"),
        (["export", *UNTRAINED, "--to", "huggingface", "--out", ""], "--out"),
        (["train", "--resume", "--out", ""], "--out"),
        (["demo", "--out", ""], "--out"),
        (["report", ""], "DIR"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(run, folder, arguments, name):
    before = sorted(folder.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err == f"error: {name}: is empty; name a file or folder, or . for the current folder\n"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", LONG], f"{LONG}: File name too long; choose a shorter name"),
        (
            ["train", "--resume", "--out", LONG],
            f"{LONG}: File name too long; choose a shorter name",
        ),
        (
            ["segment", "--run", LONG, "--volume", "good.tif", "--out", "o.npy"],
            "File name too long; choose a shorter",
        ),
        (
            ["neutralize", *UNTRAINED, "--out", f"{LONG}.safetensors"],
            "File name too long; choose a shorter name",
        ),
        (
            ["segment", *UNTRAINED, "--volume", "good.tif", "--out", "LOOP/o.npy"],
            "loop/o.npy: Too many levels of symbolic links; the link leads back to itself",
        ),
        (
            ["segment", *UNTRAINED[:3], f"{LONG}.pt", "--volume", "good.tif", "--out", "o.npy"],
            f"{LONG}.pt: cannot be read (File name too long); check the path",
        ),
    ],
)
def test_a_path_that_the_system_refuses_is_one_clear_line(run, tmp_path, arguments, message):
    (tmp_path / "loop").symlink_to("loop")
    code, out, err = run(*(word.replace("LOOP", str(tmp_path / "loop")) for word in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert message in err


def test_a_folder_closed_to_the_user_is_one_clear_line(run, monkeypatch):
    def closed(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.is_dir", closed)
    _, _, err = run("report", "private/audit")
    assert err == "error: private/audit: Permission denied; choose a place where you may read and write\n"


@pytest.mark.parametrize(
    "error", [OSError(errno.EBADF, "Bad file", "a.npy"), PermissionError("a port"), RuntimeError()]
)
def test_any_other_error_of_the_system_is_one_of_our_own(run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("evenslice.cli.comparison.audit_strategies", fail)
    code, _, err = run(*AUDIT, "--volume", "good.tif")
    assert code == 70
    assert "Traceback" in err


ON_CPU = "; choose a smaller --tile or --batch, or end what else uses it"
ON_GPU = "; choose a smaller --tile or --batch, end what else uses it, or choose --device cpu"


@pytest.mark.parametrize(
    ("kind", "reason", "advice"),
    [
        (RuntimeError, "CUDA out of memory. Tried to allocate 20.00 MiB", ON_GPU),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes", ON_CPU),
        (MemoryError, "Unable to allocate 9.00 GiB for an array with shape (9,)", ON_CPU),
    ],
)
def test_memory_may_run_out_anywhere(run, monkeypatch, kind, reason, advice):
    def fail(*_, **__):
        raise kind(f"{reason}.")

    monkeypatch.setattr("evenslice.cli.comparison.audit_strategies", fail)
    code, _, err = run(*AUDIT, "--volume", "good.tif")
    assert code == 2
    assert err == f"error: the memory of the device has run out: {reason}{advice}\n"


@pytest.mark.parametrize(
    "address", ["https://me:secret@127.0.0.1:9/x", "s3://bucket/x?key=secret", "HTTPS:/me:secret@h/x"]
)
@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", *UNTRAINED[:3], "ADDRESS", "--volume", "good.tif", "--out", "o.npy"],
        ["segment", *UNTRAINED, "--volume", "good.tif", "--out", "o.npy", "--scratch", "ADDRESS"],
        ["segment", "--model", "onnx", "--weights", "ADDRESS", "--volume", "good.tif", "--out", "o.npy"],
        [*AUDIT, "--volume", "good.tif", "--out", "ADDRESS"],
        ["train", "--resume", "--out", "ADDRESS"],
        ["report", "ADDRESS"],
    ],
)
def test_an_address_where_only_paths_are_taken_is_refused_without_its_secrets(
    run, folder, arguments, address
):
    code, out, err = run(*(address if word == "ADDRESS" else word for word in arguments))
    assert (code, out) == (2, "")
    assert err.endswith(": is an address, which is not supported here; name a path of this machine\n")
    assert "secret" not in err
    assert not list(folder.glob("*:*")) + list(folder.glob("o.npy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["neutralize", *UNTRAINED, "--out", "n\udce9.safetensors"],
            "n?.safetensors: is not UTF-8, as safetensors needs",
        ),
        (
            ["segment", *UNTRAINED, "--volume", "good.tif", "--out", "o.h5:/x\udce9"],
            "o.h5:/x?: names no dataset; name one",
        ),
    ],
)
def test_a_name_that_could_not_be_read_again_is_refused(run, folder, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}"), err
    assert not list(folder.glob("o.h5")) + list(folder.glob("n*.safetensors"))


def test_a_working_directory_that_was_removed(folder, tmp_path):
    words = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m evenslice info good.npy"
    done = subprocess.run(["sh", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: the working directory: was removed; change to a folder that exists\n"


@pytest.mark.skipif(not FULL.exists(), reason="only some systems have a disk that is always full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_full_standard_output_is_one_clear_line(folder, more):
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "evenslice", "info", "good.tif", *more]
        done = subprocess.run(
            command, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: output: cannot be written (No space left on device); make room")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not FULL.exists(), reason="only some systems have a disk that is always full")
@pytest.mark.parametrize(
    "arguments", [["info", "missing.tif"], ["info", "good.tif"], ["info", "a", "--debug"]]
)
def test_an_error_that_cannot_be_told_does_not_look_like_a_bias(folder, arguments):
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "evenslice", *arguments]
        done = subprocess.run(command, cwd=folder, stdout=full, stderr=full, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("columns", ["0", "3"])
def test_no_result_is_lost_for_want_of_columns(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    status, out, _ = run("info", "good.tif")
    assert status == 0
    assert "voxels (z, y, x)" in out


LATE = """
import asyncio

async def fail():
    raise OSError("late")

loop = asyncio.new_event_loop()
task = loop.create_task(fail())
loop.run_until_complete(asyncio.sleep(0))
"""


def test_requests_that_fail_when_the_error_was_told_draw_no_tracebacks(folder, tmp_path):
    """Of a server that redirects in a circle, several do at a time."""
    (tmp_path / "late.py").write_text(LATE)
    arguments = ["--model", "late:nothing", "--weights", "none", "--volume", str(folder / "good.tif")]
    done = run_process(tmp_path, "audit", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr


def test_debug_shows_the_traceback(folder):
    done = run_process(folder, *AUDIT, "--volume", "missing.tif", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: missing.tif")


def test_ctrl_c_stops_cleanly(folder, tmp_path):
    arguments = [
        "audit",
        "--model",
        "my_networks:slow",
        "--weights",
        "none",
        "--volume",
        "good.tif",
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "evenslice", *arguments, "--precision", "1e-9", "--batch", "1"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(8):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.strip() == "interrupted"
    assert list((tmp_path / "out").glob("*")) == []


def test_help_is_quick_and_names_every_command(folder):
    done = run_process(folder, "--help")
    assert done.returncode == 0
    for command in ("demo", "info", "audit", "neutralize", "report"):
        assert command in done.stdout


@pytest.mark.parametrize("arguments", [["info", "good.tif"], ["info", "good.tif", "--json"], ["--help"]])
def test_a_reader_that_stops_reading_is_no_error(folder, arguments):
    command = [sys.executable, "-m", "evenslice", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141  # as a shell reports SIGPIPE
