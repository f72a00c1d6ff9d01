"""Packed weights for inference, of all experts of a model."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .. import words
from .._native import abi, check
from ..errors import ArgumentTypeError, BadStateError, InvalidArgumentError
from ..torch import prepare as pack
from ..torch._by_call import Experts
from ..torch.prepared import Prepared
from .forward import first_weight, laid_out
from .known import known
from .ready import PACKED, READY, WEIGHTS
from .replace import Owners, family_of, is_replaceable, weights_of


def prepare(model: nn.Module, *, form: words.Prepared | None = None, release: bool = False) -> int:
    """Pack the weights of all experts that libmoe computes, and return how many modules these are.

    A decoding step is the time it takes to read the weights: packed, they are read in one go, and in
    bfloat16 they are half as many bytes.  The packed weights do not follow the parameters.  A call after
    ``load_state_dict``, an optimiser's step or any other change is an error; ``model.train()`` lets go of
    them, but of few bits that want no gradient: adapters can be trained over these.

    Parameters
    ----------
    model : Module
        With ``experts_implementation="libmoe"``, or with blocks that :func:`replace` replaced.
    form : {"f32", "bf16", "int8", "int8_a8", "int4", "int4_a8", "int4_g64", ..., "none"}, optional
        ``"f32"``: the same bits as without.  ``"bf16"``: of float32 weights rounded.  ``"int8"`` and so on:
        weights of few bits, see :meth:`libmoe.Layer.prepare`.  ``"none"``: let go of packed weights.  By
        default as the parameters are.
    release : bool
        Whether the parameters' own memory goes, so that the weights are there once.  The model can then
        neither be saved nor load other weights, nor be trained, but for adapters over few bits.

    Examples
    --------
    ::

        model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="libmoe")
        libmoe.transformers.prepare(model.eval(), form="bf16", release=True)
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model: expected a torch Module, got {type(model).__name__}")
    if form is not None:
        check.choice("form", form, abi.PREPARED)
    found = [module for module in model.modules() if _is_ours(module)]
    if not found:
        raise InvalidArgumentError(f"model: has no experts that libmoe computes{_cure(model)}")
    if form != "none":
        _require_own_weights(model, found)
    if form != "none" and any(module.training for module in found):
        raise BadStateError("model: is in training, which lets go of packed weights; call model.eval() first")
    for module in found:
        if any(getattr(*place).is_meta for place in _owners(module)):
            raise BadStateError(
                f"{type(module).__name__}: its weights were released by prepare(release=True), and cannot be "
                "packed again or let go of; load the model again"
            )
    for module in found:
        setattr(module, PACKED, None)
        vars(module)[READY] = None
        if form != "none":
            _pack(module, form, release)
    if release and form != "none":
        _refuse_saving(model)
    return len(found)


def _chosen(module: nn.Module) -> bool:
    chosen = getattr(getattr(module, "config", None), "_experts_implementation", None)
    return chosen == "libmoe" and hasattr(module, "_is_expert_parallel")


def _is_ours(module: nn.Module) -> bool:
    family = family_of(module)
    if family is not None:
        return all(getattr(*place).dtype in WEIGHTS for place in family.owners(module))
    return _chosen(module) and not known(module).reason and first_weight(module).dtype in WEIGHTS


def _cure(model: nn.Module) -> str:
    """Say why none of a model's experts are libmoe's."""
    chosen = [module for module in model.modules() if _chosen(module)]
    if not chosen and any(hasattr(module, "_is_expert_parallel") for module in model.modules()):
        return "; use model.set_experts_implementation('libmoe') first"
    if not chosen and any(map(is_replaceable, model.modules())):
        return "; use libmoe.transformers.replace(model) first"
    if not chosen:
        return ": there are none in it whose implementation can be chosen, as in a dense model"
    reason, dtype = known(chosen[0]).reason, first_weight(chosen[0]).dtype
    name = type(chosen[0]).__name__
    return f": {name}: {reason}" if reason else f": they are {dtype}; load them with dtype=torch.bfloat16"


def _require_own_weights(model: nn.Module, experts: list[nn.Module]) -> None:
    """Refuse experts that PEFT's target_parameters adapt: their weights are others in each call."""
    for wrapper in model.modules():
        if type(wrapper).__name__ == "ParamWrapper" and any(inner in experts for inner in wrapper.modules()):
            raise BadStateError(
                "model: PEFT computes its experts' weights anew in each call (target_parameters), so that "
                "there is nothing to pack; call model.merge_and_unload() first, and prepare what it returns"
            )


