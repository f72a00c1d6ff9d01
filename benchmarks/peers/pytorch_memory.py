"""The PyTorch loop, with the memory that a step takes.

    pytorch_memory.py plain|checkpointed FOLDER ...

Checkpointed, each expert keeps its tokens' numbers and weights, and computes the rest again in backward.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import sys

import torch
from protocol import Array, Work, listen
from pytorch_loop import PARAMETERS, forward, weighted
from resident import growth
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def main() -> None:
    """Measure the first step, then run when asked."""
    part = checkpointed if sys.argv[1] == "checkpointed" else weighted
    work = Work.of(sys.argv[2:])
    torch.set_num_threads(work.threads)

    def leaf(values: Tensor) -> Tensor:
        values.requires_grad_().grad = torch.zeros_like(values)
        return values

    router = [leaf(torch.from_numpy(work.load(name))) for name in ("router.weight", "router.bias")]
    stacked = [torch.from_numpy(work.load(name)) for name in PARAMETERS[work.shape.kind]]  # [E,...] each
    experts = [[leaf(part[e]) for part in stacked] for e in range(work.shape.experts)]
    x, dy = torch.from_numpy(work.load("x")), torch.from_numpy(work.load("dy"))

    def step(x: Tensor, dy: Tensor) -> tuple[Array, Array | None]:
        x = x.detach().requires_grad_()
        y = forward(x, router, experts, work.shape.top_k, torch.float32, part)
        y.backward(dy)
        return y.detach().numpy(), x.grad.numpy()

    step(x[:64], dy[:64])  # loads the code that a step runs
    grown, answer = growth(lambda: step(x, dy))
    # y and dx are made within the step; libmoe is given memory for them.
    grown -= 2 * x.numel() * x.element_size()
    listen(work, {"version": f"torch {torch.__version__}", "resident": grown}, answer, lambda: step(x, dy))


def checkpointed(x: Tensor, token: Tensor, weight: Tensor, parameters: list[Tensor]) -> Tensor:
    """Return what `weighted` does; only the arguments are kept for backward."""
    part: Tensor = checkpoint(weighted, x, token, weight, parameters, use_reentrant=False)
    return part


main()
