"""Calls C functions with arguments of which one is wrong, or all sizes are, in every way it can be.

Run by ``test_hostile.py`` in a process of its own, since the point is that the process lives on.  Each call is
announced before it is made: the last line names the one that did not come back.  Statuses do not matter here.
"""

from __future__ import annotations

import ctypes
import resource
import tempfile
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from libmoe import _abi, _abi_model
from libmoe._library import lib

ROOM = 1 << 16  # bytes of an array: enough for all sizes that are not refused
INTEGERS = [-(2**63), -(2**31) - 1, -1, 0, 1, 2, 3, 5, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1]
# Any stride is good, as long as the array's size fits in 63 bits.
STRIDES = [-(2**63), -1, 0, 1, 2**60, 2**62, 2**63 - 1]
FLOATS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 5e-324, 1e-300, 0.5, 1.0, 3e38, 1e300]
NUMBERS: dict[Any, list[Any]] = {
    c_int32: [-(2**31), -1, 0, 1, 2, 3, 7, 99, 2**31 - 1],
    c_int64: INTEGERS,
    c_uint64: [0, 1, 2**56, 2**63, 2**64 - 1],
    c_size_t: [0, 1, 7, 2**63, 2**64 - 1],
    c_float: FLOATS,
    c_double: FLOATS,
}
STRUCT_SIZES = [0, 1, 8, 4096, 4104, 2**63, 2**64 - 1]
FILLINGS = [0x00, 0x7F, 0x80, 0xFF]  # of 0x7F floats are huge, of 0xFF they are NaN and integers -1

_alive: list[Any] = []


def room(filling: int = 0, size: int = ROOM) -> int:
    """Return the address of new memory."""
    memory = ctypes.create_string_buffer(bytes([filling]) * size, size + 64)
    _alive.append(memory)
    return (ctypes.addressof(memory) + 63) // 64 * 64


def placed(struct: ctypes.Structure, tail: int = 0) -> int:
    """Return the address of a copy of a struct; what follows it is `tail` in every byte."""
    address = room(tail, 8192)
    ctypes.memmove(address, ctypes.addressof(struct), ctypes.sizeof(struct))
    return address


def is_sized(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _abi._Sized)


def is_pointer(kind: Any) -> bool:
    return kind in (c_void_p, c_char_p) or not issubclass(kind, ctypes._SimpleCData)


def structs(struct: Any) -> Iterator[tuple[str, int]]:
    """Yield addresses of a struct's copies, each with something wrong, and what that is."""
    yield "tail", placed(struct, 0xFF)
    for name, kind, *_ in struct._fields_:
        good = getattr(struct, name)
        wrong: list[Any]
        if name == "struct_size":
            size = ctypes.sizeof(struct)
            wrong = [*STRUCT_SIZES, size - 8, size + 1, size + 8]
        elif kind in NUMBERS:
            wrong = STRIDES if "stride" in name else NUMBERS[kind]
        elif kind is c_void_p:
            wrong = [None, room() + 1, *(room(filling) for filling in FILLINGS)]
        elif issubclass(kind, ctypes.Array):
            continue
        else:  # a pointer to structs
            inner = structs(good.contents) if good and is_sized(kind._type_) else iter(())
            for what, address in [("NULL", 0), ("odd", room() + 1), ("0xff", room(0xFF)), *inner]:
                setattr(struct, name, ctypes.cast(address, kind))
                yield f"{name}: {what}", placed(struct)
            setattr(struct, name, good)
            continue
        for value in wrong:
            setattr(struct, name, value)
            tails = (0x00, 0xFF) if name == "struct_size" else (0x00,)
            for tail in tails:
                yield f"{name} = {value}, tail {tail}", placed(struct, tail)
        setattr(struct, name, good)


