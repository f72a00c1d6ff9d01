"""KTransformers' experts for CPUs: bfloat16, int8 with a scale for a row, int4 and MXFP4 for 32 inputs."""
# Types are checked where PyTorch and kt-kernel need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import os
import sys
from typing import Any

import few_bits
import torch
from kt_kernel import kt_kernel_ext as kt
from protocol import Work
from torch import Tensor
from torch_experts import matrices, packed, serve_experts, stacked

# It names them after AMX, and has them for AVX-512 all the same.
KERNELS = {
    "bf16": "AMXBF16_MOE",
    "int8_row_a8": "AMXInt8_MOE",
    "int4_a8": "AMXInt4_KGroup_MOE",
    "mxfp4_a16": "AMXFP4_KGroup_MOE",
}
GROUP = 32


def main() -> None:
    """Run forward.  A thread of its own waits for the workers, so that these are one fewer than `threads`."""
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where its C++ tells what it does
    work = Work.of(sys.argv[1:])
    torch.set_num_threads(work.threads)
    pool = kt.CPUInfer(max(1, work.threads - 1))
    elsewhere = torch.zeros(work.shape.experts, dtype=torch.bool)  # no expert is on another device
    experts_of = layer(work, pool, elsewhere)
    count = torch.tensor([work.shape.tokens], dtype=torch.int32)

    def experts(y: Tensor, x: Tensor, weights: Tensor, chosen: Tensor) -> None:
        wide = chosen.long()
        arrays = (part.data_ptr() for part in (wide, weights, x, y))
        pool.submit(experts_of.forward_task(count.data_ptr(), work.shape.top_k, *arrays, False))
        pool.sync()

    serve_experts(work, "kt-kernel", torch.bfloat16, experts)


def layer(work: Work, pool: Any, elsewhere: Tensor) -> Any:
    """Return the experts with their weights, which are copied; `elsewhere` is read in every call."""
    shape, form = work.shape, work.dtype
    config = kt.moe.MOEConfig(shape.experts, shape.top_k, shape.hidden, shape.inner, elsewhere.data_ptr())
    config.pool = pool.backend_
    config.max_len = shape.tokens
    kept = []
    for name in ("gate", "up", "down"):
        if form in ("bf16", "int8_row_a8"):
            kept.append(stacked(matrices(work, name), torch.bfloat16))
            setattr(config, f"{name}_proj", kept[-1].data_ptr())
        else:
            numbers, scales = packed(matrices(work, name), mxfp4 if form == "mxfp4_a16" else int4)
            kept += [numbers, scales]
            setattr(config, f"{name}_projs", [pointers(numbers)])
            setattr(config, f"{name}_scales", [pointers(scales)])
            config.quant_config.bits = 4
            config.quant_config.group_size = GROUP
            config.quant_config.zero_point = False
    result = getattr(kt.moe, KERNELS[form])(config)
    order = torch.arange(shape.experts)
    pool.submit(result.load_weights_task(order.data_ptr()))
    pool.sync()
    return result


def pointers(stack: Tensor) -> list[int]:
    """Return where each expert's part begins."""
    return [part.data_ptr() for part in stack]


def int4(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return bytes [N,K/2] of two numbers each, the lower half first, and bfloat16 scales [N,K/32]."""
    numbers, scales = few_bits.int4_groups(matrix, GROUP)
    return (numbers[:, ::2] + 16 * numbers[:, 1::2]).to(torch.uint8), scales


def mxfp4(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return bytes [N,K/2] and scales [N,K/32], powers of two in bfloat16."""
    numbers, exponents = few_bits.mxfp4(matrix)
    return numbers, (exponents.float() - 127).exp2().bfloat16()


main()
