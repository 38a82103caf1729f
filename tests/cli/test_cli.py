"""Whole commands: what they print, what they write, how they fail."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file

from evenslice import cli
from evenslice.auditing import auditor

NETWORKS = """
import torch
from torch import nn

def unequal():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[0].weight *= torch.tensor([1.0, 4.0, 0.2]).view(1, 3, 1, 1)
    return network

def slow():
    import time
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = unequal()
        def forward(self, x):
            print("running", flush=True)
            time.sleep(0.2)
            return self.inner(x)
    return Slow()

def classes_only():
    class ClassesOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = unequal()
        def forward(self, x):
            return (self.inner(x) > 0).float()
    return ClassesOnly()

def talkative():
    class Talkative(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = unequal()
        def forward(self, x):
            print("running")
            return self.inner(x)
    return Talkative()

def in_parts():
    network = nn.Sequential()
    network.add_module("encoder", nn.Conv2d(3, 4, 3, padding=1))
    network.add_module("decoder", nn.Conv2d(4, 2, 1))
    return network

def one_slice():
    return nn.Conv2d(1, 2, 3, padding=1)

def nothing():
    return 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a network to import and a few volumes, good and bad."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "my_networks.py").write_text(NETWORKS)
    rng = np.random.default_rng(0)
    good = rng.integers(0, 255, (30, 48, 40), dtype=np.uint8)
    tifffile.imwrite(
        folder / "good.tif",
        good,
        imagej=True,
        resolution=(0.25, 0.25),
        metadata={"axes": "ZYX", "spacing": 50, "unit": "nm"},
    )
    tifffile.imwrite(folder / "labels.tif", (good > 128).astype(np.uint8))
    tifffile.imwrite(folder / "short_labels.tif", good[:20])
    np.save(folder / "two.npy", good[0])
    np.save(folder / "four.npy", np.stack([good, good]))
    np.save(folder / "constant.npy", np.full((20, 40, 40), 7, np.uint8))
    broken = good.astype(np.float32)
    broken[3, 4, 5] = np.nan
    np.save(folder / "nan.npy", broken)
    np.save(folder / "thin.npy", good[:2])
    (folder / "text.tif").write_text("not a picture")
    (folder / "cut.tif").write_bytes((folder / "good.tif").read_bytes()[:20000])
    torch.manual_seed(0)
    torch.save(dict.fromkeys(["other.weight"], torch.zeros(2)), folder / "other.pt")
    torch.save(torch.nn.Conv2d(3, 2, 1), folder / "pickled.pt")
    (folder / "junk.pt").write_bytes(b"junk")
    sys.path.insert(0, str(folder))
    import my_networks

    torch.save(my_networks.unequal().state_dict(), folder / "weights.pt")
    whole = my_networks.in_parts().state_dict()
    torch.save(
        {key: value for key, value in whole.items() if key.startswith("encoder")}, folder / "encoder.pt"
    )
    sys.path.remove(str(folder))
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run the command line within this process, in the folder of volumes."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["evenslice", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def run_process(folder, *arguments, **options):
    command = [sys.executable, "-m", "evenslice", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, **options
    )


AUDIT = ["audit", "--model", "my_networks:unequal", "--weights", "weights.pt", "--max-windows", "40"]


def test_audit_writes_its_results_and_prints_a_table(folder, tmp_path):
    done = run_process(folder, *AUDIT, "--volume", "good.tif", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "biased" in done.stdout
    assert done.stderr == ""
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".evenslice-files.json", "audit.json", "audit.npz", "report.html", "figures", "tables"}
    document = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert document["verdict"] == "biased"
    assert document["strategy"] == "pretrained"
    assert document["command"].startswith("evenslice audit --model my_networks:unequal")
    assert document["volumes"][0]["spacing"] == [50, 4, 4]
    assert document["volumes"][0]["fingerprint"].startswith("sha256:")


def test_json_stands_alone_on_standard_output(folder):
    done = run_process(folder, *AUDIT, "--volume", "good.tif", "--json", "--fail-on-bias")
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"] == "biased"


def test_a_network_that_prints_does_not_spoil_the_json(folder):
    arguments = ["audit", "--model", "my_networks:talkative", "--weights", "none", "--max-windows", "8"]
    done = run_process(folder, *arguments, "--volume", "good.tif", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["windows"] == 8
    assert "running" in done.stderr


def test_an_error_of_our_own_is_not_taken_for_a_bias(run, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("evenslice.cli.comparison.audit_strategies", fail)
    code, _, err = run(*AUDIT, "--volume", "good.tif")
    assert code == 70
    assert "Traceback" in err


def test_a_fair_network_passes(run):
    code, out, _ = run(*AUDIT, "--volume", "good.tif", "--strategy", "uniform", "--fail-on-bias", "--json")
    assert code == 0
    assert json.loads(out)["verdict"] == "symmetric"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--strategy", "uniform", "--require", "symmetric"], 0),
        (["--strategy", "uniform", "--require", "balanced"], 0),
        (["--require", "balanced"], 1),
        (["--require", "symmetric"], 1),
        (["--strategy", "uniform", "--require", "symmetric", "--max-windows", "1"], 1),  # inconclusive
        (["--strategy", "uniform", "--strategy", "pretrained", "--require", "symmetric"], 1),
    ],
)
def test_a_required_verdict_decides_the_status(run, options, code):
    assert run(*AUDIT, "--volume", "good.tif", *options)[0] == code


def test_an_inconclusive_audit_is_no_bias_to_fail_on_and_the_help_says_so(run, monkeypatch):
    few = (*AUDIT, "--volume", "good.tif", "--strategy", "uniform", "--max-windows", "1")
    code, out, _ = run(*few, "--fail-on-bias", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "inconclusive")
    monkeypatch.setenv("COLUMNS", "200")
    assert "inconclusive passes (use --require" in run("audit", "--help")[1]


@pytest.mark.parametrize("verdict", ["symmetric", "balanced"])
def test_a_requirement_is_not_met_where_no_verdict_applies(run, verdict):
    source = ("--model", "my_networks:one_slice", "--weights", "none", "--max-windows", "8")
    assert run("audit", *source, "--volume", "good.tif")[0] == 0
    code, out, _ = run("audit", *source, "--volume", "good.tif", "--require", verdict)
    assert code == 1
    assert out.startswith("Not applicable: a window of one slice has no mirrored pair to compare.")


def test_an_unknown_requirement_is_refused(run):
    code, _, err = run(*AUDIT, "--volume", "good.tif", "--require", "biased")
    assert code == 2
    assert "symmetric" in err
    assert "balanced" in err


def test_strategies_and_methods_stand_side_by_side(run, tmp_path):
    arguments = [
        "--strategy",
        "pretrained",
        "--strategy",
        "mirror",
        "--method",
        "gradient",
        "--method",
        "occlusion",
    ]
    code, out, _ = run(*AUDIT, "--volume", "good.tif", *arguments, "--out", str(tmp_path), "--json")
    assert code == 0
    found = json.loads(out)
    names = [document["name"] for document in found["audits"]]
    assert names == ["pretrained, gradient", "pretrained, occlusion", "mirror, gradient", "mirror, occlusion"]
    assert len(list(tmp_path.glob("audit*.json"))) == 4
    for network, of_network in zip(
        found["conclusions"], (found["audits"][:2], found["audits"][2:]), strict=True
    ):
        assert network["verdicts"] == {document["method"]: document["verdict"] for document in of_network}
    assert [network["network"] for network in found["conclusions"]] == ["pretrained", "mirror"]
    assert found["conclusions"][1]["agree"] is True


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--strategy", "0.2,0.6,0.2"], "profile 0.2, 0.6, 0.2"),
        (["--symmetrize", "output"], "pretrained, symmetrized"),
        (
            ["--symmetrize", "output", "--method", "gradient", "--method", "smoothgrad"],
            "pretrained, symmetrized, gradient",
        ),
        (["--strategy", "twin"], "twin"),
        (["--weights", "none"], "as built"),
        (["--model", "timm:test_resnet", "--weights", "none"], "random weights"),
    ],
)
def test_an_audit_is_named_after_what_was_audited(options, name, run):
    code, out, err = run(*AUDIT, "--max-windows", "8", "--volume", "good.tif", *options, "--json")
    assert code == 0, err
    found = json.loads(out)
    found = found["audits"][0] if "audits" in found else found
    assert found["name"] == name
    assert found["model"].get("symmetrized") == ("output" if "symmetrized" in name else None)


