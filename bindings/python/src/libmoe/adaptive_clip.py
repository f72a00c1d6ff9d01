"""A clipping threshold that follows the norms of the gradients."""

from __future__ import annotations

import ctypes
from typing import Any

from ._keywords import keywords
from ._native import abi, check, fields
from ._native.library import lib
from ._repr import described
from .errors import InvalidArgumentError


@keywords
class AdaptiveClip:
    """Brings back norms that stand out from those before (ZClip, arXiv:2504.02507).

    It keeps an exponential mean and variance of the norms.  A norm more than ``threshold`` standard
    deviations above the mean is a spike: with z its distance in standard deviations, it is brought back to
    mean + deviation * threshold^2 / z, and counts as mean + deviation * threshold.  The first
    ``warmup_steps`` norms pass.  Balance losses and training itself move the norms, and a fixed threshold
    then clips always or never.

    Give it to the optimiser in place of a number: ``optimizer.step(max_norm=clip)``.

    Parameters
    ----------
    decay : float
        Of mean and variance, in [0, 1).
    threshold : float
        In standard deviations, above 1.
    warmup_steps : int
        At least 1.

    Raises
    ------
    InvalidArgumentError
        A number is out of range.

    Examples
    --------
    >>> import libmoe
    >>> clip = libmoe.AdaptiveClip(warmup_steps=4)
    >>> [clip.max_norm(norm) for norm in (1.0, 3.0, 1.0, 3.0)]
    [inf, inf, inf, inf]
    >>> clip.max_norm(7.0)  # 5 deviations above the mean
    3.25
    """

    def __init__(self, decay: float = 0.97, threshold: float = 2.5, warmup_steps: int = 25) -> None:
        self._state = fields.filled(
            abi.moe_clip_state, decay=decay, threshold=threshold, warmup_steps=warmup_steps
        )
        _check_state(self._state)

    def max_norm(self, norm: float) -> float:
        """Take note of this step's norm, and return what it may be at most.

        Parameters
        ----------
        norm : float
            Common 2-norm of all gradients, at least 0.

        Returns
        -------
        float
            ``math.inf`` where nothing is to be clipped.

        Raises
        ------
        InvalidArgumentError
            It is negative.
        NotFiniteError
            It is not finite; what was known before stays.
        """
        most = ctypes.c_double()
        number = check.number("norm", norm)
        lib.moe_adaptive_clip(ctypes.byref(self._state), number, ctypes.byref(most))
        return most.value

    def __repr__(self) -> str:
        """Give its numbers, and what it has learnt so far."""
        state = self._state
        return described(
            self,
            f"decay={state.decay:g}, threshold={state.threshold:g}, warmup_steps={state.warmup_steps}; "
            f"norms so far {state.mean:.3g} with variance {state.variance:.3g}",
        )

    @property
    def mean(self) -> float:
        """Mean of the norms, spikes counting as the furthest that is none."""
        return float(self._state.mean)

    @property
    def variance(self) -> float:
        """Their variance."""
        return float(self._state.variance)

    def state_dict(self) -> dict[str, float]:
        """All of it, as numbers that JSON keeps exactly."""
        return {name: getattr(self._state, name) for name in sorted(_FIELDS)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises
        ------
        ValueError
            A name is missing or unknown.
        InvalidArgumentError
            A number is out of range; nothing has changed.
        """
        check.mapping("state", state, "what state_dict gave")
        missing, unknown = sorted(_FIELDS - state.keys()), sorted(state.keys() - _FIELDS)
        if missing or unknown:
            raise InvalidArgumentError(f"state: missing names {missing}, unknown names {unknown}")
        new = abi.moe_clip_state(**state)
        _check_state(new)
        self._state = new


_FIELDS = set(fields.types(abi.moe_clip_state))


def _check_state(state: Any) -> None:
    """Try it on a copy: the library looks at the whole state."""
    copy = type(state).from_buffer_copy(state)
    lib.moe_adaptive_clip(ctypes.byref(copy), state.mean, ctypes.byref(ctypes.c_double()))
