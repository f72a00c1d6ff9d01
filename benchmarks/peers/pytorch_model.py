"""PyTorch's language model, by the rules of model_work.py; bf16 is autocast.

    pytorch_model.py eager|compiled train|generate FOLDER ...

Compiled, training goes through torch.compile, which wants a C++ compiler.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc, untyped-decorator"

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch
from model_work import CHECKED, GENERATED, HEADS, LAYERS, PROMPT, ModelWork
from protocol import listen
from pytorch_transformer import SIZE, Transformer
from resident import growth
from torch import Tensor
from torch.nn import functional

VERSION = f"torch {torch.__version__}"


def main() -> None:
    """Measure, answer, run when asked."""
    compiled = sys.argv[1] == "compiled"
    work = ModelWork.of(sys.argv[2:])
    torch.set_num_threads(work.threads)
    model = Transformer().load(work.parameters())
    if work.part == "train":
        train(work, model, torch.compile(model) if compiled else model)
    else:
        generate(work, model)


def train(work: ModelWork, model: Transformer, forward: Callable[[Tensor], Tensor]) -> None:
    """Run steps whose learning rate is 0, so that all do the same work."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    tokens = torch.from_numpy(work.tokens()).long()
    x, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def logits_of(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=work.dtype == "bf16"):
            return forward(x)

    def step(x: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(logits_of(x).view(targets.numel(), -1), targets.view(-1)).backward()
        optimizer.step()

    for _ in range(2):
        step(x, targets)  # code has been compiled, gradients and moments have been written to
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, to be counted when it is taken again
    grown, _ = growth(lambda: step(x, targets))
    with torch.no_grad():
        logits = logits_of(x)
    gradient = model.embed.weight.grad
    listen(
        work,
        {"version": VERSION, "resident": grown},
        [logits.numpy(), gradient.numpy()],
        lambda: step(x, targets),
    )


@torch.inference_mode()
def generate(work: ModelWork, model: Transformer) -> None:
    """Read the prompt and generate from it."""
    tokens = torch.from_numpy(work.tokens()[:1]).long()
    prompt = tokens[:, :PROMPT]
    caches = [torch.empty(2, 1, HEADS, PROMPT + GENERATED, SIZE) for _ in range(LAYERS)]
    model(prompt, caches)
    checked = [model(tokens[:, n : n + 1], caches, n) for n in range(PROMPT, PROMPT + CHECKED)]

    def run() -> list[int]:
        found = []
        token, start = prompt, 0
        for _ in range(GENERATED):
            logits = model(token, caches, start)[0, -1]
            start += token.shape[1]
            found.append(int(logits.argmax()))
            token = torch.tensor([[found[-1]]])
        return found

    listen(work, {"version": VERSION}, [torch.stack(checked).numpy()], run)


if __name__ == "__main__":
    main()
