"""Multi-head latent attention (arXiv:2405.04434) in float64: keys and values of every head written out."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import model
from .attention import Attention
from .linear import linear, linear_backward
from .settings import Array, Parameters


class LatentAttention:
    """Between the residual stream and what is added to it, of [B,S,H]."""

    def __init__(self, call: model.Call, n: int, x: Array) -> None:
        self.call, self.x, self.name = call, x, f"layers.{n}.attention"
        self.table = call.table(n)
        b, s = call.shape
        heads, d, self.rank = call.heads, call.head_size, call.a["latent_rank"]
        self.rotary = call.tables[0]["rotary_size"] if call.tables else 0
        self.plain = d - self.rotary
        epsilon = call.a.get("latent_norm_epsilon") or call.epsilon
        self.query_norm = None
        rows = x
        if call.a.get("query_rank"):
            down = linear(call.p, f"{self.name}.q_a", x)
            self.query_norm = model.Norm(call.p, f"{self.name}.q_a_norm", "rms", epsilon, down)
            rows = self.query_norm.y
        self.query_rows = rows
        q = linear(call.p, f"{self.name}.q_b", rows).reshape(b, s, heads, d)
        down = linear(call.p, f"{self.name}.kv_a", x)
        self.latent_norm = model.Norm(
            call.p, f"{self.name}.kv_a_norm", "rms", epsilon, down[..., : self.rank]
        )
        expanded = linear(call.p, f"{self.name}.kv_b", self.latent_norm.y).reshape(b, s, heads, -1)
        query: Any = self._turned(q)
        shared = self._turn(down[..., None, self.rank :])
        k = np.concatenate(
            [expanded[..., : self.plain], np.broadcast_to(shared, (b, s, heads, self.rotary))], axis=-1
        )
        v: Any = expanded[..., self.plain :]
        self.attention = Attention(query, k, v, call.attention(n))
        self.output = self.attention.output.reshape(b, s, heads * call.value_size)
        self.y = linear(call.p, f"{self.name}.output", self.output)

    def _turn(self, x: Array, back: bool = False) -> Array:
        return model.turn(x, self._of_part(), back) if self.table else x

    def _of_part(self) -> dict[str, Any]:
        """The table, of rows that turn whole."""
        assert self.table is not None
        return {**self.table, "rotary_size": 0}

    def _turned(self, x: Array, back: bool = False) -> Array:
        """With the last numbers of each head turned."""
        return np.concatenate([x[..., : self.plain], self._turn(x[..., self.plain :], back)], axis=-1)

    def backward(self, gradients: Parameters, d_y: Array) -> Array:
        call, (b, s) = self.call, self.call.shape

        def through(name: str, x: Array, d: Array) -> Array:
            rows = linear_backward(
                call.p,
                gradients,
                f"{self.name}.{name}",
                x.reshape(b * s, x.shape[-1]),
                d.reshape(b * s, -1),
            )
            return rows.reshape(b, s, -1)

        by_head: Any = through("output", self.output, d_y).reshape(b, s, call.heads, call.value_size)
        d_q, d_k, d_v = self.attention.backward(by_head)
        if call.a.get("sinks"):
            gradients[f"{self.name}.sinks"] += self.attention.d_sinks
        d_shared = self._turn(d_k[..., self.plain :].sum(axis=2, keepdims=True), back=True)
        d_expanded = np.concatenate([d_k[..., : self.plain], d_v], axis=-1)
        d_latent = self.latent_norm.backward(gradients, through("kv_b", self.latent_norm.y, d_expanded))
        d_x = through("kv_a", self.x, np.concatenate([d_latent, d_shared[:, :, 0]], axis=-1))
        d_rows = through("q_b", self.query_rows, self._turned(d_q, back=True))
        if self.query_norm:
            return d_x + through("q_a", self.x, self.query_norm.backward(gradients, d_rows))
        return d_x + d_rows
