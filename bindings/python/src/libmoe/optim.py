"""Optimisers and gradient clipping over any parameters: a layer's, and the user's own."""

from __future__ import annotations

import ctypes
from typing import Any

from . import _abi
from ._library import Handle, Native, lib
from .context import Context, default_context
from .parameter import Parameters, tensors


class Optimizer(Native):
    """What :class:`AdamW` and :class:`SGD` share.  It holds the parameters, and with them their memory."""

    def __init__(
        self, create: Any, parameters: Parameters, config: Any, learning_rate: float, context: Context | None
    ) -> None:
        self._parameters, self._tensors = tensors(parameters)
        self._learning_rate = float(learning_rate)
        handle = (context or default_context())._handle
        self._open_handle = Handle(
            create,
            lib.moe_optimizer_free,
            handle,
            ctypes.byref(config),
            self._tensors,
            len(self._tensors),
            keep={"context": handle},
        )

    def step(self) -> None:
        """Change every parameter by its gradient; the gradients stay as they are."""
        lib.moe_optimizer_step(self._handle, self._tensors, len(self._tensors))

    @property
    def learning_rate(self) -> float:
        """Learning rate of the steps to come; assign to it to follow a schedule."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        lib.moe_optimizer_set_learning_rate(self._handle, value)
        self._learning_rate = float(value)


class AdamW(Optimizer):
    """AdamW (arXiv:1711.05101), as ``torch.optim.AdamW``.

    With gradient g at step t, and decay decoupled from it::

        p -= learning_rate * weight_decay * p
        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        p -= learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    Parameters
    ----------
    parameters : iterable of Parameter, or layer.parameters
        What is optimised.
    learning_rate, epsilon, weight_decay : float
        As in the equations.
    betas : (float, float)
        beta1 and beta2, each in [0, 1).
    context : Context, optional
        Whose threads compute; by default the shared one.
    """

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        context: Context | None = None,
    ) -> None:
        config = _abi.moe_adamw_config(
            learning_rate=learning_rate,
            beta1=betas[0],
            beta2=betas[1],
            epsilon=epsilon,
            weight_decay=weight_decay,
        )
        super().__init__(lib.moe_adamw_create, parameters, config, learning_rate, context)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum and decoupled weight decay.

    With gradient g::

        p -= learning_rate * weight_decay * p
        v = momentum v + g
        p -= learning_rate * v

    (``torch.optim.SGD`` adds ``weight_decay * p`` to the gradient instead; without decay the two agree.)

    Parameters
    ----------
    parameters : iterable of Parameter, or layer.parameters
        What is optimised.
    learning_rate, momentum, weight_decay : float
        As in the equations; momentum in [0, 1).
    context : Context, optional
        Whose threads compute; by default the shared one.
    """

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        context: Context | None = None,
    ) -> None:
        config = _abi.moe_sgd_config(
            learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay
        )
        super().__init__(lib.moe_sgd_create, parameters, config, learning_rate, context)


def clip_grad_norm(parameters: Parameters, max_norm: float, *, context: Context | None = None) -> float:
    """Scale all gradients together so that their common 2-norm is at most ``max_norm``.

    Every gradient is multiplied by min(1, max_norm / (norm + 1e-6)), as ``torch.nn.utils.clip_grad_norm_``
    does.

    Parameters
    ----------
    parameters : iterable of Parameter, or layer.parameters
        Whose gradients are scaled, in place.
    max_norm : float
        Above 0; ``math.inf`` only measures.
    context : Context, optional
        Whose threads compute; by default the shared one.

    Returns
    -------
    float
        The norm before scaling.
    """
    listed, described = tensors(parameters)
    norm = ctypes.c_double()
    handle = (context or default_context())._handle
    lib.moe_clip_grad_norm(handle, described, len(listed), max_norm, ctypes.byref(norm))
    return norm.value
