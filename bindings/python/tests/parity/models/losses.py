"""What transformers' loss functions say about layers' logits, with gradients, for a gate that is x W^T."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from .base import Tensors, Wide

LAYERS, SEQUENCES, LENGTH, HIDDEN, EXPERTS, TOP_K = 3, 4, 7, 8, 6, 2


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensors:
    """Of a function of the logits."""
    z = logits.clone().requires_grad_()
    value = loss(z)
    value.backward()
    assert z.grad is not None
    return {"loss": value.detach(), "d_logits": z.grad}


def losses() -> Tensors:
    """Inputs and all losses in float64, in folders."""
    x = torch.randn(LAYERS, SEQUENCES * LENGTH, HIDDEN)
    router = torch.randn(LAYERS, EXPERTS, HIDDEN) * 0.4
    router[:, 0] += 0.3 * router[:, 1]
    logits = x.double() @ router.double().mT  # [L,T,E]
    # Sequences are padded at their ends; one has no padding.
    lengths = torch.tensor([5, LENGTH, 3, 6])
    mask = (torch.arange(LENGTH) < lengths[:, None]).int()  # [B,S]

    def balance(z: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Over several layers together."""
        loss: Tensor = mixtral.load_balancing_loss_func(tuple(z), EXPERTS, TOP_K, attention_mask)
        return loss

    def sequences(z: Tensor) -> Tensor:
        """[T,E] -> [B,S,E]."""
        return z.view(SEQUENCES, LENGTH, EXPERTS)

    def switch_balance(z: Tensor) -> Tensor:
        """As SwitchTransformersForConditionalGeneration calls it: its choice is the largest logit."""
        loss: Tensor = switch.load_balancing_loss_func(
            sequences(z).softmax(dim=-1), sequences(z).argmax(dim=-1)
        )
        return loss

    def switch_pooled(z: Tensor) -> Tensor:
        """As it puts layers one behind the other in each sequence."""
        joined = torch.cat([sequences(layer) for layer in z], dim=1)
        loss: Tensor = switch.load_balancing_loss_func(joined.softmax(dim=-1), joined.argmax(dim=-1))
        return loss

    results: dict[str, Tensors] = {}
    with (
        mock.patch.object(mixtral, "torch", Wide()),
        mock.patch.object(switch, "torch", Wide()),
        mock.patch.object(Tensor, "float", Tensor.double),
    ):
        results["pooled"] = value_and_gradient(lambda z: balance(z, None), logits)
        results["pooled_masked"] = value_and_gradient(lambda z: balance(z, mask), logits)
        results["switch_pooled"] = value_and_gradient(switch_pooled, logits)
        for layer, z in enumerate(logits):
            results[f"transformers/{layer}"] = value_and_gradient(lambda z: balance(z[None], mask), z)
            results[f"switch_sequence/{layer}"] = value_and_gradient(switch_balance, z)
            results[f"z_switch/{layer}"] = value_and_gradient(
                lambda z: switch.router_z_loss_func(sequences(z)), z
            )
    return {
        "x": x,
        "router": router,
        "mask": mask.flatten().to(torch.uint8),
        **{f"{name}/{key}": value for name, result in results.items() for key, value in result.items()},
    }
