"""ONNX Runtime's com.microsoft.QMoE node on the CPU: int8 and int4, a scale for 32 inputs, tokens in int8."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys

import few_bits
import torch
from onnx_node import SWIGLU, Constants, serve_node
from protocol import Work
from torch import Tensor
from torch_experts import downs, gates_and_ups, packed

GROUP = 32
BITS = {"int8_a8": 8, "int4_a8": 4}


def main() -> None:
    """Run forward."""
    work = Work.of(sys.argv[1:])
    quantise = {8: eight, 4: four}[BITS[work.dtype]]
    up, up_scales = packed(map(alternating, gates_and_ups(work)), quantise)
    down, down_scales = packed(downs(work), quantise)
    constants: Constants = {
        "up": up.numpy(),
        "up_scales": up_scales.numpy(),
        "down": down.numpy(),
        "down_scales": down_scales.numpy(),
    }
    attributes = SWIGLU | {"expert_weight_bits": BITS[work.dtype], "block_size": GROUP, "accuracy_level": 4}
    serve_node(work, "QMoE", ["up", "up_scales", "", "down", "down_scales"], constants, attributes)


def alternating(matrix: Tensor) -> Tensor:
    """Return a gate above its up, [2I,H], with rows that alternate."""
    return matrix.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def eight(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return bytes [N,K], of which 128 stands for 0, and scales [N,K/32]."""
    numbers, scales = few_bits.int8_groups(matrix, GROUP)
    return (numbers.int() + 128).to(torch.uint8), scales


def four(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return bytes [N,K/2] of two numbers each, the lower half first, and scales [N,K/32]."""
    numbers, scales = few_bits.int4_groups(matrix, GROUP)
    return (numbers[:, ::2] + 16 * numbers[:, 1::2]).to(torch.uint8), scales.float()


main()
