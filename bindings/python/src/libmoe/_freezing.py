"""Parameters of a model that are not trained."""

from __future__ import annotations

import ctypes
import fnmatch

from ._keywords import keywords
from ._native.library import lib
from ._tensors import Tensors, _memory
from .errors import ArgumentTypeError, BadStateError, InvalidArgumentError


@keywords
class Freezing(Tensors):
    """What :class:`Model` has for training a part of itself."""

    def freeze(self, *patterns: str) -> list[str]:
        """Stop training parameters: they give up their gradients, and backward leaves out what these need.

        Backward ends at the first layer with something to train.  The other gradients keep their bits.
        Optimisers and :func:`clip_grad_norm` leave frozen parameters out; make optimisers afterwards.
        :meth:`bind` with a gradient trains one again.  Copies of the model are not frozen.

        Parameters
        ----------
        *patterns : str
            Names of :attr:`parameters`, with ``*``, ``?`` and ``[...]`` as in :mod:`fnmatch`.

        Returns
        -------
        list of str
            The names that fit, in the order of :attr:`parameters`.

        Raises
        ------
        InvalidArgumentError
            A pattern fits no parameter; none has been frozen.
        BadStateError
            An array or an optimiser still uses a gradient; none has been frozen.  Or the model is
            inference_only.

        Examples
        --------
        >>> import libmoe
        >>> moe = dict(n_experts=4, top_k=2, intermediate_size=8, expert_kind="gated")
        >>> model = libmoe.Model(16, 2, 2, vocabulary_size=20, moe=moe)
        >>> len(model.freeze("embed.weight", "*.ffn.experts.*"))
        7
        """
        places = self._gradients()
        wanted: set[str] = set()
        for n, pattern in enumerate(patterns):
            if not isinstance(pattern, str):
                raise ArgumentTypeError(
                    f"patterns[{n}]: expected a str, got {type(pattern).__name__}; use freeze(*patterns)"
                )
            found = fnmatch.filter(places, pattern)
            if not found:
                some = ", ".join(list(places)[:4])
                raise InvalidArgumentError(
                    f"patterns[{n}]: no parameter is called {pattern!r}; names are such as {some}, ..."
                )
            wanted.update(found)
        frozen = {name: place for name, place in places.items() if name in wanted}
        memory = _memory(self._handle)
        for name, (_, gradient) in frozen.items():
            if gradient in memory.views:
                raise BadStateError(
                    f"{name}: its gradient is still in use by an array, a list of parameters or an "
                    "optimiser; delete it before freeze, and make the optimiser afterwards"
                )
        for name, (index, _) in frozen.items():
            lib.moe_model_freeze(self._handle, index)
            self._handle.keep.pop((name, "grad"), None)
        memory.binds += 1
        return list(frozen)

    def _gradients(self) -> dict[str, tuple[int, int | None]]:
        """Return numbers of the parameters, and where their gradients are, by name; without holding these."""
        count = ctypes.c_int64()
        lib.moe_model_parameter_count(self._handle, ctypes.byref(count))
        tensors = ((index, self._tensor(index)) for index in range(count.value))
        return {t.name.decode(): (index, t.grad) for index, t in tensors if not t.buffer}
