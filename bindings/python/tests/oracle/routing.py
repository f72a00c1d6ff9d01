"""The router as a whole: from its input to the experts and weights of every token."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .batch import Batch
from .capacity import Admission, admit
from .choice import Choice, choose, gap_of
from .linear import logsumexp, softmax, softmax_backward
from .logits import Logits, gate, gate_backward
from .router_input import RouterInput, read, read_backward
from .settings import Array, Booleans, Integers, Parameters, Settings
from .weights import Weights, weigh, weigh_backward


@dataclass(frozen=True)
class Routing:
    """The router's decision for every token."""

    made: RouterInput
    gate: Logits
    has_gate: bool  # without one the logits are 0, and so is all that comes from them
    probabilities: Array  # [T,E], softmax over all experts
    logsumexp: Array  # [T]
    indices: Integers  # [T,C], who computes; -1 for none
    weights: Array  # [T,C], 0 for none
    weighed: Weights
    choice: Choice
    admission: Admission
    near: float  # smallest distance of a decision here from another one

    @property
    def chosen(self) -> Integers:
        """The experts [T,C] before dropping: what losses count; -1 for none."""
        return self.choice.indices

    def margin(self) -> float:
        """How far the router is from deciding otherwise."""
        return min(self.near, self.choice.gap, self.admission.gap)


def route(settings: Settings, parameters: Parameters, batch: Batch, n_experts: int) -> Routing:
    """A batch of T tokens -> routing."""
    made = read(settings, parameters, batch)
    has_gate = "router.weight" in parameters
    if has_gate:
        said = gate(settings, parameters, batch, made.x)
        probabilities, lse = softmax(said.z), logsumexp(said.z)
    else:
        zeros = np.zeros((len(batch.x), n_experts))
        said = Logits(zeros, zeros, zeros, zeros, zeros, zeros, zeros, {})
        probabilities, lse = zeros, np.zeros(len(batch.x))
    choice = choose(settings, parameters, batch, said)
    present = choice.indices >= 0
    first = weigh(settings, parameters, said.z, choice.indices, present)
    kept, near = keep_second(batch, present, first.weights)
    kept = kept & batch.computed[:, None]
    admission = admit(settings, batch, choice.by, choice.indices, kept, first.weights)
    there = admission.indices >= 0
    weighed = weigh(
        settings,
        parameters,
        said.z,
        np.where(there, admission.indices, choice.indices),
        present if settings.renormalize == "before" else there,
    )
    weights = weighed.weights if batch.expert_weights is None else batch.expert_weights
    if settings.losses:  # some of which count the largest probabilities, whatever was chosen
        near = min(near, gap_of(said.z, settings.top_k))
    return Routing(
        made,
        said,
        has_gate,
        probabilities,
        lse,
        admission.indices,
        np.where(there, weights, 0.0),
        weighed,
        choice,
        admission,
        near,
    )


def keep_second(batch: Batch, present: Booleans, weights: Array) -> tuple[Booleans, float]:
    """GShard's second choice of weight w stays with probability min(1, 2 w); and how near that was."""
    if batch.draws.second is None or batch.expert_indices is not None or not len(weights):
        return present, np.inf
    distance = 2 * weights[:, 1] - batch.draws.second
    kept = present.copy()
    kept[:, 1] &= distance > 0
    return kept, float(np.abs(distance).min())


@dataclass(frozen=True)
class RoutingGradient:
    """What comes back to the router: from experts through the weights, from losses through all of these."""

    weights: Array  # [T,C]
    probabilities: Array  # [T,E]
    logits: Array  # [T,E]
    clean: Array  # [T,E], of the logits before noise
    spread: Array  # [T,E], of the noise's deviation

    def plus(self, factor: float, other: RoutingGradient) -> RoutingGradient:
        """Self + factor * other."""
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return RoutingGradient(*(mine + factor * theirs for mine, theirs in pairs))


def nothing(routing: Routing) -> RoutingGradient:
    """No gradient at all."""
    of_logits = np.zeros_like(routing.gate.z)
    return RoutingGradient(np.zeros_like(routing.weights), *[of_logits.copy() for _ in range(4)])


def route_backward(
    settings: Settings,
    parameters: Parameters,
    gradients: Parameters,
    batch: Batch,
    routing: Routing,
    d: RoutingGradient,
) -> Array:
    """Add to the router's gradients; return its share of d_x [T,H]."""
    if not routing.has_gate:
        return np.zeros_like(batch.x)
    d_z = d.logits + softmax_backward(routing.probabilities, d.probabilities)
    if batch.expert_weights is None:
        d_weights = np.where(routing.indices >= 0, d.weights, 0.0)
        d_z += weigh_backward(settings, parameters, gradients, routing.gate.z, routing.weighed, d_weights)
    d_read = gate_backward(
        settings, parameters, gradients, batch, routing.made.x, routing.gate, d_z, d.clean, d.spread
    )
    return read_backward(settings, parameters, gradients, batch, routing.made, d_read)
