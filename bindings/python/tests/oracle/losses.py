"""The losses of moe_loss. Each gives its value and its gradient; counts are constants, and T = 0 gives 0.

P_e   mean over tokens of the probability p_te
f_e   share of the tokens that chose e, before dropping
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np

from .activations import normal_cumulative
from .batch import Batch
from .choice import SCORES, largest, opened
from .routing import Routing, RoutingGradient, nothing
from .settings import Array, Booleans, Integers, Settings
from .weights import score_backward, spread

Loss = tuple[float, RoutingGradient]


def share_times_mean(counts: Array, p: Array, factor: float) -> tuple[float, Array]:
    """Factor * sum of f_e P_e, and its gradient along p; counts, p [T,E]."""
    f = counts.mean(axis=0)
    return factor * float(f @ p.mean(axis=0)), np.broadcast_to(factor * f / len(p), p.shape)


def by_sequence(batch: Batch, counts: Array, p: Array, factor: float) -> tuple[float, Array]:
    """The mean of that over sequences, 0 for a sequence that is all padding."""
    value, d_p = 0.0, np.zeros_like(p)
    for s in range(batch.n_sequences):
        tokens = np.flatnonzero(batch.sequence == s)
        if len(tokens):
            of_sequence, d_p[tokens] = share_times_mean(counts[tokens], p[tokens], factor / batch.n_sequences)
            value += of_sequence
    return value, d_p


def choices(routing: Routing, slots: slice = slice(None)) -> Array:
    """How often each token chose each expert [T,E]."""
    chosen = routing.chosen[:, slots]
    return spread(np.ones(chosen.shape), chosen, routing.gate.z.shape[1])


def along_p(routing: Routing, result: tuple[float, Array]) -> Loss:
    """A loss whose gradient goes through the probabilities."""
    return result[0], replace(nothing(routing), probabilities=result[1])


# ------------------------------------------------------------------------------------------------------------
# Shares times means
# ------------------------------------------------------------------------------------------------------------


def balance(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """E sum f_e P_e, an expert once a token."""
    once = np.minimum(choices(routing), 1)
    return along_p(routing, share_times_mean(once, routing.probabilities, once.shape[1]))


def balance_positive(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """E sum f_e P_e, f of the tokens in which e has a weight above 0."""
    used = np.where(routing.weights > 0, routing.indices, -1)
    once = np.minimum(spread(np.ones(used.shape), used, routing.gate.z.shape[1]), 1)
    return along_p(routing, share_times_mean(once, routing.probabilities, once.shape[1]))


def balance_count(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """(E / T) sum count_e P_e."""
    counts = choices(routing)
    return along_p(routing, share_times_mean(counts, routing.probabilities, counts.shape[1]))


def transformers(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """E sum f_e P_e, f from the K largest probabilities."""
    p = routing.probabilities
    counts = opened(p, settings.top_k).astype(np.float64)
    return along_p(routing, share_times_mean(counts, p, p.shape[1]))


def switch(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """E sum f_e P_e, f from the largest probability [Switch 2021]."""
    p = routing.probabilities
    return along_p(routing, share_times_mean(opened(p, 1).astype(np.float64), p, p.shape[1]))


def switch_sequence(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """The mean of switch over sequences."""
    p = routing.probabilities
    return along_p(routing, by_sequence(batch, opened(p, 1).astype(np.float64), p, p.shape[1]))


def gshard(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """E^2 mean over e of f_e P_e, first choices alone [GShard 2020]."""
    first = choices(routing, slice(0, 1))
    return along_p(routing, share_times_mean(first, routing.probabilities, first.shape[1]))


def deepspeed(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """As gshard for K <= 2; else E^2 / K mean over e of f_e P_e of all choices."""
    if settings.top_k <= 2:
        return gshard(settings, batch, routing)
    counts = choices(routing)
    factor = counts.shape[1] / settings.top_k
    return along_p(routing, share_times_mean(counts, routing.probabilities, factor))


def tutel_gshard(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """Sum over e of (sum p_te) (first choices of e * E / T) / T."""
    first, p = choices(routing, slice(0, 1)), routing.probabilities
    of_expert = first.sum(axis=0) * first.shape[1] / len(p) / len(p)
    return along_p(routing, (float(p.sum(axis=0) @ of_expert), np.broadcast_to(of_expert, p.shape)))


def megatron_scores(settings: Settings, routing: Routing) -> tuple[Array, Array, Booleans]:
    """Scores divided by their sum + 1e-20 [T,E], that divisor [T,1], and which are the K largest."""
    scores = SCORES[settings.score](routing.gate.z)
    size = scores.sum(axis=1, keepdims=True) + 1e-20
    return scores / size, size, opened(scores, settings.top_k)


def along_scores(settings: Settings, routing: Routing, result: tuple[float, Array]) -> Loss:
    """A loss whose gradient goes through the divided scores."""
    p, size, _ = megatron_scores(settings, routing)
    d_scores = (result[1] - (result[1] * p).sum(axis=1, keepdims=True)) / size
    return result[0], replace(nothing(routing), logits=score_backward(settings, routing.gate.z, d_scores))


def megatron(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """E / K sum f_e P_e of the scores, f from the K largest."""
    p, _, top = megatron_scores(settings, routing)
    factor = p.shape[1] / settings.top_k
    return along_scores(settings, routing, share_times_mean(top.astype(np.float64), p, factor))


def megatron_sequence(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """The mean of megatron over sequences."""
    p, _, top = megatron_scores(settings, routing)
    factor = p.shape[1] / settings.top_k
    return along_scores(settings, routing, by_sequence(batch, top.astype(np.float64), p, factor))


def megatron_global(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """E sum over e of (e's share of all choices, those counted elsewhere included) P_e."""
    p, _, top = megatron_scores(settings, routing)
    counts = top.sum(axis=0) + batch.global_counts
    of_expert = p.shape[1] * counts / counts.sum() / len(p)
    result = (float(p.sum(axis=0) @ of_expert), np.broadcast_to(of_expert, p.shape))
    return along_scores(settings, routing, result)


# ------------------------------------------------------------------------------------------------------------
# Variations
# ------------------------------------------------------------------------------------------------------------


def variation(v: Array) -> tuple[float, Array]:
    """CV^2 of v [E]: unbiased variance / (mean^2 + 1e-10), and its gradient. One number does not vary."""
    if len(v) == 1:
        return 0.0, np.zeros(1)
    mean, variance = v.mean(), v.var(ddof=1)
    size = mean**2 + 1e-10
    d_v = 2 * (v - mean) / (len(v) - 1) / size - variance / size**2 * 2 * mean / len(v)
    return float(variance / size), d_v


def variance(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """Unbiased variance of the counts / (T K / E)^2; no gradient."""
    counts = choices(routing).sum(axis=0)
    even = len(routing.chosen) * settings.top_k / len(counts)
    return (float(counts.var(ddof=1)) / even**2 if len(counts) > 1 else 0.0), nothing(routing)


def importance(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """CV^2 of the sums of weights [Shazeer 2017]."""
    there = routing.indices >= 0
    sums = spread(routing.weights, routing.indices, routing.gate.z.shape[1]).sum(axis=0)
    value, d_sums = variation(sums)
    return value, replace(nothing(routing), weights=np.where(there, d_sums[routing.indices], 0.0))


def mean_weight(routing: Routing, factors: Array) -> Loss:
    """Sum over e of factor_e * the mean over tokens of e's weight."""
    there = routing.indices >= 0
    means = spread(routing.weights, routing.indices, len(factors)).mean(axis=0)
    d_weights = np.where(there, factors[routing.indices] / len(there), 0.0)
    return float(factors @ means), replace(nothing(routing), weights=d_weights)


def l1(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """The mean over tokens of the sum of weights."""
    return mean_weight(routing, np.ones(routing.gate.z.shape[1]))


def l1_balanced(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """The same, experts in demand counting more: E times their share of what weighs anything [ReMoE 2024]."""
    used = np.where(routing.weights > 0, routing.indices, -1)
    counts = np.minimum(spread(np.ones(used.shape), used, routing.gate.z.shape[1]), 1).sum(axis=0)
    return mean_weight(routing, len(counts) * counts / max(counts.sum(), 1.0))


def load(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """CV^2 of the smooth loads: chances of a logit to be among the K best with another draw of its noise.

    P(t,e) = Phi((clean - threshold) / deviation); the threshold is the (K+1)-th noisy logit for those among
    the K best and the K-th for the others [Shazeer 2017, appendix A].
    """
    said, k = routing.gate, settings.top_k
    assert settings.router != "hierarchical" and said.kept.shape == (1, 1)  # z is clean but for the noise
    n_experts = said.z.shape[1]
    if k == n_experts:
        return variation(np.full(n_experts, float(len(said.z))))[0], nothing(routing)
    order = largest(said.z, k + 1)
    behind = np.where(
        opened(said.z, k), order[:, [k]], order[:, [k - 1]]
    )  # [T,E], whose logit is the threshold
    q = (said.clean - np.take_along_axis(said.z, behind, axis=1)) / said.spread
    chance, density = normal_cumulative(q)
    value, d_loads = variation(chance.sum(axis=0))
    d_clean = d_loads * density / said.spread
    d_spread = -d_clean * np.where(np.isfinite(q), q, 0.0)
    d_z = np.zeros_like(said.z)
    np.add.at(d_z, (np.arange(len(d_z))[:, None], behind), -d_clean)
    return value, replace(nothing(routing), logits=d_z, clean=d_clean, spread=d_spread)


def shazeer(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """The sum of importance and load."""
    (a, d_a), (b, d_b) = importance(settings, batch, routing), load(settings, batch, routing)
    return a + b, d_a.plus(1.0, d_b)


def tutel_importance_load(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """(CV^2 of the sums of probabilities + load) / 2."""
    p = routing.probabilities
    a, d_sums = variation(p.sum(axis=0))
    b, d_b = load(settings, batch, routing)
    d_a = replace(nothing(routing), probabilities=np.broadcast_to(d_sums / 2, p.shape))
    return (a + b) / 2, d_a.plus(0.5, d_b)


# ------------------------------------------------------------------------------------------------------------
# Sizes of logits
# ------------------------------------------------------------------------------------------------------------


def squared_logsumexp(routing: Routing, per_token: float) -> Loss:
    """per_token * sum of logsumexp^2."""
    d_z = 2 * per_token * routing.logsumexp[:, None] * routing.probabilities
    return per_token * float((routing.logsumexp**2).sum()), replace(nothing(routing), logits=d_z)


def z_loss(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """Mean of logsumexp^2 [ST-MoE 2022]."""
    return squared_logsumexp(routing, 1 / len(routing.logsumexp))


def z_switch(settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """The sum of logsumexp^2 over valid tokens, divided by the number of all."""
    return squared_logsumexp(routing, 1 / batch.n_rows)


LOSSES: dict[str, Callable[[Settings, Batch, Routing], Loss]] = {
    "balance": balance,
    "balance_count": balance_count,
    "balance_positive": balance_positive,
    "transformers": transformers,
    "switch": switch,
    "switch_sequence": switch_sequence,
    "gshard": gshard,
    "deepspeed": deepspeed,
    "megatron": megatron,
    "megatron_sequence": megatron_sequence,
    "megatron_global": megatron_global,
    "variance": variance,
    "importance": importance,
    "l1": l1,
    "l1_balanced": l1_balanced,
    "load": load,
    "shazeer": shazeer,
    "tutel_gshard": tutel_gshard,
    "tutel_importance_load": tutel_importance_load,
    "z": z_loss,
    "z_switch": z_switch,
}


def loss(kind: str, settings: Settings, batch: Batch, routing: Routing) -> Loss:
    """A loss by its name, of the tokens that count; 0 where there are none."""
    if not batch.counts.any():
        return 0.0, nothing(routing)
    value, own = LOSSES[kind](settings, *counted(batch, routing))
    gradient = nothing(routing)
    for part in fields(gradient):
        getattr(gradient, part.name)[batch.counts] = getattr(own, part.name)
    return value, gradient


def counted(batch: Batch, routing: Routing) -> tuple[Batch, Routing]:
    """What losses look at, of the tokens that count alone."""
    rows = batch.counts

    def of_tokens(array: Array) -> Array:
        """[T,...] -> [N,...]; what is the same for all tokens has one row."""
        return array[rows] if len(array) == len(rows) and array.shape != (1, 1) else array

    said = routing.gate
    gate = replace(
        said,
        z=of_tokens(said.z),
        clean=of_tokens(said.clean),
        spread=of_tokens(said.spread),
        kept=of_tokens(said.kept),
    )
    return replace(batch, sequence=batch.sequence[rows]), replace(
        routing,
        gate=gate,
        probabilities=routing.probabilities[rows],
        logsumexp=routing.logsumexp[rows],
        indices=routing.indices[rows],
        weights=routing.weights[rows],
        choice=replace(routing.choice, indices=routing.choice.indices[rows]),
    )


def pooled_balance(
    tokens_per_expert: Integers, n_valid: Integers, mean_probability: Array
) -> tuple[float, Array]:
    """moe_pooled_balance_loss: E sum f_e P_e, f and P of all layers' tokens together, and its gradient [L,E].

    tokens_per_expert, mean_probability [L,E], n_valid [L].
    """
    n_tokens = n_valid.sum()
    if not n_tokens:
        return 0.0, np.zeros_like(mean_probability)
    f = tokens_per_expert.sum(axis=0) / n_tokens
    p = (n_valid[:, None] * mean_probability).sum(axis=0) / n_tokens
    return float(len(f) * (f @ p)), len(f) * np.outer(n_valid / n_tokens, f)
