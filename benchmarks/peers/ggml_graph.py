"""The graph that llama.cpp builds of a MoE layer, computed by ggml: mul_mat_id for each of its matrices.

python ggml_graph.py LIBGGML and then what protocol.py says.
"""

from __future__ import annotations

import ctypes
import sys
from itertools import cycle
from typing import Any

import numpy as np
from protocol import Array, Work, serve

Tensor = ctypes.c_void_p
F32 = 0
# Of enum ggml_type, by how libmoe packs the experts' weights; ggml makes integers of tokens by itself.
TYPES = {
    "f32": F32,
    "bf16": 30,
    "int8_a8": 8,
    "int4_a8": 2,
    "q4_k_a8": 12,
    "q6_k_a8": 14,
    "iq4_nl_a8": 20,
    "mxfp4_a8": 39,
}
ROOM = 1 << 20  # bytes for the descriptions of tensors, far more than a layer has


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """The library, and the context whose tensors are being described; ggml names sizes in reverse order."""

    def __init__(self, path: str, threads: int) -> None:
        self.library = ctypes.CDLL(path)
        self.backend = self.call("backend_cpu_init")
        self.library.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self.begin()

    def call(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Return a function's pointer.  Integers go as 64 bits, which serves where ggml wants fewer."""
        function = getattr(self.library, f"ggml_{name}")
        function.restype = ctypes.c_void_p
        whole = (ctypes.c_int64(value) if isinstance(value, int) else value for value in arguments)
        pointer = ctypes.c_void_p(function(*whole))
        if not pointer:
            raise RuntimeError(f"ggml_{name} gave nothing")
        return pointer

    def begin(self) -> None:
        """Describe tensors in a new context, without memory for their values."""
        self.context = self.call("init", InitParams(ROOM, None, True))

    def op(self, name: str, *arguments: Any) -> Tensor:
        """Return a new tensor of the context."""
        return self.call(name, self.context, *arguments)

    def constants(self, arrays: dict[str, Array], packed: list[str], kind: int) -> dict[str, Tensor]:
        """Return tensors that hold the arrays, those named in `packed` as that type."""
        result = {}
        for name, array in arrays.items():
            sizes = (ctypes.c_int64 * array.ndim)(*reversed(array.shape))
            dtype = kind if name in packed else F32
            result[name] = self.op("new_tensor", dtype, array.ndim, sizes)
        self.call("backend_alloc_ctx_tensors", self.context, self.backend)
        for name, tensor in result.items():
            array, to = arrays[name], self.call("get_data", tensor)
            if name in packed and kind != F32:
                rows = (ctypes.c_int64(0), ctypes.c_int64(array.size // array.shape[-1]))
                self.library.ggml_quantize_chunk(
                    kind, array.ctypes, to, *rows, ctypes.c_int64(array.shape[-1]), None
                )
            else:
                ctypes.memmove(to, array.ctypes.data, array.nbytes)
        return result

    def graph(self, result: Tensor) -> ctypes.c_void_p:
        """Return the graph that ends in `result`, with memory for what is in between."""
        self.library.ggml_set_output(result)
        graph = self.op("new_graph")
        self.library.ggml_build_forward_expand(graph, result)
        allocator = self.call("gallocr_new", self.call("backend_cpu_buffer_type"))
        self.library.ggml_gallocr_alloc_graph.restype = ctypes.c_bool
        if not self.library.ggml_gallocr_alloc_graph(allocator, graph):
            raise MemoryError("ggml_gallocr_alloc_graph failed")
        return graph


def main() -> None:
    """Run forward, the experts' weights in one of the types; ggml rounds what they multiply likewise."""
    work = Work.of(sys.argv[2:])
    ggml = Ggml(sys.argv[1], work.threads)
    gated = work.shape.kind == "swiglu"
    matrices = [f"experts.{name}.weight" for name in (["gate", "up", "down"] if gated else ["up", "down"])]
    others = ["x", "router.weight", "router.bias"]
    others += [] if gated else ["experts.up.bias", "experts.down.bias"]
    arrays = {name: work.load(name) for name in matrices + others}
    constants = ggml.constants(arrays, matrices, TYPES[work.dtype])
    del arrays
    ggml.begin()
    result = layer(ggml, work, constants)
    graph = ggml.graph(result)
    memory = ctypes.cast(ggml.call("get_data", result), ctypes.POINTER(ctypes.c_float))
    y = np.ctypeslib.as_array(memory, (work.shape.tokens, work.shape.hidden))

    inputs, place = cycle(work.inputs()), ggml.call("get_data", constants["x"])

    def run() -> tuple[Array, Array | None]:
        x = next(inputs)
        ctypes.memmove(place, x.ctypes.data, x.nbytes)
        if ggml.library.ggml_backend_graph_compute(ggml.backend, graph) != 0:
            raise RuntimeError("ggml_backend_graph_compute failed")
        return y, None

    ggml.library.ggml_version.restype = ctypes.c_char_p
    serve(work, f"ggml {ggml.library.ggml_version().decode()}", run)


def layer(ggml: Ggml, work: Work, constants: dict[str, Tensor]) -> Tensor:
    """Return the graph's y [T,H]."""
    op, shape, x = ggml.op, work.shape, constants["x"]
    tokens, hidden, experts, top_k = shape.tokens, shape.hidden, shape.experts, shape.top_k

    def linear(name: str, inputs: Tensor) -> Tensor:
        y = op("mul_mat_id", constants[f"experts.{name}.weight"], inputs, chosen)
        bias = constants.get(f"experts.{name}.bias")
        return op("add_id", y, bias, chosen) if bias else y

    logits = op("add", op("mul_mat", constants["router.weight"], x), constants["router.bias"])
    scores = op("soft_max", logits)  # [T,E]
    chosen = op("argsort_top_k", scores, top_k)  # [T,K]
    weights = op("get_rows", op("reshape_3d", scores, 1, experts, tokens), chosen)  # [T,K,1]
    weights = op("reshape_2d", weights, top_k, tokens)
    weights = op("reshape_3d", op("div", weights, op("sum_rows", weights)), 1, top_k, tokens)
    inputs = op("reshape_3d", x, hidden, 1, tokens)
    inner = linear("up", inputs)  # [T,K,I]
    if shape.kind == "swiglu":
        inner = op("swiglu_split", linear("gate", inputs), inner)
    else:
        inner = op("gelu_erf", inner)
    outputs = op("mul", linear("down", inner), weights)  # [T,K,H]
    row = 4 * hidden
    slots = [op("view_2d", outputs, hidden, tokens, row * top_k, row * k) for k in range(top_k)]
    y = slots[0]
    for slot in slots[1:]:
        y = op("add", y, slot)
    return y


main()
