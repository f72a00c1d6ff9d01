"""Wrong arguments: the exception one expects, and a text that names the argument and the mend."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal
from libmoe.errors import error_for

H = 4


def unaligned(shape: tuple[int, ...]) -> Any:
    count = int(np.prod(shape))
    return np.zeros(4 * count + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def read_only(shape: tuple[int, ...]) -> Any:
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


WRONG_ARRAYS: dict[str, tuple[Any, type[Exception], str]] = {
    "list": (
        lambda shape: np.zeros(shape).tolist(),
        TypeError,
        "expected a numpy array, got list; use numpy.as",
    ),
    "float64": (np.zeros, TypeError, "expected float32, got float64; use {}.astype(numpy.float32)"),
    "int32": (
        lambda shape: np.zeros(shape, np.int32),
        TypeError,
        "expected float32, got int32; use {}.astype",
    ),
    "big-endian": (
        lambda shape: np.zeros(shape, ">f4"),
        TypeError,
        "expected float32, got >f4; use {}.astype",
    ),
    "gaps": (
        lambda shape: np.zeros((*shape, 2), np.float32)[..., 0],
        ValueError,
        "expected a C-contiguous array; use numpy.ascontiguousarray({})",
    ),
    "unaligned": (unaligned, ValueError, "expected memory aligned to 4 bytes; use {}.copy()"),
}
READ_ONLY = (read_only, ValueError, "expected an array that may be written to; use {}.copy()")


def pass_x(layer: libmoe.Layer, array: Any) -> None:
    layer(array)


def pass_y(layer: libmoe.Layer, array: Any) -> None:
    layer.forward(normal(3, H), out=array)


def pass_dy(layer: libmoe.Layer, array: Any) -> None:
    tape = layer.tape()
    layer.forward(normal(3, H), tape=tape)
    layer.backward(tape, array)


def pass_dx(layer: libmoe.Layer, array: Any) -> None:
    tape = layer.tape()
    layer.forward(normal(3, H), tape=tape)
    layer.backward(tape, normal(3, H), out=array)


def bind_data(layer: libmoe.Layer, array: Any) -> None:
    layer.bind("router.weight", array)


def bind_grad(layer: libmoe.Layer, array: Any) -> None:
    layer.bind("router.weight", np.zeros((3, H), np.float32), array)


def load_state(layer: libmoe.Layer, array: Any) -> None:
    layer.load_state_dict({**layer.state_dict(), "router.weight": array})


def parameter_grad(layer: libmoe.Layer, array: Any) -> None:
    libmoe.Parameter(np.zeros((3, H), np.float32), array)


TAKERS = [
    (pass_x, "x"),
    (pass_y, "out"),
    (pass_dy, "dy"),
    (pass_dx, "out"),
    (bind_data, "data"),
    (bind_grad, "grad"),
    (load_state, "state['router.weight']"),
    (parameter_grad, "grad"),
]
WRITERS = [(take, name) for take, name in TAKERS if take not in (pass_x, pass_dy, load_state)]


@pytest.mark.parametrize(
    ("take", "name", "wrong"),
    [(take, name, wrong) for take, name in TAKERS for wrong in WRONG_ARRAYS.values()]
    + [(take, name, READ_ONLY) for take, name in WRITERS],
)
def test_wrong_arrays(take: Any, name: str, wrong: Any) -> None:
    make, exception, text = wrong
    layer = libmoe.Layer(H, 5, n_experts=3, top_k=2)
    with pytest.raises(exception, match="^" + re.escape(f"{name}: {text.format(name)}")):
        take(layer, make((3, H)))


@pytest.mark.parametrize(
    ("take", "name"),
    [(take, name) for take, name in TAKERS if take is not pass_x],
    ids=lambda value: str(value),
)
def test_wrong_shapes(take: Any, name: str) -> None:
    layer = libmoe.Layer(H, 5, n_experts=3, top_k=2)
    for shape, mend in [((H, 3), f"use {name}.reshape(3, 4)"), ((3, 5), "give it 12 elements")]:
        text = f"{name}: expected shape (3, 4), got {shape}; {mend}"
        with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
            take(layer, np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(), (5,), (H, 3), (0,)])
def test_x_ends_in_hidden_size(shape: tuple[int, ...]) -> None:
    text = f"x: expected shape [..., 4], got {shape}; its last axis must be hidden_size = 4"
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        libmoe.Layer(H, 5, 3, 2)(np.zeros(shape, np.float32))


@pytest.mark.parametrize("ndim", [0, 5])
def test_parameters_have_one_to_four_dimensions(ndim: int) -> None:
    cure = re.escape("(1, 1, 1, 1)" if ndim else "(1,)")
    with pytest.raises(
        ValueError, match=f"^data: expected 1 to 4 dimensions, got {ndim}; use data.reshape{cure}"
    ):
        libmoe.Parameter(np.zeros([1] * ndim, np.float32))


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((H, 5, 8, 9), {}, "top_k = 9 exceeds n_experts = 8"),
        ((0, 5, 8, 2), {}, "hidden_size = 0"),
        ((H, -5, 8, 2), {}, "intermediate_size = -5"),
        ((2**64 + H, 5, 8, 2), {}, f"hidden_size = {2**64 + H} is out of range"),
        ((H, 5, 8, 2), {"seed": -1}, "seed = -1 is out of range"),
        ((H, 5, 8, 2), {"dropout": 1.0}, "dropout = 1"),
        (
            (H, 5, 8, 2),
            {"activation": "gelo"},
            "activation = 'gelo'; choose one of 'gelu', 'gelu_tanh', 'silu', 'relu', 'relu2', 'quick_gelu'",
        ),
        ((H, 5, 8, 2), {"expert_kind": "glu"}, "expert_kind = 'glu'; choose one of 'mlp', 'gated', 'linear'"),
        ((H, 5, 8, 2), {"glu_limit": 7.0}, "glu_limit = 7, but expert_kind is not 'gated'"),
        (
            (H, 5, 8, 2),
            {"expert_kind": "gated", "glu_alpha": 1.5},
            "glu_alpha = 1.5, but activation is not 'silu'",
        ),
        (
            (H, 5, 8, 2),
            {"expert_kind": "linear"},
            "intermediate_size = 5 of linear experts is neither 0 nor hidden_size = 4",
        ),
        ((H, 5, 8, 2), {"expert_kind": "gated", "glu_offset": -1.0}, "glu_offset = -1"),
        ((H, 5, 8, 2), {"router_weights": "top"}, "router_weights = 'top'; choose one of"),
    ],
)
def test_options_out_of_range(arguments: Any, options: Any, text: str) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match=re.escape(text)) as caught:
        libmoe.Layer(*arguments, **options)
    assert caught.value.status == 1
    assert isinstance(caught.value, ValueError)


def test_sizes_are_ints() -> None:
    libmoe.Layer(np.int64(H), 5, 3, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^hidden_size: expected an int, got float; use int"):
        libmoe.Layer(4.0, 5, 3, 2)  # type: ignore[arg-type]


def test_numbers_are_floats() -> None:
    layer, mine = libmoe.Layer(H, 5, 3, 2), [libmoe.Parameter(normal(3))]
    optimizer, tape = libmoe.SGD(mine), layer.tape()
    layer.forward(normal(3, H), tape=tape)
    wrong: Any = "0.1"
    calls: dict[str, Callable[[], object]] = {
        "dropout": lambda: libmoe.Layer(H, 5, 3, 2, dropout=wrong),
        "balance_coef": lambda: libmoe.Layer(H, 5, 3, 2, balance_coef=wrong),
        "z_coef": lambda: libmoe.Layer(H, 5, 3, 2, z_coef=wrong),
        "glu_limit": lambda: libmoe.Layer(H, 5, 3, 2, glu_limit=wrong),
        "glu_alpha": lambda: libmoe.Layer(H, 5, 3, 2, glu_alpha=wrong),
        "glu_offset": lambda: libmoe.Layer(H, 5, 3, 2, glu_offset=wrong),
        "d_aux_loss": lambda: layer.backward(tape, normal(3, H), d_aux_loss=wrong),
        "learning_rate": lambda: setattr(optimizer, "learning_rate", wrong),
        "betas[1]": lambda: libmoe.AdamW(mine, betas=(0.9, wrong)),
        "momentum": lambda: libmoe.SGD(mine, momentum=wrong),
        "max_norm": lambda: libmoe.clip_grad_norm(mine, wrong),
        "final_fraction": lambda: libmoe.Schedule(final_fraction=wrong),
        "threshold": lambda: libmoe.AdaptiveClip(threshold=wrong),
        "norm": lambda: libmoe.AdaptiveClip().max_norm(wrong),
    }
    for name, call in [*calls.items(), ("max_norm", lambda: optimizer.step(max_norm=wrong))]:
        text = f"{name}: expected a float, got str; use float({name})"
        with pytest.raises(TypeError, match="^" + re.escape(text) + "$"):
            call()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_threads": 1025}, "n_threads = 1025"),
        ({"n_threads": 2**32 + 1}, "n_threads = 4294967297 is out of range"),
        ({"matmul": "blas"}, "matmul = 'blas'; choose one of 'auto', 'openblas', 'reference'"),
    ],
)
def test_contexts_out_of_range(options: Any, text: str) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match=re.escape(text)):
        libmoe.Context(**options)


def test_output_overlapping_input() -> None:
    layer, x = libmoe.Layer(H, 5, 3, 2), normal(3, H)
    with pytest.raises(libmoe.InvalidArgumentError, match="overlap"):
        layer.forward(x, out=x)


def test_unknown_parameter() -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="gate.weight"):
        libmoe.Layer(H, 5, 3, 2).bind("gate.weight", normal(3))


def test_backward_before_forward() -> None:
    layer = libmoe.Layer(H, 5, 3, 2)
    with pytest.raises(libmoe.BadStateError, match="^tape: is empty; run layer.forward"):
        layer.backward(layer.tape(), normal(3, H))


def test_backward_after_a_forward_that_failed() -> None:
    layer = libmoe.Layer(H, 5, 3, 2)
    tape, x = layer.tape(), normal(3, H)
    layer.forward(x, tape=tape)
    with pytest.raises(libmoe.InvalidArgumentError):
        layer.forward(x, tape=tape, out=x)
    with pytest.raises(libmoe.BadStateError, match="empty"):
        layer.backward(tape, x)


def test_the_tape_of_another_layer() -> None:
    layer, other, x = libmoe.Layer(H, 5, 3, 2), libmoe.Layer(H, 5, 3, 2), normal(3, H)
    tape = other.tape()
    other.forward(x, tape=tape)
    with pytest.raises(libmoe.BadStateError, match="tape") as caught:
        layer.backward(tape, x)
    assert caught.value.status == 3
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(libmoe.BadStateError, match="tape"):
        layer.forward(x, tape=tape)


def test_a_token_that_is_not_a_number() -> None:
    x = normal(6, H)
    x[4, 1] = np.nan
    with pytest.raises(libmoe.NotFiniteError, match="token 4") as caught:
        libmoe.Layer(H, 5, 3, 2)(x)
    assert caught.value.status == 4
    assert isinstance(caught.value, ArithmeticError)


def test_more_memory_than_there_is() -> None:
    with pytest.raises(libmoe.OutOfMemoryError) as caught:
        libmoe.Layer(2**25, 1, n_experts=2**25, top_k=1)  # 4 PiB for the router
    assert caught.value.status == 2
    assert isinstance(caught.value, MemoryError)


def test_a_status_of_a_later_version() -> None:
    error = error_for(77, "something new")
    assert (type(error), error.status, str(error)) == (libmoe.MoeError, 77, "something new")


def test_optimizers_take_parameters() -> None:
    with pytest.raises(TypeError, match=r"^parameters\[1\]: expected a libmoe.Parameter, got ndarray; use"):
        libmoe.SGD([libmoe.Parameter(normal(3)), normal(3)])  # type: ignore[list-item]
    with pytest.raises(libmoe.InvalidArgumentError, match="learning_rate"):
        libmoe.SGD([libmoe.Parameter(normal(3))], learning_rate=-1.0)
    layer = libmoe.Layer(H, 5, 3, 2)
    says = r"^parameters\['router.weight'\]: expected a libmoe.Parameter, got ndarray; use layer.parameters"
    with pytest.raises(TypeError, match=says):
        libmoe.SGD(layer.state_dict())  # type: ignore[arg-type]
    optimizer = libmoe.AdamW([libmoe.Parameter(normal(3))])
    with pytest.raises(AttributeError, match=r"no attribute 'zero_grad'; use layer.zero_grad\(\)"):
        optimizer.zero_grad()  # type: ignore[attr-defined]
    with pytest.raises(libmoe.InvalidArgumentError, match="learning_rate"):
        optimizer.learning_rate = float("nan")
    assert optimizer.learning_rate == 1e-3
    with pytest.raises(libmoe.InvalidArgumentError, match="max_norm"):
        libmoe.clip_grad_norm([], 0.0)
