"""Arguments of a wrong kind: one clear error of evenslice each, and numbers of NumPy are numbers."""

import json

import numpy as np
import pytest
from torch import nn
from values import by_name

import evenslice
from evenslice import ConfigError, EvensliceError, ModelError, Reading, Record, TrainConfig

VOLUME = np.random.default_rng(0).random((12, 32, 32), np.float32)
LABELS = (VOLUME > 0.5).astype(np.uint8)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def audit(**options):
    options = {"max_windows": 8, "device": "cpu", **options}
    return evenslice.audit(network(), VOLUME, **by_name(evenslice.audit, **options))


def segment(out, **options):
    return evenslice.segment(network(), VOLUME, out, **by_name(evenslice.segment, **options))


def evaluate(**reading):
    return evenslice.evaluate(network(), VOLUME, LABELS, reading=Reading(**reading))


def saved(out):
    model = network()
    evenslice.neutralize(model, mean=0.0, std=1.0)
    evenslice.save_network(model, out)


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    whole, real = np.int64(3), np.float32(0.05)
    found = audit(slices=whole, step=np.int64(1), seed=whole, precision=real, batch=whole, tolerance=real)
    document = json.loads(found.to_json())
    assert (document["slices"], document["seed"], document["batch"]) == (3, 3, 3)
    assert document["tolerance"] == pytest.approx(0.05)
    assert segment(tmp_path / "labels.tif", slices=whole, step=np.int64(1)).shape == VOLUME.shape


def test_results_can_be_compared():
    one, other = audit(), audit()
    assert one in [other, one]
    assert len({one, other}) == 2


USES = {
    "to_html": lambda path: audit().to_html(path),
    "save": lambda path: audit().save(path),
    "Audit.load": evenslice.Audit.load,
    "Survey.load": evenslice.Survey.load,
    "load_audits": evenslice.load_audits,
    "load_onnx": evenslice.load_onnx,
    "load_network": evenslice.load_network,
    "open_volume": evenslice.open_volume,
    "save_network": saved,
    "segment": lambda path: segment(5 if path is None else path),
    "export": lambda path: evenslice.export(network(), path, to="onnx"),
    "load_config": lambda path: evenslice.load_config(path, TrainConfig),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", [None, 5, b"name", "a\x00b", "x" * 300, "a\ud800"], ids=ascii)
@pytest.mark.parametrize("use", USES)
def test_what_is_no_path_is_one_clear_error(use, path):
    with pytest.raises(EvensliceError):
        USES[use](path)


@pytest.mark.parametrize("path", [".", "", "/", "audits"])
def test_an_audit_is_named_by_its_file(path):
    with pytest.raises(EvensliceError):
        audit().save(path)
    with pytest.raises(ConfigError):
        evenslice.Audit.load(path)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: segment("x.tif", step=object()), "step: "),
        (lambda: evenslice.load_network("timm:test_resnet", "none", seed=1.5), "seed: "),
        (lambda: audit(dtype=["float32"]), "'float32'"),
        (lambda: audit(stress="no"), "stress='no': must be True or False"),
        (lambda: evenslice.survey(None), "no network given"),
        (lambda: evenslice.survey([network()]), "are surveyed by name"),
        (lambda: evaluate(label_values={1, 8}), "give a value for each class"),
        (lambda: evaluate(other_labels=["error"]), "known: background, error"),
        (lambda: evenslice.SliceWindows(VOLUME, crop=np.array(3)), "give two whole numbers"),
        (lambda: segment("x.tif", scratch=""), "the path is empty"),
        (lambda: evenslice.neutralize(network(), tie=np.zeros(2)), "omit it to leave the slices free"),
    ],
)
def test_options_of_a_wrong_kind_are_named(use, message):
    with pytest.raises(ConfigError) as raised:
        use()
    assert message in str(raised.value)


@pytest.mark.parametrize("change", [evenslice.neutralize, evenslice.symmetrize])
@pytest.mark.parametrize(
    "model", [network().to("meta"), nn.Sequential(nn.LazyConv2d(4, 3))], ids=["meta", "lazy"]
)
def test_a_network_without_values_is_refused(change, model):
    with pytest.raises(ModelError, match=r"has parameters without values \('0.weight'\)"):
        change(model)


@pytest.mark.parametrize(
    "changes", [{"stems": "conv1"}, {"symmetrized": "a"}, {"mirror_error": float("nan")}]
)
def test_a_record_of_wrong_kinds_is_damaged(changes):
    record = evenslice.neutralize(network(), mean=0.0, std=1.0)
    with pytest.raises(ModelError, match="not the record"):
        Record.from_dict(record.to_dict() | changes)
