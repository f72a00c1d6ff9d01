"""What a run's log says is wrong, in plain words, and what helps; every hint has the number that caused it.

The signs are those that the field's tables of troubleshooting list: an unstable router, idle experts, slow
steps, too little memory; and text that is learnt by heart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from .config import Settings
from .log import Record, of_kind

# From when on a number is a sign.
ENOUGH = 100  # steps: before, losses and loads are those of a model that has not begun to learn, and chance
TOKENS = 50  # of an expert on average, so that one without any is no chance
RISE = 1.05  # mean training loss of a quarter of the run over the lowest before: noise stays below
SPIKE = 10  # a gradient norm over the median
LARGE_LOGITS = 10  # root of the z loss, which is about the log of the sum of E exponentials; ln 64 is 4.2
WORSE_THAN_GUESSING = 1.2  # first loss over ln V
PEAK = 3  # fullest expert over the mean
DROPPED = 0.05  # share of the choices
OVERFITTED = 1.02  # held-out loss at the end over the best


@dataclass(frozen=True)
class Hint:
    """One finding.

    Attributes
    ----------
    sign : str
        What was seen, with its numbers.
    cure : str
        What helps, with the settings' names and values to try.
    """

    sign: str
    cure: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.sign}: {self.cure}"


def diagnose(settings: Settings, records: list[Record]) -> list[Hint]:
    """Read a run's log.

    Parameters
    ----------
    settings : Settings
        Of the run.
    records : list of dict
        As :func:`libmoe.train.log.read` gives them.

    Returns
    -------
    list of Hint
        The gravest first; empty when nothing is wrong.
    """
    steps = of_kind(records, "step")
    hints = [*_ended_badly(settings, records)]
    if steps:
        hints += _unstable(settings, records, steps)
        hints += _idle(settings, steps)
    return [*hints, *_overfitted(settings, records), *_slow(settings, records)]


def told(hints: list[Hint]) -> str:
    """Return hints as lines for people: signs that ask for the same cure stand above it together."""
    signs: dict[str, list[str]] = {}
    for hint in hints:
        signs.setdefault(hint.cure, []).append(hint.sign)
    return "\n".join("hint: " + "\n      ".join([*seen, f"try: {cure}"]) for cure, seen in signs.items())


def _ended_badly(settings: Settings, records: list[Record]) -> Iterator[Hint]:
    """Find a run that could not go on: numbers that are none, or no memory."""
    stops = of_kind(records, "stop")
    if not stops:
        return
    stop = stops[-1]
    if stop["why"] == "NotFiniteError":
        yield Hint(
            f"step {stop['step']} met a number that is not finite ({stop['message']})",
            ", ".join([_lower_rate(settings, 10), *_calmer(settings)]),
        )
    elif stop["why"] == "memory limit":
        roomy = math.ceil(stop["unlimited"] / 2**20)
        ranks = _ranks(records)
        whose = f" for each of {ranks} ranks" if ranks > 1 else ""
        yield Hint(
            f"the memory limit of {settings.memory_limit} MiB{whose} is too small ({stop['message']})",
            f"memory_limit {stop['least']} is the least that would do, {roomy} computes nothing twice; or "
            + _smaller_batch(settings, ranks),
        )
    elif stop["why"] == "OutOfMemoryError":
        plans = of_kind(records, "plan")
        batch = _smaller_batch(settings, _ranks(records))
        wanted = f"; its activations alone are {_mib(plans[-1]['total'])}" if plans else ""
        yield Hint(
            f"step {stop['step']} found no memory ({stop['message']}{wanted})",
            f"memory_limit, which computes again rather than keep, or {batch}",
        )


def _unstable(settings: Settings, records: list[Record], steps: list[Record]) -> Iterator[Hint]:
    """Find loss that rises or leaps: router gradients too large, a bad beginning, too quick a start."""
    first, bits, guessing = steps[0]["loss"], steps[0]["bits_per_byte"], _guessing(records)
    if guessing and first is not None and first > WORSE_THAN_GUESSING * guessing:
        yield Hint(
            f"the first loss, {bits:.2f} bits per byte, is worse than guessing, "
            f"{bits / first * guessing:.2f}",
            f"{_checked_beginning(settings)}, and warm the rate up (warmup_steps {settings.warmup_steps} -> "
            f"{max(100, settings.steps // 20)})",
        )
    for layer in steps[-1]["layers"]:
        size = math.sqrt(layer["z_loss"] or 0)
        if size > LARGE_LOGITS:
            yield Hint(
                f"layer {layer['layer']}: router logits are large, their log-sum-exp is about {size:.1f}",
                _larger_z(settings),
            )
    if steps[-1]["step"] < ENOUGH:
        return
    losses = [r["bits_per_byte"] for r in steps if r["bits_per_byte"] is not None]
    quarter = max(1, len(losses) // 4)
    means = [fmean(losses[i : i + quarter]) for i in range(len(losses) - quarter + 1)]
    rise, low, high = 1.0, 0.0, 0.0
    lowest = losses[0] if losses else 0.0
    for mean in means:  # the steepest way up, also of a run that came down again
        lowest = min(lowest, mean)
        if mean > rise * lowest:
            rise, low, high = mean / lowest, lowest, mean
    if rise > RISE:
        yield Hint(
            f"the training loss rose from {low:.4g} to {high:.4g} bits per byte",
            ", ".join([_lower_rate(settings, 3), *_calmer(settings)]),
        )
    # While the rate warms up norms are large by nature.
    warm = [record for record in steps if record["step"] > settings.warmup_steps and record["norm"]]
    norms = [record["norm"] for record in warm]
    highest = max(((record["norm_max"], record["step"]) for record in warm), default=(0.0, 0))
    if len(norms) >= 4 and highest[0] > SPIKE * median(norms):
        yield Hint(
            f"gradients leap: a norm of {highest[0]:.3g} up to step {highest[1]}, the median is "
            f"{median(norms):.3g}",
            ", ".join(_calmer(settings)) or _lower_rate(settings, 3),
        )


def _idle(settings: Settings, steps: list[Record]) -> Iterator[Hint]:
    """Find experts with nothing to do, experts with too much, choices without room: over the last quarter."""
    if steps[-1]["step"] < ENOUGH:
        return
    count = max(1, len(steps) // 4)
    last = steps[-count:]
    since = steps[-count - 1]["step"] if count < len(steps) else 0
    for n, layer in enumerate(last[-1]["layers"]):
        columns = zip(*(record["layers"][n]["load"] for record in last))
        load = [sum(column) for column in columns]  # [E]
        mean = sum(load) / len(load)
        idle, peak = load.count(0), max(load) / mean if mean else 0.0
        if mean >= TOKENS and (idle or peak > min(PEAK, 0.9 * len(load) / settings.top_k)):
            idlers = f"{idle} of {len(load)} experts got no token, " if idle else ""
            yield Hint(
                f"layer {layer['layer']}: {idlers}the fullest {peak:.1f} times the mean after step {since}",
                _more_balance(settings),
            )
        dropped = fmean(record["layers"][n]["dropped"] for record in last)
        if dropped > DROPPED:
            yield Hint(
                f"layer {layer['layer']}: {dropped:.1%} of the choices found no room",
                _more_room(settings) + _more_balance(settings),
            )


def _overfitted(settings: Settings, records: list[Record]) -> Iterator[Hint]:
    """Find held-out text that gets worse while the training goes on."""
    evaluations = [r for r in of_kind(records, "evaluation") if r["bits_per_byte"] is not None]
    bits = [record["bits_per_byte"] for record in evaluations]
    if bits and evaluations[-1]["step"] >= ENOUGH and bits[-1] > OVERFITTED * min(bits):
        yield Hint(
            f"held-out text got worse, from {min(bits):.3f} to {bits[-1]:.3f} bits per byte",
            f"more text, {_gentler(settings)}, or an early stop "
            f"(patience {settings.patience} -> {settings.patience or 3}); best.safetensors has the best",
        )


def _slow(settings: Settings, records: list[Record]) -> Iterator[Hint]:
    """Find steps that could be faster: idle processors, layers computed twice."""
    steps, starts, plans = (of_kind(records, kind) for kind in ("step", "start", "plan"))
    if not steps:
        return
    speed = f"{median(record['tokens_per_second'] or 0 for record in steps):,.0f} tokens/s"
    threads, processors = (starts[0]["threads"], starts[0]["processors"]) if starts else (1, 1)
    if threads < processors:
        yield Hint(
            f"{speed} with {threads} of {processors} processors",
            f"threads {threads} -> {processors}, the same bits",
        )
    again = sum(kept != "all" for kept in plans[-1]["keep"]) if plans else 0
    if again:
        yield Hint(
            f"{speed}, and {again} of {len(plans[-1]['keep'])} layers are computed twice to keep to "
            f"{settings.memory_limit} MiB",
            f"memory_limit {settings.memory_limit} -> {math.ceil(plans[-1]['unlimited'] / 2**20)}, or "
            + _smaller_batch(settings, _ranks(records)),
        )


def _guessing(records: list[Record]) -> float:
    """Return the nats per token of guessing, or 0 where the log has lost how many tokens there are."""
    starts = of_kind(records, "start")
    return math.log(starts[0]["vocabulary_size"]) if starts else 0.0


def _ranks(records: list[Record]) -> int:
    """Return how many ranks the run was last on."""
    return next((int(record["ranks"]) for record in reversed(records) if "ranks" in record), 1)


# What helps, in terms of the settings.


def _checked_beginning(settings: Settings) -> str:
    if settings.init:
        return f"check whether {settings.init} is whole, and trained on text like this"
    return "check the initialisation"


def _lower_rate(settings: Settings, by: int) -> str:
    return f"a lower learning_rate ({settings.learning_rate:g} -> {settings.learning_rate / by:g})"


def _calmer(settings: Settings) -> list[str]:
    """Return what helps beside a lower rate; the model of a folder has its own losses."""
    cures = [] if settings.init else [_larger_z(settings)]
    if settings.clip == "none":
        cures.append("clipping (clip none -> norm)")
    elif settings.clip == "norm" and settings.max_norm > 1:
        cures.append(f"clipping (max_norm {settings.max_norm:g} -> 1)")
    if settings.warmup_steps < settings.steps // 20:
        cures.append(f"a longer warm-up (warmup_steps {settings.warmup_steps} -> {settings.steps // 20})")
    return cures


def _gentler(settings: Settings) -> str:
    if settings.init:  # whose model has its own dropout
        return f"a lower rate (learning_rate {settings.learning_rate:g} -> {settings.learning_rate / 10:g})"
    return f"dropout ({settings.dropout:g} -> {settings.dropout + 0.1:g})"


def _larger_z(settings: Settings) -> str:
    if settings.init:
        return _lower_rate(settings, 3)
    if not settings.n_experts:
        return "smaller first weights"
    return f"a larger z loss (z_coef {settings.z_coef:g} -> {10 * settings.z_coef or 1e-3:g})"


def _more_room(settings: Settings) -> str:
    if settings.init:
        return ""
    factor = float(settings.moe.get("capacity_factor", 0) or 1)
    return f"more room (moe capacity_factor={factor:g} -> {1.5 * factor:g}), moe overflow=next_best, or "


def _more_balance(settings: Settings) -> str:
    if settings.init:
        return f"{_lower_rate(settings, 3)}, or text more like what {settings.init} was trained on"
    cures = [f"a larger balance loss (balance_coef {settings.balance_coef:g} -> {_larger(settings)})"]
    moe: dict[str, Any] = dict(settings.moe)
    if not moe.get("router_dropout"):
        cures.append("moe router_dropout=0.1")
    if moe.get("noise", "none") == "none":
        cures.append("moe noise=gaussian noise_std=0.1")
    if not moe.get("warmup_steps"):
        cures.append(f"experts that join later (moe warmup_steps={max(10, settings.steps // 10)})")
    if moe.get("capacity_formula", "none") == "none":
        cures.append("a capacity (moe capacity_formula=megatron capacity_factor=1.25)")
    return ", ".join(cures)


def _larger(settings: Settings) -> str:
    return f"{10 * settings.balance_coef or 0.01:g}"


def _smaller_batch(settings: Settings, ranks: int) -> str:
    half = max(1, settings.sequences // 2)
    if settings.sequences <= ranks:  # none has more than one
        length = settings.sequence_length
        return f"shorter sequences (sequence_length {length} -> {length // 2})"
    before = settings.accumulate
    return (
        f"half the batch, twice (sequences {settings.sequences} -> {half}, "
        f"accumulate {before} -> {before * settings.sequences // half})"
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
