"""What experts by call refuse, each by its name and with the mend."""

from __future__ import annotations

from typing import Any

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


def test_shapes() -> None:
    a = np.zeros((3, 8, 4), np.float32)
    with pytest.raises(libmoe.InvalidArgumentError, match="gate: its E is 3, but that of down is 2"):
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
        "expert_indices: expected i32 or i64, got f32", libmoe.ArgumentTypeError, expert_indices=case.weights
    )
    refused("y overlaps x", y=case.x)
    refused("y is NULL, and so is rows", y=False)
    refused(
        "call.top_k = 0 is below 1", expert_indices=case.indices[:, :0], expert_weights=case.weights[:, :0]
    )
    refused(
        "glu_limit = 2, but expert_kind is not", weights=Case(**KINDS["linear"]).weights_in(), glu_limit=2
    )
    up = np.zeros((case.E, case.I, case.H), np.float32)
    halves = libmoe.ExpertWeights(
        gate=up, up=up.astype(np.float16), down=np.zeros((case.E, case.H, case.I), np.float32)
    )
    refused("MOE_EXPERT_PART_UP of weights has another dtype than MOE_EXPERT_PART_GATE", weights=halves)
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
            libmoe.experts_backward(*call, weights, gradients=libmoe.ExpertWeights(**arrays))

    whole = np.zeros((case.E, 2 * case.I, case.H), np.float32)
    refused(
        "UP of gradients overlaps GATE of gradients", gate=whole[:, : case.I], up=whole[:, 1 : case.I + 1]
    )
    refused("UP of gradients overlaps GATE of gradients", gate=whole[:, ::2], up=whole[:, ::2])
    refused(
        "two elements are in one place",
        up=np.broadcast_to(whole[:1, : case.I], (case.E, case.I, case.H)).view(),
    )
    refused("overlaps experts", up=[whole[0, : case.I]] * case.E)
    # x has memory behind it, so that what lies over it reaches nothing else.
    room = np.zeros(case.E * case.I * case.H + case.x.size, np.float32)
    call = (case.dy, room[: case.x.size].reshape(case.x.shape), case.indices, case.weights)
    refused("UP of gradients overlaps x", up=libmoe.Memory(room.ctypes.data, "f32", (case.E, case.I, case.H)))
    refused("gradients have MOE_EXPERT_PART_UP_BIAS, which weights have not", up_bias=whole[:, : case.I, 0])
    libmoe.experts_backward(
        *call, weights, gradients=libmoe.ExpertWeights(gate=whole[:, ::2], up=whole[:, 1::2])
    )  # in turn: no element twice


def test_repr() -> None:
    weights = Case(**KINDS["swiglu"]).weights_in("fused")
    assert repr(weights) == "ExpertWeights(5 gated experts, hidden_size=37, intermediate_size=45, f32)"
    prepared = libmoe.experts_prepare(weights)
    assert repr(prepared) == f"PreparedExperts(5 gated experts, f32, {prepared.nbytes} bytes)"
