"""Functions, which have no gradient, and networks in ONNX files."""

import json
import pickle
import threading

import numpy as np
import onnx
import pytest
import torch
from commands import run_command
from onnx import TensorProto, helper
from onnx_graphs import save
from torch import nn
from values import by_name

import evenslice
from evenslice import (
    ConfigError,
    ModelError,
    VolumeError,
    evaluate,
    load_onnx,
    open_segmenter,
    segment,
    symmetrize,
)


@pytest.fixture(scope="module")
def texture():
    return np.random.default_rng(0).random((24, 40, 40))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return network.requires_grad_(False)


def audit(function, volume, **options):
    return evenslice.audit(function, volume, **by_name(evenslice.audit, **{"max_windows": 8, **options}))


def as_function(network):
    return lambda windows: network(torch.from_numpy(windows)).numpy()


def squares(windows):
    """A regression that reads the outer slices, the last three times as much."""
    return (windows[:, 0] ** 2 + 3 * windows[:, 2] ** 2).mean(axis=(1, 2))


@pytest.mark.parametrize("method", ["", "occlusion"])
def test_a_function_is_asked_what_the_module_is_asked_but_for_gradients(texture, network, method):
    module = audit(network, texture, method="occlusion", device="cpu")
    function = audit(
        as_function(network), texture, **by_name(audit, **({"method": method} if method else {}))
    )
    names = ("reliance", "explained", "changed", "union", "mirror_error", *(["saliency"] if method else []))
    for name in names:
        expected, given = (getattr(found.measurements, name) for found in (module, function))
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(function.measurements.position, module.measurements.position)
    assert (function.run.method, function.run.use) == (method, "replacement")
    assert function.run.target == "predicted"
    assert np.isnan(function.saliency[0].estimate) == (not method)
    assert function.saliency[0].judged == bool(method)


def test_a_function_is_given_plain_arrays_in_0_to_1(texture):
    given = []

    def function(windows):
        given.append(windows)
        return squares(windows)

    found = audit(function, texture, slices=3, tile=(32, 16), batch=4)
    assert all(type(windows) is np.ndarray and windows.dtype == np.float32 for windows in given)
    assert all(windows.flags.c_contiguous and windows.shape[1:] == (3, 32, 16) for windows in given)
    assert max(len(windows) for windows in given) == 8  # four and their mirrors
    assert min(windows.min() for windows in given) >= 0
    assert max(windows.max() for windows in given) <= 1
    assert found.run.target == "sum"
    assert found.reliance[0].estimate > 0.3
    assert found.run.model["class"].endswith("function")


def readonly(array):
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "returned",
    [
        torch.from_numpy,
        lambda a: torch.from_numpy(a).double(),
        lambda a: a.astype(np.float16),
        lambda a: readonly(a[:, None]),
        lambda a: {"out": a, "other": a[:1]},
        lambda a: (a, None),
        lambda a: [{"boxes": np.zeros((1, 4)), "scores": value[None]} for value in a],
    ],
)
def test_whatever_a_function_returns_is_understood(texture, returned):
    expected = audit(squares, texture)
    found = audit(lambda windows: returned(squares(windows)), texture)
    assert found.reliance[0].estimate == pytest.approx(expected.reliance[0].estimate, abs=0.01)


def test_a_reduction_makes_the_outputs_of_a_function(texture):
    found = audit(
        lambda windows: {"no": 1, "depth": squares(windows)}, texture, outputs=lambda found: found["depth"]
    )
    assert found.run.outputs.endswith("<lambda>")
    assert found.reliance == audit(squares, texture).reliance


def fails(windows):
    raise KeyError("weights")


