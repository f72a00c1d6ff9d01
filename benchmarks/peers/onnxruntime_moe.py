"""ONNX Runtime's com.microsoft.MoE node on the CPU."""

from __future__ import annotations

import sys

import numpy as np
from onnx_node import SWIGLU, Attributes, Constants, serve_node
from protocol import Work


def main() -> None:
    """Run forward in float32; the node has no backward."""
    work = Work.of(sys.argv[1:])
    shape = work.shape
    constants: Constants = {}
    attributes: Attributes = {"activation_type": "gelu"}
    if shape.kind == "swiglu":
        halves = [work.load("experts.gate.weight"), work.load("experts.up.weight")]  # [E,I,H] each
        constants["up"] = np.stack(halves, axis=2).reshape(shape.experts, 2 * shape.inner, shape.hidden)
        constants["down"] = work.load("experts.down.weight")
        inputs, attributes = ["up", "", "down"], SWIGLU
    else:
        for name in ("up", "down"):
            constants[name] = work.load(f"experts.{name}.weight")
            constants[f"{name}_bias"] = work.load(f"experts.{name}.bias")
        inputs = ["up", "up_bias", "down", "down_bias"]
    serve_node(work, "MoE", inputs, constants, attributes)


main()
