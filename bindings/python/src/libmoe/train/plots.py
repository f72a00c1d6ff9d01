"""Pictures of a run, from its log; matplotlib draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe

from .data import Part
from .errors import UserError
from .log import Record, of_kind

SHOWN = 24  # bytes in the picture of which bytes go where: the most frequent


def draw(
    folder: Path, records: list[Record], model: libmoe.Model | None = None, text: Part | None = None
) -> list[Path]:
    """Draw all pictures of a run.

    Parameters
    ----------
    folder : path
        Where the files go.
    records : list of dict
        The log.
    model, text : Model, Part, optional
        Of byte tokens, for the picture of which bytes go where.

    Returns
    -------
    list of path
        loss.png, gradients.png, load.png, and bytes.png where there are a model and a text; without experts
        only the first two.

    Raises
    ------
    UserError
        matplotlib is missing, or there is nothing to draw yet.
    """
    plt = _matplotlib()
    steps = of_kind(records, "step")
    if not steps:
        raise UserError("nothing to draw: the log has no step yet")
    figures = {"loss.png": _loss(plt, records), "gradients.png": _gradients(plt, steps)}
    if steps[0]["layers"]:
        figures["load.png"] = _load(plt, steps)
        if model is not None and text is not None:
            figures["bytes.png"] = _bytes(plt, model, text)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=130)
        plt.close(figure)
    return [folder / name for name in figures]


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UserError("the package matplotlib is not installed; pip install 'libmoe[plots]'") from None
    matplotlib.use("Agg")  # files only: no screen needed
    import matplotlib.pyplot as plt

    return plt


def _loss(plt: Any, records: list[Record]) -> Any:
    """Training loss and held-out loss over the steps."""
    steps, evaluations = of_kind(records, "step"), of_kind(records, "evaluation")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    numbers = [(r["step"], r["bits_per_byte"]) for r in steps if r["bits_per_byte"] is not None]
    if numbers:
        axes.plot(*zip(*numbers), color="#9ecae1", label="training text")
    if evaluations:
        held_out = [_drawn(record["bits_per_byte"]) for record in evaluations]
        where = [record["step"] for record in evaluations]
        axes.plot(where, held_out, "o-", color="#08519c", markersize=3, label="held-out text")
    axes.set(xlabel="step", ylabel="bits per byte", title="Loss")
    axes.set_ylim(*where_the_action_is([value for _, value in numbers], held_out if evaluations else []))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def where_the_action_is(*curves: Sequence[float]) -> tuple[float | None, float | None]:
    """Return limits of a loss axis: the first tenth of a curve, where it falls, may lie above them."""
    late = [value for curve in curves for value in curve[len(curve) // 10 :] if math.isfinite(value)]
    if not late:
        return None, None
    low, high = min(late), max(late)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _drawn(value: float | None) -> float:
    """Leave a gap in a curve where the log has null, for what is not finite."""
    return np.nan if value is None else value


def _gradients(plt: Any, steps: list[Record]) -> Any:
    """Gradient norm and learning rate over the steps."""
    where = [record["step"] for record in steps]
    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    for name, label, color in (("norm_max", "largest", "#fdd0a2"), ("norm", "mean", "#d94801")):
        upper.plot(where, [_drawn(record[name]) for record in steps], color=color, label=label)
    upper.set(yscale="log", ylabel="gradient norm")
    upper.legend(frameon=False)
    lower.plot(where, [_drawn(record["learning_rate"]) for record in steps], color="#238b45")
    lower.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    return figure


def _load(plt: Any, steps: list[Record]) -> Any:
    """For each layer the experts' shares of the tokens over time; below, how full the fullest of each is."""
    layers = steps[0]["layers"]
    figure, rows = plt.subplots(
        len(layers) + 1,
        1,
        sharex=True,
        squeeze=False,
        figsize=(8, 1.2 * len(layers) + 2.6),
        layout="constrained",
    )
    edges = [0, *(record["step"] for record in steps)]  # a line of the log is about the steps before it
    # White is perfect balance, blue too few tokens, red too many.
    balanced = plt.matplotlib.colors.TwoSlopeNorm(vcenter=1, vmin=0, vmax=3)
    for n, (axes,) in enumerate(rows[:-1]):
        load = np.array([record["layers"][n]["load"] for record in steps], np.float64).T  # [E, steps]
        share = load * len(load) / np.maximum(1, load.sum(0))  # 1 is perfect balance
        image = axes.pcolormesh(edges, np.arange(len(load) + 1) - 0.5, share, cmap="RdBu_r", norm=balanced)
        axes.set_ylabel(f"layer {layers[n]['layer']}\nexpert")
    figure.colorbar(image, ax=rows[:-1, 0].tolist(), label="load over the mean", extend="max")
    _fullest(plt, rows[-1, 0], steps, layers)
    return figure


