"""What users of transformers do with a model whose experts libmoe computes."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from small_transformers import (
    IDS,
    LORA,
    MODELS,
    assert_same_gradients,
    gpt_oss,
    loss_and_gradients,
    mixtral,
    ours,
    watched,
)
from transformers import (
    AutoModelForCausalLM,
)

import libmoe
import libmoe.transformers


def test_one_word_at_from_pretrained(tmp_path: Path) -> None:
    eager = mixtral()
    eager.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="libmoe")
    assert model.get_experts_implementation() == {"": "libmoe"}
    eager.set_experts_implementation("eager")
    torch.testing.assert_close(model(IDS).logits, eager(IDS).logits)
    made = AutoModelForCausalLM.from_config(eager.config, experts_implementation="libmoe")
    assert made.config._experts_implementation == "libmoe"
    with pytest.raises(ValueError, match="libmoe"):  # among the words that may be said
        model.set_experts_implementation("other")


def test_it_is_libmoe_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    ours(mixtral())(IDS)
    assert len(seen) == 2


@pytest.mark.parametrize(("dtype", "to"), [(torch.float16, "grouped_mm"), (torch.float64, "eager")])
def test_other_types_fall_back_with_one_warning(
    dtype: torch.dtype, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libmoe.transformers.forward._warned", set())
    model = ours(mixtral()).to(dtype)
    seen = watched(monkeypatch)
    with pytest.warns(RuntimeWarning, match=f"MixtralExperts falls back to {to}: .*not in {dtype}"):
        logits = model(IDS).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(IDS)
    model.set_experts_implementation(to)
    torch.testing.assert_close(logits, model(IDS).logits)
    assert not seen


def test_a_gate_of_ones_own_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libmoe.transformers.forward._warned", set())
    model = ours(mixtral())
    for module in model.modules():
        if hasattr(module, "_apply_gate"):
            module.act_fn = torch.nn.Softplus()
    with pytest.warns(RuntimeWarning, match="its gate is none of libmoe's"):
        logits = model(IDS).logits
    model.set_experts_implementation("eager")
    torch.testing.assert_close(logits, model(IDS).logits)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_as_near_to_float64_as_transformers_own(name: str) -> None:
    model = MODELS[name]()
    model.set_experts_implementation("eager")
    truth = copy.deepcopy(model).double()(IDS).logits
    model = model.bfloat16()
    eager = (model(IDS).logits.double() - truth).norm()
    mine = ours(model)(IDS).logits
    assert mine.dtype == torch.bfloat16
    assert (mine.double() - truth).norm() <= 1.2 * eager
    _, gradients = loss_and_gradients(model)
    assert all(gradients[n].dtype == torch.bfloat16 for n in gradients if "experts" in n)


def test_autocast() -> None:
    model = ours(mixtral())
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(IDS).logits
    torch.testing.assert_close(logits.float(), model(IDS).logits, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = ours(mixtral()).train()
    loss, plain = loss_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again, gradients = loss_and_gradients(model)
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], plain[name]) for name in plain)


@pytest.mark.parametrize("what", LORA)
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_lora(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, init_lora_weights=False, **LORA[what])
    model = peft.get_peft_model(MODELS[name](), config)
    model.base_model.model.set_experts_implementation("eager")
    loss, wanted = loss_and_gradients(model)
    model.base_model.model.set_experts_implementation("libmoe")
    seen = watched(monkeypatch)
    mine, gradients = loss_and_gradients(model)
    assert seen
    torch.testing.assert_close(mine, loss)
    assert gradients and all("lora" in name for name in gradients)
    assert_same_gradients(gradients, wanted)


def test_frozen_experts_cost_no_weight_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    needs: list[list[bool]] = []
    backward = libmoe.torch._by_call.backward
    monkeypatch.setattr(
        libmoe.torch._by_call, "backward", lambda *a: (needs.append(list(a[-2])), backward(*a))[1]
    )
    model = peft.get_peft_model(ours(mixtral()), peft.LoraConfig(target_modules=["q_proj"]))
    loss_and_gradients(model)
    assert needs and all(not any(need[2:]) for need in needs)


def test_ten_steps_of_a_trainer(tmp_path: Path) -> None:
    rows = torch.randint(1, 64, (1, 12), generator=torch.Generator().manual_seed(1)).tolist() * 20
    data = [{"input_ids": row, "labels": row} for row in rows]  # one to be learnt by heart
    losses = {}
    for implementation in ("eager", "libmoe"):
        model = mixtral()
        model.set_experts_implementation(implementation)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=10,
            per_device_train_batch_size=2,
            logging_steps=1,
            learning_rate=1e-2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            seed=3,
            disable_tqdm=True,
        )
        collate = transformers.default_data_collator
        trainer = transformers.Trainer(model, arguments, train_dataset=data, data_collator=collate)
        trainer.train()
        losses[implementation] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses["libmoe"]) == 10
    assert losses["libmoe"] == pytest.approx(losses["eager"], rel=2e-4)
    assert losses["libmoe"][-1] < losses["libmoe"][0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("form", [None, "f32"])
def test_generate(name: str, cache: str, form: Any) -> None:
    model = MODELS[name]()
    model.set_experts_implementation("eager")
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache}
    wanted = model.generate(IDS, **options, disable_compile=True)
    ours(model)
    if form:
        assert libmoe.transformers.prepare(model, form=form) == 2
    assert torch.equal(model.generate(IDS, **options, disable_compile=True), wanted)


def test_assisted_generation() -> None:
    model, helper = mixtral(), mixtral()
    with torch.no_grad():
        for parameter in helper.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    model.set_experts_implementation("eager")
    wanted = model.generate(IDS[:1], **options)
    got = ours(model).generate(IDS[:1], **options, assistant_model=ours(helper))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_compile_has_no_break(name: str) -> None:
    torch._dynamo.reset()
    model = ours(MODELS[name]())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits)


PARALLEL = """
import os, sys, torch, torch.distributed as dist, libmoe.transformers
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
dist.init_process_group("gloo")
torch.set_num_threads(1)
calls, forward = [], libmoe.torch._by_call.forward
libmoe.torch._by_call.forward = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], experts_implementation="libmoe",
    distributed_config=DistributedConfig(tp_size=2, ep_size=2, ep_implementation=sys.argv[4]))
