"""Write what PyTorch says about the layer, the optimisers and clipping, for test_parity.py to hold libmoe to.

    pip install -r requirements.txt
    python generate.py

leaves one .npz per case beside this file. The layer is the textbook one: a linear gate, softmax, top-k, and a
loop over the experts; clamped experts are those that transformers has for a model. It runs forwards in
float32, as people train, and both ways in float64, for digits to compare with. With experts in bfloat16 it
runs as it is, both ways, and numpy gets its numbers as float32.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Config, DeepseekV4Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts
from transformers.optimization import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

HERE = Path(__file__).parent
Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

# Arguments of libmoe.Layer.
LAYERS: dict[str, dict[str, Any]] = {
    "classic": {"hidden_size": 13, "intermediate_size": 29, "n_experts": 5, "top_k": 2},
    "classic_top1": {"hidden_size": 9, "intermediate_size": 21, "n_experts": 8, "top_k": 1},
    "classic_all_experts": {"hidden_size": 12, "intermediate_size": 31, "n_experts": 3, "top_k": 3},
    # Chosen probabilities as they are: with one expert per token, the Switch Transformer's router.
    "switch": {"hidden_size": 11, "intermediate_size": 19, "n_experts": 6, "top_k": 1}
    | {"router_normalize": False, "activation": "relu"},
    # SwiGLU experts behind a softmax over the chosen logits, no bias anywhere: as in Mixtral.
    "swiglu_topk_softmax": {"hidden_size": 11, "intermediate_size": 17, "n_experts": 7, "top_k": 2}
    | {"router_weights": "topk_softmax", "router_bias": False, "expert_kind": "gated", "activation": "silu"},
    "geglu_unnormalized": {"hidden_size": 10, "intermediate_size": 15, "n_experts": 6, "top_k": 3}
    | {"router_normalize": False, "expert_kind": "gated", "expert_bias": True, "activation": "gelu_tanh"},
}
BFLOAT16_LAYERS: dict[str, dict[str, Any]] = {
    "bfloat16_classic": {"hidden_size": 33, "intermediate_size": 45, "n_experts": 3, "top_k": 2},
    "bfloat16_swiglu": {"hidden_size": 33, "intermediate_size": 45, "n_experts": 3, "top_k": 2}
    | {"router_weights": "topk_softmax", "router_bias": False, "expert_kind": "gated", "activation": "silu"},
}
# Experts of models, whose clamps many values are beyond.
GATED_SILU = {"expert_kind": "gated", "activation": "silu"}
GPT_OSS: dict[str, Any] = (
    {"hidden_size": 12, "intermediate_size": 19, "n_experts": 5, "top_k": 2}
    | {"router_weights": "topk_softmax", "expert_bias": True, **GATED_SILU}
    | {"glu_limit": 7.0, "glu_alpha": 1.702, "glu_offset": 1.0}
)
DEEPSEEK_V4: dict[str, Any] = (
    {"hidden_size": 13, "intermediate_size": 18, "n_experts": 6, "top_k": 2}
    | {"router_bias": False, **GATED_SILU}
    | {"glu_limit": 10.0}
)
N_TOKENS = 37
BALANCE_COEF, Z_COEF = 0.01, 0.001

ACTIVATIONS = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU(), "relu": nn.ReLU()}

# ------------------------------------------------------------------------------------------------------------
# The layer
# ------------------------------------------------------------------------------------------------------------


class Expert(nn.Module):
    """Linear, activation, Linear; or, gated, Linear(activation(Linear) * Linear)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, intermediate = config["hidden_size"], config["intermediate_size"]
        gated = config.get("expert_kind") == "gated"
        bias = config.get("expert_bias", not gated)
        self.gate = nn.Linear(hidden, intermediate, bias=bias) if gated else None
        self.up = nn.Linear(hidden, intermediate, bias=bias)
        self.down = nn.Linear(intermediate, hidden, bias=bias)
        self.activation = ACTIVATIONS[config.get("activation", "gelu")]
        for linear in self.children():
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N,H] -> [N,H], of the same type, whatever that of the expert is."""
        own = x.to(self.up.weight.dtype)
        inner = (
            self.activation(self.up(own))
            if self.gate is None
            else self.activation(self.gate(own)) * self.up(own)
        )
        output: Tensor = self.down(inner)
        return output.to(x.dtype)


class MixtureOfExperts(nn.Module):
    """The router, the experts, the two auxiliary losses, and statistics."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(
            config["hidden_size"], config["n_experts"], bias=config.get("router_bias", True)
        )
        nn.init.kaiming_normal_(self.router.weight, nonlinearity="linear")
        self.experts = self.make_experts()

    def make_experts(self) -> nn.Module:
        """Return a module for all experts together."""
        return nn.ModuleList(Expert(self.config) for _ in range(self.config["n_experts"]))

    def mix(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """y [T,H], the chosen experts' weighted sum."""
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(indices == e)
            y = y.index_add(0, token, weights[token, slot, None] * expert(x[token]))
        return y

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """From x [T,H] to y [T,H], and to the rest under the names of libmoe.Report."""
        n_experts, top_k = self.config["n_experts"], self.config["top_k"]
        logits = self.router(x)  # [T,E]
        probabilities = functional.softmax(logits, dim=-1)  # [T,E]
        if self.config.get("router_weights") == "topk_softmax":
            chosen, indices = torch.topk(logits, top_k, dim=-1)  # [T,K]
            weights = functional.softmax(chosen, dim=-1)
        else:
            weights, indices = torch.topk(probabilities, top_k, dim=-1)  # [T,K]
            if self.config.get("router_normalize", True):
                weights = weights / weights.sum(dim=-1, keepdim=True)

        y = self.mix(x, indices, weights)
        chose = functional.one_hot(indices, n_experts).sum(dim=1)  # [T,E], 0 or 1
        balance_loss = n_experts * (chose.to(x.dtype).mean(dim=0) * probabilities.mean(dim=0)).sum()
        z_loss = (torch.logsumexp(logits, dim=-1) ** 2).mean()
        return {
            "y": y,
            "balance_loss": balance_loss,
            "z_loss": z_loss,
            "aux_loss": BALANCE_COEF * balance_loss + Z_COEF * z_loss,
            "entropy": torch.special.entr(probabilities).sum(dim=-1).mean(),
            "tokens_per_expert": chose.sum(dim=0),
            "mean_probability": probabilities.mean(dim=0),
            "expert_indices": indices,
            "expert_weights": weights,
        }

    def by_name(self, part: str) -> Arrays:
        """Every parameter's "data" or "grad" under libmoe's name, the experts' in one array [E,...]."""
        arrays = {f"router.{name}": getattr(p, part).numpy() for name, p in self.router.named_parameters()}
        for name, stacked in self.experts_by_name(part).items():
            single = stacked.float() if stacked.dtype == torch.bfloat16 else stacked
            arrays[f"experts.{name}"] = single.contiguous().numpy()
        return arrays

    def experts_by_name(self, part: str) -> dict[str, Tensor]:
        """Those of the experts, [E,...]."""
        return {
            name: torch.stack([getattr(expert.get_parameter(name), part) for expert in self.experts])
            for name, _ in self.experts[0].named_parameters()
        }


class ModelLayer(MixtureOfExperts):
    """The same around experts of transformers, which come as one module with gate and up in one matrix."""

    @abstractmethod
    def make_model_experts(self) -> nn.Module:
        """Return that module."""

    def make_experts(self) -> nn.Module:
        """With weights so large that values go beyond the clamps."""
        experts = self.make_model_experts()
        experts.config._experts_implementation = "eager"
        for name, p in experts.named_parameters():
            nn.init.normal_(p, std=2.0 if name.startswith("gate_up") else 0.3)
        return experts

    def mix(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """y [T,H]."""
        y: Tensor = self.experts(x, indices, weights)
        return y


class GptOssLayer(ModelLayer):
    """Gate and up take turns in the columns of matrices that are multiplied from the right."""

    def make_model_experts(self) -> nn.Module:
        """With the model's own limit and alpha."""
        experts: nn.Module = GptOssExperts(
            GptOssConfig(
                hidden_size=self.config["hidden_size"],
                intermediate_size=self.config["intermediate_size"],
                num_local_experts=self.config["n_experts"],
            )
        )
        assert (experts.limit, experts.alpha) == (self.config["glu_limit"], self.config["glu_alpha"])
        return experts

    def experts_by_name(self, part: str) -> dict[str, Tensor]:
        """[E,...]."""
        own = {name: getattr(p, part) for name, p in self.experts.named_parameters()}
        return {
            "gate.weight": own["gate_up_proj"][..., ::2].mT,
            "gate.bias": own["gate_up_proj_bias"][..., ::2],
            "up.weight": own["gate_up_proj"][..., 1::2].mT,
            "up.bias": own["gate_up_proj_bias"][..., 1::2],
            "down.weight": own["down_proj"].mT,
            "down.bias": own["down_proj_bias"],
        }


class DeepseekV4Layer(ModelLayer):
    """Gate lies above up."""

    def make_model_experts(self) -> nn.Module:
        """With the model's own limit."""
        experts: nn.Module = DeepseekV4Experts(
            DeepseekV4Config(
                hidden_size=self.config["hidden_size"],
                moe_intermediate_size=self.config["intermediate_size"],
                n_routed_experts=self.config["n_experts"],
            )
        )
        assert experts.limit == self.config["glu_limit"]
        return experts

    def experts_by_name(self, part: str) -> dict[str, Tensor]:
        """[E,...]."""
        gate, up = getattr(self.experts.gate_up_proj, part).chunk(2, dim=1)
        return {
            "gate.weight": gate,
            "up.weight": up,
            "down.weight": getattr(self.experts.down_proj, part),
        }


def outputs(layer: MixtureOfExperts, x: Tensor) -> Arrays:
    """What forward computes."""
    with torch.no_grad():
        return {name: value.numpy() for name, value in layer(x).items()}


def gradients(layer: MixtureOfExperts, x: Tensor, dy: Tensor) -> Arrays:
    """What autograd computes for the objective <dy, y> + aux_loss."""
    x = x.clone().requires_grad_()
    result = layer(x)
    ((dy * result["y"]).sum() + result["aux_loss"]).backward()
    assert x.grad is not None
    return {"x": x.grad.numpy()} | layer.by_name("grad")


def layer_case(layer: MixtureOfExperts) -> Arrays:
    """Configuration, parameters and inputs; the outputs in both precisions, the gradients in float64."""
    config = layer.config
    x, dy = torch.randn(2, N_TOKENS, config["hidden_size"])
    single = outputs(layer, x)
    parameters = {name: value.copy() for name, value in layer.by_name("data").items()}
    layer.double()
    double = outputs(layer, x.double())
    # A choice that hangs on rounding would compare nothing.
    assert np.array_equal(single["expert_indices"], double["expert_indices"])
    return (
        {"config": np.array(json.dumps(config)), "x": x.numpy(), "dy": dy.numpy()}
        | under("parameter", parameters)
        | under("float32", single)
        | under("float64", double)
        | under("gradient", gradients(layer, x.double(), dy.double()))
    )


def bfloat16_case(config: dict[str, Any]) -> Arrays:
    """The same with experts in bfloat16 behind a float32 router."""
    layer = MixtureOfExperts(config)
    layer.experts.bfloat16()
    x, dy = torch.randn(2, N_TOKENS, config["hidden_size"])
    parameters = {name: value.copy() for name, value in layer.by_name("data").items()}
    return (
        {
            "config": np.array(json.dumps(config)),
            "x": x.numpy(),
            "dy": dy.numpy(),
            "y": outputs(layer, x)["y"],
        }
        | under("parameter", parameters)
        | under("gradient", gradients(layer, x, dy))
    )


# ------------------------------------------------------------------------------------------------------------
# Optimisers and clipping
# ------------------------------------------------------------------------------------------------------------

N_STEPS = 10
SHAPES = ((7, 5), (11,))

# Arguments beside the learning rate, which falls from step to step.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_tuned": {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
    "adamw_groups": {"weight_decay": 0.3},
    "sgd": {},
    "sgd_momentum": {"momentum": 0.9},
    "adamw_one_cycle": {},
    "sgd_one_cycle": {"momentum": 0.9},
}
# What each tensor has of its own: its learning rate over the common one, and arguments.
GROUPS: dict[str, list[tuple[float, dict[str, Any]]]] = {
    "adamw_groups": [(1.0, {"weight_decay": 0.0}), (0.1, {})],
}
LEARNING_RATES = np.linspace(0.05, 0.01, N_STEPS)
ONE_CYCLE = {"max_lr": 0.05, "total_steps": N_STEPS}  # of those that are called so


def optimizer_case(name: str, arguments: dict[str, Any]) -> Arrays:
    """Gradients of every step, and parameters before the first step and after each, computed in float64."""
    make = torch.optim.AdamW if name.startswith("adamw") else torch.optim.SGD
    parameters = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    # Gradients of many sizes, down to where AdamW's epsilon counts.
    gradients = [torch.randn(N_STEPS, *shape) * 10 ** (-9 * torch.rand(shape)) for shape in SHAPES]
    arrays: Arrays = {"learning_rates": LEARNING_RATES}
    for i, p in enumerate(parameters):
        arrays[f"start/{i}"] = p.detach().numpy().copy()
        arrays[f"gradients/{i}"] = gradients[i].numpy()
        p.data = p.data.double()

    own = GROUPS.get(name, [(1.0, {})] * len(SHAPES))
    groups = [{"params": [p], **more} for p, (_, more) in zip(parameters, own, strict=True)]
    optimizer = make(groups, lr=0.0, **arguments)
    trajectories: list[list[Tensor]] = [[] for _ in SHAPES]
    cycle = None
    if name.endswith("one_cycle"):
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, **ONE_CYCLE)
        arrays["learning_rates"] = np.zeros(N_STEPS)
    for step, learning_rate in enumerate(LEARNING_RATES):
        for group, (scale, _) in zip(optimizer.param_groups, own, strict=True):
            if cycle is None:
                group["lr"] = scale * float(learning_rate)
        arrays["learning_rates"][step] = optimizer.param_groups[0]["lr"] / own[0][0]
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient[step].double()
        optimizer.step()
        if cycle is not None and step < N_STEPS - 1:
            cycle.step()
        for p, trajectory in zip(parameters, trajectories, strict=True):
            trajectory.append(p.detach().clone())
    return arrays | {
        f"after/{i}": torch.stack(trajectory).numpy() for i, trajectory in enumerate(trajectories)
    }


