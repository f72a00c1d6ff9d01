"""Optimisers and gradient clipping over any parameters: a layer's, and the user's own."""

from __future__ import annotations

import ctypes
from typing import Any, overload

import numpy as np

from . import _abi, _check
from ._check import Array
from ._library import Handle, Native, lib
from .context import Context, default_context
from .parameter import Parameters, tensors


class Optimizer(Native):
    """What :class:`AdamW` and :class:`SGD` share.

    It holds the parameters, and with them their memory; its own memory is the moments.  A step wants the
    optimiser and the parameters for itself: no other thread may use them meanwhile.
    """

    def __init__(self, create: Any, parameters: Parameters, config: Any, context: Context | None) -> None:
        self._parameters, self._tensors = tensors(parameters)
        self._learning_rate: float = config.learning_rate
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

    @property
    def state_size(self) -> int:
        """Bytes of its state: moments, and float32 copies of bfloat16 parameters."""
        size = ctypes.c_size_t()
        lib.moe_optimizer_state_size(self._handle, ctypes.byref(size))
        return size.value

    def bind_state(self, memory: Array) -> None:
        """Use the caller's memory as the state, as it is: zeros are the state of a new optimiser.

        Parameters
        ----------
        memory : ndarray
            Of at least :attr:`state_size` bytes, C-contiguous, aligned to 4 bytes; the optimiser holds it.

        Raises
        ------
        BadStateError
            The optimiser was made without ``unallocated_state=True``.
        InvalidArgumentError
            The memory is too small.
        """
        if not isinstance(memory, np.ndarray):
            raise TypeError(f"memory: expected a numpy array, got {type(memory).__name__}")
        _check.contiguous("memory", memory)
        if not memory.flags.writeable:
            raise ValueError("memory: expected a writable array")
        lib.moe_optimizer_bind_state(self._handle, memory.ctypes.data, memory.nbytes)
        self._handle.keep["state"] = memory

    @overload
    def step(self) -> None: ...

    @overload
    def step(self, *, max_norm: float) -> float: ...

    def step(self, *, max_norm: float | None = None) -> float | None:
        """Change every parameter by its gradient; the gradients stay as they are.

        Parameters
        ----------
        max_norm : float, optional
            Gradients count times min(1, max_norm / (norm + 1e-6)), as after :func:`clip_grad_norm`, and take
            one pass over memory less.  Above 0; ``math.inf`` only measures.

        Returns
        -------
        float or None
            The common 2-norm of all gradients if ``max_norm`` is given.

        Raises
        ------
        BadStateError
            The optimiser is closed.
        InvalidArgumentError
            ``max_norm`` is not above 0.
        NotFiniteError
            ``max_norm`` is given and some gradient is not finite; the text names the parameter, and nothing
            has changed.
        """
        if max_norm is None:
            lib.moe_optimizer_step(self._handle, self._tensors, len(self._tensors))
            return None
        norm = ctypes.c_double()
        most = _check.number("max_norm", max_norm)
        lib.moe_optimizer_step_clipped(
            self._handle, self._tensors, len(self._tensors), most, ctypes.byref(norm)
        )
        return norm.value

    @property
    def learning_rate(self) -> float:
        """Learning rate of the steps to come, at least 0; assign to it to follow a schedule."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        value = _check.number("learning_rate", value)
        lib.moe_optimizer_set_learning_rate(self._handle, value)
        self._learning_rate = value


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
        As in the equations; epsilon above 0, the others at least 0.
    betas : (float, float)
        beta1 and beta2, each in [0, 1).
    unallocated_state : bool
        Whether the state's memory is the caller's: see :meth:`bind_state`.
    context : Context, optional
        Whose threads compute; by default the shared one.

    Raises
    ------
    InvalidArgumentError
        A number is out of range.
    BadStateError
        A parameter has no gradient: its layer is inference_only.
    OutOfMemoryError
        There is no memory for the moments, twice that of the parameters.
    """

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        unallocated_state: bool = False,
        context: Context | None = None,
    ) -> None:
        config = _abi.moe_adamw_config(
            learning_rate=_check.number("learning_rate", learning_rate),
            beta1=_check.number("betas[0]", betas[0]),
            beta2=_check.number("betas[1]", betas[1]),
            epsilon=_check.number("epsilon", epsilon),
            weight_decay=_check.number("weight_decay", weight_decay),
            unallocated_state=bool(unallocated_state),
        )
        super().__init__(lib.moe_adamw_create, parameters, config, context)


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
        As in the equations; momentum in [0, 1), the others at least 0.
    unallocated_state : bool
        Whether the state's memory is the caller's: see :meth:`bind_state`.
    context : Context, optional
        Whose threads compute; by default the shared one.

    Raises
    ------
    InvalidArgumentError
        A number is out of range.
    BadStateError
        A parameter has no gradient: its layer is inference_only.
    OutOfMemoryError
        There is no memory for the velocities.
    """

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        unallocated_state: bool = False,
        context: Context | None = None,
    ) -> None:
        config = _abi.moe_sgd_config(
            learning_rate=_check.number("learning_rate", learning_rate),
            momentum=_check.number("momentum", momentum),
            weight_decay=_check.number("weight_decay", weight_decay),
            unallocated_state=bool(unallocated_state),
        )
        super().__init__(lib.moe_sgd_create, parameters, config, context)


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

    Raises
    ------
    InvalidArgumentError
        ``max_norm`` is not above 0.
    NotFiniteError
        Some gradient is not finite; the text names the parameter, and nothing has been scaled.
    """
    listed, described = tensors(parameters)
    norm = ctypes.c_double()
    handle = (context or default_context())._handle
    most = _check.number("max_norm", max_norm)
    lib.moe_clip_grad_norm(handle, described, len(listed), most, ctypes.byref(norm))
    return norm.value
