"""The random numbers of a training call: Philox4x32-10 by counter [Salmon et al., SC'11].

Word i of a stream is lane i % 4 of the counter (i // 4, step, stream), the key is the seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .batch import Draws
from .settings import Array, Settings

Words = NDArray[np.uint64]  # each below 2^32

JITTER, ROUTER_DROPOUT, NOISE, SECOND, ORDER = 17, 18, 19, 20, 21  # streams
HALF = np.uint64(0xFFFF_FFFF)


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> Words:
    """Ten rounds: four words [N] -> [N,4]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            b & HALF,
            (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            a & HALF,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3], axis=1)


def blocks(seed: int, stream: int, step: int, index: Words) -> Words:
    """The four words [N,4] of each index [N]."""
    ones = np.ones_like(index)
    upper = (ones * np.uint64(step % 2**32), ones * np.uint64((step >> 32) << 8 | stream))
    return philox((index & HALF, index >> np.uint64(32), *upper), (seed % 2**32, seed >> 32))


def words(seed: int, stream: int, step: int, *shape: int) -> Words:
    """The first words of a stream, in an array of this shape."""
    count = int(np.prod(shape))
    index = np.arange((count + 3) // 4, dtype=np.uint64)
    return blocks(seed, stream, step, index).ravel()[:count].reshape(shape)


def symmetric(drawn: Words) -> Array:
    """Uniform in (-1, 1): the middles of 2^23 equal steps."""
    return ((drawn >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-22 - 1


def from_0_to_1(drawn: Words) -> Array:
    """Uniform in [0, 1): multiples of 2^-23."""
    return (drawn >> np.uint64(9)).astype(np.float64) * 2.0**-23


def normal(seed: int, stream: int, step: int, *shape: int) -> Array:
    """Marsaglia's polar method: for each element points in a square, tried until one falls inside the disc.

    The number of the try is the upper half of the element's index.
    """
    values = np.zeros(int(np.prod(shape)))
    left = np.arange(len(values), dtype=np.uint64)  # elements without a point
    attempt = 0
    while len(left):
        drawn = blocks(seed, stream, step, left | np.uint64(attempt << 32))[:, :2]
        u, v = ((drawn.astype(np.float64) + 0.5) * 2.0**-31 - 1).T
        s = u**2 + v**2
        inside = s < 1
        values[left[inside]] = u[inside] * np.sqrt(-2 * np.log(s[inside]) / s[inside])
        left, attempt = left[~inside], attempt + 1
    return values.reshape(shape)


def draw(settings: Settings, n_tokens: int, hidden_size: int, n_experts: int, step: int) -> Draws:
    """What a training step draws for T tokens, padding included."""
    seed, t = settings.seed, n_tokens
    kept = None
    if settings.router_dropout:
        width = hidden_size if settings.router_dropout_on == "input" else n_experts
        rate = float(np.float32(settings.router_dropout))
        kept = words(seed, ROUTER_DROPOUT, step, t, width) >= np.uint64(rate * 2**32)
    return Draws(
        jitter=symmetric(words(seed, JITTER, step, t, hidden_size)) if settings.jitter else None,
        kept=kept,
        noise=normal(seed, NOISE, step, t, n_experts) if settings.noise != "none" else None,
        second=from_0_to_1(words(seed, SECOND, step, t)) if settings.random_second else None,
        order=words(seed, ORDER, step, t, settings.top_k) if settings.drop == "random" else None,
    )
