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
    router_weights: str = "scores"  # or "topk_softmax", "topk_sigmoid"
    normalize: bool | str = True  # "sum", or False, "none", "norm1", "norm2"
    score: str = "softmax"  # or "sigmoid", "sqrt_softplus", "identity"
    n_groups: int = 0
    top_groups: int = 0
    group_top_m: int = 0
    group_mask: str = "minus_infinity"  # or "zero"
    normalize_epsilon: float = 0.0
    epsilon_form: str = "added"  # or "least"
    routed_scale: float = 1.0
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
    values: Array  # [T,K], from which the weights were made
    selected_by: list[tuple[Array, int]]  # what was sorted, and how many of it were chosen

    def margin(self) -> float:
        """How far the choice is from changing: the smallest step from a chosen one to the next one down."""
        return min(margin(values, chosen) for values, chosen in self.selected_by)


def margin(values: Array, chosen: int) -> float:
    """The smallest step down among the `chosen` largest of each row and the one behind them."""
    descending = -np.sort(-values, axis=1)[:, : chosen + 1]
    with np.errstate(invalid="ignore"):
        steps = descending[:, :-1] - descending[:, 1:]
    # What is shut out, -inf beside -inf, gives NaN: no rounding can swap those.
    return float(np.min(steps, where=~np.isnan(steps), initial=np.inf))


def largest(values: Array, count: int) -> NDArray[np.int64]:
    """Where the largest are; a stable sort leaves equal ones in their order: the lowest index wins."""
    indices: NDArray[np.int64] = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return indices


def sigmoid(v: Array) -> Array:
    """1 / (1 + exp(-v))."""
    s: Array = 1 / (1 + np.exp(-v))
    return s


SCORES: dict[str, Callable[[Array], Array]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "sqrt_softplus": lambda v: np.sqrt(np.logaddexp(0, v)),
    "identity": lambda v: v,
}


def select(settings: Settings, parameters: Parameters, logits: Array) -> list[tuple[Array, int]]:
    """What groups, if there are any, and then experts are chosen by."""
    if "router.selection_bias" not in parameters and not settings.n_groups:
        return [(logits, settings.top_k)]  # scores rise with their logits
    by = SCORES[settings.score](logits) if settings.router_weights == "scores" else logits  # [T,E]
    by = np.where(logits == -np.inf, -np.inf, by + parameters.get("router.selection_bias", np.float64(0)))
    if not settings.n_groups:
        return [(by, settings.top_k)]
    grouped = by.reshape(len(by), settings.n_groups, -1)  # [T,G,E/G]
    best = -np.sort(-grouped, axis=2)[:, :, : max(1, settings.group_top_m)].sum(axis=2)  # [T,G]
    open_groups = np.zeros_like(best, dtype=bool)
    np.put_along_axis(open_groups, largest(best, settings.top_groups), True, axis=1)
    shut = 0.0 if settings.group_mask == "zero" else -np.inf
    by = np.where(open_groups[:, :, None], grouped, shut).reshape(by.shape)
    return [(best, settings.top_groups), (by, settings.top_k)]


def divisor(settings: Settings, values: Array) -> tuple[Array, Array]:
    """D [T,1] of the chosen values [T,K], and its slopes with respect to them."""
    wanted = settings.normalize
    kind = wanted if isinstance(wanted, str) else "sum" if wanted else "none"
    if kind == "none" or settings.router_weights == "topk_softmax":
        return np.ones_like(values[:, :1]), np.zeros_like(values)
    if kind == "sum":
        size, slopes = values.sum(axis=1, keepdims=True), np.ones_like(values)
    elif kind == "norm1":
        size, slopes = np.abs(values).sum(axis=1, keepdims=True), np.sign(values)
    else:
        size = np.sqrt((values**2).sum(axis=1, keepdims=True))
        slopes = values / size
    if settings.epsilon_form == "added":
        return size + settings.normalize_epsilon, slopes
    too_small = size < settings.normalize_epsilon
    return np.where(too_small, settings.normalize_epsilon, size), np.where(too_small, 0, slopes)


def route(settings: Settings, parameters: Parameters, x: Array) -> Routing:
    """x [T,H] -> routing."""
    logits = linear(parameters, "router", x)  # [T,E]
    selected_by = select(settings, parameters, logits)
    indices = largest(*selected_by[-1])  # [T,K]
    chosen = np.take_along_axis(logits, indices, axis=1)
    if settings.router_weights == "topk_softmax":
        values = softmax(chosen)
    elif settings.router_weights == "topk_sigmoid":
        values = sigmoid(chosen)
    else:
        values = np.take_along_axis(SCORES[settings.score](logits), indices, axis=1)
    factors = settings.routed_scale * parameters.get("router.expert_scale", np.ones(logits.shape[1]))[indices]
    weights = values / divisor(settings, values)[0] * factors
    return Routing(logits, softmax(logits), indices, weights, values, selected_by)


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
    values = routing.values  # [T,K]
    size, slopes = divisor(settings, values)
    scale = parameters.get("router.expert_scale", np.ones(routing.logits.shape[1]))[routing.indices]
    if "router.expert_scale" in gradients:
        d_scale = d_weights * values / size * settings.routed_scale
        np.add.at(gradients["router.expert_scale"], routing.indices, d_scale)
    d_shares = d_weights * settings.routed_scale * scale  # of values / size
    d_size = -(d_shares * values).sum(axis=1, keepdims=True) / size**2
    d_values = d_shares / size + d_size * slopes
    chosen = np.take_along_axis(routing.logits, routing.indices, axis=1)
    if settings.router_weights == "topk_softmax":
        d_logits = d_logits + spread(softmax_backward(values, d_values), routing)
    elif settings.router_weights == "topk_sigmoid" or settings.score == "sigmoid":
        d_logits = d_logits + spread(d_values * values * (1 - values), routing)
    elif settings.score == "sqrt_softplus":
        d_logits = d_logits + spread(d_values * sigmoid(chosen) / (2 * values), routing)
    elif settings.score == "identity":
        d_logits = d_logits + spread(d_values, routing)
    else:
        d_probabilities = d_probabilities + spread(d_values, routing)
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
    trained = {name: value for name, value in done.parameters.items() if name != "router.selection_bias"}
    gradients = {name: np.zeros_like(value) for name, value in trained.items()}
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
