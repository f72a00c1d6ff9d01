"""What a model's matrices read over some text, by which few bits are chosen."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._keywords import keywords
from ._model_call import Call, Integers, Mask
from ._native import abi, check
from ._native.library import Handle, Native, lib
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from .model import Model

__all__ = ["CalibratedMatrix", "Calibration", "calibrate"]

WINDOW, WINDOWS = 512, 4  # tokens of a window, and windows of one forward
MEMORY = "4GB"  # for products of inputs


@dataclass(frozen=True)
class CalibratedMatrix:
    """What is known of one matrix, or of one expert's.

    Attributes
    ----------
    name : str
        Of the parameter.
    expert : int
        Its number within the parameter; 0 of a matrix that all tokens are multiplied by.
    n_tokens : int
        That reached it.
    is_few : bool
        Whether they are fewer than 32: it is then packed by what all experts of its group read.
    has_products : bool
        Whether there is memory for the products of its inputs: then weights make up for errors of others.
    """

    name: str
    expert: int
    n_tokens: int
    is_few: bool
    has_products: bool


@keywords
class Calibration(Native):
    """What a model's matrices read over some text: squares and products of the inputs of each that is packed.

    Few bits chosen by it keep what the matrices put out rather than their weights, see docs/low_bits.md.  One
    serves every form, and every model with parameters of the same names and shapes: one that is packed while
    it is read, too.

    Parameters
    ----------
    model : Model
        Whose parameters these are; it may be closed afterwards.
    memory_limit : int or str
        Bytes for products of inputs, also as ``"8GB"``: 4 n^2 of a matrix with n inputs, and of each expert's
        down.  Matrices with the fewest have them first; without them only squares count.

    Raises
    ------
    TypeError
        It is no model.
    OutOfMemoryError
        There is no memory for these, or for 8 bytes for each input of each expert's.

    Examples
    --------
    >>> import libmoe, numpy
    >>> model = libmoe.Model(64, 2, 4, vocabulary_size=256,
    ...                      moe=dict(n_experts=8, top_k=2, intermediate_size=128))
    >>> calibration = libmoe.calibrate(model, numpy.arange(256, dtype=numpy.int32))
    >>> model.prepare("int4", calibration=calibration)
    >>> calibration.n_tokens
    256
    """

    _instead = "make one from the text again, with libmoe.calibrate"

    def __init__(self, model: Model, *, memory_limit: int | str = MEMORY) -> None:
        from .model import Model  # which needs this module

        check.instance("model", model, Model, "a libmoe.Model")
        self._open_handle = Handle(
            lib.moe_calibration_create,
            lib.moe_calibration_free,
            model._handle,
            check.byte_count("memory_limit", memory_limit),
            keep={"context": model._handle.keep["context"]},
        )
        self._names = list(model.parameters)

    def _told(self) -> str:
        few = len(self.few)
        return f"n_tokens={self.n_tokens}" + (f", {few} experts with few" if few else "")

    def add(
        self,
        model: Model,
        tokens: Integers | NDArray[np.float32],
        *,
        valid_mask: Mask | None = None,
        memory_limit: int | str | None = None,
    ) -> None:
        """Run tokens through a model and add what its matrices read.

        Parameters
        ----------
        model : Model
            With parameters of the same names and shapes, not packed in few bits; its experts may stay in the
            files.
        tokens : ndarray of int32, [B, S]; of an encoder ndarray of float32, [B, S, H]
        valid_mask : ndarray of bool, [B, S], optional
            False for padding, which is left out.
        memory_limit : int or str, optional
            As of :meth:`Model.forward`; it changes no bit.

        Raises
        ------
        TypeError, InvalidArgumentError
            As of :meth:`Model.forward`; the model has other parameters.
        BadStateError
            Its weights are packed in few bits.
        NotFiniteError, OutOfMemoryError
            As of :meth:`Model.forward`.  After an error, or an interrupt, the calibration is empty.
        """
        call: Call = model._call(tokens, {"valid_mask": valid_mask, "memory_limit": memory_limit})
        lib.moe_model_calibrate(model._handle, call.c_input, self._handle)

    # ----------------------------------------------------------------------------------------------------
    # What is known
    # ----------------------------------------------------------------------------------------------------

    @property
    def n_tokens(self) -> int:
        """Tokens so far: the most that reached a matrix, padding not among them."""
        return max((matrix.n_tokens for matrix in self.matrices()), default=0)

    @property
    def few(self) -> list[CalibratedMatrix]:
        """Experts that fewer than 32 tokens reached, each by the matrix that comes first in the list."""
        found: dict[tuple[str, int], CalibratedMatrix] = {}
        for matrix in self.matrices():
            if matrix.is_few:
                found.setdefault((matrix.name.rpartition("experts.")[0], matrix.expert), matrix)
        return list(found.values())

    def matrices(self) -> Iterator[CalibratedMatrix]:
        """Yield what is known of each matrix, in the order of the model's parameters, expert by expert."""
        for number, name in enumerate(self._names):
            for expert in range(self._read(number, 0).n_experts):
                found = self._read(number, expert)
                yield CalibratedMatrix(
                    name, expert, found.n_tokens, bool(found.is_few), found.products is not None
                )

    def mean_squares(self, name: str, expert: int = 0) -> NDArray[np.float64]:
        """Return the mean square of each input of a matrix over the tokens that reached it; 0 without any.

        Parameters
        ----------
        name : str
            Of the parameter.
        expert : int
            Within the parameter.

        Raises
        ------
        InvalidArgumentError
            There is no such parameter or expert, or the parameter is not packed.
        """
        found = self._known(name, expert)
        sums = (ctypes.c_double * found.n_inputs).from_address(found.square_sums)
        own: NDArray[np.float64] = np.array(sums, np.float64)
        own /= max(1, found.n_tokens)
        return own

    def mean_products(self, name: str, expert: int = 0) -> NDArray[np.float32] | None:
        """Return the mean products x_i x_j of the inputs of a matrix, [n, n]; None where they had no memory.

        Those of gate and up are over all that came into their layer.

        Parameters
        ----------
        name : str
            Of the parameter.
        expert : int
            Within the parameter.

        Raises
        ------
        InvalidArgumentError
            As of :meth:`mean_squares`.
        """
        found = self._known(name, expert)
        if found.products is None:
            return None
        sums = (ctypes.c_float * found.n_inputs**2).from_address(found.products)
        own: NDArray[np.float32] = np.array(sums, np.float32).reshape(found.n_inputs, -1)
        own /= np.float32(max(1, found.n_product_tokens))
        return own

    def _known(self, name: str, expert: int) -> abi.moe_calibrated:
        numbers = {known: number for number, known in enumerate(self._names)}
        number = check.choice("name", name, numbers)
        found = self._read(number, check.integer("expert", expert, ctypes.c_int64))
        if not found.n_experts:
            raise InvalidArgumentError(f"name = {name!r}: it is not packed, so that nothing is known of it")
        return found

    def _read(self, number: int, expert: int) -> abi.moe_calibrated:
        found = abi.moe_calibrated()
        lib.moe_calibration_read(self._handle, number, expert, found)
        return found


