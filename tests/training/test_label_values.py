"""Label values that are of no class: refused, taken as background, or left out of losses and scores."""

import json

import numpy as np
import pytest
import tiny_training
from formulas import linear
from values import by_name

import evenslice
from evenslice import ConfigError, Reading, VolumeError

LARGE = 2**60


def classes(array, count, values=None, **options):
    """Return the classes of a row of labels."""
    row, reading = np.array(array), evenslice.Reading(label_values=values, **options)
    image = np.arange(2 * len(row), dtype=float).reshape(1, 2, -1)
    data = evenslice.SliceWindows(image, np.stack([row, row])[None], slices=1, classes=count, reading=reading)
    return data[0][1][0].tolist()


OTHERS = {"other_labels": "background"}


@pytest.mark.parametrize(
    ("array", "count", "values", "options", "expected"),
    [
        ([0, 5, 7, 90], 2, [0, 5], OTHERS, [0, 1, 0, 0]),
        ([3, 5, 7, 90], 3, [0, 5, 90], OTHERS, [0, 1, 0, 2]),
        ([False, True], 2, [0, 5], OTHERS, [0, 0]),
        # Neighbours that are equal as float64.
        (np.array([LARGE, LARGE + 1, LARGE + 2], np.uint64), 3, [LARGE + 1, LARGE, LARGE + 2], {}, [1, 0, 2]),
        (np.array([LARGE, LARGE + 1, LARGE + 2], np.int64), 2, [LARGE + 2, LARGE], OTHERS, [1, 0, 0]),
        # Values that labels cannot hold are those of absent classes.
        (np.array([0, 200], np.uint8), 4, [2**64, 0, -1, 200], {}, [1, 3]),
        ([0.0, 3.0], 3, [10**400, 3, 0], {}, [2, 1]),
        ([0, 1, 255], 2, None, {"ignore_label": 255}, [0, 1, -100]),
        (np.array([0, 1, -1], np.int8), 2, None, {"ignore_label": -1}, [0, 1, -100]),
        (np.array([0, 1], np.uint8), 2, None, {"ignore_label": -1}, [0, 1]),
    ],
)
def test_values_become_classes(array, count, values, options, expected):
    assert classes(array, count, values, **options) == expected


@pytest.mark.parametrize(
    ("array", "options", "kind", "message"),
    [
        ([0, 1, 2], {}, VolumeError, "holds the label value 2.*other_labels='background'"),
        ([0, 0.5], OTHERS, VolumeError, "holds 0.5, which is not a label"),
        (np.array([0, 2**64 - 1], np.uint64), {}, VolumeError, f"holds the label value {2**64 - 1}, but"),
        ([0, LARGE + 2], {"values": [0, LARGE + 1]}, VolumeError, f"holds the label value {LARGE + 2}, but"),
        (np.array([7], np.uint8), {"values": [-1, 256]}, VolumeError, "holds the label value 7, but the 2"),
        (np.array([False, True]), {"values": [0, 255]}, VolumeError, "holds the label value 1, but"),
        (
            np.arange(40),
            {},
            VolumeError,
            "holds 38 values .*; if they number objects, give instances='sparse'",
        ),
        ([0, np.nan], OTHERS, VolumeError, "holds nan, which is not a label"),
        ([0, 1], {"ignore_label": 1}, ConfigError, "ignore_label=1: is the value of class 1"),
    ],
)
def test_what_cannot_be(array, options, kind, message):
    with pytest.raises(kind, match=message):
        classes(array, 2, **options)


@pytest.mark.slow
def test_scores_leave_out_what_is_ignored():
    image = np.random.default_rng(0).random((8, 32, 32))
    image[:, :4] = 0  # so that no surface is cut off at what is ignored
    right = np.where(image > 0.5, 5, 9)
    wrong = np.where(np.arange(32)[:, None] < 3, 255, right)
    wrong[2:4, 10:20] = np.where(right[2:4, 10:20] == 5, 9, 5)

    def evaluate(labels, stress=False, **options):
        given = {"label_values": [0, 5], "other_labels": "background", "intensity": (0, 1), **options}
        return evenslice.evaluate(
            linear(0.0, 1.0, 0.0), image, labels, stress=stress, reading=Reading(**given)
        )

    assert evaluate(right).dice == 1
    counted = evaluate(wrong, stress=True, ignore_label=255).scores.to_dict()["confusion"]
    assert np.sum(counted) == 8 * 32 * 29
    assert counted[0][1] + counted[1][0] == 2 * 10 * 32
    again = evaluate(np.where((wrong != right) | (wrong == 255), 255, right), ignore_label=255)
    assert again.dice == 1
    assert again.scores.volumes[0].surface_dice[1] == 1
    assert evaluate(right, label_values=np.array([9, 5], np.uint8), other_labels="error").dice == 1
    with pytest.raises(VolumeError, match="holds the label value 9"):
        evaluate(right, other_labels="error")
    with pytest.raises(ConfigError, match="ignore_label: has no effect without labels"):
        evenslice.evaluate(linear(0.0, 1.0, 0.0), image, stress=True, reading=Reading(ignore_label=255))


