"""The layer of moe.h once more, in float64 numpy: what the tests hold libmoe to.

It is written from the equations, shares nothing with the library, and puts the reader before speed. Read it
from top to bottom: linear maps, activations, router, losses, experts, layer; each backward stands under its
forward.

    T tokens   H features   E experts   I inner features   K chosen experts of a token
    d_v is the gradient of the objective with respect to v, and has v's shape

Parameters are a dict under libmoe's names; which of them are there says what kind of layer it is. The choice
of experts, and with it the counts, is a constant for the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Parameters = dict[str, Array]


@dataclass(frozen=True)
class Settings:
    """What the parameters do not say by themselves."""

    top_k: int
    router_weights: str = "scores"  # or "topk_softmax"
    normalize: bool = True
    activation: str = "gelu"
    balance_coef: float = 0.01
    z_coef: float = 0.001
    weight_dtype: str = "f32"  # or "bf16"
    glu_limit: float = 0.0  # 0 is none
    glu_alpha: float = 0.0  # 0 is 1
    glu_offset: float = 0.0

    @classmethod
    def of(cls, layer_arguments: dict[str, Any]) -> Settings:
        """Take what belongs here out of the arguments of libmoe.Layer."""
        return cls(
            **{key: value for key, value in layer_arguments.items() if key in cls.__dataclass_fields__}
        )


def stored(settings: Settings, v: Array) -> Array:
    """V as an array of tokens holds it: beside bfloat16 weights with eight digits, even ones in a tie."""
    if settings.weight_dtype == "f32":
        return v
    mantissa, exponent = np.frexp(v)  # 1/2 <= |mantissa| < 1
    rounded: Array = np.ldexp(np.rint(mantissa * 2**8), exponent - 8)
    return rounded


# ------------------------------------------------------------------------------------------------------------
# Linear maps and softmax
# ------------------------------------------------------------------------------------------------------------


def linear(parameters: Parameters, name: str, x: Array) -> Array:
    """x W^T + b:  x [N,in]  W [out,in]  b [out], where there is one  ->  [N,out]."""
    y = x @ parameters[f"{name}.weight"].T
    if f"{name}.bias" in parameters:
        y = y + parameters[f"{name}.bias"]
    return y


def linear_backward(parameters: Parameters, gradients: Parameters, name: str, x: Array, d_y: Array) -> Array:
    """Add to the gradients of W and b; return d_x [N,in]."""
    gradients[f"{name}.weight"] += d_y.T @ x
    if f"{name}.bias" in gradients:
        gradients[f"{name}.bias"] += d_y.sum(axis=0)
    return d_y @ parameters[f"{name}.weight"]


def softmax(v: Array) -> Array:
    """Over the last axis."""
    exponentials = np.exp(v - v.max(axis=-1, keepdims=True))
    p: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return p


def softmax_backward(p: Array, d_p: Array) -> Array:
    """d_v for p = softmax(v)."""
    d_v: Array = p * (d_p - (p * d_p).sum(axis=-1, keepdims=True))
    return d_v


# ------------------------------------------------------------------------------------------------------------
# Activations: each gives its values and its slopes
# ------------------------------------------------------------------------------------------------------------

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(v: Array) -> tuple[Array, Array]:
    """v Phi(v) with the normal distribution Phi; Phi' is the density."""
    cumulative = 0.5 * (1 + erf(v / math.sqrt(2)))
    density = np.exp(-0.5 * v**2) / math.sqrt(2 * math.pi)
    return v * cumulative, cumulative + v * density


def gelu_tanh(v: Array) -> tuple[Array, Array]:
    """GELU with Phi(v) taken as (1 + tanh(u)) / 2."""
    u = math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)
    d_u = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * v**2)
    cumulative = 0.5 * (1 + np.tanh(u))
    return v * cumulative, cumulative + v * 0.5 * (1 - np.tanh(u) ** 2) * d_u


def silu(v: Array) -> tuple[Array, Array]:
    """v sigmoid(v)."""
    sigmoid = 1 / (1 + np.exp(-v))
    return v * sigmoid, sigmoid + v * sigmoid * (1 - sigmoid)


def relu(v: Array) -> tuple[Array, Array]:
    """max(v, 0)."""
    return np.maximum(v, 0), (v > 0).astype(np.float64)


