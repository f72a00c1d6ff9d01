"""Optimisers and gradient clipping over any parameters: a layer's, and the user's own."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from . import words
from ._keywords import keywords, require_known
from ._native import abi, check, fields
from ._native.check import Array
from ._native.library import Handle, Native, lib
from ._native.struct import Sized
from .adaptive_clip import AdaptiveClip
from .context import Context, handle_of
from .errors import ArgumentTypeError, InvalidArgumentError
from .parameter import Parameter, Parameters, require_apart, tensor, tensors, trained


class _Own(TypedDict, total=False):
    learning_rate: float
    weight_decay: float


class Group(_Own):
    """Some of an optimiser's parameters, with a learning rate, a weight decay or both of their own."""

    parameters: Parameters


@keywords
class Optimizer(Native):
    """What the optimisers share.

    One holds the parameters, and with them their memory, also where :meth:`Layer.bind` has moved it since;
    its own memory is the moments.  A step wants the optimiser and the parameters for itself: no other thread
    may use them meanwhile.

    Parameters
    ----------
    parameters : iterable of Parameter, or layer.parameters
        What is optimised; what is frozen is left out.
    learning_rate, weight_decay : float
        At least 0.  Decay is decoupled from the gradient.
    groups : sequence of dict
        ``{"parameters": ..., "learning_rate": ..., "weight_decay": ...}``: what some of the parameters have
        in place of the numbers above, as ``torch.optim``'s groups; either number may be missing.  Those in
        no group have the numbers above.  ``[{"parameters": biases, "weight_decay": 0.0}]`` is usual.
    state_dtype : {"f32", "bf16"}
        Of the moments, 4 bytes for each element and moment, or 2. With ``"bf16"`` they are stepped in float32
        and rounded up or down by chance, with the mean right.
    stochastic_rounding : bool
        Whether bfloat16 parameters have no copy in float32, which takes 4 bytes for each element: they are
        stepped where they are, and rounded up or down by chance, so that steps add up in the mean which are
        smaller than bfloat16 resolves.
    seed : int
        Of chance; give each optimiser another one.
    unallocated_state : bool
        Whether the state's memory is the caller's: see :meth:`bind_state`.
    context : Context, optional
        Whose threads compute; by default the shared one.

    Raises
    ------
    InvalidArgumentError
        A number is out of range, a parameter or a part of one is given twice, or a group's parameter is not
        among the parameters or in two groups.
    BadStateError
        A parameter has no gradient: its layer is inference_only.
    OutOfMemoryError
        There is no memory for the moments.
    """

    _rule: ClassVar[str]  # what training states call it
    _momentum_field: ClassVar[str] = "momentum"

    def __init__(self, create: Any, config: type[Sized], options: dict[str, Any]) -> None:
        given = {name: options[name] for name in fields.types(config)}
        filled = fields.filled(config, **given)
        self._parameters, self._tensors = tensors(trained(options["parameters"]), gradients=False)
        if not self._parameters:
            raise InvalidArgumentError(
                "parameters: there is none to train; use layer.parameters, not all of them frozen"
            )
        require_apart(self._parameters, values=True)
        self._binds = [parameter.binds for parameter in self._parameters]
        self._learning_rate: float = filled.learning_rate
        self._momentum: float = getattr(filled, self._momentum_field)
        handle = handle_of(options["context"])
        self._open_handle = Handle(
            create,
            lib.moe_optimizer_free,
            handle,
            ctypes.byref(filled),
            self._tensors,
            len(self._tensors),
            keep={"context": handle},
        )
        self._set_groups(options["groups"], filled.weight_decay)

    def _set_groups(self, groups: Sequence[Group], weight_decay: float) -> None:
        places = {_memory(parameter): index for index, parameter in enumerate(self._parameters)}
        seen: dict[int, int] = {}
        known = ("parameters", "learning_rate", "weight_decay")
        for n, group in enumerate(check.listed("groups", groups, "a list of dicts: [{'parameters': ...}]")):
            check.mapping(f"groups[{n}]", group, "a dict: {'parameters': ...}")
            require_known(f"groups[{n}]", group, known)
            if "parameters" not in group:
                raise InvalidArgumentError(f"groups[{n}]: parameters is missing")
            indices = []
            for parameter in trained(group["parameters"], f"groups[{n}]: parameters"):
                index = places.get(_memory(parameter))
                if index is None:
                    raise InvalidArgumentError(f"groups[{n}]: {parameter.name!r} is not among the parameters")
                if seen.setdefault(index, n) != n:
                    raise InvalidArgumentError(
                        f"groups[{n}]: {parameter.name!r} is in groups[{seen[index]}] as well"
                    )
                indices.append(index)
            scale = 1.0
            if "learning_rate" in group:
                own = _at_least_0(f"groups[{n}]: learning_rate", group["learning_rate"])
                if self._learning_rate == 0:
                    raise InvalidArgumentError(
                        f"groups[{n}]: learning_rate = {own:g} is no multiple of the optimiser's, which is 0"
                    )
                scale = own / self._learning_rate
            decay = _at_least_0(f"groups[{n}]: weight_decay", group.get("weight_decay", weight_decay))
            chosen = np.array(indices, np.int64)
            lib.moe_optimizer_set_group(self._handle, chosen.ctypes.data, len(chosen), scale, decay)

    def _followed(self) -> tuple[Any, int]:
        """Return the tensors where they are now: ``bind`` may have moved some."""
        binds = [parameter.binds for parameter in self._parameters]
        if binds != self._binds:
            require_apart(self._parameters, values=True)
            for index, parameter in enumerate(self._parameters):
                self._tensors[index] = tensor(parameter, gradients=False)
            self._binds = binds
        return self._tensors, len(self._tensors)

    def _for_backward_of(self, parameters: Iterable[Parameter], clip_factor: float) -> float:
        """Return the factor of gradients of a backward that steps; refuse another owner's parameters.

        As many tensors of the same sizes and types are all that the library sees of them.
        """
        factor = check.number("clip_factor", clip_factor)
        if factor and not ctypes.c_float(factor).value:
            raise InvalidArgumentError(f"clip_factor = {factor} is 0 in float32, and 0 means 1")
        owned = [parameter for parameter in parameters if not parameter.frozen]
        pairs = list(zip(self._parameters, owned))
        alike = [
            (own.data.size, own.data.dtype) == (other.data.size, other.data.dtype) for own, other in pairs
        ]
        if len(owned) == len(self._parameters) and all(alike):
            for own, other in pairs:
                if _memory(own) != _memory(other):
                    raise InvalidArgumentError(
                        f"optimizer: was made from other parameters: its {own.name} is not the {other.name} "
                        "here"
                    )
        return factor

    _instead = "use libmoe.save_training and load_training for its state"

    if not TYPE_CHECKING:  # where it would hide what is misspelt

        def __getattr__(self, name: str) -> Any:
            """Say whose the gradients are to who looks for them here."""
            cure = "; use layer.zero_grad() or model.zero_grad()" if name == "zero_grad" else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{cure}")

    def _told(self) -> str:
        size = sum(parameter.data.size for parameter in self._parameters if parameter._data is not None)
        return (
            f"{len(self._parameters)} parameters of {size:,} elements, learning_rate={self._learning_rate:g}"
        )

    @property
    def state_size(self) -> int:
        """Bytes of its state: moments, and float32 copies of parameters of other types."""
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
            raise ArgumentTypeError(f"memory: expected a numpy array, got {type(memory).__name__}")
        check.contiguous("memory", memory)
        if not memory.flags.writeable:
            raise InvalidArgumentError("memory: expected a writable array")
        lib.moe_optimizer_bind_state(self._handle, memory.ctypes.data, memory.nbytes)
        self._handle.keep["state"] = memory

    @overload
    def step(self) -> None: ...

    @overload
    def step(self, *, max_norm: float | AdaptiveClip) -> float: ...

    def step(self, *, max_norm: float | AdaptiveClip | None = None) -> float | None:
        """Change every parameter by its gradient; the gradients stay as they are.

        Parameters
        ----------
        max_norm : float or AdaptiveClip, optional
            Gradients count times min(1, max_norm / (norm + 1e-6)), as after :func:`clip_grad_norm`, and take
            one pass over memory less.  Above 0; ``math.inf`` only measures.  An :class:`AdaptiveClip` takes
            note of the norm and says what it may be.

        Returns
        -------
        float or None
            The common 2-norm of all gradients if ``max_norm`` is given.

        Raises
        ------
        BadStateError
            The optimiser is closed.
        InvalidArgumentError
            ``max_norm`` is not above 0; or a parameter has no memory for its gradient: :meth:`Layer.backward`
            makes the steps of such a layer.
        NotFiniteError
            ``max_norm`` is given and some gradient is not finite; the text names the parameter, and nothing
            has changed.
        """
        if max_norm is None:
            lib.moe_optimizer_step(self._handle, *self._followed())
            return None
        norm = ctypes.c_double()
        arguments = (self._handle, *self._followed())
        if isinstance(max_norm, AdaptiveClip):
            lib.moe_optimizer_step_adaptive(*arguments, ctypes.byref(max_norm._state), ctypes.byref(norm))
        else:
            most = check.number("max_norm", max_norm)
            lib.moe_optimizer_step_clipped(*arguments, most, ctypes.byref(norm))
        return norm.value

    @property
    def learning_rate(self) -> float:
        """Learning rate of the steps to come, at least 0; assign to it to follow a schedule.

        Groups with a learning rate of their own go along: they keep their ratio to it.
        """
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        value = check.number("learning_rate", value)
        lib.moe_optimizer_set_learning_rate(self._handle, value)
        self._learning_rate = value

    @property
    def momentum(self) -> float:
        """AdamW's beta1, or others' momentum, of the steps to come, in [0, 1); assign to it to cycle it."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float) -> None:
        value = check.number("momentum", value)
        lib.moe_optimizer_set_momentum(self._handle, value)
        self._momentum = value


@keywords
class AdamW(Optimizer):
    """AdamW (arXiv:1711.05101), as ``torch.optim.AdamW``.

    With gradient g at step t, and decay decoupled from it::

        p -= learning_rate * weight_decay * p
        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        p -= learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    Parameters
    ----------
    learning_rate, epsilon, weight_decay : float
        As in the equations; epsilon above 0, the others at least 0.
    betas : (float, float)
        beta1 and beta2, each in [0, 1).
    parameters, groups, state_dtype, stochastic_rounding, seed, unallocated_state, context
        As of :class:`Optimizer`, which also says what is raised.
    """

    _rule = "adamw"
    _momentum_field = "beta1"

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        groups: Sequence[Group] = (),
        state_dtype: words.StateDType = "f32",
        stochastic_rounding: bool = False,
        seed: int = 0,
        unallocated_state: bool = False,
        context: Context | None = None,
    ) -> None:
        options: dict[str, Any] = dict(locals())  # all arguments by name, as long as nothing else is there
        options["beta1"], options["beta2"] = _pair(betas)
        super().__init__(lib.moe_adamw_create, abi.moe_adamw_config, options)


@keywords
class SGD(Optimizer):
    """Stochastic gradient descent with momentum and decoupled weight decay.

    With gradient g::

        p -= learning_rate * weight_decay * p
        v = momentum v + g
        p -= learning_rate * v

    (``torch.optim.SGD`` adds ``weight_decay * p`` to the gradient instead; without decay the two agree.)

    Parameters
    ----------
    learning_rate, momentum, weight_decay : float
        As in the equations; momentum in [0, 1), the others at least 0.
    parameters, groups, state_dtype, stochastic_rounding, seed, unallocated_state, context
        As of :class:`Optimizer`, which also says what is raised.
    """

    _rule = "sgd"

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        groups: Sequence[Group] = (),
        state_dtype: words.StateDType = "f32",
        stochastic_rounding: bool = False,
        seed: int = 0,
        unallocated_state: bool = False,
        context: Context | None = None,
    ) -> None:
        options: dict[str, Any] = dict(locals())  # all arguments by name, as long as nothing else is there
        super().__init__(lib.moe_sgd_create, abi.moe_sgd_config, options)


@keywords
class Muon(Optimizer):
    """Muon (Jordan et al. 2024, arXiv:2502.16982) for matrices, AdamW for all else.

    Of each matrix, of r rows and c columns, with gradient g::

        p -= learning_rate * weight_decay * p
        v = momentum v + g
        p -= learning_rate * 0.2 sqrt(max(r, c)) * O(g + momentum v)

    O brings all singular values near 1, by five steps of Newton and Schulz's iteration.  Updates are as large
    as those of :class:`AdamW`, and so are usual learning rates.  A parameter of three dimensions is a matrix
    for each expert.

    Parameters
    ----------
    learning_rate, momentum, weight_decay : float
        As in the equations; momentum in [0, 1), the others at least 0.
    adamw : iterable of Parameter, optional
        Those of the parameters that are AdamW's.  By default all of one dimension, biases and constants of
        experts, and both ends of a model: ``embed.weight``, ``positions.weight`` and ``output.weight``.
    betas, epsilon
        As of :class:`AdamW`, for those.
    parameters, groups, state_dtype, stochastic_rounding, seed, unallocated_state, context
        As of :class:`Optimizer`, which also says what is raised.
    """

    _rule = "muon"

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        *,
        adamw: Parameters | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-8,
        groups: Sequence[Group] = (),
        state_dtype: words.StateDType = "f32",
        stochastic_rounding: bool = False,
        seed: int = 0,
        unallocated_state: bool = False,
        context: Context | None = None,
    ) -> None:
        options: dict[str, Any] = dict(locals())  # all arguments by name, as long as nothing else is there
        options["beta1"], options["beta2"] = _pair(betas)
        options["parameters"] = listed = trained(parameters)
        chosen = None if adamw is None else _chosen("adamw", trained(adamw), listed)
        options["by_adamw"] = None if chosen is None else chosen.ctypes.data
        super().__init__(lib.moe_muon_create, abi.moe_muon_config, options)


def _chosen(name: str, some: list[Parameter], of: list[Parameter]) -> NDArray[np.uint8]:
    """Return 1 for each of the parameters that is among some, and 0 for the others."""
    places = {_memory(parameter): index for index, parameter in enumerate(of)}
    chosen = np.zeros(len(of), np.uint8)
    for parameter in some:
        index = places.get(_memory(parameter))
        if index is None:
            raise InvalidArgumentError(f"{name}: {parameter.name!r} is not among the parameters")
        chosen[index] = 1
    return chosen


def _at_least_0(name: str, value: Any) -> float:
    number = check.number(name, value)
    if not 0 <= number < math.inf:
        raise InvalidArgumentError(f"{name} = {number:g} is not a number of at least 0")
    return number


def _pair(betas: Any) -> tuple[float, float]:
    """Return beta1 and beta2."""
    both = check.listed("betas", betas, "a pair: (0.9, 0.999)")
    if len(both) != 2:
        raise InvalidArgumentError(f"betas: expected two numbers, got {len(both)}; use (0.9, 0.999)")
    return check.number("betas[0]", both[0]), check.number("betas[1]", both[1])


def _memory(parameter: Parameter) -> tuple[int, tuple[int, ...]]:
    """Return what tells parameters apart: a layer makes new objects each time it is asked for them."""
    return parameter.data.ctypes.data, parameter.data.shape


@keywords
def clip_grad_norm(parameters: Parameters, max_norm: float, *, context: Context | None = None) -> float:
    """Scale all gradients together so that their common 2-norm is at most ``max_norm``.

    Every gradient is multiplied by min(1, max_norm / (norm + 1e-6)), as ``torch.nn.utils.clip_grad_norm_``
    does.

    Parameters
    ----------
    parameters : iterable of Parameter, or layer.parameters
        Whose gradients are scaled, in place; what is frozen is left out.
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
    listed, described = tensors(trained(parameters))
    require_apart(listed, values=False)
    norm = ctypes.c_double()
    handle = handle_of(context)
    most = check.number("max_norm", max_norm)
    lib.moe_clip_grad_norm(handle, described, len(listed), most, ctypes.byref(norm))
    return norm.value
