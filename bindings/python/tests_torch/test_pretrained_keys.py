"""Keys of config.json with each of their values: transformers' logits, or a refusal that names the key."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

import libmoe
from pretrained import generate
from pretrained.cases import CASES, V
from pretrained_models import FOLDERS, assert_near, logits_of

TOKENS = np.random.default_rng(3).integers(4, V, (2, 20)).astype(np.int32)

# ...: the key is not there.  Families whose configuration has no such key are passed over.
VALUES: dict[str, tuple[Any, ...]] = {
    "norm_topk_prob": (True, False, None, ...),
    "attention_bias": (True, False, ...),
    "use_bias": (True, False, ...),
    "mlp_bias": (True, False),
    "qkv_bias": (True, False),
    "lm_head_bias": (True, False),
    "use_qk_norm": (True, False, ...),
    "tie_word_embeddings": (True, False, ...),
    "attn_temperature_tuning": (True, False),
    "rope_interleave": (True, ...),
    "moe_norm_min": (0.0, 0.7, ...),
    "topk_method": ("greedy", "group_limited_greedy", ...),
    "n_shared_experts": (1, 2, ...),
    "num_key_value_heads": (4, 1),
    "q_lora_rank": (None, 10, ...),
    "routed_scaling_factor": (1.0, 0.5, ...),
    "shared_expert_intermediate_size": (8,),
    "first_k_dense_replace": (0, 1),
    "use_sliding_window": (True, False),
}
OF_ONE = [
    ("phimoe", "router_jitter_noise", 0.0),
    ("phimoe", "router_jitter_noise", 0.3),
    ("qwen3", "num_key_value_heads", None),
    ("llama", "num_key_value_heads", None),
]
# What transformers itself cannot compute.
NOBODYS = {
    ("dots1", "n_shared_experts", ...),
    ("deepseek_v2_lite", "topk_method", "group_limited_greedy"),
    ("qwen3", "use_sliding_window", False),
    *((f"deepseek_{each}", "num_key_value_heads", 1) for each in ("v2", "v2_lite", "v3")),
}
OFTEN = (
    "norm_topk_prob",
    "moe_norm_min",
    "topk_method",
    "router_jitter_noise",
    "q_lora_rank",
)  # others take long
# Contradictions, and what two implementations compute differently.
REFUSED = {
    ("qwen2_moe", "use_sliding_window", False),  # with layers that slide: transformers' windows are empty
    ("deepseek_v2", "norm_topk_prob", True),  # transformers passes it over, the model's own code does not
    ("deepseek_v2_lite", "norm_topk_prob", True),
    ("deepseek_v2", "mlp_bias", True),
    ("deepseek_v2_lite", "mlp_bias", True),
}


def tried() -> list[Any]:
    found: list[tuple[str, str, Any]] = [*OF_ONE]
    for name, case in CASES.items():
        known = generate._configuration(case).get_text_config().to_dict()
        found += [(name, key, value) for key in VALUES if key in known for value in VALUES[key]]
    found = [each for each in found if each not in NOBODYS and configuration(*each) is not None]
    long = pytest.mark.long
    return [pytest.param(*each, marks=[] if each[1] in OFTEN else [long]) for each in found]


def configuration(name: str, key: str, value: Any) -> Any:
    """None: transformers has no such configuration, whose types it checks."""
    kind = type(generate._configuration(CASES[name]))
    try:
        return kind.from_dict(copy.deepcopy(changed(name, key, value)))
    except StrictDataclassError:
        return None


def changed(name: str, key: str, value: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((FOLDERS / name / "config.json").read_text())
    language = config if CASES[name].text_only else config["text_config"]
    for part in [language] + ([config] if key == "tie_word_embeddings" else []):
        if value is ...:
            part.pop(key, None)
        else:
            part[key] = value
    return config


@pytest.mark.parametrize(("name", "key", "value"), tried())
def test_each_value(name: str, key: str, value: Any, tmp_path: Path) -> None:
    config = changed(name, key, value)
    model = generate._eager(generate._class(CASES[name])(configuration(name, key, value))).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for each, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" not in each and tensor.is_floating_point():
                tensor.copy_(generate._random(each, tensor, generator))
        model.tie_weights()
        wanted = model(input_ids=torch.tensor(TOKENS.astype(np.int64)), use_cache=False).logits.numpy()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if (name, key, value) in REFUSED:
        with pytest.raises(
            libmoe.InvalidArgumentError, match=key if key != "use_sliding_window" else "sliding"
        ):
            libmoe.Model.from_pretrained(tmp_path)
        return
    assert_near(logits_of(libmoe.Model.from_pretrained(tmp_path), TOKENS), wanted, 2e-5, f"{key} = {value}")
