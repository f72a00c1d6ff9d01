"""What the peers share that are one node of ONNX Runtime, behind the product that gives the logits."""
# Types are checked where ONNX need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from itertools import cycle
from typing import Any

import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from protocol import Array, Work, serve

Constants = dict[str, Any]  # arrays of numbers
Attributes = dict[str, str | int | float]

SWIGLU: Attributes = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,  # one matrix whose rows alternate: gate 0, up 0, gate 1, ...
    "activation_alpha": 1.0,
    "activation_beta": 0.0,  # silu(gate) * up
}


def serve_node(
    work: Work, name: str, inputs: list[str], constants: Constants, attributes: Attributes
) -> None:
    """Answer and run: logits = x W_r^T + b_r, y = NAME(x, logits, inputs), which are names of constants."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    model = graph(work, name, inputs, constants, attributes)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    tokens = cycle(work.inputs())

    def run() -> tuple[Array, Array | None]:
        (y,) = session.run(None, {"x": next(tokens)})
        return y, None

    serve(work, f"onnxruntime {onnxruntime.__version__}", run)


def graph(work: Work, name: str, inputs: list[str], constants: Constants, attributes: Attributes) -> bytes:
    """Return the graph."""
    shape = work.shape
    constants |= {"router.weight": work.load("router.weight"), "router.bias": work.load("router.bias")}
    attributes = attributes | {"k": shape.top_k, "normalize_routing_weights": 1}
    nodes = [
        helper.make_node("Gemm", ["x", "router.weight", "router.bias"], ["logits"], transB=1),
        helper.make_node(name, ["x", "logits", *inputs], ["y"], domain="com.microsoft", **attributes),
    ]
    size = [shape.tokens, shape.hidden]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, size) for end in ("x", "y")]
    weights = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    moe = helper.make_graph(nodes, "moe", ends[:1], ends[1:], weights)
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    result: bytes = helper.make_model(moe, opset_imports=versions, ir_version=9).SerializeToString()
    return result
