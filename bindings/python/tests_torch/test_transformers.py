"""What users of transformers do with a model whose experts libmoe computes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import libmoe
import libmoe.transformers
from libmoe.torch.prepared import Prepared
from oracle.low_bits import unpacked

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
}


def mixtral(**more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=4, **more)
    return MixtralForCausalLM(config).eval()


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SIZES, intermediate_size=48, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2
        )
    ).eval()


def gpt_oss() -> PreTrainedModel:
    torch.manual_seed(0)
    return GptOssForCausalLM(
        GptOssConfig(**SIZES, intermediate_size=40, num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    ).eval()


MODELS = {"mixtral": mixtral, "qwen3_moe": qwen, "gpt_oss": gpt_oss}
IDS = torch.randint(1, 64, (2, 11), generator=torch.Generator().manual_seed(5))


def ours(model: PreTrainedModel) -> PreTrainedModel:
    model.set_experts_implementation("libmoe")
    return model


def loss_and_gradients(model: torch.nn.Module, **more: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, **more).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 3e-5
) -> None:
    assert actual.keys() == expected.keys()
    least = 0.01 * max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        error = (actual[name] - value).abs().max().item()
        assert error <= tolerance * max(value.abs().max().item(), least), f"{name}: off by {error:.3g}"


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


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls that libmoe computes."""
    seen: list[int] = []
    forward = libmoe.torch._by_call.forward
    monkeypatch.setattr(
        libmoe.torch._by_call, "forward", lambda *a, **k: (seen.append(1), forward(*a, **k))[1]
    )
    return seen


def test_it_is_libmoe_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    ours(mixtral())(IDS)
    assert len(seen) == 2


@pytest.mark.parametrize(("dtype", "to"), [(torch.float16, "grouped_mm"), (torch.float64, "eager")])
def test_other_types_fall_back_with_one_warning(
    dtype: torch.dtype, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libmoe.transformers.forward._warned", set())
    model = ours(mixtral()).to(dtype)
    seen = calls(monkeypatch)
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


LORA = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "experts": {
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
}


@pytest.mark.parametrize("what", LORA)
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_lora(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, init_lora_weights=False, **LORA[what])
    model = peft.get_peft_model(MODELS[name](), config)
    model.base_model.model.set_experts_implementation("eager")
    loss, wanted = loss_and_gradients(model)
    model.base_model.model.set_experts_implementation("libmoe")
    seen = calls(monkeypatch)
    mine, gradients = loss_and_gradients(model)
    assert seen
    torch.testing.assert_close(mine, loss)
    assert gradients and all("lora" in name for name in gradients)
    close(gradients, wanted)


def test_frozen_experts_cost_no_weight_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    needs: list[list[bool]] = []
    backward = libmoe.torch._by_call.backward
    monkeypatch.setattr(
        libmoe.torch._by_call, "backward", lambda *a: (needs.append(list(a[-1])), backward(*a))[1]
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


@pytest.mark.parametrize("name", MODELS)
def test_prepared(name: str) -> None:
    model = ours(MODELS[name]())
    with torch.no_grad():
        wanted = model(IDS).logits
        assert libmoe.transformers.prepare(model) == 2
        assert torch.equal(model(IDS).logits, wanted)
        libmoe.transformers.prepare(model, form="bf16")
        rounded = model(IDS).logits
        assert not torch.equal(rounded, wanted)
        libmoe.transformers.prepare(model, form="none")
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("up_proj", "down_proj")) and "experts" in parameter_name:
                parameter.copy_(parameter.bfloat16())
        assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_released(tmp_path: Path) -> None:
    model = ours(mixtral())
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        wanted = model(IDS).logits
        libmoe.transformers.prepare(model, release=True)
        assert experts.gate_up_proj.is_meta and experts.down_proj.is_meta
        assert torch.equal(model(IDS).logits, wanted)
        for call in (
            lambda: libmoe.transformers.prepare(model),
            lambda: model.train()(IDS),
            lambda: torch.save(model.eval().state_dict(), tmp_path / "state.pt"),
            lambda: safetensors.torch.save_file(experts.state_dict(), tmp_path / "state"),
            lambda: model.save_pretrained(tmp_path),
            lambda: model.load_state_dict(mixtral().state_dict()),
            lambda: copy.deepcopy(model)(IDS),
            lambda: with_experts(copy.deepcopy(model), "eager")(IDS),
            lambda: with_experts(copy.deepcopy(model), "batched_mm")(IDS),
            lambda: copy.deepcopy(model).half()(IDS),
            lambda: copy.deepcopy(model),
            lambda: copy.deepcopy(experts.state_dict()),
            lambda: pickle.dumps(model),
            lambda: torch.save(model, tmp_path / "model.pt"),
            lambda: torch.save(experts, tmp_path / "experts.pt"),
        ):
            with pytest.raises(libmoe.BadStateError, match="load the model again"):
                call()
        with pytest.raises(libmoe.BadStateError, match="load the model again"):
            model.model.save_pretrained(tmp_path / "saved")
        assert not any(
            (tmp_path / name).exists() for name in ("saved", "config.json", "generation_config.json")
        )
        with pytest.raises(libmoe.BadStateError, match="is in training.*call model.eval"):
            model.train()(IDS)
        assert torch.equal(model.eval()(IDS).logits, wanted)
    with pytest.raises(libmoe.BadStateError, match="no_grad"):
        model(IDS)


def with_experts(model: Any, way: str) -> Any:
    model.set_experts_implementation(way)
    return model


def test_prepare_says_why_not() -> None:
    with pytest.raises(
        libmoe.InvalidArgumentError, match="torch.float16; load them with dtype=torch.bfloat16"
    ):
        libmoe.transformers.prepare(ours(mixtral()).half())


def test_released_memory_is_gone() -> None:
    """The weights are there once: the process grows by less than half of them."""
    code = """
import torch, libmoe.transformers
from transformers import MixtralConfig, MixtralForCausalLM
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4096
config = MixtralConfig(vocab_size=64, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
                       num_attention_heads=4, num_key_value_heads=2, num_local_experts=16)
with torch.no_grad():
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation('libmoe')
    ids = torch.ones(1, 3, dtype=torch.long)
    model(ids)
    weights = sum(p.nbytes for n, p in model.named_parameters() if 'experts' in n)
    before = resident()
    libmoe.transformers.prepare(model, release=True)
    model(ids)
    assert resident() - before < weights / 2, (resident() - before, weights)
    libmoe.transformers
print('less')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "less", done.stderr


def stale() -> dict[str, Any]:
    """What changes a model's weights."""

    def step(model: PreTrainedModel, **more: Any) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), 0.1, **more)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    def load(model: PreTrainedModel) -> None:
        model.load_state_dict({k: v.clone() + 1 for k, v in model.state_dict().items()})

    def assign(model: PreTrainedModel) -> None:
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)

    def data(model: PreTrainedModel) -> None:
        for parameter in model.parameters():
            parameter.data.mul_(2)

    return {
        "AdamW": step,
        "fused AdamW": lambda m: step(m, fused=True),
        "for-loop AdamW": lambda m: step(m, foreach=False),
        "load_state_dict": load,
        "assign": assign,
        "data": data,
    }