def test_the_weights_of_a_profile_are_given_like_a_strategy(run, tmp_path):
    out = tmp_path / "fair.safetensors"
    source = ("--model", "my_networks:unequal", "--weights", "weights.pt", "--out", str(out))
    code, _, err = run("neutralize", *source, "--strategy", "0.25,0.5,0.25")
    assert code == 0, err
    kernels = load_file(out)["0.weight"]
    torch.testing.assert_close(kernels[:, 1], 2 * kernels[:, 0])
    torch.testing.assert_close(kernels[:, 2], kernels[:, 0])
    for wrong, told in (
        (
            "0.25,half,0.25",
            "0.25,half,0.25: give the name of one strategy, or the weights of a profile, such as",
        ),
        ("0.3,0.5,0.3", "sum to 1.1"),
    ):
        code, _, err = run("neutralize", *source, "--force", "--strategy", wrong)
        assert code == 2
        assert told in err


def test_what_lost_slices_cost_is_measured_once_for_all_methods(run, monkeypatch):
    original, calls = auditor.measure_loss, []

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(auditor, "measure_loss", counted)
    methods = ("--method", "gradient", "--method", "input_x_gradient")
    code, out, _ = run(*AUDIT, "--volume", "good.tif", "--labels", "labels.tif", *methods, "--json")
    assert code == 0
    first, second = json.loads(out)["audits"]
    assert first["stress"]["losses"]
    assert first["stress"] == second["stress"]
    assert len(calls) == 1