@keywords
def calibrate(
    model: Model,
    text: str | Integers,
    *,
    tokens: int = 0,
    sequence_length: int = WINDOW,
    sequences: int = WINDOWS,
    memory_limit: int | str = MEMORY,
    progress: Callable[[int, int], Any] | None = None,
) -> Calibration:
    """Run a text through a model and return what its matrices read, by which few bits can be chosen.

    Some ten thousand tokens of what the model will be used for are enough; with many experts more, since each
    sees its share of them alone: look at :attr:`Calibration.few`.

    Parameters
    ----------
    model : Model
        A language model with its own weights, not packed in few bits; experts may stay in the files.
    text : str or ndarray of int32
        What the model's tokenizer makes tokens of; or tokens, [n] or [B, S].
    tokens : int
        Of the text at most, from its beginning; 0: all.
    sequence_length : int
        Of the windows that a text is cut into; rows [B, S] stay as they are.
    sequences : int
        Windows of one forward.
    memory_limit : int or str
        Bytes for products of inputs, as of :class:`Calibration`.
    progress : callable, optional
        Called with tokens that are done, and with those there are; what it raises ends the calibration.

    Returns
    -------
    Calibration
        For :meth:`Model.prepare` and :meth:`Model.from_pretrained`.

    Raises
    ------
    TypeError, InvalidArgumentError
        An argument is wrong, or the text has no token.
    BadStateError
        The weights are packed in few bits; of a str, the model has no tokenizer.

    Examples
    --------
    ::

        model = libmoe.Model.from_pretrained("OLMoE-1B-7B", inference_only=True)
        calibration = libmoe.calibrate(model, open("book.txt").read(), tokens=32_768)
        small = libmoe.Model.from_pretrained(
            "OLMoE-1B-7B", inference_only=True, prepared="int4_a8", calibration=calibration
        )
    """
    calibration = Calibration(model, memory_limit=memory_limit)
    rows = list(_windows(model, text, tokens, _above_0("sequence_length", sequence_length)))
    at_once = _above_0("sequences", sequences)
    done, there_are = 0, sum(map(len, rows))
    while rows:
        alike = [row for row in rows[:at_once] if len(row) == len(rows[0])]
        calibration.add(model, np.ascontiguousarray(np.stack(alike)))
        del rows[: len(alike)]
        done += sum(map(len, alike))
        if progress is not None:
            progress(done, there_are)
    return calibration


def _above_0(name: str, value: Any) -> int:
    number = check.count(name, value)
    if number == 0:
        raise InvalidArgumentError(f"{name} = 0; give 1 or more")
    return number


def _windows(model: Model, text: Any, most: int, length: int) -> Iterator[Integers]:
    """Yield the rows that go through the model, of a text the last one perhaps shorter."""
    if isinstance(text, str):
        found = np.array(model.tokenizer.encode(text), np.int32)
    else:
        found = check.array("text", text, dtype="i32")
    if found.ndim not in (1, 2):
        raise InvalidArgumentError(f"text: expected tokens [n] or [B, S], got shape {found.shape}")
    if not found.size:
        raise InvalidArgumentError("text: it has no token; give it at least one letter")
    if found.ndim == 2:
        length = found.shape[1]
    most = check.count("tokens", most) or found.size
    whole = found.reshape(-1)[:most]
    for first in range(0, len(whole), length):
        yield whole[first : first + length]
