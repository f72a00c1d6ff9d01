"""Families whose experts transformers lets nobody else compute: their blocks, replaced one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentTypeError, BadStateError, InvalidArgumentError
from ..torch import experts
from .forward import packed_of
from .known import activation_of
from .ready import WEIGHTS

Forward = Callable[..., Any]
Owners = list[tuple[nn.Module, str]]
"""Modules, and the name of a matrix that each has."""


class Family(NamedTuple):
    """How libmoe computes a block."""

    forward: Forward
    weights: Callable[[Any], dict[str, Any]]  # arguments of libmoe.torch.experts
    owners: Callable[[Any], Owners]  # of all matrices


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
        if is_replaceable(module):
            module.__class__ = _ours(kind)
            replaced[name] = kind.__name__
    if not replaced:
        raise InvalidArgumentError(
            "model: has no block of DBRX, JetMoe, Llama 4, LongCat-Flash, NLLB-MoE or Switch that is not "
            "replaced already; for other families use model.set_experts_implementation('libmoe')"
        )
    return replaced


def is_replaceable(module: nn.Module) -> bool:
    """Whether :func:`replace` knows a module's class."""
    kind = type(module)
    return (kind.__module__, kind.__name__) in _FAMILIES


_made: dict[Any, type[nn.Module]] = {}


