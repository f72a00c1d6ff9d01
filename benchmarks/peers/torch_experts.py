"""What the peers share that are operators of PyTorch on an expert's matrices, with the routing given."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, no-any-return, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import cycle

import torch
from protocol import Work, listen
from torch import Tensor

# Writes y [T,H] of x [T,H], the choices' weights, float32 [T,K], and experts, int32 [T,K].
Experts = Callable[[Tensor, Tensor, Tensor, Tensor], object]


def serve_experts(work: Work, package: str, dtype: torch.dtype, experts: Experts) -> None:
    """Answer and run: the router in float32, as everywhere; x and y as the operator has them."""
    weight = torch.from_numpy(work.load("router.weight"))
    bias = torch.from_numpy(work.load("router.bias"))
    tokens = [torch.from_numpy(x) for x in work.inputs()]
    inputs = cycle([(x, x.to(dtype)) for x in tokens])
    y = torch.empty(work.shape.tokens, work.shape.hidden, dtype=dtype)

    @torch.inference_mode()
    def run() -> Tensor:
        x, rounded = next(inputs)
        logits, chosen = torch.nn.functional.linear(x, weight, bias).topk(work.shape.top_k)
        experts(y, rounded, logits.softmax(-1), chosen.int())
        return y

    listen(work, {"version": f"{package} {version(package)}"}, [run().float().numpy()], run)


def matrices(work: Work, name: str) -> Iterator[Tensor]:
    """Yield each expert's gate or up, [I,H], or down, [H,I]."""
    yield from torch.from_numpy(work.load(f"experts.{name}.weight"))


def gates_and_ups(work: Work) -> Iterator[Tensor]:
    """Yield each expert's gate above its up, [2I,H]."""
    yield from map(torch.cat, zip(matrices(work, "gate"), matrices(work, "up")))


def downs(work: Work) -> Iterator[Tensor]:
    """Yield each expert's down, [H,I]."""
    return matrices(work, "down")


def stacked(parts: Iterator[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the matrices of all experts as one tensor."""
    return torch.stack([matrix.to(dtype) for matrix in parts])


def packed(parts: Iterator[Tensor], quantise: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return the numbers of all experts, and their scales."""
    return [torch.stack(stack) for stack in zip(*map(quantise, parts))]
