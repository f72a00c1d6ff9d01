"""The headers taken apart: what the tests compare the ctypes declarations with."""

from __future__ import annotations

import re
from pathlib import Path

PATHS = [Path(__file__).resolve().parents[3] / "include" / name for name in ("moe.h", "moe_model.h")]
TEXT = re.sub(r"/\*.*?\*/", "", "".join(path.read_text() for path in PATHS), flags=re.DOTALL)


def split_declaration(declaration: str) -> tuple[str, str]:
    """'const float *x' -> ('float *', 'x'); 'int64_t shape[4]' -> ('int64_t [4]', 'shape')."""
    words = re.fullmatch(r"(?:const )?(\w+) (\**)(\w+)(\[\d+\])?", " ".join(declaration.split()))
    assert words, declaration
    kind, stars, name, length = words.groups()
    return " ".join(filter(None, [kind, stars, length])), name


def split_arguments(arguments: str) -> list[str]:
    """'const float *x, int64_t n' -> ['float *', 'int64_t']; the names do not matter."""
    return [] if arguments == "void" else [split_declaration(part)[0] for part in arguments.split(",")]


def functions() -> dict[str, tuple[str, list[str]]]:
    """What every function returns and takes."""
    found = re.findall(r"MOE_API (?:MOE_CHECK )?(?:const )?(\w+) (\**)(\w+)\(([^)]*)\);", TEXT)
    return {name: (f"{kind} {stars}".strip(), split_arguments(args)) for kind, stars, name, args in found}


def structs() -> dict[str, dict[str, str | tuple[str, list[str]]]]:
    """Fields of every struct, in order; a callback is (returned, arguments)."""
    fields: dict[str, dict[str, str | tuple[str, list[str]]]] = {}
    for body, struct in re.findall(r"typedef struct \w+ \{([^}]*)\} (\w+);", TEXT):
        fields[struct] = {}
        for field in body.split(";")[:-1]:
            callback = re.fullmatch(r"\s*(\w+) (\**)\(\*(\w+)\)\(([^)]*)\)", field)
            if callback:
                kind, stars, name, args = callback.groups()
                fields[struct][name] = (f"{kind} {stars}".strip(), split_arguments(args))
            else:
                first, *others = field.split(",")  # "float a, b" is two fields of one type
                kind, name = split_declaration(first)
                fields[struct].update(dict.fromkeys([name, *map(str.strip, others)], kind))
    return fields


def enums() -> dict[str, dict[str, int]]:
    """Constants of every enum: {'moe_bias': {'MOE_BIAS_DEFAULT': 0, ...}}."""
    return {
        name: {constant: int(value) for constant, value in re.findall(r"(\w+) = (\d+)", body)}
        for body, name in re.findall(r"typedef enum \w+ \{([^}]*)\} (\w+);", TEXT)
    }


def buffers() -> set[str]:
    """Parameters without a gradient: those marked * in the comment of moe_layer_parameter_count."""
    return set(re.findall(r"([\w.]+) \[\w+\]\*", PATHS[0].read_text()))


def presets() -> list[str]:
    """Models with a function moe_preset_..., in order."""
    return [name[len("moe_preset_") :] for name in functions() if name.startswith("moe_preset_")]


def macro(name: str) -> str:
    """Text of a macro: macro('MOE_VERSION_STRING') -> '"0.1.0"'."""
    (value,) = re.findall(rf"#define {name} (.+)", TEXT)
    return str(value).strip()
