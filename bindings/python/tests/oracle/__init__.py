"""The layer of moe.h once more, in float64 numpy: what the tests hold libmoe to.

It is written from the equations, shares nothing with the library, and puts the reader before speed. Read the
files in the order of the data flow, each backward under its forward:

    settings, batch         what a layer is, and what one call brings
    linear, activations     maps that are used all over
    router_input, logits    what the gate reads and says, with exploration
    choice, capacity        which experts each token gets
    weights, routing        with what weights; the router as a whole
    experts, mixture        what experts compute, and the weighted sum back to tokens
    shared                  experts that all tokens use, and how they join in
    losses, report          what is said about the routing
    layer                   all of it: forward and backward
    philox                  the random numbers of a training call

    T tokens   H features   E experts   I inner features   K chosen experts of a token   C slots for them
    d_v is the gradient of the objective with respect to v, and has v's shape

Parameters are a dict under libmoe's names. The choice of experts, and with it the counts, is a constant for
the gradient.
"""

from .activations import ACTIVATIONS
from .batch import Draws, Options
from .layer import BUFFERS, Forward, backward, forward
from .losses import LOSSES
from .philox import draw
from .settings import Array, Parameters, Settings

__all__ = [
    "ACTIVATIONS",
    "BUFFERS",
    "LOSSES",
    "Array",
    "Draws",
    "Forward",
    "Options",
    "Parameters",
    "Settings",
    "backward",
    "draw",
    "forward",
]
