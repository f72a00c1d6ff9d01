"""Embeddings in few bits: looked up to the last bit, and one copy with a tied output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import libmoe
from oracle.low_bits import unpacked
from pretrained_models import loaded, logits_of, reference

TIED, UNTIED = "granitemoe", "olmoe"
FORMS: list[Any] = ["int8", "int4_a8", "int4_zero", "nvfp4", "int8_row", "fp8"]


def is_packed(model: libmoe.Model, name: str) -> bool:
    try:
        return not model.parameters[name].data.size
    except libmoe.BadStateError:
        return True


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_looked_up_in_what_is_kept(form: Any) -> None:
    """Alone, and so the products are those of the numbers; of ``_a8`` too, since nothing is multiplied."""
    tokens = reference(UNTIED)["tokens"]
    small = loaded(UNTIED, inference_only=True, prepared={"embed.weight": form})
    other = loaded(UNTIED, inference_only=True)
    table = other.parameters["embed.weight"].data
    table[...] = unpacked(table, form)
    assert is_packed(small, "embed.weight") and not is_packed(small, "output.weight")
    assert logits_of(small, tokens).tobytes() == logits_of(other, tokens).tobytes()


@pytest.mark.parametrize("form", ["int8", "int4", "int4_zero", "nvfp4"])
def test_one_copy_serves_a_tied_output_too(form: Any) -> None:
    tokens = reference(TIED)["tokens"]
    other = loaded(TIED, inference_only=True)
    assert "output.weight" not in other.parameters
    table = other.parameters["embed.weight"].data
    table[...] = unpacked(table, form)
    wanted = logits_of(other, tokens).tobytes()
    with libmoe.Context(1) as context:
        whole = loaded(TIED, inference_only=True, context=context)
        before = context.memory()[0]
        del whole
        small = loaded(TIED, inference_only=True, prepared={"embed.*": form}, context=context)
        assert is_packed(small, "embed.weight") and context.memory()[0] < before
        assert logits_of(small, tokens).tobytes() == wanted


@pytest.mark.parametrize("name", [TIED, UNTIED, "deepseek_v3"])
@pytest.mark.parametrize("form", ["int8", "int4_a8"])
def test_one_form_for_all_takes_the_embedding_too(name: str, form: Any, tmp_path: Path) -> None:
    """Packed while reading, in memory, and mapped: the same bits."""
    tokens = reference(name)["tokens"]
    small = loaded(name, inference_only=True, prepared=form)
    assert is_packed(small, "embed.weight")
    wanted = logits_of(small, tokens).tobytes()
    beside = loaded(name, inference_only=True)
    beside.prepare(form)
    assert logits_of(beside, tokens).tobytes() == wanted
    by_pattern = loaded(name, inference_only=True, prepared={"*": form})
    assert logits_of(by_pattern, tokens).tobytes() == wanted
    small.save_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert f"embed.weight.packed.{form}" in found and "embed.weight" not in found
    mapped = libmoe.Model.from_pretrained(tmp_path, inference_only=True)
    assert logits_of(mapped, tokens).tobytes() == wanted


def test_it_stays_where_it_is_told_to() -> None:
    tokens = reference(UNTIED)["tokens"]
    kept = loaded(UNTIED, inference_only=True, prepared={"embed.weight": "none", "*": "int4"})
    assert not is_packed(kept, "embed.weight") and is_packed(kept, "output.weight")
    packed = loaded(UNTIED, inference_only=True, prepared="int4")
    assert logits_of(kept, tokens).tobytes() != logits_of(packed, tokens).tobytes()
    for form in ("f32", "bf16"):  # which are for products alone
        model = loaded(UNTIED, inference_only=True, prepared=form)
        assert not is_packed(model, "embed.weight")


def test_letting_go_reads_the_values_again() -> None:
    tokens = reference(UNTIED)["tokens"]
    model = loaded(UNTIED, inference_only=True)
    wanted = logits_of(model, tokens).tobytes()
    for back in ("none", "f32"):
        model.prepare("int4")
        assert logits_of(model, tokens).tobytes() != wanted
        model.prepare(back)
        assert logits_of(model, tokens).tobytes() == wanted
    model.prepare("int4")
    model.parameters["embed.weight"].data[...] += 1
    with pytest.raises(libmoe.BadStateError, match="^embed.weight has changed since it was packed"):
        logits_of(model, tokens)


def test_calibrated() -> None:
    """A table that nothing is multiplied by is rounded without a calibration."""
    tokens = reference(UNTIED)["tokens"]
    model = loaded(UNTIED, inference_only=True)
    calibration = libmoe.calibrate(model, tokens)
    small = loaded(UNTIED, inference_only=True, prepared="int4", calibration=calibration)
    assert is_packed(small, "embed.weight")
    model.prepare("int4", calibration=calibration)
    assert logits_of(small, tokens).tobytes() == logits_of(model, tokens).tobytes()
    assert np.isfinite(logits_of(small, tokens)).all()
