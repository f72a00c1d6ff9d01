"""The roofline: how fast forward is, under what the machine's arithmetic and memory allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def draw(peaks: dict[int, dict[str, Any]], lines: list[dict[str, Any]], path: Path) -> None:
    """Draw a roof for each number of threads, and the lines that have operations and bytes as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [entry for entry in lines if entry["operations"] and entry["traffic"]]
    intensity = np.array([entry["operations"] / entry["traffic"] for entry in points])  # FLOP per byte
    rate = np.array([entry["gflops"] for entry in points])
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    across = np.geomspace(intensity.min() / 2, intensity.max() * 2, 200)
    for colour, (threads, peak) in zip(("tab:orange", "tab:blue"), peaks.items()):
        roof = np.minimum(peak["gflops"], across * peak["gbs"])
        label = f"{threads} threads: {peak['gflops']:.0f} GFLOP/s, {peak['gbs']:.0f} GB/s"
        axes.plot(across, roof, color=colour, label=label)
        mine = np.array([entry["threads"] == threads for entry in points])
        axes.scatter(intensity[mine], rate[mine], color=colour)
    for entry, right, up in zip(points, intensity, rate):
        name = entry["work"].replace(" forward", "")
        axes.annotate(name, (right, up), xytext=(4, -10), textcoords="offset points", fontsize=7)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte that must move (weights in use, x, y)",
        ylabel="GFLOP/s",
        title="forward, float32",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