def _fullest(plt: Any, axes: Any, steps: list[Record], layers: list[Record]) -> None:
    """Draw how full each layer's fullest expert is, a dot where some expert had no token."""
    where = [record["step"] for record in steps]
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers)))
    for n, (layer, color) in enumerate(zip(layers, colors)):
        peak = [record["layers"][n]["peak"] for record in steps]
        axes.plot(where, peak, color=color, linewidth=1.2, label=f"layer {layer['layer']}")
        empty = [(x, y) for x, y, record in zip(where, peak, steps) if record["layers"][n]["dead"]]
        if empty:
            axes.plot(*zip(*empty), "o", color=color, markersize=4)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="step", ylabel="fullest expert\nover the mean", ylim=(0.9, None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncol=4, fontsize=8, title="a dot: some expert had no token", title_fontsize=8)


def byte_shares(
    model: libmoe.Model, text: Part, *, sequences: int = 8, length: int = 128
) -> tuple[NDArray[np.int64], list[tuple[int, NDArray[np.float64]]]]:
    """Count which experts the bytes of a text go to.

    Returns
    -------
    counts : ndarray of int64, [256]
        How often each byte was there.
    shares : list of (int, ndarray of float64 [256, E])
        For every layer of experts its number, and of each byte's choices the share that every expert got.
    """
    tokens = text.spread(sequences, length)
    counts = np.bincount(tokens.reshape(-1), minlength=256)
    shares = []
    for number, report in enumerate(model.forward(tokens).layers):
        if report is None:
            continue
        table = np.zeros((256, len(report.tokens_per_expert)))
        chosen = report.expert_indices  # [T,C]
        token, place = np.nonzero(chosen >= 0)
        np.add.at(table, (tokens.reshape(-1)[token], chosen[token, place]), 1)
        shares.append((number, table / np.maximum(1, table.sum(1, keepdims=True))))
    return counts, shares


def _bytes(plt: Any, model: libmoe.Model, text: Part) -> Any:
    """Heat map bytes x experts for each layer."""
    counts, shares = byte_shares(model, text)
    frequent = np.argsort(-counts, kind="stable")[:SHOWN]
    frequent = np.sort(frequent[counts[frequent] > 0])
    figure, rows = plt.subplots(
        1, len(shares), sharey=True, squeeze=False, figsize=(2 + 2.2 * len(shares), 6), layout="constrained"
    )
    highest = max(float(table[frequent].max()) for _, table in shares)
    for axes, (number, table) in zip(rows[0], shares):
        image = axes.imshow(table[frequent], aspect="auto", cmap="Blues", vmin=0, vmax=highest)
        axes.set(title=f"layer {number}", xlabel="expert")
    rows[0, 0].set_yticks(range(len(frequent)), list(_names(frequent.tolist())))
    figure.colorbar(image, ax=rows[0].tolist(), label="share of the byte's choices")
    return figure


def _names(values: Sequence[int]) -> Iterator[str]:
    words = {10: "newline", 32: "space", 9: "tab", 0: "NUL", 36: r"\$"}
    for value in values:
        yield words.get(value) or (chr(value) if 32 < value < 127 else f"{value:#04x}")
