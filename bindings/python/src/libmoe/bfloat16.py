"""bfloat16 arrays: the upper halves of float32 numbers, which numpy has no type for.

The library takes and gives them as ``uint16`` arrays of their bits; arrays of the type ``bfloat16`` that the
package ``ml_dtypes`` defines are taken as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._native.check import Array, FloatArray, array

BFloat16Array = NDArray[np.uint16]


def to_bfloat16(values: FloatArray) -> BFloat16Array:
    """Return the bits of the nearest bfloat16 numbers, the even one in a tie; NaN stays NaN.

    Parameters
    ----------
    values : ndarray of float32
        Of any shape.

    Returns
    -------
    ndarray of uint16, of the same shape
        A new array.

    Examples
    --------
    >>> import libmoe, numpy
    >>> libmoe.from_bfloat16(libmoe.to_bfloat16(numpy.float32([1, 3.1415927]))).tolist()
    [1.0, 3.140625]
    """
    bits = array("values", values).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    quiet = bits >> 16 | 0x40
    halves: BFloat16Array = np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
    return halves


def from_bfloat16(bits: Array) -> FloatArray:
    """Return bfloat16 numbers as float32, exactly.

    Parameters
    ----------
    bits : ndarray of uint16, or of ml_dtypes.bfloat16
        Of any shape.

    Returns
    -------
    ndarray of float32, of the same shape
        A new array.
    """
    words = array("bits", bits, dtype="bf16").view(np.uint16).astype(np.uint32) << 16
    values: FloatArray = words.view(np.float32)
    return values
