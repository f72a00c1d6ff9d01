"""The results as text: a table in Markdown, and all points as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from routing_study.runs import Result

HEADER = """\
| Scheme | Active width | Held-out bits per byte | Fullest expert, begin → end | Dead, begin → end \
| Entropy, begin → end | Dropped, begin → end |
|---|---:|---:|---:|---:|---:|---:|
"""


def markdown(results: Sequence[Result]) -> str:
    """Return one row per result; begin and end are the first and the last of the points."""
    return HEADER + "".join(row(result) for result in results)


def row(result: Result) -> str:
    """Return the row of one result."""
    first, last = result.points[0], result.points[-1]
    columns = [
        result.scheme.name + ("" if result.seed == 1 else f", seed {result.seed}"),
        f"{result.active_width:.0f}",
        f"{result.bits:.3f}",
        f"{first.max_over_mean:.1f} → {last.max_over_mean:.1f}",
        f"{first.dead_share:.0%} → {last.dead_share:.0%}",
        f"{first.entropy:.2f} → {last.entropy:.2f}",
        f"{first.dropped_share:.1%} → {last.dropped_share:.1%}",
    ]
    return "| " + " | ".join(columns) + " |\n"


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Write every point of every run, one per line."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["scheme", "seed", "step", "max_over_mean", "dead_share", "entropy", "dropped_share", "shares"]
        )
        for result in results:
            for p in result.points:
                shares = " ".join(f"{share:.4f}" for share in p.shares)
                numbers = [p.max_over_mean, p.dead_share, p.entropy, p.dropped_share]
                writer.writerow([result.scheme.name, result.seed, p.step, *numbers, shares])
