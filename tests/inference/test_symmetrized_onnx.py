"""ONNX files that evenslice symmetrized: the mean over window and mirror, in any program that reads ONNX; and what is refused."""

import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphs import save
from torch import nn

import evenslice

COMMAND = ("symmetrize", "--model", "onnx", "--weights", "net.onnx", "--out", "fair.onnx")
WINDOWS = np.random.default_rng(3).random((3, 3, 32, 32), np.float32)


@pytest.fixture
def symmetrized(command, tmp_path):
    """Symmetrize a file; return the error that the command states, or the line that it ends with."""

    def symmetrized(path, out="fair.onnx"):
        done = command(*COMMAND[:3], "--weights", path, "--out", tmp_path / out, "--json")
        return json.loads(done.stdout)["mirror_error"] if done.returncode == 0 else done.stderr

    return symmetrized


def biased(path, dtype=np.float32, **changes):
    """A convolution that sees each slice otherwise."""
    kernel = np.array([-1.0, 2.0, 5.0], dtype).reshape(1, 3, 1, 1)
    return save(path, [helper.make_node("Conv", ["x", "k"], ["y"])], weights=[("k", kernel)], **changes)


def test_the_answer_is_the_mean_over_window_and_mirror(tmp_path, symmetrized):
    error = symmetrized(biased(tmp_path / "net.onnx"))
    fair = evenslice.load_onnx(tmp_path / "fair.onnx")
    expected = np.tensordot(WINDOWS, [2.0, 2.0, 2.0], ([1], [0]))[:, None]  # (-1 + 5) / 2 on both sides
    np.testing.assert_allclose(fair(WINDOWS), expected, rtol=1e-5)
    assert error < 1e-6
    assert (fair.slices, fair.batch, fair.outputs) == (3, None, ("y",))
    for count in (1, 2):
        assert len(fair(WINDOWS[:count])) == count


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (np.float16, 1),
        (np.float64, 1),
        (np.float16, 5000),
    ],  # the sum of the last overflows, its mean does not
)
def test_other_types_of_numbers(tmp_path, dtype, scale, symmetrized):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = [("k", scale * np.array([-1, 2, 5], dtype).reshape(1, 3, 1, 1))]
    nodes = [helper.make_node("Mul", ["x", "k"], ["m"]), helper.make_node("ReduceSum", ["m", "one"], ["y"])]
    path = save(tmp_path / "net.onnx", nodes, weights=[*weights, ("one", [1])], kind=kind, given=kind)
    assert symmetrized(path) < 1e-3
    found = evenslice.load_onnx(tmp_path / "fair.onnx")(WINDOWS)
    assert found.dtype == dtype
    np.testing.assert_allclose(found[:, 0], 2 * scale * WINDOWS.sum(1), rtol=5e-3)


def test_sizes_that_a_network_takes_are_found(tmp_path, symmetrized):
    shape = ("shape", np.array([0, 3, -1, 224, 224]))
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["parts"]),
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
        helper.make_node("ReduceSum", ["parts", "axes"], ["sum"], keepdims=0),
        helper.make_node("Reshape", ["sum", "plane"], ["whole"]),
        helper.make_node("Add", ["first", "whole"], ["y"]),
    ]
    weights = [shape, ("zero", [0]), ("one", [1]), ("axes", [1, 2]), ("plane", np.array([0, 1, 224, 224]))]
    path = save(tmp_path / "net.onnx", nodes, weights=weights)
    assert symmetrized(path) < 1e-6


@pytest.mark.parametrize("sides", [(100, "w"), ("h", 100), (100, 80)])
def test_sides_that_a_file_fixes_are_kept(tmp_path, sides, symmetrized):
    symmetrized(biased(tmp_path / "net.onnx", shape=("n", 3, *sides)))
    fair = evenslice.load_onnx(tmp_path / "fair.onnx")
    assert fair.sides == tuple(side if isinstance(side, int) else None for side in sides)
    windows = np.random.default_rng(0).random((2, 3, 100, 100 if 100 in sides[1:] else 80), np.float32)
    np.testing.assert_allclose(fair(windows), fair(windows[:, ::-1].copy()), rtol=1e-6)


def test_weights_that_are_inputs_too_as_in_old_files(tmp_path, symmetrized):
    model = onnx.load(biased(tmp_path / "net.onnx", opset=10))
    model.ir_version = 3
    (weight,) = model.graph.initializer
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    onnx.save(model, tmp_path / "net.onnx")
    symmetrized(tmp_path / "net.onnx")
    fair = evenslice.load_onnx(tmp_path / "fair.onnx")
    assert np.array_equal(fair(WINDOWS), fair(WINDOWS[:, ::-1]))