ids = torch.load(sys.argv[2])
experts = model.model.layers[0].mlp.experts
with torch.no_grad():
    logits = model(ids).logits
written = model.generate(ids, max_new_tokens=8, do_sample=False)
out = model(input_ids=ids, labels=ids)
out.loss.backward()
def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t
grads = {n: whole(p.grad) for n, p in model.named_parameters()}
if dist.get_rank() == 0:
    said = whole(logits), whole(out.logits).detach(), written
    torch.save((*said, grads, experts.num_experts, len(calls)), sys.argv[3])
dist.barrier()
dist.destroy_process_group()
# The mesh keeps groups whose threads may let go of a tensor while the interpreter ends, which aborts the
# process now and then.
os._exit(0)
"""


@pytest.mark.parametrize("implementation", ["auto", "libmoe"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_expert_parallelism_in_two_processes(name: str, implementation: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "model")
    torch.save(IDS, tmp_path / "ids")
    (tmp_path / "run.py").write_text(PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    files = [str(tmp_path / name) for name in ("run.py", "model", "ids", "out")]
    done = subprocess.run([*command, *files, implementation], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, trained, written, gradients, n_experts, n_calls = torch.load(tmp_path / "out")
    # Each process has half of the experts, and computes two layers twice, and for every new token.
    assert n_experts == model.model.layers[0].mlp.experts.num_experts // 2 and n_calls == 20
    model.set_experts_implementation("eager")
    torch.testing.assert_close(logits, model(IDS).logits)
    torch.testing.assert_close(trained, logits)
    assert torch.equal(written, model.generate(IDS, max_new_tokens=8, do_sample=False))
    _, wanted = loss_and_gradients(model)
    assert_same_gradients(gradients, wanted)


def test_a_model_that_is_changed_is_tried_again() -> None:
    model = ours(gpt_oss())
    before = model(IDS).logits
    for module in model.modules():
        if hasattr(module, "alpha"):
            module.alpha, module.limit = 1.2, 0.01
    mine = model(IDS).logits
    model.set_experts_implementation("eager")
    torch.testing.assert_close(mine, model(IDS).logits)
    assert (mine - before).abs().max() > 1e-3


def test_routing_that_does_not_fit() -> None:
    experts = ours(mixtral()).model.layers[0].mlp.experts
    x, ids, weights = torch.randn(5, 32), torch.zeros(5, 2, dtype=torch.long), torch.ones(5, 2)
    for call in (
        lambda: experts(x, ids[:4], weights),
        lambda: experts(x, ids[:4], weights[:4]),
        lambda: experts(x[:, :31], ids, weights),
        lambda: experts(x, ids.float(), weights),
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match="ids|x"):
            call()
