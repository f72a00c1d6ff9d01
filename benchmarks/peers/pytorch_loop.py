"""The classic PyTorch layer: a loop over the experts, each fed the tokens that chose it, and index_add."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from protocol import Array, Work, serve
from torch import Tensor
from torch.nn import functional

PARAMETERS = {
    "gelu": ("experts.up.weight", "experts.up.bias", "experts.down.weight", "experts.down.bias"),
    "swiglu": ("experts.gate.weight", "experts.up.weight", "experts.down.weight"),
}


def main() -> None:
    """Run in float32, or with experts in bfloat16 and the router in float32."""
    work = Work.of(sys.argv[1:])
    torch.set_num_threads(work.threads)
    dtype = torch.bfloat16 if work.dtype == "bf16" else torch.float32

    def load(name: str) -> Tensor:
        return torch.from_numpy(work.load(name))

    router = [load(name).requires_grad_(work.backward) for name in ("router.weight", "router.bias")]
    stacked = [load(name).to(dtype) for name in PARAMETERS[work.shape.kind]]  # [E,...] each
    # One leaf for each expert, as in a ModuleList: a gradient then costs that expert's memory only.
    experts = [[part[e].requires_grad_(work.backward) for part in stacked] for e in range(work.shape.experts)]
    x, dy = load("x").requires_grad_(work.backward), load("dy")

    def run() -> tuple[Array, Array | None]:
        if not work.backward:
            with torch.no_grad():
                return forward(x, router, experts, work.shape.top_k, dtype).numpy(), None
        x.grad = None
        y = forward(x, router, experts, work.shape.top_k, dtype)
        y.backward(dy)
        return y.detach().numpy(), x.grad.numpy()

    serve(work, f"torch {torch.__version__}", run)


def weighted(x: Tensor, token: Tensor, weight: Tensor, parameters: list[Tensor]) -> Tensor:
    """Return one expert's part of y [n,H] for its tokens' numbers and weights [n]."""
    return expert(x[token], parameters).float() * weight[:, None]


def forward(
    x: Tensor,
    router: list[Tensor],
    experts: list[list[Tensor]],
    top_k: int,
    dtype: torch.dtype,
    part: Callable[[Tensor, Tensor, Tensor, list[Tensor]], Tensor] = weighted,
) -> Tensor:
    """Return y [T,H] of x [T,H]; `part` computes what `weighted` does."""
    scores = functional.softmax(functional.linear(x, *router), dim=-1)  # [T,E]
    weights, chosen = scores.topk(top_k, dim=-1)  # [T,K]
    weights = weights / weights.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x)
    inputs = x.to(dtype)
    for e, parameters in enumerate(experts):
        token, slot = torch.where(chosen == e)
        if len(token):
            y.index_add_(0, token, part(inputs, token, weights[token, slot], parameters))
    return y


def expert(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """Return one expert's output for its tokens [n,H]."""
    if len(parameters) == 3:
        gate, up, down = parameters
        inner = functional.silu(functional.linear(x, gate)) * functional.linear(x, up)
        return functional.linear(inner, down)
    up, up_bias, down, down_bias = parameters
    return functional.linear(functional.gelu(functional.linear(x, up, up_bias)), down, down_bias)


if __name__ == "__main__":
    main()