def relu2(v: Array) -> tuple[Array, Array]:
    """max(v, 0)^2."""
    return np.maximum(v, 0) ** 2, 2 * np.maximum(v, 0)


def quick_gelu(v: Array) -> tuple[Array, Array]:
    """v sigmoid(1.702 v)."""
    value, slope = silu(1.702 * v)
    return value / 1.702, slope


ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "relu": relu,
    "relu2": relu2,
    "quick_gelu": quick_gelu,
}


def gated(settings: Settings, gate: Array, up: Array) -> tuple[Array, Array, Array]:
    """act(min(gate, L)) * (up clamped to -L ... L, + offset), and its slopes along gate and along up."""
    limit, alpha = settings.glu_limit or np.inf, settings.glu_alpha or 1.0
    # v sigmoid(alpha v) = silu(alpha v) / alpha: alpha is for SiLU alone.
    value, slope = ACTIVATIONS[settings.activation](alpha * np.minimum(gate, limit))
    factor = np.clip(up, -limit, limit) + settings.glu_offset
    along_gate = slope * factor * (gate <= limit)
    return value / alpha * factor, along_gate, value / alpha * (np.abs(up) <= limit)


# ------------------------------------------------------------------------------------------------------------
# Router: which experts, and with what weights
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Routing:
    """The router's decision for every token."""

    logits: Array  # [T,E]
    probabilities: Array  # [T,E], softmax over all experts
    indices: NDArray[np.int64]  # [T,K], best first
    weights: Array  # [T,K]

    def margin(self) -> float:
        """How far the choice is from changing: the smallest step from a chosen logit to the next one down."""
        top_k = self.indices.shape[1]
        descending = -np.sort(-self.logits, axis=1)[:, : top_k + 1]  # [T,K+1], or [T,E] when K = E
        with np.errstate(invalid="ignore"):
            steps = descending[:, :-1] - descending[:, 1:]
        # Experts that are shut out, -inf beside -inf, give NaN: no rounding can swap those.
        return float(np.min(steps, where=~np.isnan(steps), initial=np.inf))


def route(settings: Settings, parameters: Parameters, x: Array) -> Routing:
    """x [T,H] -> routing."""
    logits = linear(parameters, "router", x)  # [T,E]
    probabilities = softmax(logits)  # [T,E]
    # A stable sort leaves equal logits in the order of their experts: the lowest index wins.
    indices = np.argsort(-logits, axis=1, kind="stable")[:, : settings.top_k]  # [T,K]
    if settings.router_weights == "topk_softmax":
        weights = softmax(np.take_along_axis(logits, indices, axis=1))
    else:
        weights = np.take_along_axis(probabilities, indices, axis=1)
        if settings.normalize:
            weights = weights / weights.sum(axis=1, keepdims=True)
    return Routing(logits, probabilities, indices, weights)


def route_backward(
    settings: Settings,
    parameters: Parameters,
    gradients: Parameters,
    x: Array,
    routing: Routing,
    d_weights: Array,
    d_probabilities: Array,
    d_logits: Array,
) -> Array:
    """Add to the router's gradients; return its share of d_x [T,H].

    d_weights [T,K] comes from the experts; d_probabilities and d_logits [T,E] come from the losses.
    """
    if settings.router_weights == "topk_softmax":
        d_chosen_logits = softmax_backward(routing.weights, d_weights)  # [T,K]
        d_logits = d_logits + spread(d_chosen_logits, routing)
    elif settings.normalize:  # weights = chosen / sum(chosen)
        chosen = np.take_along_axis(routing.probabilities, routing.indices, axis=1)  # [T,K]
        d_sum = (d_weights * routing.weights).sum(axis=1, keepdims=True)  # [T,1]
        d_chosen = (d_weights - d_sum) / chosen.sum(axis=1, keepdims=True)  # [T,K]
        d_probabilities = d_probabilities + spread(d_chosen, routing)
    else:
        d_probabilities = d_probabilities + spread(d_weights, routing)
    d_logits = d_logits + softmax_backward(routing.probabilities, d_probabilities)
    return linear_backward(parameters, gradients, "router", x, d_logits)


