"""Every class of experts in the installed transformers: logits and all gradients as transformers' own."""

from __future__ import annotations

import re
import warnings

import pytest
import transformers
from small_transformers import assert_same_gradients

import libmoe.transformers  # noqa: F401  # registers
from comparison import assert_close
from families import decorated, gradients, small_model
from libmoe.transformers.known import known
from table import BEGIN, END, PAGE

# What libmoe has not: transformers computes it.
FALLS_BACK = {"Inkling2Experts", "Inkling2LoopExperts", "MuseSparkExperts"}
# Of every kind one, and each third of the rest: in every run of the tests.  The others take their time.
CHOSEN = {
    "AriaExperts",
    "DeepseekV4Experts",
    "Gemma4TextExperts",
    "GptOssExperts",
    "MiniMaxM3VLExperts",
    "MixtralExperts",
    "NemotronHExperts",
    "OpenAIPrivacyFilterExperts",
    "Qwen3MoeExperts",
    *FALLS_BACK,
}


def families() -> list[object]:
    found = []
    for number, (module, name) in enumerate(decorated()):
        seldom = number % 3 and name not in CHOSEN
        marks = [pytest.mark.long] if seldom else []
        found.append(pytest.param(module, name, marks=marks, id=name))
    return found


def test_there_are_families() -> None:
    names = {name for _, name in decorated()}
    assert names >= CHOSEN and len(names) >= 68


@pytest.mark.parametrize(("module", "name"), families())
def test_logits_and_gradients(module: str, name: str) -> None:
    model = small_model(module, name)
    model.set_experts_implementation("eager")
    said, wanted = gradients(model)
    wanted = {key: value.clone() for key, value in wanted.items()}
    model.set_experts_implementation("libmoe")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, found = gradients(model)
    assert_close("logits", ours, said, 3e-5)
    assert_same_gradients(found, wanted)
    told = [str(each.message) for each in caught if "falls back" in str(each.message)]
    experts = [each for each in model.modules() if type(each).__name__ == name]
    assert bool(known(experts[0]).reason) == (name in FALLS_BACK)
    assert len(told) == (name in FALLS_BACK), told
    assert any(p.abs().sum() > 0 for key, p in found.items() if "experts" in key)


def test_the_page_names_every_class() -> None:
    page = PAGE.read_text()
    assert f"transformers {transformers.__version__}: {len(decorated())} classes" in page
    words = set(re.findall(r"\w+", page.split(BEGIN)[1].split(END)[0]))
    missing = [name for _, name in decorated() if name.removesuffix("Experts") not in words]
    assert not missing, f"run scripts/transformers-table: {missing}"
