"""Train the demo's language model under every routing scheme, for equal steps, and compare.

    python routing_study [FILES OR FOLDERS...] [--steps N] [--output FOLDER]

Every run sees the same bytes in the same order; what differs is the layer.  One scheme is trained with three
seeds, to see how much is chance.  Without names the text is the demo's.  In the output folder it leaves the
table (table.md), all points (points.csv) and three pictures (bits.png, shares.png, collapse.png).

The exit status is 0, or 1 when something is wrong with the text or the folder, or 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# As in the demo: numpy's own threads would take the processor from libmoe's.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if not __package__:  # run as a folder: the modules are found as those of a package all the same
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import libmoe
from routing_study.pictures import bits_picture, share_picture
from routing_study.runs import Result, run
from routing_study.schemes import CLASSIC, COLLAPSE, SCHEMES
from routing_study.table import markdown, write_csv
from train_text.progress import Progress
from train_text.text import Corpus, TextError, load

STEPS = 400  # of each run
SEEDS = (1, 2, 3)  # of the classic; all others have the first
THREADS = 2


def main() -> int:
    """Do the whole job and return the exit status."""
    arguments = parse_arguments()
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        study(load(arguments.names, arguments.output), arguments.steps, arguments.output)
    except (TextError, OSError) as error:
        print(f"routing_study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="routing_study", description="Compare routing schemes.")
    parser.add_argument(
        "names", nargs="*", metavar="FILES OR FOLDERS", help="text to learn from (default: the demo's)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run (default {STEPS})")
    parser.add_argument(
        "--output", type=Path, default=Path("build/study"), help="folder for the results (build/study)"
    )
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps must be above 0")
    return arguments


def study(corpus: Corpus, steps: int, output: Path) -> None:
    """Run everything, then write the table, the points and the pictures."""
    context = libmoe.Context(n_threads=THREADS)
    plan = [(scheme, SEEDS[0]) for scheme in [*SCHEMES, *COLLAPSE]]
    plan += [(CLASSIC, seed) for seed in SEEDS[1:]]
    results: list[Result] = []
    with Progress() as progress:
        for scheme, seed in plan:

            def show(done: float, name: str = scheme.name) -> None:
                progress.show((len(results) + done) / len(plan), name)

            results.append(run(scheme, corpus, steps=steps, seed=seed, context=context, show=show))

    compared = results[: len(SCHEMES)]
    collapse = results[len(SCHEMES) : len(SCHEMES) + len(COLLAPSE)]
    repeats = [result for result in results if result.scheme is CLASSIC]
    table = markdown(compared + repeats[1:]) + "\n" + markdown(collapse)
    (output / "table.md").write_text(table)
    write_csv(results, output / "points.csv")
    bits_picture(compared, repeats, output / "bits.png")
    routed = [result for result in compared if len(result.points[0].shares) > 1]
    share_picture(routed, 4, "Experts' shares of the tokens while training", output / "shares.png")
    title = "Two of the experts have a head start"
    share_picture(collapse, len(collapse), title, output / "collapse.png")
    print("\n" + table)


if __name__ == "__main__":
    sys.exit(main())