def test_report_writes_the_page_anew(run, tmp_path):
    run(*AUDIT, "--volume", "good.tif", "--out", str(tmp_path / "before"))
    run(*AUDIT, "--volume", "good.tif", "--strategy", "uniform", "--out", str(tmp_path / "after"))
    code, out, _ = run("report", str(tmp_path))
    assert code == 0
    assert "symmetric" in out
    page = (tmp_path / "report.html").read_text()
    assert "uniform" in page
    assert "pretrained" in page


def test_a_report_of_no_folder_says_which_folders_it_takes(run, tmp_path):
    code, _, err = run("report", str(tmp_path / "nope"))
    assert code == 2
    assert "nope: no such folder; name one that evenslice audit, study or survey wrote" in err


def test_neutralize_writes_weights_that_an_audit_finds_fair(run, tmp_path):
    fair = str(tmp_path / "fair.safetensors")
    code, out, _ = run(
        "neutralize",
        "--model",
        "my_networks:unequal",
        "--weights",
        "weights.pt",
        "--out",
        fair,
        "--slices",
        "5",
        "--json",
    )
    assert code == 0
    record = json.loads(out)
    assert record["slices"] == 5
    assert record["permutation_error"] < 1e-5
    code, out, _ = run(
        "audit", "--model", "my_networks:unequal", "--weights", fair, "--volume", "good.tif", "--json"
    )
    assert code == 0, out
    document = json.loads(out)
    assert document["verdict"] == "symmetric"
    assert document["slices"] == 5
    assert document["strategy"] == "uniform"


def test_the_scaling_of_a_network_that_was_not_trained_on_photographs(run, tmp_path):
    fair = str(tmp_path / "fair.safetensors")
    arguments = [
        "neutralize",
        "--model",
        "smp:Unet/resnet18",
        "--weights",
        "none",
        "--json",
        "--force",
        "--out",
        fair,
    ]
    _, out, _ = run(*arguments)
    assert json.loads(out)["mean"] == pytest.approx(0.449, abs=1e-3)
    code, out, _ = run(*arguments, "--mean", "0", "--std", "1")
    assert code == 0
    assert json.loads(out)["mean"] == 0
    code, _, err = run(
        "audit", "--model", "smp:Unet/resnet18", "--weights", fair, "--volume", "good.tif", "--mean", "0.5"
    )
    assert code == 2
    assert "states its own mean and std" in err


ENCODER = ["--model", "my_networks:in_parts", "--weights", "encoder.pt"]


@pytest.mark.parametrize(
    "command",
    [
        ["segment", "--volume", "good.tif"],
        ["evaluate", "--volume", "good.tif", "--labels", "labels.tif"],
        ["export", "--to", "huggingface"],
    ],
    ids=lambda command: command[0],
)
def test_no_answers_of_a_network_whose_weights_are_there_in_part(run, tmp_path, command):
    code, out, err = run(*command, *ENCODER, "--out", str(tmp_path / "out.tif"))
    assert (code, out) == (2, "")
    assert err == (
        "error: encoder.pt: lacks the network's decoder, so that its answers would be random; give the weights of "
        "the whole network, or train it first\n"
    )
    assert not list(tmp_path.iterdir())


def test_answers_of_a_network_that_was_never_trained_come_with_a_note(run, tmp_path):
    unet = ("--model", "smp:Unet/tu-tf_efficientnet_lite0")
    files = ("--volume", "good.tif", "--out", str(tmp_path / "out.tif"))
    code, _, err = run("segment", *unet, "--weights", "none", *files)
    assert code == 0
    assert err.startswith(
        "note: with --weights none, the network is randomly initialized; train it before using its output\n"
    )
    fair = str(tmp_path / "fair.safetensors")
    note = (
        "note: with --weights imagenet, parts of the network (decoder, segmentation_head) are randomly initialized; "
        "train it before using its output\n"
    )
    code, _, err = run("neutralize", *unet, "--weights", "imagenet", "--out", fair)
    assert (code, err) == (0, note)
    several = ("--strategy", "pretrained", "--strategy", "uniform", "--max-windows", "2")
    code, _, err = run("audit", *unet, "--weights", "imagenet", "--volume", "good.tif", *several)
    assert (code, err) == (0, note)
    code, _, err = run("segment", *unet, "--weights", fair, *files, "--force")  # may have been trained since
    assert code == 0
    assert "note" not in err


