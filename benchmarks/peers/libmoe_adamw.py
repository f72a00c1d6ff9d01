"""libmoe's AdamW, by the rules of the peers."""

from __future__ import annotations

import sys

from protocol import Step, serve_steps, tensors

import libmoe


def main() -> None:
    """Run a step."""
    work = Step.of(sys.argv[1:])
    p, g = work.load("p"), work.load("g")
    parameters = [libmoe.Parameter(data, grad) for data, grad in zip(tensors(p), tensors(g))]
    optimizer = libmoe.AdamW(parameters, context=libmoe.Context(work.threads))
    serve_steps(work, libmoe.__version__, optimizer.step, p, g)


main()
