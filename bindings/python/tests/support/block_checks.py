"""A block beside its float64 values, with the same bits in every way to compute."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

import libmoe
from comparison import assert_all_close

Arrays = dict[str, Any]
Double = NDArray[np.float64]


# Ways that promise the same bits.  OpenBLAS has its own; so have pairs of bfloat16 added at once.
SAME: list[dict[str, Any]] = [{"n_threads": n, "instructions": "avx512"} for n in (1, 2, 3, 7)]
OTHERS: list[dict[str, Any]] = [{"n_threads": 2, "matmul": "openblas"}, {"n_threads": 3}]


def check(
    compute: Callable[[libmoe.Context], Arrays],
    expected: Arrays,
    tolerance: float = 1e-5,
    *,
    pairs: bool = False,
) -> None:
    """Every way is near, and the ways that promise the same bits have the same bits."""
    first: Arrays | None = None
    for way in SAME + OTHERS:
        with libmoe.Context(**way) as context:
            found = compute(context)
        assert_all_close(found, expected, tolerance)
        if "openblas" in way.values() or (pairs and way is OTHERS[-1]):
            continue
        first = first or found
        for name, values in first.items():
            np.testing.assert_array_equal(found[name], values, err_msg=f"{name} with {way}")


def rounded(values: Any, dtype: str) -> Double:
    """What a product reads."""
    if dtype == "bf16":
        values = libmoe.from_bfloat16(libmoe.to_bfloat16(values))
    return np.asarray(values, np.float64)
