"""The same by llama.cpp: llama_generate.py LIBRARY WORK..., LIBRARY being built from llama_read.c."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from generate_work import JOBS, GenerateWork
from protocol import Array, listen


def main() -> None:
    """Answer with the last logits, then run when asked."""
    library, work = ctypes.CDLL(sys.argv[1]), GenerateWork.of(sys.argv[2:])
    for name in ("load", "context_of", "llama_model_get_vocab"):
        getattr(library, name).restype = ctypes.c_void_p
    library.llama_version.restype = ctypes.c_char_p

    def made(name: str, *arguments: Any) -> ctypes.c_void_p:
        pointer = getattr(library, name)(*arguments)
        if not pointer:
            raise RuntimeError(f"{name} gave nothing")
        return ctypes.c_void_p(pointer)

    def load() -> ctypes.c_void_p:
        return made("load", str(work.gguf).encode())

    model = load()
    words = library.llama_vocab_n_tokens(made("llama_model_get_vocab", model))
    before, tokens = work.tokens(words)
    sequences, start, count = JOBS[work.job]
    sizes = (sequences, start + count, work.threads, work.dtype == "f32")
    context = made("context_of", model, *sizes)
    logits = np.empty((sequences, words), np.float32)

    def read(tokens: Any, place: int) -> Array:
        status = library.read_tokens(
            context, tokens.ctypes, sequences, place, tokens.shape[1], ctypes.c_void_p(logits.ctypes.data)
        )
        if status:
            raise RuntimeError(f"llama_decode failed with {status}")
        return logits

    if start:
        read(before, 0)
    facts = {"version": f"llama.cpp {library.llama_version().decode()}"}
    answer = read(tokens, start).copy()
    if work.job == "load":
        library.llama_free(context)
        library.llama_model_free(model)
        listen(work, facts, [answer], lambda: library.llama_model_free(load()))
    else:
        listen(work, facts, [answer], lambda: read(tokens, start))


main()
