"""The weights of a layer: their sizes, their forms, and what moves them without gradients."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._keywords import keywords
from ._layer_files import LayerFiles
from ._native import abi, check
from ._native.library import Handle, lib
from ._tensors import Coefficients, _memory
from .errors import InvalidArgumentError
from .parameter import Parameter
from .words import Prepared


@keywords
class Weights(LayerFiles):
    """What :class:`Layer` has of parameters; it has a layer's handle."""

    _prefix = "moe_layer"

    def __init__(self, handle: Handle, config: abi.moe_layer_config) -> None:
        super().__init__(handle, trainable=not config.inference_only)
        self._config = config

    # Read-only: the memory that a call reads and writes follows from them.
    @property
    def hidden_size(self) -> int:
        """H, the features of a token."""
        return int(self._config.hidden_size)

    @property
    def intermediate_size(self) -> int:
        """I, the experts' width; of linear experts what was given."""
        return int(self._config.intermediate_size)

    @property
    def n_experts(self) -> int:
        """E, the experts there are."""
        return int(self._config.n_experts)

    @property
    def top_k(self) -> int:
        """K, the experts that each token uses."""
        return int(self._config.top_k)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by name, their arrays being the layer's memory itself.

        Those that the configuration has of::

            router.weight [E, H]           router.bias [E]
            experts.gate.weight [E, I, H]  experts.gate.bias [E, I]    (gated experts)
            experts.up.weight [E, I, H]    experts.up.bias [E, I]
            experts.down.weight [E, H, I]  experts.down.bias [E, H]
            experts.weight [E, H, H]       experts.bias [E, H]         (linear experts, in place of the above)
            experts.0.gate.weight ...      experts.1.constant [n, H]   (by group, with expert_groups)
            shared.gate.weight [S, I, H] ...                           (shared experts, named likewise)
            router.expert_scale [E]
            router.coarse.weight [G, H]    router.coarse.bias [G]      (hierarchical)
            router.noise.weight [E, H]                                 (learned noise)
            router.norm.weight [H]         router.norm.bias [H]        (router_batch_norm)
            shared.router.weight [S, H]                                (shared_gate "sigmoid")
            shared.router.weight [2, H]    shared.router.bias [2]      (shared_gate "residual")
            output.bias [H]

        The layer owns that memory; the arrays keep it alive, also after the layer is closed.
        """
        return super().parameters

    @property
    def buffers(self) -> dict[str, NDArray[Any]]:
        """What belongs to the layer's state and is not trained by gradients, by name.

        Those that the configuration has of::

            router.selection_bias [E]      moved by update_selection_bias
            router.norm.running_mean [H]   router.norm.running_var [H], moved by forward in training
            router.active_experts [1]      the warm-up's, likewise

        The arrays are the layer's memory itself.
        """
        return super().buffers

    def initialize(self) -> None:
        """Give all parameters that have memory a new layer's values, gradients 0: after :meth:`bind`."""
        lib.moe_layer_initialize(self._handle)

    def prepare(self, prepared: Prepared = "f32") -> None:
        """Pack the experts' weights once for the forward calls to come, or let go of the packed copy.

        Few tokens gain most: their time is that of reading the weights.  The copy takes 4 bytes for each
        weight in float32, 2 in bfloat16, 0.52 to 1.06 in few bits (docs/low_bits.md), and does not follow
        the weights: after a change prepare again.

        Parameters
        ----------
        prepared : {"none", "f32", "bf16", "int8", "int8_a8", "int4", "int4_a8", "int4_g64", ...}
            ``"f32"``: forward gives the same bits.  ``"bf16"``: forward computes as a layer with
            ``weight_dtype="bf16"`` does, with half the memory to read; the only form for such a layer, for
            the others without a tape only.  ``"int8"``, ``"int4"``: few bits; forward gives the bits of a
            float32 layer with these weights; with ``_a8`` tokens are int8, too, and with ``_a16`` bfloat16,
            without a tape.  What is packed so is frozen, and backward gives all other gradients of that
            layer.  ``"none"``: no copy.

        Raises
        ------
        InvalidArgumentError
            ``"f32"`` for weights that are bfloat16; ``"q4_k"`` and ``"q6_k"`` of matrices whose inputs are no
            multiple of 256.
        OutOfMemoryError
            There is no memory for the copy; the layer is as it was.
        NotFiniteError
            Few bits of a weight that is not finite, or too large for its scale.
        BadStateError
            The layer is closed.  :meth:`forward` raises it too, when weights that it uses have changed since:
            it compares 16 values of each matrix.
        """
        lib.moe_layer_prepare(self._handle, check.choice("prepared", prepared, abi.PREPARED))
        _memory(self._handle).binds += 1  # what is frozen has changed

    def update_selection_bias(
        self, tokens_per_expert: NDArray[np.int64], rate: float = 1e-3, *, zero_sum: bool = False
    ) -> None:
        """Balance without a loss: favour experts with fewer tokens than the mean in the choices to come.

        ``bias += d`` with ``d = rate * sign(mean(n) - n)`` (arXiv:2412.19437), or ``d - mean(d)``.

        Parameters
        ----------
        tokens_per_expert : ndarray of int64, [E]
            n, the reports' counts since the last update added up; once per optimiser step.
        rate : float
            At least 0.
        zero_sum : bool
            Whether the biases' mean stays as it is.

        Raises
        ------
        BadStateError
            The layer has no selection_bias, or is closed.
        InvalidArgumentError
            A count or the rate is negative.
        """
        counts = check.integers("tokens_per_expert", tokens_per_expert, np.int64)
        if counts.shape != (self.n_experts,):
            raise InvalidArgumentError(
                f"tokens_per_expert: expected shape ({self.n_experts},), got {counts.shape}"
            )
        rate = check.number("rate", rate)
        lib.moe_layer_update_selection_bias(
            self._handle, counts.ctypes.data, rate, check.flag("zero_sum", zero_sum)
        )

    def set_loss_coefficient(self, term: int, coefficient: float) -> None:
        """Set the coefficient of one of the layer's ``losses``, for the calls of forward to come.

        Sparse routing wants it (arXiv:2412.14711): after each step times 1.2 where tokens used more experts
        on average than wanted, divided by 1.2 where they used fewer.  Files do not keep it; copies do.

        Parameters
        ----------
        term : int
            Its number in the list, from 0.
        coefficient : float
            At least 0.

        Raises
        ------
        BadStateError
            The layer is closed.
        InvalidArgumentError
            There is no such loss, or the coefficient is negative or not finite.
        """
        term, coefficient = (
            check.integer("term", term, ctypes.c_int32),
            check.number("coefficient", coefficient),
        )
        lib.moe_layer_set_loss_coefficient(self._handle, term, coefficient)
        self._handle.keep.setdefault("coefficients", {})[term] = coefficient

    def _coefficients(self) -> Coefficients:
        return {0: dict(self._handle.keep.get("coefficients", {}))}

    def _set_coefficients(self, coefficients: Coefficients) -> None:
        for term, coefficient in coefficients[0].items():
            self.set_loss_coefficient(term, coefficient)
