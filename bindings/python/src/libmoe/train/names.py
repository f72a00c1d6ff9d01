"""Names that people know from elsewhere, and slips of the pen: what is meant in place of an unknown name."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

_EPOCHS = ("epoch", "epochs", "n_epochs", "num_epochs", "num_train_epochs")
_BATCHES = ("batch", "batch_size", "bs", "batchsize", "micro_batch_size", "per_device_train_batch_size")
# Other common names of settings and options.
_OTHERS: dict[str, str] = {
    **dict.fromkeys(("lr", "max_lr", "base_lr"), "learning_rate"),
    **dict.fromkeys(("max_steps", "n_steps", "num_steps", "iters", "max_iters", "iterations"), "steps"),
    **dict.fromkeys(_EPOCHS, "steps"),
    **dict.fromkeys(_BATCHES, "sequences"),
    **dict.fromkeys(
        ("gradient_accumulation", "gradient_accumulation_steps", "grad_accum", "accumulation_steps"),
        "accumulate",
    ),
    **dict.fromkeys(
        ("seq_len", "seq_length", "block_size", "context", "context_length", "ctx", "max_length", "window"),
        "sequence_length",
    ),
    **dict.fromkeys(
        ("dim", "d_model", "n_embd", "hidden", "width", "embedding_size", "model_dim"), "hidden_size"
    ),
    **dict.fromkeys(("layers", "num_layers", "n_layer", "depth", "num_hidden_layers"), "n_layers"),
    **dict.fromkeys(("heads", "num_heads", "n_head", "num_attention_heads"), "n_heads"),
    **dict.fromkeys(("kv_heads", "num_kv_heads", "num_key_value_heads", "n_kv_head"), "n_kv_heads"),
    **dict.fromkeys(("experts", "num_experts", "num_local_experts", "n_expert"), "n_experts"),
    **dict.fromkeys(("k", "topk", "num_experts_per_tok", "experts_per_token", "n_active_experts"), "top_k"),
    **dict.fromkeys(("d_ff", "ffn_dim", "ffn_size", "dff", "moe_intermediate_size"), "intermediate_size"),
    **dict.fromkeys(("dtype", "precision", "bf16"), "weight_dtype"),
    **dict.fromkeys(("aux_loss_coef", "router_aux_loss_coef", "balance_loss", "aux_coef"), "balance_coef"),
    **dict.fromkeys(("z_loss", "router_z_loss_coef", "z_loss_coef"), "z_coef"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("grad_clip", "clip_grad", "max_grad_norm", "gradient_clipping"), "max_norm"),
    **dict.fromkeys(("warmup", "n_warmup", "num_warmup_steps", "warmup_iters"), "warmup_steps"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "lr_scheduler_type"), "schedule"),
    **dict.fromkeys(("min_lr", "final_lr", "min_lr_ratio"), "final_fraction"),
    **dict.fromkeys(
        ("eval_interval", "eval_every", "eval_steps", "save_every", "save_steps"), "evaluate_every"
    ),
    **dict.fromkeys(("eval_tokens", "eval_iters"), "evaluate_tokens"),
    **dict.fromkeys(("log_interval", "logging_steps"), "log_every"),
    **dict.fromkeys(("early_stopping", "early_stop"), "patience"),
    **dict.fromkeys(("val_split", "validation_split", "test_size", "val_fraction", "valid"), "held_out"),
    **dict.fromkeys(("workers", "num_workers", "n_threads", "num_threads", "jobs", "j", "cpus"), "threads"),
    **dict.fromkeys(("memory", "max_memory"), "memory_limit"),
    **dict.fromkeys(("random_seed", "rng_seed"), "seed"),
    **dict.fromkeys(("out", "o", "out_dir", "output_dir", "save_dir", "run", "run_dir", "save"), "output"),
    **dict.fromkeys(("resume_from", "resume_from_checkpoint", "continue"), "resume"),
    **dict.fromkeys(
        ("data", "dataset", "input", "file", "text", "train_file", "data_dir", "corpus"), "files"
    ),
    **dict.fromkeys(("max_new_tokens", "max_tokens", "n_tokens", "num_tokens", "length", "n"), "tokens"),
    **dict.fromkeys(("temp", "t"), "temperature"),
    **dict.fromkeys(("nucleus", "p"), "top_p"),
    **dict.fromkeys(("checkpoint", "ckpt"), "weights"),
    **dict.fromkeys(("plot", "pictures", "figures"), "plots"),
    **dict.fromkeys(("tokeniser", "vocab", "tokenizer_file", "tokenizer_path"), "tokenizer"),
}
_REMARKS = {
    **dict.fromkeys(
        _EPOCHS, "one epoch is about the bytes to train on / (sequences * sequence_length * accumulate) steps"
    ),
    **dict.fromkeys(_BATCHES, "a step has sequences * accumulate of them"),
    "min_lr": "a fraction of learning_rate",
    "final_lr": "a fraction of learning_rate",
}


def meant(wrong: str, known: Collection[str]) -> tuple[str, str]:
    """Return which of the known names is likely meant by another, and a remark; empty where none is.

    All names have underscores.
    """
    name = wrong.lower()
    likely = _OTHERS.get(name, "")
    if likely in known:
        return likely, _REMARKS.get(name, "")
    return next(iter(get_close_matches(name, known, 1, 0.7)), ""), ""
