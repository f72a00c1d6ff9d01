"""Which classes of the installed transformers libmoe computes: the table in docs/transformers.md.

python table.py           writes it
python table.py --check   says whether it is as it would be written
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from torch import nn

import libmoe.transformers  # noqa: F401  # registers
from families import decorated, small_model
from libmoe.transformers.known import known

PAGE = Path(__file__).parents[4] / "docs/transformers.md"
BEGIN, END = "<!-- table: scripts/transformers-table -->\n", "<!-- end of table -->\n"


def table() -> str:
    """The rows, those with most classes first."""
    rows: dict[tuple[str, str], list[str]] = {}
    for module, name in decorated():
        model = small_model(module, name)
        experts = next(each for each in model.modules() if type(each).__name__ == name)
        rows.setdefault(described(experts), []).append(name.removesuffix("Experts"))
    lines = [f"transformers {transformers.__version__}: {len(decorated())} classes.\n\n"]
    lines += ["| the experts compute | weights | classes |\n", "|---|---|---|\n"]
    for (what, weights), names in sorted(rows.items(), key=lambda row: (-len(row[1]), row[0])):
        lines.append(f"| {what} | {weights} | {', '.join(sorted(names))} |\n")
    return "".join(lines)


def described(experts: nn.Module) -> tuple[str, str]:
    """What a module computes, and how its weights lie."""
    found = known(experts)
    if found.reason:
        return f"**falls back**: {found.reason}", ""
    act = f"v sigmoid({found.alpha:g} v)" if found.alpha else found.activation
    what = f"{act}(gate) * up" if experts.has_gate else f"{act}(up)"
    if found.limit:
        what += f", clamped at {found.limit:g}"
    if found.offset:
        what = what.replace("up", f"(up + {found.offset:g})", 1)
    order = "[E, in, out]" if experts.is_transposed else "[E, out, in]"
    if experts.has_gate and not experts.is_concatenated:
        order += ", gate and up by turns"
    return what, order + (", biases" if experts.has_bias else "")


def main() -> int:
    """Write or check the page."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv:
        if wanted != text:
            print(
                "docs/transformers.md: the table is not that of the installed transformers; "
                "run scripts/transformers-table"
            )
        return int(wanted != text)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
