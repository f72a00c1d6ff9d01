"""What every model has: its real block, the names libmoe has for its parts, and one run of it."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]
Tensors = dict[str, Tensor]
Part = Callable[[nn.Parameter], Tensor]  # a parameter's values, or its gradient


@dataclass(frozen=True)
class Case:
    """One situation that a model is run in."""

    # Changes the parameters and x in place.
    prepare: Callable[[Draft], None]
    # The model's choice hangs on nothing that is defined: the test gives it to libmoe.
    forced: bool = False
    # How near dx must be, relative to its largest value.
    dx_tolerance: float = 1e-5
    # What differs in the model's configuration, and what libmoe.Layer has for that.
    config: Arguments = field(default_factory=dict)
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model of transformers."""

    make: Callable[..., nn.Module]  # its block, given what differs in the configuration
    arguments: Arguments  # of libmoe.Layer, beside those that the preset sets
    names: Callable[[nn.Module, Part], Tensors]  # libmoe's names and shapes of the parameters
    router: str = "gate"  # the submodule that chooses
    router_weight: str = "gate.weight"
    router_bias: str = ""
    selection_bias: str = ""
    # (weights [T,K], indices [T,K]) from what the router returns
    routing: Callable[[nn.Module, Any], tuple[Tensor, Tensor]] = lambda block, output: output[1:3]
    # libmoe chooses by the logits: scores that underflow or saturate do not blur the choice.
    by_logits: bool = True
    huge: float = 200.0  # how far the router's weights are scaled in the case of that name
    sequences: int = 2
    cases: dict[str, Case] = field(default_factory=dict)


class Draft:
    """A block with random parameters, and inputs for it; a case changes both."""

    def __init__(self, model: Model, case: Case, n_tokens: int, hidden_size: int) -> None:
        self.model, self.case = model, case
        self.block = model.make(**case.config).eval()
        for name, p in self.block.named_parameters():
            nn.init.normal_(p, std=0.5 if name in (model.router_weight, model.router_bias) else 0.35)
        self.x, self.dy = torch.randn(2, n_tokens, hidden_size)
        if (bias := self.selection_bias) is not None:
            bias.normal_(std=0.1)
        case.prepare(self)

    def part(self, path: str) -> Tensor | None:
        """Values to change in place, without the leading 1 that a model may have; None if there are none."""
        found = attrgetter(path)(self.block) if path else None
        return None if found is None else found.detach().squeeze(0)

    @property
    def router(self) -> Tensor:
        """The gate's weight [E,H]."""
        weight = self.part(self.model.router_weight)
        assert weight is not None
        return weight

    @property
    def router_bias(self) -> Tensor | None:
        """The gate's bias [E]."""
        return self.part(self.model.router_bias)

    @property
    def selection_bias(self) -> Tensor | None:
        """What is added for the choice alone [E]."""
        return self.part(self.model.selection_bias)

    @property
    def logits(self) -> Tensor:
        """In float64 [T,E]."""
        z = self.x.double() @ self.router.double().T
        return z if self.router_bias is None else z + self.router_bias.double()


def run(draft: Draft, block: nn.Module) -> Tensors:
    """Forward, and backward of <dy, y>, in the block's precision; gradients are in the folder gradient/."""
    model = draft.model
    dtype = next(block.parameters()).dtype
    x = draft.x.to(dtype, copy=True).requires_grad_()
    seen: list[Any] = []
    handle = block.get_submodule(model.router).register_forward_hook(
        lambda _, __, output: seen.append(output)
    )
    output = block(x.view(model.sequences, -1, x.shape[-1]))
    handle.remove()
    y = (output[0] if isinstance(output, tuple) else output).reshape(x.shape)
    (draft.dy.to(dtype) * y).sum().backward()
    weights, indices = model.routing(block, seen[0])
    assert x.grad is not None
    return {
        "y": y.detach(),
        "expert_indices": indices.int(),
        "expert_weights": weights.detach(),
        "gradient/x": x.grad,
    } | {f"gradient/{name}": value for name, value in model.names(block, gradient).items()}


def run_wide(draft: Draft) -> Tensors:
    """The same with float64 everywhere."""
    with float64_for_float32(draft.block):
        block = draft.model.make(**draft.case.config).eval()
        block.load_state_dict(draft.block.state_dict())
        return run(draft, block.double())


@contextmanager
def float64_for_float32(block: nn.Module) -> Iterator[None]:
    """Blocks widen bfloat16 to float32 here and there; in a float64 block that would narrow.

    So the block's source file sees a torch whose float32 is float64.
    """
    source = sys.modules[type(block).__module__]
    with mock.patch.object(source, "torch", Wide()), mock.patch.object(Tensor, "float", Tensor.double):
        yield


class Wide:
    """The module torch, but for its float32."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


# ------------------------------------------------------------------------------------------------------------
# libmoe's names
# ------------------------------------------------------------------------------------------------------------


def values(p: nn.Parameter) -> Tensor:
    """Of a parameter."""
    return p.detach()


def gradient(p: nn.Parameter) -> Tensor:
    """Of a parameter; 0 where no token has reached it."""
    return torch.zeros_like(p) if p.grad is None else p.grad


def gated(experts: nn.Module, part: Part) -> Tensors:
    """Experts of most models: gate [E,I,H] lies above up in one matrix."""
    gate, up = part(experts.gate_up_proj).chunk(2, dim=1)
    return {
        "experts.gate.weight": gate,
        "experts.up.weight": up,
        "experts.down.weight": part(experts.down_proj),
    }


def shared(mlp: nn.Module, part: Part) -> Tensors:
    """One shared expert."""
    return {
        "shared.gate.weight": part(mlp.gate_proj.weight)[None],
        "shared.up.weight": part(mlp.up_proj.weight)[None],
        "shared.down.weight": part(mlp.down_proj.weight)[None],
    }
