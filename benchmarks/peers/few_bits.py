"""Weights of few bits as peers in PyTorch want them; each quantiser takes one matrix [N,K], N its outputs."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # rows and columns of one scale of fp8
MXFP4_GROUP = 32
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # magnitudes; the fourth bit is the sign


def int8_groups(matrix: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return int8 [N,K] and its float32 scales [N,K/group]."""
    groups = matrix.unflatten(1, (-1, group))
    scale = groups.abs().amax(2, keepdim=True) / 127
    return (groups / scale).round().flatten(1).to(torch.int8), scale.squeeze(2)


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 [N,K] and its float32 scales [N]."""
    numbers, scales = int8_groups(matrix, matrix.shape[1])
    return numbers, scales.squeeze(1)


def int4_groups(matrix: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return numbers of 0 to 15, of which 8 stands for 0, int32 [N,K], and bfloat16 scales [N,K/group].

    The value farthest from 0 becomes -8, so that a scale may be negative.
    """
    groups = matrix.unflatten(1, (-1, group))
    farthest = groups.abs().argmax(2, keepdim=True)
    scale = (groups.gather(2, farthest) / -8).bfloat16()
    numbers = (groups / scale.float() + 8).round().clamp(0, 15)
    return numbers.flatten(1).int(), scale.squeeze(2)


def mxfp4(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return bytes [N,K/2] of two values each, the lower half first, and exponents + 127 [N,K/32]."""
    groups = matrix.unflatten(1, (-1, MXFP4_GROUP))
    exponent = groups.abs().amax(2, keepdim=True).log2().floor() - 2  # that of 6 is 2
    scaled = groups / exponent.exp2()
    magnitude = torch.bucketize(scaled.abs(), (E2M1[1:] + E2M1[:-1]) / 2)
    code = (magnitude + 8 * (scaled < 0)).flatten(1)
    return (code[:, ::2] + 16 * code[:, 1::2]).to(torch.uint8), (exponent.squeeze(2) + 127).to(torch.uint8)


def fp8_blocks(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return E4M3 [N,K] and float32 scales [N/128,K/128]."""
    blocks = matrix.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = blocks.abs().amax((1, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    return (blocks / scale).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn), scale.squeeze(3).squeeze(1)
