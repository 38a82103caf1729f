"""evenslice flip, with programs that are scripts of this test."""

import json
import shlex
import sys

import nibabel
import numpy as np
import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, nibabel, numpy as np
image = nibabel.load(sys.argv[1])
stack = np.asarray(image.dataobj)  # (x, y, z)
print("read", stack.shape)
{body}
nibabel.save(nibabel.Nifti1Image(answer.astype(np.uint8), image.affine), sys.argv[2])
open({count!r}, "a").write("x")
"""
RISING = "answer = np.maximum.accumulate(stack > .9, axis=2)"
EVEN = "answer = stack > .5"
ORIENTED = """up = image.affine[2, 2] > 0
answer = np.maximum.accumulate((stack if up else stack[..., ::-1]) > .9, axis=2)
answer = answer if up else answer[..., ::-1]"""


@pytest.fixture
def flip(command, tmp_path):
    stack = np.random.default_rng(0).random((12, 24, 20)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(stack.transpose(), np.diag([2.0, 2, 3, 1])), tmp_path / "v.nii.gz")

    def flip(body, *options, program=None):
        script = tmp_path / "program; touch x.py"
        script.write_text(PROGRAM.format(body=body, count=str(tmp_path / "runs")))
        words = program or shlex.join([sys.executable, str(script), "{input}", "{output}"])
        return command(
            "flip", "--volume", tmp_path / "v.nii.gz", "--command", words, "--out", tmp_path / "out", *options
        )

    return flip


def verdicts(done):
    assert done.returncode in (0, 1), done.stderr
    return {axis["axis"]: axis["verdict"] for axis in json.loads(done.stdout)["axes"]}


def test_a_program_that_propagates_and_one_that_does_not(flip, tmp_path):
    done = flip(RISING, "--axis", "z", "--axis", "x", "--json", "--fail-on-bias")
    assert verdicts(done) == {"z": "biased", "x": "symmetric"}
    assert done.returncode == 1
    runs = tmp_path / "runs"
    assert runs.read_text() == "xxxx"  # intact, again, and flipped twice
    assert verdicts(flip(RISING, "--axis", "z", "--axis", "x", "--json", "--force")) == {
        "z": "biased",
        "x": "symmetric",
    }
    assert runs.read_text() == "xxxx"  # answers that are there are not computed again
    assert not (tmp_path / "x.py").exists()
    assert json.loads((tmp_path / "out" / "flip.json").read_text())["verdict"] == "biased"
    assert "Biased along z" in (tmp_path / "out" / "report.html").read_text()


def test_a_program_that_reads_the_orientation_is_tested_fairly(flip, tmp_path):
    assert verdicts(flip(ORIENTED, "--no-repeat", "--json")) == {"z": "symmetric"}
    done = flip(ORIENTED, "--no-repeat", "--ignore-orientation", "--json", "--force", "--require", "balanced")
    assert verdicts(done) == {"z": "biased"}
    assert (done.returncode, done.stderr.splitlines()[-1].startswith("--require balanced: ")) == (1, True)


def test_the_repair_and_answers_made_elsewhere(flip, command, tmp_path):
    merged, answers = tmp_path / "merged.nii.gz", tmp_path / "out"
    assert "--merge: objects have no vote" in flip(RISING, "--merge", merged, "--instances").stderr
    assert flip(RISING, "--merge", merged).returncode == 0
    first, second = (
        np.asarray(nibabel.load(answers / name / "output" / "answer.nii.gz").dataobj)
        for name in ("intact", "flipped-z")
    )
    expected = (first > 0) & (second[..., ::-1] > 0)  # a tie is background
    np.testing.assert_array_equal(np.asarray(nibabel.load(merged).dataobj) > 0, expected)
    paths = [answers / name / "output" / "answer.nii.gz" for name in ("intact", "flipped-z")]
    given = (
        "flip",
        "--volume",
        tmp_path / "v.nii.gz",
        "--answers",
        *paths,
        "--out",
        tmp_path / "b",
        "--json",
    )
    done = command(*given, "--labels", merged)
    assert "--no-repeat: has no effect without --command" in command(*given, "--no-repeat").stderr
    found = json.loads(done.stdout)["axes"][0]
    assert found["verdict"] == "biased"
    assert found["classes"][1]["dice"][0] == pytest.approx(
        2 * expected.sum() / (expected.sum() + (first > 0).sum())
    )


def test_failures_are_one_line_after_the_last_lines_of_the_program(flip):
    done = flip("raise SystemExit('no such model')")
    assert done.returncode == 2
    assert done.stderr.splitlines()[:2] == ["read (20, 24, 12)", "no such model"]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "ends with status 1 on the volume intact" in done.stderr
    for words, message in (
        ("--swap 1:2 --swap 1:3", "1 is given twice"),
        ("--swap 1:1", "--swap 1:1: give each class one other"),
        ("--axis t", "--axis t: known: x, y, z"),
    ):
        assert message in flip(EVEN, *words.split()).stderr
    for program, message in (
        ("no-such-program {input} {output}", "cannot be run"),
        ("a {input}", "names no {output}"),
        (f"{sys.executable} -c 'pass' {{input}} {{output}}", "writes no answer.nii.gz"),
    ):
        done = flip(EVEN, program=program)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_answers_of_another_program_are_replaced_only_by_force_and_what_is_the_user_s_never(flip, tmp_path):
    assert flip(EVEN, "--no-repeat").returncode == 0
    other = shlex.join([sys.executable, str(tmp_path / "program; touch x.py"), "{input}", "{output}", "fast"])
    done = flip(EVEN, "--no-repeat", program=other)
    assert "holds the answer to another volume or command" in done.stderr
    assert flip(EVEN, "--no-repeat", "--force", "--input-name", "case.nii.gz", program=other).returncode == 0
    inputs = tmp_path / "out" / "intact" / "input"  # of which a program may read all
    assert [path.name for path in inputs.iterdir()] == ["case.nii.gz"]
    (tmp_path / "out" / "again").mkdir()
    (tmp_path / "out" / "again" / "mine").touch()
    assert "holds the answer" in flip(EVEN, "--force", program=other).stderr
    assert (tmp_path / "out" / "again" / "mine").exists()
