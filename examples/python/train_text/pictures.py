"""The pictures: the loss curve, and which experts take which kinds of bytes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")  # files only: no screen needed
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from train_text.kinds import KINDS
from train_text.training import Record


def loss_picture(records: Sequence[Record], unigram: float, bigram: float, path: Path) -> None:
    """Bits per byte over the tokens seen, with the counting models as level lines."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    millions = [record.tokens / 1e6 for record in records]
    axes.plot(millions, [record.training_bits for record in records], color="#9ecae1", label="training text")
    axes.plot(
        millions,
        [record.held_out_bits for record in records],
        color="#08519c",
        label="held-out text, a sample",
    )
    for name, bits in (("unigram model", unigram), ("bigram model", bigram)):
        axes.axhline(bits, color="#636363", linewidth=1, linestyle="--")
        axes.annotate(
            f"{name} {bits:.2f}", (1, bits), xycoords=("axes fraction", "data"), xytext=(-4, 4),
            textcoords="offset points", ha="right", color="#636363", fontsize=9,
        )  # fmt: skip
    last = records[-1]
    axes.annotate(
        f"{last.held_out_bits:.2f}", (last.tokens / 1e6, last.held_out_bits), xytext=(0, 6),
        textcoords="offset points", ha="right", color="#08519c",
    )  # fmt: skip
    axes.set(xlabel="tokens trained on, millions", ylabel="bits per byte", title="Loss of the language model")
    axes.set_ylim(0, 1.1 * max(unigram, bigram))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def expert_picture(kind: NDArray[np.intp], experts: NDArray[np.int32], n_experts: int, path: Path) -> None:
    """Heat map kinds x experts: of the places that the bytes of a kind got, each expert's share.

    kind [T] is an index into KINDS, experts [T,K] the experts each byte went to.
    """
    places = np.zeros((len(KINDS), n_experts), np.int64)
    np.add.at(places, (kind[:, None], experts), 1)
    met = np.flatnonzero(places.sum(1))
    share = places[met] / places[met].sum(1, keepdims=True)
    of_text = places[met].sum(1) / places.sum()

    figure, axes = plt.subplots(figsize=(3.2 + 0.62 * n_experts, 1.8 + 0.36 * len(met)), layout="constrained")
    image = axes.imshow(share, cmap="Blues", vmin=0, aspect="auto")
    for row, column in np.ndindex(share.shape):
        color = "white" if share[row, column] > 0.6 * share.max() else "black"
        axes.text(column, row, f"{share[row, column]:.0%}", ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(met)), [f"{KINDS[k]}  ({percent(part)})" for k, part in zip(met, of_text)])
    axes.set_xticks(range(n_experts))
    axes.set(xlabel="expert", ylabel="latest byte read (its share of the text)")
    axes.set_title(
        "Which experts take which kinds of bytes\n"
        f"rows add up to 100%; an even spread would be {1 / n_experts:.1%}"
    )
    axes.title.set_fontsize(11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, format=PercentFormatter(1, decimals=0), fraction=0.05, pad=0.02)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def percent(share: float) -> str:
    """With one decimal, and never 0 for what there is some of."""
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"
