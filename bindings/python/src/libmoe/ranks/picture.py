"""A picture of a simulation, in SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .simulation import Point

PARTS = (
    ("compute", "computing", "#4477aa"),
    ("exchange", "exchange of rows", "#ee6677"),
    ("chain", "chains from rank to rank", "#ccbb44"),
    ("gradient_sum", "sums over copies", "#aa3377"),
)
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 400, 70, 330, 60


def svg(points: Sequence[Point], title: str) -> str:
    """Return bars, one for each number of ranks: the time of a step and what it consists of."""
    highest = max(point.strategy.seconds for point in points)
    unit = 10 ** math.floor(math.log10(highest))
    step = unit if highest / unit >= 3 else unit / 2 if highest / unit >= 1.5 else unit / 5
    room = (WIDTH - LEFT - 20) / len(points)

    def y(seconds: float) -> float:
        return BOTTOM - seconds / highest * (BOTTOM - TOP)

    shapes = [f'<text x="{LEFT}" y="24" font-size="15">{_escaped(title)}</text>']
    for line in range(int(highest / step) + 1):
        at = y(line * step)
        shapes.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - 20}" y2="{at:.1f}" stroke="#ddd"/>')
        shapes.append(
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{1e3 * line * step:g} ms</text>'
        )
    for number, point in enumerate(points):
        x, below = LEFT + (number + 0.15) * room, 0.0
        for name, _, colour in PARTS:
            seconds = getattr(point.strategy, name)
            place = f'x="{x:.1f}" y="{y(below + seconds):.1f}" width="{0.7 * room:.1f}"'
            shapes.append(f'<rect {place} height="{y(0) - y(seconds):.1f}" fill="{colour}"/>')
            below += seconds
        for at, words in ((BOTTOM + 16.0, f"{point.ranks:,}"), (y(below) - 5, f"{point.efficiency:.0%}")):
            shapes.append(f'<text x="{x + 0.35 * room:.1f}" y="{at:.1f}" text-anchor="middle">{words}</text>')
    for number, (_, words, colour) in enumerate(PARTS):
        x = LEFT + number * 160
        shapes.append(f'<rect x="{x}" y="{BOTTOM + 44}" width="11" height="11" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 16}" y="{BOTTOM + 54}">{words}</text>')
    words = "ranks; above the bars: tokens a second and rank, over those of one rank alone"
    shapes.append(f'<text x="{LEFT}" y="{BOTTOM + 34}">{words}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
    )
    return head + "\n".join(shapes) + "\n</svg>\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
