"""What stands around the layer in a transformer, as functions over numpy arrays, forward and backward.

Norms and products with a matrix, rotary positions and attention; embeddings, the loss and the next token.
"""

from ._attention import attention, attention_backward, rotate
from ._products import linear, linear_backward, norm, norm_backward
from ._tokens import cross_entropy, embedding, embedding_backward, sample

__all__ = [
    "attention",
    "attention_backward",
    "cross_entropy",
    "embedding",
    "embedding_backward",
    "linear",
    "linear_backward",
    "norm",
    "norm_backward",
    "rotate",
    "sample",
]
