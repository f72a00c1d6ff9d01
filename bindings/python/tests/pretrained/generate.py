"""Write folders of tiny models as transformers saves them, and what transformers computes with each.

    pip install -r ../../../scripts/requirements-torch.txt
    python -m pretrained.generate [NAME ...]

leaves folders/NAME/, which is what people have on disk, and folders/NAME.npz beside it: tokens, logits,
loss, gradients, greedy continuations.  Numbers are computed in float64 from the weights that the files hold,
as far as transformers keeps to it, and compared with those in float32, so that no choice of experts and no
greedy token hangs on rounding.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found,no-untyped-call,misc,import-untyped"

from __future__ import annotations

import copy
import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn

from .cases import CASES, Case, V, fingerprint
from .tokenizer import write_tokenizer

HERE = Path(__file__).parent / "folders"
B, S, NEW = 2, 24, 8  # sequences, their length, tokens that are continued
Arrays = dict[str, NDArray[Any]]


class Unlucky(Exception):
    """A choice of this random model hangs on rounding: another seed would do."""


_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_heads": 2,
    "patch_size": 2,
    "out_hidden_size": 32,
}
_VISION |= {"num_position_embeddings": 4, "deepstack_visual_indexes": []}


def make(name: str, seed: int) -> nn.Module:
    """Return a case's model, random, in float32 numbers that its files can hold."""
    case = CASES[name]
    model = _eager(_class(case)(_configuration(case)))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    with torch.no_grad():
        tensors = [*model.named_parameters(), *model.named_buffers()]
        for each, tensor in tensors:
            if "inv_freq" in each or not tensor.is_floating_point():
                continue
            tensor.copy_(_random(each, tensor, generator).to(getattr(torch, case.dtype)))
        model.tie_weights()
    return model.eval()


def _configuration(case: Case) -> Any:
    find = lambda suffix: getattr(transformers, case.kind + suffix)  # noqa: E731
    arguments = copy.deepcopy(case.arguments)
    if not case.text_only:
        return find("Config")(text_config=arguments, vision_config=_VISION)
    kind = "TextConfig" if hasattr(transformers, case.kind + "TextConfig") else "Config"
    return find(kind)(**arguments)


def _class(case: Case) -> Any:
    return getattr(
        transformers, case.kind + ("ForCausalLM" if case.text_only else "ForConditionalGeneration")
    )


def _random(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Numbers large enough that everything shows: norms around 1, or around 0 where 1 is added."""
    random = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim > 1:
        deviation = 1.5 * tensor.shape[-1] ** -0.5
        return deviation * random
    around = 1.0 if "norm" in name and tensor.mean() > 0.5 else 0.0
    return around + (1.0 if "sinks" in name else 0.25) * random


def _eager(model: nn.Module) -> nn.Module:
    """Have the implementations that compute in float64; a copy of a model forgets them."""
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    return model


def save(name: str, model: nn.Module, folder: Path) -> None:
    """Write the folder as ``save_pretrained`` does, and what people have beside it."""
    case = CASES[name]
    written = copy.deepcopy(model).to(getattr(torch, case.dtype))
    shutil.rmtree(folder, ignore_errors=True)
    written.save_pretrained(folder, **({"max_shard_size": case.shard} if case.shard else {}))
    if case.left_over:
        path = folder / "model.safetensors"
        extra = {each: np.full(shape, 7, np.float32) for each, shape in case.left_over.items()}
        save_file({**load_file(path), **extra}, path, metadata={"format": "pt"})
    if case.older:
        _as_before_5(folder / "config.json")
    _defaults(folder)
    if case.tokenizer:
        write_tokenizer(folder)


def _as_before_5(path: Path) -> None:
    """Give config.json the names that transformers 4 wrote."""
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = None if scaling.get("rope_type") == "default" else scaling
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _defaults(folder: Path) -> None:
    """Write defaults of generation that differ from a library's own."""
    chosen = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0, "do_sample": True}
    chosen |= {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(chosen, indent=2) + "\n")


