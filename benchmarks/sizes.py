"""What a layer's time is of the least that this machine's limits allow, over all sizes.

    python sizes.py MACHINE FOLDER [--instructions avx2] [--only WORD]

MACHINE is the program built from machine.c; a table is printed, sizes.json and sizes.png go to FOLDER.  The
limit is the longer of two times: that of the multiply-adds at the machine's mark (twice as fast in bfloat16
where there are instructions for it), and that of the bytes which have to move at the reading mark.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import forward, machine, print_machine, skew, train
from measure import alternate
from shapes import Dtype, Q, S, Shape

import libmoe

MIDDLE = Shape("", tokens=1024, hidden=512, inner=512, experts=16, top_k=2, kind="swiglu")
# What grows, by name; the other sizes are those of MIDDLE where nothing else is said.
SWEEPS: dict[str, list[Shape]] = {
    "tokens T": [replace(MIDDLE, name=f"T {t}", tokens=t) for t in (16, 64, 256, 1024, 4096, 16384, 65536)],
    "experts E, T 4096": [
        replace(MIDDLE, name=f"E {e}", tokens=4096, experts=e) for e in (8, 16, 32, 64, 128, 256, 512)
    ],
    "choices K": [replace(MIDDLE, name=f"K {k}", top_k=k) for k in (1, 2, 4, 8)],
    "features H and I": [
        replace(MIDDLE, name=f"H {h} I {i}", hidden=h, inner=i)
        for h, i in ((64, 64), (65, 65), (255, 257), (256, 256), (511, 513), (1023, 1025), (1024, 1024))
    ],
    "Zipf's experts, T 4096": [
        replace(MIDDLE, name=f"Zipf, E {e}", tokens=4096, experts=e) for e in (8, 32, 128)
    ],
    "S and Q": [S, Q],
}


def least(shape: Shape, dtype: Dtype, peak: dict[str, Any], *, backward: bool, in_pairs: bool) -> float:
    """Return the seconds that the limits allow; `in_pairs`: bfloat16 is multiplied two at a time."""
    operations = shape.operations(backward) / (1e9 * float(peak["gflops"]) * (2 if in_pairs else 1))
    # Of random routing.
    in_use = shape.experts * (1 - (1 - shape.top_k / shape.experts) ** shape.tokens)
    weights = in_use * shape.matrices * shape.hidden * shape.inner
    bytes_each = 2 if dtype == "bf16" else 4
    moved = shape.traffic(in_use, bytes_each)
    if backward:  # the weights again, their gradients read and written; dy read, dx written
        moved += weights * (bytes_each + 8) + 2 * 4.0 * shape.tokens * shape.hidden
    return max(operations, moved / (1e9 * float(peak["gbs"])))


def lines(
    asked: argparse.Namespace, context: libmoe.Context, threads: int, peak: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield sizes with their times and shares of the limit, one layer at a time."""
    for sweep, shapes in SWEEPS.items():
        for shape in shapes:
            for dtype in ("f32", "bf16"):
                if asked.only not in f"{sweep}, {shape.name} {dtype}":
                    continue
                layer = shape.layer(context, dtype=dtype)
                if sweep.startswith("Zipf"):
                    skew(layer)
                case = forward(shape, threads, layer)
                (alone,) = alternate([case.run])
                in_pairs = dtype == "bf16" and "bf16" in context.build_info()
                found = {"forward": (alone, least(shape, dtype, peak, backward=False, in_pairs=in_pairs))}
                del layer, case
                if not sweep.startswith("Zipf"):
                    (both,) = alternate([train(shape, threads, context, dtype).run])
                    found["forward + backward"] = (
                        both,
                        least(shape, dtype, peak, backward=True, in_pairs=in_pairs),
                    )
                for work, (seconds, limit) in found.items():
                    yield {
                        "sweep": sweep,
                        "name": shape.name,
                        "dtype": dtype,
                        "work": work,
                        "seconds": seconds,
                        "limit": limit,
                        "share": limit / seconds,
                    }


def draw(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the shares, a panel for each sweep."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sweeps = list(dict.fromkeys(entry["sweep"] for entry in entries))
    figure, panels = pyplot.subplots(2, 3, figsize=(14, 7), sharey=True, layout="constrained")
    for sweep, axes in zip(sweeps, panels.flat):
        for dtype, colour in (("f32", "tab:blue"), ("bf16", "tab:orange")):
            for work, style in (("forward", "-o"), ("forward + backward", "--s")):
                some = [e for e in entries if (e["sweep"], e["dtype"], e["work"]) == (sweep, dtype, work)]
                names, shares = [e["name"] for e in some], [100 * e["share"] for e in some]
                axes.plot(names, shares, style, color=colour, label=f"{dtype}, {work}")
        axes.axhline(60, color="grey", linewidth=0.8)
        axes.set(title=sweep, ylim=(0, 105))
        axes.tick_params(axis="x", rotation=30)
        axes.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=7)
    for axes in panels[:, 0]:
        axes.set_ylabel("% of the limit")
    figure.savefig(path, dpi=100)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("machine")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instructions", choices=("all", "avx2"), default="all", help="default all")
    parser.add_argument("--only", default="", metavar="WORD", help="lines whose names have it")
    asked = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(f"load average before: {os.getloadavg()[0]:.2f} (near 0 is a quiet machine)")
    (peak,) = machine(asked.machine, [threads])
    print_machine({threads: peak})
    context = libmoe.Context(threads, instructions=asked.instructions)
    print(context.build_info())
    print(f"\n{'sizes':40} {'':5} {'work':20} {'ms':>10} {'% of the limit':>15}")
    entries = []
    for entry in lines(asked, context, threads, peak):
        entries.append(entry)
        name = f"{entry['sweep']}: {entry['name']}"
        columns = f"{name:40} {entry['dtype']:5} {entry['work']:20}"
        print(f"{columns} {1e3 * entry['seconds']:10.3f} {100 * entry['share']:15.0f}", flush=True)
    everything = {"machine": peak, "instructions": asked.instructions, "lines": entries}
    end = "" if asked.instructions == "all" else f"-{asked.instructions}"
    (asked.folder / f"sizes{end}.json").write_text(json.dumps(everything, indent=1) + "\n")
    draw(entries, asked.folder / f"sizes{end}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
