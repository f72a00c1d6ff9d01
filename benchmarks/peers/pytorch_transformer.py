"""The model of model_work.py as one writes it in PyTorch: fused attention, a loop over the experts."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc, no-any-return, untyped-decorator"

from __future__ import annotations

import torch
from model_work import CONTEXT, EPSILON, EXPERTS, HEADS, HIDDEN, INNER, LAYERS, THETA, TOP_K, VOCABULARY
from protocol import Array
from torch import Tensor, nn
from torch.nn import functional

SIZE = HIDDEN // HEADS


class Experts(nn.Module):
    """SwiGLU experts, the weights of the chosen ones normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        # One leaf for each matrix: a gradient then costs that expert's memory only.
        self.gate_up = nn.ModuleList(nn.Linear(HIDDEN, 2 * INNER, bias=False) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(INNER, HIDDEN, bias=False) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        """Return y [T,H] of x [T,H]."""
        with torch.autocast("cpu", enabled=False):
            scores = functional.softmax(self.router(x), dim=-1)  # [T,E]
        weights, chosen = scores.topk(TOP_K, dim=-1)  # [T,K]
        weights = (weights / weights.sum(dim=-1, keepdim=True)).view(-1)
        # Pairs of token and slot by expert: pair / K is the token.
        pairs = chosen.view(-1).argsort(stable=True)
        counts = chosen.view(-1).bincount(minlength=EXPERTS).tolist()
        y = torch.zeros_like(x)
        for e, pair in enumerate(pairs.split(counts)):
            if len(pair):
                token = pair // TOP_K
                gate, up = self.gate_up[e](x.index_select(0, token)).chunk(2, dim=-1)
                out = self.down[e](functional.silu(gate) * up)
                y.index_add_(0, token, (out * weights.index_select(0, pair)[:, None]).to(y.dtype))
        return y


class Attention(nn.Module):
    """Causal attention with rotary positions; with a cache, over the keys and values so far."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.output = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, int] | None) -> Tensor:
        """Return y [B,S,H]; `cache` is [2,B,heads,length,D] and how many of its tokens are there."""
        batch, length, _ = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        query, key = turned(query, cos, sin), turned(key, cos, sin)
        if cache is not None:
            store, start = cache
            store[0, :, :, start : start + length] = key
            store[1, :, :, start : start + length] = value
            key, value = store[:, :, :, : start + length]
        y = functional.scaled_dot_product_attention(query, key, value.to(key.dtype), is_causal=length > 1)
        return self.output(y.transpose(1, 2).reshape(batch, length, HIDDEN))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [...,S,D] with rotary positions, in x's type."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


class Layer(nn.Module):
    """h = x + attention(norm(x)), y = h + experts(norm(h))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN, EPSILON), nn.RMSNorm(HIDDEN, EPSILON)
        self.attention, self.ffn = Attention(), Experts()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, int] | None) -> Tensor:
        """Return y [B,S,H]."""
        x = x + self.attention(self.norm1(x), cos, sin, cache)
        return x + self.ffn(self.norm2(x).view(-1, HIDDEN)).view(x.shape)


class Transformer(nn.Module):
    """A language model whose output product uses the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, EPSILON)
        frequencies = THETA ** (-torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
        angles = torch.arange(CONTEXT, dtype=torch.float64)[:, None] * frequencies
        self.cos, self.sin = angles.cos().float(), angles.sin().float()

    def forward(self, tokens: Tensor, caches: list[Tensor] | None = None, start: int = 0) -> Tensor:
        """Return logits [B,S,V] of tokens [B,S], which follow the first `start` ones in the caches."""
        places = slice(start, start + tokens.shape[1])
        cos, sin = self.cos[places], self.sin[places]
        x = self.embed(tokens)
        for n, layer in enumerate(self.layers):
            x = layer(x, cos, sin, None if caches is None else (caches[n], start))
        # As in libmoe, a tied output is float32.
        with torch.autocast("cpu", enabled=False):
            return functional.linear(self.norm(x), self.embed.weight)

    @torch.no_grad()
    def load(self, given: dict[str, Array]) -> Transformer:
        """Take libmoe's parameters, and return the model."""
        values = {name: torch.from_numpy(array) for name, array in given.items()}
        for n in range(LAYERS):
            experts = f"layers.{n}.ffn.experts"
            gate, up = values.pop(f"{experts}.gate.weight"), values.pop(f"{experts}.up.weight")
            down = values.pop(f"{experts}.down.weight")
            for e in range(EXPERTS):
                values[f"layers.{n}.ffn.gate_up.{e}.weight"] = torch.cat((gate[e], up[e]))
                values[f"layers.{n}.ffn.down.{e}.weight"] = down[e]
        self.load_state_dict(values)
        return self
