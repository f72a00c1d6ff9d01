"""All functions of C that take something, and good arguments for them; ``hostile.py`` makes them bad.

Run by ``test_hostile.py`` in a process of its own, since the point is that the process lives on.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import tempfile
from ctypes import c_char_p, c_int64, c_void_p
from pathlib import Path
from typing import Any

from hostile_blocks import block_functions

from hostile import FILLINGS, ROOM, Function, alive, placed, room
from libmoe._native import abi
from libmoe._native.library import lib


def create(function: str, kind: Any, *arguments: Any) -> int:
    """Return the address of a handle."""
    out = ctypes.POINTER(kind)()
    getattr(lib, function)(*arguments, ctypes.byref(out))
    return ctypes.cast(out, c_void_p).value or 0


def defaults(name: str) -> Any:
    """Return a struct as its init function fills it."""
    struct = getattr(abi, name)()
    getattr(lib, f"{name}_init")(ctypes.byref(struct), ctypes.sizeof(struct))
    return struct


def one_rank() -> Any:
    """Return a communicator of one rank, which gets what it sends to itself and fails otherwise."""

    def exchange(
        _user: Any, sent: Any, counts: Any, places: Any, to: Any, _: Any, at: Any, request: Any
    ) -> int:
        count, place, target = (c_int64.from_address(each).value for each in (counts, places, at))
        if count:
            ctypes.memmove(to + target, sent + place, count)
        ctypes.c_void_p.from_address(request).value = None
        return 0

    kinds = {name: kind for name, kind, *_ in abi.moe_communicator._fields_ if hasattr(kind, "_restype_")}
    does: dict[str, Any] = {"all_to_all": exchange, "wait": lambda *_: 0, "error": lambda *_: None}
    functions = {name: kind(does.get(name, lambda *_: 1)) for name, kind in kinds.items()}
    alive.append(functions)
    return abi.moe_communicator(size=1, **functions)


FREQUENCIES = (ctypes.c_double * 8)(*(10.0**-n for n in range(8)))  # half a head of any size tried


LLAMA = {
    "model_type": "llama", "vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 3,
}  # fmt: skip


def a_folder(context: Any, place: bytes) -> tuple[int, bytes]:
    """Return a model that has been saved there, and the text of its config.json."""
    config = abi.moe_model_config(
        hidden_size=4, n_layers=1, n_heads=2, n_kv_heads=1, vocabulary_size=5, rope_theta=10000, norm=1,
        causal=1, final_norm=1, dense_kind=1, dense_activation=2, dense_no_bias=1, dense_intermediate_size=3,
    )  # fmt: skip
    model = create("moe_model_create", abi.moe_model, context, ctypes.byref(config))
    text = json.dumps(LLAMA).encode()
    options = abi.moe_save_options(config=text)
    handle = ctypes.cast(model, ctypes.POINTER(abi.moe_model))
    lib.moe_model_save(handle, place, ctypes.byref(options))
    return model, text


def all_functions(folder: Path) -> list[Function]:
    """Return the functions, with arguments that are small."""
    context_config = abi.moe_context_config(n_threads=2)
    context = create("moe_context_create", abi.moe_context, ctypes.byref(context_config))
    context_handle = ctypes.cast(context, ctypes.POINTER(abi.moe_context))

    experts = abi.moe_layer_config(intermediate_size=4, n_experts=3, top_k=2)
    config = abi.moe_model_config(
        hidden_size=8, n_layers=2, n_heads=2, vocabulary_size=5, max_positions=8, rope_theta=10000, causal=1,
        final_norm=1, moe=ctypes.pointer(experts), moe_every=2, dense_intermediate_size=6, dropout=0.1,
    )  # fmt: skip
    tables = (abi.moe_rotary_table * 128)(
        abi.moe_rotary_table(rotary_size=2, theta=100.0),
        abi.moe_rotary_table(
            frequencies=ctypes.addressof(FREQUENCIES), long_frequencies=ctypes.addressof(FREQUENCIES),
            original_length=4,
        ),
        *(abi.moe_rotary_table(rotary_size=2) for _ in range(126)),
    )  # fmt: skip
    # As many as n_layers will say there are, of what is not refused.
    layers = (abi.moe_model_layer_config * 5)(
        abi.moe_model_layer_config(rotary=1, window=2),
        abi.moe_model_layer_config(dense=1, rotary=-1, chunk=2, dense_intermediate_size=5),
        *(abi.moe_model_layer_config() for _ in range(3)),
    )

    def of_many_kinds() -> Any:
        moe = abi.moe_layer_config(intermediate_size=4, n_experts=3, top_k=2)
        return abi.moe_model_config(
            hidden_size=8, n_layers=2, n_heads=2, vocabulary_size=5, causal=1, moe=ctypes.pointer(moe),
            rotary_tables=tables, n_rotary_tables=2, layers=layers,
            temperature_scale=0.5, temperature_floor=2.0,
            sinks=1, attention_gate=1, logit_bias=1, embedding_dtype=1, qk_norm=2, logit_softcap=3.0,
        )  # fmt: skip

    model = create("moe_model_create", abi.moe_model, context_handle, ctypes.byref(config))
    model_handle = ctypes.cast(model, ctypes.POINTER(abi.moe_model))
    tape = create("moe_model_tape_create", abi.moe_model_tape, model_handle)
    cache = create("moe_cache_create", abi.moe_cache, model_handle, 2, 8)
    Caches = ctypes.POINTER(abi.moe_cache)
    cache_handle = ctypes.cast(cache, Caches)

    def model_input() -> Any:
        return abi.moe_model_input(
            n_sequences=2, sequence_length=3, tokens=room(), targets=room(), training=1, ignore_index=-100
        )

    def filled_tape() -> int:
        given = model_input()
        lib.moe_model_forward(
            model_handle, ctypes.byref(given), None, None,
            ctypes.cast(tape, ctypes.POINTER(abi.moe_model_tape)), None,
        )  # fmt: skip
        return tape

    def emptied_cache() -> int:
        lib.moe_cache_truncate(cache_handle, 0)
        return cache

    saved = str(folder / "cache.safetensors").encode()

    def generation() -> Any:
        drawn = abi.moe_sampling(temperature=1.0, top_k=3, min_p=0.1, repetition_penalty=1.1)
        return abi.moe_generation(
            max_new_tokens=3,
            sampling=ctypes.pointer(drawn),
            seeds=room(),
            cache=ctypes.cast(emptied_cache(), Caches),
        )

    def offsets() -> int:
        address = room()
        (ctypes.c_int64 * 3).from_address(address)[:] = [0, 1, 3]
        return address

    def report() -> Any:
        layers = (abi.moe_report * 2)(abi.moe_report(), abi.moe_report())
        alive.append(layers)
        first = ctypes.cast(layers, ctypes.POINTER(abi.moe_report))
        return abi.moe_model_report(layers=first, token_losses=room())

    def a_layer(**fields: Any) -> int:
        layer_config = abi.moe_layer_config(
            hidden_size=4, intermediate_size=4, n_experts=3, top_k=2, selection_bias=1, **fields
        )
        return create("moe_layer_create", abi.moe_layer, context_handle, ctypes.byref(layer_config))

    spread_config = abi.moe_layer_config(hidden_size=4, intermediate_size=4, n_experts=3, top_k=2)
    layer = a_layer()
    terms = (abi.moe_loss_term * 1)(abi.moe_loss_term(kind=abi.LOSS["z"], coefficient=0.1))
    with_a_loss = a_layer(losses=terms, n_losses=1)
    index = str(folder / "m.safetensors.index.json").encode()
    lib.moe_layer_save_sharded(ctypes.cast(layer, ctypes.POINTER(abi.moe_layer)), index, 0, 0, 0, 100)
    checkpoint = create("moe_checkpoint_open", abi.moe_checkpoint, context_handle, index)
    offloaded = a_layer(unallocated=2)
    lib.moe_layer_offload(
        ctypes.cast(offloaded, ctypes.POINTER(abi.moe_layer)),
        ctypes.cast(checkpoint, ctypes.POINTER(abi.moe_checkpoint)), 0, 0, 1 << 20,
    )  # fmt: skip
    single = str(folder / "single").encode()
    llama = str(folder / "llama").encode()
    saved_model, llama_text = a_folder(context_handle, llama)
    pretrained = create("moe_pretrained_open", abi.moe_pretrained, context_handle, llama, None)
    mapped = str(folder / "mapped").encode()
    mapping = create("moe_mapping_create", abi.moe_mapping, context_handle, mapped, 64)
    bound_model = create("moe_model_create", abi.moe_model, context_handle, ctypes.byref(config))
    layer_config = abi.moe_layer_config(
        hidden_size=4,
        intermediate_size=4,
        n_experts=4,
        top_k=2,
        n_shared_experts=1,
        noise=2,
        capacity_formula=2,
        capacity_factor=1.0,
    )

    adamw, schedule = defaults("moe_adamw_config"), defaults("moe_schedule")
    unbound = defaults("moe_adamw_config")
    unbound.unallocated_state = 1
    schedule.total_steps = 9

    def variable() -> Any:
        return abi.moe_tensor(rank=1, shape=(c_int64 * 4)(6), data=room(), grad=room())

    def new_optimizer(config: Any) -> int:
        tensor = variable()
        return create(
            "moe_adamw_create", abi.moe_optimizer, context_handle,
            ctypes.byref(config), ctypes.byref(tensor), 1,
        )  # fmt: skip

    optimizer, stepped = new_optimizer(unbound), new_optimizer(adamw)

    layer_handle = ctypes.cast(layer, ctypes.POINTER(abi.moe_layer))
    layer_tape = create("moe_tape_create", abi.moe_tape, layer_handle)
    bound_tape = create("moe_tape_create", abi.moe_tape, layer_handle)
    record = create("moe_routing_create", abi.moe_routing, context_handle)
    record_handle = ctypes.cast(record, ctypes.POINTER(abi.moe_routing))
    x = room()
    recorded = abi.moe_forward_options(record=record_handle)
    lib.moe_layer_forward(layer_handle, x, 3, ctypes.byref(recorded), room(), None, None)
    saved_record = room()
    lib.moe_routing_save(record_handle, saved_record, ROOM)
    plan = abi.moe_plan()
    lib.moe_layer_plan(layer_handle, 3, None, 1, ctypes.byref(plan))
    statistics = create("moe_statistics_create", abi.moe_statistics, context_handle, 3)

    def filled_layer_tape() -> int:
        handle = ctypes.cast(layer_tape, ctypes.POINTER(abi.moe_tape))
        lib.moe_layer_forward(layer_handle, x, 3, None, room(), handle, None)
        return layer_tape

    def layer_report() -> Any:
        return abi.moe_report(tokens_per_expert=room(), dropped_per_expert=room(), mean_probability=room())

    def stored() -> Any:
        name = ctypes.create_string_buffer(b"x")
        alive.append(name)
        shape = (c_int64 * 8)(4)
        address = ctypes.addressof(name)
        return abi.moe_stored_tensor(
            name=ctypes.cast(address, c_char_p).value, rank=1, shape=shape, data=room()
        )

    linear_config = abi.moe_layer_config(
        hidden_size=4, n_experts=3, top_k=2, expert_kind=2, expert_bias=1
    )  # each expert is one matrix
    linear = create("moe_layer_create", abi.moe_layer, context_handle, ctypes.byref(linear_config))

    def dense() -> Any:
        return abi.moe_tensor(name=b"weight", rank=2, shape=(c_int64 * 4)(4, 4), data=room())

    def handles(kind: Any, *addresses: int) -> Any:
        first = room()  # NULL follows
        for i, address in enumerate(addresses):
            c_void_p.from_address(first + 8 * i).value = address
        return ctypes.cast(first, ctypes.POINTER(ctypes.POINTER(kind)))

    trained_layer, trained_optimizer = a_layer(), new_optimizer(adamw)
    trained_statistics = create("moe_statistics_create", abi.moe_statistics, context_handle, 3)

    def training() -> Any:
        tensor = variable()
        alive.append(tensor)
        return abi.moe_training(
            step=7,
            layers=handles(abi.moe_layer, trained_layer), n_layers=1,
            optimizers=handles(abi.moe_optimizer, trained_optimizer), n_optimizers=1,
            statistics=handles(abi.moe_statistics, trained_statistics), n_statistics=1,
            tensors=ctypes.cast(placed(tensor), ctypes.POINTER(abi.moe_tensor)), n_tensors=1,
        )  # fmt: skip

    def by_call(prepared: Any = None) -> list[Any]:
        """Linear experts, whose one matrix is the whole list of tensors."""
        strides = (c_int64 * 3)(16, 4, 1)
        matrix = abi.moe_expert_tensor(part=2, data=room(), strides=strides)
        # As many as n_weights can say there are.
        matrices = (abi.moe_expert_tensor * 7)(matrix)
        config = abi.moe_experts_config(
            n_experts=3, hidden_size=4, expert_kind=2, weights=matrices, n_weights=1
        )
        call = abi.moe_experts_call(
            n_tokens=3,
            top_k=2,
            expert_indices=room(),
            expert_weights=room(),
            prepared=ctypes.cast(prepared, ctypes.POINTER(abi.moe_experts_prepared)),
        )
        return [context, config, call]

    def wanted() -> Any:
        """Of all gradients there are."""
        return abi.moe_experts_gradients(
            dx=room(), d_expert_weights=room(), tensors=by_call()[1].weights, n_tensors=1
        )

    linear_experts = by_call()[1]
    prepared = create(
        "moe_experts_prepare", abi.moe_experts_prepared, context_handle,
        ctypes.byref(linear_experts), 1,
    )  # fmt: skip
    saved_experts = room()
    state = str(folder / "state").encode()
    first_state = training()
    lib.moe_training_save(context_handle, ctypes.byref(first_state), state)
    bound_layer, loaded = a_layer(), a_layer()

    return [
        Function("moe_context_create", lambda: [context_config, room()], frees="moe_context_free"),
        Function("moe_layer_load", lambda: [loaded, checkpoint, 0, 0]),
        Function("moe_layer_upcycle", lambda: [linear, dense(), 1]),
        Function("moe_training_save", lambda: [context, training(), single]),
        Function("moe_training_load", lambda: [context, training(), state]),
        Function("moe_training_save_distributed", lambda: [context, training(), one_rank(), room(), single]),
        Function("moe_training_load_distributed", lambda: [context, training(), one_rank(), room(), state]),
        Function("moe_layer_initialize", lambda: [loaded]),
        Function("moe_layer_zero_grad", lambda: [loaded]),
        Function("moe_layer_parameter_count", lambda: [loaded, room()]),
        Function("moe_layer_bind_parameter", lambda: [bound_layer, 1, room(), room()]),
        Function("moe_tape_create", lambda: [loaded, room()], frees="moe_tape_free"),
        Function("moe_routing_create", lambda: [context, room()], frees="moe_routing_free"),
        Function("moe_routing_saved_size", lambda: [record, room()]),
        Function("moe_statistics_reset", lambda: [trained_statistics]),
        Function("moe_checkpoint_tensor_count", lambda: [checkpoint, room()]),
        Function("moe_sgd_create", lambda: [context, defaults("moe_sgd_config"), variable(), 1, room()]),
        Function("moe_muon_create", lambda: [context, defaults("moe_muon_config"), variable(), 1, room()]),
        *block_functions(context),
        Function("moe_model_create", lambda: [context, config, room()]),
        Function("moe_model_create", lambda: [context, of_many_kinds(), room()]),
        Function(
            "moe_model_create_distributed",
            lambda: [context, of_many_kinds(), one_rank(), abi.moe_placement(), room()],
        ),
        Function("moe_model_clip_grad_norm", lambda: [model, 1.0, room()]),
        Function("moe_model_configuration", lambda: [model, abi.moe_model_config()]),
        Function("moe_model_parameter_count", lambda: [model, room()]),
        Function("moe_model_parameter", lambda: [model, 1, abi.moe_tensor()]),
        Function("moe_model_find_parameter", lambda: [model, b"embed.weight", room()]),
        Function("moe_model_zero_grad", lambda: [model]),
        Function("moe_model_layer", lambda: [model, 1, room()]),
        Function("moe_model_tape_create", lambda: [model, room()]),
        Function("moe_model_plan_memory", lambda: [model, model_input(), 1, abi.moe_model_plan()]),
        Function("moe_model_forward", lambda: [model, model_input(), room(), room(), tape, report()]),
        Function("moe_cache_create", lambda: [model, 2, 3, room()]),
        Function("moe_cache_truncate", lambda: [cache, 0]),
        Function("moe_cache_size", lambda: [cache, room(), room(), room()]),
        Function("moe_cache_save", lambda: [cache, saved]),
        Function("moe_cache_load", lambda: [model, saved, 0, room()], frees="moe_cache_free"),
        Function("moe_generate", lambda: [model, generation(), room(), offsets(), 2, room(), room()]),
        Function("moe_model_read", lambda: [model, emptied_cache(), room(), 3, room()]),
        Function(
            "moe_model_read_with",
            lambda: [model, emptied_cache(), room(), 3, abi.moe_read_options(), room()],
        ),
        Function("moe_model_backward", lambda: [model, filled_tape(), model_input(), 1.0, room(), None]),
        Function("moe_model_bind_parameter", lambda: [bound_model, 1, room(), room()]),
        Function("moe_model_freeze", lambda: [bound_model, 1]),
        Function("moe_profile_start", lambda: [context, 3]),
        Function("moe_profile_phase", lambda: [context, 1, 0, abi.moe_phase_time()]),
        Function("moe_profile_events", lambda: [context, 0, room(), 3, room()]),
        Function("moe_profile_stop", lambda: [context]),
        Function("moe_layer_save_sharded", lambda: [layer, index, 0, 0, 0, 100]),
        Function("moe_checkpoint_write_sharded", lambda: [context, index, stored(), 1, 8]),
        Function("moe_layer_offload", lambda: [a_layer(unallocated=2), checkpoint, 0, 0, 1 << 20]),
        Function("moe_layer_offload_statistics", lambda: [offloaded, abi.moe_offload_statistics()]),
        Function("moe_mapping_create", lambda: [context, mapped, 64, room()]),
        Function("moe_mapping_data", lambda: [mapping, room()]),
        Function("moe_mapping_flush", lambda: [mapping]),
        Function("moe_optimizer_state_size", lambda: [optimizer, room()]),
        Function("moe_optimizer_bind_state", lambda: [optimizer, room(), ROOM]),
        Function("moe_context_memory", lambda: [context, room(), room()]),
        Function("moe_layer_create", lambda: [context, layer_config, room()]),
        Function(
            "moe_layer_create_distributed",
            lambda: [context, spread_config, one_rank(), abi.moe_placement(), room()],
        ),
        Function("moe_layer_clip_grad_norm", lambda: [layer, 1.0, room()]),
        Function("moe_layer_parameter", lambda: [layer, 1, abi.moe_tensor()]),
        Function("moe_layer_find_parameter", lambda: [layer, b"router.weight", room()]),
        Function("moe_layer_update_selection_bias", lambda: [layer, room(), 0.1, 1]),
        Function("moe_layer_set_loss_coefficient", lambda: [with_a_loss, 0, 0.1]),
        Function("moe_layer_prepare", lambda: [offloaded, 0]),
        Function("moe_tape_bind", lambda: [bound_tape, room(), ROOM]),
        Function("moe_routing_save", lambda: [record, room(), ROOM]),
        Function("moe_routing_load", lambda: [record, saved_record, ROOM]),
        Function("moe_layer_plan", lambda: [layer, 3, abi.moe_forward_options(), 1, abi.moe_plan()]),
        Function("moe_plan_describe", lambda: [plan, room(), 5000, room()]),
        Function(
            "moe_layer_forward",
            lambda: [layer, room(), 3, abi.moe_forward_options(), room(), layer_tape, layer_report()],
        ),
        Function(
            "moe_layer_backward",
            lambda: [layer, filled_layer_tape(), x, room(), 1.0, room(), abi.moe_backward_options()],
        ),
        Function("moe_pooled_balance_loss", lambda: [2, 3, *(room() for _ in range(5))]),
        Function("moe_statistics_create", lambda: [context, 3, room()]),
        Function("moe_statistics_add", lambda: [statistics, layer_report()]),
        Function("moe_statistics_read", lambda: [statistics, layer_report()]),
        Function("moe_adamw_create", lambda: [context, adamw, variable(), 1, room()]),
        Function("moe_optimizer_step", lambda: [stepped, variable(), 1]),
        Function("moe_optimizer_step_clipped", lambda: [stepped, variable(), 1, 1.0, room()]),
        Function(
            "moe_optimizer_step_adaptive",
            lambda: [stepped, variable(), 1, defaults("moe_clip_state"), room()],
        ),
        Function("moe_optimizer_set_learning_rate", lambda: [stepped, 0.1]),
        Function("moe_optimizer_set_group", lambda: [stepped, room(), 1, 1.0, 0.0]),
        Function("moe_clip_grad_norm", lambda: [context, variable(), 1, 1.0, room()]),
        Function("moe_adaptive_clip", lambda: [defaults("moe_clip_state"), 1.0, room()]),
        Function("moe_learning_rate", lambda: [schedule, 5, room()]),
        Function("moe_checkpoint_open", lambda: [context, index, room()]),
        Function("moe_checkpoint_tensor", lambda: [checkpoint, 0, abi.moe_stored_tensor()]),
        Function("moe_checkpoint_find_tensor", lambda: [checkpoint, b"layers.0.router.weight", room()]),
        Function("moe_checkpoint_read_tensor", lambda: [checkpoint, 0, 0, room(), 48]),
        Function("moe_checkpoint_write", lambda: [context, single, stored(), 1]),
        Function("moe_layer_save", lambda: [layer, single, 0, 0, 0]),
        Function(
            "moe_pretrained_open",
            lambda: [context, llama, abi.moe_pretrained_options(), room()],
            frees="moe_pretrained_free",
        ),
        Function("moe_pretrained_config", lambda: [pretrained, abi.moe_model_config()]),
        Function("moe_pretrained_describe", lambda: [pretrained, abi.moe_pretrained_info()]),
        Function("moe_pretrained_load", lambda: [pretrained, saved_model]),
        Function(
            "moe_model_load",
            lambda: [context, llama, abi.moe_pretrained_options(), room()],
            frees="moe_model_free",
        ),
        Function("moe_model_save", lambda: [saved_model, llama, abi.moe_save_options(config=llama_text)]),
        Function("moe_experts_plan", lambda: [*by_call(), wanted(), 1, abi.moe_plan()]),
        Function(
            "moe_experts_forward",
            lambda: [*by_call(prepared), room(), room(), saved_experts, ROOM, room()],
        ),
        Function(
            "moe_experts_backward",
            lambda: [*by_call(), None, 0, room(), room(), wanted()],
        ),
        Function(
            "moe_experts_prepare",
            lambda: [context, by_call()[1], 1, room()],
            frees="moe_experts_prepared_free",
        ),
        Function("moe_experts_prepared_size", lambda: [prepared, room()]),
    ]


def poison(functions: list[Function]) -> None:
    """Run models whose parameters are no numbers one can compute with."""
    calls = [f for f in functions if f.name in ("moe_model_forward", "moe_model_read", "moe_model_zero_grad")]
    model = ctypes.cast(calls[0].good()[0], ctypes.POINTER(abi.moe_model))
    count = c_int64()
    lib.moe_model_parameter_count(model, ctypes.byref(count))
    for filling in FILLINGS:
        for i in range(count.value):
            tensor = abi.moe_tensor()
            lib.moe_model_parameter(model, i, ctypes.byref(tensor))
            elements = 1
            for d in range(tensor.rank):
                elements *= tensor.shape[d]
            ctypes.memset(tensor.data, filling, 4 * elements)
        for function in calls:
            function.attempt(function.good(), f"parameters of {filling:#x}")


def main() -> None:
    if "ASAN_OPTIONS" not in os.environ:  # the sanitizer maps terabytes, and has a limit of its own
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))  # what is too large fails at once
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # bad names may be good ones, of files made here
        functions = all_functions(Path(folder))
        for function in functions:
            function.torture()
        poison(functions)
    print("finished")


if __name__ == "__main__":
    main()