def wrong_values(kind: Any, good: Any, is_stride: bool) -> Iterator[tuple[str, Any]]:
    """Yield what an argument can be instead of `good`."""
    if kind in NUMBERS:
        for value in STRIDES if is_stride else NUMBERS[kind]:
            yield str(value), value
        return
    yield "NULL", None
    if isinstance(good, bytes):
        yield from (("empty", b""), ("long", b"a" * 5000), ("no text", b"\xff\xfe"), ("a folder", b"/"))
    elif isinstance(good, ctypes.Structure):
        yield "odd", placed(good) + 1
        yield from structs(good)
    elif good is not None:
        yield "odd", good + 1
        # A handle's memory is the library's: what it holds is as it should be.
        if kind is c_void_p or not issubclass(kind._type_, (ctypes.Structure, ctypes._Pointer)):
            for filling in FILLINGS:
                yield hex(filling), room(filling)


class Function:
    """A C function and good arguments for it."""

    def __init__(self, name: str, good: Callable[[], list[Any]], strides: tuple[int, ...] = ()) -> None:
        declared = {**_abi.FUNCTIONS, **_abi_model.FUNCTIONS}[name][1]
        address = ctypes.cast(getattr(lib, name), c_void_p).value
        plain = [
            c_char_p if kind is c_char_p else c_void_p if is_pointer(kind) else kind for kind in declared
        ]
        assert address
        self.name, self.kinds, self.good, self.strides = name, declared, good, strides
        self.call = ctypes.CFUNCTYPE(c_int32, *plain)(address)

    def attempt(self, arguments: list[Any], what: str) -> int:
        """Announce and make one call."""
        print(f"{self.name}: {what}", flush=True)
        found = self.call(*(placed(a) if isinstance(a, ctypes.Structure) else a for a in arguments))
        assert 0 <= found <= 6
        return int(found)

    def torture(self) -> None:
        kept = len(_alive)
        assert self.attempt(self.good(), "good") == 0, lib.moe_last_error_message()
        for i, kind in enumerate(self.kinds):
            for what, value in wrong_values(kind, self.good()[i], i in self.strides):
                arguments = self.good()
                arguments[i] = value
                self.attempt(arguments, f"argument {i} is {what}")
            del _alive[kept:]
        arrays = [i for i, kind in enumerate(self.kinds) if kind is c_void_p]
        for i in arrays:  # one array twice
            for j in arrays:
                arguments = self.good()
                arguments[i] = arguments[j]
                self.attempt(arguments, f"argument {i} is argument {j}")
        sizes = [i for i, kind in enumerate(self.kinds) if kind is c_int64]
        if len(sizes) > 1:
            for value in [*INTEGERS, 2**31 - 1]:
                arguments = self.good()
                for i in sizes:
                    arguments[i] = value
                self.attempt(arguments, f"all sizes are {value}")
        del _alive[kept:]


def create(function: str, kind: Any, *arguments: Any) -> int:
    """Return the address of a handle."""
    out = ctypes.POINTER(kind)()
    getattr(lib, function)(*arguments, ctypes.byref(out))
    return ctypes.cast(out, c_void_p).value or 0


