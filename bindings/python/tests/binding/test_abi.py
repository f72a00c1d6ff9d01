"""The generated declarations beside a C compiler's reading of the headers, and beside the library."""

from __future__ import annotations

import ctypes
import dataclasses
import inspect
import subprocess
from pathlib import Path
from typing import Any

import pytest

import compiler
import libmoe
from headers import initializers, reader
from libmoe._native import abi
from libmoe._native.library import lib
from libmoe._native.struct import Status

HEADERS = reader.read()
STRUCTS = HEADERS.structs
SIZED = [struct.name for struct in STRUCTS.values() if struct.sized]


def declared(name: str) -> Any:
    return getattr(abi, name)


def spelled(kind: reader.Type) -> str:
    """Return a type as C spells it, from what the reader made of it."""
    if kind.callback:
        returned, taken = kind.callback
        return f"{spelled(returned)}(*)({', '.join(map(spelled, taken))})"
    return f"{'const ' if kind.constant else ''}{kind.name} {'*' * kind.stars}"


def test_nothing_is_passed_over() -> None:
    """As plain a look at the headers as there is finds no more than the reader does."""
    text = "".join(path.read_text() for path in reader.PATHS)
    assert len(HEADERS.functions) == text.count("\nMOE_API ")
    assert len(HEADERS.enums) == text.count("\ntypedef enum ")
    assert len(STRUCTS) + len(HEADERS.handles) == text.count("\ntypedef struct ")


def test_a_c_compiler_reads_the_headers_as_the_reader_does(tmp_path: Path) -> None:
    """Functions declared again, types of fields, numbers of enums: what differs does not compile."""
    lines = [f"#include <{path.name}>" for path in reader.PATHS]
    for function in HEADERS.functions.values():
        arguments = ", ".join(spelled(parameter.type) for parameter in function.parameters) or "void"
        lines.append(f"{spelled(function.returns)}{function.name}({arguments});")
    for struct in STRUCTS.values():
        for field in struct.fields:
            kind = spelled(field.type) + (f"[{field.type.length}]" if field.type.length else "")
            same = f"__builtin_types_compatible_p(__typeof__((({struct.name} *)0)->{field.name}), {kind})"
            lines.append(f'_Static_assert({same}, "{struct.name}.{field.name}");')
    for enum in HEADERS.enums.values():
        lines += [f'_Static_assert({m.name} == {m.value}, "{m.name}");' for m in enum.members]
    source = tmp_path / "read.c"
    source.write_text("\n".join(lines))
    command = [
        compiler.PATH,
        "-std=gnu11",
        f"-I{reader.PATHS[0].parent}",
        "-c",
        "-o",
        "/dev/null",
        str(source),
    ]
    subprocess.run(command, check=True)


def test_structs_are_what_a_c_compiler_makes_of_them(tmp_path: Path) -> None:
    """Sizes, offsets, and what the MOE_..._INIT macros put there."""
    headers = (*(path.name for path in reader.PATHS), "stdio.h")
    lines = [*(f"#include <{header}>" for header in headers), "int main(void) {"]
    ours: dict[str, str] = {}
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        ours[name] = str(ctypes.sizeof(declared(name)))
        assert [field.name for field in struct.fields] == [field[0] for field in declared(name)._fields_]
        for field in struct.fields:
            place = f"{name}.{field.name}"
            lines.append(f'printf("{place} %zu\\n", offsetof({name}, {field.name}));')
            ours[place] = str(getattr(declared(name), field.name).offset)
        if struct.sized:
            # Memory in static storage has 0 between the fields too.
            lines.append(f"static {name} of_{name} = {initializers.name_of(struct)};")
            lines.append(f'printf("{name}.init ");')
            lines.append(f"for (size_t i = 0; i < sizeof(of_{name}); i++)")
            lines.append(f'  printf("%02x", ((unsigned char *)&of_{name})[i]);')
            lines.append('printf("\\n");')
            ours[f"{name}.init"] = bytes(declared(name)()).hex()
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "return 0; }"]))

    program = tmp_path / "layout"
    command = [compiler.PATH, f"-I{reader.PATHS[0].parent}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert dict(line.split() for line in printed.splitlines()) == ours


def test_functions_take_what_the_header_says() -> None:
    """As wide and of the same kind, argument by argument: a C compiler has compared the types' names."""
    assert list(abi.FUNCTIONS) == list(HEADERS.functions)
    numbers = {"float": ctypes.c_float, "double": ctypes.c_double, "int32_t": ctypes.c_int32}
    numbers.update(int64_t=ctypes.c_int64, uint64_t=ctypes.c_uint64, size_t=ctypes.c_size_t)
    for name, (_, ours) in abi.FUNCTIONS.items():
        theirs = [parameter.type for parameter in HEADERS.functions[name].parameters]
        assert len(ours) == len(theirs)
        for mine, kind in zip(ours, theirs):  # noqa: B905  (Python 3.9 has no strict)
            if not kind.stars:
                assert mine is numbers.get(kind.name, Status), (name, kind)
            elif kind.name in STRUCTS or kind.name in HEADERS.handles:
                pointed = declared(kind.name)
                for _ in range(kind.stars):
                    pointed = ctypes.POINTER(pointed)
                assert mine is pointed, (name, kind)
            else:
                assert mine in (ctypes.c_void_p, ctypes.c_char_p), (name, kind)


def test_one_version() -> None:
    """Of the package, of the header and of the library."""
    assert HEADERS.macros["MOE_VERSION_STRING"].value == f'"{libmoe.__version__}"'
    assert lib.moe_version_string().decode() == libmoe.__version__
    major, minor, patch = map(int, libmoe.__version__.split("."))
    assert lib.moe_version() == major * 10000 + minor * 100 + patch
    assert libmoe.__version__ in libmoe.build_info()


def test_every_struct_has_a_size_or_belongs_to_one_that_has() -> None:
    assert set(STRUCTS) - set(SIZED) == {
        "moe_loss_term",
        "moe_expert_group",
        "moe_expert_tensor",
        "moe_model_layer_config",
        "moe_prepared_part",
        "moe_profile_event",
        "moe_rotary_table",
    }


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
        defaults["kind"] = abi.SCHEDULE_KIND[defaults["kind"]]
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
