"""Whole commands: what they print, what they write, how they fail."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from evenslice.auditing import auditor

AUDIT = ["audit", "--model", "my_networks:unequal", "--weights", "weights.pt", "--max-windows", "60"]


def run_process(folder, *arguments, **options):
    command = [sys.executable, "-m", "evenslice", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, **options
    )


def test_audit_writes_its_results_and_prints_a_table(folder, tmp_path):
    done = run_process(folder, *AUDIT, "--volume", "good.tif", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "Biased in its gradient maps (z" in done.stdout
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
    status, _, err = run(*AUDIT, "--volume", "good.tif", *options)
    assert status == code
    told = [line for line in err.splitlines() if line.startswith("--require ")]
    assert len(told) == code  # of the only audit that falls short
    if "pretrained is biased" in err:
        assert "is biased; saliency" in told[0]
        assert "beyond ±0.05" in told[0]


def test_an_inconclusive_audit_is_no_bias_to_fail_on_and_the_help_says_so(run, monkeypatch):
    few = (*AUDIT, "--volume", "good.tif", "--strategy", "uniform", "--max-windows", "1")
    code, out, _ = run(*few, "--fail-on-bias", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "inconclusive")
    monkeypatch.setenv("COLUMNS", "200")
    assert "inconclusive passes (use --require" in run("audit", "--help")[1]


def test_a_misspelt_requirement_is_told_before_anything_is_read(run):
    code, _, err = run(
        "audit", "--model", "timm:x", "--weights", "none", "--volume", "no.tif", "--require", "symetric"
    )
    assert code == 2
    assert err.startswith("error: --require symetric: did you mean 'symmetric'? known: balanced, symmetric")


@pytest.mark.parametrize("verdict", ["symmetric", "balanced"])
def test_a_requirement_is_not_met_where_no_verdict_applies(run, verdict):
    source = ("--model", "my_networks:one_slice", "--weights", "none", "--max-windows", "8")
    assert run("audit", *source, "--volume", "good.tif")[0] == 0
    code, out, _ = run("audit", *source, "--volume", "good.tif", "--require", verdict)
    assert code == 1
    assert "Not applicable: a window of one slice has no opposite slices to compare." in out


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
    names = [document["name"] for document in found]
    assert names == ["pretrained, gradient", "pretrained, occlusion", "mirror, gradient", "mirror, occlusion"]
    assert len(list(tmp_path.glob("audit*.json"))) == 4


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
        (["--tie", "mirror"], "pretrained, tied"),
        (["--tie", "uniform", "--symmetrize", "output"], "pretrained, tied, symmetrized"),
        (["--weights", "none"], "as built"),
        (["--model", "timm:test_resnet", "--weights", "none"], "random weights"),
    ],
)
def test_an_audit_is_named_after_what_was_audited(options, name, run):
    code, out, err = run(*AUDIT, "--max-windows", "8", "--volume", "good.tif", *options, "--json")
    assert code == 0, err
    found = json.loads(out)
    found = found[0] if isinstance(found, list) else found
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
    original, calls = auditor.stress, []

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(auditor, "stress", counted)
    methods = ("--method", "gradient", "--method", "input_x_gradient")
    code, out, _ = run(*AUDIT, "--volume", "good.tif", "--labels", "labels.tif", *methods, "--json")
    assert code == 0
    first, second = json.loads(out)
    assert first["stress"]["losses"]
    assert first["stress"] == second["stress"]
    assert len(calls) == 1


def test_what_lost_slices_cost_can_be_left_out(run):
    options = ("--volume", "good.tif", "--max-windows", "4", "--json", "--no-stress")
    code, out, err = run(*AUDIT, "--labels", "labels.tif", *options)
    assert code == 0, err
    assert json.loads(out)["stress"] is None
    assert "note: --labels: had no effect, as --no-stress was given" in err
    code, _, err = run(*AUDIT, *options)
    assert code == 2
    assert "--no-stress: has no effect without --labels; give both" in err


def test_labels_without_effect_are_said_to_have_none(run):
    audit = [
        "audit",
        "--weights",
        "none",
        "--volume",
        "good.tif",
        "--labels",
        "labels.tif",
        "--max-windows",
        "4",
    ]
    for network, noted in (("one_slice", True), ("unequal", False)):
        slices = ["--slices", "1"] if network == "one_slice" else []
        code, _, err = run(*audit, "--model", f"my_networks:{network}", *slices)
        assert code == 0, err
        assert (
            "note: --labels: had no effect, as a window of one slice has no neighbours to disturb" in err
        ) == noted


def test_where_the_scaling_comes_from_is_said_first(run):
    options = {"assumed": [], "given": ["--mean", "0.5", "--std", "0.25"]}
    for source, given in options.items():
        _, out, _ = run(*AUDIT, "--max-windows", "4", "--volume", "good.tif", *given)
        assert out.startswith("Input: slices in 0 to 1, less mean 0")
        assert ("is assumed" in " ".join(out.split())) == (source == "assumed")


def test_a_network_whose_stem_cannot_be_found_is_audited_as_it_was_built(run):
    source = ("--model", "my_networks:along_z", "--weights", "none", "--volume", "good.tif", "--json")
    code, out, err = run("audit", *source, "--max-windows", "8", "--slices", "5")
    assert code == 0, err
    found = json.loads(out)
    assert (found["name"], found["slices"], found["strategy"]) == ("as built", 5, None)
    assert run("audit", *source, "--max-windows", "8", "--strategy", "uniform")[0] == 2


def test_report_writes_the_page_anew(run, tmp_path):
    run(*AUDIT, "--volume", "good.tif", "--out", str(tmp_path / "before"))
    run(*AUDIT, "--volume", "good.tif", "--strategy", "uniform", "--out", str(tmp_path / "after"))
    code, out, _ = run("report", str(tmp_path))
    assert code == 0
    assert "Symmetric: " in out
    page = (tmp_path / "report.html").read_text()
    assert "uniform" in page
    assert "pretrained" in page


@pytest.mark.parametrize("name", ["report.html", "figures/shares.png", "tables/run.csv"])
@pytest.mark.parametrize("place", [".", "copied"])  # above an audit, and beside one
def test_a_report_replaces_nothing_of_the_user(run, tmp_path, place, name):
    written = Path(__file__).parents[1] / "data" / "written-by-0.2.0" / "audits" / "labels"
    shutil.copytree(
        written, tmp_path / "copied", ignore=shutil.ignore_patterns(".*")
    )  # as `cp -r dir/*` does
    theirs = tmp_path / place / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("mine")
    code, _, err = run("report", str(tmp_path / place))
    assert code == 2
    assert f"{name}: has the name of a result, but evenslice did not write it; move it away" in err
    assert theirs.read_text() == "mine"
    theirs.unlink()
    for _ in range(2):  # it replaces its own
        assert run("report", str(tmp_path / place))[0] == 0


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


def test_a_trained_network_that_is_symmetrized_is_not_said_to_be_rewritten(run, tmp_path):
    trained = ["--model", "my_networks:unequal", "--weights", "weights.pt", "--mean", "0", "--std", "1"]
    code, out, _ = run("symmetrize", *trained, "--out", str(tmp_path / "fair.safetensors"))
    assert code == 0
    assert "first layers" in out
    assert "rewritten" not in out
    code, out, _ = run("neutralize", *trained, "--out", str(tmp_path / "start.safetensors"))
    assert code == 0
    assert "layers rewritten" in out


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
    said = [
        line for line in err.splitlines() if not line.startswith("audit: ")
    ]  # progress, on a slow machine
    assert (code, said) == (0, [note.rstrip()])
    code, _, err = run("segment", *unet, "--weights", fair, *files, "--force")  # may have been trained since
    assert code == 0
    assert "note" not in err


@pytest.mark.parametrize(
    "command",
    [
        [*AUDIT, "--max-windows", "4"],
        ["evaluate", *AUDIT[1:5], "--stress"],
        ["segment", *AUDIT[1:5], "--out", "of-slices.tif", "--force"],
    ],
    ids=lambda command: command[0],
)
def test_a_gap_in_a_folder_of_slices_is_told_where_its_slices_are_taken_for_adjacent(run, tmp_path, command):
    for z in (0, 1, 2, 4, 5, 6, 7, 8, 9):
        Image.fromarray(np.full((40, 48), 20 * z, np.uint8)).save(tmp_path / f"z{z}.png")
    note = f"note: {tmp_path}: missing slices 3, by the file names; those beside a gap count as adjacent"
    code, _, err = run(*command, "--volume", str(tmp_path))
    assert code == 0, err
    assert err.splitlines().count(note) == 1
    code, _, err = run(*command, "--volume", str(tmp_path), "--region", "3:,:,:")  # behind the gap
    assert code == 0, err
    assert "missing" not in err


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
