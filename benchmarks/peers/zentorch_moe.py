"""AMD's zentorch: its fused experts in bfloat16, float32, or int8 with a scale for a row."""
# Types are checked where PyTorch and zentorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys

import few_bits
import torch
import zentorch  # noqa: F401
from protocol import Work
from torch import Tensor
from torch_experts import downs, gates_and_ups, packed, serve_experts, stacked


def main() -> None:
    """Run forward; the operator packs weights by itself when it first sees them."""
    work = Work.of(sys.argv[1:])
    torch.set_num_threads(work.threads)
    dtype = torch.float32 if work.dtype == "f32" else torch.bfloat16
    scales: list[Tensor] = []
    if work.dtype == "int8_row_a8":
        (w13, s13), (w2, s2) = (packed(half(work), few_bits.int8_rows) for half in (gates_and_ups, downs))
        scales = [s13, s2]
    else:
        w13, w2 = (stacked(half(work), dtype) for half in (gates_and_ups, downs))

    def experts(y: Tensor, x: Tensor, weights: Tensor, chosen: Tensor) -> None:
        torch.ops.zentorch.zentorch_fused_moe(
            y, x, w13, w2, None, None, weights, chosen, False, "silu", *scales
        )

    serve_experts(work, "zentorch", dtype, experts)


main()