@pytest.mark.parametrize(("first", "second"), [("y", "z"), ("windows", "mirror"), ("shape", "graph/y")])
def test_several_outputs_that_others_use_and_graphs_inside_nodes(tmp_path, first, second, symmetrized):
    inner = [
        helper.make_graph(
            [helper.make_node(operator, [first, "x"], [f"{operator}-result"])],
            operator,
            [],
            [helper.make_tensor_value_info(f"{operator}-result", TensorProto.FLOAT, None)],
        )
        for operator in ("Mul", "Sub")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "k"], [first]),
        helper.make_node("If", ["always"], [second], then_branch=inner[0], else_branch=inner[1]),
    ]
    kernel = np.array([-1.0, 2.0, 5.0], np.float32).reshape(1, 3, 1, 1)
    path = save(
        tmp_path / "net.onnx", nodes, weights=[("k", kernel), ("always", True)], outputs=(first, second)
    )
    symmetrized(path)
    plain, fair = evenslice.load_onnx(path), evenslice.load_onnx(tmp_path / "fair.onnx")
    one, other, found = plain(WINDOWS), plain(WINDOWS[:, ::-1]), fair(WINDOWS)
    assert list(found) == [first, second]
    for name in found:
        np.testing.assert_allclose(found[name], (one[name] + other[name]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_exported_network_keeps_its_description(tmp_path, symmetrized):
    model = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    evenslice.neutralize(model, slices=5, mean=0.5, std=0.25, strategy="center")
    evenslice.export(model, tmp_path / "exported", to="onnx", reading=evenslice.Reading(step=2))
    path = tmp_path / "fair.onnx"
    symmetrized(tmp_path / "exported" / "network.onnx")
    given = evenslice.load_onnx(path)
    assert (given.slices, given.mean, given.std) == (5, (0.5,), (0.25,))
    stated = json.loads({item.key: item.value for item in onnx.load(path).metadata_props}["evenslice"])
    assert (stated["step"], stated["record"]["symmetrized"], stated["audits"]) == (2, [""], [])
    assert "is symmetrized already" in symmetrized(path, "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


def classes(path):
    return save(path, [helper.make_node("ArgMax", ["x"], ["y"], axis=1)], kind=TensorProto.INT64)


def dependent(path):
    """What one window gets depends on the others of its batch."""
    return save(
        path, [helper.make_node("CumSum", ["x", "axis"], ["y"])], weights=[("axis", np.array(0, np.int64))]
    )


def outside(path):
    model = onnx.load(biased(path))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def symmetric(path):
    """A network that evenslice made symmetric before it exported it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    evenslice.neutralize(model, strategy="twin", mean=0.5, std=0.25)
    evenslice.export(model, path.parent / "exported", to="onnx")
    return path.parent / "exported" / "network.onnx"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: biased(path, opset=9), "cannot be symmetrized: the new file"),
        (classes, r"returns classes: y of type tensor"),
        (symmetric, "is symmetrized already; use it as it is"),
        (dependent, "independent of the others in its batch"),
        (outside, "cannot be symmetrized: the new file"),
        (lambda path: path.write_bytes(b"\x08\x07junk") and path, "cannot be read as an ONNX network"),
    ],
)
def test_what_cannot_be_averaged_is_refused_and_nothing_written(tmp_path, write, message, symmetrized):
    path = write(tmp_path / "net.onnx")
    assert re.search(f"^error: .*{message}", symmetrized(path))
    assert not (tmp_path / "fair.onnx").exists()


def test_a_file_that_averages_wants_opposite_slices_scaled_alike(tmp_path, symmetrized):
    symmetrized(biased(tmp_path / "net.onnx"))
    evenslice.load_onnx(tmp_path / "fair.onnx", mean=0.4, std=[0.2, 0.3, 0.2])
    with pytest.raises(
        evenslice.ConfigError, match=r"mean=\[0.4, 0.5, 0.6\]: .* opposite slices need the same value"
    ):
        evenslice.load_onnx(tmp_path / "fair.onnx", mean=(0.4, 0.5, 0.6))
    evenslice.load_onnx(tmp_path / "net.onnx", mean=(0.4, 0.5, 0.6))


def test_the_command(tmp_path, command):
    biased(tmp_path / "net.onnx")
    assert command(*COMMAND).returncode == 0
    for more, expected in [
        ((), "fair.onnx: exists"),
        (("--force", "--at", "encoder"), "--at: an ONNX file is averaged at its output"),
        (("--force", "--slices", "5"), "--slices: an ONNX file is averaged at its output"),
        (("--force", "--out", "fair.safetensors"), "name it .onnx"),
        (("--force", "--out", "net.onnx"), "is the network itself; name another file"),
    ]:
        refused = command(*COMMAND, *more)
        assert (refused.returncode, expected in refused.stderr) == (2, True), refused.stderr