def references(name: str, model: nn.Module) -> Arrays:
    """Tokens, logits, loss, gradients and greedy continuations of a model, in float64."""
    case = CASES[name]
    random = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    tokens = random.integers(4, V, (B, S))
    exact = _eager(copy.deepcopy(model)).double()
    found: Arrays = {"tokens": tokens.astype(np.int32)}
    output = exact(input_ids=torch.tensor(tokens), use_cache=False)
    found["logits"] = _near(name, output.logits, model, tokens)
    found["loss"] = _loss(output.logits, tokens).detach().numpy()
    objective = _loss(output.logits, tokens)
    if case.settings.get("output_router_logits"):
        objective = objective + case.settings["router_aux_loss_coef"] * output.aux_loss
    objective.backward()
    found["objective"] = objective.detach().numpy()
    prints = {each: fingerprint(each, gradient) for each, gradient in _gradients(exact).items()}
    found["gradients"] = np.concatenate(list(prints.values()))
    found["gradient_sizes"] = np.array(json.dumps({each: len(numbers) for each, numbers in prints.items()}))
    if case.short:
        few = tokens[:, : case.short]
        with torch.no_grad():
            short = exact(input_ids=torch.tensor(few), use_cache=False).logits
        found["short_logits"] = _near(name, short, model, few)
    for number, length in enumerate(case.prompts):
        found[f"prompt/{number}"] = tokens[number % B, :length].astype(np.int32)
        found[f"continued/{number}"] = _continued(name, exact, found[f"prompt/{number}"])
    return {each: a.astype(np.float32) if a.dtype == np.float64 else a for each, a in found.items()}


def _loss(logits: torch.Tensor, tokens: NDArray[Any]) -> torch.Tensor:
    """Cross-entropy of each token from those before it."""
    return nn.functional.cross_entropy(logits[:, :-1].reshape(-1, V), torch.tensor(tokens[:, 1:]).reshape(-1))


def _near(name: str, logits: torch.Tensor, model: nn.Module, tokens: NDArray[Any]) -> NDArray[Any]:
    """Return logits, after a look whether float32 gives them too."""
    logits = logits.detach()
    with torch.no_grad():
        rounded = model(input_ids=torch.tensor(tokens), use_cache=False).logits
    error = float((rounded - logits).abs().max() / logits.abs().max())
    if error > 5e-6:
        raise Unlucky(f"{name}: float32 differs by {error:.2g}")
    found: NDArray[Any] = logits.numpy()
    return found


def _continued(name: str, exact: nn.Module, prompt: NDArray[Any]) -> NDArray[Any]:
    """Greedy continuation by transformers' own ``generate``, with its cache."""
    output = exact.generate(
        torch.tensor(prompt[None].astype(np.int64)),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        generation_config=transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
        ),
        output_logits=True,
    )
    for logits in output.logits:
        best = torch.topk(logits[0], 2).values
        if best[0] - best[1] < 1e-3:
            raise Unlucky(f"{name}: two tokens are as likely")
    found: NDArray[Any] = output.sequences[0, len(prompt) :].numpy().astype(np.int32)
    return found


def _gradients(model: nn.Module) -> Arrays:
    """Gradients under the names and in the shapes that the files have: they are saved in place of weights."""
    kept = {each for each, p in model.named_parameters() if p.grad is not None}
    gradients = copy.deepcopy(model)
    with torch.no_grad():
        for (each, p), source in zip(gradients.named_parameters(), model.parameters()):
            p.copy_(source.grad if each in kept else torch.full_like(p, torch.nan))
        for each, buffer in gradients.named_buffers():
            if buffer.is_floating_point() and "inv_freq" not in each:
                buffer.fill_(torch.nan)
        gradients.tie_weights()
    with tempfile.TemporaryDirectory() as folder:
        gradients.save_pretrained(folder)
        return {
            each: value
            for each, value in load_file(Path(folder) / "model.safetensors").items()
            if not np.isnan(value).any()
        }


def reread(name: str, folder: Path, expected: Arrays) -> None:
    """Read the folder as people do: it is the model whose numbers were written."""
    model, info = _class(CASES[name]).from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not info["missing_keys"], info
    assert set(info["unexpected_keys"]) <= set(CASES[name].left_over), info
    _eager(model)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(expected["tokens"].astype(np.int64)), use_cache=False).logits
    error = float((logits - torch.tensor(expected["logits"])).abs().max() / logits.abs().max())
    assert error < 1e-6, f"{name}: the folder gives other logits, by {error:.2g}"


def made(name: str) -> tuple[nn.Module, Arrays]:
    """Return the first model of a case that is no matter of luck, and its numbers."""
    for seed in range(20):
        model = make(name, seed)
        try:
            return model, references(name, model)
        except Unlucky as unlucky:
            print(f"{unlucky} with seed {seed}")
    raise RuntimeError(f"{name}: no seed will do")


def main(names: list[str]) -> None:
    """Write the cases of these names, or all."""
    HERE.mkdir(exist_ok=True)
    for name in names or CASES:
        model, found = made(name)
        save(name, model, HERE / name)
        reread(name, HERE / name, found)
        np.savez_compressed(HERE / f"{name}.npz", allow_pickle=False, **found)
        size = sum(file.stat().st_size for file in (HERE / name).iterdir())
        print(f"{name}: {size / 1e3:.0f} kB and {(HERE / f'{name}.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
