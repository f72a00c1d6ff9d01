"""How fast attention is, forward and backward, beside PyTorch's where that is installed.

    python benchmarks/attention.py [--threads 2] [--rounds 5]

prints milliseconds of processor time per call and thread, the least of some rounds, and GFLOP/s of the
products an ideal implementation needs (forward 2, backward 5; half of them where attention is causal).
"""

# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import libmoe
from libmoe import blocks

# B, S, heads, key heads, D
SHAPES = [(1, 2048, 8, 8, 64), (4, 512, 8, 2, 64), (1, 1024, 4, 4, 128)]


def least(rounds: int, threads: int, call: Callable[[], Any]) -> float:
    """Return milliseconds of the fastest round, by a clock on which others on the machine weigh less."""
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times[1:]) * 1e3 / threads


def ours(threads: int, rounds: int, inputs: list[Any], causal: bool) -> tuple[float, float]:
    """Return milliseconds of forward and of backward."""
    query, key, value, doutput = inputs
    context = libmoe.Context(n_threads=threads)
    output, log_sums = blocks.attention(query, key, value, causal=causal, context=context)
    into = np.empty_like(query), np.empty_like(key), np.empty_like(value)
    forward = least(
        rounds,
        threads,
        lambda: blocks.attention(query, key, value, causal=causal, out=output, context=context),
    )
    backward = least(
        rounds,
        threads,
        lambda: blocks.attention_backward(
            query, key, value, output, log_sums, doutput, causal=causal, into=into, context=context
        ),
    )
    return forward, backward


def theirs(threads: int, rounds: int, inputs: list[Any], causal: bool) -> tuple[float, float]:
    """Return those of torch.nn.functional.scaled_dot_product_attention."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array).transpose(1, 2) for array in inputs]
    grouped = tensors[0].shape[1] != tensors[1].shape[1]

    def call() -> Any:
        return scaled_dot_product_attention(*tensors[:3], is_causal=causal, enable_gqa=grouped)

    with torch.no_grad():
        forward = least(rounds, threads, call)
    for tensor in tensors[:3]:
        tensor.requires_grad_()
    output = call()
    backward = least(rounds, threads, lambda: output.backward(tensors[3], retain_graph=True))
    return forward, backward


def main() -> None:
    """Print one line for each shape and mask."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    peers: dict[str, Any] = {"libmoe": ours, "PyTorch": theirs}
    try:
        import torch  # noqa: F401
    except ImportError:
        del peers["PyTorch"]
    random = np.random.default_rng(0)
    for b, s, heads, kv_heads, d in SHAPES:
        widths = (heads, kv_heads, kv_heads, heads)
        inputs = [random.standard_normal((b, s, n, d), np.float32) for n in widths]
        for causal in (False, True):
            product = 2e-6 * b * heads * s * s * d / arguments.threads / (2 if causal else 1)
            for name, peer in peers.items():
                forward, backward = peer(arguments.threads, arguments.rounds, inputs, causal)
                print(
                    f"B {b} S {s} heads {heads}/{kv_heads} D {d} {'causal' if causal else 'full':6} {name:8}"
                    f" forward {forward:7.2f} ms {2 * product / forward:4.0f} GFLOP/s per thread,"
                    f" backward {backward:7.2f} ms {5 * product / backward:4.0f}"
                )


if __name__ == "__main__":
    main()
