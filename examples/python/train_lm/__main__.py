"""Train a small Mixture-of-Experts transformer on bytes of text, and see what it is worth.

    python train_lm [FILES OR FOLDERS...] [--steps N] [--seed N] [--output FOLDER] [--alone]

Without names it reads Python's own sources and the licence texts of the machine.  It trains the model and, by
turns with it, a dense transformer of the same work per byte on the same bytes; then a dense one for as many
seconds as the experts took.  Beside these stand two models that only count, and the one of ../train_text.
--alone trains the experts only.  In the output folder it leaves the runs, which ``python -m libmoe`` goes on
with, and pictures.

The exit status is 0 when the model beats both counting models, 1 when it does not or something is wrong, and
130 after Ctrl-C, which keeps what was learnt.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

STEPS = 800  # all models together some three minutes on two cores with AVX-512, six with AVX2


def main() -> int:
    """Do the whole job and return the exit status."""
    arguments = parse_arguments()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    # numpy's share of the work is small, and its own BLAS threads would take the processor from libmoe's.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Run as a folder, the modules are found as those of a package all the same.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Only now: --help needs neither numpy nor the library.
    import libmoe
    from libmoe.train import UserError
    from train_lm.job import run

    started = time.monotonic()
    try:
        status = run(arguments)
    except (libmoe.MoeError, OSError, UserError) as error:
        print(f"train_lm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntrain_lm: interrupted", file=sys.stderr)
        return 130
    print(f"({time.monotonic() - started:.0f} seconds in all)")
    return status


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("train_lm", description="Train a small MoE transformer with libmoe.")
    parser.add_argument(
        "names", nargs="*", metavar="FILE OR FOLDER", help="text to read; default: Python's own sources"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of 1,024 bytes each (default {STEPS})")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("build/demo"), help="folder for the results (default build/demo)"
    )
    parser.add_argument("--alone", action="store_true", help="train the experts only: a third of the time")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps must be above 0")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