def test_the_stress_of_an_audit_leaves_them_out():
    image = np.random.default_rng(0).random((12, 32, 32))
    labels = np.where(image > 0.5, 5, 9).astype(np.uint8)
    labels[:, :16] = 255

    def audit(image, **given):
        options = {"intensity": (0, 1), "max_windows": 8, "dtype": "float32", **given}
        return evenslice.audit(linear(0.0, 0.0, 1.0), image, **by_name(evenslice.audit, **options))

    given = {"labels": labels, "label_values": [9, 5], "ignore_label": 255}
    whole = audit(image[:, 16:], labels=labels[:, 16:], label_values=[9, 5])
    assert audit(image, **given).stress.intact == pytest.approx(whole.stress.intact, abs=0.02)
    with pytest.raises(ConfigError, match="ignore_label=255: the target 'labels' explains"):
        audit(image, target="labels", **given)
    with pytest.raises(ConfigError, match="ignore_label: has no effect without labels"):
        audit(image, ignore_label=255)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ignore_label": 5}, r"data.ignore_label: 5: is the value of class 1"),
        ({"plane": "w"}, r"data.plane: 'w': should be 'z', 'y' or 'x'"),
    ],
)
def test_a_configuration_is_checked(wrong, message):
    options = {"train": [tiny_training.PAIR], "label_values": [0, 5], **wrong}
    with pytest.raises(ConfigError, match=message):
        evenslice.train({"data": options}, "nowhere")


@pytest.mark.slow
def test_train_segment_and_evaluate_along_another_axis_with_labels_that_do_not_count(tmp_path, command):
    tiny_training.write_inputs(tmp_path)
    labels = np.load(tmp_path / "labels.npy") * 5
    labels[0], labels[1] = 255, 7
    np.save(tmp_path / "labels.npy", labels)
    quick = {"steps": 2, "validate_every": 2, "monitor_every": None, "crop": [16, 16], "stress": False}
    options = tiny_training.training_options(tmp_path, **quick)
    options["data"] |= {
        "plane": "x",
        "label_values": [0, 5],
        "other_labels": "background",
        "ignore_label": 255,
    }
    options["data"] |= {"train": [{**tiny_training.PAIR, "slices": [0, 30]}], "validation_fraction": 0}
    options["data"] |= {"test": [{**tiny_training.PAIR, "slices": [32, 48]}]}
    (tmp_path / "train.yaml").write_text(json.dumps(options))

    def run(*arguments):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else None

    assert np.sum(run("train", "train.yaml", "--out", "run", "--json")["confusion"]) == 16 * 23 * 48
    network = ["--run", "run", "--model", "tiny_networks:tiny", "--volume", "image.npy"]
    evaluate = ["evaluate", *network, "--labels", "labels.npy", "--no-surfaces", "--json"]
    document = run(*evaluate)
    assert np.sum(document["confusion"]) == 23 * 48 * 48
    run("segment", *network, "--out", "out.npy")
    answer = np.load(tmp_path / "out.npy")
    assert answer.shape == (24, 48, 48)
    assert set(np.unique(answer)) <= {0, 5}
    truth = np.where(labels[1:] == 5, 5, 0)
    hits, sizes = np.sum((answer[1:] == 5) & (truth == 5)), np.sum(answer[1:] == 5) + np.sum(truth == 5)
    assert document["dice"]["per_class"][1] == pytest.approx(2 * hits / sizes)
    assert run(*evaluate, "--plane", "z")["dice"] != document["dice"]
    done = command("evaluate", *network, "--stress", "--ignore-label", "255")
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "error: --ignore-label: has no effect without --labels; give both",
    )
    assert "--plane w: " in command("audit", *network, "--plane", "w").stderr