def test_audit_tells_which_parts_the_weights_lack(run):
    code, _, err = run("audit", *ENCODER, "--volume", "good.tif", "--max-windows", "8")
    assert code == 0
    assert err.startswith(
        "note: encoder.pt lacks parts of the network (decoder); they were random in this audit; "
    )


def test_parts_may_have_been_trained_before_they_were_saved(run, tmp_path):
    fair = str(tmp_path / "fair.safetensors")
    for command in ("symmetrize", "neutralize"):
        code, _, err = run(command, *ENCODER, "--out", fair, "--force")
        assert code == 0
        assert err.startswith("note: encoder.pt lacks parts of the network (decoder); they are random in ")
    code, _, err = run(
        "segment",
        *ENCODER[:2],
        *("--weights", fair, "--volume", "good.tif", "--out", str(tmp_path / "out.tif")),
    )
    assert code == 0, err


def test_the_version(folder):
    assert run_process(folder, "--version").stdout.startswith("evenslice ")


def test_info_describes_a_volume(run):
    code, out, _ = run("info", "good.tif", "--json")
    assert code == 0
    described = json.loads(out)
    assert described["shape"] == [30, 48, 40]
    code, out, _ = run("info", "labels.tif")
    assert code == 0
    assert "30 x 48 x 40" in out


BAD = [
    (["--volume", "missing.tif"], r"missing.tif"),
    (["--volume", "text.tif"], r"text.tif"),
    (["--volume", "cut.tif"], r"cut.tif"),
    (["--volume", "two.npy"], r"two.npy.*2"),
    (["--volume", "four.npy"], r"four.npy.*--axes"),
    (["--volume", "nan.npy"], r"1 voxels? .*\(3, 4, 5\).*--fill"),
    (["--volume", "constant.npy"], r"constant"),
    (["--volume", "thin.npy"], r"2 slices, fewer than the 3"),
    (["--volume", "good.tif", "--slices", "4"], r"4.*odd"),
    (["--volume", "good.tif", "--strategy", "unifrom"], r"did you mean 'uniform'"),
    (["--volume", "good.tif", "--method", "gradeint"], r"did you mean 'gradient'"),
    (["--volume", "good.tif", "--tie", "miror"], r"did you mean 'mirror'"),
    (["--volume", "good.tif", "--model", "my_networks:unequl"], r"did you mean 'unequal'"),
    (["--volume", "good.tif", "--model", "my_networks:nothing"], r"nothing"),
    (["--volume", "good.tif", "--model", "smpp:Unet/resnet18"], r"did you mean 'smp'"),
    (["--volume", "good.tif", "--model", "smp:Unett/resnet18"], r"did you mean 'Unet'"),
    (["--volume", "good.tif", "--model", "timm:resnet188"], r"did you mean 'resnet18'"),
    (["--volume", "good.tif", "--weights", "missing.pt"], r"missing.pt"),
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
    (["--volume", "good.tif", "--answer-tolerance", "2"], r"error: --answer-tolerance 2.0: must lie between"),
    (["--volume", "good.tif", "--judged-share", "1"], r"error: --judged-share 1.0: must be at least 0"),
    (["--volume", "good.tif", "--precision", "0"], r"error: --precision 0.0: must be above 0"),
    (["--volume", "good.tif", "--tile", "0", "32"], r"--tile 0 32: give two whole numbers"),
    (
        ["--volume", "good.tif", "--model", "my_networks:classes_only", "--weights", "none"],
        r"--?occlusion|'occlusion'",
    ),
    (["--volume", "good.tif", "--strategy", "uniform", "--strategy", "unifrom"], r"did you mean 'uniform'"),
    (
        ["--volume", "good.tif", "--method", "gradient", "--method", "gradient"],
        r"--method gradient: is given more than once",
    ),
    (["--volume", "good.tif", "--no-such-option"], r"--no-such-option"),
    ([], r"--volume"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=[" ".join(case[0][-2:]) or "no volume" for case in BAD]
)
def test_a_mistake_is_one_clear_line_and_nothing_is_written(run, tmp_path, arguments, message):
    import re

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
    assert "cannot be written" in err


LONG = "a" * 300
FULL = Path("/dev/full")
UNTRAINED = ["--model", "my_networks:unequal", "--weights", "none"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", LONG], f"{LONG}: File name too long; choose a shorter name"),
        (
            ["train", "--resume", "--out", LONG],
            f"{LONG}/config.yaml: File name too long; choose a shorter name",
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
            "o.h5:/x?: the name of its dataset is not UTF-8; choose another",
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


def test_a_reader_that_stops_reading_is_no_error(folder):
    code = "import sys; sys.argv = ['evenslice', 'info', 'good.tif']; from evenslice.cli import main; main()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, **pipes) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
