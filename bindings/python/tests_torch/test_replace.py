"""Families without an experts interface: replaced blocks say and learn what transformers' own do."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import small_transformers
import torch
from small_transformers import assert_same_gradients, watched
from transformers import (
    DbrxConfig,
    DbrxForCausalLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    PreTrainedModel,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

import libmoe
import libmoe.transformers
from families import unsettled

SIZES = {**small_transformers.SIZES, "num_key_value_heads": 4}
SEQUENCES: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "num_experts": 4, "pad_token_id": 0}


def nllb() -> PreTrainedModel:
    return NllbMoeForConditionalGeneration(
        NllbMoeConfig(
            **SEQUENCES,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=40,
            decoder_ffn_dim=40,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_sparse_step=2,
            decoder_sparse_step=2,
            moe_token_dropout=0.2,
            max_position_embeddings=64,
        )
    )


MODELS: dict[str, Any] = {
    "dbrx": lambda: DbrxForCausalLM(
        DbrxConfig(
            vocab_size=64,
            d_model=32,
            n_heads=4,
            n_layers=2,
            max_seq_len=64,
            attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        )
    ),
    "jetmoe": lambda: JetMoeForCausalLM(
        JetMoeConfig(
            **{**SIZES, "num_key_value_heads": 2},
            kv_channels=8,
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
        )
    ),
    "llama4": lambda: Llama4ForCausalLM(
        Llama4TextConfig(
            **SIZES,
            head_dim=8,
            intermediate_size=24,
            intermediate_size_mlp=40,
            num_local_experts=4,
            num_experts_per_tok=2,
            moe_layers=[0, 1],
        )
    ),
    "longcat_flash": lambda: LongcatFlashForCausalLM(
        LongcatFlashConfig(
            **SIZES,
            num_layers=1,
            ffn_hidden_size=40,
            expert_ffn_hidden_size=24,
            n_routed_experts=4,
            zero_expert_num=3,
            moe_topk=3,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
            head_dim=8,
        )
    ),
    "nllb_moe": nllb,
    "switch": lambda: SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            **SEQUENCES,
            d_kv=8,
            d_ff=40,
            num_layers=2,
            num_sparse_encoder_layers=2,
            num_decoder_layers=2,
            num_sparse_decoder_layers=2,
            num_heads=4,
            expert_capacity=3,
            decoder_start_token_id=0,
        )
    ),
}
IDS = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(5))


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return unsettled(MODELS[name]())


def said(model: PreTrainedModel) -> torch.Tensor:
    more = {"decoder_input_ids": IDS.flip(1)} if model.config.is_encoder_decoder else {}
    logits: torch.Tensor = model(input_ids=IDS, use_cache=False, **more).logits
    return logits


def gradients(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = said(model)
    logits.square().sum().backward()
    named = model.named_parameters()
    return logits.detach(), {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(name)
    theirs, wanted = gradients(model)
    names = list(model.state_dict())
    replaced = libmoe.transformers.replace(model)
    assert replaced and all(
        model.get_submodule(each).__class__.__name__ == kind for each, kind in replaced.items()
    )
    seen = watched(monkeypatch)
    ours, found = gradients(model)
    assert len(seen) >= len(replaced)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert_same_gradients(found, wanted, 5e-5)
    assert list(model.state_dict()) == names
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = len(seen)
        assert torch.equal(said(copied), ours) and len(seen) > before


def of_zero(module: torch.nn.Module) -> None:
    for each in module.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0


@pytest.mark.parametrize("name", MODELS)
def test_replaced_blocks_are_prepared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits from packed weights; with release from them alone, and nothing else with what is left."""
    model = made(name).eval()
    n_blocks = len(libmoe.transformers.replace(model))
    calls = watched(monkeypatch)
    with torch.no_grad():
        wanted = said(model)
        assert calls and all(packed is None for *_, packed in calls)
        for release in (False, True):
            calls.clear()
            assert libmoe.transformers.prepare(model, release=release) == n_blocks
            assert torch.equal(said(model), wanted)
            assert calls and not any(packed is None for *_, packed in calls)
        assert any(parameter.is_meta for parameter in model.parameters())
        for call in (
            lambda: pickle.dumps(model.state_dict()),
            lambda: copy.deepcopy(model),
            lambda: pickle.dumps(model),
        ):
            with pytest.raises(libmoe.BadStateError, match="load the model again"):
                call()
        with pytest.raises(libmoe.BadStateError, match="call model.eval"):
            of_zero(model)
            said(model.train())
        assert torch.equal(said(model.eval()), wanted)
        with pytest.raises(libmoe.BadStateError, match="released"):
            libmoe.transformers.prepare(model)


def test_a_replaced_block_that_changes_is_an_error() -> None:
    model = made("llama4").eval()
    libmoe.transformers.replace(model)
    libmoe.transformers.prepare(model)
    with torch.no_grad():
        model.model.layers[0].feed_forward.experts.down_proj.mul_(2)
        with pytest.raises(libmoe.BadStateError, match="the weights have changed since"):
            said(model)
        libmoe.transformers.prepare(model)
        again = said(model)
        libmoe.transformers.prepare(model, form="none")
        assert torch.equal(said(model), again)


def test_dropout_in_training_is_transformers_own() -> None:
    model = made("switch")
    libmoe.transformers.replace(model)
    model.train()
    with pytest.warns(RuntimeWarning, match="drops out"):
        said(model)
    of_zero(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        said(model)


def test_what_there_is_not_to_replace() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=24, num_local_experts=4))
    with pytest.raises(libmoe.InvalidArgumentError, match="set_experts_implementation"):
        libmoe.transformers.replace(model)
    dbrx = made("dbrx")
    assert len(libmoe.transformers.replace(dbrx)) == 2
    with pytest.raises(libmoe.InvalidArgumentError, match="already"):
        libmoe.transformers.replace(dbrx)