# Arguments of libmoe.Schedule.
SCHEDULES: list[dict[str, Any]] = [
    {"kind": "linear", "learning_rate": 0.3, "warmup_steps": 7, "total_steps": 40},
    {"kind": "linear", "learning_rate": 0.01, "total_steps": 13},
    {"kind": "cosine", "learning_rate": 0.3, "warmup_steps": 7, "total_steps": 40},
    {"kind": "cosine", "learning_rate": 3e-4, "warmup_steps": 1, "total_steps": 1001},
    {"kind": "one_cycle", "learning_rate": 0.3, "total_steps": 40},
    {"kind": "one_cycle_linear", "learning_rate": 0.3, "total_steps": 40},
    {"kind": "one_cycle", "learning_rate": 0.01, "total_steps": 333}
    | {"pct_start": 0.45, "div_factor": 10.0, "final_div_factor": 50.0},
    {"kind": "one_cycle_linear", "learning_rate": 0.01, "total_steps": 17}
    | {"pct_start": 0.0, "div_factor": 2.0, "final_div_factor": 4.0},
    {"kind": "one_cycle", "learning_rate": 0.01, "total_steps": 17, "pct_start": 1.0},
    {"kind": "one_cycle", "learning_rate": 0.2, "total_steps": 30}
    | {"base_momentum": 0.5, "max_momentum": 0.8},
]


