"""The table at the end, one sentence about it, and the picture of the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from libmoe.train import Trainer, open_run
from libmoe.train import log as logs
from libmoe.train.evaluate import bits_per_byte
from libmoe.train.plots import where_the_action_is
from train_lm.peers import EVALUATED
from train_lm.race import Runner


@dataclass(frozen=True)
class Row:
    """What a model came to on held-out text; counting takes neither steps nor seconds worth telling."""

    name: str
    bits: float  # per byte
    steps: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    weights: int = 0

    def __str__(self) -> str:
        """One line of the table."""
        line = f"{self.name:34} {self.bits:8.3f}"
        if self.steps:
            line += f" {self.steps:7,} {self.n_bytes:11,} {self.seconds:8.0f}"
        return line + (f" {self.weights:11,}" if self.weights else "")


HEADING = f"{'':34} {'bits per':>8} {'':7} {'bytes':>11} {'':8}\n" + (
    f"{'':34} {'byte':>8} {'steps':>7} {'read':>11} {'seconds':>8} {'weights':>11}"
)


def row(each: Runner) -> Row:
    """Return the row of a run's best weights."""
    trainer, settings = each.trainer, each.trainer.settings
    bits = bits_per_byte(
        open_run(trainer.folder).model,
        trainer.corpus.held_out,
        sequence_length=settings.sequence_length,
        sequences=settings.sequences,
        most_tokens=EVALUATED,
    )
    n_bytes = trainer.step * settings.tokens_per_step
    return Row(each.name, bits, trainer.step, n_bytes, trainer.seconds, weights(trainer))


def weights(trainer: Trainer) -> int:
    """Count the model's parameters."""
    return sum(parameter.data.size for parameter in trainer.model.parameters.values())


def conclusion(experts: Row, dense: Row, longer: Row) -> str:
    """Return what the two comparisons say, in one sentence."""
    share = longer.n_bytes / experts.n_bytes
    return (
        f"After the same {experts.n_bytes:,} bytes the experts are {compared(experts.bits, dense.bits)} the "
        f"dense transformer of the same work per byte, and after the same {experts.seconds:.0f} seconds, in "
        f"which that reads {share:.2f} times as much, {compared(experts.bits, longer.bits)} it."
    )


def compared(ours: float, theirs: float) -> str:
    """Return how two results lie, as words before "the other"."""
    difference = theirs - ours
    if abs(difference) < 0.0005:
        return "as good as"
    return f"{abs(difference):.3f} bits per byte {'better' if difference > 0 else 'worse'} than"


def draw(runners: Sequence[Runner], path: Path) -> bool:
    """Draw the held-out curves over the bytes that were read; False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")  # files only: no screen needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    curves = []
    for each, color, style in zip(runners, ("#d94801", "#08519c", "#6baed6"), ("o-", "o-", "o--")):
        records = logs.of_kind(logs.read(each.trainer.folder), "evaluation")
        read = [record["step"] * each.trainer.settings.tokens_per_step / 1e6 for record in records]
        curves.append([record["bits_per_byte"] for record in records])
        axes.plot(read, curves[-1], style, color=color, markersize=3, label=each.name)
    axes.set_ylim(*where_the_action_is(*curves))
    axes.set(xlabel="millions of bytes read", ylabel="held-out text, bits per byte")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
