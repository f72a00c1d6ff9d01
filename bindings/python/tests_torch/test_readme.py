"""The README's programs for PyTorch and transformers run as they stand there, and so do their pages'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers

CHECKOUT = Path(__file__).resolve().parents[3]
# The pages' programs for several processes are marked otherwise.
PAGES = {"README.md": "py", "docs/pytorch.md": "python", "docs/transformers.md": "python"}


def small(family: str) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(
        family,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=32,
        pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small("mixtral").save_pretrained(tmp_path / "path" / "to" / "model")
    monkeypatch.chdir(tmp_path)
    programs = re.findall(rf"^```{PAGES[page]}\n(.*?)^```", (CHECKOUT / page).read_text(), flags=re.S | re.M)
    assert programs
    names: dict[str, object] = {}
    for program in programs:
        # One program is about families without an experts interface.
        given = names | {"model": small("llama4_text")} if "replace(model)" in program else names
        exec(compile(program, page, "exec"), given)
