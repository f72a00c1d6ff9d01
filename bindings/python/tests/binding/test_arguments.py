"""Arguments of the wrong kind: each is a MoeError, and the Python exception one expects, with the cure."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrays import normal
from libmoe._native.check import byte_count
from libmoe.cli import main
from libmoe.train.config import Settings
from libmoe.train.errors import UserError
from wrong_calls import IDS, MOE, X, blocks, layer, libmoe, model, refused

# ------------------------------------------------------------------------------------------------------------
# Unknown names
# ------------------------------------------------------------------------------------------------------------

P = [libmoe.Parameter(normal(3))]
UNKNOWN: list[tuple[Callable[..., object], str, str]] = [
    (layer, "activaton", "activation"),
    (layer, "num_experts", "n_experts"),
    (layer, "num_local_experts", "n_experts"),
    (layer, "num_experts_per_tok", "top_k"),
    (layer, "topk", "top_k"),
    (layer, "hidden_dim", "hidden_size"),
    (layer, "d_model", "hidden_size"),
    (layer, "d_ff", "intermediate_size"),
    (layer, "norm_topk_prob", "router_normalize"),
    (layer, "scoring_func", "score"),
    (layer, "router_aux_loss_coef", "balance_coef"),
    (layer, "aux_loss_coef", "balance_coef"),
    (layer, "n_group", "n_groups"),
    (layer, "Dropout", "dropout"),
    (layer, "num_shared_experts", "n_shared_experts"),
    (layer, "dtype", "weight_dtype"),
    (layer().forward, "attention_mask", "valid_mask"),
    (layer().forward, "input_ids", "token_ids"),
    (layer().forward, "trainig", "training"),
    (layer().backward, "optim", "optimizer"),
    (layer().plan, "memory_limits", "memory_limit"),
    (layer().update_selection_bias, "zerosum", "zero_sum"),
    (model, "num_heads", "n_heads"),
    (model, "vocab_size", "vocabulary_size"),
    (model, "num_hidden_layers", "n_layers"),
    (model, "num_key_value_heads", "n_kv_heads"),
    (model, "rms_norm_eps", "norm_epsilon"),
    (model, "eps", "norm_epsilon"),
    (model, "tie_word_embeddings", "tied_output"),
    (model().forward, "labels", "targets"),
    (model().forward, "input_ids", "tokens"),
    (model().forward, "attention_mask", "valid_mask"),
    (model().generate, "max_new_tokens", "n_tokens"),
    (model().generate, "temprature", "temperature"),
    (model().generate, "eos_token_id", "end_tokens"),
    (model().generate, "stop_strings", "stop"),
    (model().generate_batch, "repeat_penalty", "repetition_penalty"),
    (model().write, "max_new_tokens", "n_tokens"),
    (libmoe.Model.from_pretrained, "torch_dtype", "weight_dtype"),
    (libmoe.Model.from_pretrained, "max_memory", "resident_limit"),
    (model().save_pretrained, "shard_size", "max_shard_size"),
    (model().plan, "seq_len", "sequence_length"),
    (libmoe.EncoderLayer, "nhead", "n_heads"),
    (libmoe.EncoderLayer, "dim_feedforward", "intermediate_size"),
    (libmoe.EncoderLayer, "layer_norm_eps", "norm_epsilon"),
    (libmoe.AdamW, "lr", "learning_rate"),
    (libmoe.AdamW, "eps", "epsilon"),
    (libmoe.AdamW, "beta1", "betas"),
    (libmoe.AdamW, "params", "parameters"),
    (libmoe.SGD, "lr", "learning_rate"),
    (libmoe.SGD, "betas", "momentum"),
    (libmoe.SGD, "wd", "weight_decay"),
    (libmoe.SGD(P).step, "max_grad_norm", "max_norm"),
    (libmoe.clip_grad_norm, "clip", "max_norm"),
    (libmoe.Schedule, "lr", "learning_rate"),
    (libmoe.Schedule, "num_warmup_steps", "warmup_steps"),
    (libmoe.Schedule, "num_training_steps", "total_steps"),
    (libmoe.AdaptiveClip, "treshold", "threshold"),
    (libmoe.Context, "num_threads", "n_threads"),
    (libmoe.Context, "backend", "matmul"),
    (libmoe.Parameter, "gradient", "grad"),
    (libmoe.save, "shard_size", "max_shard_size"),
    (libmoe.save_training, "optimizer", "optimizers"),
    (libmoe.load_training, "layer", "layers"),
    (libmoe.presets.mixtral, "num_experts", "n_experts"),
    (libmoe.presets.deepseek_v3, "hidden_dim", "hidden_size"),
    (blocks.sample, "temp", "temperature"),
    (blocks.cross_entropy, "label_smooth", "label_smoothing"),
    (blocks.norm, "eps", "epsilon"),
    (blocks.attention, "is_causal", "causal"),
    (blocks.attention, "attn_mask", "mask"),
    (blocks.rotate, "rope_theta", "theta"),
]


@pytest.mark.parametrize(("call", "name", "meant"), UNKNOWN)
def test_unknown_names(call: Callable[..., object], name: str, meant: str) -> None:
    more: tuple[Any, ...] = (normal(1, 2, 1, 4),) * 3 if call is blocks.attention else ()
    more = (IDS,) if call in (libmoe.save,) else more
    if (
        isinstance(call, types.MethodType)
        and call.__name__ == "plan"
        and isinstance(call.__self__, libmoe.Layer)
    ):
        more = (5,)
    refused(
        lambda: call(*more, **{name: 1}),
        rf"unknown names \['{name}'\]; (.*; )?did you mean (\w+ or )*{meant}\b",
    )


def test_unknown_names_within_dicts() -> None:
    refused(lambda: model(moe={**MOE, "num_experts": 4}), "moe: .*'num_experts'.*did you mean n_experts")
    refused(
        lambda: layer(expert_groups=[{"n_experts": 4, "act": "relu"}]), "did you mean activation", ValueError
    )
    groups = [{"parameters": P, "lr": 0.1}]
    refused(lambda: libmoe.AdamW(P, groups=groups), r"groups\[0\].*'lr'.*did you mean learning_rate")
    refused(lambda: libmoe.AdamW(P, groups=[{"weight_decay": 0.1}]), "parameters is missing", ValueError)


def test_a_name_like_no_other_gets_the_list() -> None:
    refused(lambda: libmoe.SGD(P, zzz=1), "choose from .*'learning_rate', 'momentum'")


def test_names_are_still_shown_by_help() -> None:
    for kind in (libmoe.Layer, libmoe.Model, libmoe.AdamW, libmoe.Schedule):
        assert len(inspect.signature(kind).parameters) > 5
        assert kind.__init__.__name__ == "__init__"


def test_unknown_words() -> None:
    refused(lambda: layer(activation="swish"), "did you mean 'silu'", ValueError)
    refused(lambda: layer(score="softmx"), "did you mean 'softmax'", ValueError)
    refused(lambda: layer(weight_dtype="bfloat16"), "did you mean 'bf16'", ValueError)
    refused(lambda: layer(score=1), "score: expected a word, got 1")
    refused(lambda: layer(losses=["switch"]), "losses: expected a dict")
    refused(lambda: layer(losses={("switch",): 1}), "losses: expected a word")
    refused(lambda: libmoe.Context(matmul=["native"]), "matmul: expected a word")


# ------------------------------------------------------------------------------------------------------------
# Objects
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 5, "tape", object(), []])
def test_objects_of_another_kind(wrong: Any) -> None:
    mine, whole = layer(), model()
    some: Any = wrong
    refused(lambda: mine.backward(some, X), r"^tape: expected a libmoe.Tape, got \w+; use layer.tape\(\)")
    refused(lambda: whole.backward(some), "^output: expected a libmoe.ModelOutput")
    refused(lambda: whole.read(some, IDS), "^cache: expected a libmoe.Cache")
    refused(lambda: libmoe.Statistics(4).add(some), "^report: expected a libmoe.Report")
    if wrong is None:
        return
    refused(lambda: mine.forward(X, tape=some), "^tape: expected a libmoe.Tape")
    refused(lambda: whole.forward(IDS, tape=some), "^tape: expected a libmoe.ModelTape")
    refused(lambda: mine.forward(X, record=some), "^record: expected a libmoe.Routing")
    refused(lambda: mine.forward(X, replay=some), "^replay: expected a libmoe.Routing")
    refused(lambda: layer(context=some), "^context: expected a libmoe.Context")
    refused(lambda: model(context=some), "^context: expected a libmoe.Context")
    tape = mine.tape()
    mine.forward(X, tape=tape)
    refused(lambda: mine.backward(tape, X, optimizer=some), "^optimizer: expected a libmoe.Optimizer")


def test_objects_of_each_other() -> None:
    mine, whole = layer(), model()
    refused(lambda: mine.forward(X, tape=whole.tape()), "^tape: expected a libmoe.Tape, got ModelTape")
    refused(lambda: whole.forward(IDS, tape=mine.tape()), "^tape: expected a libmoe.ModelTape, got Tape")
    refused(lambda: mine.backward(whole.tape(), X), "^tape: expected a libmoe.Tape, got ModelTape")
    refused(lambda: whole.backward(whole.tape()), "^output: expected a libmoe.ModelOutput, got ModelTape")


def test_one_thing_where_several_are_expected(tmp_path: Path) -> None:
    mine = layer()
    path = tmp_path / "state"
    some: Any = mine
    refused(lambda: libmoe.AdamW(some), "got a Layer; use its .parameters")
    refused(lambda: libmoe.AdamW(P[0]), r"parameters: expected a sequence, got Parameter; use a list")
    refused(lambda: libmoe.AdamW("weights"), "parameters: expected a sequence, got str")
    refused(lambda: libmoe.AdamW([normal(3)]), r"parameters\[0\]: expected a libmoe.Parameter")
    refused(lambda: libmoe.AdamW(P, betas=0.9), "betas: expected a sequence, got float; use a pair")
    refused(lambda: libmoe.AdamW(P, betas=(0.9, 0.99, 0.9)), "betas: expected two numbers", ValueError)
    refused(lambda: libmoe.AdamW(P, groups={"parameters": P}), "groups: expected a sequence, got dict")
    refused(lambda: libmoe.clip_grad_norm(5, 1.0), "parameters: expected a sequence, got int")
    for name in ("layers", "optimizers", "statistics"):
        for wrong, kind in ((some, "Layer"), ("abc", "str")):
            save = functools.partial(libmoe.save_training, path, step=0, **{name: wrong})
            refused(save, f"{name}: expected a sequence, got {kind}")
    refused(
        lambda: libmoe.save_training(path, step=0, layers=[P]),
        r"layers\[0\]: expected a libmoe.Layer, got list",
    )
    refused(lambda: libmoe.save(path, X), "tensors: expected a dict, got ndarray")
    refused(lambda: libmoe.save(path, {1: X}), "tensors: expected names as keys, got 1")
    refused(lambda: mine.load_state_dict([X]), "state: expected a dict, got list")
    refused(lambda: mine.upcycle([X]), "dense: expected a dict, got list")
    refused(lambda: layer(expert_groups={"n_experts": 4}), "expert_groups: expected a sequence, got dict")
    refused(lambda: libmoe.save(5, {}), "path: expected a str or path, got int")
    refused(lambda: libmoe.Routing().load("abc"), "saved: expected bytes, got str")
    refused(lambda: libmoe.Context(log="file"), "log: expected a function")


# ------------------------------------------------------------------------------------------------------------
# Numbers
# ------------------------------------------------------------------------------------------------------------

INTEGERS: list[tuple[str, Callable[[Any], object]]] = [
    ("hidden_size", lambda n: layer(hidden_size=n)),
    ("top_k", lambda n: layer(top_k=n)),
    ("seed", lambda n: layer(seed=n)),
    ("n_threads", lambda n: libmoe.Context(n)),
    ("n_layers", lambda n: model(n_layers=n)),
    ("step", lambda n: layer().forward(X, step=n)),
    ("step", lambda n: model().forward(IDS, step=n)),
    ("sequence_length", lambda n: layer().forward(X, sequence_length=n)),
    ("n_tokens", lambda n: layer().plan(n)),
    ("n_sequences", lambda n: model().cache(n, 3)),
    ("max_length", lambda n: model().cache(1, n)),
    ("length", lambda n: model().cache(1, 3).truncate(n)),
    ("n_experts", lambda n: libmoe.Statistics(n)),
    ("ignore_index", lambda n: model().forward(IDS, ignore_index=n)),
    ("warmup_steps", lambda n: libmoe.AdaptiveClip(warmup_steps=n)),
    ("total_steps", lambda n: libmoe.Schedule("linear", total_steps=n)),
    ("step", lambda n: libmoe.Schedule()(n)),
    ("step", lambda n: libmoe.save_training("/nowhere/x", step=n)),
    ("seed", lambda n: libmoe.AdamW(P, seed=n)),
    ("n_layers", lambda n: libmoe.Model(8, n, 2)),
]


@pytest.mark.parametrize(("name", "call"), INTEGERS)
@pytest.mark.parametrize("wrong", [1.0, 1.5, True, "1", None, [1], np.float32(1), 2**64, 2**80, -(2**80)])
def test_whole_numbers(name: str, call: Callable[[Any], object], wrong: Any) -> None:
    refused(
        lambda: call(wrong),
        f"^{name}( = |: expected an int)",
        ValueError if isinstance(wrong, int) and not isinstance(wrong, bool) else TypeError,
    )


FLOATS: list[tuple[str, Callable[[Any], object]]] = [
    ("dropout", lambda v: layer(dropout=v)),
    ("rope_theta", lambda v: model(rope_theta=v)),
    ("learning_rate", lambda v: libmoe.AdamW(P, v)),
    ("momentum", lambda v: libmoe.SGD(P, 0.1, v)),
    ("learning_rate", lambda v: libmoe.Schedule(learning_rate=v)),
    ("max_norm", lambda v: libmoe.clip_grad_norm(P, v)),
    ("decay", lambda v: libmoe.AdaptiveClip(v)),
    ("epsilon", lambda v: blocks.norm(X, normal(8), epsilon=v)),
]


@pytest.mark.parametrize(("name", "call"), FLOATS)
@pytest.mark.parametrize("wrong", ["0.1", None, True, [0.1], 1j, 10**400, np.zeros(2)])
def test_numbers(name: str, call: Callable[[Any], object], wrong: Any) -> None:
    refused(
        lambda: call(wrong),
        f"^{name}",
        ValueError if isinstance(wrong, int) and wrong > 1 else TypeError,
    )


FLAGS: list[tuple[str, Callable[[Any], object]]] = [
    ("training", lambda v: layer().forward(X, training=v)),
    ("training", lambda v: model().forward(IDS, training=v)),
    ("selection_bias", lambda v: layer(selection_bias=v)),
    ("router_bias", lambda v: layer(router_bias=v)),
    ("router_normalize", lambda v: layer(router_normalize=v if not isinstance(v, str) else 2)),
    ("causal", lambda v: model(causal=v)),
    ("tied_output", lambda v: model(tied_output=v)),
    ("unallocated_state", lambda v: libmoe.AdamW(P, unallocated_state=v)),
]


@pytest.mark.parametrize(("name", "call"), FLAGS)
@pytest.mark.parametrize("wrong", ["false", "yes", 2, 0.5, []])
def test_flags(name: str, call: Callable[[Any], object], wrong: Any) -> None:
    refused(lambda: call(wrong), f"^{name}: expected True or False")


def test_flags_may_be_numpys_or_0_and_1() -> None:
    for yes in (True, np.True_, 1, np.int64(1)):
        assert layer(selection_bias=yes).buffers
    for no in (False, np.False_, 0):
        assert not layer(selection_bias=no).buffers


# ------------------------------------------------------------------------------------------------------------
# Bytes
# ------------------------------------------------------------------------------------------------------------

SIZES = [
    (0, 0),
    (1000, 1000),
    ("1000", 1000),
    ("1000b", 1000),
    ("1000 bytes", 1000),
    ("1GB", 10**9),
    ("1 gb", 10**9),
    ("1GiB", 2**30),
    ("512 MiB", 2**29),
    ("512MB", 512 * 10**6),
    ("1.5g", 3 * 2**29),
    ("64k", 2**16),
    ("64K", 2**16),
    ("2t", 2**41),
    (" 0.5 MiB ", 2**19),
    (".5 MiB", 2**19),
    (1e9, 10**9),
    (np.int64(7), 7),
    ("9007199254740993", 9007199254740993),
]


@pytest.mark.parametrize(("given", "size"), SIZES)
def test_bytes(given: Any, size: int) -> None:
    assert byte_count("memory_limit", given) == size


PLACE = os.path.join(tempfile.mkdtemp(), "x")  # a file of these tests alone
TAKERS: list[tuple[str, Callable[[Any], object]]] = [
    ("memory_limit", lambda v: libmoe.Context(memory_limit=v)),
    ("memory_limit", lambda v: layer().forward(X, memory_limit=v)),
    ("memory_limit", lambda v: layer().plan(5, memory_limit=v)),
    ("memory_limit", lambda v: model().forward(IDS, memory_limit=v)),
    ("memory_limit", lambda v: model().plan(1, 3, memory_limit=v)),
    ("max_shard_size", lambda v: libmoe.save(f"{PLACE}.safetensors", {"a": X}, max_shard_size=v)),
    ("max_shard_size", lambda v: layer().save(f"{PLACE}.safetensors", max_shard_size=v)),
    ("size", lambda v: libmoe.MappedFile("/nowhere/x", v)),
    ("resident_limit", lambda v: layer().offload(PLACE, resident_limit=v)),
]


@pytest.mark.parametrize(("name", "call"), TAKERS)
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ("much", ValueError),
        ("", ValueError),
        ("1 XB", ValueError),
        ("-1GB", ValueError),
        ("1e9", ValueError),
        ("5 i", ValueError),
        (-1, ValueError),
        (2**64, ValueError),
        ("99999999 TiB", ValueError),
        (1.5, TypeError),
        (float("nan"), TypeError),
        (float("inf"), TypeError),
        ([1], TypeError),
        (True, TypeError),
    ],
)
def test_wrong_bytes(name: str, call: Callable[[Any], object], wrong: Any, kind: type[Exception]) -> None:
    if name == "resident_limit":
        libmoe.save(PLACE, {"a": X})
    refused(lambda: call(wrong), f"^{name}", kind)


def test_a_limit_in_words_is_the_limit_in_bytes() -> None:
    mine, x = layer(), normal(500, 8)
    assert mine.plan(5000, memory_limit="2.5 MiB") == mine.plan(5000, memory_limit=5 * 2**19)
    np.testing.assert_array_equal(mine.forward(x, memory_limit="1GB").y, mine.forward(x).y)
    refused(lambda: mine.plan(5000, memory_limit="1k"), "memory_limit", ValueError)


@pytest.mark.parametrize(("given", "mebibytes"), [("512", 512), ("1GiB", 1024), ("1.5g", 1536), ("1GB", 953)])
def test_limits_of_runs(given: str, mebibytes: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers alone are MiB there, as they were."""
    assert Settings(memory_limit=given).memory_limit == mebibytes  # type: ignore[arg-type]
    for wrong in ("much", "1 XB", "-1GB"):
        with pytest.raises(UserError, match="memory_limit = .* is no size"):
            Settings(memory_limit=wrong)  # type: ignore[arg-type]
        with pytest.raises(SystemExit):
            main(["bench", f"--memory-limit={wrong}"])
        assert f"memory_limit = '{wrong}' is no size" in capsys.readouterr().err