class Stated:
    slices, tile = 5, (16, 16)

    def __call__(self, windows):
        return windows.mean(axis=(1, 2, 3)) ** 2 + windows[:, 4].std(axis=(1, 2))


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (squares, {"method": "gradient"}, ConfigError, "only a torch.nn.Module has; use the method 'occlusion'"),
        (squares, {"device": "cpu"}, ConfigError, "device='cpu': has no effect"),
        (squares, {"target": "predicted"}, ModelError, "use the target 'sum'"),
        (Stated(), {"slices": 3}, ConfigError, "slices=3: Stated takes 5; leave slices out"),
        (Stated(), {"tile": (8, 8)}, ConfigError, "leave tile out"),
        ("network.onnx", {}, ModelError, "str is not a network; give a torch.nn.Module, or a function"),
        (fails, {}, ModelError, r"rejects windows of 3 slices of 32 x 32 \(KeyError: 'weights'"),
        (lambda _: np.array(["a"]), {}, ModelError, "returns an array of type <U1"),
        (lambda windows: windows.mean(), {}, ModelError, r"returns \(\) for a batch of \d+"),
        (lambda windows: squares(windows) * np.nan, {}, ModelError, "returns NaN"),
        (lambda windows: np.ones(len(windows)), {}, ModelError, "does not depend on its input"),
    ],
)  # fmt: skip
def test_what_does_not_do_is_refused(texture, function, options, error, message):
    with pytest.raises(error, match=message):
        audit(function, texture, **by_name(audit, **options))


def test_a_function_may_state_what_it_takes(texture):
    function = Stated()
    function.tile = [16, 16]
    found = audit(function, texture)
    assert (found.run.slices, found.run.tile) == (5, (16, 16))
    function.slices = 2**31 + 1
    with pytest.raises(VolumeError, match="needs 2147483649"):
        audit(function, texture)


@pytest.mark.slow
def test_a_cluster_finds_what_one_process_finds(texture, network):
    one, many = (audit(as_function(network), texture, workers=workers) for workers in (None, 1))
    np.testing.assert_allclose(one.measurements.reliance, many.measurements.reliance, rtol=1e-4)


def test_a_function_that_cannot_be_sent_says_so(texture):
    lock = threading.Lock()

    def locked(windows):
        with lock:
            return squares(windows)

    with pytest.raises(ConfigError, match="a function cannot be sent to workers"):
        audit(locked, texture, workers=1)
    with pytest.raises(ConfigError, match="a function cannot be sent to workers"):
        audit(squares, texture, outputs=lambda found: found if lock else None, workers=1)


# ONNX


def write_onnx(path, network, *, batch="batch", plane=("y", "x"), outputs=("out",), where=None):
    """Write a convolution, a ReLU and a convolution to an ONNX file; its first weights elsewhere if asked."""
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "2.weight", "2.bias"], ["out"]),
        helper.make_node("Neg", ["out"], ["negative"]),
    ]
    weights = [(name, tensor.numpy()) for name, tensor in network.state_dict().items()]
    shape = (batch, network[0].in_channels, *plane)
    save(path, nodes, weights=weights, outputs=outputs, shape=shape, opset=17)
    if where is not None:
        model = onnx.load(path)
        weight = model.graph.initializer[0]
        entry = weight.external_data.add()
        entry.key, entry.value = "location", where
        weight.data_location = TensorProto.EXTERNAL
        weight.ClearField("raw_data")
        path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory, network):
    return write_onnx(tmp_path_factory.mktemp("onnx") / "network.onnx", network)


def test_a_network_in_an_onnx_file_gets_the_figures_of_the_module(texture, network, file):
    expected = audit(network, texture, device="cpu")
    found = audit(load_onnx(file), texture)
    np.testing.assert_allclose(
        found.measurements.reliance, expected.measurements.reliance, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(found.measurements.mirror_error, expected.measurements.mirror_error, atol=1e-5)
    assert found.run.model["class"] == "network.onnx"


@pytest.mark.parametrize(("plane", "tile"), [((16, "x"), (16, 32)), (("y", 24), (32, 24))])
@pytest.mark.parametrize("change", [lambda function: function, symmetrize])
def test_a_fixed_side_is_kept_and_only_the_other_chosen(network, tmp_path, plane, tile, change):
    fixed = change(load_onnx(write_onnx(tmp_path / "side.onnx", network, plane=plane)))
    assert fixed.tile is None
    image = np.random.default_rng(0).random((6, 40, 40))
    labels = segment(fixed, image, tmp_path / "labels.npy")
    assert labels.shape == image.shape
    assert evaluate(fixed, image, np.zeros(image.shape, int), surfaces=False).dice >= 0
    found = audit(fixed, image, max_windows=2)
    assert found.run.tile == tile


def test_a_fixed_shape_is_stated_and_filled_up(texture, network, tmp_path):
    path = write_onnx(tmp_path / "fixed.onnx", network, batch=4, plane=(16, 24))
    fixed = load_onnx(path)
    assert (fixed.batch, fixed.slices, fixed.tile) == (4, 3, (16, 24))
    windows = np.random.default_rng(0).random((6, 3, 16, 24), dtype=np.float32)
    np.testing.assert_allclose(fixed(windows), network(torch.from_numpy(windows)).numpy(), atol=1e-6)
    found = audit(fixed, texture)
    assert found.run.tile == (16, 24)
    with pytest.raises(ConfigError, match="slices=5: fixed.onnx takes 3; leave slices out"):
        audit(fixed, texture, slices=5)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), ([0.1, 0.2, 0.3], [1, 2, 4])])
