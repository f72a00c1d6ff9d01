"""Exceptions: one class per status of the library, each also the Python exception one would expect."""

from __future__ import annotations

from ._native import abi


class MoeError(Exception):
    """A call of the library failed; the text names the argument and the values.

    Attributes
    ----------
    status : int
        The ``moe_status`` of the call.
    """

    status = -1


class InvalidArgumentError(MoeError, ValueError):
    """A size, name or option is out of range, or arrays overlap."""

    status = abi.STATUS["error_invalid_argument"]


class ArgumentTypeError(InvalidArgumentError, TypeError):
    """An argument is of a type, or an array of a dtype, that cannot be used; the text has the way to one."""


class OutOfMemoryError(MoeError, MemoryError):
    """There was no memory; the objects are as they were."""

    status = abi.STATUS["error_out_of_memory"]


class BadStateError(MoeError, RuntimeError):
    """Right arguments at the wrong time: backward before forward, another layer's tape, a closed object."""

    status = abi.STATUS["error_bad_state"]


class NotFiniteError(MoeError, ArithmeticError):
    """NaN or infinity where a number is needed; the text names the token or the tensor."""

    status = abi.STATUS["error_not_finite"]


class FileError(MoeError, OSError):
    """The system refused a file; the text has its reason and the path."""

    status = abi.STATUS["error_io"]


class CommunicationError(MoeError, ConnectionError):
    """An exchange between ranks failed; the text has the transport's words."""

    status = abi.STATUS["error_communication"]


def error_for(status: int, message: str) -> MoeError:
    """Exception for a status other than 0."""
    kinds = (
        InvalidArgumentError,
        OutOfMemoryError,
        BadStateError,
        NotFiniteError,
        FileError,
        CommunicationError,
    )
    for kind in kinds:
        if kind.status == status:
            return kind(message)
    error = MoeError(message)
    error.status = status
    return error
