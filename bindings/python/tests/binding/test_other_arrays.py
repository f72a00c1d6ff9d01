"""Arrays of other packages and element types: refused, with a cure that works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from arrays import normal
from wrong_calls import IDS, X, blocks, layer, libmoe, model, refused

# ------------------------------------------------------------------------------------------------------------
# Arrays of other packages
# ------------------------------------------------------------------------------------------------------------


def pretended(package: str, **attributes: Any) -> Any:
    """An object of a class that a package of that name defines."""
    return type("Tensor", (), {"__module__": f"{package}.somewhere", **attributes})()


CURES: list[tuple[Any, str]] = [
    ([[1.0] * 8], "use numpy.asarray(x, numpy.float32)"),
    (((1.0,) * 8,), "use numpy.asarray(x, numpy.float32)"),
    (pretended("torch", dtype="torch.float32"), "use x.detach().numpy()"),
    (pretended("torch", dtype="torch.float64"), "use x.detach().to(torch.float32).numpy()"),
    (pretended("torch", dtype="torch.bfloat16"), "use x.detach().to(torch.float32).numpy()"),
    (pretended("torch", dtype="torch.float32", device="cuda:0"), "use x.detach().cpu().numpy()"),
    (
        pretended("torch", dtype="torch.float32", is_contiguous=lambda self: False),
        "use x.detach().contiguous().numpy()",
    ),
    (pretended("jaxlib"), "use numpy.asarray(x, numpy.float32)"),
    (pretended("jax"), "use numpy.asarray(x, numpy.float32)"),
    (pretended("pandas"), "use x.to_numpy(numpy.float32)"),
    (pretended("polars"), "use x.to_numpy().astype(numpy.float32)"),
    (pretended("tensorflow"), "use x.numpy().astype(numpy.float32)"),
    (pretended("cupy"), "use cupy.asnumpy(x).astype(numpy.float32)"),
    (pretended("scipy"), "use x.toarray().astype(numpy.float32)"),
    (None, "x: expected a numpy array, got NoneType"),
    (np.zeros((3, 8)), "use x.astype(numpy.float32)"),
    (np.zeros((3, 8), ">f4"), "use x.astype(numpy.float32)"),
    (np.zeros((3, 8), np.float16), "use x.astype(numpy.float32)"),
    (np.ma.masked_array(np.zeros((3, 8), np.float32)), "use x.filled(0)"),
]


@pytest.mark.parametrize(("given", "cure"), CURES)
def test_other_arrays(given: Any, cure: str) -> None:
    refused(lambda: layer()(given), re.escape(cure))


def test_other_arrays_for_bfloat16() -> None:
    half = layer(weight_dtype="bf16", io_dtype="bf16")
    refused(lambda: half([[1.0] * 8]), re.escape("libmoe.to_bfloat16(numpy.asarray(x, numpy.float32))"))
    refused(lambda: half(np.zeros((3, 8))), re.escape("libmoe.to_bfloat16(x.astype(numpy.float32))"))
    refused(lambda: half(np.zeros((3, 8), np.float32)), re.escape("libmoe.to_bfloat16(x)"))
    tensor = pretended("torch", dtype="torch.bfloat16")
    refused(lambda: half(tensor), re.escape("x.detach().view(torch.int16).numpy().view(numpy.uint16)"))


def test_cures_do_what_they_say() -> None:
    """Those that need no other package, tried on real arrays."""
    mine = layer()
    right = np.full((3, 8), 0.5, np.float32)
    wrong = [right.tolist(), right.astype(float), right.astype(">f4"), right.astype(np.float16)]
    wrong += [right.repeat(2, axis=1)[:, ::2], np.ma.masked_array(right)]
    for x in wrong:
        with pytest.raises(libmoe.MoeError) as error:
            mine(x)
        found = re.search(r"use (.*?\)+)(,|$)", str(error.value))
        assert found
        np.testing.assert_array_equal(mine(eval(found[1], {"numpy": np, "x": x})), mine(right))


def test_a_torch_tensor_itself() -> None:
    torch = pytest.importorskip("torch")
    mine = layer()
    for tensor in (
        torch.ones(3, 8),
        torch.ones(3, 8, requires_grad=True),
        torch.ones(3, 8, dtype=torch.bfloat16),
    ):
        with pytest.raises(TypeError) as error:
            mine(tensor)
        found = re.search(r"use (.*)$", str(error.value))
        assert found
        np.testing.assert_array_equal(
            mine(eval(found[1], {"torch": torch, "x": tensor})), mine(np.ones((3, 8), np.float32))
        )


WHOLE: list[tuple[str, Callable[[Any], object]]] = [
    ("tokens", lambda v: model().forward(v)),
    ("targets", lambda v: model().forward(IDS, v)),
    ("tokens", lambda v: model().read(model().cache(1, 5), v)),
    ("targets", lambda v: blocks.cross_entropy(normal(3, 8), normal(5, 8), v)),
    ("tokens", lambda v: blocks.embedding(v, normal(5, 8))),
]


@pytest.mark.parametrize(("name", "call"), WHOLE)
def test_ids_are_int32(name: str, call: Callable[[Any], object]) -> None:
    refused(
        lambda: call(np.zeros((1, 3), np.int64)), f"^{name}: expected int32, got int64; use {name}.astype"
    )
    refused(lambda: call(np.zeros((1, 3))), f"^{name}: expected int32, got float64")
    refused(lambda: call(np.zeros((1, 3), bool)), f"^{name}: expected int32, got bool")
    refused(lambda: call([[0, 1, 2]]), f"^{name}: expected a numpy array, got list")
    wide = np.array([[0, 2**32 + 5, 1]])
    refused(lambda: call(wide), rf"^{name}\[0, 1\] = 4294967301 is out of range", ValueError)


def test_other_whole_arrays() -> None:
    mine = layer(router="hash", vocabulary_size=9)
    refused(lambda: mine.forward(X, token_ids=np.zeros(3, np.int32)), "^token_ids: expected int64, got int32")
    refused(lambda: mine.forward(X, token_ids=np.zeros(3)), "^token_ids: expected int64, got float64")
    refused(lambda: layer().forward(X, expert_indices=np.zeros((3, 2))), "^expert_indices: expected int32")
    refused(lambda: layer().forward(X, valid_mask=np.ones(3)), "^valid_mask: expected bool or uint8")
    refused(lambda: layer().forward(X, global_counts=np.ones(4)), "^global_counts: expected int64")
    biased = layer(selection_bias=True)
    refused(lambda: biased.update_selection_bias(np.full(4, 1.5)), "^tokens_per_expert: expected integers")
    refused(lambda: biased.update_selection_bias("abcd"), "^tokens_per_expert: expected integers, got a str")
    loss = libmoe.pooled_balance_loss
    refused(lambda: loss([[1.5, 2.0]], [3], [[0.5, 0.5]]), "^tokens_per_expert: expected integers")
    refused(lambda: loss([[1, 2]], [3.5], [[0.5, 0.5]]), "^n_valid: expected integers")
    refused(lambda: loss([[1, 2]], [3], [["a", "b"]]), "^mean_probability: expected numbers")
