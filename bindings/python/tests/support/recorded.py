"""What PyTorch and transformers have computed, in files of ``parity``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def recorded(name: str) -> Arrays:
    """The arrays of a file; ``name`` has its folder, as in ``models/olmoe``."""
    with np.load(Path(__file__).parents[1] / "parity" / f"{name}.npz") as file:
        return dict(file)


def within(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
