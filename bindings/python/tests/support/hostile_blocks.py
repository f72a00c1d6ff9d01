"""The functions of blocks, and good arguments for them; ``hostile.py`` makes them bad."""

from __future__ import annotations

from typing import Any

from hostile import Function, room
from libmoe._native import abi


def block_functions(context: int) -> list[Function]:
    """Return the functions, with arguments that are small; ``context`` is the address of one."""

    def attention() -> Any:
        return abi.moe_attention_config(
            n_sequences=2, n_queries=3, n_heads=2, n_kv_heads=1, head_size=4, causal=1, dropout=0.1
        )

    def gradients() -> Any:
        return abi.moe_attention_gradients(doutput=room(), dquery=room(), dkey=room(), dvalue=room())

    def norm() -> Any:
        return abi.moe_norm_config(n_tokens=3, hidden_size=4, epsilon=1e-5)

    def product() -> Any:
        return abi.moe_linear_config(n_tokens=3, inputs=4, outputs=5)

    def rotary() -> Any:
        return abi.moe_rotary_config(
            n_tokens=3, n_heads=2, head_size=4, positions=room(), sequence_length=3, theta=100.0
        )

    def embedding() -> Any:
        return abi.moe_embedding_config(
            n_tokens=4, hidden_size=3, n_rows=5, n_positions=4, sequence_length=2, first_position=1
        )

    def loss() -> Any:
        return abi.moe_cross_entropy_config(
            n_tokens=3, hidden_size=4, vocabulary_size=5, ignore_index=-100, label_smoothing=0.1, d_loss=1.0
        )

    return [
        Function("moe_norm_forward", lambda: [context, norm(), *(room() for _ in range(5))]),
        Function("moe_norm_backward", lambda: [context, norm(), *(room() for _ in range(7))]),
        Function("moe_linear_forward", lambda: [context, product(), *(room() for _ in range(4))]),
        Function("moe_linear_backward", lambda: [context, product(), *(room() for _ in range(6))]),
        Function("moe_rotate", lambda: [context, rotary(), room()]),
        Function("moe_attention_forward", lambda: [context, attention(), *(room() for _ in range(5))]),
        Function(
            "moe_attention_backward",
            lambda: [context, attention(), *(room() for _ in range(5)), gradients()],
        ),
        Function("moe_embedding_forward", lambda: [context, embedding(), *(room() for _ in range(4))]),
        Function("moe_embedding_backward", lambda: [context, embedding(), *(room() for _ in range(4))]),
        Function("moe_cross_entropy", lambda: [context, loss(), *(room() for _ in range(8))]),
        Function(
            "moe_sample",
            lambda: [
                context,
                room(),
                5,
                abi.moe_sampling(temperature=1.0, top_k=3, top_p=0.9),
                7,
                room(),
            ],
        ),  # fmt: skip
    ]
