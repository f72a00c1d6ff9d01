"""The ctypes declarations say what include/moe.h says."""

from __future__ import annotations

import ctypes
import dataclasses
import inspect
import subprocess
from pathlib import Path
from typing import Any

import pytest

import compiler
import header
import libmoe
from libmoe import _abi, _abi_model
from libmoe._library import lib

STRUCTS = header.structs()
FUNCTIONS = {**_abi.FUNCTIONS, **_abi_model.FUNCTIONS}
HANDLES = [
    "moe_context",
    "moe_layer",
    "moe_tape",
    "moe_routing",
    "moe_statistics",
    "moe_optimizer",
    "moe_checkpoint",
    "moe_mapping",
    "moe_model",
    "moe_model_tape",
    "moe_cache",
]


def declared(name: str) -> Any:
    """What the declarations call by this name."""
    return getattr(_abi_model if hasattr(_abi_model, name) else _abi, name)


SIZED = [name for name, fields in STRUCTS.items() if "struct_size" in fields]
C_TYPES: dict[str, list[Any]] = {
    "void": [None],
    "int32_t": [ctypes.c_int32],
    "int64_t": [ctypes.c_int64],
    "uint64_t": [ctypes.c_uint64],
    "size_t": [ctypes.c_size_t],
    "float": [ctypes.c_float],
    "double": [ctypes.c_double],
    "moe_status": [_abi.Status],
    "char *": [ctypes.c_char_p],
    # An array goes by its address; where one number comes out, by a pointer to it.
    "void *": [ctypes.c_void_p, ctypes.py_object],
    "float *": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)],
    "void **": [ctypes.POINTER(ctypes.c_void_p)],
    "uint8_t *": [ctypes.c_void_p],
    "int32_t *": [ctypes.c_void_p],
    "int64_t *": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64)],
    "double *": [ctypes.POINTER(ctypes.c_double)],
    "size_t *": [ctypes.POINTER(ctypes.c_size_t)],
    "int64_t [4]": [ctypes.c_int64 * 4],
    "int64_t [8]": [ctypes.c_int64 * 8],
    **{f"{name} *": [ctypes.POINTER(declared(name))] for name in [*STRUCTS, *HANDLES]},
    **{f"{name} **": [ctypes.POINTER(ctypes.POINTER(declared(name)))] for name in HANDLES},
}


def test_every_function_is_declared() -> None:
    assert sorted(header.functions()) == sorted(FUNCTIONS)
    assert len(FUNCTIONS) == header.TEXT.count("\nMOE_API ")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_types(name: str) -> None:
    returned, arguments = header.functions()[name]
    function = getattr(lib, name)
    assert function.restype in C_TYPES[returned]
    assert len(function.argtypes) == len(arguments)
    for ours, theirs in zip(function.argtypes, arguments):  # noqa: B905  (Python 3.9 has no strict)
        assert ours in C_TYPES[theirs], theirs


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_fields(name: str) -> None:
    ours = {field[0]: field[1] for field in declared(name)._fields_}
    assert list(ours) == list(STRUCTS[name])
    for field, theirs in STRUCTS[name].items():
        if isinstance(theirs, tuple):
            returned, arguments = theirs
            assert ours[field]._restype_ in C_TYPES[returned]
            assert len(ours[field]._argtypes_) == len(arguments)
            assert all(a in C_TYPES[b] for a, b in zip(ours[field]._argtypes_, arguments))  # noqa: B905
        else:
            assert ours[field] in C_TYPES[theirs], field


