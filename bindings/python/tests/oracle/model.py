"""A whole model in float64: forward at construction, `backward` after it.

Dropout is drawn as libmoe draws it, by seed, stream and step; everything else is the textbook's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import layer
from .attention import Attention
from .batch import Options
from .latent import LatentAttention
from .linear import linear, linear_backward, logsumexp, sigmoid, softmax
from .losses import pooled_balance
from .philox import words
from .settings import Array, Parameters, Settings

GOLDEN = 0x9E3779B97F4A7C15
EMBEDDING, ATTENTION_OUTPUT, FEED_FORWARD = 64, 65, 66  # streams of dropout


class Norm:
    """LayerNorm or RMSNorm of rows [..., H]."""

    def __init__(self, p: Parameters, name: str, kind: str, epsilon: float, x: Array) -> None:
        self.name, self.kind, self.weight = name, kind, p[f"{name}.weight"]
        centred = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
        self.root = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
        self.n = centred / self.root
        self.y = self.n * self.weight + p.get(f"{name}.bias", np.float64(0))

    def backward(self, gradients: Parameters, d_y: Array) -> Array:
        rows = tuple(range(d_y.ndim - 1))
        gradients[f"{self.name}.weight"] += (d_y * self.n).sum(axis=rows)
        if f"{self.name}.bias" in gradients:
            gradients[f"{self.name}.bias"] += d_y.sum(axis=rows)
        g = d_y * self.weight
        d_x = g - self.n * (g * self.n).mean(axis=-1, keepdims=True)
        if self.kind == "layer":
            d_x = d_x - g.mean(axis=-1, keepdims=True)
        result: Array = d_x / self.root
        return result


def turn(x: Array, table: dict[str, Any], back: bool = False) -> Array:
    """Rotary positions of [B,S,heads,D]: of the first rotary_size of a head."""
    size = table.get("rotary_size") or x.shape[-1]
    half, s = size // 2, x.shape[1]
    is_long = table.get("long_frequencies") is not None and s > table["original_length"]
    frequencies = table.get("long_frequencies") if is_long else table.get("frequencies")
    if frequencies is None:
        frequencies = table["theta"] ** (-2 * np.arange(half) / size)
    scale = table.get("long_scale" if is_long else "scale") or 1
    angles = np.arange(s)[:, None] * np.asarray(frequencies)
    cos, sin = scale * np.cos(angles)[:, None], scale * np.sin(angles)[:, None] * (-1 if back else 1)
    a, b = x[..., :half], x[..., half:size]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., size:]], axis=-1)


class QueryKeyNorm:
    """RMS norm of the heads [B,S,heads,D] of queries or keys."""

    def __init__(self, call: Call, name: str, kind: str, x: Array) -> None:
        self.shape, self.kind = x.shape, kind
        rows = x.reshape(*x.shape[:2], -1) if kind == "whole" else x
        p = {f"{name}.weight": np.ones(x.shape[-1])} if kind == "plain" else call.p
        self.norm = Norm(p, name, "rms", call.epsilon, rows)
        self.y = self.norm.y.reshape(x.shape)

    def backward(self, gradients: Parameters, d_y: Array) -> Array:
        if self.kind == "plain":
            gradients = {f"{self.norm.name}.weight": np.zeros(self.shape[-1])}
        return self.norm.backward(gradients, d_y.reshape(self.norm.y.shape)).reshape(self.shape)


class Call:
    """What the model's arguments and the call's options say, and the draws they lead to."""

    def __init__(
        self, arguments: dict[str, Any], p: Parameters, shape: tuple[int, int], call: dict[str, Any]
    ) -> None:
        self.a, self.p, self.shape, self.options = arguments, p, shape, call
        self.heads = arguments["n_heads"]
        self.kv_heads = arguments.get("n_kv_heads") or self.heads
        self.head_size = arguments.get("head_size") or arguments["hidden_size"] // self.heads
        self.norm_kind = arguments.get("norm", "rms")
        self.place = arguments.get("norm_place", "pre")
        self.epsilon = arguments.get("norm_epsilon") or 1e-5
        self.value_size = arguments.get("value_head_size") or self.head_size
        self.tables = arguments.get("rotary_tables")
        if self.tables is None:
            theta = arguments.get("rope_theta", 1e4)
            self.tables = [{"theta": theta}] if theta else []
        norm = arguments.get("qk_norm") or "none"
        self.qk_norm = "head" if norm is True else norm
        self.residual_scale = arguments.get("residual_scale") or 1.0
        self.training, self.step = call.get("training", False), call.get("step", 0)
        self.seed = arguments.get("seed", 0)

    def layer(self, n: int) -> dict[str, Any]:
        """What the table of layers says, or what its rows are where there is none."""
        if self.a.get("layers") is not None:
            return {"dense": False, "rotary": 0, "window": 0, "chunk": 0, **self.a["layers"][n]}
        every = self.a.get("moe_every", 1)
        return {"dense": (n + 1) % every != 0, "rotary": 0, "window": 0, "chunk": 0}

    def table(self, n: int) -> dict[str, Any] | None:
        number = self.layer(n)["rotary"]
        return self.tables[number] if self.tables and number >= 0 else None

    def norm(self, name: str, x: Array) -> Norm:
        return Norm(self.p, name, self.norm_kind, self.epsilon, x)

    def seed_of(self, number: int) -> int:
        return int(self.seed + GOLDEN * number) % 2**64

    def attention(self, n: int) -> dict[str, Any]:
        """What layer n's attention is asked for."""
        options = {name: self.options.get(name) for name in ("mask", "added_mask", "valid_mask")}
        options |= {"causal": self.a.get("causal", True), "seed": self.seed_of(2 * n + 2), "step": self.step}
        options["dropout"] = self.a.get("attention_dropout", 0) if self.training else 0
        options["scale"] = self.a.get("attention_scale")
        options |= {name: self.layer(n)[name] for name in ("window", "chunk")}
        if self.a.get("sinks"):
            options["sinks"] = self.p[f"layers.{n}.attention.sinks"]
        return options

    def kept(self, seed: int, stream: int, shape: tuple[int, ...]) -> Array | float:
        """What dropout multiplies by."""
        rate = float(np.float32(self.a.get("dropout", 0)))
        if not self.training or not rate:
            return 1.0
        count = -(-int(np.prod(shape)) // 4) * 4
        drawn = words(seed, stream, self.step, count)[: int(np.prod(shape))].reshape(shape)
        result: Array = (drawn >= np.uint64(rate * 2**32)) / (1 - rate)
        return result


class SelfAttention:
    """Attention between its projections, of [B,S,H]."""

    def __init__(self, call: Call, n: int, x: Array) -> None:
        self.call, self.x, self.name = call, x, f"layers.{n}.attention"
        self.table = call.table(n)
        b, s = call.shape
        h, kv, d, dv = call.heads, call.kv_heads, call.head_size, call.value_size
        projected = linear(call.p, f"{self.name}.qkv", x)
        q: Any
        k: Any
        v: Any
        q, k, v, gate = np.split(projected, np.cumsum([h * d, kv * d, kv * dv]), axis=-1)
        q, k, v = q.reshape(b, s, h, d), k.reshape(b, s, kv, d), v.reshape(b, s, kv, dv)
        self.norms: list[QueryKeyNorm] = []
        self.is_after = call.qk_norm in ("rotated", "plain")
        if not self.is_after:
            q, k = self._normed(q, k)
        if self.table:
            q, k = turn(q, self.table), turn(k, self.table)
        if self.is_after and (self.table or call.qk_norm == "rotated"):
            q, k = self._normed(q, k)
        self.sharp: Any = 1.0
        if call.a.get("temperature_scale") and not self.table:
            steps = np.floor((np.arange(s) + 1) / call.a["temperature_floor"])
            self.sharp = (1 + call.a["temperature_scale"] * np.log(1 + steps))[:, None, None]
        self.attention = Attention(q * self.sharp, k, v, call.attention(n))
        self.output = self.attention.output.reshape(b, s, h * dv)
        self.gate = sigmoid(gate) if call.a.get("attention_gate") else None
        self.gated = self.output if self.gate is None else self.output * self.gate
        self.y = linear(call.p, f"{self.name}.output", self.gated)

    def _normed(self, q: Array, k: Array) -> tuple[Array, Array]:
        if self.call.qk_norm == "none":
            return q, k
        self.norms = [
            QueryKeyNorm(self.call, f"{self.name}.{w}_norm", self.call.qk_norm, y)
            for w, y in (("q", q), ("k", k))
        ]
        return self.norms[0].y, self.norms[1].y

    def backward(self, gradients: Parameters, d_y: Array) -> Array:
        call, (b, s) = self.call, self.call.shape
        width = d_y.shape[-1]
        d_gated = linear_backward(
            call.p,
            gradients,
            f"{self.name}.output",
            self.gated.reshape(b * s, -1),
            d_y.reshape(b * s, width),
        ).reshape(self.output.shape)
        d_gate: list[Array] = []
        if self.gate is not None:
            d_gate = [d_gated * self.output * self.gate * (1 - self.gate)]
            d_gated = d_gated * self.gate
        by_head: Any = d_gated.reshape(b, s, call.heads, call.value_size)
        d_q, d_k, d_v = self.attention.backward(by_head)
        if call.a.get("sinks"):
            gradients[f"{self.name}.sinks"] += self.attention.d_sinks
        d_q = d_q * self.sharp
        if self.is_after:
            d_q, d_k = self._norms_backward(gradients, d_q, d_k)
        if self.table:
            d_q, d_k = turn(d_q, self.table, back=True), turn(d_k, self.table, back=True)
        if not self.is_after:
            d_q, d_k = self._norms_backward(gradients, d_q, d_k)
        d_projected = np.concatenate([d.reshape(b * s, -1) for d in (d_q, d_k, d_v, *d_gate)], axis=-1)
        d_x = linear_backward(
            call.p, gradients, f"{self.name}.qkv", self.x.reshape(b * s, width), d_projected
        )
        return d_x.reshape(b, s, width)

    def _norms_backward(self, gradients: Parameters, d_q: Array, d_k: Array) -> tuple[Array, Array]:
        if not self.norms:
            return d_q, d_k
        d_q, d_k = (norm.backward(gradients, d) for norm, d in zip(self.norms, (d_q, d_k)))
        return d_q, d_k


class FeedForward:
    """The ffn of layer n, of [B,S,H]: experts, or one that every token uses."""

    def __init__(self, call: Call, n: int, x: Array) -> None:
        self.prefix = f"layers.{n}.ffn."
        moe = call.a.get("moe")
        self.is_moe = moe is not None and not call.layer(n)["dense"]
        own = {name[len(self.prefix) :]: v for name, v in call.p.items() if name.startswith(self.prefix)}
        tokens = x.reshape(-1, x.shape[-1])
        options: dict[str, Any] = {
            "training": call.training,
            "step": call.step,
            "sequence_length": call.shape[1],
        }
        if call.options.get("valid_mask") is not None:
            options["valid_mask"] = call.options["valid_mask"].reshape(-1)
        if self.is_moe and moe is not None:
            settings = Settings.of({"seed": call.seed_of(2 * n + 1), **moe})
        else:
            settings = Settings(
                top_k=1, n_experts=1, router="external", activation=call.a.get("dense_activation", "silu")
            )
            options |= {"expert_indices": np.zeros((len(tokens), 1), np.int32)}
            options |= {"expert_weights": np.ones((len(tokens), 1))}
        self.done = layer.forward(settings, own, tokens, options=Options(**options))
        self.y = self.done.y.reshape(x.shape)
        self.aux_loss = self.done.report.aux_loss if self.is_moe else 0.0

    def backward(self, gradients: Parameters, d_y: Array, d_aux_loss: float, d_mean: Array | None) -> Array:
        d_x, own = layer.backward(self.done, d_y.reshape(-1, d_y.shape[-1]), d_aux_loss, d_mean)
        for name, gradient in own.items():
            gradients[self.prefix + name] += gradient
        return d_x.reshape(d_y.shape)


class Block:
    """One transformer layer."""

    def __init__(self, call: Call, n: int, x: Array) -> None:
        self.call, self.n = call, n
        seed = call.seed_of(2 * n + 2)
        streams = (ATTENTION_OUTPUT, FEED_FORWARD)
        self.kept = [call.residual_scale * call.kept(seed, stream, x.shape) for stream in streams]
        self.ffn = None
        self.attention: SelfAttention | LatentAttention
        kind = LatentAttention if call.a.get("latent_rank") else SelfAttention
        if call.place == "none":
            self.attention = kind(call, n, x)
            self.y = self.attention.y
        elif call.place == "pre":
            self.norm1 = call.norm(f"layers.{n}.norm1", x)
            self.attention = kind(call, n, self.norm1.y)
            h = x + self.kept[0] * self.attention.y
            self.norm2 = call.norm(f"layers.{n}.norm2", h)
            self.ffn = FeedForward(call, n, self.norm2.y)
            self.y = h + self.kept[1] * self.ffn.y
        else:
            self.attention = kind(call, n, x)
            self.norm1 = call.norm(f"layers.{n}.norm1", x + self.kept[0] * self.attention.y)
            self.ffn = FeedForward(call, n, self.norm1.y)
            self.norm2 = call.norm(f"layers.{n}.norm2", self.norm1.y + self.kept[1] * self.ffn.y)
            self.y = self.norm2.y

    def backward(self, gradients: Parameters, d: Array, d_aux_loss: float, d_mean: Array | None) -> Array:
        if self.ffn is None:
            return self.attention.backward(gradients, d)
        if self.call.place == "pre":
            d_ffn = self.ffn.backward(gradients, self.kept[1] * d, d_aux_loss, d_mean)
            d = d + self.norm2.backward(gradients, d_ffn)
            d_attention = self.attention.backward(gradients, self.kept[0] * d)
            return d + self.norm1.backward(gradients, d_attention)
        d = self.norm2.backward(gradients, d)
        d = d + self.ffn.backward(gradients, self.kept[1] * d, d_aux_loss, d_mean)
        d = self.norm1.backward(gradients, d)
        return d + self.attention.backward(gradients, self.kept[0] * d)


class Model:
    """All of it.  arguments: those of libmoe.Model by name; tokens [B,S], or hidden states [B,S,H]."""

    def __init__(
        self,
        arguments: dict[str, Any],
        parameters: dict[str, Any],
        tokens: Any,
        targets: Any = None,
        **options: Any,
    ) -> None:
        self.a = arguments
        self.p: Parameters = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
        self.tokens, self.targets = np.asarray(tokens), targets
        self.call = Call(arguments, self.p, self.tokens.shape[:2], options)
        self.has_tokens = bool(arguments.get("vocabulary_size"))
        x = np.asarray(tokens, np.float64)
        self.kept: Array | float = 1.0
        if self.has_tokens:
            self.embedding_scale = arguments.get("embedding_scale") or 1.0
            x = self.embedding_scale * self.p["embed.weight"][self.tokens]
            if arguments.get("max_positions"):
                x = x + self.p["positions.weight"][: x.shape[1]]
            self.kept = self.call.kept(self.call.seed, EMBEDDING, x.shape)
            x = x * self.kept
        self.blocks = []
        for n in range(arguments["n_layers"]):
            self.blocks.append(Block(self.call, n, x))
            x = self.blocks[-1].y
        self.norm = self.call.norm("norm", x) if arguments.get("final_norm", True) else None
        self.hidden = self.norm.y if self.norm else x
        self.aux_loss = sum(block.ffn.aux_loss for block in self.blocks if block.ffn)
        self.loss, self.n_targets = 0.0, 0
        if self.has_tokens:
            self.output = "embed.weight" if arguments.get("tied_output", True) else "output.weight"
            self.logits = self.hidden @ self.p[self.output].T + self.p.get("output.bias", np.float64(0))
            self.logits = self.logits * (arguments.get("logit_scale") or 1.0)
            self.slopes: Any = arguments.get("logit_scale") or 1.0
            cap = arguments.get("logit_softcap")
            if cap:
                self.logits = cap * np.tanh(self.logits / cap)
                self.slopes = self.slopes * (1 - (self.logits / cap) ** 2)
            if targets is not None:
                self._lose(options)
        self._pool()
        self.objective = self.loss + self.aux_loss + self.coefficient * self.pooled

    def _lose(self, options: dict[str, Any]) -> None:
        counted = self.targets != options.get("ignore_index", -100)
        smoothing, (n, v) = options.get("label_smoothing", 0.0), (counted.sum(), self.logits.shape[-1])
        lse = logsumexp(self.logits)
        wanted = np.where(counted, self.targets, 0)
        right = np.take_along_axis(self.logits, wanted[..., None], -1)[..., 0]
        losses = (1 - smoothing) * (lse - right) + smoothing * (lse - self.logits.mean(axis=-1))
        self.token_losses = np.where(counted, losses, 0)
        self.loss, self.n_targets = float(self.token_losses.sum() / n), int(n)
        aim = (1 - smoothing) * np.eye(v)[wanted] + smoothing / v
        self.d_logits = np.where(counted[..., None], softmax(self.logits) - aim, 0) / n

    def _pool(self) -> None:
        self.coefficient = self.a.get("pooled_balance_coef", 0.0)
        self.pooled, self.d_means = 0.0, np.zeros((len(self.blocks), 1))
        layers = [block.ffn for block in self.blocks if block.ffn and block.ffn.is_moe]
        if not self.coefficient or not layers:
            return
        reports = [ffn.done.report for ffn in layers]
        self.pooled, d_means = pooled_balance(
            np.array([r.tokens_per_expert for r in reports]),
            np.array([r.n_valid for r in reports]),
            np.array([r.mean_probability for r in reports]),
        )
        self.d_means = d_means

    def backward(self, d_objective: float = 1.0, d_hidden: Any = None) -> tuple[Array, Parameters]:
        """Gradient with respect to what went into the first layer, and the parameters'."""
        gradients = {
            name: np.zeros_like(value) for name, value in self.p.items() if not name.endswith(layer.BUFFERS)
        }
        d = np.zeros_like(self.hidden) if d_hidden is None else np.asarray(d_hidden, np.float64)
        if self.targets is not None:
            d_logits = d_objective * self.d_logits * self.slopes
            if "output.bias" in gradients:
                gradients["output.bias"] += d_logits.sum(axis=(0, 1))
            d = d + d_logits @ self.p[self.output]
            gradients[self.output] += np.einsum("bsv,bsh->vh", d_logits, self.hidden)
        if self.norm:
            d = self.norm.backward(gradients, d)
        place = sum(1 for block in self.blocks if block.ffn and block.ffn.is_moe)
        for block in reversed(self.blocks):
            d_mean = None
            if block.ffn and block.ffn.is_moe:
                place -= 1
                d_mean = d_objective * self.coefficient * self.d_means[place] if self.coefficient else None
            d = block.backward(gradients, d, d_objective, d_mean)
        if self.has_tokens:
            d = d * self.kept
            np.add.at(gradients["embed.weight"], self.tokens, self.embedding_scale * d)
            if "positions.weight" in gradients:
                gradients["positions.weight"][: d.shape[1]] += d.sum(axis=0)
        return d, gradients
