"""What is shown: one plain line whatever files and names hold, no secrets, nothing that steers a terminal, no lost results."""

import json
import re

import numpy as np
import pytest
from commands import run_command
from synthetic import PRETRAINED, make_audit, save_audits

pytestmark = pytest.mark.attack

ESCAPE = "\x1b[31m\x1b]0;title\x07"
MARKUP = "o[/b][bold]x:smile:"
TERMINAL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NETWORK = ("--model", "timm:test_resnet", "--weights", "none")
SHORT = ("audit", *NETWORK, "--volume", "volume.npy", "--max-windows", "6")
RANDOM = "note: with --weights none, the network is randomly initialized; train it before using its output\n"


def evenslice(*arguments, cwd, **environment):
    """Run a command in a wide terminal that shows colours; return its status and what it wrote, but for one note."""
    done = run_command(*arguments, cwd=cwd, **{"COLUMNS": "400"} | environment)
    return done.returncode, done.stdout, done.stderr.removeprefix(RANDOM)


def assert_one_line(ended):
    status, out, error = ended
    assert (status, out) == (2, ""), error[-2000:]
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not TERMINAL.search(error), repr(error)
    return error


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).random((12, 32, 32), np.float32))
    return tmp_path


# Terminals


@pytest.mark.parametrize("name", [f"a{ESCAPE}.npy", "a\u202etxt.npy", "a\nb\r.npy", "a\x9b31m.npy"])
def test_names_of_files_steer_no_terminal(folder, name):
    assert_one_line(evenslice("info", name, cwd=folder))
    (folder / "volume.npy").rename(folder / name)
    status, out, error = evenslice("info", name, cwd=folder)
    assert (status, error) == (0, "")
    assert not TERMINAL.search(out), repr(out)
    status, out, _ = evenslice("info", name, "--json", cwd=folder)
    assert not TERMINAL.search(out), repr(out)
    assert json.loads(out)["path"] == name


def test_documents_steer_no_terminal(tmp_path):
    run = {"created": ESCAPE, "command": ESCAPE}
    names = [ESCAPE, "\u202e[/b]", "[red][/]:smile: {task} \\[x] a\tb"]
    save_audits([make_audit(name, PRETRAINED, size=16, windows=50, run=run) for name in names], tmp_path)
    status, out, error = evenslice("report", str(tmp_path), cwd=tmp_path)
    assert (status, error) == (0, "")
    assert not TERMINAL.search(out), repr(out)
    assert all(name.replace("\t", " ") in out for name in names[2:])
    path = tmp_path / "audit.0-more.json"
    path.write_text(path.read_text().replace('"verdict": "biased"', '"verdict": "\\u001b[2J\\u009b"'))
    assert_one_line(evenslice("report", str(tmp_path), cwd=tmp_path))


def test_configurations_steer_no_terminal(tmp_path):
    (tmp_path / "train.yaml").write_text('"\\e[2Jtrain\\u202e": 1\n')
    assert_one_line(evenslice("train", "train.yaml", "--out", "run", cwd=tmp_path))


# Names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ä\udcff\udc80", "n" * 240, MARKUP.replace("/", "")])
def test_awkward_names_are_written_and_read(folder, name):
    (folder / "volume.npy").rename(folder / f"{name}.npy")
    short = [f"{name}.npy" if word == "volume.npy" else word for word in SHORT]
    status, out, error = evenslice(*short, "--out", name, "--json", cwd=folder)
    assert (status, error) == (0, ""), error[-2000:]
    assert json.loads(out)["volumes"][0]["path"] == f"{name}.npy"
    status, _, error = evenslice("report", name, cwd=folder)
    assert (status, error) == (0, ""), error[-2000:]


# Secrets


ENDPOINT = {"AWS_ENDPOINT_URL": "http://me:hush@127.0.0.1:1/?token=hush"}
ENDPOINT |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hush"}


@pytest.mark.parametrize(
    ("address", "environment"),
    [
        ("https://me:hush@127.0.0.1:1/a.zarr", {}),
        ("https://127.0.0.1:1/a.zarr?token=hush", {}),
        ("s3://bucket/a.zarr", ENDPOINT),
    ],
)
def test_secrets_in_addresses_are_not_shown(folder, address, environment):
    segment = ("segment", *NETWORK, "--volume", "volume.npy", "--out", address)
    for arguments in (("info", address), segment):
        assert "hush" not in assert_one_line(evenslice(*arguments, cwd=folder, **environment))
    status, out, error = evenslice("--debug", "info", address, cwd=folder, **environment)
    assert (status, "hush" in out + error) == (2, False)


def test_results_keep_no_secrets_of_the_command_line(folder):
    arguments = (*SHORT, "--out", "./odd://me:hush@host/x?token=hush")
    status, _, error = evenslice(*arguments, cwd=folder)  # a folder of this name, however odd
    assert (status, error) == (0, ""), error[-2000:]
    texts = [path.read_bytes() for path in folder.rglob("*.*") if path.is_file()]
    assert not any(b"hush" in text for text in texts)