@pytest.mark.parametrize("how", stale())
def test_prepared_weights_that_are_stale_are_an_error(how: str) -> None:
    model = ours(mixtral())
    libmoe.transformers.prepare(model)
    with torch.no_grad():
        model(IDS)
        stale()[how](model)
        with pytest.raises(libmoe.BadStateError, match="prepare"):
            model(IDS)
        libmoe.transformers.prepare(model)
        said = model(IDS).logits
        libmoe.transformers.prepare(model, form="none")
        assert torch.equal(model(IDS).logits, said)


def test_training_lets_go_of_prepared_weights() -> None:
    model = ours(mixtral())
    libmoe.transformers.prepare(model)
    plain = loss_and_gradients(ours(mixtral()).train())
    loss, gradients = loss_and_gradients(model.train())
    assert torch.equal(loss, plain[0]) and all(torch.equal(gradients[n], g) for n, g in plain[1].items())
    assert not any(isinstance(each, Prepared) for m in model.modules() for each in vars(m).values())


@pytest.mark.parametrize("form", ["int4", "int8_a8"])
@pytest.mark.parametrize("release", [False, True])
def test_adapters_are_trained_over_weights_of_few_bits(form: Any, release: bool) -> None:
    """As over a model whose experts have these values."""
    config = peft.LoraConfig(r=4, init_lora_weights=False, **LORA["attention"])
    twin = ours(mixtral())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.endswith(("gate_up_proj", "down_proj")):
                parameter.copy_(torch.from_numpy(unpacked(parameter.numpy(), form)))
    plain = ours(mixtral())
    torch.manual_seed(3)
    expected = loss_and_gradients(peft.get_peft_model(twin, config).train())
    torch.manual_seed(3)
    model = peft.get_peft_model(plain, config).eval()
    libmoe.transformers.prepare(model, form=form, release=release)
    loss, gradients = loss_and_gradients(model.train())
    assert torch.equal(loss, expected[0]) and gradients.keys() == expected[1].keys()
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected[1].items())


