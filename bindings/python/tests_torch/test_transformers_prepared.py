"""Models of transformers whose experts' weights are packed, in few bits too."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from small_transformers import IDS, LORA, MODELS, SIZES, loss_and_gradients, mixtral, ours
from transformers import (
    PreTrainedModel,
)

import libmoe
import libmoe.transformers
from libmoe.torch.prepared import Prepared
from oracle.low_bits import unpacked


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
