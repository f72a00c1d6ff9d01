"""Families whose experts transformers lets nobody else compute: their blocks, replaced one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentTypeError, InvalidArgumentError
from ..torch import experts
from .forward import WEIGHTS
from .known import activation_of

Forward = Callable[..., Any]


def replace(model: nn.Module) -> dict[str, str]:
    """Have libmoe compute the experts of DBRX, JetMoe, Llama 4, LongCat-Flash, NLLB-MoE and Switch models.

    transformers has no experts implementation for these.  Parameters, their names and the router stay as they
    are: so do checkpoints, PEFT and the Trainer.  JetMoe's mixture of attention heads is left as it is.  A
    call that libmoe has not (float16, dropout within the experts in training) goes to the class's own code.

    Parameters
    ----------
    model : Module
        With such blocks in it.

    Returns
    -------
    dict of str to str
        The replaced modules' names, and of which class they were.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model: expected a torch Module, got {type(model).__name__}")
    replaced = {}
    for name, module in model.named_modules():
        kind = type(module)
        if (kind.__module__, kind.__name__) in _FORWARDS:
            module.__class__ = _ours(kind)
            replaced[name] = kind.__name__
    if not replaced:
        raise InvalidArgumentError(
            "model: has no block of DBRX, JetMoe, Llama 4, LongCat-Flash, NLLB-MoE or Switch that is not "
            "replaced already; for other families use model.set_experts_implementation('libmoe')"
        )
    return replaced


_made: dict[Any, type[nn.Module]] = {}


def _ours(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class with another forward; its objects pickle as what makes it of the first."""
    if kind not in _made:
        _made[kind] = _derived(kind)
    return _made[kind]


def _derived(kind: type[nn.Module]) -> type[nn.Module]:
    compute = _FORWARDS[kind.__module__, kind.__name__]

    def forward(self: nn.Module, hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        reason = _reason(self, hidden_states)
        if not reason:
            return compute(self, hidden_states, *arguments, **named)
        if reason not in _warned:
            _warned.add(reason)
            warnings.warn(
                f"libmoe: {kind.__name__} falls back to transformers' own code: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        return kind.forward(self, hidden_states, *arguments, **named)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _again, (kind,), vars(self).copy()

    return type(kind.__name__, (kind,), {"forward": forward, "__reduce_ex__": reduce, "__module__": __name__})


def _again(kind: type[nn.Module]) -> nn.Module:
    ours = _ours(kind)
    return ours.__new__(ours)


_warned: set[str] = set()


def _reason(module: nn.Module, hidden_states: Tensor) -> str:
    """Return why a call cannot be libmoe's, or nothing."""
    if hidden_states.device.type != "cpu":
        return f"it is on {hidden_states.device}, and libmoe computes on the CPU"
    if hidden_states.dtype not in WEIGHTS:
        return f"libmoe computes in float32 and bfloat16, not in {hidden_states.dtype}"
    if _act(module) is None:
        return "libmoe has not its activation"
    if module.training and any(isinstance(each, nn.Dropout) and each.p > 0 for each in module.modules()):
        return "it drops out activations of its experts in training"
    return ""


def _act(module: nn.Module) -> Any:
    """Return the word for the activation of a block's experts."""
    for each in module.modules():
        for name in ("act_fn", "activation_fn", "activation", "act"):
            found = each.__dict__.get(name) or each._modules.get(name)
            if found is not None:
                return activation_of(found)
    return None


def _dbrx(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    shape = (self.num_experts, self.ffn_hidden_size, self.hidden_size)
    gate, up, down = (matrix.view(shape) for matrix in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    flat = hidden_states.reshape(-1, self.hidden_size)
    y = experts(flat, top_k_index, top_k_weights, (gate, up), down.transpose(1, 2), activation=_act(self))
    return y.view(hidden_states.shape[0], -1, self.hidden_size)


def _jetmoe(self: Any, layer_input: Tensor) -> Any:
    flat = layer_input.reshape(-1, layer_input.shape[-1])
    logits = self.router(flat)[-1]
    best, ids = logits.topk(self.router.top_k, dim=1)
    weights = best.softmax(dim=1).type_as(layer_input)
    y = experts(
        flat, ids, weights, self.input_linear.weight, self.output_linear.weight, activation=_act(self)
    )
    return y.view(layer_input.shape) + self.bias


def _llama4(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    flat = hidden_states.reshape(-1, self.hidden_dim)
    scores, logits = self.router(flat)
    ids = logits.topk(self.top_k, dim=1)[1]
    inner = self.experts
    y = experts(
        flat,
        ids,
        scores.gather(1, ids),
        inner.gate_up_proj,
        inner.down_proj,
        activation=_act(inner),
        transposed=True,
        weight_on_input=True,
    )
    return self.shared_expert(flat) + y, logits


def _longcat(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Any:
    # Experts behind the routed ones return their input.
    same = (top_k_weights * (top_k_index >= self.num_routed_experts)).sum(-1, keepdim=True)
    y = (hidden_states * same).to(hidden_states.dtype)
    if self.gate_up_proj is None:
        return y
    routed = self.gate_up_proj[: self.num_routed_experts]
    return y + experts(
        hidden_states, top_k_index, top_k_weights, routed, self.down_proj, activation=_act(self)
    )


def _nllb(self: Any, hidden_states: Tensor, router_mask: Tensor, router_probs: Tensor) -> Tensor:
    each = [self[f"expert_{number}"] for number in range(self.num_experts)]
    y = experts(
        hidden_states,
        router_mask.long(),
        router_probs,
        [expert.fc1.weight for expert in each],
        [expert.fc2.weight for expert in each],
        gate_up_bias=[expert.fc1.bias for expert in each],
        down_bias=[expert.fc2.bias for expert in each],
        expert_kind="mlp",
        activation=_act(self),
    )
    return y * (1 - self.moe_token_dropout) if self.moe_token_dropout > 0 else y


def _switch(self: Any, hidden_states: Tensor, selected_experts: Tensor, routing_weights: Tensor) -> Tensor:
    chosen = selected_experts.reshape(
        len(hidden_states), -1
    )  # [T, E], one of them 1; none where it was dropped
    ids = torch.where(chosen.any(-1), chosen.int().argmax(-1), -1).unsqueeze(-1)
    each = [self[f"expert_{number}"] for number in range(self.num_experts)]
    return experts(
        hidden_states,
        ids,
        routing_weights,
        [expert.wi.weight for expert in each],
        [expert.wo.weight for expert in each],
        expert_kind="mlp",
        activation=_act(self),
    )


_FORWARDS: dict[tuple[str, str], Forward] = {
    (f"transformers.models.{family}.modeling_{family}", name): forward
    for family, name, forward in (
        ("dbrx", "DbrxExperts", _dbrx),
        ("jetmoe", "JetMoeMoE", _jetmoe),
        ("llama4", "Llama4TextMoe", _llama4),
        ("longcat_flash", "LongcatFlashExperts", _longcat),
        ("nllb_moe", "NllbMoeExperts", _nllb),
        ("switch_transformers", "SwitchTransformersExperts", _switch),
    )
}