def all_functions(folder: Path) -> list[Function]:
    """Return the functions, with arguments that are small."""
    context_config = _abi.moe_context_config(n_threads=2)
    context = create("moe_context_create", _abi.moe_context, ctypes.byref(context_config))
    context_handle = ctypes.cast(context, ctypes.POINTER(_abi.moe_context))

    experts = _abi.moe_layer_config(intermediate_size=4, n_experts=3, top_k=2)
    config = _abi_model.moe_model_config(
        hidden_size=8, n_layers=2, n_heads=2, vocabulary_size=5, max_positions=8, rope_theta=10000, causal=1,
        final_norm=1, moe=ctypes.pointer(experts), moe_every=2, dense_intermediate_size=6, dropout=0.1,
    )  # fmt: skip
    model = create("moe_model_create", _abi_model.moe_model, context_handle, ctypes.byref(config))
    model_handle = ctypes.cast(model, ctypes.POINTER(_abi_model.moe_model))
    tape = create("moe_model_tape_create", _abi_model.moe_model_tape, model_handle)
    cache = create("moe_cache_create", _abi_model.moe_cache, model_handle, 2, 8)
    cache_handle = ctypes.cast(cache, ctypes.POINTER(_abi_model.moe_cache))

    def model_input() -> Any:
        return _abi_model.moe_model_input(
            n_sequences=2, sequence_length=3, tokens=room(), targets=room(), training=1, ignore_index=-100
        )

    def filled_tape() -> int:
        given = model_input()
        lib.moe_model_forward(
            model_handle, ctypes.byref(given), None, None,
            ctypes.cast(tape, ctypes.POINTER(_abi_model.moe_model_tape)), None,
        )  # fmt: skip
        return tape

    def emptied_cache() -> int:
        lib.moe_cache_truncate(cache_handle, 0)
        return cache

    def report() -> Any:
        layers = (_abi.moe_report * 2)(_abi.moe_report(), _abi.moe_report())
        _alive.append(layers)
        first = ctypes.cast(layers, ctypes.POINTER(_abi.moe_report))
        return _abi_model.moe_model_report(layers=first, token_losses=room())

    def attention() -> Any:
        return _abi_model.moe_attention_config(
            n_sequences=2, n_queries=3, n_heads=2, n_kv_heads=1, head_size=4, causal=1, dropout=0.1
        )

    def a_layer(**fields: Any) -> int:
        layer_config = _abi.moe_layer_config(
            hidden_size=4, intermediate_size=4, n_experts=3, top_k=2, **fields
        )
        return create("moe_layer_create", _abi.moe_layer, context_handle, ctypes.byref(layer_config))

    layer = a_layer()
    index = str(folder / "m.safetensors.index.json").encode()
    lib.moe_layer_save_sharded(ctypes.cast(layer, ctypes.POINTER(_abi.moe_layer)), index, 0, 0, 0, 100)
    checkpoint = create("moe_checkpoint_open", _abi.moe_checkpoint, context_handle, index)
    offloaded = a_layer(unallocated=2)
    lib.moe_layer_offload(
        ctypes.cast(offloaded, ctypes.POINTER(_abi.moe_layer)),
        ctypes.cast(checkpoint, ctypes.POINTER(_abi.moe_checkpoint)), 0, 0, 1 << 20,
    )  # fmt: skip
    mapped = str(folder / "mapped").encode()
    mapping = create("moe_mapping_create", _abi.moe_mapping, context_handle, mapped, 64)
    bound_model = create("moe_model_create", _abi_model.moe_model, context_handle, ctypes.byref(config))
    adamw = _abi.moe_adamw_config()
    lib.moe_adamw_config_init(ctypes.byref(adamw), ctypes.sizeof(adamw))
    adamw.unallocated_state = 1
    tensor = _abi.moe_tensor(rank=1, shape=(c_int64 * 4)(6))
    optimizer = create(
        "moe_adamw_create", _abi.moe_optimizer, context_handle, ctypes.byref(adamw), ctypes.byref(tensor), 1
    )

    def stored() -> Any:
        name = ctypes.create_string_buffer(b"x")
        _alive.append(name)
        shape = (c_int64 * 8)(4)
        address = ctypes.addressof(name)
        return _abi.moe_stored_tensor(
            name=ctypes.cast(address, c_char_p).value, rank=1, shape=shape, data=room()
        )

    f32 = 0
    return [
        Function(
            "moe_norm_forward", lambda: [context, 0, room(), 3, 4, room(), room(), 1e-5, room(), room()]
        ),
        Function("moe_norm_backward", lambda: [context, 0, room(), 3, 4, *(room() for _ in range(6))]),
        Function("moe_linear_forward", lambda: [context, room(), 3, 4, 5, room(), f32, room(), room()]),
        Function(
            "moe_linear_backward",
            lambda: [context, room(), 3, 4, 5, room(), f32, room(), room(), room(), room()],
        ),
        Function("moe_rotate", lambda: [context, room(), 3, 2, 4, 0, room(), 3, 0, 100.0, 0], strides=(5,)),
        Function("moe_attention_forward", lambda: [context, attention(), *(room() for _ in range(5))]),
        Function("moe_attention_backward", lambda: [context, attention(), *(room() for _ in range(9))]),
        Function(
            "moe_embedding_forward", lambda: [context, room(), 4, 3, room(), 5, room(), 4, 2, 1, room()]
        ),
        Function(
            "moe_embedding_backward", lambda: [context, room(), 4, 3, room(), room(), 5, room(), 4, 2, 1]
        ),
        Function(
            "moe_cross_entropy",
            lambda: [
                context,
                room(),
                3,
                4,
                room(),
                f32,
                5,
                room(),
                -100,
                0.1,
                1.0,
                *(room() for _ in range(5)),
            ],
        ),
        Function(
            "moe_sample",
            lambda: [
                context,
                room(),
                5,
                _abi_model.moe_sampling(temperature=1.0, top_k=3, top_p=0.9),
                7,
                room(),
            ],
        ),  # fmt: skip
        Function("moe_model_create", lambda: [context, config, room()]),
        Function("moe_model_parameter_count", lambda: [model, room()]),
        Function("moe_model_parameter", lambda: [model, 1, _abi.moe_tensor()]),
        Function("moe_model_find_parameter", lambda: [model, b"embed.weight", room()]),
        Function("moe_model_zero_grad", lambda: [model]),
        Function("moe_model_layer", lambda: [model, 1, room()]),
        Function("moe_model_tape_create", lambda: [model, room()]),
        Function("moe_model_plan_memory", lambda: [model, model_input(), 1, _abi_model.moe_model_plan()]),
        Function("moe_model_forward", lambda: [model, model_input(), room(), room(), tape, report()]),
        Function("moe_cache_create", lambda: [model, 2, 3, room()]),
        Function("moe_cache_truncate", lambda: [cache, 0]),
        Function("moe_model_read", lambda: [model, emptied_cache(), room(), 3, room()]),
        Function("moe_model_backward", lambda: [model, filled_tape(), model_input(), 1.0, room(), None]),
        Function("moe_model_bind_parameter", lambda: [bound_model, 1, room(), room()]),
        Function("moe_profile_start", lambda: [context, 3]),
        Function("moe_profile_phase", lambda: [context, 1, 0, _abi.moe_phase_time()]),
        Function("moe_profile_events", lambda: [context, 0, room(), 3, room()]),
        Function("moe_profile_stop", lambda: [context]),
        Function("moe_layer_save_sharded", lambda: [layer, index, 0, 0, 0, 100]),
        Function("moe_checkpoint_write_sharded", lambda: [context, index, stored(), 1, 8]),
        Function("moe_layer_offload", lambda: [a_layer(unallocated=2), checkpoint, 0, 0, 1 << 20]),
        Function("moe_layer_offload_statistics", lambda: [offloaded, _abi.moe_offload_statistics()]),
        Function("moe_mapping_create", lambda: [context, mapped, 64, room()]),
        Function("moe_mapping_data", lambda: [mapping, room()]),
        Function("moe_mapping_flush", lambda: [mapping]),
        Function("moe_optimizer_state_size", lambda: [optimizer, room()]),
        Function("moe_optimizer_bind_state", lambda: [optimizer, room(), ROOM]),
    ]


def poison(functions: list[Function]) -> None:
    """Run models whose parameters are no numbers one can compute with."""
    calls = [f for f in functions if f.name in ("moe_model_forward", "moe_model_read", "moe_model_zero_grad")]
    model = ctypes.cast(calls[0].good()[0], ctypes.POINTER(_abi_model.moe_model))
    count = c_int64()
    lib.moe_model_parameter_count(model, ctypes.byref(count))
    for filling in FILLINGS:
        for i in range(count.value):
            tensor = _abi.moe_tensor()
            lib.moe_model_parameter(model, i, ctypes.byref(tensor))
            elements = 1
            for d in range(tensor.rank):
                elements *= tensor.shape[d]
            ctypes.memset(tensor.data, filling, 4 * elements)
        for function in calls:
            function.attempt(function.good(), f"parameters of {filling:#x}")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))  # what is too large fails at once
    with tempfile.TemporaryDirectory() as folder:
        functions = all_functions(Path(folder))
        for function in functions:
            function.torture()
        poison(functions)
    print("finished")


if __name__ == "__main__":
    main()