def _ours(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class with another forward; its objects pickle as what makes it of the first."""
    if kind not in _made:
        _made[kind] = _derived(kind)
    return _made[kind]


def _derived(kind: type[nn.Module]) -> type[nn.Module]:
    family = _FAMILIES[kind.__module__, kind.__name__]

    def forward(self: nn.Module, hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        reason = _reason(self, hidden_states)
        if not reason:
            return family.forward(self, hidden_states, *arguments, **named)
        if is_released(self):
            raise BadStateError(
                f"{kind.__name__}: its weights were released by prepare(release=True), and only libmoe "
                f"computes with what is left: {reason}; load the model again for anything else"
            )
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

    body = {"forward": forward, "__reduce_ex__": reduce, "__module__": __name__, "_libmoe_family": family}
    return type(kind.__name__, (kind,), body)


def family_of(module: nn.Module) -> Family | None:
    """Return how libmoe computes a block that was replaced, if it was and has experts of its own."""
    family: Family | None = getattr(type(module), "_libmoe_family", None)
    return family if family is not None and family.owners(module) else None


def weights_of(module: nn.Module) -> dict[str, Any]:
    """Return a replaced block's weights, as arguments of libmoe.torch.experts."""
    family: Family = type(module)._libmoe_family  # type: ignore[attr-defined]
    return family.weights(module)


def is_released(module: nn.Module) -> bool:
    """Whether the memory of a replaced block's matrices is gone."""
    family = family_of(module)
    return family is not None and _matrix(*family.owners(module)[0]).is_meta


def _matrix(owner: nn.Module, name: str) -> Tensor:
    matrix: Tensor = getattr(owner, name)
    return matrix


def _computed(block: Any, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Return what the experts of a block make of x [T, H]."""
    first = _matrix(*block._libmoe_family.owners(block)[0])
    packed, given = packed_of(block, first), weights_of(block)
    if first.is_meta:
        given |= {"gate_up": None, "down": None}
    return experts(x, ids, weights, activation=_act(block), prepared=packed, **given)


def _again(kind: type[nn.Module]) -> nn.Module:
    ours = _ours(kind)
    return ours.__new__(ours)


_warned: set[str] = set()


def _reason(module: nn.Module, hidden_states: Tensor) -> str:
    """Return why a call cannot be libmoe's, or nothing."""
    if not hidden_states.is_cpu:
        return f"it is on {hidden_states.device}, and libmoe computes on the CPU"
    if hidden_states.dtype not in WEIGHTS:
        return f"libmoe computes in float32 and bfloat16, not in {hidden_states.dtype}"
    if _act(module) is None:
        return "libmoe has not its activation"
    if module.training and any(isinstance(each, nn.Dropout) and each.p > 0 for each in module.modules()):
        return "it drops out activations of its experts in training"
    return ""


_activations: dict[Any, str | None] = {}


def _act(module: nn.Module) -> Any:
    """Return the word for the activation of a block's experts, tried once."""
    for each in module.modules():
        for name in ("act_fn", "activation_fn", "activation", "act"):
            found = each.__dict__.get(name) or each._modules.get(name)
            if found is None:
                continue
            key = (type(found), repr(found)) if isinstance(found, nn.Module) else found
            if key not in _activations:
                _activations[key] = activation_of(found)
            return _activations[key]
    return None


def _dbrx(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    flat = hidden_states.reshape(-1, self.hidden_size)
    y = _computed(self, flat, top_k_index, top_k_weights)
    return y.view(hidden_states.shape[0], -1, self.hidden_size)


def _dbrx_weights(self: Any) -> dict[str, Any]:
    shape = (self.num_experts, self.ffn_hidden_size, self.hidden_size)
    gate, up, down = (matrix.view(shape) for matrix in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    return {"gate_up": (gate, up), "down": down.transpose(1, 2)}


def _jetmoe(self: Any, layer_input: Tensor) -> Any:
    flat = layer_input.reshape(-1, layer_input.shape[-1])
    logits = self.router(flat)[-1]
    best, ids = logits.topk(self.router.top_k, dim=1)
    weights = best.softmax(dim=1).type_as(layer_input)
    return _computed(self, flat, ids, weights).view(layer_input.shape) + self.bias


def _jetmoe_weights(self: Any) -> dict[str, Any]:
    return {"gate_up": self.input_linear.weight, "down": self.output_linear.weight}


def _llama4(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    flat = hidden_states.reshape(-1, self.hidden_dim)
    scores, logits = self.router(flat)
    ids = logits.topk(self.top_k, dim=1)[1]
    return self.shared_expert(flat) + _computed(self, flat, ids, scores.gather(1, ids)), logits


def _llama4_weights(self: Any) -> dict[str, Any]:
    inner = self.experts
    layout = {"transposed": True, "weight_on_input": True}
    return {"gate_up": inner.gate_up_proj, "down": inner.down_proj, **layout}


def _longcat(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Any:
    # Experts behind the routed ones return their input.
    same = (top_k_weights * (top_k_index >= self.num_routed_experts)).sum(-1, keepdim=True)
    y = (hidden_states * same).to(hidden_states.dtype)
    if self.gate_up_proj is None:
        return y
    return y + _computed(self, hidden_states, top_k_index, top_k_weights)


def _longcat_weights(self: Any) -> dict[str, Any]:
    return {"gate_up": self.gate_up_proj[: self.num_routed_experts], "down": self.down_proj}


def _nllb(self: Any, hidden_states: Tensor, router_mask: Tensor, router_probs: Tensor) -> Tensor:
    y = _computed(self, hidden_states, router_mask.long(), router_probs)
    return y * (1 - self.moe_token_dropout) if self.moe_token_dropout > 0 else y


def _nllb_weights(self: Any) -> dict[str, Any]:
    each = _listed(self)
    return {
        "gate_up": [expert.fc1.weight for expert in each],
        "down": [expert.fc2.weight for expert in each],
        "gate_up_bias": [expert.fc1.bias for expert in each],
        "down_bias": [expert.fc2.bias for expert in each],
        "expert_kind": "mlp",
    }


def _switch(self: Any, hidden_states: Tensor, selected_experts: Tensor, routing_weights: Tensor) -> Tensor:
    chosen = selected_experts.reshape(
        len(hidden_states), -1
    )  # [T, E], one of them 1; none where it was dropped
    ids = torch.where(chosen.any(-1), chosen.int().argmax(-1), -1).unsqueeze(-1)
    return _computed(self, hidden_states, ids, routing_weights)


def _switch_weights(self: Any) -> dict[str, Any]:
    each = _listed(self)
    first, last = [expert.wi.weight for expert in each], [expert.wo.weight for expert in each]
    return {"gate_up": first, "down": last, "expert_kind": "mlp"}


def _listed(self: Any) -> list[Any]:
    return [self[f"expert_{number}"] for number in range(self.num_experts)]


def _of_each(one: str, other: str) -> Callable[[Any], Owners]:
    """Return who has the matrices of experts that are modules, with two linear layers each."""
    return lambda self: [(getattr(e, name), "weight") for e in _listed(self) for name in (one, other)]


def _of_one(path: str, *names: str) -> Callable[[Any], Owners]:
    """Return who has the matrices that one module has; none of those that are left out."""

    def owners(self: Any) -> Owners:
        owner = self.get_submodule(path)
        return [(owner, name) for name in names if getattr(owner, name) is not None]

    return owners


def _jetmoe_owners(self: Any) -> Owners:
    return [(self.input_linear, "weight"), (self.output_linear, "weight")]


_PROJECTIONS = ("gate_up_proj", "down_proj")
_FAMILIES: dict[tuple[str, str], Family] = {
    (f"transformers.models.{family}.modeling_{family}", name): Family(forward, weights, owners)
    for family, name, forward, weights, owners in (
        ("dbrx", "DbrxExperts", _dbrx, _dbrx_weights, _of_one("mlp", "w1", "v1", "w2")),
        ("jetmoe", "JetMoeMoE", _jetmoe, _jetmoe_weights, _jetmoe_owners),
        ("llama4", "Llama4TextMoe", _llama4, _llama4_weights, _of_one("experts", *_PROJECTIONS)),
        ("longcat_flash", "LongcatFlashExperts", _longcat, _longcat_weights, _of_one("", *_PROJECTIONS)),
        ("nllb_moe", "NllbMoeExperts", _nllb, _nllb_weights, _of_each("fc1", "fc2")),
        ("switch_transformers", "SwitchTransformersExperts", _switch, _switch_weights, _of_each("wi", "wo")),
    )
}
