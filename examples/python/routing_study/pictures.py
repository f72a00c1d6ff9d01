"""The pictures: the experts' shares of the tokens over time, and the held-out bits of all schemes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only: no screen needed
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from routing_study.runs import Result


def share_picture(results: Sequence[Result], columns: int, title: str, path: Path) -> None:
    """One panel per run: each expert is a band as high as its share of the tokens."""
    rows = -(-len(results) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.9 * columns, 0.7 + 1.75 * rows), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    panels = list(grid.flat)
    for axes, result in zip(panels, results):
        steps = [0] + [point.step for point in result.points]
        shares = np.stack([point.shares for point in result.points])  # [points,E]
        # A point tells of the steps before it: the band is a staircase, not a line between points.
        shares = np.vstack([shares[:1], shares])
        colors = plt.get_cmap("tab20")(np.arange(shares.shape[1]) % 20)
        axes.stackplot(steps, shares.T, colors=colors, step="pre", linewidth=0)
        axes.set_title(f"{result.scheme.name}\n{result.bits:.3f} bits", fontsize=8)
        axes.set(xlim=(0, steps[-1]), ylim=(0, 1))
        axes.tick_params(labelsize=7)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("training step", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def bits_picture(results: Sequence[Result], repeats: Sequence[Result], path: Path) -> None:
    """Held-out bits per byte, the best on top; a band covers the repeats, which differ by seed alone."""
    ordered = sorted(results, key=lambda result: result.bits, reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.26 * len(ordered)), layout="constrained")
    low, high = min(r.bits for r in repeats), max(r.bits for r in repeats)
    axes.axvspan(low, high, color="#deebf7", label=f"{len(repeats)} seeds of: {repeats[0].scheme.name}")
    axes.plot([r.bits for r in ordered], range(len(ordered)), "o", color="#08519c")
    for place, result in enumerate(ordered):
        axes.annotate(
            f"{result.bits:.3f}", (result.bits, place), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(ordered)), [result.scheme.name for result in ordered], fontsize=8)
    axes.set(xlabel="held-out bits per byte (less is better)")
    axes.margins(x=0.1)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
