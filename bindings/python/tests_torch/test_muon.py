"""libmoe.Muon beside torch.optim.Muon, whose iteration is made to run in float64 rather than bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import libmoe


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (24, 24), (40, 130)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_trajectory(shape: tuple[int, int], weight_decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    random = np.random.default_rng(3)
    start = random.standard_normal(shape, np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(start).double())
    mine = libmoe.Parameter(start.copy())
    options = {"momentum": 0.9, "weight_decay": weight_decay}
    one = torch.optim.Muon([theirs], lr=0.02, eps=1e-7, adjust_lr_fn="match_rms_adamw", **options)
    other = libmoe.Muon([mine], 0.02, **options)
    for _ in range(6):
        gradient = random.standard_normal(shape, np.float32)
        theirs.grad, mine.grad[...] = torch.from_numpy(gradient).double(), gradient
        one.step()
        other.step()
        expected = theirs.detach().numpy()
        np.testing.assert_allclose(mine.data, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
