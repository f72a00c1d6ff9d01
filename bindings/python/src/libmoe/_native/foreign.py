"""Arrays of other packages, and lists: how each of them becomes an array that can be used."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Elements(NamedTuple):
    """What the elements of an array may be."""

    types: tuple[Any, ...]  # numpy's, the first for arrays over the library's memory
    name: str  # torch's as well
    called: str  # in messages
    asked: str  # of numpy, to get them


TYPES = {
    "f32": Elements((np.float32,), "float32", "float32", "numpy.float32"),
    "bf16": Elements((np.uint16,), "bfloat16", "bfloat16 (as uint16)", "numpy.float32"),
    "f16": Elements((np.float16,), "float16", "float16", "numpy.float16"),
    "f64": Elements((np.float64,), "float64", "float64", "numpy.float64"),
    "i32": Elements((np.int32,), "int32", "int32", "numpy.int32"),
    "i64": Elements((np.int64,), "int64", "int64", "numpy.int64"),
    "mask": Elements((np.bool_, np.uint8), "bool", "bool or uint8", "bool"),
}


def cure(name: str, value: Any, dtype: str, write: bool) -> str:
    """Return the expression that makes a numpy array of something else.

    Parameters
    ----------
    name : str
        Of the argument.
    value
        Which is no numpy array.
    dtype : str
        What is wanted: one of TYPES.
    write : bool
        Whether the library writes into it.
    """
    package = type(value).__module__.partition(".")[0]
    asked = TYPES[dtype].asked
    if package == "torch":
        return _torch(name, value, dtype)
    if package in ("jax", "jaxlib"):
        made = f"numpy.array({name}, {asked})" if write else f"numpy.asarray({name}, {asked})"
    elif package == "tensorflow":
        made = f"{name}.numpy().astype({asked})"
    elif package == "cupy":
        made = f"cupy.asnumpy({name}).astype({asked})"
    elif package in ("pandas", "polars"):
        made = f"{name}.to_numpy({asked})" if package == "pandas" else f"{name}.to_numpy().astype({asked})"
    elif package == "scipy":
        made = f"{name}.toarray().astype({asked})"
    elif value is None:
        return "an array of the shape that the documentation names"
    else:
        made = f"numpy.asarray({name}, {asked})"
    return f"libmoe.to_bfloat16({made})" if dtype == "bf16" else made


def _torch(name: str, value: Any, dtype: str) -> str:
    """Of a tensor, which shares its memory with the array where its type is the right one."""
    has, wanted = str(value.dtype).partition(".")[2], TYPES[dtype].name
    made = f"{name}.detach()"
    if str(getattr(value, "device", "cpu")) != "cpu":
        made += ".cpu()"
    if has != wanted and not (wanted == "bool" and has == "uint8"):
        made += f".to(torch.{wanted})"
    if callable(getattr(value, "is_contiguous", None)) and not value.is_contiguous():
        made += ".contiguous()"
    if wanted == "bfloat16":  # for which numpy has no type: its bits
        return f"{made}.view(torch.int16).numpy().view(numpy.uint16)"
    return f"{made}.numpy()"
