"""ONNX Runtime's com.microsoft.MoE node on the CPU, behind the product that gives it the router's logits."""
# Types are checked where ONNX need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from protocol import Array, Work, serve


def main() -> None:
    """Run forward in float32; the node has no backward."""
    work = Work.of(sys.argv[1:])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    session = onnxruntime.InferenceSession(model(work), options, providers=["CPUExecutionProvider"])
    x = work.load("x")

    def run() -> tuple[Array, Array | None]:
        (y,) = session.run(None, {"x": x})
        return y, None

    serve(work, f"onnxruntime {onnxruntime.__version__}", run)


def model(work: Work) -> bytes:
    """Return the graph: logits = x W_r^T + b_r, y = MoE(x, logits)."""
    shape = work.shape
    constants = {"router.weight": work.load("router.weight"), "router.bias": work.load("router.bias")}
    if shape.kind == "swiglu":
        halves = [work.load("experts.gate.weight"), work.load("experts.up.weight")]  # [E,I,H] each
        # One matrix whose rows alternate: gate 0, up 0, gate 1, ...
        constants["up"] = np.stack(halves, axis=2).reshape(shape.experts, 2 * shape.inner, shape.hidden)
        constants["down"] = work.load("experts.down.weight")
        inputs = ["x", "logits", "up", "", "down"]
        activation: dict[str, str | int | float] = {"activation_type": "swiglu", "swiglu_fusion": 1}
        activation |= {"activation_alpha": 1.0, "activation_beta": 0.0}  # silu(gate) * up
    else:
        for name in ("up", "down"):
            constants[name] = work.load(f"experts.{name}.weight")
            constants[f"{name}_bias"] = work.load(f"experts.{name}.bias")
        inputs = ["x", "logits", "up", "up_bias", "down", "down_bias"]
        activation = {"activation_type": "gelu"}
    routing = {"k": shape.top_k, "normalize_routing_weights": 1}
    nodes = [
        helper.make_node("Gemm", ["x", "router.weight", "router.bias"], ["logits"], transB=1),
        helper.make_node("MoE", inputs, ["y"], domain="com.microsoft", **routing, **activation),
    ]
    size = [shape.tokens, shape.hidden]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name in ("x", "y")]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "moe", ends[:1], ends[1:], weights)
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    result: bytes = helper.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()
    return result


main()