def test_a_network_in_a_file_travels_by_its_path_and_scales_slices(
    network, file, monkeypatch, tmp_path, mean, std
):
    monkeypatch.chdir(file.parent)
    windows = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
    sent = pickle.dumps(load_onnx("network.onnx", mean=mean, std=std))
    monkeypatch.chdir(tmp_path)
    assert len(sent) < 1000
    given = pickle.loads(sent)(windows)  # noqa: S301  # made above
    scaled = (windows - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    expected = network(torch.from_numpy(scaled.astype(np.float32)))
    np.testing.assert_allclose(given, expected.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def bad(tmp_path_factory, network):
    """A folder of files that will not do."""
    top = tmp_path_factory.mktemp("bad")
    (top / "secret.bin").write_bytes(network[0].weight.numpy().tobytes())
    folder = top / "files"
    folder.mkdir()
    (folder / "link.bin").symlink_to(top / "secret.bin")
    write_onnx(folder / "escapes.onnx", network, where="../secret.bin")
    write_onnx(folder / "absolute.onnx", network, where=str(top / "secret.bin"))
    write_onnx(folder / "linked.onnx", network, where="link.bin")
    write_onnx(folder / "lost.onnx", network, where="lost.bin")
    (folder / "text.onnx").write_text("no network")
    (folder / "empty.onnx").touch()
    save(folder / "flat.onnx", [helper.make_node("Relu", ["x"], ["y"])], shape=(1, 3, 64))
    kinds = {"given": TensorProto.UINT8, "kind": TensorProto.UINT8}
    save(folder / "bytes.onnx", [helper.make_node("Identity", ["x"], ["y"])], **kinds)
    save(folder / "two.onnx", [helper.make_node("Add", ["x", "z"], ["y"])], inputs=("x", "z"))
    save(folder / "custom.onnx", [helper.make_node("Evil", ["x"], ["y"], domain="own.ops")])
    return folder


ONNX_ERRORS = {
    "escapes.onnx": "escapes model directory",
    "absolute.onnx": "Absolute path not allowed",
    "linked.onnx": "escapes model directory",
    "lost.onnx": "does not exist",
    "text.onnx": "cannot be read as an ONNX network",
    "empty.onnx": "cannot be read as an ONNX network",
    "flat.onnx": r"inputs are x tensor\(float\) \[1, 3, 64\]; it must have one of floating-point numbers",
    "bytes.onnx": r"tensor\(uint8\)",
    "two.onnx": r"inputs are x tensor.*, z tensor",
    "custom.onnx": "own.ops",
    "missing.onnx": "no such file",
}


@pytest.mark.parametrize("name", ONNX_ERRORS)
def test_a_file_that_does_not_do_is_refused(bad, name):
    with pytest.raises(ModelError, match=ONNX_ERRORS[name]) as caught:
        load_onnx(bad / name)
    assert str(bad / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0}, "above 0"),
        ({"std": -1}, "above 0"),
        ({"mean": float("nan")}, "finite"),
        ({"mean": [123.7, 116.3, 103.5]}, "divide the mean and std of 8-bit values by 255"),
        ({"std": 255}, "divide the mean and std of 8-bit values by 255"),
        ({"mean": [0.1, 0.2]}, "mean has 2 values"),
        ({"providers": ["ToasterExecutionProvider"]}, "provider 'ToasterExecutionProvider'"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_file_is_refused(file, options, message):
    with pytest.raises(ConfigError, match=message):
        load_onnx(file, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "center"}, "strategy: an ONNX network states its own"),
        ({"weights": None}, "weights: name the ONNX file"),
        ({"reading": {"steps": 2}}, "reading='steps': .*step"),
    ],
)
def test_an_onnx_file_is_opened_with_options_that_it_has(file, options, message):
    with pytest.raises(ConfigError, match=message):
        open_segmenter("onnx", **{"weights": str(file)} | options)


