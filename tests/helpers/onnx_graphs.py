"""Networks in ONNX files, written by hand: no exporter can change under the tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(
    path,
    nodes,
    *,
    weights=(),
    inputs=("x",),
    outputs=("y",),
    kind=TensorProto.FLOAT,
    given=TensorProto.FLOAT,
    shape=("n", 3, "h", "w"),
    opset=13,
):
    """Write a graph whose inputs have the type ``given`` and a shape, and whose outputs have the type ``kind``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, given, shape) for name in inputs],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path
