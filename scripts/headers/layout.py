"""Where each field of each struct lies on the 64-bit systems that libmoe runs on: Sources/CMoE/abi.c."""

from __future__ import annotations

import re

from .reader import Headers, Struct, Type, refuse

_SIZES = {"int32_t": 4, "float": 4, "int64_t": 8, "uint64_t": 8, "size_t": 8, "double": 8}


def offsets(struct: Struct) -> tuple[dict[str, int], int]:
    """Return the bytes before each field, and those of the whole struct."""
    found, end, widest = {}, 0, 1
    for field in struct.fields:
        one = _size(field.type)
        end = -(-end // one) * one
        found[field.name] = end
        end += one * (field.type.length or 1)
        widest = max(widest, one)
    return found, -(-end // widest) * widest


def pinned(headers: Headers, before: str) -> str:
    """Return abi.c; refuse a field that lies elsewhere than in the one that there is."""
    earlier = {m[0]: int(m[1]) for m in re.findall(r"offsetof\((\w+, \w+)\) == (\d+)", before)}
    lines = [
        "/* The public header as a compiled C target: an edit to it rebuilds what depends on it, and layouts",
        " * that other languages copy (ctypes among them) are pinned here.  Structs only grow at the end.",
        " * Written by scripts/abi; do not edit. */",
        '#include "moe_experts.h"',
        '#include "moe_model.h"',
        '#include "moe_pretrained.h"',
        '#include "moe_communicator.h"',
        '#include "moe_ranks.h"',
    ]
    for name, struct in headers.structs.items():
        places, size = offsets(struct)
        lines += ["", f'_Static_assert(sizeof({name}) == {size}, "{name}");']
        for field, place in places.items():
            if (old := earlier.get(f"{name}, {field}", place)) != place:
                refuse(
                    f"{name}.{field}",
                    f"has moved from {old} to {place}; within one SONAME structs only grow at the end."
                    "  Where the SONAME moves, delete Sources/CMoE/abi.c and run this again",
                )
            lines.append(f'_Static_assert(offsetof({name}, {field}) == {place}, "{name}.{field}");')
    return "\n".join(lines) + "\n"


def _size(kind: Type) -> int:
    return 8 if kind.stars else _SIZES[kind.name]