def spread(of_chosen: Array, routing: Routing) -> Array:
    """[T,K] -> [T,E]: every value at its expert's place, 0 elsewhere."""
    of_all = np.zeros_like(routing.logits)
    np.put_along_axis(of_all, routing.indices, of_chosen, axis=1)
    return of_all


# ------------------------------------------------------------------------------------------------------------
# Losses and statistics of the routing
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Named as in libmoe.Report."""

    balance_loss: float
    z_loss: float
    aux_loss: float
    entropy: float
    tokens_per_expert: NDArray[np.int64]  # [E]
    mean_probability: Array  # [E]


def report_on(settings: Settings, routing: Routing) -> Report:
    """The losses and statistics; all of them 0 for T = 0."""
    n_tokens, n_experts = routing.logits.shape
    per_token = 1 / max(n_tokens, 1)
    p = routing.probabilities  # [T,E]
    counts = np.bincount(routing.indices.ravel(), minlength=n_experts)  # [E]
    mean_probability = p.sum(axis=0) * per_token  # [E]
    balance = n_experts * float(np.sum(counts * per_token * mean_probability))
    z = float(np.sum(logsumexp(routing.logits) ** 2)) * per_token
    # 0 ln 0 = 0: an expert that is shut out adds nothing.
    entropy = -float(np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p)))) * per_token
    aux = settings.balance_coef * balance + settings.z_coef * z
    return Report(balance, z, aux, entropy, counts, mean_probability)


def report_backward(
    settings: Settings, routing: Routing, report: Report, d_aux_loss: float
) -> tuple[Array, Array]:
    """d_probabilities through the balance loss and d_logits through the z-loss, both [T,E]."""
    n_tokens, n_experts = routing.logits.shape
    per_token = 1 / max(n_tokens, 1)
    share = report.tokens_per_expert * per_token  # f [E]
    d_probability = (
        d_aux_loss * settings.balance_coef * n_experts * share * per_token
    )  # [E], alike for every token
    d_probabilities = np.tile(d_probability, (n_tokens, 1))
    # The gradient of logsumexp is the softmax.
    d_logsumexp = d_aux_loss * settings.z_coef * 2 * logsumexp(routing.logits) * per_token  # [T]
    return d_probabilities, d_logsumexp[:, None] * routing.probabilities


def logsumexp(logits: Array) -> Array:
    """[T,E] -> [T]."""
    largest = logits.max(axis=1)
    total: Array = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return total


# ------------------------------------------------------------------------------------------------------------
# One expert, on the N tokens that chose it
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpertCall:
    """What one expert saw and made."""

    tokens: NDArray[np.int64]  # [N], which rows of x
    slots: NDArray[np.int64]  # [N], which of each token's K choices this expert was
    mask: Array | float  # [N,I], what dropout multiplies by: 0, or 1 / (1 - dropout)
    gate: Array | None  # [N,I] before the activation; None in MLP and linear experts
    up: Array | None  # [N,I], in an MLP expert before the activation; None in a linear one
    inner: Array  # [N,I], what goes down; in a linear expert x
    output: Array  # [N,H]


def of_expert(parameters: Parameters, e: int) -> Parameters:
    """Expert e's own slices, as views: "experts.up.weight" [E,I,H] becomes "up.weight" [I,H].

    The only map of a linear expert is "down" here.
    """
    prefix = "experts."
    own = {
        name.removeprefix(prefix): value[e] for name, value in parameters.items() if name.startswith(prefix)
    }
    return {name if "." in name else f"down.{name}": value for name, value in own.items()}


def expert(
    settings: Settings,
    own: Parameters,
    x: Array,
    tokens: NDArray[np.int64],
    slots: NDArray[np.int64],
    mask: Array | float,
) -> ExpertCall:
    """W_down inner + b_down: inner is act(up) in MLP, gated(gate, up) in gated and x in linear experts."""
    x = stored(settings, x[tokens])  # [N,H]
    if "up.weight" not in own:
        return ExpertCall(tokens, slots, 1.0, None, None, x, linear(own, "down", x))  # nothing to drop
    up = stored(settings, linear(own, "up", x))  # [N,I]
    if "gate.weight" in own:
        gate = stored(settings, linear(own, "gate", x))  # [N,I]
        inner = stored(settings, gated(settings, gate, up)[0] * mask)
    else:
        gate = None
        inner = stored(settings, ACTIVATIONS[settings.activation](up)[0] * mask)
    return ExpertCall(tokens, slots, mask, gate, up, inner, linear(own, "down", inner))


def expert_backward(
    settings: Settings,
    own: Parameters,
    gradients: Parameters,
    x: Array,
    call: ExpertCall,
    weights: Array,
    d_mixed: Array,
) -> Array:
    """Add to the expert's gradients; return its share of d_x [N,H].

    d_mixed [N,H] is the gradient of weights * output, weights [N,1].
    """
    x = stored(settings, x[call.tokens])  # [N,H]
    linear_backward(own, gradients, "down", call.inner, stored(settings, weights * d_mixed))
    d_inner = weights * (stored(settings, d_mixed) @ own["down.weight"]) * call.mask  # [N,I]
    if call.up is None:
        return d_inner
    if call.gate is None:
        _, slope = ACTIVATIONS[settings.activation](call.up)
        return linear_backward(own, gradients, "up", x, stored(settings, d_inner * slope))
    _, along_gate, along_up = gated(settings, call.gate, call.up)
    d_gate = stored(settings, d_inner * along_gate)  # [N,I]
    d_x_gate = linear_backward(own, gradients, "gate", x, d_gate)
    return d_x_gate + linear_backward(own, gradients, "up", x, stored(settings, d_inner * along_up))


# ------------------------------------------------------------------------------------------------------------
# The layer
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forward:
    """The output, and what backward needs."""

    settings: Settings
    parameters: Parameters
    x: Array  # [T,H]
    y: Array  # [T,H]
    routing: Routing
    report: Report
    calls: list[ExpertCall]  # [E]


def forward(
    settings: Settings, parameters: Mapping[str, ArrayLike], x: ArrayLike, dropout_mask: Array | None = None
) -> Forward:
    """y[t] = sum over k of weights[t,k] * expert(indices[t,k])(x[t]).

    x [T,H] of any precision; dropout_mask [T,K,I] holds 0 or 1 / (1 - dropout), and None drops nothing.
    """
    p: Parameters = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    x = np.asarray(x, np.float64)
    routing = route(settings, p, x)
    y = np.zeros_like(x)
    calls = []
    for e in range(routing.logits.shape[1]):
        tokens, slots = np.nonzero(routing.indices == e)
        mask = 1.0 if dropout_mask is None else dropout_mask[tokens, slots]
        call = expert(settings, of_expert(p, e), x, tokens, slots, mask)
        y[tokens] += routing.weights[tokens, slots, None] * call.output
        calls.append(call)
    return Forward(settings, p, x, y, routing, report_on(settings, routing), calls)


def backward(done: Forward, d_y: ArrayLike, d_aux_loss: float = 1.0) -> tuple[Array, Parameters]:
    """d_x [T,H] and the parameters' gradients, for the objective <d_y, y> + d_aux_loss * aux_loss."""
    d_y = np.asarray(d_y, np.float64)  # [T,H]
    gradients = {name: np.zeros_like(value) for name, value in done.parameters.items()}
    d_x = np.zeros_like(done.x)
    d_weights = np.zeros_like(done.routing.weights)  # [T,K]
    for e, call in enumerate(done.calls):
        d_mixed = d_y[call.tokens]  # [N,H], gradient of weight * output
        weights = done.routing.weights[call.tokens, call.slots, None]  # [N,1]
        own, own_gradients = of_expert(done.parameters, e), of_expert(gradients, e)
        # <d_mixed, output>, of which the matrix's part is multiplied with d_mixed as it is stored.
        bias = own.get("down.bias", np.float64(0))
        by_matrix = stored(done.settings, d_mixed) * (call.output - bias)  # [N,H]
        d_weights[call.tokens, call.slots] = (by_matrix + d_mixed * bias).sum(axis=1)
        d_x[call.tokens] += expert_backward(done.settings, own, own_gradients, done.x, call, weights, d_mixed)
    d_probabilities, d_logits = report_backward(done.settings, done.routing, done.report, d_aux_loss)
    d_x += route_backward(
        done.settings, done.parameters, gradients, done.x, done.routing, d_weights, d_probabilities, d_logits
    )
    return d_x, gradients