def _owners(module: nn.Module) -> Owners:
    """Return who has the matrices of a module's experts, and by which names."""
    family = family_of(module)
    if family is not None:
        return family.owners(module)
    return [(module, name) for name in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")]


def _pack(module: nn.Module, form: str | None, release: bool) -> None:
    owners = _owners(module)
    wanted = form or ("f32" if getattr(*owners[0]).dtype is torch.float32 else "bf16")
    packed = _packed(module, wanted)
    setattr(module, PACKED, packed)
    if release:
        packed.is_sole = True
        _release(module, owners)


def _packed(module: nn.Module, form: Any) -> Prepared:
    if family_of(module) is not None:
        given = weights_of(module)
        layout = {name: given[name] for name in ("expert_kind", "transposed") if name in given}
        return pack(given["gate_up"], given["down"], form=form, **layout)
    laid = laid_out(module, known(module).activation, None)
    experts = Experts(laid.form, laid.n_experts, laid.intermediate_size, (0.0, 0.0, 0.0))
    return Prepared(experts, laid.hidden_size, laid.tensors, form)


class Released(Tensor):
    """A parameter without memory.

    A state dict may hold it, since adapters are saved from one; to save or to copy it is an error.
    """

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Refuse what would read it."""
        if function in (Tensor.contiguous, Tensor.clone, Tensor.to, Tensor.cpu):
            raise BadStateError(_RELEASED)
        plain: Any = super().__torch_function__
        return plain(function, types, arguments, named or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled."""
        raise BadStateError(_RELEASED)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Refuse a copy."""
        raise BadStateError(_RELEASED)


_RELEASED = (
    "model: its experts' weights were released (by quantize or prepare(release=True)) and are packed alone; "
    "load the model again to save or copy it, or save few bits with libmoe.Model.save_pretrained"
)


def _refuse_saving(model: nn.Module) -> None:
    """Have ``save_pretrained`` refuse before it writes config.json."""
    for each in model.modules():
        if isinstance(each, PreTrainedModel):
            each.save_pretrained = functools.partial(_save, each)  # type: ignore[method-assign, unused-ignore]


def _save(model: Any, *arguments: Any, **named: Any) -> None:
    """Save what there is to save: adapters of the model's own, or what the caller has put together."""
    if named.get("state_dict") is None and not getattr(model, "_hf_peft_config_loaded", False):
        raise BadStateError(_RELEASED)
    type(model).save_pretrained(model, *arguments, **named)


def _release(module: nn.Module, owners: Owners) -> None:
    for owner, name in owners:
        weight = getattr(owner, name)
        empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta").as_subclass(Released)
        setattr(owner, name, nn.Parameter(empty, requires_grad=False))
    for owner in _each_once([module, *(owner for owner, _ in owners)]):
        owner._apply = functools.partial(_apply_to_others, owner)  # type: ignore[method-assign]
        owner.register_load_state_dict_pre_hook(_refuse)  # type: ignore[no-untyped-call]
    if family_of(module) is None:
        module.register_forward_pre_hook(_require_ours)


def _apply_to_others(module: nn.Module, *arguments: Any, **named: Any) -> nn.Module:
    """Do what ``module.to`` and others do, to parameters that have memory."""
    own = module._parameters
    module._parameters = {name: p for name, p in own.items() if p is None or not p.is_meta}
    try:
        apply: Any = type(module)._apply
        apply(module, *arguments, **named)
    finally:
        module._parameters = {name: module._parameters.get(name, p) for name, p in own.items()}
    return module


def _each_once(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return list(dict.fromkeys(modules))


def _refuse(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if any(p.is_meta and prefix + name in state for name, p in module.named_parameters(recurse=False)):
        raise BadStateError(
            f"{type(module).__name__}: its weights were released by prepare(release=True); load the model "
            "again to load other weights into it"
        )


def _require_ours(module: Any, arguments: Any) -> None:
    """Refuse a call that would not read the packed weights: other implementations compute with no memory."""
    if first_weight(module).is_meta and not (_is_ours(module) and arguments[0].dtype in WEIGHTS):
        raise BadStateError(
            f"{type(module).__name__}: its weights were released by prepare(release=True), and only libmoe "
            "computes with what is left, in float32 and bfloat16; load the model again for anything else"
        )