def test_struct_layout_is_what_a_c_compiler_makes_of_it(tmp_path: Path) -> None:
    lines = ["#include <moe_model.h>", "#include <stdio.h>", "int main(void) {"]
    ours = {}
    for struct, fields in STRUCTS.items():
        lines.append(f'printf("{struct} %zu\\n", sizeof({struct}));')
        ours[struct] = ctypes.sizeof(declared(struct))
        for field in fields:
            lines.append(f'printf("{struct}.{field} %zu\\n", offsetof({struct}, {field}));')
            ours[f"{struct}.{field}"] = getattr(declared(struct), field).offset
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "return 0; }"]))

    program = tmp_path / "layout"
    command = [compiler.PATH, f"-I{header.PATHS[0].parent}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert {name: int(number) for name, number in map(str.split, printed.splitlines())} == ours


ENUMS = {
    "moe_status": ("MOE_ERROR", _abi.STATUS),
    "moe_matmul": ("MOE_MATMUL", _abi.MATMUL),
    "moe_prepared": ("MOE_PREPARED", _abi.PREPARED),
    "moe_unallocated": ("MOE_UNALLOCATED", _abi.UNALLOCATED),
    "moe_tape_policy": ("MOE_TAPE", _abi.TAPE),
    "moe_instructions": ("MOE_INSTRUCTIONS", _abi.INSTRUCTIONS),
    "moe_log_level": ("MOE_LOG", _abi.LOG),
    "moe_phase": ("MOE_PHASE", _abi.PHASE),
    "moe_dtype": ("MOE_DTYPE", _abi.DTYPE),
    "moe_router_weights": ("MOE_ROUTER_WEIGHTS", _abi.ROUTER_WEIGHTS),
    "moe_router": ("MOE_ROUTER", _abi.ROUTER),
    "moe_noise": ("MOE_NOISE", _abi.NOISE),
    "moe_router_norm": ("MOE_ROUTER_NORM", _abi.ROUTER_NORM),
    "moe_router_dropout": ("MOE_ROUTER_DROPOUT", _abi.ROUTER_DROPOUT),
    "moe_dynamic_k": ("MOE_DYNAMIC_K", _abi.DYNAMIC_K),
    "moe_capacity": ("MOE_CAPACITY", _abi.CAPACITY),
    "moe_drop": ("MOE_DROP", _abi.DROP),
    "moe_overflow": ("MOE_OVERFLOW", _abi.OVERFLOW),
    "moe_renormalize": ("MOE_RENORMALIZE", _abi.RENORMALIZE),
    "moe_shared_gate": ("MOE_SHARED", _abi.SHARED),
    "moe_loss": ("MOE_LOSS", _abi.LOSS),
    "moe_score": ("MOE_SCORE", _abi.SCORE),
    "moe_epsilon": ("MOE_EPSILON", _abi.EPSILON),
    "moe_group_mask": ("MOE_GROUP_MASK", _abi.GROUP_MASK),
    "moe_normalize": ("MOE_NORMALIZE", _abi.NORMALIZE),
    "moe_bias": ("MOE_BIAS", _abi.BIAS),
    "moe_expert_kind": ("MOE_EXPERT", _abi.EXPERT),
    "moe_activation": ("MOE_ACTIVATION", _abi.ACTIVATION),
    "moe_layout": ("MOE_LAYOUT", _abi.LAYOUT),
    "moe_schedule_kind": ("MOE_SCHEDULE", _abi.SCHEDULE),
    "moe_norm": ("MOE_NORM", _abi_model.NORM),
    "moe_norm_place": ("MOE_NORM", _abi_model.NORM_PLACE),
    "moe_keep": ("MOE_KEEP", _abi_model.KEEP),
}


def test_every_enum_is_declared() -> None:
    assert ENUMS.keys() == header.enums().keys()
    assert len(ENUMS) == header.TEXT.count("typedef enum ")


@pytest.mark.parametrize("enum", ENUMS)
def test_enum(enum: str) -> None:
    prefix, ours = ENUMS[enum]
    spelled = {f"{prefix}_{name.upper()}".replace("MOE_ERROR_OK", "MOE_OK"): ours[name] for name in ours}
    assert spelled == header.enums()[enum]


def test_constants() -> None:
    assert header.macro("MOE_THREADS_ALL") == f"({libmoe.ALL_THREADS})"
    assert header.macro("MOE_NO_LAYER_NUMBER") == f"({_abi.NO_LAYER_NUMBER})"


def test_one_version() -> None:
    """Of the package, of the header and of the library."""
    assert header.macro("MOE_VERSION_STRING") == f'"{libmoe.__version__}"'
    assert lib.moe_version_string().decode() == libmoe.__version__
    major, minor, patch = map(int, libmoe.__version__.split("."))
    assert lib.moe_version() == major * 10000 + minor * 100 + patch
    assert libmoe.__version__ in libmoe.build_info()


def test_every_struct_has_a_size_or_belongs_to_one_that_has() -> None:
    assert set(STRUCTS) - set(SIZED) == {"moe_loss_term", "moe_expert_group", "moe_profile_event"}


@pytest.mark.parametrize("name", SIZED)
def test_init_functions_give_the_defaults_of_python(name: str) -> None:
    """What the library fills in is what a struct holds whose fields nobody names, and what signatures say."""
    filled = declared(name)()
    ctypes.memset(ctypes.byref(filled), 0xFF, ctypes.sizeof(filled))
    getattr(lib, f"{name}_init")(ctypes.byref(filled), ctypes.sizeof(filled))

    defaults: dict[str, Any] = {}
    if name == "moe_adamw_config":
        signature = inspect.signature(libmoe.AdamW).parameters
        beta1, beta2 = signature["betas"].default
        defaults = {key: signature[key].default for key in ("learning_rate", "epsilon", "weight_decay")}
        defaults.update(beta1=beta1, beta2=beta2)
    elif name == "moe_sgd_config":
        signature = inspect.signature(libmoe.SGD).parameters
        defaults = {key: signature[key].default for key in ("learning_rate", "momentum", "weight_decay")}
    elif name == "moe_schedule":
        defaults = {field.name: field.default for field in dataclasses.fields(libmoe.Schedule)}
        defaults["kind"] = _abi.SCHEDULE[defaults["kind"]]
    elif name == "moe_clip_state":
        signature = inspect.signature(libmoe.AdaptiveClip).parameters
        defaults = {key: parameter.default for key, parameter in signature.items()}
    elif name == "moe_model_input":
        defaults = {
            "ignore_index": inspect.signature(libmoe.Model.forward).parameters["ignore_index"].default
        }
    assert bytes(filled) == bytes(declared(name)(**defaults))


def test_the_wrong_handle_is_refused() -> None:
    layer = libmoe.Layer(4, 4, 2, 1)
    with pytest.raises(ctypes.ArgumentError):
        lib.moe_layer_zero_grad(layer.tape()._handle)
