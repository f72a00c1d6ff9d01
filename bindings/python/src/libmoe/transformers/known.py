"""What a class of experts computes, found by trying it: its flags, its activation and its gate.

transformers' classes say by flags how their weights lie, and may have an activation and a gate of their own.
Both are tried on a few numbers and compared with what libmoe computes, so that a class nobody has seen yet is
taken for what it does and not for what it is called.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda v: F.relu(v).square(),
    "quick_gelu": lambda v: v * torch.sigmoid(1.702 * v),
}
FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")


class Known(NamedTuple):
    """How libmoe computes a class; or why it cannot."""

    reason: str
    activation: str = ""
    limit: float = 0.0
    alpha: float = 0.0
    offset: float = 0.0


_found: dict[Any, Known] = {}
_of_module: weakref.WeakKeyDictionary[nn.Module, Kept] = weakref.WeakKeyDictionary()


class Kept(NamedTuple):
    """What a module was when it was tried."""

    names: list[str]  # of its numbers and flags
    values: list[Any]
    functions: tuple[Any, Any]
    known: Known

    def is_current(self, module: nn.Module) -> bool:
        """Whether it still is that."""
        own = vars(module)
        return self.functions == _functions(module) and self.values == list(map(own.get, self.names))


def known(module: nn.Module) -> Known:
    """Return what a module's experts compute, tried once for each class and its numbers."""
    return kept(module).known


def kept(module: nn.Module) -> Kept:
    """Return the same with what it depends on."""
    found = _of_module.get(module)
    if found is not None and found.is_current(module):
        return found
    key = (type(module), _act(module), *(getattr(module, flag, None) for flag in FLAGS), *_numbers(module))
    if key not in _found:
        _found[key] = _tried(module)
    own = vars(module)
    names = [name for name, value in own.items() if isinstance(value, (int, float))]
    made = Kept(names, [own[name] for name in names], _functions(module), _found[key])
    _of_module[module] = made
    return made


def _functions(module: nn.Module) -> tuple[Any, Any]:
    own = vars(module)
    act = own["_modules"].get("act_fn") or own.get("act_fn")
    return act, getattr(type(module), "_apply_gate", None)


def _act(module: nn.Module) -> Any:
    """Return what tells activations apart: functions themselves, modules by class and numbers."""
    act = getattr(module, "act_fn", None)
    return (type(act), repr(act)) if isinstance(act, nn.Module) else act


def _numbers(module: nn.Module) -> list[float]:
    """Return the numbers that may be a clamp or a slope of the gate."""
    own = vars(module)
    config = getattr(module, "config", None)
    of_config = (
        {
            name: value
            for name, value in vars(config).items()
            if any(word in name for word in ("limit", "alpha", "clamp"))
        }
        if config is not None
        else {}
    )
    found = (*own.values(), *of_config.values())
    return sorted(
        {float(v) for v in found if isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0}
    )


def _tried(module: nn.Module) -> Known:
    if getattr(module, "has_post_expert_norm", False):
        return Known("it normalises every expert's output, which libmoe does not")
    with torch.no_grad():
        try:
            return _gated(module) if module.has_gate else _plain(module)
        except Exception as error:  # of somebody's gate, on numbers it did not expect
            return Known(f"its activation cannot be tried on a few numbers ({error})")


def activation_of(function: Callable[[Tensor], Tensor]) -> str | None:
    """Return libmoe's word for an activation, if there is one."""
    with torch.no_grad():
        v = torch.linspace(-8, 8, 65)
        theirs = function(v)
        return next((name for name, ours in ACTIVATIONS.items() if _same(theirs, ours(v))), None)


def _plain(module: Any) -> Known:
    found = activation_of(module.act_fn)
    return Known("", found) if found else Known(f"libmoe has not its activation, {module.act_fn}")


def _gated(module: Any) -> Known:
    numbers = _numbers(module)
    scales = [1.0, 4.0, *(1.5 * number for number in numbers if 4 < number < 1e3)]
    random = torch.Generator().manual_seed(0)
    both = torch.cat([scale * torch.randn(32, 16, generator=random) for scale in scales])
    theirs = module._apply_gate(both)
    gate, up = both.chunk(2, -1) if module.is_concatenated else (both[:, ::2], both[:, 1::2])
    for each in _gates(numbers):
        if _same(theirs, _gate(each, gate, up)):
            return each
    return Known("its gate is none of libmoe's: act(gate) * up, clamped or not")


def _gates(numbers: list[float]) -> Iterator[Known]:
    """Yield what libmoe computes, the plainest first."""
    for limit, offset in itertools.product((0.0, *numbers), (0.0, 1.0)):
        for name in ACTIVATIONS:
            yield Known("", name, limit, 0.0, offset)
        for alpha in numbers:
            yield Known("", "silu", limit, alpha, offset)


def _gate(known: Known, gate: Tensor, up: Tensor) -> Tensor:
    if known.limit:
        gate, up = gate.clamp(max=known.limit), up.clamp(-known.limit, known.limit)
    acted = gate * torch.sigmoid(known.alpha * gate) if known.alpha else ACTIVATIONS[known.activation](gate)
    return acted * (up + known.offset)


def _same(theirs: Any, ours: Tensor) -> bool:
    return (
        isinstance(theirs, Tensor) and theirs.shape == ours.shape and torch.allclose(theirs, ours, 1e-4, 1e-5)
    )
