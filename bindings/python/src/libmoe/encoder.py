"""One transformer layer as PyTorch has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import words
from ._keywords import keywords
from ._native import check
from ._native.check import FloatArray
from .context import Context
from .model import Model


@keywords
class EncoderLayer(Model):
    """One transformer layer as ``torch.nn.TransformerEncoderLayer`` has it, with an MLP or with experts.

    Parameters
    ----------
    hidden_size, n_heads, intermediate_size : int
        H, the heads, and the MLP's width (0 with ``moe``).
    moe : mapping, optional
        Experts in place of the MLP, as of :class:`Model`.
    activation : {"relu", "gelu", ...}
        Of the MLP.
    dropout : float
        On attention's weights, within the MLP, and on what both add.
    norm_first : bool
        Whether norms come before attention and ffn.
    norm_epsilon : float
        Above 0.
    bias : bool
        Whether attention and MLP have biases.
    seed, context
        As of :class:`Model`.

    Examples
    --------
    >>> import libmoe, numpy
    >>> layer = libmoe.EncoderLayer(64, 4, 256)
    >>> y = layer(numpy.zeros((2, 8, 64), numpy.float32))
    """

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        intermediate_size: int = 0,
        *,
        moe: Mapping[str, Any] | None = None,
        activation: words.Activation = "relu",
        dropout: float = 0.1,
        norm_first: bool = False,
        norm_epsilon: float = 1e-5,
        bias: bool = True,
        seed: int = 0,
        context: Context | None = None,
    ) -> None:
        made_with = dict(locals())  # all arguments by name, as long as nothing else is there
        super().__init__(
            hidden_size,
            1,
            n_heads,
            moe=moe,
            dense_kind="mlp",
            dense_activation=activation,
            dense_intermediate_size=intermediate_size,
            dense_bias=bias,
            dense_dropout=dropout,
            rope_theta=0.0,
            norm="layer",
            norm_place="pre" if check.flag("norm_first", norm_first) else "post",
            norm_epsilon=norm_epsilon,
            final_norm=False,
            causal=False,
            qkv_bias=bias,
            output_bias=bias,
            dropout=dropout,
            attention_dropout=dropout,
            seed=seed,
            context=context,
        )
        self._remember(EncoderLayer, made_with, context)

    def __call__(self, x: FloatArray, **options: Any) -> FloatArray:
        """Return y [B, S, H] of x [B, S, H], for evaluation; options as of :meth:`Model.forward`."""
        y = self.forward(x, **options).hidden
        assert y is not None
        return y
