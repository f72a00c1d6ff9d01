"""What a model was made with, asked of the library; and models that the library has made."""

from __future__ import annotations

import ctypes
import inspect
import pickle
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe._model_config import to_c
from libmoe._native import abi
from libmoe._native.library import Handle, lib
from libmoe.context import handle_of
from small_language_models import CASES, DENSE, LANGUAGE, MOE

TABLE = np.arange(17 * 2, dtype=np.int32).reshape(17, 2) % 4
EVERYTHING: dict[str, Any] = {
    **LANGUAGE,
    **DENSE,
    "head_size": 4,
    "moe": {**MOE, "router": "hash", "hash_table": TABLE, "losses": {"switch": 0.01}},
    "layers": [{"dense": True}, {"rotary": 1, "window": 4}, {"rotary": -1, "chunk": 3}],
    "rotary_tables": [
        {"theta": 100.0, "rotary_size": 2},
        {"frequencies": [0.5, 0.25], "long_frequencies": [0.1, 0.2], "original_length": 6, "long_scale": 1.5},
    ],
}


def handle(arguments: dict[str, Any], context: libmoe.Context) -> Handle:
    """A model as C makes it: all that its configuration pointed at is gone."""
    parent = handle_of(context)
    known = {name: p.default for name, p in inspect.signature(libmoe.Model).parameters.items()}
    made = to_c({**known, **arguments})
    found = Handle(
        lib.moe_model_create,
        lib.moe_model_free,
        parent,
        ctypes.byref(made.c_config),
        keep={"context": parent},
    )
    for array in made.arrays.values():
        array[...] = np.nan
    return found


@pytest.mark.parametrize("case", [*CASES, "everything"])
def test_a_model_from_a_handle_is_the_model_itself(case: str) -> None:
    arguments = EVERYTHING if case == "everything" else {"head_size": 4, **CASES[case]}
    with libmoe.Context(n_threads=1) as context:
        ours = libmoe.Model(**arguments, context=context)
        theirs = libmoe.Model._from_handle(handle(arguments, context), context)
        again = pickle.loads(pickle.dumps(theirs))
        random = np.random.default_rng(3)
        shape = (2, 7)
        tokens: Any = random.integers(0, 17, shape).astype(np.int32)
        if not arguments.get("vocabulary_size"):
            tokens = random.standard_normal((*shape, arguments["hidden_size"])).astype(np.float32)
        expected = ours.forward(tokens, hidden=True)
        assert expected.hidden is not None
        for model in (theirs, again):
            assert model.state_dict().keys() == ours.state_dict().keys()
            output = model.forward(tokens, hidden=True)
            np.testing.assert_array_equal(output.hidden, expected.hidden)
            assert [layer is None for layer in output.layers] == [layer is None for layer in expected.layers]
            assert [layer.intermediate_size for layer in model.layers] == [
                layer.intermediate_size for layer in ours.layers
            ]


def test_the_configuration_is_as_it_was_given() -> None:
    with libmoe.Context(n_threads=1) as context:
        model = handle(EVERYTHING, context)
        config = abi.moe_model_config()
        lib.moe_model_configuration(model, ctypes.byref(config))
        assert (config.hidden_size, config.n_layers, config.seed) == (12, 3, 5)
        assert [config.layers[n].window for n in range(3)] == [0, 4, 0]
        assert [config.layers[n].rotary for n in range(3)] == [0, 1, -1]
        table = config.rotary_tables[1]
        pairs = ctypes.c_double * 2
        assert list(pairs.from_address(table.frequencies)) == [0.5, 0.25]
        assert list(pairs.from_address(table.long_frequencies)) == [0.1, 0.2]
        assert (table.original_length, table.long_scale) == (6, 1.5)
        moe = config.moe.contents
        found = np.ctypeslib.as_array((ctypes.c_int32 * TABLE.size).from_address(moe.hash_table))
        np.testing.assert_array_equal(found, TABLE.reshape(-1))
        assert (moe.n_losses, moe.losses[0].kind) == (1, abi.LOSS["switch"])


def test_a_struct_of_another_size_is_refused() -> None:
    model = libmoe.Model(**CASES["language"])
    config = abi.moe_model_config()
    config.struct_size = 8
    with pytest.raises(libmoe.InvalidArgumentError, match="config: struct_size = 8"):
        lib.moe_model_configuration(model._handle, ctypes.byref(config))
