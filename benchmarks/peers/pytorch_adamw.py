"""PyTorch's AdamW in one of its ways.

python pytorch_adamw.py fused|foreach|default and then what protocol.py says.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys

import torch
from protocol import Step, serve_steps, tensors


def main() -> None:
    """Run a step; p and g are the memory of the tensors."""
    way, *arguments = sys.argv[1:]
    work = Step.of(arguments)
    torch.set_num_threads(work.threads)
    p, g = work.load("p"), work.load("g")
    parameters = [torch.from_numpy(data).requires_grad_() for data in tensors(p)]
    for parameter, grad in zip(parameters, tensors(g)):
        parameter.grad = torch.from_numpy(grad)
    optimizer = torch.optim.AdamW(parameters, **({} if way == "default" else {way: True}))
    serve_steps(work, f"torch {torch.__version__}", optimizer.step, p, g)


main()
