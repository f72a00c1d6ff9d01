"""The same by transformers, its experts computed one WAY: transformers_generate.py WAY WORK...

With WAY `write` it writes the model's folder, with random weights:
transformers_generate.py write FOLDER MODEL LAYERS WORDS
"""
# Types are checked where PyTorch and transformers need not be installed.
# mypy: disable-error-code="import-not-found, misc, no-any-return, untyped-decorator"

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from generate_work import JOBS, MODELS, RATE, GenerateWork
from protocol import listen
from resident import growth


def main() -> None:
    """Answer with the last logits, then run when asked."""
    if sys.argv[1] == "write":
        folder, model, layers, words = sys.argv[2:]
        write(Path(folder) / model, model, int(layers), int(words))
        return
    way, work = sys.argv[1], GenerateWork.of(sys.argv[2:])
    torch.set_num_threads(work.threads)
    dtype = torch.bfloat16 if work.dtype == "bf16" else torch.float32

    def load() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            work.files, dtype=dtype, experts_implementation=way
        ).requires_grad_(work.job == "train")

    model = load()
    facts: dict[str, Any] = {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}
    if work.job == "train":
        train(model, work, facts)
        return
    run = reading(model, work)
    answer = run().float().numpy()
    if work.job == "load":
        del model, run
        listen(work, facts, [answer], load)
    else:
        listen(work, facts, [answer], run)


def write(folder: Path, name: str, layers: int, words: int) -> None:
    """Write a model's folder in bfloat16, in shards as people have them."""
    torch.manual_seed(0)
    sizes = {**MODELS[name], "num_hidden_layers": layers, "vocab_size": words, "tie_word_embeddings": False}
    config = transformers.AutoConfig.for_model(sizes.pop("family"), **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="2GB")


def reading(model: Any, work: GenerateWork) -> Callable[[], Any]:
    """Return what reads the run's tokens behind those before."""
    before, tokens = (torch.from_numpy(part).long() for part in work.tokens(model.config.vocab_size))
    _, count, length = JOBS[work.job]
    cache = None
    if count:
        way = model.config._experts_implementation
        model.set_experts_implementation(
            "grouped_mm"
        )  # batched_mm copies weights for every token of the prompt
        with torch.no_grad():
            cache = model(before, use_cache=True, logits_to_keep=1).past_key_values
            cache.activate_past_recording()  # of sliding windows, so that the cache can be cut
        model.set_experts_implementation(way)

    @torch.no_grad()
    def run() -> Any:
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        if cache is not None:
            cache.crop(-length)
        return logits

    return run


def train(model: Any, work: GenerateWork, facts: dict[str, Any]) -> None:
    """Answer with all logits and the gradients of the tokens' embeddings, then take steps when asked."""
    tokens = torch.from_numpy(work.tokens(model.config.vocab_size)[1]).long()
    optimizer = torch.optim.SGD(model.train().parameters(), lr=RATE)

    def gradients() -> Any:
        output = model(tokens, labels=tokens, use_cache=False)
        output.loss.backward()
        return output.logits.detach()[:, :-1]

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad()

    facts["bytes"], _ = growth(step)
    answer = [gradients(), model.get_input_embeddings().weight.grad[tokens[:, :-1]]]
    optimizer.zero_grad()
    listen(work, facts, [array.float().numpy() for array in answer], step)


main()