def test_shapes_are_errors_of_the_package() -> None:
    refused(lambda: layer()(normal(3, 7)), r"x: expected shape \[..., 8\], got \(3, 7\)", ValueError)
    refused(lambda: model().forward(IDS[0]), r"tokens: expected shape \[B, S\]", ValueError)
    refused(lambda: layer()(normal(3, 16)[:, ::2]), "x: expected a C-contiguous array", ValueError)
    fixed = normal(3, 8)
    fixed.flags.writeable = False
    refused(
        lambda: layer().forward(X, out=fixed), "out: expected an array that may be written to", ValueError
    )
    layer()(fixed)  # which is only read


def test_every_exception_is_what_one_expects() -> None:
    assert issubclass(libmoe.ArgumentTypeError, (libmoe.InvalidArgumentError, TypeError))
    assert issubclass(libmoe.ArgumentTypeError, TypeError)
    assert issubclass(libmoe.ArgumentTypeError, ValueError)
    assert "TypeError" not in {name for name in vars(sys.modules["libmoe"])}


def test_unknown_names_are_answered_by_what_was_called() -> None:
    """Not by the part of the package that has the method."""
    net = model()
    for call, owner in (
        (layer().forward, "Layer.forward"),
        (layer().save, "Layer.save"),
        (layer().bind, "Layer.bind"),
        (layer().plan, "Layer.plan"),
        (net.generate, "Model.generate"),
        (libmoe.Model.from_pretrained, "Model.from_pretrained"),
        (net.bind, "Model.bind"),
    ):
        arguments = (5,) if owner == "Layer.plan" else ()
        refused(lambda: call(*arguments, nothing_of_this_name=1), f"^{owner}: unknown names")  # noqa: B023
    refused(lambda: libmoe.EncoderLayer(8, 2, n_head=1), "^EncoderLayer: unknown names")