def test_prepared_weights_under_adapters_are_an_error_until_they_are_merged() -> None:
    config = peft.LoraConfig(r=4, init_lora_weights=False, **LORA["experts"])
    plain = ours(mixtral())
    model = peft.get_peft_model(plain, config).eval()
    with torch.no_grad():
        wanted = model(IDS).logits
        with pytest.raises(libmoe.BadStateError, match="merge_and_unload"):
            libmoe.transformers.prepare(model)
        with model.disable_adapter():  # which leaves the wrappers, so that it is refused as well
            with pytest.raises(libmoe.BadStateError, match="merge_and_unload"):
                libmoe.transformers.prepare(plain)
        merged = model.merge_and_unload()
        libmoe.transformers.prepare(merged)
        torch.testing.assert_close(merged(IDS).logits, wanted)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_quantized(name: str, tmp_path: Path) -> None:
    """By a call, and while it is loaded: the same model, without torch's copies."""
    MODELS[name]().save_pretrained(tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    given = libmoe.transformers.quantize(load(tmp_path), "int4")
    few_bits = libmoe.transformers.QuantizationConfig("int4")
    loaded = load(tmp_path, quantization_config=few_bits)
    assert loaded.is_quantized and loaded.config.quantization_config.form == "int4"
    twin = ours(load(tmp_path))
    with torch.no_grad():
        for parameter_name, parameter in twin.named_parameters():
            if parameter_name.endswith(("gate_up_proj", "down_proj")) and ".experts." in parameter_name:
                parameter.copy_(torch.from_numpy(unpacked(parameter.numpy(), "int4")))
        wanted = twin(IDS).logits
    for model in (given, loaded):
        assert all(
            parameter.is_meta
            for n, parameter in model.named_parameters()
            if ".experts." in n and "_proj" in n
        )
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, wanted)
        options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(IDS, **options), twin.generate(IDS, **options))
    for model in (given, loaded):
        with pytest.raises(libmoe.BadStateError, match="load the model again.*libmoe.Model.save_pretrained"):
            model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    norm = {"model.norm.weight": given.model.norm.weight}
    given.save_pretrained(tmp_path / "part", state_dict=norm)
    assert safetensors.torch.load_file(tmp_path / "part" / "model.safetensors").keys() == norm.keys()
    with pytest.raises(libmoe.MoeError, match="form = 'bf16'"):
        libmoe.transformers.QuantizationConfig("bf16")
    with pytest.raises(libmoe.InvalidArgumentError, match="has no 'group_size'"):
        libmoe.transformers.QuantizationConfig("int4", group_size=32)


def test_trainer_trains_adapters_of_a_quantized_model(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path)
    few_bits = libmoe.transformers.QuantizationConfig("int8")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=few_bits)
    model = peft.get_peft_model(model, peft.LoraConfig(**LORA["attention"]))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (8, 12))]
    arguments = transformers.TrainingArguments(
        tmp_path / "out", max_steps=3, per_device_train_batch_size=4, report_to=[], logging_steps=1
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    trainer.train()
    model.save_pretrained(tmp_path / "adapters")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=few_bits)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapters")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model.eval()(IDS).logits)


def test_what_prepare_refuses() -> None:
    with pytest.raises(libmoe.MoeError, match="set_experts_implementation"):
        libmoe.transformers.prepare(mixtral())
    with pytest.raises(libmoe.MoeError, match="there are none in it .* as in a dense model"):
        libmoe.transformers.prepare(torch.nn.Linear(2, 2))
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, intermediate_size=48))
    with pytest.raises(libmoe.MoeError, match="there are none in it .* as in a dense model"):
        libmoe.transformers.quantize(dense)
    with pytest.raises(libmoe.BadStateError, match="model.eval"):
        libmoe.transformers.prepare(ours(mixtral()).train(), release=True)
    with pytest.raises(libmoe.MoeError, match="form = 'q4'; choose one of .*'int4'"):
        libmoe.transformers.prepare(ours(mixtral()), form="q4")
    with pytest.raises(libmoe.InvalidArgumentError, match="bfloat16"):
        libmoe.transformers.prepare(ours(mixtral()).bfloat16(), form="f32")


PARALLEL = """
import sys, torch, torch.distributed as dist, libmoe.transformers
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
dist.init_process_group("gloo")
torch.set_num_threads(1)
calls, forward = [], libmoe.torch._by_call.forward
libmoe.torch._by_call.forward = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], experts_implementation="libmoe",
    distributed_config=DistributedConfig(tp_size=2, ep_size=2))
ids = torch.load(sys.argv[2])
experts = model.model.layers[0].mlp.experts
with torch.no_grad():
    logits = model(ids).logits
out = model(input_ids=ids, labels=ids)
out.loss.backward()
def whole(t):
    return t.full_tensor() if hasattr(t, "full_tensor") else t
grads = {n: whole(p.grad) for n, p in model.named_parameters()}
if dist.get_rank() == 0:
    said = whole(logits), whole(out.logits).detach()
    torch.save((*said, grads, experts.num_experts, len(calls)), sys.argv[3])
dist.barrier()
dist.destroy_process_group()
"""


def test_expert_parallelism_in_two_processes(tmp_path: Path) -> None:
    model = qwen()
    model.save_pretrained(tmp_path / "model")
    torch.save(IDS, tmp_path / "ids")
    (tmp_path / "run.py").write_text(PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    files = [str(tmp_path / name) for name in ("run.py", "model", "ids", "out")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, trained, gradients, n_experts, n_calls = torch.load(tmp_path / "out")
    assert (
        n_experts == 4 and n_calls == 4
    )  # each process has half of the experts, and computes two layers twice
    model.set_experts_implementation("eager")
    torch.testing.assert_close(logits, model(IDS).logits)
    torch.testing.assert_close(trained, logits)
    _, wanted = loss_and_gradients(model)
    close(gradients, wanted)


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
