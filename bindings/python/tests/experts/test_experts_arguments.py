"""What experts by call refuse, each by its name and with the mend."""

from __future__ import annotations

import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import libmoe
from expert_calls import KINDS, Case


class Tensor:
    """As another package has them: an address, a shape, strides and a type, and no more."""

    def __init__(self, array: np.ndarray[Any, Any], dtype: str, device: str = "cpu") -> None:
        self._array = array
        self.shape, self.dtype = array.shape, f"torch.{dtype}"
        self.device = type("Device", (), {"type": device, "__str__": lambda _: device})()

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self._array.itemsize for step in self._array.strides)


def test_tensors_and_addresses() -> None:
    case = Case(**KINDS["swiglu"], dtype="bf16")
    placed = case.place("fused", case.values)
    tensors: dict[str, Any] = {name: Tensor(array, "bfloat16") for name, array in placed.arguments.items()}
    x, w, y = Tensor(case.x, "float32"), Tensor(case.weights, "float32"), np.empty_like(case.x)
    weights = libmoe.ExpertWeights(**tensors)
    out = libmoe.experts_forward(x, Tensor(case.indices, "int64"), w, weights, y=Tensor(y, "float32"))
    expected = case.by_call("fused")["y"]
    np.testing.assert_array_equal(y, expected)
    assert isinstance(out.y, Tensor)
    at: dict[str, Any] = {
        name: libmoe.Memory(a.ctypes.data, "bf16", a.shape, tuple(s // 2 for s in a.strides))
        for name, a in placed.arguments.items()
    }
    np.testing.assert_array_equal(
        libmoe.experts_forward(case.x, case.indices, case.weights, libmoe.ExpertWeights(**at)).y, expected
    )
    with pytest.raises(libmoe.ArgumentTypeError, match=r"down: is on cuda, .* use down.cpu\(\)"):
        libmoe.ExpertWeights(down=Tensor(case.values["down"], "float32", "cuda"))
    with pytest.raises(libmoe.InvalidArgumentError, match="y: give the array"):
        libmoe.experts_forward(x, case.indices, w, weights)


def test_lists_of_arrays_may_go() -> None:
    """What is described stays, whatever becomes of the lists that it was in."""
    case = Case(**KINDS["swiglu"])
    lists: dict[str, Any] = {name: [array.copy() for array in arrays] for name, arrays in case.values.items()}
    weights = libmoe.ExpertWeights(**lists)
    kept = [weakref.ref(array) for arrays in lists.values() for array in arrays]
    for arrays in lists.values():
        arrays.clear()
    assert all(reference() is not None for reference in kept)
    y = libmoe.experts_forward(case.x, case.indices, case.weights, weights, **case.options).y
    np.testing.assert_array_equal(y, case.by_call()["y"])


def test_shapes() -> None:
    a = np.zeros((3, 8, 4), np.float32)
    with pytest.raises(libmoe.InvalidArgumentError, match="down: its E is 2, but that of gate is 3"):
        libmoe.ExpertWeights(gate_up=a, down=a[:2])
    with pytest.raises(
        libmoe.InvalidArgumentError, match="its [HI] is [48], but that of .* is [48].*transposed=True"
    ):
        libmoe.ExpertWeights(gate_up=a, down=np.zeros((3, 4, 8), np.float32))
    with pytest.raises(libmoe.InvalidArgumentError, match="gate_up: has 7 outputs"):
        libmoe.ExpertWeights(gate_up=a[:, :7])
    with pytest.raises(libmoe.InvalidArgumentError, match=r"up\[1\]: has shape"):
        libmoe.ExpertWeights(up=[a[0], a[1, :3]])
    with pytest.raises(libmoe.InvalidArgumentError, match="down: expected steps of whole elements forwards"):
        libmoe.ExpertWeights(down=a[:, ::-1])
    with pytest.raises(libmoe.InvalidArgumentError, match="up: expected 3 axes, got shape"):
        libmoe.ExpertWeights(up=a[0])


def test_other_orders_of_bytes() -> None:
    a = np.zeros((3, 4, 8), np.float32)
    for dtype in (">f4", ">f2", np.dtype(ml_dtypes.bfloat16).newbyteorder(">")):
        for described in (libmoe.ExpertWeights, libmoe.ExpertGradients):
            with pytest.raises(
                libmoe.ArgumentTypeError, match=r"down: expected .*; use down.astype\(numpy.float32\)$"
            ):
                described(up=a, down=a.astype(dtype))


def test_parts_that_are_missing_or_too_many() -> None:
    """Said when the weights are described, by the names of the arguments, and not at a call."""
    up, down = np.zeros((3, 8, 4), np.float32), np.zeros((3, 4, 8), np.float32)
    fused, half = np.zeros((3, 16, 4), np.float32), np.zeros((3, 4, 8), np.float16)

    def refused(match: str, **parts: Any) -> None:
        with pytest.raises(libmoe.InvalidArgumentError, match=match) as caught:
            libmoe.ExpertWeights(**parts)
        assert "MOE_" not in str(caught.value)

    refused("up: is missing, gated experts have gate, up and down; give up=, or gate_up=", gate=up, down=down)
    refused("down: is missing, gated experts have gate, up and down; give down=$", gate_up=fused)
    refused("down: is missing, mlp experts have up and down", up=up)
    refused("gate: is missing", up=up, down=down, kind="gated")
    refused("down: is missing, linear experts have down", kind="linear")
    refused("gate_up, down: expected the experts' weights")
    refused(
        "gate, gate_up: both have the experts' gate|gate_up, gate: both", gate_up=fused, gate=up, down=down
    )
    refused("gate: mlp experts have no gate; leave it out", gate=up, up=up, down=down, kind="mlp")
    refused("constant: gated experts have no constant", gate_up=fused, down=down, constant=up[:, :4, 0])
    refused("down: is f16, but gate_up is f32; convert one of them", gate_up=fused, down=half)
    refused(
        r"down\[1\]: has type f16, but down\[0\] f32; convert one", up=up, down=[down[0], half[1], down[2]]
    )
    refused(r"down: expected \[E, H, H\] of linear experts", down=down)
    refused("n_experts, hidden_size: zero experts have no weights that say them", kind="zero")
    libmoe.ExpertGradients(gate=up, down=half)  # of gradients, any
    assert repr(libmoe.ExpertGradients(gate_up=fused)) == "ExpertGradients(gate, up)"


def test_calls() -> None:
    case = Case(**KINDS["swiglu"])
    weights = case.weights_in("fused")

    def refused(match: str, kind: type[Exception] = libmoe.InvalidArgumentError, **more: Any) -> None:
        options: dict[str, Any] = {
            "x": case.x,
            "expert_indices": case.indices,
            "expert_weights": case.weights,
        }
        with pytest.raises(kind, match=match):
            libmoe.experts_forward(**{**options, "weights": weights, **more})

    refused(r"x: expected shape \[\.\.\., 37\]", x=case.x[:, :5].copy())
    refused("expert_weights: expected shape", expert_weights=case.weights[:, :1])
    refused(
        r"expert_indices: expected int64 or int32, got float32; use expert_indices.astype\(numpy.int64\)",
        libmoe.ArgumentTypeError,
        expert_indices=case.weights,
    )
    for listed in (case.known.tolist(), tuple(case.known.tolist())):
        refused(
            "expert_indices: expected a numpy array or a tensor of int64 or int32, got (list|tuple); use "
            r"numpy.asarray\(expert_indices, numpy.int64\)",
            libmoe.ArgumentTypeError,
            expert_indices=listed,
        )
    refused(r"x: .* got list; use numpy.asarray\(x, numpy.float32\)", TypeError, x=case.x.tolist())
    refused(r"saved: .* of uint8, got list", TypeError, saved=[1, 2])
    for name, swapped in (
        ("x", case.x.astype(">f4")),
        ("expert_indices", case.indices.astype(">i8")),
        ("expert_weights", case.weights.astype(">f4")),
    ):
        refused(
            rf"^{name}: expected .*, got {swapped.dtype}; use {name}.astype\(numpy.{swapped.dtype.name}\)$",
            libmoe.ArgumentTypeError,
            **{name: swapped},
        )
    refused(
        r"expert_indices: expected shape \[40, K\] with a K of 1 or more, got \[39, 2\]",
        expert_indices=case.indices[1:],
    )
    refused("y overlaps x", y=case.x)
    refused("y is None, and so is rows", y=False)
    refused("with a K of 1 or more", expert_indices=case.indices[:, :0], expert_weights=case.weights[:, :0])
    refused(
        "glu_limit = 2, but expert_kind is not 'gated'",
        weights=Case(**KINDS["linear"]).weights_in(),
        glu_limit=2,
    )
    refused("glu_limit", TypeError, glu_limit=[1])
    refused("unknown names", TypeError, activations="silu")
    with pytest.raises(libmoe.InvalidArgumentError, match="memory_limit = 1000 bytes.*several calls"):
        libmoe.experts_forward(
            case.x, case.indices, case.weights, weights, context=libmoe.Context(1, memory_limit=1000)
        )


def test_gradients_that_overlap() -> None:
    case = Case(**KINDS["swiglu"])
    weights, call = case.weights_in("fused"), (case.dy, case.x, case.indices, case.weights)

    def refused(match: str, **arrays: Any) -> None:
        with pytest.raises(libmoe.InvalidArgumentError, match=match):
            libmoe.experts_backward(*call, weights, gradients=libmoe.ExpertGradients(**arrays))

    whole = np.zeros((case.E, 2 * case.I, case.H), np.float32)
    refused(
        "UP of gradients overlaps GATE of gradients", gate=whole[:, : case.I], up=whole[:, 1 : case.I + 1]
    )
    refused("UP of gradients overlaps GATE of gradients", gate=whole[:, ::2], up=whole[:, ::2])
    refused(
        "a stride of 0 puts two of its elements in one place; each needs a place of its own",
        up=np.lib.stride_tricks.as_strided(whole, (case.E, case.I, case.H), (0, *whole.strides[1:])),
    )
    refused("overlaps experts", up=[whole[0, : case.I]] * case.E)
    # x has memory behind it, so that what lies over it reaches nothing else.
    room = np.zeros(case.E * case.I * case.H + case.x.size, np.float32)
    call = (case.dy, room[: case.x.size].reshape(case.x.shape), case.indices, case.weights)
    refused("UP of gradients overlaps x", up=libmoe.Memory(room.ctypes.data, "f32", (case.E, case.I, case.H)))
    refused("gradients: have up_bias, which weights have not", up_bias=whole[:, : case.I, 0])
    refused(
        r"gradients: their up is \[5, 44, 37\], but that of weights \[5, 45, 37\]", up=whole[:, : case.I - 1]
    )
    libmoe.experts_backward(
        *call, weights, gradients=libmoe.ExpertGradients(gate=whole[:, ::2], up=whole[:, 1::2])
    )  # in turn: no element twice


def test_rows_that_take_turns_with_one_array_and_overlap_another() -> None:
    """Gate and up overlap by half a row, while both take turns with down, which reaches further."""
    x, dy = np.ones((3, 8), np.float32), np.ones((3, 8), np.float32)
    indices, chosen = np.zeros((3, 1), np.int64), np.ones((3, 1), np.float32)
    up, down = np.ones((1, 4, 8), np.float32), np.ones((1, 8, 4), np.float32)
    room = np.zeros((8, 32), np.float32)
    gradients = libmoe.ExpertGradients(down=[room[:, :4]], gate=[room[:4, 4:12]], up=[room[:4, 8:16]])
    with pytest.raises(libmoe.InvalidArgumentError, match="UP of gradients overlaps experts.* of GATE"):
        libmoe.experts_backward(
            dy,
            x,
            indices,
            chosen,
            libmoe.ExpertWeights(gate=up, up=up.copy(), down=down),
            gradients=gradients,
        )


@pytest.mark.parametrize("matmul", ["openblas", "reference", "auto"])
def test_one_row_for_all_outputs(matmul: Any) -> None:
    """Weights may have a stride of 0, as a tensor of torch that has been expanded."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 8), np.float32)
    indices, chosen = np.zeros((5, 1), np.int64), np.ones((5, 1), np.float32)
    up = np.broadcast_to(rng.standard_normal((2, 1, 8), np.float32), (2, 6, 8))
    down = rng.standard_normal((2, 8, 6), np.float32)
    context = libmoe.Context(1, matmul)
    found, wanted = (
        libmoe.experts_forward(x, indices, chosen, libmoe.ExpertWeights(up=u, down=down), context=context).y
        for u in (up, up.copy())
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_gradients_that_are_only_read() -> None:
    case = Case(**KINDS["swiglu"])
    down = case.values["down"]
    fixed = np.frombuffer(down.tobytes(), np.float32).reshape(down.shape)
    mend = r"expected an array that may be written to; use down{}.copy\(\)$"
    with pytest.raises(libmoe.InvalidArgumentError, match=mend.format("")):
        libmoe.ExpertGradients(down=fixed)
    with pytest.raises(libmoe.InvalidArgumentError, match=mend.format(r"\[0\]")):
        libmoe.ExpertGradients(down=list(fixed))

    # Weights are only read, until they stand for gradients.
    given: dict[str, Any] = {**case.values, "down": fixed}
    weights = libmoe.ExpertWeights(**given)
    call = (case.dy, case.x, case.indices, case.weights, weights)
    with pytest.raises(libmoe.InvalidArgumentError, match=mend.format("")):
        libmoe.experts_backward(*call, gradients=weights)
    np.testing.assert_array_equal(fixed, down)
    libmoe.experts_backward(*call, gradients=case.weights_in())


def test_repr() -> None:
    weights = Case(**KINDS["swiglu"]).weights_in("fused")
    assert repr(weights) == "ExpertWeights(5 gated experts, hidden_size=37, intermediate_size=45, f32)"
    prepared = libmoe.experts_prepare(weights)
    assert repr(prepared) == f"PreparedExperts(5 gated experts, f32, {prepared.nbytes} bytes)"
