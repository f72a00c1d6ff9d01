"""Experts by call: the same experts in many layouts, computed by the library, by a layer, and in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe
from arrays import normal
from comparison import assert_same_bits
from oracle.experts import expert, expert_backward, weight_backward
from oracle.settings import Group, Settings

Arrays = dict[str, NDArray[Any]]
TYPES: dict[str, Any] = {"f32": np.float32, "bf16": np.uint16, "f16": np.float16}
LAYOUTS = [
    "apart",
    "fused",
    "transposed",
    "interleaved",
    "interleaved rows",
    "gaps",
    "listed",
    "listed and fused",
    "listed and transposed",
]
KINDS: dict[str, dict[str, Any]] = {
    "swiglu": {"kind": "gated", "activation": "silu"},
    "gpt-oss": {
        "kind": "gated",
        "activation": "silu",
        "bias": True,
        "limits": {"glu_limit": 0.7, "glu_alpha": 1.702, "glu_offset": 1.0},
    },
    "relu2, no gate": {"kind": "mlp", "activation": "relu2"},
    "gelu with biases": {"kind": "mlp", "activation": "gelu_tanh", "bias": True},
    "linear": {"kind": "linear", "activation": None, "bias": True},
}


@dataclass
class Case:
    """Some experts, and what a call brings; ``values`` are float32, matrices rounded to ``dtype``."""

    kind: str = "gated"
    activation: str | None = "silu"
    bias: bool = False
    limits: dict[str, Any] = field(default_factory=dict)
    weight_on_input: bool = False
    dtype: str = "f32"
    E: int = 5
    H: int = 37
    I: int = 45  # noqa: E741
    T: int = 40
    K: int = 2

    def __post_init__(self) -> None:
        inner = self.H if self.kind == "linear" else self.I
        shapes: dict[str, tuple[int, ...]] = {"down": (self.E, self.H, inner)}
        if self.kind != "linear":
            shapes["up"] = (self.E, inner, self.H)
        if self.kind == "gated":
            shapes["gate"] = (self.E, inner, self.H)
        if self.bias:
            shapes |= {f"{name}_bias": shape[:2] for name, shape in shapes.items()}
        self.values: Arrays = {}
        for seed, (name, shape) in enumerate(shapes.items()):
            self.values[name] = normal(*shape, seed=seed) * np.float32(shape[-1] ** -0.5)
        for name in ("gate", "up", "down"):
            if name in self.values:
                self.values[name] = floats(stored(self.values[name], self.dtype), self.dtype)
        self.x, self.dy = normal(self.T, self.H, seed=7), normal(self.T, self.H, seed=8)
        random = np.random.default_rng(9)
        # The last expert has no token; some choices are none, in every way there is.
        self.indices = random.integers(0, max(self.E - 1, 1), (self.T, self.K))
        nobody = random.random(self.indices.shape) < 0.15
        self.indices[nobody] = random.choice([-1, self.E, self.E + 7, 2**40, -(2**40)], nobody.sum())
        self.weights = random.random(self.indices.shape, dtype=np.float32)

    @property
    def options(self) -> dict[str, Any]:
        """Return what the functions are told about the experts."""
        return {"activation": self.activation, "weight_on_input": self.weight_on_input, **self.limits}

    def place(self, layout: str, fill: Arrays | float, dtypes: dict[str, str] | None = None) -> Placed:
        """Return memory in a layout, with these values in it, or with one number."""
        dtypes = {name: self.dtype if name in ("gate", "up", "down") else "f32" for name in self.values} | (
            dtypes or {}
        )
        placed = Placed(self, layout, dtypes)
        for name, view in placed.views.items():
            value = fill[name] if isinstance(fill, dict) else np.full(view.shape, fill, np.float32)
            view[...] = stored(value, dtypes[name])
        return placed

    def weights_in(self, layout: str = "apart", **dtypes: str) -> libmoe.ExpertWeights:
        """Return the experts in a layout."""
        return self.place(layout, self.values, dtypes).weights

    # Three ways to the same numbers.

    def by_call(
        self, layout: str = "apart", *, saves: bool = True, context: libmoe.Context | None = None
    ) -> dict[str, NDArray[Any]]:
        """Everything that the functions make of it."""
        weights = self.weights_in(layout)
        call = (self.x, self.indices, self.weights, weights)
        out = libmoe.experts_forward(*call, saved=saves, rows=True, context=context, **self.options)
        gradients = self.place(layout, np.nan, dict.fromkeys(self.values, "f32"))
        dx, dw = libmoe.experts_backward(
            self.dy,
            *call,
            saved=out.saved,
            gradients=gradients.weights,
            overwrite=True,
            context=context,
            **self.options,
        )
        return {"y": out.y, "rows": out.rows, "dx": dx, "dw": dw} | gradients.floats()

    def by_layer(self, context: libmoe.Context | None = None) -> dict[str, NDArray[Any]]:
        """The same of a layer that is given its choices."""
        options: dict[str, Any] = {"activation": self.activation} if self.activation else {}
        kind: Any = self.kind
        dtype: Any = self.dtype
        layer = libmoe.Layer(
            self.H,
            0 if self.kind == "linear" else self.I,
            n_experts=self.E,
            top_k=self.K,
            router="external",
            expert_kind=kind,
            expert_bias=self.bias,
            weight_dtype=dtype,
            weight_on_input=self.weight_on_input,
            context=context,
            **options,
            **self.limits,
        )
        names = {
            name: f"experts.{name.removesuffix('_bias')}.{'bias' if 'bias' in name else 'weight'}"
            for name in self.values
        }
        if self.kind == "linear":
            names = {name: each.replace("down.", "") for name, each in names.items()}
        for name, value in self.values.items():
            layer.parameters[names[name]].data[...] = stored(value, "f32" if "bias" in name else self.dtype)
        tape = layer.tape()
        y = layer.forward(self.x, expert_indices=self.known, expert_weights=self.weights, tape=tape).y
        dw = np.empty_like(self.weights)
        dx = layer.backward(tape, self.dy, d_expert_weights=dw)
        assert dx is not None
        gradients = {name: layer.parameters[each].grad.copy() for name, each in names.items()}
        return {"y": y, "dx": dx, "dw": dw, **gradients}

    @property
    def known(self) -> NDArray[np.int32]:
        """Return the choices with -1 for none."""
        ours = (self.indices >= 0) & (self.indices < self.E)
        return np.where(ours, self.indices, -1).astype(np.int32)

    def in_float64(self) -> dict[str, NDArray[np.float64]]:
        """The same of the oracle, expert by expert."""
        settings = Settings(top_k=self.K, weight_dtype="bf16" if self.dtype == "bf16" else "f32")
        group = Group(self.E, activation=self.activation or "gelu", **self.limits)
        values = {
            f"{name.removesuffix('_bias')}.{'bias' if 'bias' in name else 'weight'}": value.astype(np.float64)
            for name, value in self.values.items()
        }
        sums = {name: np.zeros_like(value) for name, value in values.items()}
        x, dy, w = (each.astype(np.float64) for each in (self.x, self.dy, self.weights))
        y, dx, dw = np.zeros_like(x), np.zeros_like(x), np.zeros_like(w)
        rows = np.zeros((self.T, self.K, self.H))
        for e in range(self.E):
            tokens, slots = np.nonzero(self.known == e)
            own = {name: value[e] for name, value in values.items()}
            into = {name: value[e] for name, value in sums.items()}
            routed = w[tokens, slots][:, None]
            seen = routed * x[tokens] if self.weight_on_input else x[tokens]
            made = expert(settings, group, own, seen, 1.0)
            factor = np.ones_like(routed) if self.weight_on_input else routed
            rows[tokens, slots] = made.output
            np.add.at(y, tokens, factor * made.output)
            d_seen = expert_backward(settings, group, own, into, made, factor, dy[tokens])
            if self.weight_on_input:
                dw[tokens, slots] = (d_seen * x[tokens]).sum(axis=1)
                d_seen = routed * d_seen
            else:
                dw[tokens, slots] = weight_backward(settings, own, made, dy[tokens])
            np.add.at(dx, tokens, d_seen)
        names = {f"{n.partition('.')[0]}{'_bias' if 'bias' in n else ''}": v for n, v in sums.items()}
        return {"y": y, "rows": rows, "dx": dx, "dw": dw, **names}


class Placed:
    """Memory for all parts of a case's experts, and views of each part [E, outputs, inputs] in it."""

    def __init__(self, case: Case, layout: str, dtypes: dict[str, str]) -> None:
        self.dtypes = dtypes
        self.views: Arrays = {}
        self.arguments: dict[str, Any] = {}
        shapes = {name: value.shape for name, value in case.values.items()}
        pairs = [("gate", "up"), ("gate_bias", "up_bias")] if "gate" in shapes else []
        if "fused" in layout or layout in (
            "transposed",
            "interleaved",
            "interleaved rows",
            "listed and transposed",
        ):
            for gate, up in pairs:
                if gate in shapes and dtypes[gate] == dtypes[up]:
                    shape = shapes.pop(gate)
                    shapes.pop(up)
                    both = self._memory((shape[0], 2 * shape[1], *shape[2:]), layout, dtypes[gate])
                    name = f"gate_up{gate[4:]}"
                    self._give(name, both, layout)
                    in_turn = "interleaved" in layout
                    self.views[gate] = both[:, ::2] if in_turn else both[:, : shape[1]]
                    self.views[up] = both[:, 1::2] if in_turn else both[:, shape[1] :]
        for name, shape in shapes.items():
            self.views[name] = self._memory(shape, layout, dtypes[name])
            self._give(name, self.views[name], layout)
        options: dict[str, Any] = {"transposed": _is_turned(layout), "interleaved": "interleaved" in layout}
        self.weights = libmoe.ExpertWeights(**self.arguments, **options)

    def _memory(self, shape: tuple[int, ...], layout: str, dtype: str) -> NDArray[Any]:
        kind = TYPES[dtype]
        if layout == "gaps":
            wide = np.zeros((shape[0] + 1, *(2 * n + 3 for n in shape[1:])), kind)
            view = wide[1:, 1 : 1 + shape[1]] if len(shape) == 3 else wide[1:, 1 : 1 + 2 * shape[1] : 2]
            return view[..., 2 : 2 + 2 * shape[2] : 2] if len(shape) == 3 else view
        if _is_turned(layout) and len(shape) == 3:
            return np.swapaxes(np.zeros((shape[0], shape[2], shape[1]), kind), 1, 2)
        return np.zeros(shape, kind)

    def _give(self, name: str, array: NDArray[Any], layout: str) -> None:
        """As an argument of ExpertWeights: matrices turned over as it wants them."""
        turned = _is_turned(layout) and array.ndim == 3
        given = np.swapaxes(array, 1, 2) if turned else array
        self.arguments[name] = list(given) if "listed" in layout else given

    def floats(self) -> Arrays:
        """Return the parts as float32."""
        return {name: floats(np.ascontiguousarray(v), self.dtypes[name]) for name, v in self.views.items()}


def _is_turned(layout: str) -> bool:
    return "transposed" in layout or layout == "interleaved"


def stored(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Float32 numbers as a type of weights holds them."""
    if dtype == "bf16":
        return libmoe.to_bfloat16(np.ascontiguousarray(values))
    return values.astype(TYPES[dtype])


def floats(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """And back."""
    return libmoe.from_bfloat16(values) if dtype == "bf16" else values.astype(np.float32)


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Bit for bit, in all that both have."""
    for name in found.keys() & expected.keys():
        assert_same_bits(found[name], expected[name], name)
