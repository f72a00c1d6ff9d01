"""A random model of transformers at work, its experts computed one WAY: transformers_model.py WAY WORK..."""
# Types are checked where PyTorch and transformers need not be installed.
# mypy: disable-error-code="import-not-found, misc, no-any-return, untyped-decorator"

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from protocol import listen
from resident import growth
from transformers_work import LAST, MODELS, TOKENS, TransformersWork

PROMPT = 512  # tokens before those that are decoded
LORA = dict(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])


def main() -> None:
    """Answer with the logits, or the experts' outputs, then run when asked."""
    way, work = sys.argv[1], TransformersWork.of(sys.argv[2:])
    torch.set_num_threads(work.threads)
    ours = importlib.import_module("libmoe.transformers") if way == "libmoe" else None
    model = make_model(work, way)
    if ours is not None and not work.trains:
        ours.prepare(model)
    run = JOBS[work.job](model)
    bytes_more, answer = growth(run)
    facts = {
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "bytes": bytes_more,
    }
    listen(work, facts, [answer.float().detach().numpy()], run)


def make_model(work: TransformersWork, way: str) -> Any:
    """Return the model; the same numbers for every way."""
    torch.manual_seed(0)
    sizes = dict(MODELS[work.model])
    config = transformers.AutoConfig.for_model(sizes.pop("family"), **sizes)
    dtype = torch.bfloat16 if work.dtype == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation=way)
    if work.job == "lora":
        import peft

        torch.manual_seed(1)
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
    return model.train(work.trains).requires_grad_(work.trains) if work.job != "lora" else model.train()


def tokens_of(model: Any, count: int) -> Any:
    """Return random tokens [1, count]."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(model.config.vocab_size, (1, count), generator=generator)


def experts(count: int) -> Callable[[Any], Callable[[], Any]]:
    """Return what makes a job of the experts of one layer alone."""

    def job(model: Any) -> Callable[[], Any]:
        module = next(m for n, m in model.named_modules() if n.endswith("experts"))
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(count, model.config.hidden_size, generator=generator).to(model.dtype)
        scores = torch.rand(count, module.num_experts, generator=generator)
        values, chosen = scores.topk(model.config.num_experts_per_tok)
        weights = (values / values.sum(-1, keepdim=True)).to(model.dtype)

        @torch.no_grad()
        def run() -> Any:
            return module(x, chosen, weights)

        return run

    return job


def prefill(model: Any) -> Callable[[], Any]:
    """Read a prompt."""
    tokens = tokens_of(model, TOKENS["prefill"])

    @torch.no_grad()
    def run() -> Any:
        return model(tokens, use_cache=True, logits_to_keep=LAST).logits[0]

    return run


def decode(model: Any) -> Callable[[], Any]:
    """Read one token behind a prompt, again and again."""
    tokens = tokens_of(model, PROMPT + 1)

    @torch.no_grad()
    def run() -> Any:
        logits = model(tokens[:, -1:], cache=cache, use_cache=True).logits[0]
        cache.crop(-1)
        return logits

    way = model.config._experts_implementation
    model.set_experts_implementation("grouped_mm")  # batched_mm copies weights for every token of the prompt
    with torch.no_grad():
        cache = model(tokens[:, :-1], use_cache=True).past_key_values
    model.set_experts_implementation(way)
    return run


def train(model: Any) -> Callable[[], Any]:
    """Take a step: forward, backward, and SGD, which has no moments that hide what the experts take."""
    tokens = tokens_of(model, TOKENS["train"])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def run() -> Any:
        output = model(tokens, labels=tokens, use_cache=False)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return output.logits[0]

    return run


JOBS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "experts": experts(TOKENS["experts"]),
    "experts of 1 token": experts(1),
    "prefill": prefill,
    "decode": decode,
    "train": train,
    "lora": train,
}

main()
