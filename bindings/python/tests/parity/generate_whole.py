"""Write what layers of PyTorch compute, for test_known_models.py to hold libmoe to.

    pip install -r requirements.txt
    python generate_whole.py

leaves one .npz per case in whole/. Each layer is small, with random float32 parameters, and runs forwards and
backwards in float64, as far as it keeps to that; dropout is 0.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found,no-untyped-call,misc"

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

HERE = Path(__file__).parent / "whole"
H, HEADS, E, WIDTH, B, S = 16, 4, 4, 24, 3, 7
Arrays = dict[str, Any]
EXPERTS = {
    "n_experts": E,
    "top_k": 2,
    "intermediate_size": WIDTH,
    "expert_kind": "gated",
    "activation": "silu",
}
EXPERTS |= {"router_bias": False, "balance_coef": 0.0, "z_coef": 0.0}


def unsettle(module: nn.Module) -> None:
    """Random float32 parameters, in float64."""
    generator = torch.Generator().manual_seed(3)
    module.double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            deviation = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3
            p.copy_((mean + deviation * torch.randn(p.shape, generator=generator)).float())


def parts(module: nn.Module) -> Arrays:
    """Parameters and their gradients by name."""
    found: Arrays = {}
    for name, p in module.named_parameters():
        found[f"parameter/{name}"] = p.detach().float()
        assert p.grad is not None, name
        found[f"gradient/{name}"] = p.grad
    return found


def states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """X, dy, and which tokens are padding."""
    random = np.random.default_rng(6)
    x, dy = (torch.tensor(random.standard_normal((B, S, H)).astype(np.float32)).double() for _ in range(2))
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, -2:] = True
    return x.requires_grad_(), dy, padding


def encoded(
    module: nn.Module, y: torch.Tensor, x: torch.Tensor, dy: torch.Tensor, settings: Arrays
) -> Arrays:
    (y * dy).sum().backward()
    assert x.grad is not None
    return {
        "settings": json.dumps(settings),
        "x": x.detach().float(),
        "dy": dy.float(),
        "y": y,
        "dx": x.grad,
        **parts(module),
    }


def encoder(norm_first: bool, experts: bool) -> Arrays:
    layer = nn.TransformerEncoderLayer(
        H, HEADS, WIDTH, dropout=0.0, activation="relu", batch_first=True, norm_first=norm_first
    )
    if experts:
        del layer.linear1, layer.linear2
        layer.moe = MixtralSparseMoeBlock(
            MixtralConfig(
                hidden_size=H,
                intermediate_size=WIDTH,
                num_local_experts=E,
                num_experts_per_tok=2,
                experts_implementation="eager",
            )
        )
        layer._ff_block = lambda x: mixed(layer.moe(x))  # noqa: E731
    unsettle(layer)
    x, dy, _ = states()
    settings: Arrays = {"hidden_size": H, "n_heads": HEADS, "dropout": 0.0, "norm_first": norm_first}
    settings |= {"moe": EXPERTS} if experts else {"intermediate_size": WIDTH}
    return encoded(layer, layer(x), x, dy, settings)


def mixed(output: Any) -> torch.Tensor:
    """The output of a MoE block that may return its logits too."""
    result: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return result


def attention() -> Arrays:
    module = nn.MultiheadAttention(H, HEADS, batch_first=True)
    unsettle(module)
    x, dy, padding = states()
    y, _ = module(x, x, x, key_padding_mask=padding, need_weights=False)
    settings = {"hidden_size": H, "n_layers": 1, "n_heads": HEADS, "norm_place": "none", "final_norm": False}
    settings |= {"causal": False, "rope_theta": 0.0, "qkv_bias": True, "output_bias": True}
    return {"valid_mask": (~padding).numpy(), **encoded(module, y, x, dy, settings)}


CASES = {
    "encoder_layer": lambda: encoder(False, False),
    "encoder_layer_norm_first": lambda: encoder(True, False),
    "encoder_layer_of_experts": lambda: encoder(False, True),
    "multihead_attention": attention,
}


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for name, make in CASES.items():
        arrays: Arrays = {
            key: value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            for key, value in make().items()
        }
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        print(name, sorted(key for key in arrays if "/" not in key))


if __name__ == "__main__":
    main()
