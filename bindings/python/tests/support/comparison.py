"""What is compared, and how near is near enough: one rule for every comparison with float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

import libmoe

# The tests' inputs are of order 1, so this is small beside all values but those that are nearly 0 by design,
# such as the entropy of a router that is sure of itself: no error is small in relation to 0.
FLOOR = 1e-3


def assert_close(
    what: str, actual: ArrayLike, expected: ArrayLike, tolerance: float = 1e-5, floor: float = FLOOR
) -> None:
    """The largest difference is at most `tolerance` times the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual - expected).max(initial=0)
    scale = max(np.abs(expected).max(initial=0), floor)
    assert error <= tolerance * scale, f"{what}: off by {error:.3g} where the values reach {scale:.3g}"


def assert_all_close(
    actual: Mapping[str, ArrayLike],
    expected: Mapping[str, ArrayLike],
    tolerance: float = 1e-5,
    floor: float = FLOOR,
) -> None:
    """The same arrays are there, and each is close."""
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(name, actual[name], expected[name], tolerance, floor)


def assert_same_bits(actual: ArrayLike, expected: ArrayLike, what: str = "") -> None:
    """Every number is the same one: NaN is NaN, and -0 is not 0."""
    found, wanted = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    np.testing.assert_array_equal(found.view(f"u{found.itemsize}"), wanted.view(f"u{wanted.itemsize}"), what)


def assert_all_same_bits(actual: Mapping[str, ArrayLike], expected: Mapping[str, ArrayLike]) -> None:
    """The same arrays are there, and each has the same bits."""
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_same_bits(actual[name], expected[name], name)


def gradients_of(layer: libmoe.Layer, dx: NDArray[np.float32] | None) -> dict[str, NDArray[np.float32]]:
    """Copies of all that backward computed, by the parameters' names and "x"."""
    assert dx is not None
    return {"x": dx.copy()} | {name: parameter.grad.copy() for name, parameter in layer.parameters.items()}
