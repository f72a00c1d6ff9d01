"""Write what the MoE blocks of transformers compute, for test_models.py to hold libmoe to.

    pip install -r requirements.txt
    python generate_models.py

leaves one .npz per model in models/, and models/losses.npz. Each block is the model's own, small, in
evaluation, with random float32 parameters. It runs forwards and backwards in float32 and in float64, which
must agree; float64 is what is written.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import MODELS
from models.base import Case, Draft, Model, Tensors, run, run_wide, values
from models.cases import IDLE, cases_of
from models.losses import losses

HERE = Path(__file__).parent / "models"
Arrays = dict[str, np.ndarray[Any, Any]]
N_TOKENS = 24


def case_arrays(model: Model, name: str, case: Case) -> Arrays:
    """Settings, inputs and parameters, and all that came of them."""
    draft = Draft(model, case, N_TOKENS, model.arguments["hidden_size"])
    parameters = {key: value.clone() for key, value in model.names(draft.block, values).items()}
    bias = {} if draft.selection_bias is None else {"router.selection_bias": draft.selection_bias.clone()}
    wide = run_wide(draft)
    if not case.forced:
        check_single(case, run(draft, draft.block), wide)
        check_choice(draft)
    check_situation(name, wide)
    settings = {
        "arguments": model.arguments | case.arguments,
        "sequence_length": N_TOKENS // model.sequences,
        "forced": case.forced,
        "dx_tolerance": case.dx_tolerance,
    }
    tensors = (
        {"x": draft.x, "dy": draft.dy}
        | {f"parameter/{key}": value for key, value in parameters.items()}
        | {f"buffer/{key}": value for key, value in bias.items()}
        | wide
    )
    return {"settings": np.array(json.dumps(settings)), **arrays(tensors)}


def check_single(case: Case, single: Tensors, wide: Tensors) -> None:
    """Float32 has the same choice and agrees as libmoe must: the block is the one that people run.

    Where scores underflow the choice of float32 is arbitrary, among weights of 0.
    """
    assert single.keys() == wide.keys()
    for name, expected in wide.items():
        if name != "expert_indices":
            error = (single[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
            limit = case.dx_tolerance if name == "gradient/x" else 1e-5
            assert error <= limit, f"{name}: off by {error:.3g} of its largest value"
    chosen = wide["expert_weights"] > 1e-30
    assert torch.equal(single["expert_indices"][chosen], wide["expert_indices"][chosen])


def check_choice(draft: Draft) -> None:
    """No choice by logits hangs on rounding."""
    if draft.model.by_logits:
        best = draft.logits.sort(dim=1, descending=True).values
        gap = (best[:, :-1] - best[:, 1:]).min()
        assert gap > 1e-5, f"two logits are only {gap:.3g} apart"


def check_situation(name: str, wide: Tensors) -> None:
    """The case is what it is called."""
    indices, weights = wide["expert_indices"], wide["expert_weights"]
    assert all(value.isfinite().all() for value in wide.values())
    if name == "idle_expert":
        assert not (indices == IDLE).any()
    if name in ("drops", "one_place"):
        assert 3 <= (indices == -1).sum() <= N_TOKENS // 2 + 2
    if name == "small_sums":
        sums = weights.sum(dim=1)
        assert (sums < 2.4).any() and (sums > 2.499).any()
    if name == "near":
        assert 3 <= (weights < 0.999).sum() <= weights.numel() - 3


def arrays(tensors: Tensors) -> Arrays:
    """For a file: float64 was for the computing, float32 keeps it small."""
    return {
        name: (value.float() if value.is_floating_point() else value).contiguous().numpy()
        for name, value in tensors.items()
    }


def save(name: str, content: Arrays) -> None:
    """Write one .npz."""
    np.savez_compressed(HERE / f"{name}.npz", **content)  # type: ignore[arg-type]


def main() -> None:
    """Write every model, each case from a seed of its own."""
    torch.set_num_threads(1)
    for number, (model_name, model) in enumerate(MODELS.items()):
        content: Arrays = {}
        for seed, (name, case) in enumerate(cases_of(model).items(), start=100 * number):
            torch.manual_seed(seed)
            print(model_name, name)
            content |= {f"{name}/{key}": value for key, value in case_arrays(model, name, case).items()}
        save(model_name, content)
    torch.manual_seed(7)
    save("losses", arrays(losses()))


if __name__ == "__main__":
    main()