class Full:
    """A session whose device has memory for some windows at once."""

    def __init__(self, session, most):
        self.session, self.most = session, most

    def run(self, names, given):
        if len(*given.values()) > self.most:
            raise Exception(  # of which those of onnxruntime are made
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 99"
            )
        return self.session.run(names, given)


def test_windows_that_do_not_fit_into_the_memory_of_onnxruntime_are_fewer_at_once(texture, file):
    expected, network = audit(load_onnx(file), texture), load_onnx(file)
    network._session = Full(network._session, 2)  # a window and its mirror
    found = audit(network, texture)
    np.testing.assert_allclose(found.measurements.reliance, expected.measurements.reliance, rtol=1e-4)
    network._session.most = 0
    with pytest.raises(ModelError, match="memory of the device has run out: a window of 3 slices of .* tile"):
        audit(network, texture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texture, network):
    folder = tmp_path_factory.mktemp("commands")
    np.save(folder / "volume.npy", texture)
    write_onnx(folder / "network.onnx", network)
    write_onnx(folder / "two.onnx", network, outputs=("negative", "out"))
    (folder / "reducing.py").write_text(
        "def negative(returned):\n    return returned['negative']\nnumber = 3\n"
    )
    return folder


VOLUME = ("--volume", "volume.npy", "--max-windows", "8")
ONNX = ["audit", "--model", "onnx", "--weights", "network.onnx", *VOLUME]
SCALED = [*ONNX, "--mean", "0.5", "--std", "0.25"]


@pytest.mark.slow
def test_the_command_audits_an_onnx_file_to_a_report(folder, texture):
    done = run_command(*SCALED, "--out", "found", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads((folder / "found" / "audit.json").read_text())
    assert (document["name"], document["method"], document["strategy"]) == ("audit", "", None)
    assert document["scaling"] == {"mean": [0.5], "std": [0.25], "source": "function"}
    assert document["model"]["weights"] == "network.onnx"
    assert document["model"]["origin"].startswith("sha256:")
    expected = audit(load_onnx(folder / "network.onnx", mean=0.5, std=0.25), texture)
    assert document["reliance"][0]["estimate"] == pytest.approx(expected.reliance[0].estimate, abs=1e-6)
    assert (folder / "found" / "report.html").is_file()


@pytest.mark.slow
def test_the_results_of_a_symmetrized_file_are_not_taken_for_those_of_the_file(folder):
    done = run_command(*SCALED, "--symmetrize", "output", "--out", "fair", cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads((folder / "fair" / "audit.json").read_text())
    assert (document["name"], document["model"]["symmetrized"]) == ("symmetrized", "output")
    assert "network.onnx, symmetrized" in (folder / "fair" / "report.html").read_text()


@pytest.mark.slow
def test_the_command_takes_a_reduction_and_workers(folder):
    arguments = [*ONNX, "--json", "--outputs", "reducing:negative", "--workers", "1"]
    arguments[4] = "two.onnx"
    done = run_command(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"] == "reducing:negative"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "uniform"], "--strategy: an ONNX network cannot be changed"),
        (["--tie", "mirror"], "--tie: an ONNX network cannot be changed"),
        (["--slices", "5"], "--slices 5: network.onnx takes 3; leave --slices out"),
        (["--method", "gradient"], "use the method 'occlusion'"),
        (["--device", "cpu"], "--device cpu: has no effect"),
        (["--weights", "none"], "none: no such file"),
        (["--outputs", "reducing"], "reducing: is module, not a function; write package.module:function"),
        (["--outputs", "reducing:negativ"], "did you mean 'negative'"),
        (["--outputs", "missing:function"], "missing:function: cannot be imported (ModuleNotFoundError"),
        (["--target", "labels"], "give them as --labels"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder, monkeypatch, command, arguments, message):
    monkeypatch.chdir(folder)
    done = command(*ONNX, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
