"""Gradients of experts' weights take the memory of the step before, and never one that somebody holds."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

import libmoe.torch
from libmoe.torch import _memory

E, H, INNER, T = 3, 8, 12, 20


def experts(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return gate_up, which lies transposed, and down."""
    torch.manual_seed(0)
    gate_up = torch.randn(E, H, 2 * INNER).to(dtype).transpose(1, 2).requires_grad_()
    return gate_up, torch.randn(E, H, INNER).to(dtype).requires_grad_()


def backward(weights: tuple[Tensor, Tensor], seed: int = 1) -> list[Tensor]:
    """Add to the weights' gradients, and return them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, H, generator=generator).to(weights[0].dtype)
    chosen, ids = torch.rand(T, E, generator=generator).topk(2)
    libmoe.torch.experts(x, ids, chosen, *weights).square().sum().backward()
    return [weight.grad for weight in weights if weight.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_next_step_takes_the_same_memory(dtype: torch.dtype) -> None:
    weights = experts(dtype)
    places, values = [], []
    for _ in range(3):
        gradients = backward(weights)
        places.append([gradient.data_ptr() for gradient in gradients])
        values.append([gradient.clone() for gradient in gradients])
        for gradient, weight in zip(gradients, weights):
            assert gradient.dtype == dtype and gradient.stride() == weight.stride()
            weight.grad = None
        del gradients, gradient
    assert places[0] == places[1] == places[2]
    for later in values[1:]:
        assert all(torch.equal(a, b) for a, b in zip(values[0], later))


def test_gradients_that_are_held_stay_as_they_are() -> None:
    weights = experts(torch.float32)
    first = backward(weights)
    before = [gradient.clone() for gradient in first]
    for weight in weights:
        weight.grad = None
    second = backward(weights, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, before))
    alone = [gradient.clone() for gradient in second]
    both = backward(weights)  # added to the second
    for sum_, a, b in zip(both, alone, before):
        torch.testing.assert_close(sum_, a + b)


def test_the_memory_goes_with_the_weight() -> None:
    weights = experts(torch.float32)
    backward(weights)
    assert all(weight in _memory._kept for weight in weights)
    count = len(_memory._kept)
    del weights
    gc.collect()
    assert len(_memory._kept) == count - 2


def test_weights_that_become_other_ones_have_gradients_like_these() -> None:
    weights = experts(torch.float32)
    backward(weights)
    for weight in weights:
        weight.grad = None
        weight.data = weight.data.contiguous().to(torch.bfloat16)  # as module.to does
    for gradient, weight in zip(backward(weights), weights):
        assert gradient.dtype == torch.bfloat16 and gradient.stride() == weight.stride()
    larger = [torch.randn(2 * E, *weight.shape[1:]) for weight in weights]
    for weight, data in zip(weights, larger):
        weight.grad = None
        weight.data = data
    fresh = (larger[0].clone().requires_grad_(), larger[1].clone().requires_grad_())
    assert all(torch.equal(a, b) for a, b in zip(backward(weights), backward(fresh)))
