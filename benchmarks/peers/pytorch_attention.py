"""PyTorch's scaled_dot_product_attention, by the rules of model_work.py."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import sys

import torch
from model_work import AttentionWork
from protocol import listen
from resident import growth
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def main() -> None:
    """Measure the first run, answer with it, run when asked."""
    work = AttentionWork.of(sys.argv[1:])
    torch.set_num_threads(work.threads)
    dtype = torch.bfloat16 if work.dtype == "bf16" else torch.float32
    arrays = [torch.from_numpy(array).transpose(1, 2).to(dtype) for array in work.load()]  # [1,heads,S,D]

    def step(tokens: int) -> tuple[Tensor, list[Tensor]]:
        *inputs, doutput = (array[:, :, :tokens].detach() for array in arrays)
        for tensor in inputs:
            tensor.requires_grad_()
        y = scaled_dot_product_attention(*inputs, is_causal=work.causal)
        y.backward(doutput)
        return y, [tensor.grad for tensor in inputs]

    step(1)  # loads the code that a step runs
    grown, (y, gradients) = growth(lambda: step(work.tokens))
    # The output and the gradients are made within the step; libmoe is given memory for them.
    grown -= 4 * y.numel() * y.element_size()
    answer = (
        y.detach().transpose(1, 2).float().numpy(),
        torch.stack([gradient.transpose(1, 2).float() for gradient in gradients]).numpy(),
    )
    facts = {"version": f"torch {torch.__version__}", "resident": grown}
    listen(work, facts, answer, lambda: step(work.tokens))


main()