def schedule_case(kind: str, learning_rate: float, total_steps: int, **options: Any) -> tuple[Array, Array]:
    """The learning rate of every step, and AdamW's beta1."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=learning_rate)
    if kind.startswith("one_cycle"):
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=learning_rate,
            total_steps=total_steps,
            anneal_strategy="linear" if kind == "one_cycle_linear" else "cos",
            **options,
        )
    else:
        make = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[kind]
        scheduler = make(optimizer, options.get("warmup_steps", 0), total_steps)
    rates, momenta = [], []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        if len(rates) < total_steps:
            scheduler.step()
    return np.array(rates), np.array(momenta)


def clip_case(max_norm: float) -> Arrays:
    """Gradients before and after, and the norm before."""
    parameters = [nn.Parameter(torch.zeros(shape).double()) for shape in SHAPES]
    arrays: Arrays = {"max_norm": np.array(max_norm)}
    for i, p in enumerate(parameters):
        gradient = torch.randn(SHAPES[i])
        arrays[f"before/{i}"] = gradient.numpy()
        p.grad = gradient.double()
    arrays["norm"] = nn.utils.clip_grad_norm_(parameters, max_norm).numpy()
    for i, p in enumerate(parameters):
        assert p.grad is not None
        arrays[f"after/{i}"] = p.grad.numpy()
    return arrays


# ------------------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------------------


def under(folder: str, arrays: Arrays) -> Arrays:
    """The arrays, with their names put into a folder."""
    return {f"{folder}/{name}": array for name, array in arrays.items()}


def save(name: str, arrays: Arrays) -> None:
    """Write one .npz: float64 was for the computing, float32 keeps the file small."""
    exact = ("learning_rates", "momenta", "max_norm", "norm")
    small = {
        key: a.astype(np.float32) if a.dtype == np.float64 and key.split("/")[0] not in exact else a
        for key, a in arrays.items()
    }
    np.savez_compressed(HERE / f"{name}.npz", **small)  # type: ignore[arg-type]


def main() -> None:
    """Write every case, each from a fixed seed."""
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(LAYERS.items()):
        torch.manual_seed(seed)
        save(name, layer_case(MixtureOfExperts(config)))
    torch.manual_seed(40)
    save("gpt_oss", layer_case(GptOssLayer(GPT_OSS)))
    torch.manual_seed(41)
    save("deepseek_v4", layer_case(DeepseekV4Layer(DEEPSEEK_V4)))
    for seed, (name, config) in enumerate(BFLOAT16_LAYERS.items(), start=50):
        torch.manual_seed(seed)
        save(name, bfloat16_case(config))
    for name, arguments in OPTIMIZERS.items():
        torch.manual_seed(100)
        save(name, optimizer_case(name, arguments))
    for name, max_norm in (("clip_acts", 1.0), ("clip_idle", 100.0)):
        torch.manual_seed(200)
        save(name, clip_case(max_norm))
    schedules: Arrays = {"config": np.array(json.dumps(SCHEDULES))}
    for i, options in enumerate(SCHEDULES):
        schedules[f"learning_rates/{i}"], schedules[f"momenta/{i}"] = schedule_case(**options)
    save("schedules", schedules)


if __name__ == "__main__":
    main()
