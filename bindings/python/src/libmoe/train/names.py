"""Names of settings and options that are not known, some of them from elsewhere: what is meant."""

from __future__ import annotations

from collections.abc import Collection

from .._keywords import nearest

_EPOCHS = "epoch epochs n_epochs num_epochs num_train_epochs"
_BATCHES = "batch batch_size bs batchsize micro_batch_size per_device_train_batch_size"
# What others call the parts of a run; those of a model are in libmoe._names.
_THEIRS = {
    "steps": f"{_EPOCHS} max_steps n_steps num_steps iters max_iters num_iters iterations total_steps",
    "sequences": _BATCHES,
    "accumulate": "gradient_accumulation gradient_accumulation_steps grad_accum accumulation_steps",
    "sequence_length": "block_size context context_length context_size ctx n_ctx max_length max_seq_len",
    "hidden_size": "width embedding_size",
    "balance_coef": "balance_loss balance",
    "z_coef": "z_loss",
    "max_norm": "gradient_clipping gradient_clip_val",
    "optimizer": "optim optimiser optimizer_type",
    "schedule": "scheduler lr_scheduler lr_schedule lr_scheduler_type decay_schedule",
    "final_fraction": "final_lr",
    "evaluate_every": "eval_interval eval_every eval_steps save_every save_steps val_every",
    "evaluate_tokens": "eval_tokens eval_iters",
    "log_every": "log_interval logging_steps log_steps",
    "patience": "early_stopping early_stop early_stopping_patience",
    "held_out": "val_split validation_split test_size val_fraction valid validation",
    "threads": "workers num_workers n_threads num_threads jobs j cpus cores n_jobs",
    "memory_limit": "memory max_memory",
    "output": "out o out_dir output_dir output_folder save_dir run run_dir save folder",
    "resume": "resume_from resume_from_checkpoint continue",
    "files": "data dataset input file text train_file data_dir corpus train_data",
    "tokens": "max_new_tokens max_tokens n_tokens num_tokens length n",
    "temperature": "t",
    "weights": "checkpoint ckpt",
    "plots": "plot pictures figures",
    "tokenizer": "tokeniser vocab tokenizer_file tokenizer_path",
}
_OTHERS = {name: ours for ours, names in _THEIRS.items() for name in names.split()}
# Where the thing itself is another.
_REMARKS = {
    **dict.fromkeys(
        _EPOCHS.split(),
        "one epoch is about the bytes to train on / (sequences * sequence_length * accumulate) steps",
    ),
    **dict.fromkeys(_BATCHES.split(), "a step has sequences * accumulate of them"),
    **dict.fromkeys(("min_lr", "final_lr"), "a fraction of learning_rate"),
}


def meant(wrong: str, known: Collection[str]) -> tuple[str, str]:
    """Return which of the known names is likely meant by another, and a remark; empty where none is.

    All names have underscores.
    """
    name = wrong.lower()
    likely = _OTHERS.get(name, "")
    if likely not in known:
        likely = next(iter(nearest(name, known)), "")
    return likely, _REMARKS.get(name, "") if likely else ""
